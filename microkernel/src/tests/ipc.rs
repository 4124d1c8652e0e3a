//! Calls, replies, signals, and everything that ends them early.

use super::*;
use crate::object::cap::Cap;
use ipc_schema::abi::rights;

#[test]
fn a_call_reaches_a_waiting_server_with_badge_and_words_and_the_reply_comes_back() {
    let m = Machine::new();
    let (ep, slot) = m.endpoint();
    let badged = m.put(Cap {
        badge: 42,
        ..Cap::new(ep.get().header())
    });
    let (client, server) = (m.thread(5), m.thread(3));
    m.receive(server, slot);
    assert_eq!(server.state.get(), State::Receiving);
    let own = client.budget.get();
    assert!(m.call(client, badged, [1, 2, 3, 4]) == server);
    assert_eq!(
        (status(server), server.get().get(reg::RDI), words(server)),
        (Status::Ok, 42, [1, 2, 3, 4])
    );
    assert!(server.budget.get() == own, "the client's Budget is lent");
    // The reply: the server has the CPU, on the client's Budget.
    server.set(reg::RSI, Tag::new(9).0);
    server.set(reg::RDI, slot);
    server.set(reg::R8, 77);
    server.set(reg::R13, NEVER);
    assert!(crate::syscall(m.cpu, server, 1) == client);
    assert_eq!(
        (
            status(client),
            words(client)[0],
            Tag(client.get().get(reg::RSI)).label()
        ),
        (Status::Ok, 77, 9)
    );
    assert!(server.budget.get() == server.own_budget.get());
    assert_eq!(server.state.get(), State::Receiving);
}

#[test]
fn callers_queue_while_no_server_waits() {
    let m = Machine::new();
    let (_, slot) = m.endpoint();
    let (a, b, server) = (m.thread(5), m.thread(5), m.thread(3));
    m.call(a, slot, [1, 0, 0, 0]);
    m.call(b, slot, [2, 0, 0, 0]);
    assert_eq!(a.state.get(), State::Queued);
    m.receive(server, slot);
    assert_eq!(words(server)[0], 1);
    assert!(server.caller.get() == Some(a));
    server.set(reg::RDI, slot);
    server.set(reg::R13, NEVER);
    m.run(server);
    crate::syscall(m.cpu, server, 1);
    assert_eq!(a.state.get(), State::Ready);
    assert_eq!(words(server)[0], 2, "the next caller is served at once");
}

#[test]
fn a_call_times_out_in_the_queue_and_after_receipt_and_the_late_reply_is_dropped() {
    let m = Machine::new();
    let (_, slot) = m.endpoint();
    let (client, server) = (m.thread(5), m.thread(3));
    let soon = crate::arch::now() + 1000;
    m.sys(client, 0, slot, 0, [0; 4], soon);
    crate::arch::advance(2000);
    crate::sched::tick(m.cpu);
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Timeout)
    );

    m.receive(server, slot);
    let soon = crate::arch::now() + 1000;
    assert!(m.sys(client, 0, slot, 0, [0; 4], soon) == server);
    crate::arch::advance(2000);
    crate::sched::tick(m.cpu);
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Timeout)
    );
    assert!(server.caller.get().is_none() && server.budget.get() == server.own_budget.get());
    client.set(reg::R8, 1234);
    server.set(reg::R8, 99);
    m.receive(server, slot);
    assert_eq!(words(client)[0], 1234, "the reply went nowhere");
}

#[test]
fn a_server_that_dies_fails_its_caller_and_its_endpoint_outlives_it() {
    let m = Machine::new();
    let (_, slot) = m.endpoint();
    let (client, server, next) = (m.thread(5), m.thread(3), m.thread(3));
    m.receive(server, slot);
    m.call(client, slot, [0; 4]);
    server.get().destroy();
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Dead)
    );
    m.call(client, slot, [8, 0, 0, 0]);
    assert_eq!(client.state.get(), State::Queued);
    m.receive(next, slot);
    assert_eq!(words(next)[0], 8);
}

