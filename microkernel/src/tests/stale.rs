//! Nothing stale, on a processor that forgets nothing it is not told to ([`crate::checker::tlb`]), with either back end: pages come and go
//! and tables with them, vCPUs are made and ended and go from processor to processor, and there are few identifiers.

use super::smp::{start, thread_on};
use super::*;
use crate::mem::PAGE;
use crate::object::{GuestSpace, Vcpu};
use crate::virt::{svm, vmx};
use ipc_schema::abi::op;
use ipc_schema::abi::vm::{Groups, VcpuState};
use proptest::prelude::*;

/// RAM for guests: pages that take turns.
const RAM: u64 = 16 << 20;
const FRAMES: u64 = 4;
/// Where the state pages are.
const STATES: u64 = 0x6000_0000;
const CPUS: usize = 2;
const SPACES: usize = 2;
const VCPUS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// A page of a VM becomes another frame, or none.
    Map(usize, u64, u64, u32),
    Unmap(usize, u64),
    /// A vCPU runs on a processor; with a CR3 that its VMM gives it, perhaps.
    Run(usize, usize, Option<u64>),
    /// Another vCPU, or another VM, in the place of one.
    Vcpu(usize),
    Vm(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (space, vcpu) = (0..SPACES, 0..VCPUS);
    let rights = prop_oneof![Just(1), Just(3), Just(5)];
    prop_oneof![
        4 => (space.clone(), 0..3_u64, 0..FRAMES, rights).prop_map(|(s, at, f, r)| Step::Map(s, at, f, r)),
        4 => (space.clone(), 0..3_u64).prop_map(|(s, at)| Step::Unmap(s, at)),
        12 => (vcpu.clone(), 0..CPUS, prop::option::weighted(0.2, 0..3_u64)).prop_map(|(v, c, r)| Step::Run(v, c, r)),
        1 => vcpu.prop_map(Step::Vcpu),
        1 => space.prop_map(Step::Vm),
    ]
}

struct Lab {
    m: Machine,
    threads: Vec<Obj<Thread>>,
    spaces: Vec<(Obj<GuestSpace>, u64)>,
    /// Each with its slot; number `n` is of VM `n % SPACES`.
    vcpus: Vec<(Obj<Vcpu>, u64)>,
    ram: u64,
}

impl Lab {
    fn new(intel: bool, identifiers: u32) -> Self {
        let m = Machine::new();
        vmx::HERE.set(intel);
        if intel {
            let bitmap = m.pool.take_page().unwrap();
            // SAFETY: a page of its own.
            unsafe {
                vmx::control::init(
                    vmx::control::choose(&super::vmx::RICH).unwrap(),
                    [bitmap; 2],
                )
            };
            super::vmx::NEXT.set((12, None));
        }
        m.cpu.asids.set(identifiers);
        start(1).asids.set(identifiers);
        // Something is always there to run.
        thread_on(&m, 1, 0);
        let threads = (0..CPUS).map(|n| thread_on(&m, n, 5)).collect();
        let (_, ram) = m.memory(RAM, FRAMES * PAGE);
        let mut lab = Self {
            m,
            threads,
            spaces: Vec::new(),
            vcpus: Vec::new(),
            ram,
        };
        for n in 0..SPACES {
            lab.spaces.push(lab.space());
            lab.vcpus.push(lab.vcpu(n));
        }
        for n in SPACES..VCPUS {
            lab.vcpus.push(lab.vcpu(n));
        }
        lab
    }

    fn space(&self) -> (Obj<GuestSpace>, u64) {
        let s = GuestSpace::create(self.m.pool).unwrap();
        (s, self.m.name(s))
    }

    fn vcpu(&self, n: usize) -> (Obj<Vcpu>, u64) {
        Cpu::play(0);
        let (space, _) = self.spaces[n % SPACES];
        let at = STATES + n as u64 * PAGE;
        let v = Vcpu::create(self.m.pool, space, self.m.space, at).unwrap();
        (v, self.m.name(v))
    }

