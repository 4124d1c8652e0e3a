//! Calls, replies, signals: the fast paths, and all ways in which they end early.

pub mod transfer;

use crate::arch::{Cpu, MAX_CPUS};
use crate::exit::route;
use crate::mem::Obj;
use crate::object::thread::{Resume, State, reg};
use crate::object::{Budget, Cap, Endpoint, Notification, Object, Thread, cap, lookup};
use crate::virt::{svm, vmx};
use crate::{sched, sync};
use core::cell::Cell;
use ipc_schema::abi::{NEVER, Status, Syscall, Tag, rights};

/// Calls that may follow on one another: bounds every walk along a chain.
const MAX_DEPTH: u8 = 16;

/// Returns from `t`'s system call with `status`; `t` goes on running.
#[inline(always)]
pub fn done(t: Obj<Thread>, status: Status) -> Obj<Thread> {
    t.get().finish(status);
    t
}

/// System call `call`.
#[inline(always)]
pub fn call(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    let cap = match cap::peek(t.get(), t.get().get(reg::RDI)) {
        Ok(cap) => cap,
        Err(e) => return done(t, e),
    };
    if cap.kind() != ipc_schema::abi::Kind::Endpoint as u32 {
        return crate::object::invoke::invoke(cpu, t, cap);
    }
    match cap.typed::<Endpoint>(rights::SEND) {
        Ok(ep) => send(cpu, t, ep, cap.badge, t.get().get(reg::R13)),
        Err(e) => done(t, e),
    }
}

/// `t`, which is running, calls `ep`. Its message is in its registers, or in `message` if the kernel calls for it.
#[inline(always)]
pub fn send(
    cpu: &Cpu,
    t: Obj<Thread>,
    ep: Obj<Endpoint>,
    badge: u64,
    deadline: u64,
) -> Obj<Thread> {
    t.badge.set(badge);
    sched::set_deadline(cpu, t, deadline);
    let q = ep.get().queue(cpu);
    if let Some(s) = q.receivers.first()
        && t.depth.get() < MAX_DEPTH
    {
        q.receivers.remove(s);
        serve(t, s, t.budget.get());
        // `t` was running, on its Budget, which now is the server's.
        sched::switch_to(cpu, s);
        return s;
    }
    enqueue(cpu, t, ep)
}

#[inline(never)]
fn enqueue(cpu: &Cpu, t: Obj<Thread>, ep: Obj<Endpoint>) -> Obj<Thread> {
    if t.depth.get() >= MAX_DEPTH {
        give_up(cpu, t, Status::Busy);
    } else if ep.get().alive().is_err() {
        give_up(cpu, t, Status::Dead);
    } else {
        t.state.set(State::Queued);
        t.endpoint.set(Some(ep));
        ep.get().queue(cpu).callers.push_back(t);
    }
    sched::pick(cpu)
}

/// The Budget that `s` serves the call of `t` on, which has waited for it: the caller's if that can run now, else the server's own, so
/// that no client strands it.
fn lent(t: Obj<Thread>, s: Obj<Thread>) -> Option<Obj<Budget>> {
    let theirs = t.budget.get();
    if theirs.is_some_and(sched::can_run) {
        return theirs;
    }
    s.own_budget.get().or(theirs)
}

/// Server `s`, in no queue, takes `t`'s call, and runs on `budget`.
#[inline(always)]
fn serve(t: Obj<Thread>, s: Obj<Thread>, budget: Option<Obj<Budget>>) {
    t.state.set(State::Calling);
    t.callee.set(Some(s));
    s.state.set(State::Ready);
    s.caller.set(Some(t));
    s.depth.set(t.depth.get() + 1);
    s.deadline.set(NEVER);
    s.budget.set(budget);
    if let Some(b) = budget {
        b.thread.set(Some(s));
    }
    let (from, to) = (t.get(), s.get());
    to.set(reg::RAX, Status::Ok as u64);
    to.set(reg::RDI, from.badge.get());
    if from.resume.get() == Resume::Syscall {
        hand_over(from, to);
    } else {
        for (&r, m) in MESSAGE.iter().zip(&from.message) {
            to.set(r, m.get());
        }
    }
}

/// Registers of a message: its words, and before them its tag.
pub const WORDS: [usize; 4] = [reg::R8, reg::R9, reg::R10, reg::R12];
const MESSAGE: [usize; 5] = [reg::RSI, WORDS[0], WORDS[1], WORDS[2], WORDS[3]];

/// A message goes from one thread's registers, and UTCB, to the other's.
#[inline(always)]
fn hand_over(from: &Thread, to: &Thread) {
    let tag = Tag(from.get(reg::RSI));
    MESSAGE.iter().for_each(|&r| to.set(r, from.get(r)));
    if tag.0 & 0xffff != 0 {
        transfer::transfer(from, to, tag);
    }
}

