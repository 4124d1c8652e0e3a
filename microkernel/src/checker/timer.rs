//! Deadlines: a heap, and each inside its living owner.

use super::{Owner, Timer, rank};
use crate::arch::Cpu;
use crate::checker::{Checked, ensure};
use crate::mem::Obj;
use crate::object::pool::check::slot_of;
use crate::object::{Budget, Object, Thread};

/// Whether it is armed; if so, for `t`.
pub fn of_thread(timer: &Timer, t: Obj<Thread>) -> Checked<bool> {
    match timer.owner.get() {
        None => Ok(false),
        Some(Owner::Thread(o)) if o == t => Ok(true),
        Some(_) => Err(stranger(t.addr())),
    }
}

/// Whether it is armed; if so, for `b`.
pub fn of_budget(timer: &Timer, b: Obj<Budget>) -> Checked<bool> {
    match timer.owner.get() {
        None => Ok(false),
        Some(Owner::Budget(o)) if o == b => Ok(true),
        Some(_) => Err(stranger(b.addr())),
    }
}

fn stranger(at: u64) -> crate::checker::Finding {
    crate::checker::Finding {
        what: "a timer is its owner's",
        at,
        value: 0,
    }
}

/// Checks a processor's deadlines; answers how many there are.
pub fn list(cpu: &Cpu) -> Checked<u64> {
    // A timer is no object: the slot in which it lies must be a live Thread or Budget.
    let live = |t: Obj<Timer>| {
        slot_of(t.addr()).is_some_and(|h| {
            let kind = (h.word.get() >> 32) as u32;
            kind == Thread::KIND as u32 || kind == Budget::KIND as u32
        })
    };
    let mut n = 0;
    // Down to the left first, then to the right; back up by the way that each remembers.
    let (mut at, mut from) = (cpu.timers.top.get(), None);
    while let Some(t) = at {
        ensure(live(t), "a timer's owner lives", t.addr(), 0)?;
        let [left, right] = [0, 1].map(|i| t.get().below[i].get());
        if from == t.above.get() {
            n += 1;
            ensure(
                t.owner.get().is_some(),
                "a timer among the deadlines is armed",
                t.addr(),
                0,
            )?;
            let ranks = rank(left) >= rank(right) && t.rank.get() == rank(right) + 1;
            ensure(
                ranks,
                "the heap of deadlines leans left",
                t.addr(),
                u64::from(t.rank.get()),
            )?;
            for b in [left, right].into_iter().flatten() {
                ensure(live(b), "a timer's owner lives", b.addr(), 0)?;
                ensure(
                    b.above.get() == Some(t),
                    "a timer knows what is above it",
                    b.addr(),
                    t.addr(),
                )?;
                ensure(
                    b.at.get() >= t.at.get(),
                    "none below comes up sooner",
                    b.addr(),
                    t.addr(),
                )?;
            }
        }
        let next = if from == t.above.get() && left.is_some() {
            left
        } else if from != right && right.is_some() {
            right
        } else {
            t.above.get()
        };
        (from, at) = (Some(t), next);
    }
    Ok(n)
}
