//! Priorities, budgets, periods.

use super::*;

/// Runs for `cycles`, then lets the timer have its say; answers who runs.
pub(super) fn pass(m: &Machine, cycles: u64) -> Obj<Thread> {
    crate::arch::advance(cycles);
    crate::sched::tick(m.cpu);
    match m.cpu.current.get() {
        Some(t) => crate::sched::current_or_better(m.cpu, t),
        None => crate::sched::pick(m.cpu),
    }
}

#[test]
fn the_highest_priority_runs_and_equals_take_turns() {
    let m = Machine::new();
    let (a, b, c) = (m.thread(5), m.thread(5), m.thread(4));
    let mut seen = [0_i32; 3];
    crate::sched::pick(m.cpu);
    for _ in 0..1000 {
        let t = pass(&m, 100_000);
        seen[[a, b, c].iter().position(|&x| x == t).unwrap()] += 1;
    }
    assert_eq!(seen[2], 0);
    assert!(seen[0].abs_diff(seen[1]) < 30, "{seen:?}");
}

#[test]
fn a_budget_smaller_than_its_period_is_all_that_a_thread_gets() {
    let m = Machine::new();
    let (greedy, other) = (m.thread(9), m.thread(3));
    greedy
        .budget
        .get()
        .unwrap()
        .configure(9, 250_000, 1_000_000, crate::arch::now());
    crate::sched::pick(m.cpu);
    let mut got = 0;
    for _ in 0..10_000 {
        if pass(&m, 10_000) == greedy {
            got += 1;
        }
    }
    assert!((2_400..=2_600).contains(&got), "{got} of 10000");
    assert!(other.budget.get().unwrap().used.get() > 70_000_000);
}

#[test]
fn a_server_goes_on_with_its_own_time_when_its_client_has_none_left() {
    let m = Machine::new();
    let (_, ep) = m.endpoint();
    let (client, server) = (m.thread(9), m.thread(8));
    m.receive(server, ep);
    client
        .budget
        .get()
        .unwrap()
        .configure(9, 4_000, 100_000_000, crate::arch::now());
    assert!(m.call(client, ep, [0; 4]) == server);
    m.cpu.budget_end.set(0);
    assert!(pass(&m, 5_000) == server, "it goes on");
    assert!(m.cpu.budget.get() == server.own_budget.get());
    // Its reply reaches the client, which has to wait for its next period.
    server.set(reg::RDI, ep);
    server.set(reg::R13, NEVER);
    let next = crate::syscall(m.cpu, server, 1);
    assert!(next != client);
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Ok)
    );
    assert!(pass(&m, 200_000_000) == client);
}

#[test]
fn time_adds_up() {
    let m = Machine::new();
    let threads = [m.thread(5), m.thread(5), m.thread(7)];
    crate::sched::charge(m.cpu);
    let start = m.cpu.booked.get();
    let used = || {
        threads
            .iter()
            .map(|t| t.own_budget.get().unwrap().used.get())
            .sum::<u64>()
            + m.cpu.idle_cycles.get()
            + m.cpu.own_cycles.get()
    };
    let before = used();
    crate::sched::pick(m.cpu);
    for _ in 0..100 {
        pass(&m, 12_345);
    }
    crate::sched::charge(m.cpu);
    assert_eq!(used() - before, m.cpu.booked.get() - start);
}

#[test]
fn the_timer_is_not_set_for_a_time_slice_that_is_over() {
    let m = Machine::new();
    let (a, b) = (m.thread(5), m.thread(5));
    crate::sched::pick(m.cpu);
    crate::arch::advance(2_000_000);
    crate::sched::tick(m.cpu);
    assert!(m.cpu.reschedule.get());
    assert!(
        m.cpu.programmed.get() > crate::arch::now(),
        "it would interrupt its own handler for ever"
    );
    let _ = (a, b);
}

