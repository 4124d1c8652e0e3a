//! The Budgets that are under rule, and the answers to root.

use alloc::string::String;
use alloc::vec::Vec;

use ipc_schema::proto::{Class, Group, Refusal, SchedulerRequest, SchedulerResponse};

use crate::placement::{self, FIRST, Load};
use crate::policy::{Demand, Setting, admit, settings};

/// Most Budgets: each holds a slot of the capability table.
pub const MAX_BUDGETS: usize = 200;

/// Number of the bit of the server's Notification that its forwarders ring (`runtime::forward::BELL`).
pub const FORWARD: u32 = 7;

/// Slot of a capability.
pub type Slot = u32;

/// How the kernel took a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The Budget is set so.
    Done,
    /// Its thread is in a call and cannot change its processor now.
    Busy,
    /// The Budget has been destroyed, or its processor is of no use.
    Refused,
}

/// What this server does to Budgets.
pub trait Kernel {
    /// Sets a Budget, on the processor of this number.
    fn configure(&mut self, budget: Slot, cpu: u32, setting: Setting) -> Outcome;
    /// The Cpu of this number is the capability in this slot from now on.
    fn processor(&mut self, number: u32, cpu: Slot);
    /// Has these bits come back ([`Scheduler::exhausted`]) each time the Budget is exhausted.
    fn watch(&mut self, budget: Slot, bits: u64);
    /// Whether the Budget is still there.
    fn alive(&mut self, budget: Slot) -> bool;
    /// Gives up the capability and its slot.
    fn forget(&mut self, budget: Slot);
    /// Tells people.
    fn log(&mut self, name: &str, what: Decision);
}

/// What has been decided about a Budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is set so, on this processor.
    Set(u32, Setting),
    /// It was to go to a processor that is not there; another is taken.
    NoSuchProcessor(u32),
    /// It was not admitted.
    Refused(Refusal),
    /// It has been released, or was found destroyed.
    Gone,
    /// It has used up its budget before the period was over, for so many periods now.
    Exhausted(u64),
}

/// A Budget under rule.
struct Entry {
    number: u32,
    name: String,
    slot: Slot,
    demand: Demand,
    /// Those that it shares a processor with.
    group: Option<Group>,
    /// The processor.
    cpu: u32,
    /// How it is set now.
    set: Option<Setting>,
    /// The kernel signals its exhaustion.
    watched: bool,
    /// Periods in which it was exhausted.
    exhausted: u64,
}

/// The server's state.
pub struct Scheduler<K> {
    kernel: K,
    /// Numbers of the processors that may be used, in order.
    cpus: Vec<u32>,
    entries: Vec<Entry>,
    next: u32,
    /// A setting was not taken because of a call: it is to be tried again.
    pending: bool,
}

