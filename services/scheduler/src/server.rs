//! The Budgets that are under rule, and the answers to root.

use alloc::string::String;
use alloc::vec::Vec;

use ipc_schema::proto::{Refusal, SchedulerRequest, SchedulerResponse};

use crate::policy::{Demand, Setting, admit, settings};

/// Most Budgets: each holds a slot of the capability table.
pub const MAX_BUDGETS: usize = 200;

/// Slot of a Budget's capability.
pub type Slot = u32;

/// What this server does to Budgets.
pub trait Kernel {
    /// Sets a Budget; `false`: it has been destroyed.
    fn configure(&mut self, budget: Slot, setting: Setting) -> bool;
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
    /// It is set so.
    Set(Setting),
    /// It was not admitted.
    Refused(Refusal),
    /// It has been released, or was found destroyed.
    Gone,
}

/// A Budget under rule.
struct Entry {
    number: u32,
    name: String,
    slot: Slot,
    demand: Demand,
    /// How it is set now.
    set: Option<Setting>,
}

/// The server's state.
pub struct Scheduler<K> {
    kernel: K,
    entries: Vec<Entry>,
    next: u32,
}

impl<K: Kernel> Scheduler<K> {
    /// Nothing is under rule yet.
    pub const fn new(kernel: K) -> Self {
        Self {
            kernel,
            entries: Vec::new(),
            next: 1,
        }
    }

