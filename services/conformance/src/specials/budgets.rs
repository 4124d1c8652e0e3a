//! Budgets: whose time it is.

use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::Special;
use crate::case::{Outcome, expect, same};
use crate::kernel::{Call, ask};
use crate::kit::{self, Kit};
use crate::partner::{Act, PRIORITY, Partner, pause};

pub(super) const CASES: &[Special] = &[
    (
        "a Budget that was never configured grants nothing",
        unconfigured,
    ),
    ("a destroyed Budget leaves its thread with none", destroyed),
    (
        "a server without a Budget serves on its caller's",
        serves_on_callers,
    ),
    ("a server's time is its caller's", charged),
    ("a caller that leaves takes its Budget along", loan_ends),
    ("an exhausted Budget waits for its period", exhausted),
    ("exhaustion signals", event),
    (
        "a server does not wait for its caller's period",
        not_stranded,
    ),
    ("a higher priority runs first", priority),
    ("a Budget destroyed while it is lent", destroyed_while_lent),
    (
        "a server goes on with the next caller's time, then with its own",
        next_callers,
    ),
    (
        "a server without time when its client leaves",
        without_time_left,
    ),
    (
        "a server without time when its client has none left",
        without_time_exhausted,
    ),
    ("time used too early is paid back", paid_back),
];

const SLOT: u64 = 10;

fn used(budget: u64) -> Outcome<u64> {
    Ok(ask(budget, op::budget::STAT, [0; 4])?[0])
}

fn configure(kit: &Kit, budget: u64, priority: u64, of: u64, period: u64) -> Outcome {
    let words = [
        kit.live(Kind::Cpu),
        priority,
        time::cycles(of),
        time::cycles(period),
    ];
    ask(budget, op::budget::CONFIGURE, words)?;
    Ok(())
}

fn unconfigured(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    let fresh = kit.make(Kind::Budget)?;
    ask(
        partner.thread,
        op::thread::CONFIGURE,
        [fresh, kit.supervisor, 0, 0],
    )?;
    partner.start(Syscall::Yield, 0, Tag(0), [0; 4], NEVER);
    pause(500);
    same("it ran", &false, &partner.done())?;
    same("used", &0, &used(fresh)?)?;
    configure(kit, fresh, PRIORITY, 10_000, 10_000)?;
    expect(Status::Ok, partner.finish()?.status)
}

fn destroyed(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    kit::destroy(partner.budget)?;
    partner.start(Syscall::Yield, 0, Tag(0), [0; 4], NEVER);
    pause(500);
    same("it ran", &false, &partner.done())?;
    let new = kit.make(Kind::Budget)?;
    configure(kit, new, PRIORITY, 10_000, 10_000)?;
    ask(
        partner.thread,
        op::thread::CONFIGURE,
        [new, kit.supervisor, 0, 0],
    )?;
    expect(Status::Ok, partner.finish()?.status)
}

/// A client and a server that waits for it.
fn pair(kit: &mut Kit) -> Outcome<(Partner, Partner)> {
    pair_at(kit).map(|(client, server, _)| (client, server))
}

/// The same, and where they meet.
fn pair_at(kit: &mut Kit) -> Outcome<(Partner, Partner, u64)> {
    let endpoint = kit.make(Kind::Endpoint)?;
    let (client, mut server) = (Partner::new(kit)?, Partner::new(kit)?);
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER);
    Ok((client, server, endpoint))
}

fn serves_on_callers(kit: &mut Kit) -> Outcome {
    let (mut client, mut server) = pair(kit)?;
    ask(
        server.thread,
        op::thread::CONFIGURE,
        [0, kit.supervisor, 0, 0],
    )?;
    client.start(Syscall::Call, SLOT, Tag(0), [5; 4], NEVER);
    same("the call", &[5; 4], &server.finish()?.words)?;
    // Still on the caller's: it answers, and has nothing then.
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [6; 4], NEVER);
    same("the answer", &[6; 4], &client.finish()?.words)?;
    client.start(Syscall::Call, SLOT, Tag(0), [7; 4], NEVER);
    same("the next call", &[7; 4], &server.finish()?.words)
}

/// The server spins on the client's Budget for a millisecond, and then on its own, below this server.
fn spin(
    kit: &mut Kit,
    of: u64,
    period: u64,
    deadline: u64,
) -> Outcome<(Partner, Partner, [u64; 4])> {
    let (mut client, mut server) = pair(kit)?;
    configure(kit, client.budget, PRIORITY, of, period)?;
    configure(kit, server.budget, 0, 10_000, 10_000)?;
    client.start(Syscall::Call, SLOT, Tag(0), [5; 4], time::after(deadline));
    server.finish()?;
    let before = [used(client.budget)?, used(server.budget)?];
    server.act(Act::Spin);
    // Here again when the client's time is up, one way or the other.
    let after = [used(client.budget)?, used(server.budget)?];
    Ok((client, server, [before[0], before[1], after[0], after[1]]))
}

