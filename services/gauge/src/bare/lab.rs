//! What experiments are made with: threads with Budgets, on any processor.

use super::alloc::boxed::Box;
use super::alloc::vec;
use super::alloc::vec::Vec;

use ipc_schema::proto::Class;
use runtime::abi::layout::{self, slot};
use runtime::abi::{Status, rights};
use runtime::object::{Budget, Cpu, Memory, Pool, Space, Thread};
use runtime::{Endpoint, Notification, Slot, Slots, StartInfo, time};

/// Result of this server.
pub type Result<T> = core::result::Result<T, Status>;

/// Priority of this server's own thread while it measures: above all that it measures, below root.
pub const OBSERVER: u64 = 30;
/// Priority of what is measured: above all servers.
pub const SUBJECT: u64 = 29;
/// Priority of what is to get what is left.
pub const COMPETITOR: u64 = 1;
/// Priority of load: it takes turns with guests.
pub const LOAD: u64 = Class::Vm.priority() as u64;

/// Where UTCBs of further threads are, and how far apart.
const UTCBS: u64 = layout::UTCB + 0x40_0000;
const UTCB_STEP: u64 = 0x1_0000;
/// Bytes of a thread's stack.
const STACK: usize = 8 << 10;
/// Period of Budgets without a limit, in microseconds.
pub const TURN: u64 = 10_000;

/// A thread, stopped until it is started.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    /// The thread.
    pub thread: Thread,
    /// Its Budget.
    pub budget: Budget,
    stack: u64,
}

/// What there is.
pub struct Lab {
    /// Slots for new objects.
    pub slots: Slots,
    /// RAM.
    pub ram: Memory,
    /// Root's Endpoint.
    pub root: Endpoint,
    /// The processors that run threads, by number.
    pub cpus: Vec<(u32, Cpu)>,
    /// All Budgets that root knows nothing of, with their processors.
    pub budgets: Vec<(u32, Budget)>,
    threads: u64,
}

/// The Pool.
pub const POOL: Pool = Pool(slot::POOL);
/// This server's Space.
pub const SPACE: Space = Space(slot::SPACE);

impl Lab {
    /// Looks what there is, and puts this server's thread above what it is going to measure.
    pub fn new(start: &StartInfo) -> Result<Self> {
        let cap = |name| start.cap(name).map_err(|_| Status::InvalidCap);
        let cpus = (0..8).filter_map(|number| {
            let cpu = Cpu(slot::CPUS + number);
            cpu.info().ok().map(|_| (number, cpu))
        });
        let mut lab = Self {
            slots: start.free_slots(),
            ram: Memory(cap("ram")?),
            root: Endpoint(cap("root")?),
            cpus: cpus.collect(),
            budgets: Vec::new(),
            threads: 0,
        };
        let budget = lab.budget(0)?;
        lab.unlimited(0, budget, OBSERVER)?;
        // Its faults still go to root, under its own badge.
        let bound = Notification(slot::NOTIFICATION);
        Thread(slot::THREAD).configure(Some(budget), Some(lab.root), 0, Some(bound))?;
        Ok(lab)
    }

    /// A free slot.
    pub fn slot(&mut self) -> Result<Slot> {
        self.slots.take().ok_or(Status::NoMemory)
    }

    /// The Cpu of a processor.
    pub fn cpu(&self, number: u32) -> Result<Cpu> {
        let found = self.cpus.iter().find(|(n, _)| *n == number);
        found.map(|(_, cpu)| *cpu).ok_or(Status::Unsupported)
    }

    /// A Budget that grants nothing yet.
    fn budget(&mut self, cpu: u32) -> Result<Budget> {
        let budget = POOL.create_budget(self.slot()?)?;
        self.budgets.push((cpu, budget));
        Ok(budget)
    }

    /// Lets a Budget grant time without limit.
    pub fn unlimited(&self, cpu: u32, budget: Budget, priority: u64) -> Result<()> {
        let turn = time::cycles(TURN);
        budget.configure(self.cpu(cpu)?, priority, turn, turn)
    }

    /// A thread on this processor. Its Budget grants nothing yet.
    pub fn worker(&mut self, cpu: u32) -> Result<Worker> {
        let budget = self.budget(cpu)?;
        let utcb = UTCBS + self.threads * UTCB_STEP;
        self.threads += 1;
        let thread = POOL.create_thread(self.slot()?, SPACE, utcb)?;
        // The Budget's processor becomes the thread's.
        budget.configure(self.cpu(cpu)?, 0, 1, u64::MAX)?;
        thread.configure(Some(budget), Some(self.root), 0, None)?;
        let stack = Box::leak(vec![0u8; STACK].into_boxed_slice());
        let top = stack.as_ptr().expose_provenance() + STACK;
        Ok(Worker {
            thread,
            budget,
            stack: (top as u64 & !15) - 8,
        })
    }

    /// A thread that runs at once, without a limit.
    pub fn load(
        &mut self,
        cpu: u32,
        priority: u64,
        entry: extern "sysv64" fn(u64) -> !,
        argument: u64,
    ) -> Result<Worker> {
        let worker = self.worker(cpu)?;
        worker.start(entry, argument)?;
        self.unlimited(cpu, worker.budget, priority)?;
        Ok(worker)
    }

    /// An Endpoint for threads of this Space.
    pub fn endpoint(&mut self) -> Result<Endpoint> {
        POOL.create_endpoint(self.slot()?)
    }

    /// A Notification that two slots name: one that waits and signals.
    pub fn notification(&mut self) -> Result<Notification> {
        POOL.create_notification(self.slot()?)
    }
}

impl Worker {
    /// Starts it at `entry`, one of [`super::workers`]: it has a stack and a UTCB of its own, and uses neither heap nor log.
    pub fn start(&self, entry: extern "sysv64" fn(u64) -> !, argument: u64) -> Result<()> {
        let entry = (entry as *const ()).expose_provenance() as u64;
        // SAFETY: a function of this image that never returns, with a stack that is nobody else's; what it touches beside that are
        // atomics and pages that nobody has references into.
        unsafe { self.thread.start(entry, self.stack, argument) }
    }

    /// Puts its stack to use for another: ends the thread.
    pub fn end(&self) -> Result<()> {
        self.thread.suspend()
    }
}

/// Rights to memory that is read and written.
pub const READ_WRITE: u32 = rights::READ | rights::WRITE;

/// Waits until the TSC is this, or a little later.
pub fn wait_until(tsc: u64) {
    let _ = Notification(slot::NOTIFICATION).wait(tsc);
}
