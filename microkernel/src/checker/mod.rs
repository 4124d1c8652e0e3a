//! The invariant checker: walks all that the kernel has and says what does not fit together.
//!
//! Job: find an unsound state soon after it came about, instead of at the crash that it leads to. Place: a debug feature (`checker`) of
//! the image, asked on demand (`Log`, operation [`CHECK`]) and after every N-th system call ([`PERIOD`]), and of the host's tests,
//! where [`check`] is called after each step. Never in the shipped build. Trust: it believes nothing that it reads: a pointer is
//! followed only once it is known to lead to a live slot of the right kind.
//!
//! What it looks at: each Pool's map, free lists and page accounts; each object's header and its links, which must be known at both
//! ends; queues, timers and who runs; each page table, which must map what its mappings say and nothing of a Pool's but the pages that
//! are shared on purpose. The parts that need private fields are child modules of what they look into (files beside this one).

pub mod refuse;
#[cfg(not(target_os = "none"))]
pub mod tlb;

use crate::arch::{Cpu, MAX_CPUS};
use crate::mail::Mail;
use crate::mem::{Global, Obj};
use crate::object::pool::{MAX_POOLS, POOLS, check as pool};
use crate::object::thread::State;
use crate::object::{
    Budget, Endpoint, GuestSpace, Header, Mapping, Memory, Notification, Object, Space, Thread,
    Vcpu, irq::Irq,
};
use crate::sched;
use crate::sync::Operation;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use ipc_schema::abi::{Kind, cpu_state};

/// Label of the `Log` operation that runs the checker; needs WRITE. w0: 0 = check now, N > 0 = also after every N-th system call from
/// now on. Answers w0 = objects looked at, w1 = system calls so far, w2 = checks so far.
pub const CHECK: u64 = 0x6368_6563_6b21;

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What should be so.
    pub what: &'static str,
    /// Address of the object, or number of the Pool.
    pub at: u64,
    /// What was found there, if a number says more.
    pub value: u64,
}

/// Result of a check.
pub type Checked<T = ()> = Result<T, Finding>;

/// An error unless `ok`.
pub fn ensure(ok: bool, what: &'static str, at: u64, value: u64) -> Checked {
    if ok {
        Ok(())
    } else {
        Err(Finding { what, at, value })
    }
}

/// What is counted from both ends: the numbers must agree.
#[derive(Default)]
pub struct Tally {
    /// Objects of all kinds.
    pub objects: Cell<u64>,
    /// Threads, and members of Spaces' lists of them.
    pub threads: [Cell<u64>; 2],
    /// Vcpus, and members of GuestSpaces' lists.
    pub vcpus: [Cell<u64>; 2],
    /// Mappings, members of Memories' lists, members of targets' lists.
    pub mappings: [Cell<u64>; 3],
    /// Memories with a parent, and members of parents' lists.
    pub parts: [Cell<u64>; 2],
    /// Threads that say they are queued at an Endpoint, and those that are.
    pub callers: [Cell<u64>; 2],
    /// Threads that say they wait for a call, and those that do.
    pub receivers: [Cell<u64>; 2],
    /// Budgets that say they are queued, and those that are.
    pub queued: [Cell<u64>; 2],
    /// Timers that say they are armed, and those that are.
    pub timers: [Cell<u64>; 2],
    /// Memories that say they are Pools, and Pools that say they were made of one.
    pub backings: [Cell<u64>; 2],
}

/// Adds to a count.
pub fn count(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get() + n);
}

/// Pages that objects say they have of each Pool.
static PAGES: Global<[Cell<u64>; MAX_POOLS]> = Global([const { Cell::new(0) }; MAX_POOLS]);

/// `n` pages of the Pool with this number are accounted for.
pub fn account(pool: u16, n: u64) {
    if let Some(p) = PAGES.get(usize::from(pool)) {
        count(p, n);
    }
}

/// Whether `o` is a live object of its kind: only then may it be read.
pub fn live<T: Object>(o: Obj<T>) -> bool {
    pool::live_at(o.addr(), T::KIND as u32)
}