fn charged(kit: &mut Kit) -> Outcome {
    let (client, server, [c0, s0, c1, s1]) = spin(kit, 10_000, 10_000, 3_000)?;
    same("the client paid", &true, &(c1 - c0 > time::cycles(2_000)))?;
    same(
        "the server paid little",
        &true,
        &(s1 - s0 < time::cycles(200)),
    )?;
    expect(Status::Timeout, client.finish()?.status)?;
    same("the server goes on", &false, &server.done())
}

fn loan_ends(kit: &mut Kit) -> Outcome {
    let (client, server, [_, _, c1, s1]) = spin(kit, 10_000, 10_000, 2_000)?;
    expect(Status::Timeout, client.finish()?.status)?;
    let settled = used(client.budget)?;
    pause(2_000);
    same(
        "the client pays on",
        &true,
        &(used(client.budget)? - settled < time::cycles(200)),
    )?;
    same(
        "the server pays itself",
        &true,
        &(used(server.budget)? - s1 > time::cycles(1_000)),
    )?;
    same("the client had paid", &true, &(settled >= c1))
}

fn exhausted(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    configure(kit, partner.budget, PRIORITY, 1_000, 10_000)?;
    let (from, before) = (runtime::now(), used(partner.budget)?);
    partner.act(Act::Spin);
    // Back here after a tenth of its period.
    let passed = runtime::now() - from;
    let took = used(partner.budget)? - before;
    same("more than it has", &false, &(took > time::cycles(1_100)))?;
    same("less than it has", &false, &(took < time::cycles(900)))?;
    same("too late", &false, &(passed > time::cycles(2_000)))?;
    pause(5_000);
    same(
        "before its period",
        &true,
        &(used(partner.budget)? - before == took),
    )?;
    pause(7_000);
    same(
        "in its next period",
        &true,
        &(used(partner.budget)? - before > took),
    )
}

fn event(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let badged = kit.badged(notification, rights::ALL, 0x30)?;
    let mut partner = Partner::new(kit)?;
    ask(partner.budget, op::budget::BIND_EVENT, [badged, 0, 0, 0])?;
    configure(kit, partner.budget, PRIORITY, 500, 50_000)?;
    partner.act(Act::Spin);
    let (status, r) = Call::system(Syscall::Wait, notification).make();
    expect(Status::Signal, status)?;
    same("bits", &0x30, &r.value)
}

fn not_stranded(kit: &mut Kit) -> Outcome {
    let (client, server, [c0, s0, c1, _]) = spin(kit, 1_000, 100_000, 50_000)?;
    same(
        "the client paid its budget",
        &true,
        &(c1 - c0 <= time::cycles(1_100)),
    )?;
    pause(2_000);
    same(
        "the server goes on",
        &true,
        &(used(server.budget)? - s0 > time::cycles(1_000)),
    )?;
    same("the client waits", &false, &client.done())
}

/// Among two that are ready the higher one runs; the lower one has what is left.
fn priority(kit: &mut Kit) -> Outcome {
    let (mut high, mut low) = (Partner::new(kit)?, Partner::new(kit)?);
    configure(kit, high.budget, 3, 10_000, 10_000)?;
    configure(kit, low.budget, 2, 10_000, 10_000)?;
    low.act(Act::Spin);
    high.act(Act::Spin);
    let before = [used(high.budget)?, used(low.budget)?];
    pause(3_000);
    let (h, l) = (
        used(high.budget)? - before[0],
        used(low.budget)? - before[1],
    );
    same("high ran", &true, &(h > time::cycles(2_000)))?;
    same("low ran", &0, &l)?;
    kit::destroy(high.thread)?;
    pause(2_000);
    same(
        "low runs now",
        &true,
        &(used(low.budget)? - before[1] > time::cycles(1_000)),
    )
}

fn destroyed_while_lent(kit: &mut Kit) -> Outcome {
    let (mut client, mut server) = pair(kit)?;
    client.start(Syscall::Call, SLOT, Tag(0), [5; 4], NEVER);
    server.finish()?;
    kit::destroy(client.budget)?;
    // The server goes on with its own; the client has its answer once it can run.
    server.lives()?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [6; 4], NEVER);
    pause(200);
    same("the client ran", &false, &client.done())?;
    let new = kit.make(Kind::Budget)?;
    configure(kit, new, PRIORITY, 10_000, 10_000)?;
    ask(
        client.thread,
        op::thread::CONFIGURE,
        [new, kit.supervisor, 0, 0],
    )?;
    same("the answer", &[6; 4], &client.finish()?.words)
}

