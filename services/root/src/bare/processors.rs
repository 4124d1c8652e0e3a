//! The processors, and the threads that take calls to a server on each of them.

use alloc::vec::Vec;

use ipc_schema::abi::layout::slot;
use ipc_schema::abi::rights::{CONTROL, RECV, SEND};
use ipc_schema::proto::{Account, CpuInfo, CpuState, PlatformRequest, PlatformResponse};
use runtime::forward::{self, Grants};
use runtime::object::{Budget, Cpu, Pool, Space, Thread};
use runtime::{Endpoint, Notification, Slot, now, time, utcb};

use super::machine::{Error, Machine, POOL, ROOT_ID, at};
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

    /// Those but the first.
    pub fn others(&self) -> impl Iterator<Item = (u32, Cpu)> {
        self.online().filter(|(number, _)| *number != FIRST)
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
}

/// The server, and which of its forwarders if it was not its first thread, whose fault has this badge.
pub fn faulting(badge: u64) -> (u64, Option<usize>) {
    let forwarder = (badge >> FORWARDER_SHIFT).checked_sub(1);
    (
        badge & ((1 << FORWARDER_SHIFT) - 1),
        forwarder.and_then(|f| usize::try_from(f).ok()),
    )
}

/// Whose forwarders are made.
pub struct Owner {
    /// What they are made from.
    pub pool: Pool,
    /// Where they run.
    pub space: Space,
    /// Its number.
    pub id: u8,
    /// Where its capabilities to them go.
    pub grants: Grants,
}

impl Owner {
    /// Grants what the forwarders ring.
    fn grant_bell(&self, own: Notification) -> Result<(), Error> {
        self.space
            .copy_cap(own.0, self.grants.bell(), SEND, forward::BELL)
            .map_err(at("grant the forwarders' bell"))
    }

    /// Makes number `index` of the forwarders, not started, and grants what it takes to start it. Its faults come to `supervisor`.
    fn forwarder(
        &self,
        machine: &mut Machine,
        supervisor: Endpoint,
        index: u32,
        (number, cpu): (u32, Cpu),
    ) -> Result<Forwarder, Error> {
        let budget = machine.make("create a forwarder's budget", |dest| {
            self.pool.create_budget(dest)
        })?;
        let wake = machine.make("create a forwarder's notification", |dest| {
            self.pool.create_notification(dest)
        })?;
        let thread = machine.make("create a forwarder", |dest| {
            self.pool
                .create_thread(dest, self.space, forward::utcb_at(index))
        })?;
        let period = time::cycles(10_000);
        budget
            .configure(cpu, FORWARDER_PRIORITY, period, period)
            .map_err(at("configure a forwarder's budget"))?;
        let badge = u64::from(self.id) | u64::from(index + 1) << FORWARDER_SHIFT;
        thread
            .configure(Some(budget), Some(supervisor), badge, None)
            .map_err(at("configure a forwarder"))?;
        let copies = [
            (thread.0, self.grants.thread(index), CONTROL),
            (wake.0, self.grants.wake(index), SEND | RECV),
        ];
        for (from, to, rights) in copies {
            self.space
                .copy_cap(from, to, rights, 0)
                .map_err(at("grant a forwarder"))?;
        }
        Ok(Forwarder {
            cpu: number,
            thread,
            budget,
            wake,
        })
    }

    /// Makes the forwarders of a server on the first processor, one for each other. What has been made is in `made` even after a failure.
    pub fn forwarders(
        &self,
        machine: &mut Machine,
        shared: &Shared,
        own: Notification,
        made: &mut Vec<Forwarder>,
    ) -> Result<(), Error> {
        self.grant_bell(own)?;
        for (index, cpu) in (0..self.grants.count).zip(shared.processors.others()) {
            made.push(self.forwarder(machine, shared.own, index, cpu)?);
        }
        Ok(())
    }
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
        let others: Vec<_> = self.processors.others().collect();
        for (index, cpu) in (1..).zip(others) {
            if let Err(error) = self.forward_to_root(machine, index, cpu) {
                // Without it no fault there would be heard of.
                panic!("root's forwarders: {error}");
            }
        }
    }

    /// Lets root be called: from its own processor at first. It is everybody's supervisor, wherever they run.
    pub fn take_calls(&mut self, machine: &mut Machine) -> Result<(), Error> {
        let own = machine.make("create root's notification", |dest| {
            POOL.create_notification(dest)
        })?;
        Thread(slot::THREAD)
            .configure(Some(Budget(slot::BUDGET)), None, 0, Some(own))
            .map_err(at("bind root's notification"))?;
        let count = forward::MAX as u32;
        let first = machine.slots.take_run(Grants::slots(count));
        let first = first.ok_or(Error::NoSlot)?;
        self.desk = Grants { first, count };
        self.as_owner().grant_bell(own)?;
        self.forward_to_root(machine, 0, (FIRST, CPU))
    }

    fn as_owner(&self) -> Owner {
        Owner {
            pool: POOL,
            space: SPACE,
            id: ROOT_ID as u8,
            grants: self.desk,
        }
    }

    fn forward_to_root(
        &mut self,
        machine: &mut Machine,
        index: u32,
        cpu: (u32, Cpu),
    ) -> Result<(), Error> {
        let made = self.as_owner().forwarder(machine, self.own, index, cpu)?;
        self.forwarders.push(made);
        forward::start(self.desk, index, self.own).map_err(at("start a forwarder of root's"))
    }
}
