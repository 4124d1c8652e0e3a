//! Whose time a server goes on with when its client has none left, or leaves.

use super::sched::pass;
use super::*;
use crate::object::thread::State;
use ipc_schema::abi::op;

/// A client in the middle of a call, its server, and another client in the queue.
struct Trio {
    m: Machine,
    slot: u64,
    client: Obj<Thread>,
    server: Obj<Thread>,
    queued: Obj<Thread>,
}

const PERIOD: u64 = 100_000_000;

impl Trio {
    /// `deadline`: the queued client's. The first client has time for a moment only.
    fn new(deadline: u64) -> Self {
        let m = Machine::new();
        let (_, slot) = m.endpoint();
        let (client, server, queued) = (m.thread(9), m.thread(4), m.thread(7));
        m.receive(server, slot);
        budget(client).configure(9, 4_000, PERIOD, crate::arch::now());
        assert!(m.call(client, slot, [1; 4]) == server);
        let next = m.sys(queued, 0, slot, Tag::new(7).0, [2; 4], deadline);
        assert!(next == server && queued.state.get() == State::Queued);
        let trio = Self {
            m,
            slot,
            client,
            server,
            queued,
        };
        trio.sound();
        trio
    }

    fn sound(&self) {
        crate::checker::check().unwrap();
    }

    /// The client's time is up.
    fn exhaust(&self) -> Obj<Thread> {
        let t = pass(&self.m, 5_000);
        assert!(budget(self.client).exhausted.get());
        self.sound();
        t
    }

    /// The server's answer; who goes on.
    fn answer(&self) -> Obj<Thread> {
        let s = self.server;
        assert!(self.m.cpu.current.get() == Some(s));
        s.set(reg::RDI, self.slot);
        s.set(reg::RSI, 0);
        s.set(reg::R13, NEVER);
        let next = crate::syscall(self.m.cpu, s, 1);
        self.sound();
        next
    }

    fn helps(&self) -> bool {
        self.server.budget.get() == self.queued.own_budget.get()
            && self.m.cpu.budget.get() == self.server.budget.get()
            && self.queued.callee.get() == Some(self.server)
    }

    /// An operation of a thread above all others.
    fn operate<T: Object>(&self, of: Obj<T>, label: u64, words: [u64; 4]) {
        let boss = self.m.thread(15);
        let slot = self.m.name(of);
        assert_eq!(self.m.operate(boss, slot, label, words), Status::Ok);
        self.destroy(boss);
    }

    fn destroy<T: Object>(&self, of: Obj<T>) {
        let boss = self.m.thread(16);
        let (space, slot) = (self.m.name(self.m.space), self.m.name(of));
        let words = [slot, 0, 0, 0];
        let done = self
            .m
            .operate(boss, space, op::space::DESTROY_OBJECT, words);
        assert_eq!(done, Status::Ok);
        boss.get().destroy();
        crate::sched::pick(self.m.cpu);
        self.sound();
    }
}

fn budget(t: Obj<Thread>) -> &'static Budget {
    t.own_budget.get().unwrap().get()
}

#[test]
fn a_server_goes_on_with_the_next_callers_time() {
    let t = Trio::new(NEVER);
    assert!(t.exhaust() == t.server && t.helps());
    let before = budget(t.queued).used.get();
    pass(&t.m, 50_000);
    assert!(budget(t.queued).used.get() >= before + 50_000);
    assert!(budget(t.server).used.get() < 10_000);
    // It answers the first, who has to wait for its period, and serves the second.
    assert!(t.answer() == t.server);
    assert_eq!(words(t.server), [2; 4]);
    assert!(t.server.caller.get() == Some(t.queued) && t.queued.state.get() == State::Calling);
    assert!(t.server.budget.get() == t.queued.own_budget.get());
    assert_eq!(
        (t.client.state.get(), status(t.client)),
        (State::Ready, Status::Ok)
    );
    assert!(t.answer() == t.queued && t.server.state.get() == State::Receiving);
    assert!(pass(&t.m, 2 * PERIOD) == t.client);
}

