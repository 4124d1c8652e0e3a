//! Root: builds every other server from the boot archive, watches over them, and builds them again when they die.
//!
//! Job of this library: everything that can be decided without the kernel: who gets what ([`plan`]), which RAM is
//! whose ([`ram`]), what is in an ELF file ([`image`]), when to restart and when to give up ([`registry`]), who
//! hangs ([`heartbeat`]), who asks too much ([`refusals`]), what a death leaves behind ([`death`]). Job of the binary: to
//! carry it out by system calls.
//!
//! Place: first user-level code; the kernel gives it everything. Trust: it trusts the kernel and, once checked, the
//! boot archive it came with. It trusts no server: requests are decoded into types, calls to servers have deadlines,
//! and what is read out of a dead server's memory is only data.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod death;
pub mod heartbeat;
pub mod image;
pub mod plan;
pub mod ram;
pub mod refusals;
pub mod registry;
pub mod wall_clock;