/// An error unless `o`, if there, is live.
pub fn alive<T: Object>(o: Option<Obj<T>>, what: &'static str, at: u64) -> Checked {
    match o {
        Some(o) => ensure(live(o), what, at, o.addr()),
        None => Ok(()),
    }
}

/// Processors that run threads.
fn online() -> impl Iterator<Item = &'static Cpu> {
    Cpu::all()
        .iter()
        .filter(|c| c.state.load(Relaxed) == cpu_state::ONLINE)
}

/// Checks everything. This processor is inside the kernel, between two system calls or in one that has not yet changed anything; the
/// others are stopped.
///
/// # Errors
/// The first finding.
pub fn check() -> Checked<Tally> {
    let tally = Tally::default();
    PAGES.iter().for_each(|p| p.set(0));
    let mut quotas = 0;
    for (number, p) in POOLS.iter().enumerate() {
        if p.generation.get() & 1 == 1 {
            pool::check(p, number as u64, &tally)?;
            quotas += p.quota.get() + 1;
        }
    }
    ensure(
        quotas <= MAX_POOLS as u64,
        "there is a number for every Pool that may be made",
        0,
        quotas,
    )?;
    // Headers are all good now: objects may be looked at.
    for p in POOLS.iter().filter(|p| p.generation.get() & 1 == 1) {
        pool::each_object(p, &mut |h| object(h, &tally))?;
    }
    for cpu in online() {
        processor(cpu, &tally)?;
    }
    for (number, p) in POOLS.iter().enumerate() {
        // The first is the kernel's own; what boot took of it is nobody's.
        if number != 0 && p.generation.get() & 1 == 1 {
            let (said, is) = (PAGES[number].get(), pool::raw_pages(p));
            ensure(
                said == is,
                "a page of a Pool is somebody's, exactly once",
                number as u64,
                is.wrapping_sub(said),
            )?;
        }
    }
    let pairs = [
        (&tally.threads, "threads are in their Space's list"),
        (&tally.vcpus, "vCPUs are in their GuestSpace's list"),
        (&tally.parts, "parts are in their parent's list"),
        (&tally.callers, "callers are in their Endpoint's queue"),
        (&tally.receivers, "receivers are in their Endpoint's queue"),
        (&tally.queued, "queued Budgets are in a queue"),
        (&tally.timers, "armed timers are in the list"),
        (
            &tally.backings,
            "a Memory that is a Pool has that Pool, and the Pool has it",
        ),
    ];
    for ([a, b], what) in pairs {
        ensure(a.get() == b.get(), what, a.get(), b.get())?;
    }
    let [a, b, c] = &tally.mappings;
    ensure(
        a.get() == b.get() && b.get() == c.get(),
        "mappings are in both lists",
        b.get(),
        c.get(),
    )?;
    Ok(tally)
}

/// One object.
fn object(h: Obj<Header>, tally: &Tally) -> Checked {
    count(&tally.objects, 1);
    let kind = (h.word.get() >> 32) as u32;
    macro_rules! looks {
        ($($t:ty: $f:path),*) => {
            $(if kind == <$t>::KIND as u32 {
                // SAFETY: a live slot whose header says that it is one.
                return $f(unsafe { Obj::<$t>::from_ptr(core::ptr::NonNull::new_unchecked(h.ptr().cast())) }, tally);
            })*
        };
    }
    looks!(Thread: crate::object::thread::check::check, Budget: budget, Endpoint: crate::object::endpoint::check::check,
        Notification: notification, Memory: crate::object::memory::check::check, Mapping: crate::object::mapping::check::check,
        Space: crate::object::space::check::check, GuestSpace: crate::object::guest_space::check::check,
        Vcpu: crate::object::vcpu::check::check, Irq: irq);
    let others = [Kind::Pool, Kind::Ports, Kind::Cpu, Kind::Log];
    ensure(
        others.iter().any(|&k| k as u32 == kind),
        "an object's kind is known",
        h.addr(),
        u64::from(kind),
    )
}

