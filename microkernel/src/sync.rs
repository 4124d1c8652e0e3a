//! Between processors: the object lock, and the stop.
//!
//! IPC and VM exits need neither: they touch one processor's data only. *Operations* on kernel objects take the one object lock.
//! Those that change what another processor's fast path reads without a lock (an object's end, an unmapping, another processor's thread or
//! Budget) also stop the other processors: each joins at the kernel's door, where it refers to no object, leaves to the kernel's own
//! page table, and waits. When it goes on it loads its page table again, which is the shootdown: one message to all, one wait.
//! What is freed under a stop is therefore referred to by no processor, neither from its stack nor from its TLB.
//!
//! Why nothing can deadlock: only the holder of the lock stops others; who waits for the lock joins stops while it waits, holds nothing,
//! and has made its thread restartable, since the stop may move, suspend or destroy it; nobody waits for anything else with interrupts
//! off, but for the few instructions of a capability table's or the log's own lock, whose holders never wait inside.

use crate::arch::{self, Cpu};
use crate::atomic::{AtomicBool, AtomicU32, Ordering, spin_loop};
use crate::mem::Obj;
use crate::object::thread::{Resume, State};
use crate::object::{Cap, Object, Thread};
use core::cell::Cell;
use ipc_schema::abi::{Status, Syscall, cpu_state};

static OBJECTS: AtomicBool = AtomicBool::new(false);
/// Number of the last stop that has ended.
static ENDED: AtomicU32 = AtomicU32::new(0);
/// Processors that run threads.
static ONLINE: AtomicU32 = AtomicU32::new(1);

/// The right to change kernel objects: the object lock is held for as long as this lives, and so does a stop.
pub struct Operation<'a> {
    cpu: &'a Cpu,
    stopped: Cell<bool>,
}

/// Whether this is the only processor that runs.
#[inline(always)]
pub fn alone() -> bool {
    ONLINE.load(Ordering::Relaxed) == 1
}

#[inline(always)]
fn try_lock() -> bool {
    !OBJECTS.swap(true, Ordering::Acquire)
}

impl<'a> Operation<'a> {
    /// For system call `call` of `t`, which runs and has changed nothing yet. `None`: while this waited, `t` was stopped, moved or
    /// destroyed, or somebody with precedence became ready: the caller picks; `t`, if it still is, makes the call again.
    #[inline(always)]
    pub fn begin(cpu: &'a Cpu, t: Obj<Thread>, call: Syscall) -> Option<Self> {
        cpu.locks.set(cpu.locks.get() + 1);
        if !try_lock() && !wait(cpu, t, call) {
            return None;
        }
        Some(Self {
            cpu,
            stopped: Cell::new(false),
        })
    }

    /// For the invariant checker, which belongs to no call.
    #[cfg(any(test, feature = "checker"))]
    #[must_use]
    pub fn alone(cpu: &'a Cpu) -> Self {
        while !try_lock() {
            join(cpu);
            spin_loop();
        }
        Self {
            cpu,
            stopped: Cell::new(false),
        }
    }

    /// Stops the other processors until this operation ends.
    #[inline(always)]
    pub fn stop(&self) {
        if !alone() && !self.stopped.replace(true) {
            stop_others(self.cpu);
        }
    }

    /// As [`Operation::stop`], if any of `cpus` (a bit each) is another processor.
    #[inline(always)]
    pub fn stop_for(&self, cpus: u32) {
        if cpus & !(1 << self.cpu.number) != 0 {
            self.stop();
        }
    }
}

/// `t`, which runs and has changed nothing yet, can make system call `call` only after `f`, for which the other processors are stopped.
/// It makes the call again then, unless `f` refuses, or what it is about is gone by the time that this has the lock.
pub fn prepare<T: Object>(
    cpu: &Cpu,
    t: Obj<Thread>,
    call: Syscall,
    o: Obj<T>,
    f: impl FnOnce(Obj<T>) -> Result<(), Status>,
) -> Obj<Thread> {
    let cap = Cap::of(o);
    let Some(op) = Operation::begin(cpu, t, call) else {
        return crate::sched::pick(cpu);
    };
    op.stop();
    match cap.typed(0).and_then(f) {
        Ok(()) => t.restart(call),
        Err(e) => t.finish(e),
    }
    t
}

impl Drop for Operation<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.stopped.get() {
            // Nobody else has ended one meanwhile.
            ENDED.fetch_add(1, Ordering::Release);
        }
        OBJECTS.store(false, Ordering::Release);
    }
}

/// Waits for the lock, joining stops. False: the caller has to pick, and does not have the lock.
#[cold]
fn wait(cpu: &Cpu, t: Obj<Thread>, call: Syscall) -> bool {
    t.restart(call);
    while !try_lock() {
        join(cpu);
        spin_loop();
    }
    if cpu.current.get() == Some(t) && t.state.get() == State::Ready && !cpu.reschedule.get() {
        t.resume.set(Resume::Syscall);
        return true;
    }
    OBJECTS.store(false, Ordering::Release);
    false
}

fn others(cpu: &Cpu) -> impl Iterator<Item = &'static Cpu> {
    let me = cpu.number;
    Cpu::all()
        .iter()
        .filter(move |c| c.number != me && c.state.load(Ordering::Acquire) == cpu_state::ONLINE)
}

#[cold]
fn stop_others(cpu: &Cpu) {
    let number = ENDED.load(Ordering::Relaxed).wrapping_add(1);
    others(cpu).for_each(|c| c.stop.ask(number));
    arch::call_others();
    others(cpu).for_each(|c| arch::wait_until(c, || c.stop.has_joined(number)));
}

/// Has `c`, which is stopped, save and disown the FPU state that it holds; waits until it has.
pub fn give_up_fpu(cpu: &Cpu, c: &Cpu) {
    if c.number == cpu.number {
        return crate::virt::release_extended(c);
    }
    c.stop.send();
    arch::wait_until(c, || c.stop.is_back());
}

/// Joins the stop that this processor has been asked to join, if any. The caller refers to no object but a thread of this processor
/// that it will not touch unless it still is the current one.
pub fn join(cpu: &Cpu) {
    while HALT.load(Ordering::Relaxed) {
        spin_loop();
    }
    let Some(number) = cpu.stop.wanted() else {
        return;
    };
    cpu.stops.set(cpu.stops.get() + 1);
    arch::load_root(arch::kernel_root());
    cpu.stop
        .join(number, &ENDED, || crate::virt::release_extended(cpu));
    arch::pcid::flush_spaces();
    arch::load_root(cpu.root.get());
    if cpu.retime.take() {
        crate::sched::retime(cpu);
    }
}

static HALT: AtomicBool = AtomicBool::new(false);

/// The kernel ends here: the other processors halt when they next look.
pub fn halt_others() {
    HALT.store(true, Ordering::Release);
    if !alone() {
        arch::call_others();
    }
}

/// `cpu` runs threads from now on. Under the object lock.
pub fn admit(cpu: &Cpu) {
    cpu.stop.begin(ENDED.load(Ordering::Relaxed));
    ONLINE.fetch_add(1, Ordering::Relaxed);
    cpu.state.store(cpu_state::ONLINE, Ordering::Release);
}

#[cfg(not(target_os = "none"))]
#[path = "checker/sync.rs"]
pub mod check;