#[test]
fn a_client_that_dies_leaves_its_server_running_on_its_own_budget() {
    let m = Machine::new();
    let (_, slot) = m.endpoint();
    let (client, server) = (m.thread(5), m.thread(3));
    m.receive(server, slot);
    m.call(client, slot, [0; 4]);
    client.get().destroy();
    assert!(server.caller.get().is_none());
    assert!(server.budget.get() == server.own_budget.get());
    assert_eq!(server.state.get(), State::Ready);
    assert!(crate::sched::pick(m.cpu) == server);
}

#[test]
fn a_destroyed_endpoint_fails_everyone_in_it() {
    let m = Machine::new();
    let (ep, slot) = m.endpoint();
    let (client, client2) = (m.thread(5), m.thread(5));
    m.call(client, slot, [0; 4]);
    ep.get()
        .destroy(&crate::object::step::Step::endless())
        .unwrap();
    assert_eq!(status(client), Status::Dead);
    assert_eq!(m.operate(client2, slot, 1, [0; 4]), Status::InvalidCap);
}

#[test]
fn signals_wake_wait_and_reply_recv_and_keep_bits_meanwhile() {
    let m = Machine::new();
    let (n, slot) = m.notification();
    let (_, ep) = m.endpoint();
    let bit = |b| {
        m.put(Cap {
            badge: b,
            ..Cap::new(n.get().header())
        })
    };
    let (bit2, bit4) = (bit(2), bit(4));
    let (a, b) = (m.thread(5), m.thread(7));
    m.sys(a, 2, bit2, 0, [0; 4], NEVER);
    assert_eq!(status(a), Status::Ok);
    m.sys(a, 2, bit4, 0, [0; 4], NEVER);
    m.sys(b, 3, slot, 0, [0; 4], NEVER);
    assert_eq!((status(b), b.get().get(reg::RDI)), (Status::Signal, 6));
    m.sys(b, 3, slot, 0, [0; 4], NEVER);
    assert_eq!(b.state.get(), State::Waiting);
    assert!(m.sys(a, 2, bit4, 0, [0; 4], NEVER) == b, "b has precedence");
    assert_eq!((status(b), b.get().get(reg::RDI)), (Status::Signal, 4));

    b.bind(Some(n));
    m.receive(b, ep);
    assert_eq!(b.state.get(), State::Receiving);
    m.sys(a, 2, bit2, 0, [0; 4], NEVER);
    assert_eq!(
        (status(b), b.get().get(reg::RDI), b.state.get()),
        (Status::Signal, 2, State::Ready)
    );
}

#[test]
fn a_signal_before_reply_recv_comes_first_and_the_reply_is_still_sent() {
    let m = Machine::new();
    let (_, ep) = m.endpoint();
    let (n, ring) = m.notification();
    let (client, server) = (m.thread(5), m.thread(3));
    server.bind(Some(n));
    m.receive(server, ep);
    m.call(client, ep, [0; 4]);
    m.cpu.current.set(Some(server));
    crate::ipc::signal(m.cpu, n, 16);
    server.set(reg::RDI, ep);
    server.set(reg::R8, 5);
    server.set(reg::R13, NEVER);
    assert!(crate::syscall(m.cpu, server, 1) == client);
    assert_eq!(words(client)[0], 5);
    assert_eq!(
        (
            status(server),
            server.get().get(reg::RDI),
            server.state.get()
        ),
        (Status::Signal, 16, State::Ready)
    );
    let _ = ring;
}

