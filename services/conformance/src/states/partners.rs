//! What blocked callers see: time passing, partners dying, chains too long.

use alloc::vec::Vec;

use ipc_schema::abi::operations::Operation;
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::Row;
use crate::case::{Outcome, expect, same};
use crate::kernel::{Call, ask};
use crate::kit::{self, Kit};
use crate::partner::{Partner, pause};
use crate::specials::guest::{self, LOOP};

pub(super) const ROWS: &[Row] = &[
    ("call", "too deep", too_deep),
    ("call", "nobody takes it", nobody_takes),
    ("call", "nobody answers", nobody_answers),
    ("call", "endpoint destroyed", queued_at_dead),
    ("call", "receiver destroyed", receiver_destroyed),
    ("reply_recv", "nothing comes", nothing_comes),
    ("reply_recv", "endpoint destroyed", receiving_at_dead),
    ("wait", "another waits", another_waits),
    ("wait", "nothing comes", no_signal),
    ("wait", "destroyed", waits_for_dead),
    ("run", "another runs it", another_runs),
    ("run", "destroyed", runs_dead),
];

/// Slot in a partner's table that these cases use.
pub(crate) const SLOT: u64 = 10;

/// A partner with a capability.
pub(crate) fn with(kit: &mut Kit, source: u64, keep: u32) -> Outcome<Partner> {
    let partner = Partner::new(kit)?;
    partner.give(source, SLOT, keep, 0)?;
    Ok(partner)
}

fn soon() -> u64 {
    time::after(2_000)
}

fn too_deep(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    const DEPTH: u64 = 16;
    let first = Partner::new(kit)?;
    let mut chain: Vec<Partner> = Vec::from([first]);
    for i in 1..=DEPTH {
        let next = first.sibling(kit, i)?;
        chain.push(next);
    }
    for i in 0..=DEPTH {
        let endpoint = kit.make(Kind::Endpoint)?;
        first.give(endpoint, SLOT + i, rights::ALL, 0)?;
    }
    for i in 0..DEPTH {
        if let Some([caller, server]) = chain.get_mut(i as usize..=i as usize + 1) {
            server.start(Syscall::ReplyRecv, SLOT + i, Tag(0), [0; 4], NEVER);
            caller.start(Syscall::Call, SLOT + i, Tag(0), [i; 4], NEVER);
            let taken = server.finish()?;
            expect(Status::Ok, taken.status)?;
            same("words", &[i; 4], &taken.words)?;
        }
    }
    let Some(last) = chain.last_mut() else {
        return Ok(());
    };
    let deep = last.call(Syscall::Call, SLOT + DEPTH, Tag(0), [0; 4], soon())?;
    expect(error, deep.status)?;
    // From the bottom up all are answered.
    for i in (0..DEPTH).rev() {
        if let Some([caller, server]) = chain.get_mut(i as usize..=i as usize + 1) {
            server.start(Syscall::ReplyRecv, 0, Tag(0), [100 + i; 4], runtime::now());
            let answer = caller.finish()?;
            expect(Status::Ok, answer.status)?;
            same("answer", &[100 + i; 4], &answer.words)?;
            server.finish()?;
        }
    }
    Ok(())
}

fn nobody_takes(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut client = with(kit, endpoint, rights::ALL)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], soon());
    same("blocked", &false, &client.done())?;
    expect(error, client.finish()?.status)?;
    // The call was not made: nobody is in the queue.
    let mut server = with(kit, endpoint, rights::ALL)?;
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], soon())?;
    expect(Status::Timeout, got.status)
}

fn nobody_answers(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut client = with(kit, endpoint, rights::ALL)?;
    let mut server = with(kit, endpoint, rights::ALL)?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER);
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], soon());
    expect(Status::Ok, server.finish()?.status)?;
    expect(error, client.finish()?.status)?;
    // The late reply reaches nobody, and the next call is answered for itself.
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [66; 4], NEVER);
    client.start(Syscall::Call, SLOT, Tag(0), [2; 4], NEVER);
    same("the next call", &[2; 4], &server.finish()?.words)?;
    same("blocked", &false, &client.done())?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [77; 4], NEVER);
    same("its answer", &[77; 4], &client.finish()?.words)
}

