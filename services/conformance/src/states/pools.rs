//! Pools that are full, or are being destroyed, or are too many.

use alloc::vec::Vec;

use ipc_schema::abi::layout;
use ipc_schema::abi::operations::{Entry, Is, Operation};
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::partners::SLOT;
use super::{Row, refused, refused_dest};
use crate::case::{Outcome, expect, fail, same};
use crate::kernel::{Call, ask};
use crate::kit::{self, Kit, PAGE};
use crate::partner::{Partner, pause};
use crate::right::{self, AT};

pub(super) const ROWS: &[Row] = &[
    ("pool.create", "pool is full", full),
    ("memory.divide", "pool is full", full),
    ("ports.divide", "pool is full", full),
    ("cpu.create_irq", "pool is full", full),
    ("cpu.add", "pool is full", full),
    ("cpu.add", "dying", dying),
    ("space.map", "pool is full", full_target),
    ("guest_space.map", "pool is full", full_target),
    ("pool.create", "dying", dying),
    ("pool.stat", "dying", dying),
    ("memory.divide", "dying", dying),
    ("ports.divide", "dying", dying),
    ("cpu.create_irq", "dying", dying),
    ("pool.create thread", "page in use", page_in_use),
    ("pool.create vcpu", "page in use", page_in_use),
    ("memory.make_pool", "has parts", has_parts),
    ("memory.make_pool", "device", device),
    ("memory.make_pool", "too small", too_small),
    ("memory.make_pool", "too many pools", too_many),
];

/// Makes objects of a kind until the Pool is full.
fn fill(kit: &mut Kit, pool: u64, kind: Kind) -> Outcome {
    let slot = kit.dest()?;
    for _ in 0..4000 {
        match ask(pool, op::pool::CREATE, [kind as u64, slot, 0, 0]) {
            Ok(_) => kit.drop_cap(slot)?,
            Err(Status::NoMemory) => return Ok(()),
            Err(other) => return expect(Status::NoMemory, other),
        }
    }
    fail("the Pool does not become full")
}

/// The right call, paid by another Pool.
fn paid_by(operation: &Operation, call: &Call, pool: u64) -> Call {
    if let Entry::Call(Kind::Pool, _) = operation.entry {
        return Call {
            slot: pool,
            ..call.clone()
        };
    }
    let pays = |is: Is| {
        matches!(
            is,
            Is::Cap {
                kind: Kind::Pool,
                ..
            }
        )
    };
    let arg = operation.args.iter().find(|a| pays(a.is));
    arg.map_or_else(|| call.clone(), |arg| right::with(call.clone(), arg, pool))
}

fn full(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let pool = kit.small_pool(2)?;
    fill(kit, pool, Kind::Notification)?;
    let mut call = paid_by(operation, &right.call, pool);
    if operation.name == "cpu.add" {
        call.words[2] = kit::NO_PROCESSOR + 1;
    }
    let before = ask(pool, op::pool::STAT, [0; 4])?;
    same("free pages", &0, &before[0])?;
    refused_dest(kit, error, &call, right.dest)?;
    same(
        "figures of the full Pool",
        &before,
        &ask(pool, op::pool::STAT, [0; 4])?,
    )
}

/// A Space or GuestSpace whose Pool is full cannot map where it has no tables yet; with room it can.
fn full_target(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let kind = operation.target.unwrap_or(Kind::Space);
    let pool = kit.small_pool(16)?;
    let target = kit.make_from(pool, kind, 0, [16, 0])?;
    let spare = [(); 2].map(|()| kit.make_from(pool, Kind::GuestSpace, 0, [0; 2]));
    fill(kit, pool, Kind::Notification)?;
    let far = AT + (1 << 39);
    let mut call = right.call.clone();
    call.slot = target;
    call.words[0] = far;
    refused(kit, error, &call)?;
    // The Memory is not mapped: it can be divided.
    let part = kit.dest()?;
    ask(
        call.words[1] & 0xffff_ffff,
        op::memory::DIVIDE,
        [0, PAGE, part, kit.live(Kind::Pool)],
    )?;
    kit::destroy(part)?;
    // With three pages more there is room for the tables, and with a Mapping's slot for the record.
    for spare in spare {
        kit::destroy(spare?)?;
    }
    expect(Status::Ok, call.make().0)
}

