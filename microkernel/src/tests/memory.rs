//! Pools, capabilities that outlive their objects, Memory and page tables.

use super::*;
use crate::arch::paging::{Entry, size};
use crate::object::pool::Pool;
use crate::object::step::Step;
use crate::object::{GuestSpace, Vcpu};
use crate::virt::svm::control::FLUSH_OWN;
use ipc_schema::abi::{op, rights};

const RAM: u64 = 16 << 20;
const RW: u64 = (rights::READ | rights::WRITE) as u64;

#[test]
fn a_capability_dies_with_its_object_even_when_the_slot_is_used_again() {
    let m = Machine::new();
    let (a, slot) = m.notification();
    let old = m.space.get().slot(slot).unwrap().get();
    a.get().destroy();
    assert!(old.is_dead());
    let (b, _) = m.notification();
    assert!(a == b, "the same slot");
    assert!(old.is_dead() && !Cap::new(b.get().header()).is_dead());
}

#[test]
fn a_pool_is_made_used_destroyed_and_gives_its_memory_back() {
    let m = Machine::new();
    let t = m.thread(5);
    let (memory, slot) = m.memory(RAM, 64 * 4096);
    assert_eq!(
        m.operate(t, slot, op::memory::MAKE_POOL, [100, 0, 0, 0]),
        Status::Ok
    );
    assert_eq!(
        m.operate(t, slot, op::memory::MAKE_POOL, [101, 0, 0, 0]),
        Status::Busy
    );
    assert_eq!(
        memory.get().destroy(&Step::endless()),
        Err(Status::Busy),
        "not while the kernel uses it"
    );
    assert_eq!(
        m.operate(
            t,
            100,
            op::pool::CREATE,
            [ipc_schema::abi::Kind::Endpoint as u64, 102, 0, 0]
        ),
        Status::Ok
    );
    assert_eq!(
        m.operate(
            t,
            100,
            op::pool::CREATE,
            [ipc_schema::abi::Kind::Space as u64, 103, 64, 0]
        ),
        Status::Ok
    );
    let space = m.space.get();
    assert_eq!(
        m.operate(
            t,
            m.name(m.space),
            op::space::MAP,
            [0x1000_0000, slot | RW << 32, 0, 4096]
        ),
        Status::Busy
    );
    assert_eq!(m.operate(t, 100, op::pool::DESTROY, [0; 4]), Status::Ok);
    for s in 100..104 {
        assert!(space.slot(s).unwrap().get().is_dead());
    }
    assert_eq!(
        m.operate(t, slot, op::memory::MAKE_POOL, [100, 0, 0, 0]),
        Status::Ok,
        "again"
    );
}

#[test]
fn a_full_pool_says_so_and_takes_nothing() {
    let m = Machine::new();
    // SAFETY: memory of the test that nothing else uses.
    let cap = unsafe { Pool::create(RAM, 4, Cap::EMPTY, 0) }.unwrap();
    let pool = Pool::from_cap(&cap, 0).unwrap();
    let before = pool.stat();
    assert_eq!(before.0, 3);
    assert!(Space::create(pool, 1024).is_err());
    assert_eq!(pool.stat().0, 3, "nothing is lost on the way");
    let _ = &m;
}

#[test]
fn everything_made_and_destroyed_leaves_the_pool_as_it_was() {
    let m = Machine::new();
    let t = m.thread(5);
    let (memory, slot) = m.memory(RAM, 1 << 20);
    let own = m.name(m.space);
    let round = || {
        let s = Space::create(m.pool, 128).unwrap();
        let at = m.name(s);
        assert_eq!(
            m.operate(
                t,
                at,
                op::space::MAP,
                [0x40_0000, slot | RW << 32, 0, 1 << 20]
            ),
            Status::Ok
        );
        let u = Thread::create(m.pool, s, 0x5000_0000, m.cpu).unwrap();
        let _ = u;
        assert_eq!(
            m.operate(t, own, op::space::DESTROY_OBJECT, [at, 0, 0, 0]),
            Status::Ok
        );
        assert!(memory.get().mappings.is_empty());
        m.pool.stat()
    };
    let first = round();
    for _ in 0..50 {
        assert_eq!(round(), first);
    }
}