impl Thread {
    /// What the kernel's call for it says.
    #[inline(always)]
    pub fn call_with(&self, label: u64, [a, b, c, d]: [u64; 4]) {
        let message = [Tag::new(label).0, a, b, c, d];
        self.message.iter().zip(message).for_each(|(m, w)| m.set(w));
    }
}

/// The call that `c` has made: badge, tag, words.
#[must_use]
pub fn pending(c: &Thread) -> [u64; 6] {
    let [tag, w0, w1, w2, w3] = if c.resume.get() == Resume::Syscall {
        MESSAGE.map(|r| c.get(r))
    } else {
        c.message.each_ref().map(Cell::get)
    };
    [c.badge.get(), tag, w0, w1, w2, w3]
}

/// System call `reply_recv`.
#[inline(always)]
pub fn reply_recv(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    let slot = t.get().get(reg::RDI);
    t.served.set(slot);
    let ep = if slot == 0 {
        None
    } else {
        match lookup::<Endpoint>(t.get(), slot, rights::RECV) {
            Ok((_, ep)) => Some(ep),
            Err(e) => return done(t, e),
        }
    };
    let Some(c) = t.caller.take() else {
        return receive(cpu, t, ep, true);
    };
    reply(t, c);
    if cpu.budget.get() != c.budget.get() {
        // The caller's time had run out: `t` has been running on its own.
        if c.state.get() == State::Ready {
            sched::make_ready(cpu, c);
        }
        return receive(cpu, t, ep, true);
    }
    // The Budget goes back to the caller, which runs at once.
    t.budget.set(t.own_budget.get());
    if let Some(b) = c.budget.get() {
        b.thread.set(Some(c));
    }
    if c.suspended.get() || c.state.get() != State::Ready {
        if c.suspended.get() {
            c.state.set(State::Stopped);
        }
        return receive(cpu, t, ep, true);
    }
    let waiting = t.bound.get().is_none_or(|n| !n.pending());
    if let (Some(ep), true, NEVER) = (ep, waiting, t.get().get(reg::R13)) {
        let q = ep.get().queue(cpu);
        if q.callers.is_empty() && !t.suspended.get() {
            t.state.set(State::Receiving);
            t.endpoint.set(Some(ep));
            q.receivers.push_front(t);
            sched::switch_to(cpu, c);
            return c;
        }
    }
    receive(cpu, t, ep, false);
    sched::switch_to(cpu, c);
    sched::current_or_better(cpu, c)
}

/// Gives `c` the reply in `t`'s registers. The loan of its Budget is the caller's to end.
#[inline(always)]
fn reply(t: Obj<Thread>, c: Obj<Thread>) {
    let (from, to) = (t.get(), c.get());
    to.callee.set(None);
    to.state.set(State::Ready);
    to.deadline.set(NEVER);
    from.depth.set(0);
    match to.resume.get() {
        Resume::Syscall => {
            to.set(reg::RAX, Status::Ok as u64);
            hand_over(from, to);
        }
        Resume::Guest => route::complete::<svm::BackEnd>(c, from.get(reg::R8)),
        Resume::GuestVmx => vmx::exit::complete(c, from.get(reg::R8)),
        Resume::Interrupt => {
            // The supervisor's answer to a fault: label 0 lets the thread go on.
            if Tag(from.get(reg::RSI)).label() == 0 {
                to.faulted.set(false);
            } else {
                to.state.set(State::Stopped);
            }
        }
    }
}

/// The receiving half of `reply_recv`. `running`: `t` is what runs now; otherwise it is only made ready when something is there.
#[inline(never)]
fn receive(cpu: &Cpu, t: Obj<Thread>, ep: Option<Obj<Endpoint>>, running: bool) -> Obj<Thread> {
    let th = t.get();
    if t.suspended.get() {
        th.finish(Status::Timeout);
        t.state.set(State::Stopped);
        return sched::pick(cpu);
    }
    let bits = th.bound.get().map_or(0, |n| n.take());
    let dying = ep.is_some_and(|ep| ep.get().alive().is_err());
    if bits != 0 || dying {
        th.set(reg::RDI, bits);
        th.finish(if bits != 0 {
            Status::Signal
        } else {
            Status::Dead
        });
        if running && t.budget.get() == cpu.budget.get() {
            return sched::current_or_better(cpu, t);
        }
        sched::make_ready(cpu, t);
        return if running { sched::pick(cpu) } else { t };
    }
    let caller = ep.and_then(|ep| ep.get().queue(cpu).callers.pop_front());
    // Who goes on with that one's Budget already keeps it. Any other that it may go on with is not its to keep.
    if caller.is_none_or(|c| c.callee.get() != Some(t)) && t.budget.get() != t.own_budget.get() {
        t.state.set(State::Receiving);
        sched::change_budget(cpu, t, t.own_budget.get());
    }
    if let Some(c) = caller {
        if c.callee.get() != Some(t) {
            end_help(cpu, c);
        }
        serve(c, t, lent(c, t));
        sched::make_ready(cpu, t);
        return if running { sched::pick(cpu) } else { t };
    }
    t.state.set(State::Receiving);
    t.endpoint.set(ep);
    if let Some(ep) = ep {
        ep.get().queue(cpu).receivers.push_front(t);
    }
    sched::set_deadline(cpu, t, th.get(reg::R13));
    if running { sched::pick(cpu) } else { t }
}

