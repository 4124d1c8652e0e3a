//! The kernel's pure part on the host: real objects in a buffer that stands for physical memory, driven through `syscall`.
//!
//! Feature `checker` makes [`driver::drive`] and the checks behind it reachable from outside, for the fuzz target.
#![allow(missing_docs, reason = "a test's tools: their names say it")]

pub mod census;
pub mod decode;
pub mod driver;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod helped;
#[cfg(test)]
mod interleaved;
#[cfg(test)]
mod ipc;
#[cfg(test)]
mod lifetimes;
#[cfg(test)]
mod loans;
#[cfg(test)]
mod memory;
pub mod model;
#[cfg(test)]
mod newer;
#[cfg(test)]
mod newer_svm;
#[cfg(test)]
mod posted;
#[cfg(test)]
mod random;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod sched;
#[cfg(test)]
mod smp;
#[cfg(test)]
mod stale;
#[cfg(test)]
mod trees;
#[cfg(test)]
mod vmx;
#[cfg(test)]
mod vmx_accesses;
#[cfg(test)]
mod vmx_lacks;
#[cfg(test)]
mod vmx_timer;

use crate::arch::Cpu;
use crate::arch::HOST_PHYS_BASE;
use crate::mem::Obj;
use crate::object::pool::POOLS;
use crate::object::thread::{Resume, State, reg};
use crate::object::{Budget, Cap, Endpoint, Memory, Notification, Object, Pool, Space, Thread};
use ipc_schema::abi::{NEVER, Status, Tag, layout};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Physical memory of the tests. Address 0 is never handed out.
const PHYS: usize = 32 << 20;
/// Pages of the first Pool, which starts at 1 MiB.
const PAGES: u64 = 2048;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A machine with one Pool, and a Space in which everything happens unless the test makes others.
pub struct Machine {
    pub cpu: &'static Cpu,
    pub pool: &'static Pool,
    pub pool_cap: Cap,
    pub space: Obj<Space>,
    next_slot: std::cell::Cell<u64>,
    next_utcb: std::cell::Cell<u64>,
    idle: std::cell::Cell<Option<Obj<Thread>>>,
    _guard: MutexGuard<'static, ()>,
}

impl Machine {
    #[allow(clippy::new_without_default, reason = "it takes a turn")]
    pub fn new() -> Self {
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if HOST_PHYS_BASE.load(Ordering::Relaxed) == 0 {
            let ram = vec![0_u64; PHYS / 8 + 512].leak();
            HOST_PHYS_BASE.store(
                (ram.as_ptr() as u64).next_multiple_of(4096),
                Ordering::Relaxed,
            );
        }
        crate::object::pool::check::end_all();
        Cpu::renew();
        crate::arch::paging::PAGES_TO.set(3);
        let cpu = Cpu::current();
        // SAFETY: inside the buffer; the Pools of earlier tests are dead.
        let pool_cap = unsafe { Pool::create(1 << 20, PAGES, Cap::EMPTY, 400) }.unwrap();
        let pool = Pool::from_cap(&pool_cap, 0).unwrap();
        let space = Space::create(pool, 256).unwrap();
        let m = Self {
            cpu,
            pool,
            pool_cap,
            space,
            next_slot: 1.into(),
            next_utcb: 0x5000_0000.into(),
            idle: None.into(),
            _guard: guard,
        };
        // Something is always there to run.
        let idle = m.thread(0);
        idle.finish(Status::Ok);
        m.idle.set(Some(idle));
        m
    }
    /// The thread that runs when no other can.
    pub fn idle_thread(&self) -> Obj<Thread> {
        self.idle.get().unwrap()
    }

