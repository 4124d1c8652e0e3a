//! Long operations of three workers in steps, begun at any moment of the others.

use super::lifetimes::{RW, agrees};
use super::*;
use crate::object::step;
use crate::object::{GuestSpace, Vcpu};
use ipc_schema::abi::{Kind, op};
use proptest::prelude::*;

/// One thing that a worker begins, if it is not in the middle of another.
#[derive(Debug, Clone)]
enum Act {
    Map {
        guest: bool,
        memory: u64,
        at: u64,
        offset: u64,
        pages: u64,
    },
    Unmap {
        guest: bool,
        at: u64,
    },
    Revoke(u64),
    Divide {
        of: u64,
        dest: u64,
        offset: u64,
        pages: u64,
    },
    Destroy(u64),
    MakePool(u64),
    DestroyPool,
    Create(u64),
}

/// Slots: 100 to 103 Memory, 104 Space, 105 GuestSpace, 106 Pool, 107 a Thread of the Space, 108 a Vcpu.
const SPACE: u64 = 104;
const GUEST: u64 = 105;
const POOL: u64 = 106;

fn act() -> impl Strategy<Value = Act> {
    let memory = 100..104_u64;
    // Pages, at the edges of large ones.
    let place = prop_oneof![0..4_u64, 509..516_u64, 1022..1028_u64];
    let pages = prop_oneof![1..4_u64, 510..514_u64, Just(1024), Just(1540)];
    prop_oneof![
        8 => (any::<bool>(), memory.clone(), place.clone(), place.clone(), pages.clone())
            .prop_map(|(guest, memory, at, offset, pages)| Act::Map { guest, memory, at, offset, pages }),
        3 => (any::<bool>(), place.clone()).prop_map(|(guest, at)| Act::Unmap { guest, at }),
        1 => memory.clone().prop_map(Act::Revoke),
        3 => (memory.clone(), memory.clone(), place, pages)
            .prop_map(|(of, dest, offset, pages)| Act::Divide { of, dest, offset, pages }),
        1 => (100..109_u64).prop_map(Act::Destroy),
        1 => memory.prop_map(Act::MakePool),
        1 => Just(Act::DestroyPool),
        4 => (104..109_u64).prop_map(Act::Create),
    ]
}

struct World {
    m: Machine,
    #[allow(clippy::type_complexity, reason = "what each is about to do")]
    workers: Vec<(Obj<Thread>, Option<(u64, u64, [u64; 4])>)>,
    own: u64,
    main_pool: u64,
}

impl World {
    fn new() -> Self {
        let m = Machine::new();
        let workers = (0..3).map(|_| (m.thread(5), None)).collect();
        let (own, main_pool) = (m.name(m.space), m.put(m.pool_cap));
        // In the test's memory, since Pools are made of it.
        let (_, slot) = m.memory(16 << 20, 8 << 20);
        let cap = m.space.get().slot(slot).unwrap().get();
        m.space.get().slot(100).unwrap().set(cap);
        Self {
            m,
            workers,
            own,
            main_pool,
        }
    }

    fn alive(&self, slot: u64) -> bool {
        !self.m.space.get().slot(slot).unwrap().get().is_dead()
    }

