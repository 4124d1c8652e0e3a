//! What each processor has been asked for last: said with a finding, so that it need not be guessed.

use crate::arch::{Cpu, MAX_CPUS};
use crate::mem::{Global, Obj};
use crate::object::thread::reg;
use crate::object::{Thread, cap};
use core::cell::Cell;

/// Calls remembered of each processor.
const DEPTH: usize = 12;

/// A system call: thread, number, kind of object, tag, words.
type Call = Cell<[u64; 8]>;

/// The calls, and how many there have been.
struct Past {
    calls: [Call; DEPTH],
    next: Cell<usize>,
}

static PAST: Global<[Past; MAX_CPUS]> = Global(
    [const {
        Past {
            calls: [const { Cell::new([0; 8]) }; DEPTH],
            next: Cell::new(0),
        }
    }; MAX_CPUS],
);

/// `t` makes system call `number`.
pub fn before(cpu: &Cpu, t: Obj<Thread>, number: u64) {
    let Some(past) = PAST.get(cpu.number as usize) else {
        return;
    };
    let [slot, tag, w0, w1, w2, w3] =
        [reg::RDI, reg::RSI, reg::R8, reg::R9, reg::R10, reg::R12].map(|r| t.get().get(r));
    let kind = cap::cap_at(t.get(), slot).map_or(0, |c| u64::from(c.kind()));
    let n = past.next.replace(past.next.get() + 1);
    past.calls[n % DEPTH].set([t.addr(), number, kind, tag, w0, w1, w2, w3]);
}

/// Logs them, each processor's oldest first.
#[cfg(target_os = "none")]
pub fn tell() {
    for (number, past) in PAST.iter().enumerate() {
        let (_, recent) = past.calls.split_at(past.next.get() % DEPTH);
        let all = recent.iter().chain(&past.calls).take(DEPTH);
        for [t, call, kind, tag, w0, w1, w2, w3] in all.map(Cell::get).filter(|c| c[0] != 0) {
            defmt::error!(
                "processor {=usize}: thread {=u64:#x} call {=u64} of kind {=u64} tag {=u64:#x} words {=u64:#x} {=u64:#x} {=u64:#x} {=u64:#x}",
                number,
                t,
                call,
                kind,
                tag,
                w0,
                w1,
                w2,
                w3
            );
        }
    }
}