#[test]
fn payload_and_capabilities_travel_and_only_with_grant_into_open_slots() {
    let m = Machine::new();
    let (_, ep) = m.endpoint();
    let (n, _) = m.notification();
    let give = m.put(Cap::new(n.get().header()));
    let keep = m.put(Cap {
        rights: (rights::ALL & !rights::GRANT) as u16,
        ..Cap::new(n.get().header())
    });
    let (client, server) = (m.thread(5), m.thread(3));
    m.receive(server, ep);
    let window = 200;
    server.get().utcb().0[0].set(window | 2 << 32);
    let c = client.get().utcb();
    c.0[128].set(0x1122);
    c.0[1].set(give | u64::from(rights::SEND) << 32);
    c.0[2].set(64);
    c.0[3].set(keep | u64::from(rights::SEND) << 32);
    let tag = Tag::new(1).with_payload(8).with_caps(2);
    m.sys(client, 0, ep, tag.0, [0; 4], NEVER);
    assert_eq!(server.get().utcb().0[128].get(), 0x1122);
    assert_eq!(
        server.get().utcb().0[9].get(),
        1,
        "the second was not for giving away"
    );
    let got = m.space.get().slot(window).unwrap().get();
    assert_eq!((got.badge, u32::from(got.rights)), (64, rights::SEND));
    assert!(m.space.get().slot(window + 1).unwrap().get() == Cap::EMPTY);
}

#[test]
fn wrong_capabilities_are_refused_by_name() {
    let m = Machine::new();
    let (ep, slot) = m.endpoint();
    let t = m.thread(5);
    assert_eq!(m.operate(t, 0, 1, [0; 4]), Status::InvalidCap);
    assert_eq!(m.operate(t, 5000, 1, [0; 4]), Status::InvalidCap);
    let no_send = m.put(Cap {
        rights: rights::RECV as u16,
        ..Cap::new(ep.get().header())
    });
    assert_eq!(m.operate(t, no_send, 1, [0; 4]), Status::MissingRight);
    m.sys(t, 2, slot, 0, [0; 4], NEVER);
    assert_eq!(status(t), Status::WrongType);
    m.sys(t, 99, slot, 0, [0; 4], NEVER);
    assert_eq!(status(t), Status::BadOperation);
}

#[test]
fn a_fault_is_a_call_to_the_supervisor_and_its_answer_resumes_or_stops() {
    let m = Machine::new();
    let (ep, slot) = m.endpoint();
    let (t, supervisor) = (m.thread(5), m.thread(6));
    t.supervisor.set(Cap::new(ep.get().header()));
    t.supervisor_badge.set(33);
    m.receive(supervisor, slot);
    for (label, state) in [(0, State::Ready), (1, State::Stopped)] {
        m.run(t);
        t.regs.rip.set(0x40_1000);
        assert!(crate::ipc::fault(m.cpu, t, 14, 6, 0xdead_0000) == supervisor);
        assert_eq!(words(supervisor), [14, 6, 0xdead_0000, 0x40_1000]);
        assert_eq!(supervisor.get().get(reg::RDI), 33);
        assert_eq!(Tag(supervisor.get().get(reg::RSI)).label(), Tag::FAULT);
        m.sys(supervisor, 1, slot, Tag::new(label).0, [0; 4], NEVER);
        assert_eq!(t.state.get(), state);
    }
}

#[test]
fn a_stopped_thread_stays_stopped_when_its_time_had_run_out_meanwhile() {
    let m = Machine::new();
    let (ep, slot) = m.endpoint();
    let (t, supervisor) = (m.thread(5), m.thread(6));
    t.supervisor.set(Cap::new(ep.get().header()));
    m.receive(supervisor, slot);
    m.run(t);
    crate::ipc::fault(m.cpu, t, 6, 0, 0);
    // The supervisor goes on with its own time, as when `t`'s ends.
    supervisor.budget.set(supervisor.own_budget.get());
    m.sys(supervisor, 1, slot, Tag::new(1).0, [0; 4], NEVER);
    assert_eq!(t.state.get(), State::Stopped);
}