fn next_callers(kit: &mut Kit) -> Outcome {
    let (mut client, mut server, endpoint) = pair_at(kit)?;
    configure(kit, client.budget, PRIORITY, 1_000, 100_000)?;
    configure(kit, server.budget, 0, 10_000, 10_000)?;
    client.start(Syscall::Call, SLOT, Tag(0), [5; 4], NEVER);
    server.finish()?;
    let mut next = Partner::new(kit)?;
    next.give(endpoint, SLOT, rights::ALL, 0)?;
    configure(kit, next.budget, PRIORITY, 2_000, 100_000)?;
    next.start(Syscall::Call, SLOT, Tag(0), [6; 4], NEVER);
    same("in the queue", &false, &next.done())?;
    let all = [client.budget, next.budget, server.budget];
    let mut before = [0; 3];
    for (used_so_far, budget) in before.iter_mut().zip(all) {
        *used_so_far = used(budget)?;
    }
    server.act(Act::Spin);
    // Here again when both have none left.
    for ((budget, before), most) in all.into_iter().zip(before).zip([1_000, 2_000, 0]) {
        let took = used(budget)? - before;
        let (low, high) = (
            time::cycles(most * 9 / 10),
            time::cycles(most * 11 / 10 + 50),
        );
        same("its time", &true, &(low <= took && took <= high))?;
    }
    pause(1_000);
    same(
        "then the server's own",
        &true,
        &(used(server.budget)? - before[2] > time::cycles(500)),
    )?;
    same("both wait", &[false, false], &[client.done(), next.done()])
}

/// A server that has no Budget, and a Notification that tells of it.
fn without_time(kit: &mut Kit, deadline: u64) -> Outcome<(Partner, Partner, u64)> {
    let (mut client, server) = pair(kit)?;
    let event = kit.make(Kind::Notification)?;
    let badged = kit.badged(event, rights::SEND, 0x50)?;
    ask(server.thread, op::thread::BIND_EVENT, [badged, 0, 0, 0])?;
    let none = [0, kit.supervisor, 0, 0];
    ask(server.thread, op::thread::CONFIGURE, none)?;
    configure(kit, client.budget, PRIORITY, 1_000, 100_000)?;
    client.start(Syscall::Call, SLOT, Tag(0), [5; 4], deadline);
    same("the call", &[5; 4], &server.finish()?.words)?;
    same("told of", &0, &bits(event))?;
    Ok((client, server, event))
}

fn bits(notification: u64) -> u64 {
    match Call::system(Syscall::Wait, notification).make() {
        (Status::Signal, r) => r.value,
        _ => 0,
    }
}

fn goes_on_with_its_own(kit: &mut Kit, server: &mut Partner) -> Outcome {
    let own = kit.make(Kind::Budget)?;
    configure(kit, own, 0, 10_000, 10_000)?;
    let words = [own, kit.supervisor, 0, 0];
    ask(server.thread, op::thread::CONFIGURE, words)?;
    pause(1_000);
    same("its own", &true, &(used(own)? > 0))
}

fn without_time_left(kit: &mut Kit) -> Outcome {
    let (client, mut server, event) = without_time(kit, time::after(1_000))?;
    expect(Status::Timeout, client.finish()?.status)?;
    // It waits, and needs no time.
    same("told of", &0, &bits(event))?;
    server.start(Syscall::Yield, 0, Tag(0), [0; 4], NEVER);
    same("told of", &0x50, &bits(event))?;
    same("it ran", &false, &server.done())?;
    goes_on_with_its_own(kit, &mut server)?;
    expect(Status::Ok, server.finish()?.status)
}

fn without_time_exhausted(kit: &mut Kit) -> Outcome {
    let (client, mut server, event) = without_time(kit, NEVER)?;
    server.act(Act::Spin);
    same("told of", &0x50, &bits(event))?;
    same("the client waits", &false, &client.done())?;
    goes_on_with_its_own(kit, &mut server)
}

/// A Budget of less than the kernel's longest step: what is used beyond it is missing later.
fn paid_back(kit: &mut Kit) -> Outcome {
    let partner = {
        let mut partner = Partner::new(kit)?;
        configure(kit, partner.budget, 0, 10_000, 10_000)?;
        partner.act(Act::Spin);
        partner
    };
    let before = used(partner.budget)?;
    let (budget, period, periods) = (1, 1_000, 50);
    configure(kit, partner.budget, PRIORITY, budget, period)?;
    pause(period * periods);
    let took = used(partner.budget)? - before;
    let share = time::cycles(budget * periods);
    // All but the last time too long.
    same("more", &true, &(took <= share + time::cycles(10)))?;
    same("less", &true, &(took >= share * 9 / 10))
}