    /// The kernel.
    pub const fn kernel(&mut self) -> &mut K {
        &mut self.kernel
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

    /// Answers a request. `budget` is the slot of the capability that came with it.
    pub fn request(
        &mut self,
        request: SchedulerRequest,
        budget: Option<Slot>,
    ) -> SchedulerResponse {
        match request {
            SchedulerRequest::Admit {
                name,
                class,
                shares,
                reservation,
                limit,
            } => {
                let demand = Demand {
                    class,
                    shares,
                    reservation,
                    limit,
                };
                match self.admit(&name, demand, budget) {
                    Ok(number) => SchedulerResponse::Admitted { number },
                    Err(why) => {
                        self.kernel.log(&name, Decision::Refused(why));
                        SchedulerResponse::Refused(why)
                    }
                }
            }
            SchedulerRequest::Release { number } => {
                // It should have brought nothing.
                if let Some(slot) = budget {
                    self.kernel.forget(slot);
                }
                if self.remove(|e| e.number == number) {
                    self.apply();
                    SchedulerResponse::Done
                } else {
                    SchedulerResponse::Refused(Refusal::Unknown)
                }
            }
        }
    }

    fn admit(&mut self, name: &str, demand: Demand, budget: Option<Slot>) -> Result<u32, Refusal> {
        let slot = budget.ok_or(Refusal::Malformed)?;
        // Budgets of those that died make room first.
        self.sweep();
        if let Err(why) = self.room_for(&demand) {
            self.kernel.forget(slot);
            return Err(why);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        self.entries.push(Entry {
            number,
            name: name.into(),
            slot,
            demand,
            set: None,
        });
        self.apply();
        // `apply` drops what the kernel does not take.
        if self.entries.iter().any(|e| e.number == number) {
            Ok(number)
        } else {
            Err(Refusal::Failed)
        }
    }

    fn room_for(&self, demand: &Demand) -> Result<(), Refusal> {
        if self.entries.len() >= MAX_BUDGETS {
            return Err(Refusal::NoMemory);
        }
        let others: Vec<Demand> = self.entries.iter().map(|e| e.demand).collect();
        admit(demand, &others)
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
    /// settings are made again.
    fn apply(&mut self) {
        loop {
            let demands: Vec<Demand> = self.entries.iter().map(|e| e.demand).collect();
            let mut dead = Vec::new();
            for (entry, setting) in self.entries.iter_mut().zip(settings(&demands)) {
                if entry.set == Some(setting) {
                    continue;
                }
                if self.kernel.configure(entry.slot, setting) {
                    entry.set = Some(setting);
                    self.kernel.log(&entry.name, Decision::Set(setting));
                } else {
                    dead.push(entry.number);
                }
            }
            if !self.remove(|e| dead.contains(&e.number)) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_schema::proto::Class;
    use std::collections::{BTreeMap, BTreeSet};

    #[derive(Default)]
    struct Fake {
        set: BTreeMap<Slot, Setting>,
        dead: BTreeSet<Slot>,
        forgotten: Vec<Slot>,
        configured: usize,
    }

    impl Kernel for Fake {
        fn configure(&mut self, budget: Slot, setting: Setting) -> bool {
            self.configured += 1;
            let alive = self.alive(budget);
            if alive {
                self.set.insert(budget, setting);
            }
            alive
        }
        fn alive(&mut self, budget: Slot) -> bool {
            !self.dead.contains(&budget)
        }
        fn forget(&mut self, budget: Slot) {
            assert!(!self.forgotten.contains(&budget));
            self.forgotten.push(budget);
            self.set.remove(&budget);
        }
        fn log(&mut self, _: &str, _: Decision) {}
    }

    fn vm(shares: u32, reservation: u32) -> SchedulerRequest {
        SchedulerRequest::Admit {
            name: "x".into(),
            class: Class::Vm,
            shares,
            reservation,
            limit: None,
        }
    }

    fn scheduler() -> Scheduler<Fake> {
        Scheduler::new(Fake::default())
    }

    fn admitted(s: &mut Scheduler<Fake>, request: SchedulerRequest, slot: Slot) -> u32 {
        match s.request(request, Some(slot)) {
            SchedulerResponse::Admitted { number } => number,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_are_set_again_when_one_comes_or_goes() {
        let mut s = scheduler();
        let first = admitted(&mut s, vm(100, 0), 20);
        assert_eq!(s.kernel.set[&20].budget_us, 10_000);
        let second = admitted(&mut s, vm(300, 0), 21);
        assert_ne!(first, second);
        assert_eq!(
            (s.kernel.set[&20].budget_us, s.kernel.set[&21].budget_us),
            (5_000, 15_000)
        );
        let release = |number| SchedulerRequest::Release { number };
        assert_eq!(s.request(release(first), None), SchedulerResponse::Done);
        assert_eq!(s.kernel.forgotten, [20]);
        assert_eq!(s.kernel.set[&21].budget_us, 10_000);
        let unknown = SchedulerResponse::Refused(Refusal::Unknown);
        assert_eq!(s.request(release(first), None), unknown);
        assert_eq!(s.len(), 1);
    }

    #[test]
    fn nothing_is_set_twice_without_need() {
        let mut s = scheduler();
        admitted(&mut s, vm(100, 0), 20);
        let mut device = vm(100, 0);
        if let SchedulerRequest::Admit { class, .. } = &mut device {
            *class = Class::Device;
        }
        admitted(&mut s, device, 21);
        assert_eq!(s.kernel.configured, 2, "another class changes nothing");
    }

    #[test]
    fn refusals_give_the_capability_back() {
        let mut s = scheduler();
        admitted(&mut s, vm(1, 60), 20);
        let busy = SchedulerResponse::Refused(Refusal::Busy);
        assert_eq!(s.request(vm(1, 41), Some(21)), busy);
        assert_eq!(s.kernel.forgotten, [21]);
        let malformed = SchedulerResponse::Refused(Refusal::Malformed);
        assert_eq!(s.request(vm(1, 0), None), malformed);
        assert_eq!(s.request(vm(0, 0), Some(22)), malformed);
        assert_eq!(s.len(), 1);
        admitted(&mut s, vm(1, 40), 23);
    }

    #[test]
    fn the_dead_make_room() {
        let mut s = scheduler();
        admitted(&mut s, vm(1, 60), 20);
        s.kernel.dead.insert(20);
        admitted(&mut s, vm(1, 60), 21);
        assert_eq!((s.len(), s.kernel.forgotten.clone()), (1, vec![20]));
        // Dead before it was set at all.
        s.kernel.dead.insert(22);
        let failed = SchedulerResponse::Refused(Refusal::Failed);
        assert_eq!(s.request(vm(1, 0), Some(22)), failed);
        assert_eq!(s.kernel.set[&21].budget_us, 10_000);
    }

    #[test]
    fn bounded() {
        let mut s = scheduler();
        for slot in 0..MAX_BUDGETS as u32 {
            admitted(&mut s, vm(1, 0), slot + 20);
        }
        let full = SchedulerResponse::Refused(Refusal::NoMemory);
        assert_eq!(s.request(vm(1, 0), Some(999)), full);
    }
}