#[test]
fn when_the_next_caller_leaves_it_is_the_servers_own_time() {
    let t = Trio::new(crate::arch::now() + 30_000);
    assert!(t.exhaust() == t.server && t.helps());
    // The deadline of the one in the queue.
    assert!(pass(&t.m, 40_000) == t.queued);
    assert_eq!(status(t.queued), Status::Timeout);
    t.sound();
    assert!(t.server.budget.get() == t.server.own_budget.get() && !t.helps());
    assert!(t.server.state.get() == State::Ready);
}

#[test]
fn a_helped_server_can_end_at_any_moment() {
    for victim in 0..4 {
        let t = Trio::new(NEVER);
        assert!(t.exhaust() == t.server && t.helps());
        match victim {
            0 => t.destroy(t.server),
            1 => t.destroy(t.queued),
            2 => t.destroy(t.queued.own_budget.get().unwrap()),
            _ => t.destroy(t.client),
        }
        assert_eq!(t.helps(), victim == 3);
        assert_eq!(t.queued.get().callee.get().is_some(), victim == 3);
        if victim == 0 {
            let heir = t.m.thread(3);
            t.m.receive(heir, t.slot);
            assert!(heir.caller.get() == Some(t.queued));
        } else if victim != 3 {
            assert!(t.server.budget.get() == t.server.own_budget.get());
        }
        t.sound();
    }
}

#[test]
fn another_server_thread_takes_the_caller_and_its_time() {
    let t = Trio::new(NEVER);
    assert!(t.exhaust() == t.server && t.helps());
    let other = t.m.thread(8);
    t.m.receive(other, t.slot);
    t.sound();
    assert!(other.caller.get() == Some(t.queued) && t.queued.callee.get() == Some(other));
    assert!(other.budget.get() == t.queued.own_budget.get());
    assert!(t.server.budget.get() == t.server.own_budget.get());
}

#[test]
fn a_caller_in_the_queue_can_change_its_budget_meanwhile() {
    let t = Trio::new(NEVER);
    assert!(t.exhaust() == t.server && t.helps());
    let new = Budget::create(t.m.pool, 0).unwrap();
    new.configure(7, 1_000_000, 1_000_000, crate::arch::now());
    let words = [t.m.name(new), 0, 0, 0];
    t.operate(t.queued, op::thread::CONFIGURE, words);
    assert!(t.queued.budget.get() == Some(new) && !t.helps());
    assert!(t.server.budget.get() == t.server.own_budget.get());
}

/// A server with no Budget of its own: what the one that helps it loses it does not find with it again.
#[test]
fn a_caller_in_the_queue_that_loses_its_budget_helps_no_more() {
    let t = Trio::new(NEVER);
    t.server.get().set_own_budget(None);
    assert!(t.exhaust() == t.server && t.helps());
    let old = t.queued.own_budget.get();
    t.operate(t.queued, op::thread::CONFIGURE, [0; 4]);
    assert!(t.queued.callee.get().is_none() && t.server.budget.get() != old);
    // It has one again: it helps again.
    let words = [t.m.name(old.unwrap()), 0, 0, 0];
    t.operate(t.queued, op::thread::CONFIGURE, words);
    t.sound();
    assert!(t.queued.budget.get() == old && t.queued.state.get() == State::Queued);
}

#[test]
fn when_the_helper_has_no_time_left_either_it_is_the_servers_own() {
    let t = Trio::new(NEVER);
    budget(t.queued).configure(7, 4_000, PERIOD, crate::arch::now());
    assert!(t.exhaust() == t.server && t.helps());
    assert!(pass(&t.m, 5_000) == t.server);
    assert!(budget(t.queued).exhausted.get() && t.queued.callee.get().is_none());
    assert!(t.m.cpu.budget.get() == t.server.own_budget.get());
    t.sound();
}

