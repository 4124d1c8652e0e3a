//! The server between root and a kernel that is played by the tests.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
struct Fake {
    set: BTreeMap<Slot, Setting>,
    cpu: BTreeMap<Slot, u32>,
    busy: BTreeSet<Slot>,
    processors: Vec<(u32, Slot)>,
    absent: Vec<u32>,
    dead: BTreeSet<Slot>,
    forgotten: Vec<Slot>,
    configured: usize,
    watched: BTreeMap<Slot, u64>,
    exhausted: Vec<u64>,
}

impl Kernel for Fake {
    fn configure(&mut self, budget: Slot, cpu: u32, setting: Setting) -> Outcome {
        self.configured += 1;
        if !self.alive(budget) {
            return Outcome::Refused;
        }
        if self.busy.contains(&budget) {
            return Outcome::Busy;
        }
        self.set.insert(budget, setting);
        self.cpu.insert(budget, cpu);
        Outcome::Done
    }
    fn processor(&mut self, number: u32, cpu: Slot) {
        self.processors.push((number, cpu));
    }
    fn watch(&mut self, budget: Slot, bits: u64) {
        assert!(self.watched.insert(budget, bits).is_none());
    }
    fn alive(&mut self, budget: Slot) -> bool {
        !self.dead.contains(&budget)
    }
    fn forget(&mut self, budget: Slot) {
        assert!(!self.forgotten.contains(&budget));
        self.forgotten.push(budget);
        self.set.remove(&budget);
    }
    fn log(&mut self, _: &str, what: Decision) {
        match what {
            Decision::NoSuchProcessor(cpu) => self.absent.push(cpu),
            Decision::Exhausted(periods) => self.exhausted.push(periods),
            _ => {}
        }
    }
}

fn vm(shares: u32, reservation: u32) -> SchedulerRequest {
    SchedulerRequest::Admit {
        name: "x".into(),
        class: Class::Vm,
        shares,
        reservation,
        limit: None,
        group: None,
    }
}

fn scheduler() -> Scheduler<Fake> {
    Scheduler::new(Fake::default())
}

