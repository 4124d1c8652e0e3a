//! Several processors, played by one test thread: what crosses between them, and what moves.

use super::*;
use crate::arch::start_step;
use crate::ipc::collect;
use crate::sched;
use ipc_schema::abi::op;

/// Brings processor `n` up.
pub fn start(n: usize) -> &'static Cpu {
    let cpu = &Cpu::all()[n];
    start_step(cpu, n as u32, 2).unwrap();
    cpu.booked.set(crate::arch::now());
    cpu
}

/// A started thread on processor `n`.
pub fn thread_on(m: &Machine, n: usize, priority: u64) -> Obj<Thread> {
    let t = m.thread(priority);
    t.own_budget.get().unwrap().move_to(&Cpu::all()[n]).unwrap();
    t
}

/// `t` runs on its processor, and makes a system call there.
pub fn sys_on(
    t: Obj<Thread>,
    number: u64,
    slot: u64,
    words: [u64; 4],
    deadline: u64,
) -> Obj<Thread> {
    let cpu = Cpu::play(t.cpu.get() as usize);
    sched::charge(cpu);
    if let Some(old) = cpu.budget.take() {
        sched::budget_ready(cpu, old);
    }
    let b = t.budget.get().unwrap();
    cpu.ready.remove(b);
    b.thread.set(Some(t));
    cpu.budget.set(Some(b));
    cpu.current.set(Some(t));
    cpu.root.set(t.root.get());
    t.set(reg::RDI, slot);
    t.set(reg::RSI, Tag::new(words[3]).0);
    for (r, w) in [reg::R8, reg::R9, reg::R10, reg::R12]
        .into_iter()
        .zip(words)
    {
        t.set(r, w);
    }
    t.set(reg::R13, deadline);
    t.resume.set(Resume::Syscall);
    crate::syscall(cpu, t, number)
}

#[test]
fn a_signal_from_another_processor_goes_through_the_mailbox() {
    let m = Machine::new();
    let one = start(1);
    let (n, bell) = m.notification();
    let (a, b) = (m.thread(5), thread_on(&m, 1, 5));
    let _other = thread_on(&m, 1, 1);
    assert_eq!((b.cpu.get(), b.own_budget.get().unwrap().cpu.get()), (1, 1));
    // The first wait on another processor makes it the home, and is made again.
    assert!(sys_on(b, 3, bell, [0; 4], NEVER) == b);
    assert_eq!((n.home.get(), b.resume.get()), (1, Resume::Interrupt));
    assert!(sys_on(b, 3, bell, [0; 4], NEVER) != b);
    assert_eq!(b.state.get(), State::Waiting);
    assert!(sys_on(a, 2, bell, [0; 4], NEVER) == a);
    sys_on(a, 2, bell, [0; 4], NEVER);
    assert_eq!(
        b.state.get(),
        State::Waiting,
        "not this processor's to wake"
    );
    Cpu::play(1);
    collect(one);
    assert_eq!(
        (b.state.get(), status(b), b.get().get(reg::RDI)),
        (State::Ready, Status::Signal, 1)
    );
    assert!(one.reschedule.get() && !n.pending());
    // One that nobody waits for any more when it arrives stays pending.
    sys_on(a, 2, bell, [0; 4], NEVER);
    Cpu::play(1);
    collect(one);
    assert!(n.pending());
    // Busy elsewhere: the home stays with who waits.
    assert!(sys_on(b, 3, bell, [0; 4], NEVER) == b && status(b) == Status::Signal);
    sys_on(b, 3, bell, [0; 4], NEVER);
    assert!(sys_on(a, 3, bell, [0; 4], NEVER) == a);
    assert_eq!((status(a), n.home.get()), (Status::Busy, 1));
}

/// Whoever binds it, or moves while it is bound, takes it along: a waiter left behind would be woken by the wrong processor.
#[test]
fn nobody_waits_for_a_notification_that_is_at_home_elsewhere() {
    let m = Machine::new();
    let one = start(1);
    let (n, bell) = m.notification();
    let (t, waiter) = (m.thread(5), thread_on(&m, 1, 5));
    let _other = thread_on(&m, 1, 1);
    let wait = || sys_on(waiter, 3, bell, [0; 4], NEVER);
    wait();
    wait();
    assert_eq!((n.home.get(), waiter.state.get()), (1, State::Waiting));
    Cpu::play(0);
    t.bind(Some(n));
    let again = |waiter: Obj<Thread>| {
        crate::checker::check().unwrap();
        assert!(n.waiter.get().is_none() && one.budget.get() != waiter.budget.get());
        assert_eq!(
            (waiter.state.get(), waiter.resume.get()),
            (State::Ready, Resume::Interrupt)
        );
        assert!(waiter.budget.get().unwrap().queued.get());
    };
    again(waiter);
    // It has gone to who is bound.
    wait();
    assert_eq!((status(waiter), n.home.get()), (Status::Busy, 0));
    // The same when who is bound moves there and back.
    Cpu::play(0);
    t.own_budget.get().unwrap().move_to(one).unwrap();
    wait();
    assert_eq!((n.home.get(), waiter.state.get()), (1, State::Waiting));
    Cpu::play(1);
    t.own_budget.get().unwrap().move_to(m.cpu).unwrap();
    again(waiter);
}

