//! What every server links: system calls, typed objects, entry point, heap, log, panic handler.
//!
//! Job: turn the kernel's ABI (`ipc_schema::abi`) into safe Rust. Place: between every server and the kernel. Trust:
//! it believes the kernel and the start page, which root wrote; messages and shared pages come from other protection
//! domains and are checked by whoever decodes them.
//!
//! On the host (tests) system calls answer [`abi::Status::Unsupported`], so that servers' libraries build and
//! test there; only what is under `target_os = "none"` needs the kernel.
//!
//! One thread a server: the UTCB, the heap and the log belong to the first thread (see [`object::thread`]). Callers on other
//! processors reach it through [`forward`]'s threads.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod console;
pub mod device;
pub mod elf_note;
pub mod forward;
#[cfg(target_os = "none")]
mod heap;
pub mod heart;
pub mod ipc;
#[cfg(target_os = "none")]
pub mod log;
pub mod object;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
pub mod power;
pub mod rpc;
#[cfg(target_os = "none")]
#[doc(hidden)]
pub mod rt;
pub mod serve;
pub mod shared;
pub mod slots;
pub mod start;
pub mod sys;
pub mod text;
pub mod time;
pub mod utcb;

pub use ipc::{Endpoint, Event, Message, Notification, reply_recv};
pub use ipc_schema::abi;
pub use rpc::CallError;
pub use serve::{ReplyCaps, Service, serve};
pub use slots::{Slot, Slots};
pub use start::StartInfo;
pub use time::now;
