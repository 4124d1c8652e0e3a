//! Budgets: scheduling contexts. A thread runs on one; a call lends it to the server.

use super::{Cap, Header, Pool, Thread, object, pool::pool_of};
use crate::arch::Cpu;
use crate::list::{Link, Linked};
use crate::mem::Obj;
use crate::sched::timer::Timer;
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status};

/// Priorities.
pub const PRIORITIES: usize = 32;

/// A scheduling context: processor, priority, budget and period in TSC cycles.
#[repr(C)]
pub struct Budget {
    header: Header,
    /// 0 (lowest) to 31.
    pub priority: Cell<u8>,
    /// In a ready queue.
    pub queued: Cell<bool>,
    /// Used up until the next period begins.
    pub exhausted: Cell<bool>,
    /// Cycles that it may use in a period.
    pub budget: Cell<u64>,
    /// The period.
    pub period: Cell<u64>,
    /// Cycles left.
    pub left: Cell<u64>,
    /// When the current period began.
    pub began: Cell<u64>,
    /// Cycles used in all.
    pub used: Cell<u64>,
    /// The thread that runs on it now: its owner, or whoever serves a chain of calls from there.
    pub thread: Cell<Option<Obj<Thread>>>,
    /// The thread whose own it is.
    pub owner: Cell<Option<Obj<Thread>>>,
    /// Signalled when it is exhausted.
    pub event: Cell<Cap>,
    /// The next period.
    pub timer: Timer,
    ready: Link<Budget>,
}
object!(Budget, Kind::Budget);
impl Linked<0> for Budget {
    #[inline(always)]
    fn link(&self) -> &Link<Self> {
        &self.ready
    }
}

impl Budget {
    /// A Budget of nothing, at the lowest priority: a thread on it runs only once somebody who holds a Cpu has configured it.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            priority: Cell::new(0),
            queued: Cell::new(false),
            exhausted: Cell::new(true),
            budget: Cell::new(0),
            period: Cell::new(0),
            left: Cell::new(0),
            began: Cell::new(0),
            used: Cell::new(0),
            thread: Cell::new(None),
            owner: Cell::new(None),
            event: Cell::new(Cap::EMPTY),
            timer: Timer::default(),
            ready: Link::default(),
        })
    }

    /// Sets what it grants; a new period begins.
    ///
    /// # Errors
    /// `OutOfRange`: priority above 31, or budget 0, or larger than the period.
    pub fn configure(
        &self,
        cpu: &Cpu,
        priority: u64,
        budget: u64,
        period: u64,
        now: u64,
    ) -> Result<(), Status> {
        if priority >= PRIORITIES as u64 || budget == 0 || budget > period {
            return Err(Status::OutOfRange);
        }
        let this = Obj::of(self);
        cpu.ready.remove(this);
        self.priority.set(priority as u8);
        self.budget.set(budget);
        self.period.set(period);
        self.left.set(budget);
        self.began.set(now);
        self.exhausted.set(false);
        cpu.timers.cancel(&self.timer);
        crate::sched::budget_ready(cpu, this);
        Ok(())
    }

    /// Ends it. Threads that run on it fall back to their own.
    pub fn destroy(&self) {
        let cpu = Cpu::current();
        let this = Obj::of(self);
        if let Some(owner) = self.owner.get() {
            let _ = owner.set_own_budget(cpu, None);
        }
        crate::sched::disown(cpu, this);
        cpu.timers.cancel(&self.timer);
        pool_of(&self.header).free_object(this);
    }
}
