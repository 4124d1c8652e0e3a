//! Routes, exits, ports and vectors.

use ipc_schema::abi::operations::Operation;
use ipc_schema::abi::{Kind, Status, op};

use super::{Row, refused, refused_dest};
use crate::case::{Outcome, expect, fail};
use crate::kernel::ask;
use crate::kit::{Kit, PORT, PORTS};
use crate::right::{self, ROUTE};

pub(super) const ROWS: &[Row] = &[
    ("guest_space.route", "beyond the last port", beyond),
    ("guest_space.route", "already routed", already),
    ("guest_space.route", "too many routes", too_many_routes),
    ("guest_space.route", "too many groups", too_many_groups),
    ("vcpu.on_exit", "no such exit", no_exit),
    ("ports.in", "not its ports", foreign_access),
    ("ports.out", "not its ports", foreign_access),
    ("ports.divide", "not its ports", foreign_part),
    ("cpu.create_irq", "no vector left", no_vector),
];

/// The range of a route in word 0, the rest as it was.
const fn ranged(word: u64, first: u64, count: u64) -> u64 {
    (word & !0xffff_ffff) | first | count << 16
}

fn beyond(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for (first, count) in [(0xffff, 2), (0xfffe, 3), (0xffff, 0xffff), (2, 0xffff)] {
        let mut call = right.call.clone();
        call.words[0] = ranged(call.words[0], first, count);
        refused(kit, error, &call)?;
    }
    Ok(())
}

fn already(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    ask(right.call.slot, op::guest_space::ROUTE, right.call.words)?;
    let mut outcome = Ok(());
    // The same, inside, over its beginning, over its end, around it.
    for (first, count) in [(0, 4), (1, 1), (-1, 2), (3, 2), (-1, 6)] {
        let mut call = right.call.clone();
        let first = ROUTE.wrapping_add_signed(first);
        call.words[0] = ranged(call.words[0], first, count);
        outcome = outcome.and_then(|()| refused(kit, error, &call));
    }
    ask(right.call.slot, op::guest_space::UNROUTE, [ROUTE, 0, 0, 0])?;
    outcome
}

fn too_many_routes(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let mut call = right::prepare(kit, operation)?.call;
    call.slot = kit.make(Kind::GuestSpace)?;
    for i in 0..48 {
        call.words[0] = ranged(call.words[0], ROUTE + i, 1);
        expect(Status::Ok, call.make().0)?;
    }
    call.words[0] = ranged(call.words[0], ROUTE + 48, 1);
    refused(kit, error, &call)?;
    ask(call.slot, op::guest_space::UNROUTE, [ROUTE + 7, 0, 0, 0])?;
    expect(Status::Ok, call.make().0)
}

fn too_many_groups(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let mut call = right::prepare(kit, operation)?.call;
    call.slot = kit.make(Kind::GuestSpace)?;
    // Nine groups at once, and then one by one.
    call.words[0] = ranged(call.words[0], ROUTE, 0x801);
    refused(kit, error, &call)?;
    for i in 0..8 {
        call.words[0] = ranged(call.words[0], ROUTE + 0x100 * i, 1);
        expect(Status::Ok, call.make().0)?;
    }
    call.words[0] = ranged(call.words[0], ROUTE + 0x800, 1);
    refused(kit, error, &call)?;
    // In a group that it has there is room.
    call.words[0] = ranged(call.words[0], ROUTE + 0x710, 1);
    expect(Status::Ok, call.make().0)
}

fn no_exit(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for exit in [21, 22, 31, 32, 1 << 32, u64::MAX - 1] {
        let mut call = right.call.clone();
        call.words[0] = exit;
        refused(kit, error, &call)?;
    }
    Ok(())
}

fn foreign_access(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let bytes = operation.name == "ports.out_bytes";
    let last = PORT + PORTS;
    for (port, width) in [
        (PORT - 1, 1),
        (last, 1),
        (0, 1),
        (0xffff, 1),
        (PORT - 1, 2),
        (last - 1, 2),
        (last - 3, 4),
        (PORT - 2, 4),
        (0xffff, 4),
    ] {
        if bytes && width > 1 {
            continue;
        }
        let mut call = right.call.clone();
        call.words[0] = if bytes { port } else { port | width << 16 };
        refused(kit, error, &call)?;
    }
    Ok(())
}

fn foreign_part(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for (first, count) in [
        (PORT - 1, 1),
        (PORT, PORTS + 1),
        (PORT + PORTS - 1, 2),
        (PORT + PORTS, 1),
        (PORT + (1 << 16), 1),
        (PORT + (1 << 32), 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (0, PORT + 1),
    ] {
        let mut call = right.call.clone();
        call.words[0] = first;
        call.words[1] = count;
        refused_dest(kit, error, &call, right.dest)?;
    }
    Ok(())
}

fn no_vector(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let (cpu, pool) = (right.call.slot, right.call.words[1]);
    for _ in 0..256 {
        let dest = kit.dest()?;
        match ask(cpu, op::cpu::CREATE_IRQ, [dest, pool, 0, 0]) {
            Ok(_) => {}
            Err(status) => {
                expect(error, status)?;
                return refused_dest(kit, error, &right.call, right.dest);
            }
        }
    }
    fail("256 vectors")
}
