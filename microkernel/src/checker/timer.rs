//! Deadlines: each where its time leads, and each inside its living owner.

use super::{Owner, Timer};
use crate::arch::Cpu;
use crate::checker::{Checked, ensure};
use crate::list::check::walk;
use crate::mem::Obj;
use crate::object::pool::check::slot_of;
use crate::object::{Budget, Object, Thread};
use crate::tree::check::walk as walk_tree;

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
    let next = cpu.timers.next();
    let armed = |t: Obj<Timer>, first: bool| {
        let is = t.owner.get().is_some() && t.first.get() == first;
        ensure(is, "a timer among the deadlines is armed", t.addr(), 0)?;
        ensure(
            t.at.get() >= next,
            "none is before the next",
            t.addr(),
            next,
        )
    };
    let mut more = 0;
    let n = walk_tree(&cpu.timers.tree, 0, live, |t| {
        armed(t, true)?;
        more += walk(&t.same, t.addr(), live, |o| {
            armed(o, false)?;
            ensure(
                o.at.get() == t.at.get(),
                "timers hang at their time",
                o.addr(),
                t.addr(),
            )
        })?;
        Ok(())
    })?;
    Ok(n + more)
}