/// The call that a server has made to another one comes back when their client has no time left: it goes on, too.
#[test]
fn servers_in_the_middle_of_a_chain_are_not_stranded() {
    let m = Machine::new();
    let ((_, a), (_, b)) = (m.endpoint(), m.endpoint());
    let (client, middle, last) = (m.thread(9), m.thread(5), m.thread(6));
    m.receive(middle, a);
    m.receive(last, b);
    budget(client).configure(9, 4_000, PERIOD, crate::arch::now());
    assert!(m.call(client, a, [0; 4]) == middle);
    middle.set(reg::RDI, b);
    middle.set(reg::R13, NEVER);
    assert!(crate::syscall(m.cpu, middle, 0) == last);
    assert!(pass(&m, 5_000) == last && m.cpu.budget.get() == last.own_budget.get());
    last.set(reg::RDI, b);
    last.set(reg::RSI, 0);
    last.set(reg::R13, NEVER);
    assert!(crate::syscall(m.cpu, last, 1) == middle);
    assert!(m.cpu.budget.get() == middle.own_budget.get());
    crate::checker::check().unwrap();
}

#[test]
fn a_server_without_time_of_any_kind_is_told_of_and_goes_on_once_it_has_some() {
    for leaves in [true, false] {
        let m = Machine::new();
        let (_, slot) = m.endpoint();
        let (event, name) = m.notification();
        let (client, server, boss) = (m.thread(9), m.thread(4), m.thread(15));
        m.receive(server, slot);
        let own = server.own_budget.get().unwrap();
        server.get().set_own_budget(None);
        let thread = m.name(server);
        let bind = op::thread::BIND_EVENT;
        assert_eq!(m.operate(boss, thread, bind, [name, 0, 0, 0]), Status::Ok);
        budget(client).configure(9, 4_000, PERIOD, crate::arch::now());
        let deadline = if leaves {
            crate::arch::now() + 3_000
        } else {
            NEVER
        };
        assert!(m.sys(client, 0, slot, Tag::new(7).0, [0; 4], deadline) == server);
        assert!(!event.pending());
        // The client leaves, or has no time left.
        assert!(pass(&m, 5_000) != server);
        assert_eq!(
            (event.take(), status(client) == Status::Timeout),
            (1, leaves)
        );
        crate::checker::check().unwrap();
        let words = [m.name(own), 0, 0, 0];
        assert_eq!(
            m.operate(boss, thread, op::thread::CONFIGURE, words),
            Status::Ok
        );
        m.sys(boss, 3, name, 0, [0; 4], NEVER);
        // The client that has left may have a moment.
        pass(&m, 4_000);
        assert!(m.cpu.budget.get() == Some(own) && m.cpu.current.get() == Some(server));
        crate::checker::check().unwrap();
    }
}

/// However long the kernel keeps a thread beyond its time: it pays for it later.
#[test]
fn what_is_used_too_early_is_paid_back() {
    let m = Machine::new();
    let (greedy, _) = (m.thread(9), m.thread(3));
    for (of, period) in [(1_000, 10_000), (300, 5_000), (50, 10_000)] {
        budget(greedy).configure(9, of, period, crate::arch::now());
        crate::sched::pick(m.cpu);
        let (from, before) = (crate::arch::now(), budget(greedy).used.get());
        for i in 0..20_000 {
            pass(&m, 500 + i % 3 * 700);
        }
        let elapsed = crate::arch::now() - from;
        let used = budget(greedy).used.get() - before;
        let share = elapsed * of / period;
        // All but the last time too long.
        assert!(
            used.abs_diff(share) < share / 100 + 2_000,
            "{used} instead of {share}"
        );
    }
}