#[test]
fn maps_large_pages_where_aligned_and_revokes_them_everywhere() {
    let m = Machine::new();
    let t = m.thread(5);
    let (memory, slot) = m.memory(RAM, 6 << 20);
    let a = Space::create(m.pool, 8).unwrap();
    let at = m.name(a);
    let va = 0x4000_0000 - 4096;
    assert_eq!(
        m.operate(
            t,
            at,
            op::space::MAP,
            [va, slot | RW << 32, (2 << 20) - 4096, (2 << 20) + 8192]
        ),
        Status::Ok
    );
    let (phys, e) = a.table.translate(va + 4096 + 5).unwrap();
    assert_eq!(phys, RAM + (2 << 20) + 5);
    assert!(e.contains(Entry::LARGE | Entry::USER | Entry::WRITE | Entry::NO_EXECUTE));
    assert_eq!(a.table.translate(va).unwrap().0, RAM + (2 << 20) - 4096);
    assert_eq!(
        a.table.translate(va + (2 << 20) + 4096).unwrap().0,
        RAM + (4 << 20)
    );
    assert_eq!(
        m.operate(
            t,
            at,
            op::space::MAP,
            [va + (1 << 20), slot | RW << 32, 0, 4096]
        ),
        Status::Overlap
    );
    assert_eq!(m.operate(t, slot, op::memory::REVOKE, [0; 4]), Status::Ok);
    for off in [0, 4096, 1 << 20, (2 << 20) + 4096] {
        assert!(a.table.translate(va + off).is_none());
    }
    assert!(memory.get().mappings.is_empty() && a.mappings.is_empty());
    // Small pages where a large one was, and a large one where small ones were.
    assert_eq!(
        m.operate(t, at, op::space::MAP, [va + 4096, slot | RW << 32, 0, 8192]),
        Status::Ok
    );
    assert_eq!(
        m.operate(t, at, op::space::UNMAP, [va + 4096, 0, 0, 0]),
        Status::Ok
    );
    assert_eq!(
        m.operate(
            t,
            at,
            op::space::MAP,
            [0x4000_0000, slot | RW << 32, 0, 2 << 20]
        ),
        Status::Ok
    );
}

#[test]
fn maps_the_largest_pages_that_there_are() {
    let m = Machine::new();
    let t = m.thread(5);
    let (gib, mib2) = (size(3), size(2));
    // RAM that is not there: only its addresses are used.
    let phys = 64 * gib;
    let (_, slot) = m.memory(phys, 8 * gib);
    let guest = GuestSpace::create(m.pool).unwrap();
    let map = |at, va, off, len| m.operate(t, at, op::space::MAP, [va, slot | RW << 32, off, len]);
    for (at, table) in [
        (m.name(m.space), &m.space.table),
        (m.name(guest), &guest.table),
    ] {
        let sizes = |va: u64, len| {
            let mut at = va;
            let mut all = Vec::new();
            while at < va + len {
                let (_, size) = table.leaf(at).unwrap();
                if all.last().is_none_or(|&(s, _)| s != size) {
                    all.push((size, 0));
                }
                all.last_mut().unwrap().1 += 1;
                at += size;
            }
            all
        };
        let before = m.pool.stat();
        let va = 16 * gib - mib2 - 4096;
        let len = 2 * gib + 2 * (mib2 + 4096);
        let off = gib - mib2 - 4096;
        assert_eq!(map(at, va, off, len), Status::Ok);
        let all = [(4096, 1), (mib2, 1), (gib, 2), (mib2, 1), (4096, 1)];
        assert_eq!(sizes(va, len), all);
        for o in [0, 4096, mib2 + 4096, gib + 0x1234_5678, len - 1] {
            assert_eq!(table.translate(va + o).unwrap().0, phys + off + o);
        }
        // Nothing fits into one.
        for (o, l) in [(mib2 + 4096, 4096), (gib, mib2), (0x1000_0000, gib)] {
            assert_eq!(map(at, (va + o) & !(l - 1), 0, l), Status::Overlap);
        }
        assert_eq!(
            m.operate(t, at, op::space::UNMAP, [va, 0, 0, 0]),
            Status::Ok
        );
        assert!(
            [0, 4096, gib, 2 * gib]
                .iter()
                .all(|o| table.leaf(va + o).is_none())
        );
        assert_eq!(m.pool.stat(), before);
        // Not aligned to each other.
        assert_eq!(map(at, 16 * gib, mib2, gib), Status::Ok);
        assert_eq!(sizes(16 * gib, gib), [(mib2, 512)]);
        assert_eq!(m.operate(t, slot, op::memory::REVOKE, [0; 4]), Status::Ok);
        // A page where tables were; and where there are none of that size.
        assert_eq!(map(at, 16 * gib, 0, gib), Status::Ok);
        assert_eq!(sizes(16 * gib, gib), [(gib, 1)]);
        assert_eq!(m.operate(t, slot, op::memory::REVOKE, [0; 4]), Status::Ok);
        crate::arch::paging::PAGES_TO.set(2);
        assert_eq!(map(at, 16 * gib, 0, gib), Status::Ok);
        assert_eq!(sizes(16 * gib, gib), [(mib2, 512)]);
        assert_eq!(m.operate(t, slot, op::memory::REVOKE, [0; 4]), Status::Ok);
        crate::arch::paging::PAGES_TO.set(3);
        assert_eq!(m.pool.stat(), before);
    }
}

