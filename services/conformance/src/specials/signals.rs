//! Notifications: bits, who wakes, and deadlines of every kind.

use ipc_schema::abi::vm::{Exit, ExitWord};
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::Special;
use super::guest::{Guest, IN, LOOP};
use crate::case::{Outcome, expect, same};
use crate::kernel::{Call, ask, raw};
use crate::kit::Kit;
use crate::partner::{Partner, pause};

pub(super) const CASES: &[Special] = &[
    ("bits come together", bits_together),
    ("a signal without a badge is bit 0", no_badge),
    ("a signal wakes who waits, with all bits", wakes),
    ("bits come before a past deadline", bits_before_deadline),
    ("a deadline just short of never", almost_never),
    ("deadlines come in order", in_order),
    ("the bound Notification ends reply_recv", ends_reply_recv),
    ("bits from before end reply_recv at once", pending_ends),
    ("an unbound Notification ends nothing", unbound),
    ("the bound Notification ends run", ends_run),
    ("bits from before end run at once", pending_ends_run),
    ("a past deadline ends run at once", past_ends_run),
    ("bits for a bound thread in a call stay", stays_in_call),
    ("binding moves to another thread", moves),
    (
        "each blocking call ends at its deadline, no sooner, and soon",
        each_deadline,
    ),
];

const SLOT: u64 = 10;

fn signal(slot: u64) -> Outcome {
    expect(Status::Ok, Call::system(Syscall::Signal, slot).make().0)
}

fn taken(slot: u64, bits: u64) -> Outcome {
    let (status, r) = Call::system(Syscall::Wait, slot).make();
    expect(Status::Signal, status)?;
    same("bits", &bits, &r.value)?;
    expect(Status::Timeout, Call::system(Syscall::Wait, slot).make().0)
}

fn bits_together(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut all = 0;
    for badge in [1 << 63, 1 << 62 | 1, 2, 1 << 63] {
        let badged = kit.badged(notification, rights::SEND, badge)?;
        signal(badged)?;
        all |= badge;
    }
    taken(notification, all)
}

fn no_badge(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    signal(notification)?;
    signal(notification)?;
    taken(notification, 1)
}

fn waiter(kit: &mut Kit) -> Outcome<(Partner, u64)> {
    let notification = kit.make(Kind::Notification)?;
    let partner = Partner::new(kit)?;
    partner.give(notification, SLOT, rights::RECV, 0)?;
    Ok((partner, notification))
}

fn wakes(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = waiter(kit)?;
    let badged = kit.badged(notification, rights::SEND, 0xff00)?;
    partner.start(Syscall::Wait, SLOT, Tag(0), [0; 4], NEVER);
    same("blocked", &false, &partner.done())?;
    signal(badged)?;
    same("woken at once", &true, &partner.done())?;
    let got = partner.finish()?;
    expect(Status::Signal, got.status)?;
    same("bits", &0xff00, &got.value)?;
    expect(
        Status::Timeout,
        Call::system(Syscall::Wait, notification).make().0,
    )
}

fn bits_before_deadline(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    for deadline in [0, runtime::now(), NEVER] {
        signal(notification)?;
        let (status, r) = raw(Syscall::Wait, notification, Tag(0), [0; 4], deadline);
        expect(Status::Signal, status)?;
        same("bits", &1, &r.value)?;
    }
    Ok(())
}

fn almost_never(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = waiter(kit)?;
    for deadline in [NEVER - 1, 1 << 63, i64::MAX as u64, NEVER] {
        partner.start(Syscall::Wait, SLOT, Tag(0), [0; 4], deadline);
        pause(200);
        same("blocked", &false, &partner.done())?;
        signal(notification)?;
        expect(Status::Signal, partner.finish()?.status)?;
    }
    Ok(())
}

fn in_order(kit: &mut Kit) -> Outcome {
    let (mut first, _) = waiter(kit)?;
    let (mut second, _) = waiter(kit)?;
    let from = runtime::now();
    let far = from + time::cycles(4_000);
    let near = from + time::cycles(1_000);
    first.start(Syscall::Wait, SLOT, Tag(0), [0; 4], far);
    second.start(Syscall::Wait, SLOT, Tag(0), [0; 4], near);
    pause(2_000);
    same("near, far", &[true, false], &[second.done(), first.done()])?;
    expect(Status::Timeout, first.finish()?.status)?;
    same("not before its time", &true, &(runtime::now() >= far))
}

/// Calls that nobody takes, or takes and does not answer; waiting for calls, for a signal; a guest, and a guest's access.
fn each_deadline(kit: &mut Kit) -> Outcome {
    const LATE: u64 = 20;
    let (nobodys, endpoint) = (kit.make(Kind::Endpoint)?, kit.make(Kind::Endpoint)?);
    let notification = kit.make(Kind::Notification)?;
    let (guest, routed) = (Guest::new(kit, LOOP)?, Guest::new(kit, IN)?);
    let mut server = Partner::new(kit)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER);
    let limit = time::cycles(3_000);
    let words = [0x4000 | 4 << 16 | 1 << 32, nobodys, limit, 0];
    ask(routed.space, op::guest_space::ROUTE, words)?;
    let calls = [
        (Syscall::Call, nobodys, Status::Timeout),
        (Syscall::Call, endpoint, Status::Timeout),
        (Syscall::ReplyRecv, nobodys, Status::Timeout),
        (Syscall::ReplyRecv, 0, Status::Timeout),
        (Syscall::Wait, notification, Status::Timeout),
        (Syscall::Run, guest.vcpu, Status::Ok),
        (Syscall::Run, routed.vcpu, Status::Ok),
    ];
    for (call, slot, status) in calls {
        let (from, until) = (runtime::now(), time::after(2_000));
        let (is, r) = raw(call, slot, Tag(0), [0; 4], until);
        let to = runtime::now();
        // The route's own limit comes in place of the deadline, which waits.
        let (until, exit) = if slot == routed.vcpu {
            (from + limit, Exit::RouteLost)
        } else {
            (until, Exit::Timeout)
        };
        expect(status, is)?;
        if call == Syscall::Run {
            same("exit", &exit, &ExitWord(r.tag).exit())?;
        }
        same("too soon", &false, &(to < until))?;
        same("late", &false, &(to > until + time::cycles(LATE)))?;
    }
    // The call that was taken.
    server.finish().map(drop)
}