    /// An operation by the first thread.
    fn operate(&self, slot: u64, op: u64, words: [u64; 4]) {
        let s = self.m.operate(self.threads[0], slot, op, words);
        assert!(
            matches!(s, Status::Ok | Status::Overlap | Status::InvalidArg),
            "{s:?}"
        );
    }

    fn destroy(&self, slot: u64) {
        let own = self.m.name(self.m.space);
        self.operate(own, op::space::DESTROY_OBJECT, [slot, 0, 0, 0]);
    }

    fn run(&self, n: usize, cpu: usize, cr3: Option<u64>) {
        let ((v, slot), t) = (self.vcpus[n], self.threads[cpu]);
        if let Some(other) = v.runner.get().filter(|&r| r != t) {
            // It has run another meanwhile.
            v.runner.set(None);
            other.vcpu.set(None);
        }
        let mut dirty = 0;
        if let Some(cr3) = cr3 {
            // SAFETY: the state page, which nobody else has a reference to here.
            let s = unsafe { &mut *(v.state_virt as *mut VcpuState) };
            (s.cr0, s.cr3, s.cr4, s.efer) = (0x8000_0031, cr3 << 12, 0x20, 0x500);
            dirty = Groups::CR;
        }
        // Until its state is here and the thread its runner.
        for _ in 0..4 {
            let next = self.m.sys(t, 4, slot, dirty, [0; 4], NEVER);
            if t.resume.get() != Resume::Interrupt || t.regs.rip.get() != layout::STUB {
                assert!(next == t && status(t) == Status::Ok, "{:?}", status(t));
                return;
            }
        }
        panic!("the guest is not entered");
    }

    fn step(&mut self, s: Step) {
        match s {
            Step::Map(s, at, frame, rights) => {
                let what = self.ram | u64::from(rights) << 32;
                let words = [at * PAGE, what, frame * PAGE, PAGE];
                self.operate(self.spaces[s].1, op::guest_space::MAP, words);
            }
            Step::Unmap(s, at) => {
                self.operate(
                    self.spaces[s].1,
                    op::guest_space::UNMAP,
                    [at * PAGE, 0, 0, 0],
                );
            }
            Step::Run(v, cpu, cr3) => self.run(v, cpu, cr3),
            Step::Vcpu(n) => {
                self.destroy(self.vcpus[n].1);
                self.vcpus[n] = self.vcpu(n);
            }
            Step::Vm(n) => {
                self.destroy(self.spaces[n].1);
                self.spaces[n] = self.space();
                for v in (n..VCPUS).step_by(SPACES) {
                    self.vcpus[v] = self.vcpu(v);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_translation_outlives_what_it_was_made_from(
        intel in any::<bool>(), clean in any::<bool>(), own in any::<bool>(), identifiers in 2..7_u32, steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut lab = Lab::new(intel, identifiers);
        svm::newer::HAS.set(u32::from(clean) * svm::newer::feature::CLEAN);
        svm::control::FLUSH_OWN.set(3 * u64::from(own));
        steps.into_iter().for_each(|s| lab.step(s));
        svm::control::FLUSH_OWN.set(0);
        crate::checker::check().unwrap();
    }
}

/// A processor that refuses to enter may have flushed nothing: whoever gets an identifier next must not rely on it.
#[test]
fn a_refused_entry_is_no_flush() {
    let mut lab = Lab::new(false, 3);
    lab.step(Step::Map(0, 1, 0, 1));
    // All identifiers are in use.
    lab.run(0, 0, None);
    lab.run(1, 0, None);
    svm::check::REFUSES.set(true);
    lab.run(2, 0, None);
    svm::check::REFUSES.set(false);
    for n in [2, 3, 1, 0] {
        lab.run(n, 0, None);
    }
}
