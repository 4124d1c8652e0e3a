//! Routes, exits, ports and vectors.

use ipc_schema::abi::operations::Operation;
use ipc_schema::abi::vm::Exit;
use ipc_schema::abi::{Kind, Status, cpu_state, op};

use super::{Row, refused, refused_dest};
use crate::case::{Outcome, expect, fail, same};
use crate::kernel::ask;
use crate::kit::{self, Kit, PORT, PORTS};
use crate::right::{self, ROUTE};

pub(super) const ROWS: &[Row] = &[
    ("guest_space.route", "beyond the last port", beyond),
    ("guest_space.route", "already routed", already),
    ("guest_space.route", "too many routes", too_many_routes),
    ("vcpu.on_exit", "no such exit", no_exit),
    ("ports.in", "not its ports", foreign_access),
    ("ports.out", "not its ports", foreign_access),
    ("ports.divide", "not its ports", foreign_part),
    ("cpu.create_irq", "no vector left", no_vector),
    ("cpu.create_irq", "off", off),
    ("budget.configure", "off", off),
    ("cpu.add", "known already", known),
    ("cpu.add", "no more processors", no_more),
    ("cpu.start", "not its turn", not_its_turn),
];

/// The range of a route in word 0, the rest as it was.
const fn ranged(word: u64, first: u64, count: u64) -> u64 {
    (word & !0xffff_ffff) | first | count << 16
}

fn beyond(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for (first, count) in [(0xffff, 2), (0xfffe, 3), (0xfc01, 1024), (0xffff, 1024)] {
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

fn no_exit(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for exit in [Exit::COUNT as u64, 31, 32, 1 << 32, u64::MAX - 1] {
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

/// A processor that is off has neither vectors nor time.
fn off(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let mut call = right.call.clone();
    match operation.target {
        Some(Kind::Cpu) => call.slot = kit.off,
        _ => call.words[0] = kit.off,
    }
    refused_dest(kit, error, &call, right.dest)
}

fn known(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    for id in [right.call.words[2], kit::NO_PROCESSOR] {
        let mut call = right.call.clone();
        call.words[2] = id;
        refused_dest(kit, error, &call, Some(call.words[0]))?;
    }
    Ok(())
}

/// Processors that do not exist, until the kernel has room for no more; they stay.
fn no_more(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let pool = kit.small_pool(4)?;
    for id in kit::NO_PROCESSOR + 1..255 {
        let dest = kit.slot()?;
        let mut call = right.call.clone();
        call.words = [dest, pool, id, 0];
        match call.make() {
            (Status::Ok, _) => {
                let [_, apic_id, _, state] = ask(dest, op::cpu::INFO, [0; 4])?;
                same("id, state", &[id, cpu_state::OFF], &[apic_id, state])?;
            }
            (status, _) => {
                expect(error, status)?;
                return refused_dest(kit, error, &call, Some(dest));
            }
        }
    }
    fail("63 processors")
}

fn not_its_turn(kit: &mut Kit, operation: &'static Operation, error: Status) -> Outcome {
    let right = right::prepare(kit, operation)?;
    // The one that runs, at each step; one that is off, at those that are not its first.
    for (slot, steps) in [(right.call.slot, 0..3), (kit.off, 1..3)] {
        for step in steps {
            let mut call = right.call.clone();
            call.slot = slot;
            call.words[0] = step;
            refused(kit, error, &call)?;
        }
    }
    same(
        "state",
        &cpu_state::OFF,
        &ask(kit.off, op::cpu::INFO, [0; 4])?[3],
    )
}
