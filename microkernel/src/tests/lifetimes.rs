//! Long operations in steps, among others, ended at any moment; and everything comes back.

use super::*;
use crate::arch::paging::{Access, Entry, Table, size};
use crate::mem;
use crate::object::guest_space::Way;
use crate::object::step::{self, Step};
use crate::object::{GuestSpace, Mapping, Vcpu};
use crate::tree::{Keyed, Tree};
use ipc_schema::abi::{Kind, op, rights};
use proptest::prelude::*;
use std::cell::Cell;

pub(super) const RW: u64 = ((rights::READ | rights::WRITE) as u64) << 32;
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
pub(super) fn agrees(table: &Table, mappings: &Tree<Mapping>, others: u64) -> u64 {
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

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
