//! How long interrupts stay off: from each entry of the kernel to where they can come again (user level, a guest, idleness).
//!
//! Job: find the longest such stretch, and what it was spent on, in TSC cycles; an emulator that counts instructions makes them
//! instructions. Place: a debug feature (`measure`) of the image, asked by `op::cpu::STAT`; without it nothing is left of it. The few
//! instructions of the entry code itself are not in the figures (a constant is added for them). Waiting for other processors would be,
//! so it is meant for one.

use super::Cpu;
use crate::mem::Obj;
use crate::object::Thread;

/// What a stretch begins with.
pub enum Cause {
    /// A system call of a thread, by number.
    Call(Obj<Thread>, u64),
    /// An interrupt or exception at user level.
    Trap(u64),
    /// An exit of a guest, by code; 0 when a thread goes on in its guest.
    Exit(u64),
    /// The end of idleness.
    Wake,
}

#[cfg(not(feature = "measure"))]
mod figures {
    use super::{Cause, Cpu, Obj, Thread};
    /// The kernel has been entered.
    #[inline(always)]
    pub fn begin(_: &Cpu, _: Cause) {}
    /// It is going to be left, unless `_next` is in its guest.
    #[inline(always)]
    pub fn leave(_: &Cpu, _next: Obj<Thread>) {}
    /// Interrupts can come from here.
    #[inline(always)]
    pub fn end(_: &Cpu) {}
    /// The longest stretch so far.
    #[must_use]
    pub fn longest(_: &Cpu) -> u64 {
        0
    }
}

#[cfg(feature = "measure")]
#[path = "../checker/measure.rs"]
mod figures;

pub use figures::{begin, end, leave, longest};
