//! Long operations in steps, among others, ended at any moment; and everything comes back.

use super::*;
use crate::arch::paging::{Access, Entry, Table, size};
use crate::mem;
use crate::object::guest_space::Way;
use crate::object::step::{self, Step};
use crate::object::{GuestSpace, Mapping, Vcpu};
use crate::tree::{Branches, Keyed, Tree};
use ipc_schema::abi::{Kind, op, rights};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;

const RW: u64 = ((rights::READ | rights::WRITE) as u64) << 32;
/// Physical memory that is mapped but never touched.
const FAR: u64 = 1 << 40;

/// Steps as small as they can be, until this goes.
pub struct Small;
impl Small {
    pub fn new() -> Self {
        step::tests::set_size(1);
        Self
    }
}
impl Drop for Small {
    fn drop(&mut self) {
        step::tests::reset();
    }
}

/// Tables and entries of a page table, each table's number of entries checked.
fn audit(root: u64, top: usize) -> (u64, u64) {
    fn down(phys: u64, level: u32, top: usize) -> (u64, u64, u64) {
        // SAFETY: a table of a live page table in the test's memory.
        let page = unsafe { mem::page(phys & 0x000f_ffff_ffff_f000) };
        let (mut tables, mut leaves, mut present) = (1, 0, 0);
        for e in page.0[..top].iter().map(Cell::get).filter(|e| e & 1 != 0) {
            present += 1;
            if level == 1 || e & Entry::LARGE.bits() != 0 {
                leaves += 1;
            } else {
                let (t, l, n) = down(e, level - 1, 512);
                assert_eq!(e >> 52 & 0x3ff, n, "the number of entries is wrong");
                assert!(n > 0, "an empty table stays");
                tables += t;
                leaves += l;
            }
        }
        (tables, leaves, present)
    }
    let (tables, leaves, _) = down(root, 4, top);
    (tables, leaves)
}

/// All members of a tree of mappings.
fn members(tree: &Tree<Mapping>) -> Vec<Obj<Mapping>> {
    let mut all: Vec<_> = tree.any().into_iter().collect();
    let mut i = 0;
    while i < all.len() {
        let below = all[i].get().branches();
        all.extend(below.iter().filter_map(Cell::get));
        i += 1;
    }
    all
}

/// A table maps just what its mappings say, and `others` pages; answers its number of tables.
fn agrees(table: &Table, mappings: &Tree<Mapping>, others: u64) -> u64 {
    let (tables, leaves) = audit(table.root, 256);
    let mut expected = others;
    for m in members(mappings) {
        let (range, phys, _) = m.get().extent();
        let mut va = range.start;
        while va < range.end {
            let (to, _) = table.translate(va).expect("mapped");
            assert_eq!(to, phys + (va - range.start));
            expected += 1;
            va += table.leaf(va).expect("mapped").1;
        }
    }
    assert_eq!(leaves, expected);
    tables
}

#[test]
fn tables_go_with_their_last_entry() {
    let m = Machine::new();
    let t = m.thread(5);
    let s = Space::create(m.pool, 8).unwrap();
    let at = m.name(s);
    let (_, slot) = m.memory(FAR, 4 << 30);
    let map = |va, len| m.operate(t, at, op::space::MAP, [va, slot | RW, 0, len]);
    let unmap = |va| m.operate(t, at, op::space::UNMAP, [va, 0, 0, 0]);
    assert_eq!(
        (map(0x7000_0000_0000, 4096), unmap(0x7000_0000_0000)),
        (Status::Ok, Status::Ok)
    );
    let before = m.pool.stat();
    for (va, len) in [
        (0x7000_0000_0000, 4096),
        (0x7000_0000_0000 - 4096, 8192),
        (0x40_0000_0000 - 4096, 1 << 30),
        (0x80_0000_0000, 4 << 30),
        (size(2) * 7, size(2) + 4096),
        (size(3) * 9 - size(2), size(3) + size(2) + 4096),
    ] {
        assert_eq!(map(va, len), Status::Ok);
        agrees(&s.table, &s.mappings, 1);
        assert!(m.pool.stat().0 < before.0);
        assert_eq!(map(va, 4096), Status::Overlap);
        assert_eq!(unmap(va), Status::Ok);
        assert_eq!(m.pool.stat(), before, "{va:#x} {len:#x}");
    }
}

