//! Enforcement of what the scheduler server decided: priority queues, budgets, deadlines. No policy.
//!
//! What is queued are Budgets; each knows the thread that runs on it (the tip of a chain of calls). The Budget that is running is in
//! no queue.

pub mod migrate;
pub mod timer;

use crate::arch::{self, Cpu};
use crate::ipc;
use crate::list::List;
use crate::mem::Obj;
use crate::object::budget::PRIORITIES;
use crate::object::thread::{Resume, State};
use crate::object::{Budget, Endpoint, Thread, lookup, step::Step};
use core::cell::Cell;
use ipc_schema::abi::{NEVER, rights};
use timer::Owner;

/// A processor's Budgets that could run, by priority.
pub struct Ready {
    queues: [List<Budget, 0>; PRIORITIES],
    bitmap: Cell<u32>,
}

impl Ready {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            queues: [const { List::new() }; PRIORITIES],
            bitmap: Cell::new(0),
        }
    }

    fn add(&self, b: Obj<Budget>, front: bool) {
        if b.queued.replace(true) {
            return;
        }
        let p = usize::from(b.priority.get()) % PRIORITIES;
        if front {
            self.queues[p].push_front(b)
        } else {
            self.queues[p].push_back(b)
        }
        self.bitmap.set(self.bitmap.get() | 1 << p);
    }

    /// Takes `b` out, if it is in.
    pub fn remove(&self, b: Obj<Budget>) {
        if b.queued.replace(false) {
            let p = usize::from(b.priority.get()) % PRIORITIES;
            self.queues[p].remove(b);
            if self.queues[p].is_empty() {
                self.bitmap.set(self.bitmap.get() & !(1 << p));
            }
        }
    }

    #[inline(always)]
    fn pop(&self) -> Option<Obj<Budget>> {
        let p = self.bitmap.get().checked_ilog2()? as usize;
        let b = self.queues[p].pop_front()?;
        b.queued.set(false);
        if self.queues[p].is_empty() {
            self.bitmap.set(self.bitmap.get() & !(1 << p));
        }
        Some(b)
    }
}

/// Whether `b` grants time now.
#[inline(always)]
pub fn can_run(b: Obj<Budget>) -> bool {
    !b.exhausted.get()
}

/// The thread that would run on `b` now. A thread that has gone over to another Budget is not run on this one.
#[inline(always)]
fn tip(b: Obj<Budget>) -> Option<Obj<Thread>> {
    b.thread
        .get()
        .filter(|t| t.state.get() == State::Ready && t.budget.get() == Some(b))
}

/// `t` can go on: its Budget is queued, and the processor told if it has precedence over what runs.
pub fn make_ready(cpu: &Cpu, t: Obj<Thread>) {
    if t.suspended.get() {
        t.state.set(State::Stopped);
        return;
    }
    t.state.set(State::Ready);
    let Some(b) = t.budget.get() else {
        return stranded(cpu, t);
    };
    b.thread.set(Some(t));
    if cpu.budget.get() != Some(b) {
        if can_run(b) {
            enqueue(cpu, b);
        } else if t.own_budget.get() != Some(b) {
            stranded(cpu, t);
        }
    }
}

/// `t` could go on, but has no Budget, or was lent one that has run out. No server waits for its client's next period: it goes on with
/// the next queued caller's, who waits for it, else with its own, else whoever cares for it is told.
#[cold]
fn stranded(cpu: &Cpu, t: Obj<Thread>) {
    let next = lookup::<Endpoint>(t.get(), t.served.get(), rights::RECV)
        .ok()
        .and_then(|(_, ep)| ep.get().queue(cpu).callers.first())
        .filter(|q| q.callee.get().is_none() && q.budget.get().is_some_and(can_run));
    let other = next.map_or(t.own_budget.get(), |q| q.budget.get());
    if other.is_none() {
        return ipc::notify(cpu, &t.event.get());
    }
    change_budget(cpu, t, other);
    if let Some(q) = next {
        q.callee.set(Some(t));
    }
}

/// `b` may have become able to run.
#[inline]
pub fn budget_ready(cpu: &Cpu, b: Obj<Budget>) {
    if cpu.budget.get() == Some(b) || !can_run(b) || tip(b).is_none() {
        return;
    }
    enqueue(cpu, b);
}

/// Queues `b`, whose thread can go on.
#[inline(always)]
fn enqueue(cpu: &Cpu, b: Obj<Budget>) {
    cpu.ready.add(b, false);
    // What runs alone at its priority has no end of its time slice: it gets one now.
    let alone =
        |c: Obj<Budget>| c.priority.get() == b.priority.get() && cpu.budget_end.get() == NEVER;
    if cpu
        .budget
        .get()
        .is_none_or(|c| c.priority.get() < b.priority.get() || alone(c))
    {
        cpu.reschedule.set(true);
    }
}

