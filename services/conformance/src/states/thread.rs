//! Threads that run, or whose partners are taken; budgets beyond their period.

use ipc_schema::abi::operations::Operation;
use ipc_schema::abi::{Kind, Status, op, rights};

use super::{Row, refused};
use crate::case::Outcome;
use crate::kernel::ask;
use crate::kit::{Kit, PAGE, UTCB};
use crate::right;

pub(super) const ROWS: &[Row] = &[
    ("thread.configure", "notification taken", notification_taken),
    ("thread.configure", "another's badge", foreign_badge),
    ("thread.configure", "budget taken", budget_taken),
    ("thread.start", "not stopped", started),
    ("thread.write_regs", "not stopped", running),
    ("budget.configure", "more than the period", too_much),
];

/// Another thread with a Budget and a Notification: these two.
fn other(kit: &mut Kit) -> Outcome<[u64; 2]> {
    let (pool, space) = (kit.live(Kind::Pool), kit.live(Kind::Space));
    let thread = kit.make_from(pool, Kind::Thread, 0, [space, UTCB + 8 * PAGE])?;
    let (budget, notification) = (kit.make(Kind::Budget)?, kit.make(Kind::Notification)?);
    ask(thread, op::thread::CONFIGURE, [budget, 0, 0, notification])?;
    Ok([budget, notification])
}

fn notification_taken(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let [_, notification] = other(kit)?;
    let mut call = right.call.clone();
    call.words[3] = notification;
    refused(kit, error, &call)
}

fn budget_taken(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let [budget, _] = other(kit)?;
    let mut call = right.call.clone();
    call.words[0] = budget;
    refused(kit, error, &call)
}

/// Nobody speaks under a badge that he could not hand out.
fn foreign_badge(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let endpoint = kit.live(Kind::Endpoint);
    let badged = kit.badged(endpoint, rights::ALL, 5)?;
    let bare = kit.copy(endpoint, rights::SEND)?;
    for (cap, badge) in [(badged, 6), (bare, 7), (bare, u64::MAX)] {
        let mut call = right.call.clone();
        call.words[1] = cap;
        call.words[2] = badge;
        refused(kit, error, &call)?;
    }
    // Its own it may have.
    let mut call = right.call.clone();
    call.words = [0, badged, 5, 0];
    crate::case::expect(Status::Ok, call.make().0)?;
    ask(right.call.slot, op::thread::CONFIGURE, [0; 4])?;
    Ok(())
}

fn started(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let thread = right.call.slot;
    // Started, and without a Budget to run on.
    ask(thread, op::thread::START, right.call.words)?;
    refused(kit, error, &right.call)?;
    ask(thread, op::thread::SUSPEND, [0; 4])?;
    refused(kit, error, &right.call)?;
    kit.renew(Kind::Thread)?;
    ask(thread, op::thread::SUSPEND, [0; 4])?;
    refused(kit, error, &right.call)?;
    Ok(kit.renew(Kind::Thread)?)
}

fn running(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    ask(right.call.slot, op::thread::START, [0x1000, 0x2000, 0, 0])?;
    refused(kit, error, &right.call)?;
    Ok(kit.renew(Kind::Thread)?)
}

fn too_much(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for (budget, period) in [
        (1001, 1000),
        (1, 0),
        (u64::MAX, u64::MAX - 1),
        (u64::MAX, 0),
    ] {
        let mut call = right.call.clone();
        call.words[2] = budget;
        call.words[3] = period;
        refused(kit, error, &call)?;
    }
    Ok(())
}