#[test]
fn what_cannot_be_made_to_its_end_leaves_nothing() {
    let m = Machine::new();
    let t = m.thread(5);
    // SAFETY: memory of the test that nothing else uses.
    let cap = unsafe { Pool::create(16 << 20, 40, Cap::EMPTY, 0) }.unwrap();
    let (pool, pool_slot) = (Pool::from_cap(&cap, 0).unwrap(), m.put(cap));
    let s = Space::create(pool, 8).unwrap();
    let at = m.name(s);
    let (memory, slot) = m.memory(FAR, 4 << 30);
    let map = |va, len| m.operate(t, at, op::space::MAP, [va, slot | RW, 0x1000, len]);
    // The first one takes the page for its record's slot.
    assert_eq!(map(0x1000_0000, 4096), Status::Ok);
    let before = pool.stat();
    // Small pages: far more tables than there is memory for.
    assert_eq!(map(0x40_0000_0000, 4 << 29), Status::NoMemory);
    assert_eq!(pool.stat(), before);
    assert!(s.table.translate(0x40_0000_0000).is_none());
    // In the way is a page further on.
    assert_eq!(map(0x1000_0000 - (20 << 20), 32 << 20), Status::Overlap);
    assert_eq!(pool.stat(), before);
    agrees(&s.table, &s.mappings, 1);
    // Objects that need several pages, with ever fewer of them left.
    let own = m.name(m.space);
    let create = |kind: Kind, high: u64, w2, w3| {
        let w0 = kind as u64 | high << 32;
        m.operate(t, pool_slot, op::pool::CREATE, [w0, 200, w2, w3])
    };
    // Each kind once, for its slab.
    let g = GuestSpace::create(pool).unwrap();
    let guest = m.name(g);
    let things = [
        (Kind::Space, 0, 256, 0),
        (Kind::Thread, 0, own, 0x7700_0000),
        (Kind::Thread, 0, at, 0x7700_0000),
        (Kind::GuestSpace, 0, 0, 0),
        (Kind::Vcpu, guest, at, 0x7700_0000),
    ];
    let space = m.space.get();
    for (kind, high, w2, w3) in things {
        assert_eq!(create(kind, high, w2, w3), Status::Ok, "{kind:?}");
        let made = m.operate(t, own, op::space::DESTROY_OBJECT, [200, 0, 0, 0]);
        assert_eq!(made, Status::Ok);
        assert!(space.slot(200).unwrap().get().is_dead());
    }
    let mut taken = Vec::new();
    let mut refused = 0;
    while let Ok(p) = pool.take_page() {
        taken.push(p);
        for (kind, high, w2, w3) in things {
            let before = pool.stat();
            match create(kind, high, w2, w3) {
                Status::Ok => {
                    let gone = m.operate(t, own, op::space::DESTROY_OBJECT, [200, 0, 0, 0]);
                    assert_eq!(gone, Status::Ok);
                }
                s => {
                    assert_eq!(s, Status::NoMemory);
                    refused += 1;
                }
            }
            assert_eq!(pool.stat(), before, "{kind:?}");
        }
    }
    assert!(refused > 10);
    taken.iter().for_each(|&p| pool.give_page(p));
    assert_eq!(m.operate(t, slot, op::memory::REVOKE, [0; 4]), Status::Ok);
    assert!(memory.get().mappings.is_empty());
    for o in [at, guest] {
        let gone = m.operate(t, own, op::space::DESTROY_OBJECT, [o, 0, 0, 0]);
        assert_eq!(gone, Status::Ok);
    }
    assert_eq!(pool.stat().0 + pool.overhead(), 40);
}

