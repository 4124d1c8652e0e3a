//! The figures of [`super`]: in images for tests only.

use super::{Cause, Cpu, Obj, Thread};
use crate::arch::{MAX_CPUS, now};
use crate::mem::Global;
use crate::object::cap;
use crate::object::thread::{Resume, reg};
use core::cell::Cell;
use ipc_schema::abi::{Kind, Tag};

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

/// A cause as one word: number of the system call (or what stands for one), kind of the object, operation.
fn number(cause: &Cause) -> u64 {
    let [call, kind, label] = match *cause {
        Cause::Call(t, number) => {
            let label = Tag(t.get().get(reg::RSI)).label();
            match cap::peek(t.get(), t.get().get(reg::RDI)) {
                // What a Pool makes is told apart.
                Ok(cap) if number == 0 && cap.kind() == Kind::Pool as u32 => [
                    0,
                    Kind::Pool as u64,
                    label | (t.get().get(reg::R8) & 15) << 8,
                ],
                Ok(cap) if number == 0 => [0, u64::from(cap.kind()), label],
                _ => [number, 0, 0],
            }
        }
        Cause::Trap(vector) => [0xfe, 0, vector],
        Cause::Exit(code) => [0xfd, 0, code],
        Cause::Wake => [0xfc, 0, 0],
    };
    (call & 0xff) << 24 | (kind & 0xff) << 16 | (label & 0xffff)
}

/// The kernel has been entered; a stretch that has begun goes on.
pub fn begin(cpu: &Cpu, cause: Cause) {
    let f = of(cpu);
    if f.since.get() == 0 {
        f.cause.set(number(&cause));
        f.since.set(now());
    }
}

/// It is going to be left, unless `next` is in its guest.
pub fn leave(cpu: &Cpu, next: Obj<Thread>) {
    if next.resume.get() < Resume::Guest {
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
