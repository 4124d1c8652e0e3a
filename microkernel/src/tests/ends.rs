//! Ends that many hang on, in steps.

use super::lifetimes::Small;
use super::*;
use ipc_schema::abi::op;

/// What a step of the kernel's own size may let go on, wake or look at, at most.
const AT_ONCE: usize = 16;

fn destroy_step(m: &Machine, t: Obj<Thread>, own: u64, slot: u64) -> bool {
    let label = Tag::new(op::space::DESTROY_OBJECT).0;
    m.sys(t, 0, own, label, [slot, 0, 0, 0], NEVER);
    super::census::goes_on(t)
}

#[test]
fn an_endpoint_with_many_in_its_queue_goes_step_by_step() {
    for receivers in [false, true] {
        let m = Machine::new();
        let (boss, own) = (m.thread(9), m.name(m.space));
        let late = m.thread(8);
        let (_, ep) = m.endpoint();
        let (_, other) = m.endpoint();
        let many: Vec<_> = (0..100).map(|_| m.thread(5)).collect();
        for &t in &many {
            if receivers {
                m.receive(t, ep);
            } else {
                m.call(t, ep, [0; 4]);
            }
        }
        let waits = |t: &&Obj<Thread>| t.state.get() != State::Ready;
        assert_eq!(many.iter().filter(waits).count(), 100);
        let mut steps = 0;
        let mut left = 100;
        while destroy_step(&m, boss, own, ep) {
            steps += 1;
            let now = many.iter().filter(waits).count();
            assert!(left - now <= AT_ONCE, "{} at once", left - now);
            left = now;
            // Who comes meanwhile gets `Dead` too, and does not make it longer.
            m.receive(late, ep);
            assert_eq!(
                (late.state.get(), status(late)),
                (State::Ready, Status::Dead)
            );
            if !receivers {
                m.call(late, ep, [0; 4]);
                assert_eq!(
                    (late.state.get(), status(late)),
                    (State::Ready, Status::Dead)
                );
            }
            crate::checker::check().unwrap();
        }
        assert!(steps >= 100 / AT_ONCE, "{steps} steps");
        assert_eq!(status(boss), Status::Ok);
        assert!(
            many.iter()
                .all(|&t| t.state.get() == State::Ready && status(t) == Status::Dead)
        );
        m.call(late, ep, [0; 4]);
        assert_eq!(status(late), Status::InvalidCap);
        assert!(m.call(late, other, [0; 4]) != late, "others go on");
        crate::checker::check().unwrap();
    }
}

#[test]
fn who_leaves_an_endpoint_that_ends_by_a_reply_does_not_stay_in_it() {
    let m = Machine::new();
    let _small = Small::new();
    let (boss, own) = (m.thread(9), m.name(m.space));
    let (_, ep) = m.endpoint();
    let (server, client) = (m.thread(6), m.thread(5));
    let waiting: Vec<_> = (0..3).map(|_| m.thread(4)).collect();
    waiting.iter().for_each(|&t| {
        m.receive(t, ep);
    });
    m.receive(server, ep);
    assert!(m.call(client, ep, [0; 4]) == server);
    assert!(destroy_step(&m, boss, own, ep));
    // The quick way back into the queue: the reply goes out, and the next step finds who sent it.
    assert!(m.receive(server, ep) == client || server.state.get() == State::Receiving);
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Ok)
    );
    while destroy_step(&m, boss, own, ep) {}
    assert_eq!(
        (server.state.get(), status(server)),
        (State::Ready, Status::Dead)
    );
    assert!(m.space.get().slot(ep).unwrap().get().is_dead());
    crate::checker::check().unwrap();
}

#[test]
fn deadlines_that_come_together_come_a_few_at_a_time_and_all() {
    let m = Machine::new();
    let at = crate::arch::now() + 1_000_000;
    let many: Vec<_> = (0..100)
        .map(|i| {
            let t = m.thread(3);
            let (_, bell) = m.notification();
            m.sys(t, 3, bell, 0, [0; 4], at + i % 10);
            t
        })
        .collect();
    crate::arch::advance(2_000_000);
    let woken = || {
        many.iter()
            .filter(|t| t.state.get() == State::Ready)
            .count()
    };
    let mut before = woken();
    assert_eq!(before, 0);
    for ticks in 1.. {
        crate::sched::tick(m.cpu);
        let now = woken();
        assert!(now > before, "each tick gets somewhere");
        assert!(now - before <= AT_ONCE, "{} at once", now - before);
        before = now;
        crate::checker::check().unwrap();
        if now == 100 {
            assert!(ticks >= 100 / AT_ONCE);
            break;
        }
        // The rest is not forgotten, and the soonest come first.
        assert!(m.cpu.programmed.get() <= crate::arch::now());
        let due = many.iter().filter(|t| t.state.get() != State::Ready);
        let first = due.map(|t| t.deadline.get()).min().unwrap();
        let late = many.iter().filter(|t| t.state.get() == State::Ready);
        assert!(late.count() as u64 >= (first - at) * 10);
    }
    assert!(many.iter().all(|&t| status(t) == Status::Timeout));
    assert_eq!(m.cpu.timers.next(), NEVER);
}