fn notification(n: Obj<Notification>, _: &Tally) -> Checked {
    let at = n.addr();
    alive(n.bound.get(), "a bound thread lives", at)?;
    alive(n.waiter.get(), "a waiter lives", at)?;
    if let Some(t) = n.bound.get() {
        ensure(
            t.bound.get() == Some(n),
            "a bound thread knows its Notification",
            at,
            t.addr(),
        )?;
    }
    if let Some(t) = n.waiter.get() {
        let ok = t.state.get() == State::Waiting && t.waits_for.get() == Some(n);
        ensure(ok, "a waiter waits", at, t.addr())?;
        ensure(
            n.home.get() == t.cpu.get(),
            "a Notification is at home where it is waited for",
            at,
            t.addr(),
        )?;
    }
    // A signal from elsewhere is on its way as long as the Notification is in a mailbox.
    let bound = n.bound.get().filter(|t| t.state.get() == State::Receiving);
    ensure(
        !n.pending() || n.letter().linked() || n.waiter.get().or(bound).is_none(),
        "who waits for bits that are there will be told",
        at,
        n.bits.load(Relaxed),
    )
}

fn budget(b: Obj<Budget>, tally: &Tally) -> Checked {
    let (at, cpu) = (b.addr(), b.home());
    ensure(
        b.priority.get() < 32,
        "a priority is below 32",
        at,
        u64::from(b.priority.get()),
    )?;
    alive(b.thread.get(), "a Budget's thread lives", at)?;
    alive(b.owner.get(), "a Budget's owner lives", at)?;
    // Whoever ends finds the Budgets that know it by these two.
    if let Some(t) = b.thread.get() {
        ensure(
            t.budget.get() == Some(b) || t.own_budget.get() == Some(b),
            "a Budget's thread runs on it, or owns it",
            at,
            t.addr(),
        )?;
    }
    if let Some(o) = b.owner.get() {
        ensure(
            o.own_budget.get() == Some(b),
            "an owner knows its Budget",
            at,
            o.addr(),
        )?;
        ensure(
            o.cpu.get() == b.cpu.get(),
            "an owner is on its Budget's processor",
            at,
            o.addr(),
        )?;
    }
    if b.queued.get() {
        count(&tally.queued[0], 1);
        ensure(!b.exhausted.get(), "what is queued is not exhausted", at, 0)?;
        ensure(
            cpu.budget.get() != Some(b),
            "what runs is in no queue",
            at,
            0,
        )?;
    }
    let armed = crate::sched::timer::check::of_budget(&b.timer, b)?;
    count(&tally.timers[0], u64::from(armed));
    // One of nothing (never configured) is exhausted for good.
    ensure(
        !b.exhausted.get() || b.period.get() == 0 || armed,
        "an exhausted Budget waits for its next period",
        at,
        b.period.get(),
    )
}

fn irq(i: Obj<Irq>, _: &Tally) -> Checked {
    let cpu = &Cpu::all()[i.cpu as usize % MAX_CPUS];
    let n = usize::from(i.vector).wrapping_sub(usize::from(crate::arch::FIRST_IRQ));
    let there = cpu.irqs.get(n).is_some_and(|s| s.get() == Some(i));
    ensure(
        there,
        "an Irq has its vector",
        i.addr(),
        u64::from(i.vector),
    )
}

/// The processor, its queues and who runs.
fn processor(cpu: &Cpu, tally: &Tally) -> Checked {
    alive(cpu.current.get(), "the current thread lives", 0)?;
    alive(cpu.budget.get(), "the running Budget lives", 0)?;
    alive(cpu.fpu_owner.get(), "the owner of the FPU lives", 0)?;
    if let Some(v) = cpu.fpu_owner.get() {
        ensure(
            v.cpu.get() == cpu.number,
            "the owner of the FPU is where its registers are",
            v.addr(),
            cpu.number.into(),
        )?;
    }
    for (n, s) in cpu.irqs.iter().enumerate() {
        alive(s.get(), "a vector's Irq lives", n as u64)?;
    }
    ensure(
        cpu.programmed.get() <= cpu.timers.next(),
        "the timer comes no later than the next deadline",
        cpu.number.into(),
        cpu.timers.next(),
    )?;
    count(&tally.queued[1], crate::sched::check::ready(cpu)?);
    count(&tally.timers[1], crate::sched::timer::check::list(cpu)?);
    Ok(())
}

