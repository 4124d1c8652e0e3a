//! The checker finds nothing in a sound machine, and each kind of damage in one that was damaged.

use super::check;
use crate::arch::Cpu;
use crate::object::mapping::Request;
use crate::object::thread::State;
use crate::object::{Cap, Mapping, Object, Pool, Space, Vcpu, step::Step};
use crate::sync::Operation;
use crate::tests::Machine;
use ipc_schema::abi::Status;
use ipc_schema::abi::rights::{READ, WRITE};

fn what(_: &Machine) -> &'static str {
    match check() {
        Ok(_) => "",
        Err(f) => f.what,
    }
}

fn full() -> Machine {
    let m = Machine::new();
    let (_, e) = m.endpoint();
    let (n, _) = m.notification();
    let threads: Vec<_> = (0..4).map(|i| m.thread(2 + i)).collect();
    threads[0].bind(Some(n));
    m.receive(threads[0], e);
    m.call(threads[1], e, [1; 4]);
    m.call(threads[2], e, [2; 4]);
    let (mem, _) = m.memory(16 << 20, 8 << 20);
    let request = |at, offset, len| Request {
        memory: mem,
        at,
        offset,
        len,
        rights: READ | WRITE,
        by: threads[0],
    };
    let (step, op) = (Step::endless(), Operation::alone(Cpu::current()));
    let low = request(0x7000_0000, 0, 3 << 20);
    Mapping::create(&low, !0, &m.space, &step, &op).unwrap();
    let g = crate::object::GuestSpace::create(m.pool).unwrap();
    Mapping::create(&request(0, 4096, 4 << 20), !0, &g, &step, &op).unwrap();
    let v = Vcpu::create(m.pool, g, m.space, 0x6fff_f000).unwrap();
    v.adopt(threads[3]).unwrap();
    m
}

#[test]
fn a_sound_machine_is_sound() {
    let _m = full();
    let tally = check().unwrap();
    assert!(tally.objects.get() > 15);
    assert_eq!(tally.mappings[0].get(), 2);
    assert_eq!(tally.vcpus[0].get(), 1);
    assert_eq!(tally.callers[0].get(), 1);
}

#[test]
fn every_page_of_a_pool_is_accounted_for() {
    let m = full();
    // SAFETY: a range of the test's memory that nothing else uses.
    let cap = unsafe { Pool::create(28 << 20, 64, Cap::EMPTY, 0) }.unwrap();
    let pool = Pool::from_cap(&cap, 0).unwrap();
    let s = Space::create(pool, 200).unwrap();
    let t = crate::object::Thread::create(pool, s, 0x5000_0000, m.cpu).unwrap();
    assert_eq!(what(&m), "");
    pool.take_page().unwrap();
    assert_eq!(what(&m), "a page of a Pool is somebody's, exactly once");
    let _ = t;
}

/// Damage, one after the other, each in a machine of its own.
#[test]
fn damage_is_found() {
    #[allow(clippy::type_complexity, reason = "a table")]
    let damage: [(&str, fn(&Machine)); 11] = [
        ("a part that is not counted", |m| {
            let (mem, slot) = m.memory(24 << 20, 1 << 20);
            let part = mem.get().divide(0, 4096, m.pool).unwrap();
            let t = m.thread(5);
            let at = [0x6000_0000, m.name(part) | 3 << 32, 0, 4096];
            let own = m.name(m.space);
            assert_eq!(
                m.operate(t, own, ipc_schema::abi::op::space::MAP, at),
                Status::Ok
            );
            let _ = slot;
            part.get().mappings.pop_front();
        }),
        ("a table that counts wrong", |m| {
            // SAFETY: the root of a live Space.
            let root = unsafe { crate::mem::page(m.space.table.root) };
            root.0[0].set(root.0[0].get() + (1 << 52));
        }),
        ("what is queued are ready", |m| {
            let t = m.thread(5);
            t.budget.get().unwrap().queued.set(false);
        }),
        ("a ready thread", |m| {
            let t = m.thread(5);
            m.cpu.ready.remove(t.budget.get().unwrap());
        }),
        ("a stopped thread in a queue", |m| {
            let (_, e) = m.endpoint();
            let t = m.thread(5);
            m.receive(t, e);
            t.state.set(State::Stopped);
        }),
        ("a served thread that calls nobody", |m| {
            let (_, e) = m.endpoint();
            let (s, c) = (m.thread(5), m.thread(6));
            m.receive(s, e);
            m.call(c, e, [0; 4]);
            c.callee.set(None);
        }),
        ("a bound Notification of nobody", |m| {
            let (n, _) = m.notification();
            n.bound.set(Some(m.thread(5)));
        }),
        ("a freed thread that is referred to", |m| {
            let (n, t) = (m.notification().0, m.thread(5));
            t.get().destroy();
            n.waiter.set(Some(t));
        }),
        ("a Pool's page mapped", |m| {
            let (mem, _) = m.memory(1 << 20, 1 << 20);
            let r = Request {
                memory: mem,
                at: 0x6000_0000,
                offset: 0,
                len: 4096,
                rights: READ,
                by: m.thread(5),
            };
            Mapping::create(
                &r,
                !0,
                &m.space,
                &Step::endless(),
                &Operation::alone(Cpu::current()),
            )
            .unwrap();
        }),
        ("a page table entry of nobody's", |m| {
            let a = crate::arch::paging::Access::new(&crate::arch::paging::HOST, READ, false);
            let table = &m.space.table;
            table.map_page(m.pool, 0x6000_0000, 24 << 20, a).unwrap();
            // Pool 0's Spaces are boot's: this one is looked at as another's.
            let mapping = m.space.mappings.any().unwrap();
            mapping.get().destroy(&Step::endless()).unwrap();
            table.map_page(m.pool, 0x7000_0000, 24 << 20, a).unwrap();
            m.space.threads.first().unwrap().root.set(1);
        }),
        ("a header elsewhere", |m| {
            let t = m.thread(5);
            t.header().word.set(t.header().word.get() | 64 << 32);
        }),
    ];
    for (name, act) in damage {
        let m = full();
        act(&m);
        assert_ne!(what(&m), "", "not found: {name}");
    }
}