#[test]
fn a_thread_tells_its_supervisor_which_call_it_had_taken() {
    let m = Machine::new();
    let (ep, slot) = m.endpoint();
    let badged = m.put(Cap {
        badge: 42,
        ..Cap::new(ep.get().header())
    });
    let (client, server, supervisor) = (m.thread(5), m.thread(5), m.thread(6));
    let name = m.name(server);
    m.receive(server, slot);
    m.call(client, badged, [1, 2, 3, 4]);
    let read = ipc_schema::abi::op::thread::READ_REGS;
    assert_eq!(m.operate(supervisor, name, read, [0; 4]), Status::Ok);
    assert_eq!(words(supervisor)[1], 1);
    let call: Vec<_> = supervisor.get().utcb().0[128 + 18..][..6]
        .iter()
        .map(std::cell::Cell::get)
        .collect();
    assert_eq!(call, [42, Tag::new(7).0, 1, 2, 3, 4]);
}

#[test]
fn nobody_sends_faults_under_anothers_badge() {
    use ipc_schema::abi::{op::thread::CONFIGURE, rights};
    let m = Machine::new();
    let (e, all) = m.endpoint();
    let own = Cap {
        badge: 5,
        ..Cap::new(e.get().header())
    };
    let badged = m.put(own);
    let kept = m.put(Cap {
        badge: 0,
        rights: rights::SEND as u16,
        ..own
    });
    let (boss, t) = (m.thread(5), m.thread(4));
    let name = m.name(t);
    let budget = m.name(t.own_budget.get().unwrap());
    let configure = |endpoint, badge| {
        let status = m.operate(boss, name, CONFIGURE, [budget, endpoint, badge, 0]);
        (status, t.supervisor_badge.get())
    };
    assert_eq!(configure(all, 9), (Status::Ok, 9));
    assert_eq!(configure(badged, 6), (Status::MissingRight, 9));
    assert_eq!(configure(kept, 6), (Status::MissingRight, 9));
    assert_eq!(configure(badged, 5), (Status::Ok, 5));
    assert_eq!(configure(all, 0), (Status::Ok, 0));
    assert_eq!(configure(badged, 0), (Status::Ok, 5));
}

#[test]
fn a_thread_never_started_does_not_go_on_and_never_with_interrupts_off() {
    use ipc_schema::abi::op::thread::{RESUME, SUSPEND};
    let m = Machine::new();
    let boss = m.thread(5);
    let t = Thread::create(m.pool, m.space, 0x7000_0000, m.cpu).unwrap();
    assert_eq!(t.regs.rflags.get(), crate::arch::USER_FLAGS);
    t.set_own_budget(Some(Budget::create(m.pool, 0).unwrap()));
    let name = m.name(t);
    for op in [RESUME, SUSPEND, RESUME] {
        assert_eq!(m.operate(boss, name, op, [0; 4]), Status::Ok);
        assert_eq!(t.state.get(), State::Stopped);
    }
}

#[test]
fn a_budget_given_away_while_lent_strands_no_server() {
    let m = Machine::new();
    let (_, ep) = m.endpoint();
    let (client, server, heir) = (m.thread(5), m.thread(6), m.thread(4));
    m.receive(server, ep);
    let lent = client.own_budget.get().unwrap();
    assert!(m.call(client, ep, [0; 4]) == server);
    assert!(server.budget.get() == Some(lent));
    heir.set_own_budget(None);
    client.set_own_budget(None);
    assert!(server.budget.get() == server.own_budget.get(), "its own");
    heir.set_own_budget(Some(lent));
    assert!(lent.thread.get() == Some(heir));
    // The server goes on, and answers a client that then has no time.
    assert!(crate::sched::pick(m.cpu) == server);
    m.receive(server, ep);
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Ok)
    );
}

#[test]
fn a_payload_carries_nothing_behind_its_end() {
    let m = Machine::new();
    let (_, ep) = m.endpoint();
    let (client, server) = (m.thread(5), m.thread(6));
    m.receive(server, ep);
    client.utcb().0[128].set(0x1122_3344_5566_7788);
    server.utcb().0[128].set(0);
    m.sys(client, 0, ep, Tag::new(7).with_payload(3).0, [0; 4], NEVER);
    assert_eq!(server.utcb().0[128].get(), 0x66_7788);
}