impl<K: Kernel> Scheduler<K> {
    /// Nothing is under rule yet, and there is the first processor only.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            cpus: Vec::from([FIRST]),
            entries: Vec::new(),
            next: 1,
            pending: false,
        }
    }

    /// Whether [`Scheduler::retry`] has something to do, in a while.
    #[must_use]
    pub const fn pending(&self) -> bool {
        self.pending
    }

    /// Tries again what the kernel did not take because a thread was in a call.
    pub fn retry(&mut self) {
        if self.pending {
            self.apply();
        }
    }

    /// The kernel.
    pub const fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Budgets whose bits these are have been exhausted. There are fewer bits than Budgets: those that share one are taken to have been
    /// exhausted together. It is told now and then, not each time.
    pub fn exhausted(&mut self, bits: u64) {
        let watched = self.entries.iter_mut().filter(|e| e.watched);
        for entry in watched.filter(|e| bits & bit(e.number) != 0) {
            entry.exhausted += 1;
            if entry.exhausted.is_power_of_two() {
                let what = Decision::Exhausted(entry.exhausted);
                self.kernel.log(&entry.name, what);
            }
        }
    }

    /// How many Budgets are under rule.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Answers a request. `cap` is the slot of the capability that came with it.
    pub fn request(&mut self, request: SchedulerRequest, cap: Option<Slot>) -> SchedulerResponse {
        match request {
            SchedulerRequest::Admit {
                name,
                class,
                shares,
                reservation,
                limit,
                group,
            } => {
                let demand = Demand {
                    class,
                    shares,
                    reservation,
                    limit,
                };
                match self.admit(&name, demand, group, cap) {
                    Ok((number, cpu)) => SchedulerResponse::Admitted { number, cpu },
                    Err(why) => {
                        self.kernel.log(&name, Decision::Refused(why));
                        SchedulerResponse::Refused(why)
                    }
                }
            }
            SchedulerRequest::Release { number } => {
                // It should have brought nothing.
                if let Some(slot) = cap {
                    self.kernel.forget(slot);
                }
                if self.remove(|e| e.number == number) {
                    self.apply();
                    SchedulerResponse::Done
                } else {
                    SchedulerResponse::Refused(Refusal::Unknown)
                }
            }
            SchedulerRequest::Processor { number } => self.processor(number, cap),
        }
    }

    /// Takes a processor into use.
    fn processor(&mut self, number: u32, cap: Option<Slot>) -> SchedulerResponse {
        let Some(slot) = cap else {
            return SchedulerResponse::Refused(Refusal::Malformed);
        };
        let place = match self.cpus.binary_search(&number) {
            Ok(_) => {
                self.kernel.forget(slot);
                return SchedulerResponse::Refused(Refusal::Busy);
            }
            Err(place) => place,
        };
        self.cpus.insert(place, number);
        self.kernel.processor(number, slot);
        SchedulerResponse::Done
    }

    fn admit(
        &mut self,
        name: &str,
        demand: Demand,
        group: Option<Group>,
        budget: Option<Slot>,
    ) -> Result<(u32, u32), Refusal> {
        let slot = budget.ok_or(Refusal::Malformed)?;
        // Budgets of those that died make room first.
        self.sweep();
        let cpu = match self.place(name, &demand, group.as_ref()) {
            Ok(cpu) => cpu,
            Err(why) => {
                self.kernel.forget(slot);
                return Err(why);
            }
        };
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        self.entries.push(Entry {
            number,
            name: name.into(),
            slot,
            demand,
            group,
            cpu,
            set: None,
            watched: false,
            exhausted: 0,
        });
        self.apply();
        // `apply` drops what the kernel does not take.
        if self.entries.iter().any(|e| e.number == number) {
            Ok((number, cpu))
        } else {
            Err(Refusal::Failed)
        }
    }

    /// The processor for a demand that can be met there.
    fn place(
        &mut self,
        name: &str,
        demand: &Demand,
        group: Option<&Group>,
    ) -> Result<u32, Refusal> {
        if self.entries.len() >= MAX_BUDGETS {
            return Err(Refusal::NoMemory);
        }
        let cpu = match group {
            None => FIRST,
            Some(group) => {
                if let Some(absent) = group.cpu.filter(|cpu| !self.cpus.contains(cpu)) {
                    self.kernel.log(name, Decision::NoSuchProcessor(absent));
                }
                placement::choose(&self.loads(group.id), group, self.place_of(group.id))
            }
        };
        let there = self.entries.iter().filter(|e| e.cpu == cpu);
        let others: Vec<Demand> = there.map(|e| e.demand).collect();
        admit(demand, &others).map(|()| cpu)
    }

    /// Where a group is, if anything of it is under rule.
    fn place_of(&self, group: u32) -> Option<u32> {
        let mut of_group = self.entries.iter().filter(|e| e.in_group(group));
        of_group.next().map(|e| e.cpu)
    }

    /// What each processor bears, but for this group.
    fn loads(&self, but: u32) -> Vec<Load> {
        let load = |&cpu: &u32| {
            let mut load = Load::new(cpu);
            let mut seen: Vec<u32> = Vec::new();
            for entry in self.entries.iter().filter(|e| e.cpu == cpu) {
                match &entry.group {
                    Some(group) if group.id == but || seen.contains(&group.id) => {}
                    Some(group) => {
                        seen.push(group.id);
                        load.add(group.shares, group.reservation);
                    }
                    None if entry.demand.class == Class::Core => {}
                    None => load.add(0, entry.demand.reservation),
                }
            }
            load
        };
        self.cpus.iter().map(load).collect()
    }

    /// Drops the Budgets that have been destroyed without a word.
    fn sweep(&mut self) {
        let kernel = &mut self.kernel;
        let dead: Vec<u32> = self
            .entries
            .iter()
            .filter(|e| !kernel.alive(e.slot))
            .map(|e| e.number)
            .collect();
        self.remove(|e| dead.contains(&e.number));
    }

    fn remove(&mut self, which: impl Fn(&Entry) -> bool) -> bool {
        let before = self.entries.len();
        let kernel = &mut self.kernel;
        self.entries.retain(|e| {
            let goes = which(e);
            if goes {
                kernel.log(&e.name, Decision::Gone);
                kernel.forget(e.slot);
            }
            !goes
        });
        self.entries.len() != before
    }

    /// Sets all Budgets whose setting has changed. One that the kernel does not take is destroyed: without it the others'
    /// settings are made again. One whose thread is in a call keeps its old setting until the next turn.
    fn apply(&mut self) {
        loop {
            self.pending = false;
            let mut dead = Vec::new();
            for cpu in self.cpus.clone() {
                self.apply_to(cpu, &mut dead);
            }
            if !self.remove(|e| dead.contains(&e.number)) {
                return;
            }
        }
    }

    /// [`Scheduler::apply`] for one processor: those on it divide it among them.
    fn apply_to(&mut self, cpu: u32, dead: &mut Vec<u32>) {
        let there = self.entries.iter().filter(|e| e.cpu == cpu);
        let demands: Vec<Demand> = there.map(|e| e.demand).collect();
        let there = self.entries.iter_mut().filter(|e| e.cpu == cpu);
        for (entry, setting) in there.zip(settings(&demands)) {
            if entry.set == Some(setting) {
                continue;
            }
            match self.kernel.configure(entry.slot, cpu, setting) {
                Outcome::Done => {
                    entry.set = Some(setting);
                    // One without a limit is never exhausted.
                    if setting.budget_us < setting.period_us && !entry.watched {
                        self.kernel.watch(entry.slot, bit(entry.number));
                        entry.watched = true;
                    }
                    self.kernel.log(&entry.name, Decision::Set(cpu, setting));
                }
                Outcome::Busy => self.pending = true,
                Outcome::Refused => dead.push(entry.number),
            }
        }
    }
}

/// The bit of a Budget of this number: any but the one by which callers on other processors ring.
fn bit(number: u32) -> u64 {
    let n = number % 63;
    1 << if n < FORWARD { n } else { n + 1 }
}

impl Entry {
    fn in_group(&self, id: u32) -> bool {
        self.group.is_some_and(|g| g.id == id)
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