/// `t` goes over to Budget `b`.
pub fn change_budget(cpu: &Cpu, t: Obj<Thread>, b: Option<Obj<Budget>>) {
    // The Budget of a caller in the queue: that one waits alone from now on.
    let mut o = t.budget.get().and_then(|b| b.owner.get());
    while let Some(q) = o {
        o = q.callee.get();
        if q.state.get() == State::Queued && o == Some(t) {
            q.callee.set(None);
        }
    }
    if let Some(old) = t.budget.replace(b)
        && old.thread.get() == Some(t)
    {
        detach(cpu, old);
    }
    if t.state.get() == State::Ready {
        make_ready(cpu, t);
    }
}

/// `b` has no thread any more.
pub fn detach(cpu: &Cpu, b: Obj<Budget>) {
    b.thread.set(None);
    cpu.ready.remove(b);
    if cpu.budget.get() == Some(b) {
        charge(cpu);
        cpu.budget.set(None);
        cpu.reschedule.set(true);
    }
}

/// `b`, nobody's own, is being destroyed: whoever runs on it falls back to a Budget of its own.
pub fn disown(cpu: &Cpu, b: Obj<Budget>) {
    let mut t = b.thread.get();
    detach(cpu, b);
    // From the tip back along the chain of calls: each server there had it lent.
    while let Some(o) = t {
        if o.budget.get() == Some(b) {
            change_budget(cpu, o, o.own_budget.get());
        }
        t = o.caller.get();
    }
}

/// The chain that starts at server `s` loses the Budget it was lent (its caller left): each member goes on with its own, else with that
/// of the nearest before it.
pub fn end_loan(cpu: &Cpu, s: Obj<Thread>, lent: Option<Obj<Budget>>) {
    if let Some(b) = lent {
        detach(cpu, b);
    }
    let (mut t, mut near) = (Some(s), None);
    // Who has gone on with its own since, and all behind it, are not concerned.
    while let Some(o) = t.filter(|o| o.budget.get() == lent) {
        let own = o.own_budget.get().filter(|&own| Some(own) != lent);
        let b = own.or(near);
        o.budget.set(b);
        // Who only helps the next gives it nothing else for that: it would not know of it.
        near = b.filter(|_| o.state.get() != State::Queued);
        // The tip is who runs: everything behind it waits for it.
        t = o.payee();
        if t.is_none() {
            if let Some(b) = b {
                b.thread.set(Some(o));
            }
            if o.state.get() == State::Ready {
                make_ready(cpu, o);
            }
        }
    }
}

/// Books the time since the last booking on the Budget that runs.
pub fn charge(cpu: &Cpu) {
    let now = arch::now();
    let used = now.wrapping_sub(cpu.booked.replace(now));
    match cpu.budget.get() {
        Some(b) => {
            b.used.set(b.used.get() + used);
            b.left.set(b.left.get().saturating_sub_unsigned(used));
        }
        None => cpu.own_cycles.set(cpu.own_cycles.get() + used),
    }
}

/// An interrupt has come to the kernel: if it was idle, it is no more.
pub fn woken(cpu: &Cpu) {
    if cpu.budget.get().is_none() {
        let now = arch::now();
        let idle = now.wrapping_sub(cpu.booked.replace(now));
        cpu.idle_cycles.set(cpu.idle_cycles.get() + idle);
    }
}

/// The running thread has blocked, or must make way: picks what runs next. Idles here if there is nothing.
#[inline(never)]
pub fn pick(cpu: &Cpu) -> Obj<Thread> {
    cpu.reschedule.set(false);
    charge(cpu);
    if let Some(b) = cpu.budget.take() {
        after_running(cpu, b, true);
    }
    loop {
        if let Some(b) = cpu.ready.pop() {
            if let Some(t) = tip(b) {
                return begin(cpu, b, t);
            }
        } else {
            idle(cpu);
        }
    }
}

/// `t` runs on `b` from now on, which is in no queue.
#[inline(always)]
fn begin(cpu: &Cpu, b: Obj<Budget>, t: Obj<Thread>) -> Obj<Thread> {
    cpu.budget.set(Some(b));
    // Time without limit ends only for others of the same priority: those below wait, those above don't ask.
    let rivals = cpu.ready.bitmap.get() >> (b.priority.get() % PRIORITIES as u8);
    let end = if b.unlimited() && rivals == 0 {
        NEVER
    } else {
        cpu.booked.get().saturating_add_signed(b.left.get())
    };
    cpu.budget_end.set(end);
    arch::timer_at_most(cpu, end.min(cpu.timers.next()));
    switch_to(cpu, t);
    t
}

/// Waits for an interrupt.
#[inline(never)]
fn idle(cpu: &Cpu) {
    cpu.current.set(None);
    cpu.budget_end.set(NEVER);
    arch::timer_at_most(cpu, cpu.timers.next());
    charge(cpu);
    arch::idle(cpu);
    charge(cpu);
    cpu.reschedule.set(false);
}

