//! Deadlines: sorted, and each inside its living owner.

use super::{Owner, Timer};
use crate::arch::Cpu;
use crate::checker::{Checked, ensure};
use crate::list::check::walk;
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

/// Checks a processor's list; answers its length.
pub fn list(cpu: &Cpu) -> Checked<u64> {
    let mut last = 0;
    // A timer is no object: the slot in which it lies must be a live Thread or Budget.
    let live = |t: Obj<Timer>| {
        slot_of(t.addr()).is_some_and(|h| {
            let kind = (h.word.get() >> 32) as u32;
            kind == Thread::KIND as u32 || kind == Budget::KIND as u32
        })
    };
    walk(&cpu.timers.list, 0, live, |t| {
        ensure(
            t.owner.get().is_some(),
            "a timer in the list is armed",
            t.addr(),
            0,
        )?;
        ensure(t.at.get() >= last, "timers are in order", t.addr(), last)?;
        last = t.at.get();
        Ok(())
    })
}