#[test]
fn a_dying_pool_takes_nothing_new_from_any_side() {
    let m = Machine::new();
    let _small = Small::new();
    let t = m.thread(5);
    let (_, backing) = m.memory(16 << 20, 64 * 4096);
    assert_eq!(
        m.operate(t, backing, op::memory::MAKE_POOL, [100, 0, 0, 0]),
        Status::Ok
    );
    let create = |kind: Kind, high: u64, dest, w2, w3| {
        m.operate(
            t,
            100,
            op::pool::CREATE,
            [kind as u64 | high << 32, dest, w2, w3],
        )
    };
    let own = m.name(m.space);
    // The Endpoints' slab comes first: the others are still there after some steps.
    for i in 0..8 {
        assert_eq!(create(Kind::Endpoint, 0, 110 + i, 0, 0), Status::Ok);
    }
    assert_eq!(create(Kind::Space, 0, 101, 8, 0), Status::Ok);
    assert_eq!(create(Kind::GuestSpace, 0, 102, 0, 0), Status::Ok);
    let (_, far) = m.memory(FAR, 1 << 30);
    m.sys(t, 0, 100, Tag::new(op::pool::DESTROY).0, [0; 4], NEVER);
    assert_eq!(t.resume.get(), Resume::Interrupt, "the first step");
    assert!(!m.space.get().slot(101).unwrap().get().is_dead());
    let u = m.thread(5);
    let main_pool = m.put(m.pool_cap);
    let tries = [
        (100, op::pool::STAT, [0; 4]),
        (100, op::pool::CREATE, [Kind::Endpoint as u64, 120, 0, 0]),
        (101, op::space::MAP, [0x1000_0000, far | RW, 0, 4096]),
        (102, op::guest_space::MAP, [0, far | RW, 0, 4096]),
        (
            main_pool,
            op::pool::CREATE,
            [Kind::Thread as u64, 120, 101, 0x1000_0000],
        ),
        (far, op::memory::DIVIDE, [0, 4096, 120, 100]),
    ];
    for (cap, what, words) in tries {
        assert_eq!(m.operate(u, cap, what, words), Status::Busy, "{cap} {what}");
    }
    assert_eq!(m.operate(t, 100, op::pool::DESTROY, [0; 4]), Status::Ok);
    assert_eq!(
        m.operate(t, 100, op::pool::STAT, [0; 4]),
        Status::InvalidCap
    );
    assert_eq!(
        m.operate(t, backing, op::memory::MAKE_POOL, [100, 0, 0, 0]),
        Status::Ok
    );
    let _ = own;
}

#[test]
fn a_pool_takes_those_made_of_its_memory_along() {
    let m = Machine::new();
    let _small = Small::new();
    let t = m.thread(5);
    let main_pool = m.put(m.pool_cap);
    // Each Pool holds the record of the Memory that the next one's is a part of.
    let (_, slot) = m.memory(16 << 20, 64 * 4096);
    let make = |memory, dest| {
        let made = m.operate(t, memory, op::memory::MAKE_POOL, [dest, 0, 0, 0]);
        assert_eq!(made, Status::Ok);
    };
    make(slot, 100);
    for i in 0..20 {
        let (_, ram) = m.memory((17 << 20) + (i << 18), 64 * 4096);
        let divide = |of, dest, len: u64, payer| {
            let words = [0, len * 4096, dest, payer];
            assert_eq!(m.operate(t, of, op::memory::DIVIDE, words), Status::Ok);
        };
        divide(ram, 140 + 3 * i, 32, 100 + i);
        divide(140 + 3 * i, 141 + 3 * i, 16, main_pool);
        make(141 + 3 * i, 101 + i);
    }
    let dead = |slot| m.space.get().slot(slot).unwrap().get().is_dead();
    // The fifth from outside, with all inside it; others go on.
    assert_eq!(m.operate(t, 104, op::pool::DESTROY, [0; 4]), Status::Ok);
    assert!((104..121).all(dead) && !(100..104).any(dead));
    crate::checker::check().unwrap();
    // And from outside, while somebody destroys one on the way.
    m.sys(t, 0, 100, Tag::new(op::pool::DESTROY).0, [0; 4], NEVER);
    let u = m.thread(5);
    assert_eq!(m.operate(u, 102, op::pool::DESTROY, [0; 4]), Status::Ok);
    make(slot_of_free(&m), 125);
    assert_eq!(m.operate(t, 100, op::pool::DESTROY, [0; 4]), Status::Ok);
    assert!((100..121).all(dead) && !dead(125));
    crate::checker::check().unwrap();
}

/// Memory that nothing else uses, for a Pool that takes the lowest free number.
fn slot_of_free(m: &Machine) -> u64 {
    m.memory(28 << 20, 64 * 4096).1
}

