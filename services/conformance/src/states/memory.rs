//! Memory that is divided, mapped or a Pool; ranges in use; badges.

use ipc_schema::abi::layout;
use ipc_schema::abi::operations::Operation;
use ipc_schema::abi::{Kind, Status, op, rights};

use super::pools::ACCESS;
use super::{Row, refused, refused_dest};
use crate::case::{Outcome, expect, fail};
use crate::kernel::ask;
use crate::kit::{self, Kit, PAGE};
use crate::right::{self, AT};

pub(super) const ROWS: &[Row] = &[
    ("memory.divide", "mapped", mapped),
    ("memory.divide", "too deep", too_deep),
    ("memory.divide", "parts overlap", parts_overlap),
    ("space.map", "more than the capability allows", too_much),
    (
        "guest_space.map",
        "more than the capability allows",
        too_much,
    ),
    ("space.map", "memory has parts", has_parts),
    ("guest_space.map", "memory has parts", has_parts),
    ("space.map", "writable and executable", writable_executable),
    ("guest_space.map", "device", device),
    ("space.map", "in use", in_use),
    ("guest_space.map", "in use", in_use),
    ("space.copy_cap", "badge cannot be set", badge),
    ("space.destroy_object", "indestructible", indestructible),
    ("space.destroy_object", "backs a pool", backs_a_pool),
];

fn mapped(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for kind in [Kind::Space, Kind::GuestSpace] {
        let target = kit.live(kind);
        ask(
            target,
            op::space::MAP,
            [AT, right.call.slot | ACCESS, 0, PAGE],
        )?;
        let outcome = refused_dest(kit, error, &right.call, right.dest);
        ask(target, op::space::UNMAP, [AT, 0, 0, 0])?;
        outcome?;
    }
    let mut call = right.call.clone();
    call.slot = kit.part(4 * PAGE)?;
    kit.make_pool(call.slot)?;
    refused_dest(kit, error, &call, right.dest)
}

/// One within the other, as far as it goes.
fn too_deep(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let pool = kit.live(Kind::Pool);
    let mut inner = kit.part(4 * PAGE)?;
    for _ in 0..64 {
        let part = kit.dest()?;
        let mut call = right.call.clone();
        call.slot = inner;
        call.words = [0, 4 * PAGE, part, pool];
        match call.make().0 {
            Status::Ok => inner = part,
            status => {
                expect(error, status)?;
                return refused_dest(kit, error, &call, Some(part));
            }
        }
    }
    fail("64 deep")
}

fn parts_overlap(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let pool = kit.live(Kind::Pool);
    let part = kit.dest()?;
    ask(
        right.call.slot,
        op::memory::DIVIDE,
        [2 * PAGE, 4 * PAGE, part, pool],
    )?;
    let mut outcome = Ok(());
    // The same, inside, over its beginning, over its end, around it.
    for (offset, len) in [(2, 4), (3, 1), (1, 2), (5, 2), (0, 16)] {
        let mut call = right.call.clone();
        call.words[0] = offset * PAGE;
        call.words[1] = len * PAGE;
        outcome = outcome.and_then(|()| refused_dest(kit, error, &call, right.dest));
    }
    kit::destroy(part)?;
    outcome
}

fn too_much(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let memory = kit.live(Kind::Memory);
    let (read, write, exec) = (rights::READ, rights::WRITE, rights::EXEC);
    for (has, asks) in [
        (read, read | write),
        (read, read | exec),
        (write, read),
        (rights::ALL & !write, read | write),
        (rights::ALL & !exec, read | exec),
        (rights::ALL & !read, read),
        (0, read),
    ] {
        let less = kit.copy(memory, has)?;
        let mut call = right.call.clone();
        call.words[1] = less | u64::from(asks) << 32;
        refused(kit, error, &call)?;
    }
    Ok(())
}

fn has_parts(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let pool = kit.live(Kind::Pool);
    let part = kit.dest()?;
    ask(
        kit.live(Kind::Memory),
        op::memory::DIVIDE,
        [8 * PAGE, PAGE, part, pool],
    )?;
    refused(kit, error, &right.call)?;
    kit::destroy(part)?;
    let memory = kit.part(4 * PAGE)?;
    kit.make_pool(memory)?;
    let mut call = right.call.clone();
    call.words[1] = memory | ACCESS;
    refused(kit, error, &call)
}

fn writable_executable(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let mut call = right.call.clone();
    call.words[1] |= u64::from(rights::EXEC) << 32;
    refused(kit, error, &call)
}

fn device(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let mut call = right.call.clone();
    call.words[1] = kit.device | ACCESS;
    call.words[3] = PAGE;
    refused(kit, error, &call)
}

fn in_use(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let (target, memory) = (right.call.slot, kit.live(Kind::Memory) | ACCESS);
    ask(target, op::space::MAP, [AT, memory, 0, 4 * PAGE])?;
    let mut outcome = Ok(());
    let mut tried = |at: u64, offset: u64, len: u64| {
        let mut call = right.call.clone();
        call.words = [at, memory, offset, len];
        outcome = outcome.clone().and_then(|()| refused(kit, error, &call));
    };
    // The same, inside, over its beginning, over its end, around it.
    tried(AT, 0, 4 * PAGE);
    tried(AT + PAGE, 0, PAGE);
    tried(AT - PAGE, 0, 2 * PAGE);
    tried(AT + 3 * PAGE, 0, 2 * PAGE);
    tried(AT - PAGE, 0, 6 * PAGE);
    if operation.target == Some(Kind::Space) {
        // The kernel's own pages in it.
        for at in [layout::STUB, kit::UTCB, kit::STATE, kit::STATE - PAGE] {
            tried(at, 0, 2 * PAGE);
        }
    }
    ask(target, op::space::UNMAP, [AT, 0, 0, 0])?;
    outcome
}

fn badge(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let badged = kit.badged(kit.live(Kind::Notification), rights::ALL, 3)?;
    let takes_none = [
        Kind::Pool,
        Kind::Memory,
        Kind::Space,
        Kind::Thread,
        Kind::Budget,
        Kind::GuestSpace,
        Kind::Vcpu,
        Kind::Irq,
        Kind::Ports,
        Kind::Cpu,
    ];
    let live = takes_none.map(|k| kit.live(k));
    for source in live.into_iter().chain([badged]) {
        let mut call = right.call.clone();
        call.words[0] = source;
        call.words[3] = 9;
        refused(kit, error, &call)?;
    }
    Ok(())
}

fn indestructible(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for kind in [Kind::Pool, Kind::Cpu, Kind::Log] {
        let mut call = right.call.clone();
        call.words[0] = kit.live(kind);
        refused(kit, error, &call)?;
    }
    Ok(())
}

fn backs_a_pool(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let whole = kit.part(8 * PAGE)?;
    let part = kit.dest()?;
    ask(
        whole,
        op::memory::DIVIDE,
        // The number of the Pool comes out of that of the one that the Memory lives in.
        [0, 4 * PAGE, part, u64::from(layout::slot::POOL)],
    )?;
    kit.make_pool(part)?;
    for memory in [part, whole] {
        let mut call = right.call.clone();
        call.words[0] = memory;
        refused(kit, error, &call)?;
    }
    Ok(())
}