#[test]
fn a_caller_without_time_strands_no_server_that_takes_its_call_later() {
    let m = Machine::new();
    let (_, ep) = m.endpoint();
    let (client, server, boss) = (m.thread(7), m.thread(6), m.thread(9));
    assert!(m.call(client, ep, [0; 4]) != client);
    assert_eq!(client.state.get(), State::Queued);
    // Its Budget goes while it waits in the queue.
    let space = m.name(m.space);
    let budget = m.name(client.own_budget.get().unwrap());
    let destroy = ipc_schema::abi::op::space::DESTROY_OBJECT;
    assert_eq!(
        m.operate(boss, space, destroy, [budget, 0, 0, 0]),
        Status::Ok
    );
    assert!(client.budget.get().is_none());
    m.receive(server, ep);
    assert!(server.caller.get() == Some(client) && server.budget.get() == server.own_budget.get());
    m.receive(server, ep);
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Ok)
    );
}

#[test]
fn all_time_is_somebodys() {
    let m = Machine::new();
    let (_, ep) = m.endpoint();
    let threads = [m.thread(9), m.thread(9), m.thread(5), m.thread(3)];
    for (t, share) in threads.iter().zip([10_000, 20_000, 100_000, 300_000]) {
        t.budget.get().unwrap().configure(
            t.budget.get().unwrap().priority.get().into(),
            share,
            400_000,
            crate::arch::now(),
        );
    }
    crate::sched::pick(m.cpu);
    let (from, before) = (crate::arch::now(), used(&m, &threads));
    m.receive(threads[3], ep);
    for i in 0..5_000 {
        let t = pass(&m, 3_000 + i % 7 * 500);
        if i % 5 == 0 && t == threads[0] {
            m.call(t, ep, [0; 4]);
        }
    }
    crate::sched::charge(m.cpu);
    let elapsed = crate::arch::now() - from;
    let attributed = used(&m, &threads) - before;
    assert!(
        elapsed.abs_diff(attributed) * 1000 < elapsed,
        "{attributed} of {elapsed}"
    );
}

/// What all Budgets used, and idle time.
fn used(m: &Machine, threads: &[Obj<Thread>]) -> u64 {
    let mut all = m.cpu.idle_cycles.get() + m.idle_thread().own_budget.get().unwrap().used.get();
    for t in threads {
        all += t.own_budget.get().unwrap().used.get();
    }
    all
}

#[test]
fn deadlines_come_in_order_however_many_share_a_time() {
    let m = Machine::new();
    let base = crate::arch::now() + 1_000_000;
    let threads: Vec<_> = (0..24).map(|_| m.thread(3)).collect();
    let at = |i: usize| base + [500, 100, 100, 900, 100, 500, 7, 1 << 40][i % 8];
    for (i, &t) in threads.iter().enumerate() {
        t.deadline.set(at(i));
        m.cpu
            .timers
            .arm(&t.get().timer, at(i), crate::sched::timer::Owner::Thread(t));
    }
    assert_eq!(m.cpu.timers.next(), base + 7);
    // One that stands for others of its time goes, one that hangs at another goes, one comes sooner.
    for i in [1, 4, 9] {
        m.cpu.timers.cancel(&threads[i].get().timer);
    }
    let owner = crate::sched::timer::Owner::Thread(threads[3]);
    m.cpu.timers.arm(&threads[3].get().timer, base + 3, owner);
    m.cpu.timers.arm(&threads[3].get().timer, base + 800, owner);
    assert_eq!(m.cpu.timers.next(), base + 3);
    crate::arch::timer_at_most(m.cpu, m.cpu.timers.next());
    crate::checker::check().unwrap();
    let mut seen = vec![];
    while let Some(crate::sched::timer::Owner::Thread(t)) = m.cpu.timers.due(base + 2000) {
        seen.push(threads.iter().position(|&o| o == t).unwrap());
    }
    let mut expected: Vec<_> = (0..24)
        .filter(|i| ![1, 4, 9].contains(i) && i % 8 != 7)
        .collect();
    let when = |i: usize| if i == 3 { base + 3 } else { at(i) };
    expected.sort_by_key(|&i| when(i));
    assert_eq!(
        seen.iter().map(|&i| when(i)).collect::<Vec<_>>(),
        expected.iter().map(|&i| when(i)).collect::<Vec<_>>()
    );
    assert_eq!(m.cpu.timers.next(), base + (1 << 40));
}
