//! Vireo's kernel: VM entry and exit, IPC, and the objects they need. Nothing else runs in ring 0.
//!
//! Job: keep protection domains apart, pass messages and exits between them, enforce time. Place: below every server; the loader
//! hands it the machine, it hands it on to `root`. Trust: everyone trusts it, it trusts nobody: each argument, capability and page that
//! comes from user level or a guest is checked before it is used.
//!
//! Principles:
//! - Decode, then commit: an operation checks everything first, and can't fail any more once it changes something.
//! - No allocation but out of Pools, which user level donated; no panic on anything that user level does.
//! - On one processor, with interrupts off, on one stack; a thread's state is in its object, never on the kernel's stack.
//! - What is destroyed is unlinked from everything that refers to it by pointer; what refers to it by capability finds out.
#![cfg_attr(target_os = "none", no_std)]

#[doc = include_str!("../docs/ABI.md")]
pub mod abi_reference {}
pub mod arch;
#[cfg(target_os = "none")]
pub mod boot;
pub mod exit;
pub mod ipc;
pub mod list;
pub mod mem;
pub mod object;
pub mod sched;
#[cfg(test)]
mod tests;
pub mod virt;

use arch::Cpu;
use ipc_schema::abi::Status;
use mem::Obj;
use object::Thread;

/// A system call of `t`, whose registers are saved in it; answers who goes on.
#[inline(always)]
pub fn syscall(cpu: &Cpu, t: Obj<Thread>, number: u64) -> Obj<Thread> {
    match number {
        0 => ipc::call(cpu, t),
        1 => ipc::reply_recv(cpu, t),
        2 => ipc::signal_call(cpu, t),
        3 => ipc::wait(cpu, t),
        4 => exit::run(cpu, t),
        5 => {
            t.finish(Status::Ok);
            sched::yield_now(cpu, t)
        }
        _ => {
            t.finish(Status::BadOperation);
            t
        }
    }
}