/// Who goes on after a system call: it must be what the processor thinks runs.
fn next(cpu: &Cpu, t: Obj<Thread>) -> Checked {
    #[cfg(target_os = "none")]
    {
        use x86_64::registers::control::{Cr0, Cr0Flags};
        let cr0 = Cr0::read();
        let guarded = cr0.contains(Cr0Flags::TASK_SWITCHED | Cr0Flags::WRITE_PROTECT);
        ensure(guarded, "no server gets at the FPU", 0, cr0.bits())?;
    }
    ensure(live(t), "who goes on lives", t.addr(), 0)?;
    let at = t.addr();
    ensure(
        cpu.current.get() == Some(t),
        "who goes on is the current thread",
        at,
        0,
    )?;
    ensure(
        t.state.get() == State::Ready,
        "who goes on is ready",
        at,
        t.state.get() as u64,
    )?;
    ensure(!t.suspended.get(), "who goes on is not suspended", at, 0)?;
    let b = cpu.budget.get();
    ensure(
        b.is_some() && b == t.budget.get(),
        "who goes on is on the running Budget",
        at,
        0,
    )?;
    ensure(
        b.is_some_and(|b| b.thread.get() == Some(t)),
        "the running Budget is at its tip",
        at,
        0,
    )?;
    ensure(
        cpu.root.get() == t.root.get(),
        "the page table of who goes on is loaded",
        at,
        cpu.root.get(),
    )
}

static CALLS: AtomicU64 = AtomicU64::new(0);
static CHECKS: AtomicU64 = AtomicU64::new(0);
/// Checks come after each system call whose number is a multiple of this; 0: none by themselves.
static PERIOD: AtomicU64 = AtomicU64::new(0);

/// Calls so far, checks so far.
pub fn figures() -> (u64, u64) {
    (CALLS.load(Relaxed), CHECKS.load(Relaxed))
}

/// Sets how often checks come by themselves.
pub fn set_period(calls: u64) {
    PERIOD.store(calls, Relaxed);
}

/// Checks now; stops the machine at a finding. Answers the objects looked at.
pub fn now(op: &Operation) -> u64 {
    op.stop();
    CHECKS.fetch_add(1, Relaxed);
    match check() {
        Ok(tally) => tally.objects.get(),
        Err(f) => unsound(&f),
    }
}

/// After each system call, of which `t` was to go on: checks it, and now and then everything. Answers who goes on.
pub fn after_call(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    let calls = CALLS.fetch_add(1, Relaxed) + 1;
    if let Err(f) = next(cpu, t) {
        unsound(&f);
    }
    let period = PERIOD.load(Relaxed);
    if period == 0 || !calls.is_multiple_of(period) {
        return t;
    }
    // While this waited, another processor's operation may have moved, stopped or destroyed it.
    let op = Operation::alone(cpu);
    if cpu.current.get() == Some(t) && t.state.get() == State::Ready && !cpu.reschedule.get() {
        now(&op);
        return t;
    }
    drop(op);
    sched::pick(cpu)
}

#[cfg(target_os = "none")]
fn unsound(f: &Finding) -> ! {
    let (calls, checks) = figures();
    past::tell();
    crate::arch::console::stop(
        &[
            "UNSOUND: it is not so that ",
            f.what,
            ": #, # (after # system calls, # checks). The system cannot go on; this is a bug in Vireo.",
        ],
        &[f.at, f.value, calls, checks],
    );
}
#[cfg(not(target_os = "none"))]
fn unsound(f: &Finding) -> ! {
    panic!("UNSOUND: {f:x?}");
}

#[cfg(feature = "checker")]
pub mod past;
#[cfg(test)]
mod tests;