#[test]
fn a_deep_or_wide_tree_of_parts_goes_step_by_step() {
    let m = Machine::new();
    let t = m.thread(5);
    let own = m.name(m.space);
    let pool = m.put(m.pool_cap);
    let (_, slot) = m.memory(FAR, 1 << 30);
    let before = m.pool.stat().0 + m.pool.overhead();
    let mut at = slot;
    for depth in 1..40 {
        let made = m.operate(
            t,
            at,
            op::memory::DIVIDE,
            [0, 1 << 20, 100 + depth % 2, pool],
        );
        if depth == 32 {
            assert_eq!(made, Status::OutOfRange);
            break;
        }
        assert_eq!(made, Status::Ok);
        at = 100 + depth % 2;
        m.space
            .get()
            .slot(100 + (depth + 1) % 2)
            .unwrap()
            .set(Cap::EMPTY);
    }
    for i in 1..300 {
        let made = m.operate(t, slot, op::memory::DIVIDE, [i << 20, 1 << 20, 110, pool]);
        assert_eq!(made, Status::Ok);
        let map = [0x1_0000_0000 + (i << 20), 110 | RW, 0, 4096];
        assert_eq!(m.operate(t, own, op::space::MAP, map), Status::Ok);
        m.space.get().slot(110).unwrap().set(Cap::EMPTY);
    }
    crate::checker::check().unwrap();
    let _small = Small::new();
    assert_eq!(m.operate(t, slot, op::memory::REVOKE, [0; 4]), Status::Ok);
    crate::checker::check().unwrap();
    assert!(m.space.mappings.is_empty());
    assert_eq!(
        m.operate(t, own, op::space::DESTROY_OBJECT, [slot, 0, 0, 0]),
        Status::Ok
    );
    assert_eq!(m.pool.stat().0 + m.pool.overhead(), before);
}

#[test]
fn a_space_outlived_by_its_vcpus_pages_goes_whole() {
    let m = Machine::new();
    let t = m.thread(5);
    let own = m.name(m.space);
    let free = || m.pool.stat().0 + m.pool.overhead();
    let begin = free();
    let g = GuestSpace::create(m.pool).unwrap();
    let s = Space::create(m.pool, 8).unwrap();
    for i in 0..6 {
        Vcpu::create(m.pool, g, s, 0x10_0000_0000 + (i << 34)).unwrap();
    }
    let _small = Small::new();
    for o in [m.name(s), m.name(g)] {
        let gone = m.operate(t, own, op::space::DESTROY_OBJECT, [o, 0, 0, 0]);
        assert_eq!(gone, Status::Ok);
    }
    assert_eq!(free(), begin);
}

#[test]
fn a_thread_can_end_its_own_space() {
    let m = Machine::new();
    let _small = Small::new();
    let free = || m.pool.stat().0 + m.pool.overhead();
    let begin = free();
    let s = Space::create(m.pool, 8).unwrap();
    s.get().slot(1).unwrap().set(Cap::new(s.get().header()));
    let (_, far) = m.memory(FAR, 1 << 30);
    let other = m.thread(3);
    let at = m.name(s);
    for i in 0..5 {
        let map = [0x1000_0000 + (i << 32), far | RW, 0, 64 << 20];
        assert_eq!(m.operate(other, at, op::space::MAP, map), Status::Ok);
    }
    Thread::create(m.pool, s, 0x7000_0000, m.cpu).unwrap();
    let t = m.thread_in(s, 9);
    let budget = t.own_budget.get().unwrap();
    let mut steps = 0;
    while s.get().threads.first().is_some() {
        m.sys(
            t,
            0,
            1,
            Tag::new(op::space::DESTROY_OBJECT).0,
            [1, 0, 0, 0],
            NEVER,
        );
        steps += 1;
        assert!(steps < 10_000);
        if m.space.get().slot(at).unwrap().get().is_dead() {
            break;
        }
    }
    assert!(steps > 5);
    budget.get().destroy();
    assert!(m.space.get().slot(at).unwrap().get().is_dead());
    // The thread `other`, its Budget and the Memory are still there.
    assert_eq!(free() + 1, begin, "but for the UTCB of `other`");
}

#[test]
fn routes_come_and_go_wherever_there_is_room() {
    let m = Machine::new();
    let begin = m.pool.stat().0 + m.pool.overhead();
    let g = GuestSpace::create(m.pool).unwrap();
    let cap = Cap::new(g.get().header());
    for round in 0..100_u64 {
        let first = (round * 700) & 0xf000;
        let add = |first, count| g.get().add_route(first, count, Way::Doorbell(None), cap, 0);
        assert_eq!(add(first, 0x400), Ok(()));
        assert_eq!(add(first + 0x3ff, 2), Err(Status::Overlap));
        assert_eq!(g.get().remove_route(first), Ok(()));
        assert_eq!(add(first + 0xff, 2), Ok(()));
        assert_eq!(add(first + 0xfe, 1), Ok(()));
        assert_eq!(g.get().remove_route(first + 0xff), Ok(()));
        assert_eq!(g.get().remove_route(first + 0xfe), Ok(()));
    }
    g.get().destroy(&Step::endless()).unwrap();
    assert_eq!(m.pool.stat().0 + m.pool.overhead(), begin);
}