/// A partner with a bound Notification and an Endpoint.
fn bound(kit: &mut Kit) -> Outcome<(Partner, u64)> {
    let (endpoint, notification) = (kit.make(Kind::Endpoint)?, kit.make(Kind::Notification)?);
    let partner = Partner::new(kit)?;
    partner.give(endpoint, SLOT, rights::ALL, 0)?;
    bind(kit, &partner, notification)?;
    Ok((partner, notification))
}

fn bind(kit: &Kit, partner: &Partner, notification: u64) -> Outcome {
    let words = [partner.budget, kit.supervisor, 0, notification];
    ask(partner.thread, op::thread::CONFIGURE, words)?;
    Ok(())
}

fn ends_reply_recv(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = bound(kit)?;
    for slot in [SLOT, 0] {
        partner.start(Syscall::ReplyRecv, slot, Tag(0), [0; 4], NEVER);
        same("blocked", &false, &partner.done())?;
        signal(notification)?;
        let got = partner.finish()?;
        expect(Status::Signal, got.status)?;
        same("bits", &1, &got.value)?;
    }
    Ok(())
}

fn pending_ends(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = bound(kit)?;
    for slot in [SLOT, 0] {
        signal(notification)?;
        let got = partner.call(Syscall::ReplyRecv, slot, Tag(0), [0; 4], NEVER)?;
        expect(Status::Signal, got.status)?;
        same("bits", &1, &got.value)?;
    }
    Ok(())
}

fn unbound(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = bound(kit)?;
    bind(kit, &partner, 0)?;
    partner.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], time::after(1_000));
    signal(notification)?;
    same("blocked", &false, &partner.done())?;
    expect(Status::Timeout, partner.finish()?.status)?;
    taken(notification, 1)
}

/// A partner that can run a guest which never leaves by itself; below this server, so that it can be stopped.
fn runner(kit: &mut Kit) -> Outcome<(Partner, u64)> {
    let guest = Guest::new(kit, LOOP)?;
    let (partner, notification) = bound(kit)?;
    partner.give(guest.vcpu, SLOT + 1, rights::ALL, 0)?;
    let period = time::cycles(10_000);
    let lowest = [kit.live(Kind::Cpu), 0, period, period];
    ask(partner.budget, op::budget::CONFIGURE, lowest)?;
    Ok((partner, notification))
}

fn ends_run(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = runner(kit)?;
    partner.start(Syscall::Run, SLOT + 1, Tag(0), [0; 4], NEVER);
    pause(1_000);
    same("in its guest", &false, &partner.done())?;
    signal(notification)?;
    let got = partner.finish()?;
    expect(Status::Ok, got.status)?;
    same("exit", &Exit::Signal, &ExitWord(got.tag.0).exit())?;
    same("bits", &1, &got.words[0])
}

fn pending_ends_run(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = runner(kit)?;
    signal(notification)?;
    let got = partner.call(Syscall::Run, SLOT + 1, Tag(0), [0; 4], NEVER)?;
    same("exit", &Exit::Signal, &ExitWord(got.tag.0).exit())
}

fn past_ends_run(kit: &mut Kit) -> Outcome {
    let (mut partner, _) = runner(kit)?;
    for deadline in [0, 1, runtime::now(), time::after(1_000)] {
        let got = partner.call(Syscall::Run, SLOT + 1, Tag(0), [0; 4], deadline)?;
        expect(Status::Ok, got.status)?;
        same("exit", &Exit::Timeout, &ExitWord(got.tag.0).exit())?;
    }
    Ok(())
}

fn stays_in_call(kit: &mut Kit) -> Outcome {
    let (mut partner, notification) = bound(kit)?;
    partner.start(Syscall::Call, SLOT, Tag(0), [0; 4], time::after(2_000));
    signal(notification)?;
    same("blocked", &false, &partner.done())?;
    expect(Status::Timeout, partner.finish()?.status)?;
    taken(notification, 1)
}

fn moves(kit: &mut Kit) -> Outcome {
    let (mut first, notification) = bound(kit)?;
    let (mut second, _) = bound(kit)?;
    bind(kit, &first, 0)?;
    bind(kit, &second, notification)?;
    first.start(Syscall::ReplyRecv, 0, Tag(0), [0; 4], time::after(2_000));
    second.start(Syscall::ReplyRecv, 0, Tag(0), [0; 4], NEVER);
    signal(notification)?;
    expect(Status::Signal, second.finish()?.status)?;
    expect(Status::Timeout, first.finish()?.status)
}
