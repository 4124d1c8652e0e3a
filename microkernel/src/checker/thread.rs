//! Threads: where their state says, known to everybody that they know.

use super::{State, Thread};
use crate::arch::USER_FLAGS;
use crate::checker::{Checked, Tally, account, alive, count, ensure, live};
use crate::mem::Obj;
use crate::object::pool::{check as pool, pool_of};
use crate::object::thread::Resume;

/// Flags that no thread may have: I/O privilege, virtual interrupts.
const FORBIDDEN: u64 = 3 << 12 | 1 << 17 | 3 << 19;

/// Checks one.
pub fn check(o: Obj<Thread>, tally: &Tally) -> Checked {
    let (t, at, cpu) = (o.get(), o.addr(), o.home());
    count(&tally.threads[0], 1);
    alive(t.budget.get(), "the Budget that a thread runs on lives", at)?;
    alive(t.own_budget.get(), "a thread's own Budget lives", at)?;
    alive(t.caller.get(), "a caller lives", at)?;
    alive(t.callee.get(), "a callee lives", at)?;
    alive(t.bound.get(), "a bound Notification lives", at)?;
    alive(t.waits_for.get(), "what a thread waits for lives", at)?;
    alive(t.vcpu.get(), "a thread's vCPU lives", at)?;
    ensure(live(t.space), "a thread's Space lives", at, t.space.addr())?;
    let state = t.state.get();
    if let Some(b) = t.own_budget.get() {
        ensure(
            b.owner.get() == Some(o),
            "a Budget knows its owner",
            at,
            b.addr(),
        )?;
    }
    if let Some(n) = t.bound.get() {
        ensure(
            n.bound.get() == Some(o),
            "a Notification knows its bound thread",
            at,
            n.addr(),
        )?;
    }
    if let Some(b) = t.budget.get() {
        let lent = t.caller.get().is_some_and(|c| c.budget.get() == Some(b));
        // From its owner along the calls: the last may be queued where this thread is to take it.
        let mut callers = core::iter::successors(b.owner.get(), |c| c.callee.get());
        let queued = callers.find(|c| c.state.get() == State::Queued);
        let next = queued.is_some_and(|c| c.callee.get() == Some(o));
        ensure(
            lent || next || t.own_budget.get() == Some(b),
            "a thread runs on its own Budget, its caller's or the next caller's",
            at,
            b.addr(),
        )?;
        ensure(
            b.cpu.get() == cpu.number,
            "a thread runs on a Budget of its processor",
            at,
            b.addr(),
        )?;
    }
    if let Some(v) = t.vcpu.get() {
        ensure(
            v.cpu.get() == cpu.number,
            "a vCPU is where its runner is",
            at,
            v.addr(),
        )?;
        ensure(
            v.runner.get() == Some(o),
            "a vCPU knows its runner",
            at,
            v.addr(),
        )?;
    }
    if let Some(c) = t.caller.get() {
        let ok = c.callee.get() == Some(o) && c.state.get() == State::Calling;
        ensure(ok, "whose call is served is calling", at, c.addr())?;
    }
    let served = t.callee.get().is_some_and(|s| s.caller.get() == Some(o));
    ensure(
        (state == State::Calling) == served,
        "a calling thread is served",
        at,
        state as u64,
    )?;
    let waited = t.waits_for.get().is_some_and(|n| n.waiter.get() == Some(o));
    ensure(
        (state == State::Waiting) == waited,
        "a waiting thread is waited for",
        at,
        state as u64,
    )?;
    if state == State::Queued {
        count(&tally.callers[0], 1);
        let helps = |s: Obj<Thread>| s.budget.get() == t.budget.get() && t.budget.get().is_some();
        ensure(
            t.callee.get().is_none_or(helps),
            "who goes on with a queued caller's Budget has it",
            at,
            0,
        )?;
        alive(t.endpoint.get(), "where a call is queued lives", at)?;
        ensure(
            t.endpoint.get().is_some(),
            "a queued call is queued somewhere",
            at,
            0,
        )?;
    }
    ensure(
        state != State::Receiving || t.budget.get() == t.own_budget.get(),
        "who waits for a call has nobody's Budget but its own",
        at,
        0,
    )?;
    if state == State::Receiving && t.endpoint.get().is_some() {
        count(&tally.receivers[0], 1);
        alive(t.endpoint.get(), "where a server waits lives", at)?;
    }
    if state == State::Ready {
        ensure(!t.suspended.get(), "a suspended thread is not ready", at, 0)?;
        if let Some(b) = t.budget.get() {
            let runs = b.thread.get() == Some(o)
                && (cpu.budget.get() == Some(b) || b.queued.get() || b.exhausted.get());
            ensure(runs, "somebody will run a ready thread", at, b.addr())?;
        }
    }
    // The host's tests run no thread's code: theirs have no flags.
    let runs = cfg!(target_os = "none") && t.resume.get() == Resume::Interrupt;
    if runs && state == State::Ready {
        let flags = t.regs.rflags.get();
        let ok = flags & FORBIDDEN == 0 && flags & USER_FLAGS == USER_FLAGS;
        ensure(ok, "a thread's flags are user level's", at, flags)?;
        let rip = t.regs.rip.get();
        let canonical = ((rip << 16) as i64 >> 16) as u64 == rip;
        ensure(canonical, "a thread's rip is canonical", at, rip)?;
    }
    let armed = crate::sched::timer::check::of_thread(&t.timer, o)?;
    count(&tally.timers[0], u64::from(armed));
    let deadline = matches!(
        state,
        State::Queued | State::Calling | State::Receiving | State::Waiting
    ) && t.deadline.get() != ipc_schema::abi::NEVER;
    ensure(
        !deadline || armed,
        "a deadline will come about",
        at,
        t.deadline.get(),
    )?;
    let s = t.space.get();
    let shared = s.cpus.get().count_ones() > 1;
    let (caps, slots) = s.first_slots();
    let slots = if shared { 0 } else { slots };
    let same = t.root.get() == s.loaded && t.caps.get() == caps && t.caps_len.get() == slots;
    ensure(same, "a thread's copies are its Space's", at, caps)?;
    ensure(
        s.cpus.get() & (1 << cpu.number) != 0,
        "a Space knows the processors of its threads",
        at,
        u64::from(s.cpus.get()),
    )?;
    let p = pool_of(&t.header);
    account(t.header.pool, 1);
    let page = pool::is_raw(p, t.utcb_phys) && t.utcb == crate::mem::virt(t.utcb_phys);
    ensure(
        page,
        "a UTCB is a page of the thread's Pool",
        at,
        t.utcb_phys,
    )?;
    let mapped = s.table.translate(t.utcb_at).map(|(phys, _)| phys);
    ensure(
        mapped == Some(t.utcb_phys),
        "a UTCB is mapped",
        at,
        mapped.unwrap_or(0),
    )
}