/// A server with a caller in the queue, which would help it, is given a Budget of another processor: it leaves without that help.
#[test]
fn who_moves_does_not_take_a_budget_of_its_old_processor_along() {
    let m = Machine::new();
    let one = start(1);
    let ((n, bell), (_, slot)) = (m.notification(), m.endpoint());
    let (server, client, boss) = (m.thread(4), m.thread(7), m.thread(15));
    server.bind(Some(n));
    m.receive(server, slot);
    m.sys(client, 2, bell, 0, [0; 4], NEVER);
    assert_eq!(server.state.get(), State::Ready);
    m.call(client, slot, [0; 4]);
    assert_eq!(client.state.get(), State::Queued);
    let b = Budget::create(m.pool, 1).unwrap();
    b.configure(4, 1_000_000, 1_000_000, crate::arch::now());
    let words = [m.name(b), 0, 0, 0];
    let thread = m.name(server);
    let done = m.operate(boss, thread, op::thread::CONFIGURE, words);
    assert_eq!(done, Status::Ok);
    assert!(server.home().number == one.number && server.budget.get() == Some(b));
    assert!(client.callee.get().is_none());
    crate::checker::check().unwrap();
}

#[test]
fn a_notification_that_ends_is_in_no_mailbox() {
    let m = Machine::new();
    let one = start(1);
    let (n, bell) = m.notification();
    let (o, other_bell) = m.notification();
    n.move_to(1);
    o.move_to(1);
    let a = m.thread(5);
    sys_on(a, 2, bell, [0; 4], NEVER);
    sys_on(a, 2, other_bell, [0; 4], NEVER);
    n.get().destroy();
    let mut seen = vec![];
    one.mail.take(|p| seen.push(p.as_ptr()));
    assert_eq!(seen, [o.ptr()]);
    // And one whose home has moved meanwhile follows it.
    sys_on(a, 2, other_bell, [0; 4], NEVER);
    o.move_to(0);
    Cpu::play(1);
    collect(one);
    let mut seen = vec![];
    Cpu::all()[0].mail.take(|p| seen.push(p.as_ptr()));
    assert_eq!(seen, [o.ptr()]);
}

#[test]
fn calls_meet_threads_of_their_own_processor_only() {
    let m = Machine::new();
    start(1);
    let (_, ep) = m.endpoint();
    let (client, far, near) = (m.thread(5), thread_on(&m, 1, 5), m.thread(6));
    let _idle = thread_on(&m, 1, 0);
    sys_on(far, 1, ep, [0; 4], NEVER);
    let next = sys_on(client, 0, ep, [1, 2, 3, 7], NEVER);
    assert!(next != far && client.state.get() == State::Queued);
    assert!(sys_on(near, 1, ep, [0; 4], NEVER) == near);
    assert!(near.caller.get() == Some(client) && far.state.get() == State::Receiving);
}

#[test]
fn a_thread_that_waits_moves_and_waits_again() {
    let m = Machine::new();
    let one = start(1);
    let (_, ep) = m.endpoint();
    let (n, _) = m.notification();
    let (server, client) = (m.thread(6), thread_on(&m, 1, 5));
    let _idle = thread_on(&m, 1, 0);
    server.bind(Some(n));
    sys_on(server, 1, ep, [0; 4], NEVER);
    // Its client on the other processor is not served; once the server is there, it is.
    sys_on(client, 0, ep, [0; 4], NEVER);
    assert_eq!(client.state.get(), State::Queued);
    Cpu::play(0);
    server.own_budget.get().unwrap().move_to(one).unwrap();
    assert_eq!((server.cpu.get(), n.home.get()), (1, 1));
    assert_eq!(
        (
            server.state.get(),
            server.resume.get(),
            server.get().get(reg::RAX)
        ),
        (State::Ready, Resume::Interrupt, 1)
    );
    assert!(sys_on(server, 1, ep, [0; 4], NEVER) == server);
    assert!(server.caller.get() == Some(client));
    // Neither of them moves now.
    let zero = &Cpu::all()[0];
    for t in [server, client] {
        assert_eq!(t.own_budget.get().unwrap().move_to(zero), Err(Status::Busy));
    }
}