struct Node<const ORDERED: bool> {
    key: u64,
    branches: Branches<Self>,
}
impl<const ORDERED: bool> Keyed for Node<ORDERED> {
    fn key(&self) -> u64 {
        self.key
    }
    fn bits(key: u64) -> u64 {
        if ORDERED {
            key << 24
        } else {
            key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }
    }
    fn branches(&self) -> &Branches<Self> {
        &self.branches
    }
}

fn tree_against_map<const ORDERED: bool>(steps: &[(bool, u64)]) {
    let tree = Tree::<Node<ORDERED>>::default();
    let mut map = BTreeMap::new();
    for &(insert, key) in steps {
        if insert && !map.contains_key(&key) {
            let node = Box::new(Node {
                key,
                branches: Default::default(),
            });
            tree.insert(Obj::of(&*node));
            map.insert(key, node);
        } else if let Some(node) = map.remove(&key) {
            tree.remove(Obj::of(&*node));
        }
        assert_eq!(tree.is_empty(), map.is_empty());
        for probe in [key, key ^ 1, key + 1, key / 2, 0, (1 << 40) - 1] {
            assert_eq!(
                tree.find(probe).map(|n| n.key),
                map.get(&probe).map(|n| n.key)
            );
            if ORDERED {
                let below = map.range(..=probe).next_back().map(|(k, _)| *k);
                assert_eq!(tree.at_most(probe).map(|n| n.key), below);
            }
        }
    }
}

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
    fn trees_find_what_is_in_them(steps in proptest::collection::vec((any::<bool>(), prop_oneof![0..64_u64, 0..1_u64 << 40]), 1..200)) {
        tree_against_map::<false>(&steps);
        tree_against_map::<true>(&steps);
    }

    #[test]
    fn pages_are_nobody_elses_and_come_back(steps in proptest::collection::vec((1..9_usize, any::<bool>(), any::<u16>()), 1..200), pages in 9..300_u64) {
        let _m = Machine::new();
        // SAFETY: memory of the test that nothing else uses.
        let cap = unsafe { Pool::create(16 << 20, pages, Cap::EMPTY, 0) }.unwrap();
        let pool = Pool::from_cap(&cap, 0).unwrap();
        let begin = pool.stat();
        let mut taken = std::collections::BTreeSet::new();
        for (n, give, which) in steps {
            if give && !taken.is_empty() {
                let at = *taken.iter().nth(usize::from(which) % taken.len()).unwrap();
                taken.remove(&at);
                pool.give_page(at);
            } else {
                let mut some = vec![0; n];
                let free = pool.stat().0;
                assert_eq!(pool.take_pages(&mut some).is_ok(), free >= n as u64, "all or none");
                for at in some.into_iter().filter(|_| free >= n as u64) {
                    assert!(taken.insert(at), "taken twice");
                    assert!(at >= 16 << 20 && at < (16 << 20) + pages * 4096);
                    // SAFETY: the page just taken.
                    let page = unsafe { mem::page(at) };
                    assert!(page.0.iter().all(|w| w.replace(!0) == 0));
                }
            }
            assert_eq!(pool.stat().0, begin.0 - taken.len() as u64);
        }
        taken.iter().for_each(|&at| pool.give_page(at));
        assert_eq!(pool.stat(), begin);
    }

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

#[test]
fn the_access_of_a_mapping_is_what_was_asked_for() {
    let m = Machine::new();
    let s = Space::create(m.pool, 8).unwrap();
    let read = Access::new(&crate::arch::paging::HOST, rights::READ, true);
    s.table.map_page(m.pool, 0x1000_0000, FAR, read).unwrap();
    assert_eq!(
        s.table.map_page(m.pool, 0x1000_0000, FAR, read),
        Err(Status::Overlap)
    );
    let (phys, e) = s.table.translate(0x1000_0123).unwrap();
    assert_eq!(phys, FAR + 0x123);
    assert!(e.contains(Entry::UNCACHED | Entry::NO_EXECUTE) && !e.contains(Entry::WRITE));
    s.get().destroy(&Step::endless()).unwrap();
}
