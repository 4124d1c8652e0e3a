//! Vireo's kernel: VM entry and exit, IPC, and the objects they need. Nothing else runs in ring 0.
//!
//! Job: keep protection domains apart, pass messages and exits between them, enforce time. Place: below every server; the loader
//! hands it the machine, it hands it on to `root`. Trust: everyone trusts it, it trusts nobody: each argument, capability and page that
//! comes from user level or a guest is checked before it is used.
//!
//! Principles:
//! - Decode, then commit: an operation checks everything first, and can't fail any more once it changes something.
//! - No allocation but out of Pools, which user level donated; no panic on anything that user level does.
//! - On each processor with interrupts off, on one stack; a thread's state is in its object, never on the kernel's stack.
//! - IPC and VM exits touch what belongs to their processor, without a lock; see [`sync`] for the rest.
//! - What is destroyed is unlinked from everything that refers to it by pointer; what refers to it by capability finds out.
#![cfg_attr(target_os = "none", no_std)]

/// What [`mail`], [`stop`] and [`writes`] are made of.
mod atomic {
    #[cfg(not(target_os = "none"))]
    pub use crate::arch::spin_loop;
    #[cfg(target_os = "none")]
    pub use core::hint::spin_loop;
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering, fence};
    /// A function that can be used for statics.
    macro_rules! constant {
        ($(#[$m:meta])* $v:vis fn $($rest:tt)*) => { $(#[$m])* $v const fn $($rest)* };
    }
    pub(crate) use constant;
}

#[doc = include_str!("../docs/ABI.md")]
pub mod abi_reference {}
pub mod arch;
#[cfg(target_os = "none")]
pub mod boot;
#[cfg(any(test, feature = "checker"))]
pub mod checker;
pub mod exit;
pub mod ipc;
pub mod list;
pub mod mail;
pub mod mem;
pub mod object;
pub mod sched;
pub mod stop;
pub mod sync;
#[cfg(any(test, all(feature = "checker", not(target_os = "none"))))]
pub mod tests;
pub mod tree;
pub mod virt;
pub mod writes;

use arch::Cpu;
use ipc_schema::abi::Status;
use mem::Obj;
use object::Thread;

/// What stands for [`abi::Syscall::Run`] where there is VMX.
///
/// [`abi::Syscall::Run`]: ipc_schema::abi::Syscall::Run
pub const RUN_VMX: u64 = 16;

/// A system call of `t`, whose registers are saved in it; answers who goes on.
#[inline(always)]
pub fn syscall(cpu: &Cpu, t: Obj<Thread>, number: u64) -> Obj<Thread> {
    #[cfg(feature = "checker")]
    checker::past::before(cpu, t, number);
    let next = match number {
        0 => ipc::call(cpu, t),
        1 => ipc::reply_recv(cpu, t),
        2 => ipc::signal_call(cpu, t),
        3 => ipc::wait(cpu, t),
        4 => exit::run::<virt::svm::BackEnd>(cpu, t),
        RUN_VMX => exit::run::<virt::vmx::BackEnd>(cpu, t),
        5 => {
            t.finish(Status::Ok);
            sched::yield_now(cpu, t)
        }
        _ => {
            t.finish(Status::BadOperation);
            t
        }
    };
    #[cfg(feature = "checker")]
    let next = checker::after_call(cpu, next);
    next
}