/// System call `signal`.
#[inline(always)]
pub fn signal_call(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    match lookup::<Notification>(t.get(), t.get().get(reg::RDI), rights::SEND) {
        Ok((cap, n)) => {
            t.finish(Status::Ok);
            if let Some(w) = n.waiter.get()
                && n.home.get() == cpu.number
                && let Some(b) = sched::precedence(cpu, w)
            {
                n.add(cap.badge.max(1));
                n.waiter.set(None);
                w.waits_for.set(None);
                taken(n, w);
                return sched::preempt(cpu, b, w);
            }
            signal(cpu, n, cap.badge.max(1));
            sched::current_or_better(cpu, t)
        }
        Err(e) => done(t, e),
    }
}

/// Sets bits and wakes who waits for them.
#[inline(always)]
pub fn signal(cpu: &Cpu, n: Obj<Notification>, bits: u64) {
    n.add(bits);
    if n.home.get() == cpu.number {
        deliver(cpu, n);
    } else {
        post(n);
    }
}

/// Signals the Notification that `cap` names, if there is one.
pub fn notify(cpu: &Cpu, cap: &Cap) {
    if let Ok(n) = cap.typed::<Notification>(rights::SEND) {
        signal(cpu, n, cap.badge.max(1));
    }
}

/// Tells the processor where `n` is waited for. If it is on the way already, its bits are taken with it.
#[cold]
fn post(n: Obj<Notification>) {
    let home = &Cpu::all()[n.home.get() as usize % MAX_CPUS];
    // SAFETY: a live object of a Pool; its end takes it out (`Notification::destroy`).
    if unsafe { home.mail.push(n.non_null()) } {
        crate::arch::call(home);
    }
}

/// Delivers what other processors have signalled.
#[inline(never)]
pub fn collect(cpu: &Cpu) {
    cpu.mail.take(|n| {
        // SAFETY: it was live when it was posted, and is taken out before it ends.
        let n = unsafe { Obj::from_ptr(n) };
        if n.home.get() != cpu.number {
            // Its home has moved since.
            post(n);
        } else if n.pending() {
            deliver(cpu, n);
        }
    });
}

/// `n`, which is at home here, has bits: wakes who waits for them.
#[inline(always)]
fn deliver(cpu: &Cpu, n: Obj<Notification>) {
    if let Some(t) = n.waiter.take() {
        t.waits_for.set(None);
        return wake(cpu, n, t);
    }
    // A bound thread in its guest looks at the bits before each entry.
    if let Some(t) = n.bound.get()
        && t.state.get() == State::Receiving
    {
        if let Some(ep) = t.endpoint.take() {
            ep.get().queue(cpu).receivers.remove(t);
        }
        wake(cpu, n, t);
    }
}

/// `t`, which has left what it waited in, gets all the bits and goes on.
#[inline(always)]
fn wake(cpu: &Cpu, n: Obj<Notification>, t: Obj<Thread>) {
    taken(n, t);
    sched::make_ready(cpu, t);
}

/// `t` gets all the bits.
#[inline(always)]
fn taken(n: Obj<Notification>, t: Obj<Thread>) {
    let bits = n.take_now();
    t.deadline.set(NEVER);
    t.get().set(reg::RDI, bits);
    t.get().finish(Status::Signal);
}

/// System call `wait`.
pub fn wait(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    let th = t.get();
    let n = match lookup::<Notification>(th, th.get(reg::RDI), rights::RECV) {
        Ok((_, n)) => n,
        Err(e) => return done(t, e),
    };
    // Bits are taken at home only: whoever is woken there finds those that woke it.
    if n.home.get() != cpu.number {
        return bring_home(cpu, t, n);
    }
    let bits = n.take();
    if bits != 0 {
        th.set(reg::RDI, bits);
        return done(t, Status::Signal);
    }
    if n.waiter.get().is_some() {
        return done(t, Status::Busy);
    }
    // A poll.
    if th.get(reg::R13) == 0 {
        return done(t, Status::Timeout);
    }
    block(cpu, t, n)
}