#[test]
fn each_wrong_argument_of_map_has_its_error() {
    let m = Machine::new();
    let t = m.thread(5);
    let (_, slot) = m.memory(RAM, 1 << 20);
    let own = m.name(m.space);
    let map = |at, r: u32, off, len| {
        m.operate(
            t,
            own,
            op::space::MAP,
            [at, slot | u64::from(r) << 32, off, len],
        )
    };
    assert_eq!(map(0x1001, 3, 0, 4096), Status::Misaligned);
    assert_eq!(map(0x1000, 3, 1, 4096), Status::Misaligned);
    assert_eq!(map(0x1000, 3, 0, 0), Status::OutOfRange);
    assert_eq!(map(0x1000, 3, 1 << 20, 4096), Status::OutOfRange);
    assert_eq!(map(0x1000, 3, !4095, 4096), Status::OutOfRange);
    assert_eq!(map(0x7fff_ffff_f000, 3, 0, 4096), Status::OutOfRange);
    assert_eq!(map(0xffff_8000_0000_0000, 3, 0, 4096), Status::OutOfRange);
    assert_eq!(map(0x1000, 0, 0, 4096), Status::InvalidArg);
    assert_eq!(map(0x1000, 2, 0, 4096), Status::InvalidArg);
    assert_eq!(map(0x1000, 64, 0, 4096), Status::InvalidArg);
    assert_eq!(
        map(0x1000, 7, 0, 4096),
        Status::InvalidArg,
        "writable and executable"
    );
    assert_eq!(
        m.operate(t, own, op::space::MAP, [0x1000, own | RW << 32, 0, 4096]),
        Status::WrongType
    );
    assert_eq!(map(0x1000, 3, 0, 4096), Status::Ok);
    assert_eq!(
        m.operate(t, own, op::space::UNMAP, [0x2000, 0, 0, 0]),
        Status::InvalidArg
    );
}

#[test]
fn parts_never_overlap_and_a_divided_memory_is_not_mapped() {
    let m = Machine::new();
    let t = m.thread(5);
    let (_, slot) = m.memory(RAM, 1 << 20);
    let pool = m.put(m.pool_cap);
    let own = m.name(m.space);
    let divide = |off, len, dest| m.operate(t, slot, op::memory::DIVIDE, [off, len, dest, pool]);
    assert_eq!(divide(0x4000, 0x4000, 150), Status::Ok);
    assert_eq!(divide(0x6000, 0x1000, 151), Status::Overlap);
    assert_eq!(divide(0x3000, 0x8000, 151), Status::Overlap);
    assert_eq!(divide(0x8000, 0x1000, 150), Status::Occupied);
    assert_eq!(divide(0x8000, 0x1000, 151), Status::Ok);
    assert_eq!(divide(0xff000, 0x2000, 152), Status::OutOfRange);
    assert_eq!(
        m.operate(t, own, op::space::MAP, [0x1000, slot | RW << 32, 0, 4096]),
        Status::Busy
    );
    assert_eq!(
        m.operate(t, own, op::space::MAP, [0x1000, 150 | RW << 32, 0, 4096]),
        Status::Ok
    );
    assert_eq!(
        m.operate(t, own, op::space::DESTROY_OBJECT, [slot, 0, 0, 0]),
        Status::Ok
    );
    assert!(
        m.space.get().slot(150).unwrap().get().is_dead(),
        "parts die with it"
    );
    assert!(m.space.table.translate(0x1000).is_none());
}

#[test]
fn a_mapping_taken_away_takes_a_new_identifier_only_where_one_cannot_be_flushed() {
    let m = Machine::new();
    m.cpu.asids.set(16);
    let (_, mem) = m.memory(RAM, 1 << 20);
    let space = GuestSpace::create(m.pool).unwrap();
    let (v, t) = (
        Vcpu::create(m.pool, space, m.space, 0x6000_0000).unwrap(),
        m.thread(5),
    );
    let (slot, at) = (m.name(v), m.name(space));
    v.get().adopt(t).unwrap();
    let run = || {
        m.sys(t, 4, slot, 0, [0; 4], NEVER);
        assert_eq!(v.flushes.get(), space.flushes.get(), "looked at");
        v.asid.get()
    };
    let remap = || {
        let map = [0x1000, mem | 3 << 32, 0, 4096];
        assert_eq!(m.operate(t, at, op::guest_space::MAP, map), Status::Ok);
        let gone = m.operate(t, at, op::guest_space::UNMAP, [0x1000, 0, 0, 0]);
        assert_eq!(gone, Status::Ok);
        run()
    };
    FLUSH_OWN.set(0);
    let first = run();
    assert_eq!((run(), remap()), (first, first + 1));
    FLUSH_OWN.set(3);
    assert_eq!((run(), remap()), (first + 1, first + 1));
    // Another round's identifier is another's.
    v.asid_round.set(0);
    assert_eq!(remap(), first + 2);
    FLUSH_OWN.set(0);
}