/// A server helped by one in the middle of a chain, whose client leaves: what the one in the middle has of its own is not handed on
/// to the helped, who would keep it, also when its owner has long gone elsewhere.
#[test]
fn a_budget_of_ones_own_stays_when_the_one_that_was_lent_on_goes() {
    let m = Machine::new();
    let ((_, e), (_, f)) = (m.endpoint(), m.endpoint());
    let (client, server) = (m.thread(9), m.thread(4));
    let (far, middle) = (m.thread(7), m.thread(5));
    m.receive(server, e);
    m.receive(middle, f);
    server.get().set_own_budget(None);
    budget(client).configure(9, 4_000, PERIOD, crate::arch::now());
    assert!(m.call(client, e, [0; 4]) == server);
    let deadline = crate::arch::now() + 30_000;
    assert!(m.sys(far, 0, f, Tag::new(7).0, [0; 4], deadline) == middle);
    middle.set(reg::RDI, e);
    middle.set(reg::R13, NEVER);
    assert!(crate::syscall(m.cpu, middle, 0) == server);
    assert!(pass(&m, 5_000) == server && budget(client).exhausted.get());
    assert!(middle.callee.get() == Some(server) && server.budget.get() == far.own_budget.get());
    crate::checker::check().unwrap();
    // The far client leaves; the one in the middle helps with its own time now, and knows it.
    pass(&m, 40_000);
    assert_eq!(status(far), Status::Timeout);
    assert!(middle.state.get() == State::Queued && middle.budget.get() == middle.own_budget.get());
    assert!(server.budget.get() == middle.own_budget.get());
    assert!(middle.callee.get() == Some(server));
    crate::checker::check().unwrap();
}

/// A client leaves whose server has gone on with its own Budget, in the queue of another server that it helps with that: it goes on to.
#[test]
fn who_helps_with_its_own_budget_does_so_when_its_client_leaves() {
    let m = Machine::new();
    let ((_, e), (_, f)) = (m.endpoint(), m.endpoint());
    let (server, far, middle) = (m.thread(4), m.thread(7), m.thread(5));
    m.receive(server, e);
    m.receive(middle, f);
    server.get().set_own_budget(None);
    budget(far).configure(7, 4_000, PERIOD, crate::arch::now());
    let deadline = crate::arch::now() + 50_000;
    assert!(m.sys(far, 0, f, Tag::new(7).0, [0; 4], deadline) == middle);
    assert!(pass(&m, 5_000) == middle && middle.budget.get() == middle.own_budget.get());
    let client = m.thread(9);
    budget(client).configure(9, 4_000, PERIOD, crate::arch::now());
    assert!(m.call(client, e, [0; 4]) == server);
    m.sys(middle, 0, e, Tag::new(7).0, [0; 4], NEVER);
    pass(&m, 5_000);
    let helps = || {
        crate::checker::check().unwrap();
        middle.callee.get() == Some(server) && server.budget.get() == middle.own_budget.get()
    };
    assert!(middle.state.get() == State::Queued && helps());
    pass(&m, 60_000);
    assert_eq!(status(far), Status::Timeout);
    assert!(helps());
}

/// A server that is helped where it served last, and then waits elsewhere.
#[test]
fn who_waits_for_calls_elsewhere_is_helped_no_more() {
    let t = Trio::new(NEVER);
    let (_, other) = t.m.endpoint();
    assert!(t.exhaust() == t.server && t.helps());
    // One with precedence: the server's own Budget is not looked at meanwhile.
    let above = t.m.thread(10);
    crate::sched::make_ready(t.m.cpu, above);
    t.server.set(reg::RDI, other);
    t.server.set(reg::RSI, 0);
    t.server.set(reg::R13, NEVER);
    crate::syscall(t.m.cpu, t.server, 1);
    t.sound();
    assert_eq!(t.server.state.get(), State::Receiving);
    assert!(t.queued.callee.get().is_none());
    assert!(t.server.budget.get() == t.server.own_budget.get());
    // Another's call finds it with that other's time only.
    let client = t.m.thread(6);
    assert!(t.m.call(client, other, [3; 4]) == t.server);
    t.sound();
    assert!(t.server.budget.get() == client.budget.get());
}