    /// System call of an act: capability, operation, words.
    fn call(&self, act: &Act) -> (u64, u64, [u64; 4]) {
        let target = |guest| if guest { GUEST } else { SPACE };
        let base = |guest: bool, at: u64| {
            if guest {
                at << 12
            } else {
                0x4000_0000 + (at << 12)
            }
        };
        match *act {
            Act::Map {
                guest,
                memory,
                at,
                offset,
                pages,
            } => {
                let words = [base(guest, at), memory | RW, offset << 12, pages << 12];
                (target(guest), op::space::MAP, words)
            }
            Act::Unmap { guest, at } => {
                (target(guest), op::space::UNMAP, [base(guest, at), 0, 0, 0])
            }
            Act::Revoke(m) => (m, op::memory::REVOKE, [0; 4]),
            Act::Divide {
                of,
                dest,
                offset,
                pages,
            } => (
                of,
                op::memory::DIVIDE,
                [offset << 12, pages << 12, dest, self.main_pool],
            ),
            Act::Destroy(slot) => (self.own, op::space::DESTROY_OBJECT, [slot, 0, 0, 0]),
            Act::MakePool(m) => (m, op::memory::MAKE_POOL, [POOL, 0, 0, 0]),
            Act::DestroyPool => (POOL, op::pool::DESTROY, [0; 4]),
            Act::Create(dest) => {
                let pool = if self.alive(POOL) {
                    POOL
                } else {
                    self.main_pool
                };
                let words = match dest {
                    SPACE => [Kind::Space as u64, dest, 16, 0],
                    107 => [Kind::Thread as u64, dest, SPACE, 0x4000_0000 + (514 << 12)],
                    108 => [
                        Kind::Vcpu as u64 | GUEST << 32,
                        dest,
                        SPACE,
                        0x4000_0000 + (1 << 12),
                    ],
                    _ => [Kind::GuestSpace as u64, GUEST, 0, 0],
                };
                (pool, op::pool::CREATE, words)
            }
        }
    }

    /// One step of a worker; whether it is in the middle of something now.
    fn step(&mut self, worker: usize, act: &Act) -> bool {
        let (t, going) = self.workers[worker];
        let (cap, what, words) = going.unwrap_or_else(|| self.call(act));
        self.m.sys(t, 0, cap, Tag::new(what).0, words, NEVER);
        let again = t.resume.get() == Resume::Interrupt;
        if again {
            assert_eq!((t.regs.rip.get(), t.get().get(reg::RAX)), (layout::STUB, 0));
        } else {
            assert_ne!(status(t), Status::Again);
        }
        self.workers[worker].1 = again.then_some((cap, what, words));
        again
    }

    fn check(&self) {
        crate::checker::check().unwrap();
        let object = |slot: u64| self.m.space.get().slot(slot).unwrap().get();
        if let Ok(s) = object(SPACE).typed::<Space>(0)
            && s.get().alive().is_ok()
        {
            let threads = u64::from(s.threads.first().is_some());
            let vcpu = object(108).typed::<Vcpu>(0).is_ok_and(|v| v.is_in(s));
            agrees(&s.table, &s.mappings, 1 + threads + u64::from(vcpu));
        }
        if let Ok(g) = object(GUEST).typed::<GuestSpace>(0)
            && g.get().alive().is_ok()
        {
            agrees(&g.table, &g.mappings, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_of_long_operations_interleave(
        steps in proptest::collection::vec((0..3_usize, act()), 1..250),
        size in prop_oneof![Just(1_u32), 1..2500_u32],
    ) {
        let mut w = World::new();
        let begin = w.m.pool.stat().0 + w.m.pool.overhead();
        step::tests::set_size(size);
        for (worker, act) in steps {
            w.step(worker, &act);
            w.check();
        }
        // Everybody comes to an end.
        for worker in 0..3 {
            let mut n = 0;
            while w.workers[worker].1.is_some() && w.step(worker, &Act::DestroyPool) {
                n += 1;
                assert!(n < 100_000, "it does not end");
                if n % 64 == 0 {
                    w.check();
                }
            }
        }
        // And everything is back. The top Memory is not taken from where its slot leads: it may have been destroyed.
        let t = w.workers[0].0;
        if w.alive(POOL) {
            assert_eq!(w.m.operate(t, POOL, op::pool::DESTROY, [0; 4]), Status::Ok);
        }
        for slot in [108, 107, GUEST, SPACE, 103, 102, 101, 100] {
            if w.alive(slot) {
                assert_eq!(w.m.operate(t, w.own, op::space::DESTROY_OBJECT, [slot, 0, 0, 0]), Status::Ok);
            }
        }
        step::tests::reset();
        assert_eq!(w.m.pool.stat().0 + w.m.pool.overhead(), begin);
    }
}