fn admitted(s: &mut Scheduler<Fake>, request: SchedulerRequest, slot: Slot) -> u32 {
    match s.request(request, Some(slot)) {
        SchedulerResponse::Admitted { number, .. } => number,
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

/// A VM's VMM or, with another class, one of its devices.
fn of_group(id: u32, shares: u32, reservation: u32, cpu: Option<u32>) -> SchedulerRequest {
    let group = Group {
        id,
        shares,
        reservation,
        cpu,
    };
    match vm(shares, reservation) {
        SchedulerRequest::Admit {
            name,
            class,
            shares,
            reservation,
            limit,
            ..
        } => SchedulerRequest::Admit {
            name,
            class,
            shares,
            reservation,
            limit,
            group: Some(group),
        },
        other => other,
    }
}

fn device_of(id: u32, shares: u32, cpu: Option<u32>) -> SchedulerRequest {
    let mut request = of_group(id, shares, 0, cpu);
    if let SchedulerRequest::Admit { class, .. } = &mut request {
        *class = Class::Device;
    }
    request
}

fn with_processors(numbers: &[u32]) -> Scheduler<Fake> {
    let mut s = scheduler();
    for &number in numbers {
        let request = SchedulerRequest::Processor { number };
        assert_eq!(
            s.request(request, Some(100 + number)),
            SchedulerResponse::Done
        );
    }
    s
}

fn place(s: &mut Scheduler<Fake>, request: SchedulerRequest, slot: Slot) -> u32 {
    match s.request(request, Some(slot)) {
        SchedulerResponse::Admitted { cpu, .. } => {
            assert_eq!(s.kernel.cpu[&slot], cpu);
            cpu
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn groups_spread_and_stay_together() {
    let mut s = with_processors(&[2, 1]);
    assert_eq!(s.kernel.processors, [(2, 102), (1, 101)]);
    assert_eq!(place(&mut s, vm(1000, 0), 20), 0, "of no group");
    assert_eq!(place(&mut s, device_of(7, 100, None), 21), 0);
    assert_eq!(place(&mut s, of_group(7, 100, 0, None), 22), 0);
    assert_eq!(place(&mut s, device_of(8, 50, None), 23), 1);
    assert_eq!(place(&mut s, device_of(9, 50, None), 24), 2);
    assert_eq!(place(&mut s, of_group(8, 50, 0, None), 25), 1);
    // A device that is started again joins the others, whatever the loads are.
    assert_eq!(place(&mut s, device_of(10, 10, None), 26), 1);
    assert_eq!(place(&mut s, device_of(10, 10, None), 27), 1);
    assert_eq!(place(&mut s, of_group(9, 50, 0, None), 28), 2);
    // Turns are divided on each processor for itself.
    assert_eq!(s.kernel.set[&25].budget_us, 10_000);
    assert!(s.kernel.set[&20].budget_us > s.kernel.set[&22].budget_us);
}

#[test]
fn a_vm_that_is_gone_is_no_load() {
    let mut s = with_processors(&[1]);
    assert_eq!(place(&mut s, of_group(1, 100, 0, None), 20), 0);
    assert_eq!(place(&mut s, of_group(2, 100, 0, None), 21), 1);
    s.kernel.dead.insert(20);
    assert_eq!(place(&mut s, of_group(3, 100, 0, None), 22), 0);
}

#[test]
fn pins_and_their_failure() {
    let mut s = with_processors(&[1]);
    assert_eq!(place(&mut s, of_group(1, 1, 0, Some(1)), 20), 1);
    assert_eq!(place(&mut s, of_group(2, 1, 0, Some(5)), 21), 0);
    assert_eq!(s.kernel.absent, [5]);
    // Reservations are promised of each processor apart.
    assert_eq!(place(&mut s, of_group(3, 1, 90, Some(1)), 22), 1);
    assert_eq!(place(&mut s, of_group(4, 1, 90, None), 23), 0);
    let busy = SchedulerResponse::Refused(Refusal::Busy);
    assert_eq!(s.request(of_group(5, 1, 20, Some(1)), Some(24)), busy);
    assert_eq!(s.request(of_group(5, 1, 20, None), Some(25)), busy);
}

#[test]
fn a_processor_comes_once() {
    let mut s = with_processors(&[1]);
    let again = SchedulerRequest::Processor { number: 1 };
    let refused = SchedulerResponse::Refused;
    assert_eq!(s.request(again.clone(), Some(50)), refused(Refusal::Busy));
    assert_eq!(s.kernel.forgotten, [50]);
    assert_eq!(s.request(again, None), refused(Refusal::Malformed));
}

#[test]
fn what_is_in_a_call_waits_for_the_next_turn() {
    let mut s = with_processors(&[1]);
    s.kernel.busy.insert(20);
    let number = admitted(&mut s, of_group(1, 100, 0, Some(1)), 20);
    assert!(s.pending() && !s.kernel.set.contains_key(&20));
    let tried = s.kernel.configured;
    assert_eq!(tried, 1, "no loop");
    s.retry();
    assert!(s.pending());
    s.kernel.busy.clear();
    s.retry();
    assert!(!s.pending());
    assert_eq!((s.kernel.cpu[&20], s.kernel.configured), (1, 3));
    s.retry();
    assert_eq!(s.kernel.configured, 3, "nothing is left to do");
    s.request(SchedulerRequest::Release { number }, None);
    assert!(s.is_empty());
}

/// Only what has a limit can be exhausted, and is watched, once; its exhaustion is counted, and told now and then.
#[test]
fn exhaustion_is_heard_of() {
    let mut s = scheduler();
    let admit = |s: &mut Scheduler<Fake>, limit: Option<u32>, slot| {
        let mut request = vm(100, 0);
        if let SchedulerRequest::Admit { limit: l, .. } = &mut request {
            *l = limit;
        }
        assert!(matches!(
            s.request(request, Some(slot)),
            SchedulerResponse::Admitted { .. }
        ));
    };
    admit(&mut s, None, 30);
    assert!(s.kernel().watched.is_empty());
    admit(&mut s, Some(20), 31);
    admit(&mut s, Some(30), 32);
    let bits = s.kernel().watched.clone();
    assert_eq!(bits.keys().collect::<Vec<_>>(), [&31, &32]);
    assert_ne!(bits[&31], bits[&32]);
    for _ in 0..5 {
        s.exhausted(bits[&31]);
    }
    assert_eq!(s.kernel().exhausted, [1, 2, 4]);
    s.exhausted(bits[&32] | 1 << FORWARD);
    assert_eq!(s.kernel().exhausted, [1, 2, 4, 1]);
    s.exhausted(!(bits[&31] | bits[&32]));
    assert_eq!(s.kernel().exhausted.len(), 4);
    let all: BTreeSet<u64> = (0..63).map(bit).collect();
    assert!(all.len() == 63 && !all.contains(&(1 << FORWARD)));
}