/// The Budget by which `t`, which somebody woken by the running thread is, takes the processor at once: nobody else is to be looked at,
/// since all that are queued have at most the running one's priority.
#[inline(always)]
pub fn precedence(cpu: &Cpu, t: Obj<Thread>) -> Option<Obj<Budget>> {
    let (b, running) = (t.budget.get()?, cpu.budget.get()?);
    let now = running.priority.get() < b.priority.get()
        && can_run(b)
        && !cpu.reschedule.get()
        && !t.suspended.get();
    now.then_some(b)
}

/// `t`, which waits no more, takes the processor by its Budget `b`, which has [`precedence`].
#[inline(always)]
pub fn preempt(cpu: &Cpu, b: Obj<Budget>, t: Obj<Thread>) -> Obj<Thread> {
    t.state.set(State::Ready);
    b.thread.set(Some(t));
    charge(cpu);
    if let Some(old) = cpu.budget.take() {
        if old.left.get() > 0 {
            // It was running: its thread can.
            cpu.ready.add(old, true);
        } else {
            after_running(cpu, old, true);
        }
    }
    begin(cpu, b, t)
}

/// `b` has left the processor: queued again (`front`: before the others, if it has time left), or exhausted.
fn after_running(cpu: &Cpu, b: Obj<Budget>, mut front: bool) {
    let now = cpu.booked.get();
    if b.left.get() <= 0 && (b.unlimited() || b.ends() <= now) {
        // Never exhausted: the end of a time slice, the others of its priority are next. Or a new period has begun already.
        b.refill(now);
        front = false;
    }
    if b.left.get() > 0 {
        if tip(b).is_some() {
            cpu.ready.add(b, front);
        }
        return;
    }
    b.exhausted.set(true);
    cpu.timers.arm(&b.timer, b.ends(), Owner::Budget(b));
    if let Some(t) = tip(b) {
        make_ready(cpu, t);
    }
    ipc::notify(cpu, &b.event.get());
}

/// Makes `t` the thread that runs.
#[inline(always)]
pub fn switch_to(cpu: &Cpu, t: Obj<Thread>) {
    cpu.current.set(Some(t));
    if cpu.root.get() != t.root.get() {
        cpu.root.set(t.root.get());
        arch::load_root(t.root.get());
    }
}

/// After an operation that may have made others ready: the current thread, or who has precedence.
#[inline(always)]
pub fn current_or_better(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    if cpu.reschedule.get() { pick(cpu) } else { t }
}

/// The hardware timer is set anew: it has come, or another processor has changed what it depends on. The end of a Budget that has just
/// been lost makes it come once more.
pub fn retime(cpu: &Cpu) {
    cpu.until.set(0);
    cpu.programmed.set(NEVER);
    arch::timer_at_most(cpu, cpu.budget_end.get().min(cpu.timers.next()));
}

/// The timer interrupt: brings about what is due, the soonest first. If that is much it comes again at once for the rest: behind all
/// other interrupts, for its vector is the lowest.
pub fn tick(cpu: &Cpu) {
    let now = arch::now();
    let step = Step::default();
    while step.spend(400).is_ok()
        && let Some(owner) = cpu.timers.due(now)
    {
        match owner {
            Owner::Budget(b) => {
                b.refill(b.ends());
                b.exhausted.set(b.left.get() <= 0);
                if b.exhausted.get() {
                    cpu.timers.arm(&b.timer, b.ends(), Owner::Budget(b));
                }
                budget_ready(cpu, b);
            }
            Owner::Thread(t) => {
                let d = t.deadline.get();
                if d > now {
                    if d != NEVER {
                        cpu.timers.arm(&t.timer, d, Owner::Thread(t));
                    }
                } else {
                    ipc::timeout(cpu, t);
                }
            }
        }
    }
    // A Budget that ends now is `pick`'s to follow up. A timer set for a time that is past would come again before the interrupted
    // code has closed its window for interrupts, and again, for ever.
    if cpu.budget_end.get() <= now {
        cpu.budget_end.set(NEVER);
        cpu.reschedule.set(true);
    }
    retime(cpu);
}

/// Gives `t` a deadline for what it is going to wait for.
#[inline(always)]
pub fn set_deadline(cpu: &Cpu, t: Obj<Thread>, at: u64) {
    t.deadline.set(at);
    if at != NEVER {
        cpu.timers.arm(&t.get().timer, at, Owner::Thread(t));
        arch::timer_at_most(cpu, at);
    }
}

/// A thread that yields goes behind the others of its priority.
pub fn yield_now(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    t.resume.set(Resume::Syscall);
    charge(cpu);
    if let Some(b) = cpu.budget.take() {
        after_running(cpu, b, false);
    }
    pick(cpu)
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/sched.rs"]
pub(crate) mod check;