fn queued_at_dead(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut clients = [
        with(kit, endpoint, rights::ALL)?,
        with(kit, endpoint, rights::ALL)?,
    ];
    for client in &mut clients {
        client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
        same("blocked", &false, &client.done())?;
    }
    kit::destroy(endpoint)?;
    for client in &mut clients {
        expect(error, client.finish()?.status)?;
        client.lives()?;
    }
    Ok(())
}

fn receiver_destroyed(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut client = with(kit, endpoint, rights::ALL)?;
    let mut server = with(kit, endpoint, rights::ALL)?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER);
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    expect(Status::Ok, server.finish()?.status)?;
    kit::destroy(server.thread)?;
    expect(error, client.finish()?.status)?;
    client.lives()
}

fn nothing_comes(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut server = with(kit, endpoint, rights::ALL)?;
    for slot in [SLOT, 0] {
        for deadline in [0, 1, runtime::now()] {
            let got = server.call(Syscall::ReplyRecv, slot, Tag(0), [0; 4], deadline)?;
            expect(error, got.status)?;
        }
        server.start(Syscall::ReplyRecv, slot, Tag(0), [0; 4], soon());
        same("blocked", &false, &server.done())?;
        expect(error, server.finish()?.status)?;
    }
    Ok(())
}

fn receiving_at_dead(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut server = with(kit, endpoint, rights::ALL)?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER);
    same("blocked", &false, &server.done())?;
    kit::destroy(endpoint)?;
    expect(error, server.finish()?.status)?;
    server.lives()
}

fn another_waits(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut first = with(kit, notification, rights::RECV)?;
    first.start(Syscall::Wait, SLOT, Tag(0), [0; 4], NEVER);
    let mut second = with(kit, notification, rights::RECV)?;
    let got = second.call(Syscall::Wait, SLOT, Tag(0), [0; 4], soon())?;
    expect(error, got.status)?;
    expect(
        Status::Ok,
        Call::system(Syscall::Signal, notification).make().0,
    )?;
    expect(Status::Signal, first.finish()?.status)
}

fn no_signal(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut waiter = with(kit, notification, rights::RECV)?;
    for deadline in [0, 1, runtime::now()] {
        let got = waiter.call(Syscall::Wait, SLOT, Tag(0), [0; 4], deadline)?;
        expect(error, got.status)?;
    }
    waiter.start(Syscall::Wait, SLOT, Tag(0), [0; 4], soon());
    same("blocked", &false, &waiter.done())?;
    expect(error, waiter.finish()?.status)
}

fn waits_for_dead(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut waiter = with(kit, notification, rights::RECV)?;
    waiter.start(Syscall::Wait, SLOT, Tag(0), [0; 4], NEVER);
    same("blocked", &false, &waiter.done())?;
    kit::destroy(notification)?;
    expect(error, waiter.finish()?.status)?;
    waiter.lives()
}

fn another_runs(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let mut guest = guest::Guest::new(kit, LOOP)?;
    let mut other = with(kit, guest.vcpu, rights::ALL)?;
    guest.run()?;
    let got = other.call(Syscall::Run, SLOT, Tag(0), [0; 4], soon())?;
    expect(error, got.status)?;
    guest.run().map(drop)
}

/// It runs below this server, which so can stop it.
fn runs_dead(kit: &mut Kit, _: &'static Operation, error: Status) -> Outcome {
    let guest = guest::Guest::new(kit, LOOP)?;
    let mut runner = with(kit, guest.vcpu, rights::ALL)?;
    let period = time::cycles(10_000);
    let lowest = [kit.live(Kind::Cpu), 0, period, period];
    ask(runner.budget, op::budget::CONFIGURE, lowest)?;
    runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
    pause(1_000);
    same("in its guest", &false, &runner.done())?;
    kit::destroy(guest.vcpu)?;
    expect(error, runner.finish()?.status)?;
    runner.lives()
}
