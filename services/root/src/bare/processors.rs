//! The processors, and the threads that take calls to a server on each of them.

use alloc::vec::Vec;

use ipc_schema::abi::layout::slot;
use ipc_schema::abi::rights::{CONTROL, RECV, SEND};
use ipc_schema::proto::{Account, CpuInfo, CpuState, PlatformRequest, PlatformResponse};
use runtime::forward::{self, Grants};
use runtime::object::{Budget, Cpu, Pool, Space, Thread};
use runtime::{Endpoint, Notification, Slot, now, time, utcb};

use super::machine::{Error, Machine, POOL, at};
use super::shared::Shared;
use super::{SPACE, complain};

/// The processor that root runs on.
pub const CPU: Cpu = Cpu(slot::CPU);
/// Its number.
pub const FIRST: u32 = 0;
/// Priority of forwarders: as of the servers that all others need. They run on their callers' Budgets but between calls.
const FORWARDER_PRIORITY: u64 = 28;
/// Where the number of the forwarder stands in the badge of its faults, above the server's number; 0 is the first thread.
const FORWARDER_SHIFT: u32 = 8;

/// A processor.
pub struct Processor {
    /// Its number in the kernel.
    pub number: u32,
    apic_id: u32,
    /// Its capability; `None`: it did not come up.
    cpu: Option<Cpu>,
    /// When root got it: TSC, and how long it had been idle before.
    since: (u64, u64),
}

/// All of them, the first at first.
pub struct Processors(Vec<Processor>);

impl Processors {
    /// The first alone.
    pub fn new() -> Self {
        let mut all = Self(Vec::new());
        all.add(FIRST, 0, Some(CPU));
        all
    }

    fn add(&mut self, number: u32, apic_id: u32, cpu: Option<Cpu>) {
        let info = cpu.and_then(|cpu| cpu.info().ok());
        self.0.push(Processor {
            number,
            apic_id: info.map_or(apic_id, |i| i.apic_id as u32),
            cpu,
            since: (now(), info.map_or(0, |i| i.idle)),
        });
    }

    /// Those that run threads.
    pub fn online(&self) -> impl Iterator<Item = (u32, Cpu)> {
        self.0.iter().filter_map(|p| Some((p.number, p.cpu?)))
    }

    /// How many of them there are beside the first.
    pub fn others(&self) -> u32 {
        self.online().count().saturating_sub(1) as u32
    }

    /// The one of this number, if it runs threads; else the first.
    pub fn or_first(&self, number: u32) -> (u32, Cpu) {
        let found = self.online().find(|(n, _)| *n == number);
        found.unwrap_or((FIRST, CPU))
    }

    /// Figures of each; those that the kernel does not give are left out.
    pub fn figures(&self) -> Vec<CpuInfo> {
        let figures = |p: &Processor| {
            let (info, stat) = match p.cpu {
                Some(cpu) => (Some(cpu.info().ok()?), Some(cpu.stat().ok()?)),
                None => (None, None),
            };
            Some(CpuInfo {
                number: p.number,
                apic_id: p.apic_id,
                state: info.map_or(CpuState::Off, |i| CpuState::from_abi(i.state)),
                time: now().saturating_sub(p.since.0),
                idle: info.map_or(0, |i| i.idle.saturating_sub(p.since.1)),
                locks: stat.map_or(0, |s| s.locks),
                stops: stat.map_or(0, |s| s.stops),
                longest_off: stat.map_or(0, |s| s.longest_off),
            })
        };
        self.0.iter().filter_map(figures).collect()
    }
}

/// Where the time of a processor has gone, `budgets` being those on it.
pub fn account(
    (number, cpu): (u32, Cpu),
    budgets: impl Iterator<Item = Budget>,
) -> Option<Account> {
    // All at the same time, as near as can be.
    let (info, stat, time) = (cpu.info().ok()?, cpu.stat().ok()?, now());
    Some(Account {
        cpu: number,
        time,
        budgets: budgets.filter_map(|b| b.stat().ok()).map(|s| s.used).sum(),
        idle: info.idle,
        unattributed: stat.unattributed,
    })
}

/// What has been made for a forwarder.
pub struct Forwarder {
    /// The number of its processor.
    pub cpu: u32,
    /// Its thread.
    pub thread: Thread,
    /// Its own Budget.
    pub budget: Budget,
    /// What wakes it.
    wake: Notification,
}

impl Forwarder {
    /// The slots of root's capabilities to it.
    pub fn slots(&self) -> [Slot; 3] {
        [self.thread.0, self.budget.0, self.wake.0]
    }

