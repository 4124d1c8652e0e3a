//! Budgets: scheduling contexts. A thread runs on one; a call lends it to the server.

use super::{Cap, Header, Pool, Thread, object, pool::pool_of, refuse_if};
use crate::arch::{Cpu, MAX_CPUS};
use crate::list::{Link, Linked};
use crate::mem::Obj;
use crate::sched::timer::Timer;
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status};

/// Priorities.
pub const PRIORITIES: usize = 32;

/// A scheduling context: processor, priority, budget and period in TSC cycles.
#[repr(C)]
#[derive(Default)]
pub struct Budget {
    header: Header,
    /// Number of its processor.
    pub cpu: Cell<u32>,
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
    /// Cycles left; below 0: used before their time, which later periods pay for.
    pub left: Cell<i64>,
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
    /// A Budget of nothing, on processor `cpu`, at the lowest priority: a thread on it runs only once somebody who holds a Cpu has configured it.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool, cpu: u32) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            cpu: Cell::new(cpu),
            exhausted: Cell::new(true),
            ..Self::default()
        })
    }

    /// Its processor.
    #[inline(always)]
    #[must_use]
    pub fn home(&self) -> &'static Cpu {
        &Cpu::all()[self.cpu.get() as usize % MAX_CPUS]
    }

    /// Moves it, with its owner, to processor `to`. The other processors are stopped.
    ///
    /// # Errors
    /// `Busy`: the owner is in a call or serves one, or the Budget is lent.
    pub fn move_to(&self, to: &Cpu) -> Result<(), Status> {
        let this = Obj::of(self);
        if self.cpu.get() == to.number {
            return Ok(());
        }
        match self.owner.get() {
            Some(t) => {
                t.get().movable()?;
                crate::sched::migrate::thread(t, to);
            }
            // Lent on by a thread that has none of its own now.
            None if self.thread.get().is_some() => return Err(Status::Busy),
            None => crate::sched::migrate::budget(this, to),
        }
        Ok(())
    }

    /// Whether [`Budget::configure`] can take these.
    ///
    /// # Errors
    /// `OutOfRange`: priority above 31, or budget 0, or larger than the period.
    pub fn check(priority: u64, budget: u64, period: u64) -> Result<(), Status> {
        refuse_if(priority >= PRIORITIES as u64, Status::OutOfRange)?;
        refuse_if(budget == 0 || budget > period, Status::OutOfRange)
    }

    /// Sets what it grants, checked before; a new period begins. If it is another processor's, that one is stopped.
    pub fn configure(&self, priority: u64, budget: u64, period: u64, now: u64) {
        let cpu = self.home();
        let this = Obj::of(self);
        cpu.ready.remove(this);
        self.priority.set(priority as u8);
        self.budget.set(budget);
        self.period.set(period);
        self.left.set(0);
        self.refill(now);
        self.exhausted.set(false);
        cpu.timers.cancel(&self.timer);
        if cpu.budget.get() == Some(this) {
            // Its end is another now.
            cpu.reschedule.set(true);
        }
        crate::sched::budget_ready(cpu, this);
    }

    /// When its period ends.
    #[inline(always)]
    pub fn ends(&self) -> u64 {
        self.began.get().saturating_add(self.period.get())
    }

    /// Whether its thread is only sent behind the others of its priority when it is used up.
    #[inline(always)]
    pub fn unlimited(&self) -> bool {
        self.budget.get() == self.period.get()
    }

    /// A new period begins. A time slice leaves no debts to the next.
    pub fn refill(&self, began: u64) {
        let debt = self.left.get().min(0) * i64::from(!self.unlimited());
        self.left
            .set(debt.saturating_add_unsigned(self.budget.get()));
        self.began.set(began);
    }

    /// Ends it. Threads that run on it fall back to their own. The other processors are stopped.
    pub fn destroy(&self) {
        let cpu = self.home();
        let this = Obj::of(self);
        if let Some(owner) = self.owner.get() {
            owner.set_own_budget(None);
        }
        crate::sched::disown(cpu, this);
        cpu.timers.cancel(&self.timer);
        pool_of(&self.header).free_object(this);
    }
}