/// `t` waits for `n`. By itself, so that a call that does not wait needs no frame.
#[inline(never)]
fn block(cpu: &Cpu, t: Obj<Thread>, n: Obj<Notification>) -> Obj<Thread> {
    n.waiter.set(Some(t));
    t.waits_for.set(Some(n));
    t.state.set(State::Waiting);
    sched::set_deadline(cpu, t, t.get().get(reg::R13));
    sched::pick(cpu)
}

/// `t` wants to wait for `n`, whose home is another processor: its home becomes this one, unless somebody waits for it there. Then `t`
/// makes its call again.
#[cold]
fn bring_home(cpu: &Cpu, t: Obj<Thread>, n: Obj<Notification>) -> Obj<Thread> {
    sync::prepare(cpu, t, Syscall::Wait, n, |n| {
        if n.waiter.get().is_some() || n.bound.get().is_some_and(|b| b != t) {
            return Err(Status::Busy);
        }
        n.move_to(cpu.number);
        Ok(())
    })
}

/// Takes `t` out of whatever it waits in. Its state is the caller's to set.
pub fn leave(cpu: &Cpu, t: Obj<Thread>) {
    match t.state.get() {
        State::Queued => {
            if let Some(ep) = t.endpoint.take() {
                ep.get().queue(cpu).callers.remove(t);
            }
            end_help(cpu, t);
        }
        State::Receiving => {
            if let Some(ep) = t.endpoint.take() {
                ep.get().queue(cpu).receivers.remove(t);
            }
        }
        State::Waiting => {
            if let Some(n) = t.waits_for.take() {
                n.waiter.set(None);
            }
        }
        State::Calling => {
            if let Some(s) = t.callee.take() {
                s.caller.set(None);
                s.depth.set(0);
                sched::end_loan(cpu, s, t.budget.get());
            }
        }
        State::Ready | State::Stopped => {}
    }
}

/// `q` leaves its queue: who has gone on with its Budget meanwhile does so no more.
fn end_help(cpu: &Cpu, q: Obj<Thread>) {
    if let Some(s) = q.callee.take() {
        sched::end_loan(cpu, s, q.budget.get());
    }
}

/// What `t` was waiting for, which it has left, won't come: it goes on with `status`.
#[inline]
pub fn give_up(cpu: &Cpu, t: Obj<Thread>, status: Status) {
    t.deadline.set(NEVER);
    match t.resume.get() {
        Resume::Syscall => t.finish(status),
        Resume::Guest => route::lost::<svm::BackEnd>(t),
        Resume::GuestVmx => route::lost::<vmx::BackEnd>(t),
        Resume::Interrupt => {
            // A fault that nobody will answer.
            t.state.set(State::Stopped);
            return;
        }
    }
    sched::make_ready(cpu, t);
}

/// The server `s` is going away: the call that it serves gets no answer.
pub fn fail_caller(cpu: &Cpu, s: Obj<Thread>) {
    if let Some(c) = s.caller.take() {
        s.depth.set(0);
        c.callee.set(None);
        sched::end_loan(cpu, s, c.budget.get());
        c.taken_lost();
        give_up(cpu, c, Status::Dead);
    }
}

/// `t`'s deadline has come.
pub fn timeout(cpu: &Cpu, t: Obj<Thread>) {
    match t.state.get() {
        State::Stopped => {}
        State::Ready => t.expired.set(t.resume.get() >= Resume::Guest),
        state => {
            if state == State::Calling {
                t.taken_lost();
            }
            leave(cpu, t);
            give_up(cpu, t, Status::Timeout);
        }
    }
}

/// `t`, which is running, has faulted: the kernel calls its supervisor for it.
pub fn fault(cpu: &Cpu, t: Obj<Thread>, vector: u64, error: u64, address: u64) -> Obj<Thread> {
    t.faulted.set(true);
    t.resume.set(Resume::Interrupt);
    let words = [vector, error, address, t.regs.rip.get()];
    t.call_with(Tag::FAULT, words);
    match t.supervisor.get().typed::<Endpoint>(rights::SEND) {
        Ok(ep) => send(cpu, t, ep, t.supervisor_badge.get(), NEVER),
        Err(_) => {
            crate::arch::orphan_fault(t, vector, error, address);
            t.state.set(State::Stopped);
            sched::pick(cpu)
        }
    }
}