    pub fn put(&self, cap: Cap) -> u64 {
        let slot = self.next_slot.replace(self.next_slot.get() + 1);
        self.space.get().slot(slot).unwrap().set(cap);
        slot
    }
    pub fn name<T: Object>(&self, o: Obj<T>) -> u64 {
        self.put(Cap::new(o.get().header()))
    }
    /// A started thread with a Budget of its own, in no system call.
    pub fn thread(&self, priority: u64) -> Obj<Thread> {
        self.thread_in(self.space, priority)
    }
    pub fn thread_in(&self, space: Obj<Space>, priority: u64) -> Obj<Thread> {
        let at = self.next_utcb.replace(self.next_utcb.get() + 4096);
        let t = Thread::create(self.pool, space, at, self.cpu).unwrap();
        let b = Budget::create(self.pool, self.cpu.number).unwrap();
        t.set_own_budget(Some(b));
        b.configure(priority, 1_000_000, 1_000_000, crate::arch::now());
        crate::sched::make_ready(self.cpu, t);
        t
    }
    pub fn endpoint(&self) -> (Obj<Endpoint>, u64) {
        let e = Endpoint::create(self.pool).unwrap();
        (e, self.name(e))
    }
    pub fn notification(&self) -> (Obj<Notification>, u64) {
        let n = Notification::create(self.pool, self.cpu.number).unwrap();
        (n, self.name(n))
    }
    pub fn memory(&self, phys: u64, len: u64) -> (Obj<Memory>, u64) {
        let m = Memory::create(self.pool, (phys, len), false, 255, 0).unwrap();
        (m, self.name(m))
    }
    /// Another processor that runs threads, and what runs there when nothing else can.
    pub fn add_cpu(&self, number: u32) -> Obj<Thread> {
        let cpu = &Cpu::all()[number as usize];
        crate::arch::start_step(cpu, number, 2).unwrap();
        cpu.booked.set(crate::arch::now());
        let idle = self.thread(0);
        idle.own_budget.get().unwrap().move_to(cpu).unwrap();
        idle.finish(Status::Ok);
        idle
    }
    /// As [`run`].
    pub fn run(&self, t: Obj<Thread>) -> &'static Cpu {
        run(t)
    }
    /// As [`enter`].
    pub fn sys(
        &self,
        t: Obj<Thread>,
        number: u64,
        cap: u64,
        tag: u64,
        words: [u64; 4],
        deadline: u64,
    ) -> Obj<Thread> {
        enter(t, number, cap, tag, words, deadline)
    }
    pub fn call(&self, t: Obj<Thread>, cap: u64, words: [u64; 4]) -> Obj<Thread> {
        self.sys(t, 0, cap, Tag::new(7).0, words, NEVER)
    }
    pub fn receive(&self, t: Obj<Thread>, endpoint: u64) -> Obj<Thread> {
        self.sys(t, 1, endpoint, 0, [0; 4], NEVER)
    }
    pub fn operate(&self, t: Obj<Thread>, cap: u64, op: u64, words: [u64; 4]) -> Status {
        self.sys(t, 0, cap, Tag::new(op).0, words, NEVER);
        // A long operation: the thread executes its system call again, from the stub page.
        while t.resume.get() == Resume::Interrupt && t.regs.rip.get() == layout::STUB {
            assert_eq!(t.get().get(reg::RAX), 0);
            self.sys(t, 0, cap, Tag::new(op).0, words, NEVER);
        }
        status(t)
    }
}

/// Makes `t` what runs on its processor, as if it had just been picked, and plays that.
pub fn run(t: Obj<Thread>) -> &'static Cpu {
    assert_eq!(t.state.get(), State::Ready);
    let cpu = Cpu::play(t.cpu.get() as usize);
    crate::sched::charge(cpu);
    if let Some(old) = cpu.budget.take() {
        crate::sched::budget_ready(cpu, old);
    }
    let b = t.budget.get().unwrap();
    cpu.ready.remove(b);
    b.thread.set(Some(t));
    cpu.budget.set(Some(b));
    cpu.current.set(Some(t));
    cpu.root.set(t.root.get());
    cpu
}

/// `t` makes a system call; answers who runs next.
pub fn enter(
    t: Obj<Thread>,
    number: u64,
    cap: u64,
    tag: u64,
    words: [u64; 4],
    deadline: u64,
) -> Obj<Thread> {
    let cpu = run(t);
    t.set(reg::RDI, cap);
    t.set(reg::RSI, tag);
    for (r, w) in [reg::R8, reg::R9, reg::R10, reg::R12]
        .into_iter()
        .zip(words)
    {
        t.set(r, w);
    }
    t.set(reg::R13, deadline);
    t.resume.set(Resume::Syscall);
    let n = cpu.number;
    trace(|| {
        format!(
            "{n}: {:x} call {number} slot {cap} tag {tag:x} {words:x?} until {deadline:x}",
            t.addr()
        )
    });
    let mut next = crate::syscall(cpu, t, entry(number));
    if entry(number) == crate::RUN_VMX && next.resume.get() == Resume::GuestVmx {
        next = crate::exit::enter::<crate::virt::vmx::BackEnd>(cpu, next);
    }
    trace(|| {
        let found = crate::checker::check().err();
        format!("{n}: then {:x}; {found:x?}", next.addr())
    });
    next
}

/// As the entry of this machine's servers has it.
pub fn entry(number: u64) -> u64 {
    if number == ipc_schema::abi::Syscall::Run as u64 && crate::virt::vmx::HERE.get() {
        crate::RUN_VMX
    } else {
        number
    }
}

/// With `VIREO_TRACE` in the environment, says what is done.
pub fn trace(what: impl FnOnce() -> String) {
    static ON: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("VIREO_TRACE").is_some());
    if *ON {
        eprintln!("{}", what());
    }
}

pub fn status(t: Obj<Thread>) -> Status {
    Status::from_raw(t.get().get(reg::RAX))
}
pub fn words(t: Obj<Thread>) -> [u64; 4] {
    [reg::R8, reg::R9, reg::R10, reg::R12].map(|r| t.get().get(r))
}