/// A Pool whose destruction has begun: whoever does it has been stopped in the middle, by this server.
pub(crate) fn half_dead(kit: &mut Kit) -> Outcome<u64> {
    let pool = kit.small_pool(64)?;
    fill(kit, pool, Kind::Endpoint)?;
    let mut destroyer = Partner::new(kit)?;
    destroyer.give(pool, SLOT, rights::DESTROY, 0)?;
    let period = time::cycles(10_000);
    let lowest = [kit.live(Kind::Cpu), 0, period, period];
    ask(destroyer.budget, op::budget::CONFIGURE, lowest)?;
    let destroy = Tag::new(op::pool::DESTROY);
    destroyer.start(Syscall::Call, SLOT, destroy, [0; 4], NEVER);
    for _ in 0..200 {
        pause(5);
        match ask(pool, op::pool::STAT, [0; 4]) {
            Ok(_) => {}
            Err(Status::Busy) => return Ok(pool),
            Err(other) => return same("STAT in the middle", &Status::Busy, &other).map(|()| pool),
        }
    }
    fail("it does not begin")
}

fn dying(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let pool = half_dead(kit)?;
    refused_dest(
        kit,
        error,
        &paid_by(operation, &right.call, pool),
        right.dest,
    )
}

fn page_in_use(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for at in [kit::UTCB, kit::STATE, layout::STUB] {
        let mut call = right.call.clone();
        call.words[3] = at;
        refused_dest(kit, error, &call, right.dest)?;
    }
    Ok(())
}

fn has_parts(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let pool = kit.live(Kind::Pool);
    let part = kit.dest()?;
    ask(right.call.slot, op::memory::DIVIDE, [0, PAGE, part, pool])?;
    refused_dest(kit, error, &right.call, right.dest)?;
    kit::destroy(part)?;
    // What is a Pool already.
    let memory = kit.part(4 * PAGE)?;
    kit.make_pool(memory)?;
    let mut call = right.call.clone();
    call.slot = memory;
    refused_dest(kit, error, &call, right.dest)
}

fn device(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let mut call = right.call.clone();
    call.slot = kit.device;
    refused_dest(kit, error, &call, right.dest)
}

fn too_small(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let mut call = right.call.clone();
    call.slot = kit.part(PAGE)?;
    refused_dest(kit, error, &call, right.dest)
}

fn too_many(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    // More to hand down than there are.
    for pools in [1 << 16, u64::MAX] {
        let mut call = right.call.clone();
        call.words[1] = pools;
        refused_dest(kit, error, &call, right.dest)?;
    }
    let whole = kit.part(600 * 2 * PAGE)?;
    let own = u64::from(layout::slot::POOL);
    let mut pools: Vec<u64> = Vec::new();
    let memory = kit.dest()?;
    for i in 0..600 {
        ask(
            whole,
            op::memory::DIVIDE,
            [i * 2 * PAGE, 2 * PAGE, memory, own],
        )?;
        let dest = kit.dest()?;
        let made = ask(memory, op::memory::MAKE_POOL, [dest, 0, 0, 0]);
        kit.drop_cap(memory)?;
        match made {
            Ok(_) => pools.push(dest),
            Err(status) => {
                expect(error, status)?;
                let mut call = right.call.clone();
                call.words[0] = dest;
                refused_dest(kit, error, &call, Some(dest))?;
                // One less, and there is room.
                let last = pools.pop().unwrap_or(dest);
                kit::destroy_pool(last)?;
                expect(Status::Ok, call.make().0)?;
                return kit::destroy_pool(dest).map_err(Into::into);
            }
        }
    }
    fail("600 Pools")
}

/// Rights that all mappings of these cases ask for.
pub(super) const ACCESS: u64 = ((rights::READ | rights::WRITE) as u64) << 32;
