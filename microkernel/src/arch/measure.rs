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
mod figures {
    use super::{Cpu, Obj, Thread};
    use crate::arch::{MAX_CPUS, now};
    use crate::mem::Global;
    use crate::object::thread::Resume;
    use core::cell::Cell;

    /// Instructions between the entry and the first stamp, and the last stamp and the exit.
    const EDGES: u64 = 60;
    /// Causes that are told apart.
    const CAUSES: usize = 128;
    /// How many are reported.
    const TOP: usize = 5;

    struct Figures {
        /// When the current stretch began; 0: none.
        since: Cell<u64>,
        cause: Cell<u64>,
        /// Cause and longest stretch.
        longest: [Cell<(u64, u64)>; CAUSES],
    }

    static FIGURES: Global<[Figures; MAX_CPUS]> = Global(
        [const {
            Figures {
                since: Cell::new(0),
                cause: Cell::new(0),
                longest: [const { Cell::new((0, 0)) }; CAUSES],
            }
        }; MAX_CPUS],
    );

    fn of(cpu: &Cpu) -> &'static Figures {
        &FIGURES[cpu.number as usize % MAX_CPUS]
    }

    /// The kernel has been entered; a stretch that has begun goes on.
    pub fn begin(cpu: &Cpu, cause: impl FnOnce() -> u64) {
        let f = of(cpu);
        if f.since.get() == 0 {
            f.cause.set(cause());
            f.since.set(now());
        }
    }

    /// It is going to be left, unless `next` is in its guest.
    pub fn leave(cpu: &Cpu, next: Obj<Thread>) {
        if next.resume.get() != Resume::Guest {
            end(cpu);
        }
    }

    /// Interrupts can come from here.
    pub fn end(cpu: &Cpu) {
        let f = of(cpu);
        let since = f.since.replace(0);
        if since == 0 {
            return;
        }
        let (time, cause) = (now() - since + EDGES, f.cause.get());
        let place = f.longest.iter().find(|p| {
            let (c, t) = p.get();
            c == cause || t == 0
        });
        if let Some(p) = place
            && p.get().1 < time
        {
            p.set((cause, time));
        }
    }

    /// The longest stretch so far; logs the longest of each of the five worst causes.
    #[must_use]
    pub fn longest(cpu: &Cpu) -> u64 {
        let f = of(cpu);
        let mut below = u64::MAX;
        for rank in 1..=TOP {
            let next = f.longest.iter().map(Cell::get).filter(|p| p.1 < below);
            let Some((cause, time)) = next.max_by_key(|p| p.1).filter(|p| p.1 != 0) else {
                break;
            };
            defmt::info!(
                "OFF {=u32}.{=usize}: {=u64} cycles, system call {=u64} on kind {=u64}, operation {=u64:#x}",
                cpu.number,
                rank,
                time,
                cause >> 24,
                cause >> 16 & 0xff,
                cause & 0xffff
            );
            below = time;
        }
        let all = f.longest.iter().map(|p| p.get().1);
        // What this took is not what was asked for.
        f.since.set(0);
        all.max().unwrap_or(0)
    }
}

pub use figures::{begin, end, leave, longest};
