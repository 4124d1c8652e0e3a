//! Random operations by random threads, with the invariants of the object graph checked after each.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Call(usize, u64),
    Receive(usize, bool),
    Signal(usize),
    Wait(usize, u64),
    Time(u64),
    Destroy(usize),
    Suspend(usize, usize),
    Resume(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let t = 0..6_usize;
    prop_oneof![
        5 => (t.clone(), 0..5000_u64).prop_map(|(a, d)| Step::Call(a, d)),
        6 => (t.clone(), any::<bool>()).prop_map(|(a, b)| Step::Receive(a, b)),
        3 => t.clone().prop_map(Step::Signal),
        2 => (t.clone(), 1..5000_u64).prop_map(|(a, d)| Step::Wait(a, d)),
        3 => (0..4000_u64).prop_map(Step::Time),
        1 => t.clone().prop_map(Step::Destroy),
        1 => (t.clone(), t.clone()).prop_map(|(a, b)| Step::Suspend(a, b)),
        2 => (t.clone(), t).prop_map(|(a, b)| Step::Resume(a, b)),
    ]
}

/// Links agree in both directions; a thread is where its state says; a Budget's thread runs on it.
fn check(m: &Machine, threads: &[Obj<Thread>]) {
    for &t in threads {
        match t.state.get() {
            State::Calling => assert!(t.callee.get().is_some_and(|s| s.caller.get() == Some(t))),
            _ => assert!(t.callee.get().is_none()),
        }
        if let Some(c) = t.caller.get() {
            assert!(c.callee.get() == Some(t));
            assert_eq!(c.state.get(), State::Calling);
        }
        assert_eq!(t.state.get() == State::Waiting, t.waits_for.get().is_some());
        if let Some(n) = t.waits_for.get() {
            assert!(n.waiter.get() == Some(t));
        }
        if t.state.get() == State::Queued {
            assert!(t.endpoint.get().is_some());
        }
        if t.state.get() == State::Ready {
            // Somebody will run it: its Budget is running, queued, or waits for its period.
            let b = t.budget.get().expect("a ready thread has a Budget");
            let active = b.thread.get() == Some(t)
                && (m.cpu.budget.get() == Some(b) || b.queued.get() || b.exhausted.get());
            assert!(
                active,
                "a ready thread that nobody runs: {:?}",
                threads.iter().position(|&x| x == t)
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_of_calls_breaks_the_graph_or_strands_a_thread(steps in proptest::collection::vec(step(), 1..120)) {
        let m = Machine::new();
        let (_, ep) = m.endpoint();
        let (_, ep2) = m.endpoint();
        let (n, bell) = m.notification();
        let mut threads: Vec<_> = (0..6).map(|i| m.thread(2 + i % 3)).collect();
        threads[0].bind(Some(n));
        let mut names: Vec<_> = threads.iter().map(|&t| m.name(t)).collect();
        for s in steps {
            let ready = |i: usize| threads[i % threads.len()].state.get() == State::Ready;
            let pick = |i: usize| threads[i % threads.len()];
            let now = crate::arch::now();
            match s {
                Step::Call(a, d) if ready(a) => {
                    let e = if a % 2 == 0 { ep } else { ep2 };
                    m.sys(pick(a), 0, e, 0, [0; 4], if d == 0 { NEVER } else { now + d });
                }
                Step::Receive(a, first) if ready(a) => {
                    m.sys(pick(a), 1, if first { ep } else { ep2 }, 0, [0; 4], NEVER);
                }
                Step::Signal(a) if ready(a) => {
                    m.sys(pick(a), 2, bell, 0, [0; 4], NEVER);
                }
                Step::Wait(a, d) if ready(a) => {
                    m.sys(pick(a), 3, bell, 0, [0; 4], now + d);
                }
                Step::Time(d) => {
                    crate::arch::advance(d);
                    crate::sched::tick(m.cpu);
                }
                Step::Destroy(a) if threads.len() > 2 => {
                    let i = a % threads.len();
                    threads.remove(i).get().destroy();
                    names.remove(i);
                }
                Step::Suspend(a, b) if ready(a) => {
                    m.operate(pick(a), names[b % names.len()], ipc_schema::abi::op::thread::SUSPEND, [0; 4]);
                }
                Step::Resume(a, b) if ready(a) => {
                    m.operate(pick(a), names[b % names.len()], ipc_schema::abi::op::thread::RESUME, [0; 4]);
                }
                _ => {}
            }
            check(&m, &threads);
        }
        crate::checker::check().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// The fuzz target's driver, from random bytes: it is there for `cargo test` too.
    #[test]
    fn whatever_is_called_the_census_holds(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        super::driver::drive(&bytes);
    }
}
