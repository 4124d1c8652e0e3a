//! How long interrupts stay off: from each entry of the kernel to where they can come again (user level, a guest, idleness).
//!
//! Job: find the longest such stretch, and what it was spent on, in TSC cycles; an emulator that counts instructions makes them
//! instructions. Place: a debug feature (`measure`) of the image, asked by `op::cpu::STAT`; without it nothing is left of it. The few
//! instructions of the entry code itself are not in the figures ([`EDGES`] is added for them). Waiting for other processors would be,
//! so it is meant for one.

use super::Cpu;
use crate::mem::Obj;
use crate::object::Thread;

/// A stretch is what one of these began: number of the system call, kind of the object, operation.
#[must_use]
pub const fn call(number: u64, kind: u64, label: u64) -> u64 {
    (number & 0xff) << 24 | (kind & 0xff) << 16 | (label & 0xffff)
}
/// An interrupt or exception at user level.
#[must_use]
pub const fn trap(vector: u64) -> u64 {
    0xfe << 24 | (vector & 0xffff)
}
/// The exit of a guest.
pub const EXIT: u64 = 0xfd << 24;
/// The end of idleness.
pub const WAKE: u64 = 0xfc << 24;

#[cfg(not(feature = "measure"))]
mod figures {
    use super::{Cpu, Obj, Thread};
    /// The kernel has been entered.
    #[inline(always)]
    pub fn begin(_: &Cpu, _: impl FnOnce() -> u64) {}
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