#[test]
fn suspended_threads_are_not_left_for_the_next_pick() {
    let m = Machine::new();
    let boss = m.thread(9);
    let many: Vec<_> = (0..50).map(|_| m.thread(5)).collect();
    for &t in &many {
        t.started.set(true);
        let slot = m.name(t);
        assert_eq!(
            m.operate(boss, slot, op::thread::SUSPEND, [0; 4]),
            Status::Ok
        );
        assert!(!t.own_budget.get().unwrap().queued.get());
        assert_eq!(
            m.operate(boss, slot, op::thread::RESUME, [0; 4]),
            Status::Ok
        );
        assert!(t.own_budget.get().unwrap().queued.get());
        m.operate(boss, slot, op::thread::SUSPEND, [0; 4]);
    }
    crate::checker::check().unwrap();
    assert!(crate::sched::yield_now(m.cpu, boss) == boss);
}

/// What each live Pool, and those that it may yet make, count for.
pub(super) fn numbers() -> u64 {
    let live = POOLS.iter().filter(|p| p.generation.get() & 1 == 1);
    live.map(|p| p.quota.get() + 1).sum()
}

#[test]
fn how_many_pools_one_may_make_is_handed_down() {
    let m = Machine::new();
    let t = m.thread(5);
    let payer = m.put(m.pool_cap);
    let all = numbers();
    let part = |ram, dest, i: u64, payer| {
        let words = [i * 64 * 4096, 64 * 4096, dest, payer];
        assert_eq!(m.operate(t, ram, op::memory::DIVIDE, words), Status::Ok);
    };
    let make =
        |memory, dest, quota| m.operate(t, memory, op::memory::MAKE_POOL, [dest, quota, 0, 0]);
    let left = |pool| {
        assert_eq!(m.operate(t, pool, op::pool::STAT, [0; 4]), Status::Ok);
        words(t)[2]
    };
    let (_, ram) = m.memory(16 << 20, 8 << 20);
    for i in 0..8 {
        part(ram, 100 + i, i, payer);
    }
    let mine = left(payer);
    // More than there are is refused, and takes nothing.
    for quota in [mine, mine + 1, 1 << 63, !0] {
        assert_eq!(make(100, 120, quota), Status::NoMemory);
    }
    assert_eq!((left(payer), numbers()), (mine, all));
    assert_eq!(make(100, 120, 2), Status::Ok);
    assert_eq!((left(payer), left(120)), (mine - 3, 2));
    // What is made of Memory whose record is in it is made out of its quota, whoever's RAM it is.
    for i in 0..3 {
        let words = [0, 32 * 4096, 130 + i, 120];
        assert_eq!(m.operate(t, 101 + i, op::memory::DIVIDE, words), Status::Ok);
    }
    assert_eq!(make(130, 140, 1), Status::Ok);
    assert_eq!((left(120), left(140)), (0, 1));
    assert_eq!(make(131, 141, 0), Status::NoMemory, "its quota is used up");
    assert_eq!(make(104, 142, 0), Status::Ok, "which is nobody else's");
    assert_eq!(make(105, 143, 0), Status::Ok);
    // A Pool without one makes none.
    let words = [0, 32 * 4096, 133, 142];
    assert_eq!(m.operate(t, 106, op::memory::DIVIDE, words), Status::Ok);
    assert_eq!(make(133, 144, 0), Status::NoMemory);
    crate::checker::check().unwrap();
    // What ends gives back; with it, what was made of it.
    assert_eq!(m.operate(t, 140, op::pool::DESTROY, [0; 4]), Status::Ok);
    assert_eq!(left(120), 2);
    assert_eq!(make(130, 140, 1), Status::Ok);
    for pool in [120, 142, 143] {
        assert_eq!(m.operate(t, pool, op::pool::DESTROY, [0; 4]), Status::Ok);
    }
    assert!(m.space.get().slot(140).unwrap().get().is_dead());
    assert_eq!((left(payer), numbers()), (mine, all));
}

#[test]
fn among_many_pools_the_search_for_inner_ones_is_in_steps() {
    let m = Machine::new();
    let t = m.thread(5);
    let payer = m.put(m.pool_cap);
    let (_, ram) = m.memory(16 << 20, 15 << 20);
    let make = |i: u64, pages: u64, payer, dest| {
        let words = [i * 4096, pages * 4096, 250, payer];
        assert_eq!(m.operate(t, ram, op::memory::DIVIDE, words), Status::Ok);
        let made = m.operate(
            t,
            250,
            op::memory::MAKE_POOL,
            [dest, u64::from(dest == 251), 0, 0],
        );
        assert_eq!(made, Status::Ok);
        m.space.get().slot(250).unwrap().set(Cap::EMPTY);
    };
    make(0, 16, payer, 251);
    for i in 0..200 {
        make(16 + i * 2, 2, payer, 252);
        m.space.get().slot(252).unwrap().set(Cap::EMPTY);
    }
    // The last of all is made of Memory that lives in the first.
    make(1000, 2, 251, 253);
    let mut steps = 1;
    m.sys(t, 0, 251, Tag::new(op::pool::DESTROY).0, [0; 4], NEVER);
    while super::census::goes_on(t) {
        steps += 1;
        m.sys(t, 0, 251, Tag::new(op::pool::DESTROY).0, [0; 4], NEVER);
    }
    assert!(steps >= 200 / 25, "{steps} steps");
    assert_eq!(status(t), Status::Ok);
    assert!(m.space.get().slot(253).unwrap().get().is_dead());
    crate::checker::check().unwrap();
}