#[test]
fn what_runs_elsewhere_can_be_destroyed_and_moved() {
    let m = Machine::new();
    let one = start(1);
    let boss = m.thread(9);
    let (victim, mover) = (thread_on(&m, 1, 5), thread_on(&m, 1, 6));
    let names = [m.name(victim), m.name(mover)];
    Cpu::play(1);
    assert!(sched::pick(one) == mover);
    // Moved while it runs at user level there.
    let cpu0 = m.put(Cap::new(
        crate::object::cpu::CpuObject::create(m.pool, 0)
            .unwrap()
            .get()
            .header(),
    ));
    let budget = m.name(mover.own_budget.get().unwrap());
    let stops = one.stops.get();
    Cpu::play(0);
    sys_on(
        boss,
        0,
        budget,
        [cpu0, 3, 1000, op::budget::CONFIGURE],
        NEVER,
    );
    // w3 is the label here and the period too: what counts is the place.
    assert_eq!((status(boss), mover.cpu.get()), (Status::OutOfRange, 1));
    boss.set(reg::R12, 5000);
    mover.own_budget.get().unwrap().move_to(m.cpu).unwrap();
    assert_eq!((mover.cpu.get(), mover.state.get()), (0, State::Ready));
    assert!(one.current.get().is_none() && one.reschedule.get());
    Cpu::play(1);
    assert!(sched::pick(one) == victim);
    let space = m.name(m.space);
    Cpu::play(0);
    sys_on(
        boss,
        0,
        space,
        [names[0], 0, 0, op::space::DESTROY_OBJECT],
        NEVER,
    );
    assert_eq!(status(boss), Status::Ok);
    assert!(one.current.get().is_none() && one.reschedule.get());
    assert!(one.stops.get() > stops, "it has been stopped for that");
}

#[test]
fn a_table_of_several_processors_is_read_with_care_and_complete() {
    let m = Machine::new();
    start(1);
    let a = m.thread(5);
    let len = m.space.get().caps_len;
    assert_eq!(a.caps_len.get(), crate::object::space::PAGE_SLOTS);
    let b = thread_on(&m, 1, 5);
    assert_eq!((a.caps_len.get(), b.caps_len.get()), (0, 0));
    let (_, bell) = m.notification();
    for t in [a, b] {
        assert!(sys_on(t, 2, bell, [0; 4], NEVER) == t);
        assert_eq!(status(t), Status::Ok);
        sys_on(t, 2, len, [0; 4], NEVER);
        assert_eq!(status(t), Status::InvalidCap, "beyond the table");
        sys_on(t, 2, 0, [0; 4], NEVER);
        assert_eq!(status(t), Status::InvalidCap);
    }
    // A thread made later too.
    assert_eq!(m.thread(1).caps_len.get(), 0);
}

/// The threads of a Space read its table in place while one processor alone has them all: who writes it from another stops that one.
#[test]
fn a_table_that_is_read_in_place_is_written_under_a_stop() {
    let m = Machine::new();
    let one = start(1);
    let writer = m.thread(5);
    let other = Space::create(m.pool, 16).unwrap();
    let theirs = m.name(other);
    let (_, bell) = m.notification();
    let copy = |slot| {
        sys_on(
            writer,
            0,
            theirs,
            [bell, slot, 255, op::space::COPY_CAP],
            NEVER,
        )
    };
    let drop = |slot| sys_on(writer, 0, theirs, [slot, 0, 0, op::space::DROP_CAP], NEVER);
    // Nobody's yet.
    copy(1);
    assert_eq!((status(writer), one.stops.get()), (Status::Ok, 0));
    let t = m.thread_in(other, 5);
    t.own_budget.get().unwrap().move_to(one).unwrap();
    other.cpus.set(0b10);
    t.caps_len.set(other.caps_len);
    let stops = one.stops.get();
    copy(2);
    assert_eq!((status(writer), one.stops.get()), (Status::Ok, stops + 1));
    drop(1);
    assert_eq!((status(writer), one.stops.get()), (Status::Ok, stops + 2));
    // With care once there are several.
    other.used_on(0);
    assert_eq!(t.caps_len.get(), 0);
    drop(2);
    assert_eq!((status(writer), one.stops.get()), (Status::Ok, stops + 2));
}

#[test]
fn deadlines_and_periods_move_along() {
    let m = Machine::new();
    let one = start(1);
    let (_, bell) = m.notification();
    let t = m.thread(5);
    let _idle = thread_on(&m, 1, 0);
    let at = crate::arch::now() + 5_000;
    sys_on(t, 3, bell, [0; 4], at);
    Cpu::play(0);
    t.own_budget.get().unwrap().move_to(one).unwrap();
    assert_eq!(t.state.get(), State::Ready, "it waits anew by itself");
    sys_on(t, 3, bell, [0; 4], at);
    assert_eq!(t.state.get(), State::Waiting);
    crate::arch::advance(10_000);
    sched::tick(one);
    assert_eq!((t.state.get(), status(t)), (State::Ready, Status::Timeout));
    // An exhausted Budget's next period begins where it now is.
    let b = t.own_budget.get().unwrap();
    b.configure(5, 900, 50_000, crate::arch::now());
    Cpu::play(1);
    assert!(sched::pick(one) == t);
    crate::arch::advance(1_000);
    assert!(sched::pick(one) != t && b.exhausted.get());
    Cpu::play(0);
    b.get().move_to(m.cpu).unwrap();
    crate::arch::advance(60_000);
    sched::tick(m.cpu);
    assert!(!b.exhausted.get() && b.queued.get() && t.cpu.get() == 0);
}