    /// Makes number `index` of a server's, not started: its faults come to `supervisor` as the server's number `id`.
    fn make(
        machine: &mut Machine,
        (pool, space): (Pool, Space),
        (supervisor, id): (Endpoint, u8),
        index: u32,
        (number, cpu): (u32, Cpu),
    ) -> Result<Self, Error> {
        let budget = machine.make("create a forwarder's budget", |dest| {
            pool.create_budget(dest)
        })?;
        let wake = machine.make("create a forwarder's notification", |dest| {
            pool.create_notification(dest)
        })?;
        let thread = machine.make("create a forwarder", |dest| {
            pool.create_thread(dest, space, forward::utcb_at(index))
        })?;
        let period = time::cycles(10_000);
        budget
            .configure(cpu, FORWARDER_PRIORITY, period, period)
            .map_err(at("configure a forwarder's budget"))?;
        let badge = u64::from(id) | u64::from(index + 1) << FORWARDER_SHIFT;
        thread
            .configure(Some(budget), Some(supervisor), badge, None)
            .map_err(at("configure a forwarder"))?;
        Ok(Self {
            cpu: number,
            thread,
            budget,
            wake,
        })
    }

    /// Gives the server in `space` what it needs to start it.
    fn grant(&self, space: Space, grants: Grants, index: u32) -> Result<(), Error> {
        let copies = [
            (self.thread.0, grants.thread(index), CONTROL),
            (self.wake.0, grants.wake(index), SEND | RECV),
        ];
        for (from, to, rights) in copies {
            space
                .copy_cap(from, to, rights, 0)
                .map_err(at("grant a forwarder"))?;
        }
        Ok(())
    }
}

/// The server, and which of its forwarders if it was not its first thread, whose fault has this badge.
pub fn faulting(badge: u64) -> (u64, Option<usize>) {
    let forwarder = (badge >> FORWARDER_SHIFT).checked_sub(1);
    (
        badge & ((1 << FORWARDER_SHIFT) - 1),
        forwarder.and_then(|f| usize::try_from(f).ok()),
    )
}

/// Makes the forwarders of a server on the first processor, one for each other, and grants them. What has been made is in `made`
/// even after a failure.
pub fn forwarders(
    machine: &mut Machine,
    shared: &Shared,
    (pool, space): (Pool, Space),
    (own, id): (Notification, u8),
    grants: Grants,
    made: &mut Vec<Forwarder>,
) -> Result<(), Error> {
    space
        .copy_cap(own.0, grants.bell(), SEND, forward::BELL)
        .map_err(at("grant the forwarders' bell"))?;
    let cpus = shared.processors.online().filter(|(n, _)| *n != FIRST);
    for (index, cpu) in (0..grants.count).zip(cpus) {
        let one = Forwarder::make(machine, (pool, space), (shared.own, id), index, cpu)?;
        one.grant(space, grants, index)?;
        made.push(one);
    }
    Ok(())
}

impl Shared {
    /// Takes the other processors from platform, which has started them, and lets root be called from them. Once.
    pub fn take_processors(&mut self, machine: &mut Machine) {
        if self.processors.0.len() > 1 {
            return;
        }
        for index in 0.. {
            let Ok(slot) = machine.slot() else {
                complain!("no slot for a processor");
                break;
            };
            utcb::set_receive(slot, 1);
            let answer = self.ask_platform(&PlatformRequest::Processor { index });
            utcb::set_receive(0, 0);
            let Some(PlatformResponse::Processor {
                number,
                apic_id,
                state,
            }) = answer
            else {
                machine.slots.give_back(slot);
                break;
            };
            let came = state == CpuState::Online && Cpu(slot).info().is_ok();
            if !came {
                machine.slots.give_back(slot);
            }
            self.processors
                .add(number, apic_id, came.then_some(Cpu(slot)));
        }
        if let Err(error) = self.forward_to_root(machine) {
            // Without it no fault elsewhere would be heard of.
            panic!("root's forwarders: {error}");
        }
    }

    /// Root's own forwarders: it is everybody's supervisor, wherever they run.
    fn forward_to_root(&mut self, machine: &mut Machine) -> Result<(), Error> {
        let count = self.processors.others();
        if count == 0 {
            return Ok(());
        }
        let own = machine.make("create root's notification", |dest| {
            POOL.create_notification(dest)
        })?;
        Thread(slot::THREAD)
            .configure(Some(Budget(slot::BUDGET)), None, 0, Some(own))
            .map_err(at("bind root's notification"))?;
        let first = machine
            .slots
            .take_run(Grants::slots(count))
            .ok_or(Error::NoSlot)?;
        let grants = Grants { first, count };
        let mut made = Vec::new();
        let id = super::machine::ROOT_ID as u8;
        forwarders(machine, self, (POOL, SPACE), (own, id), grants, &mut made)?;
        self.forwarders = made;
        forward::start(grants, self.own).map_err(at("start root's forwarders"))
    }
}
