//! Capabilities: stale ones, copies, rights; system calls that do not exist; registers.

use ipc_schema::abi::layout::{STUB, slot};
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::Special;
use crate::case::{Outcome, expect, same};
use crate::kernel::{Call, ask};
use crate::kit::{self, Kit, PAGE};
use crate::partner::{PRESERVED, Partner};

pub(super) const CASES: &[Special] = &[
    ("system calls that do not exist", no_such_call),
    ("registers around a system call", registers),
    ("call on a Notification", call_on_notification),
    ("stale capability after the slot's reuse", stale_slot),
    ("stale capability to a Pool made anew", stale_pool),
    ("a dead capability makes room", dead_makes_room),
    ("a copy has no more than both", copy_intersects),
    ("a badge stays", badge_stays),
    ("a dropped capability is gone, its object is not", dropped),
    ("a table's last slot", last_slot),
    ("bits that no argument has are ignored", spare_bits),
    ("operations ignore the deadline", no_deadline),
];

/// The answer to an operation.
pub(super) fn answer(slot: u64, label: u64, words: [u64; 4]) -> Status {
    ask(slot, label, words).err().unwrap_or(Status::Ok)
}

fn no_such_call(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    for rax in [6, 7, 255, 256, 1 << 32, 1 << 63, u64::MAX] {
        partner.start_raw(rax, 0, 0, [0; 4], NEVER);
        expect(Status::BadOperation, partner.finish()?.status)?;
    }
    partner.lives()
}

/// Preserved ones are, and nothing of the kernel's is in the others.
fn registers(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    let endpoint = kit.make(Kind::Endpoint)?;
    partner.give(endpoint, 10, rights::ALL, 0)?;
    let soon = time::after(1_000);
    for (number, slot, deadline) in [
        (Syscall::Yield, 0, NEVER),
        (Syscall::Signal, 99, NEVER),
        (Syscall::Call, 10, soon),
        (Syscall::ReplyRecv, 10, 0),
        (Syscall::Wait, 99, 0),
        (Syscall::Run, 99, 0),
    ] {
        let r = partner.call(number, slot, Tag(0), [0; 4], deadline)?;
        let [rbx, rbp, r15, rcx, rdx, r11, r13] = r.others;
        same("rbx, rbp, r15", &PRESERVED, &[rbx, rbp, r15])?;
        // Nothing of the kernel's: by SYSRET where to, and of the flags reserved bit 1 and IF; by SYSEXIT ("Genu") the stack pointer, less
        // the return address, and where to.
        let free = if core::arch::x86_64::__cpuid(0).ebx == 0x756e_6547 {
            [partner.stack - 8, STUB + 5, 0]
        } else {
            [STUB + 2, 0, 0x202]
        };
        same("rcx, rdx, r11", &free, &[rcx, rdx, r11])?;
        same("r13", &0, &r13)?;
    }
    Ok(())
}

fn call_on_notification(kit: &mut Kit) -> Outcome {
    let notification = kit.live(Kind::Notification);
    for label in [0, 1, 2, 0x7fff] {
        expect(Status::WrongType, answer(notification, label, [0; 4]))?;
    }
    expect(
        Status::Timeout,
        Call::system(Syscall::Wait, notification).make().0,
    )
}

fn stale_slot(kit: &mut Kit) -> Outcome {
    let first = kit.make(Kind::Notification)?;
    let old = kit.copy(first, rights::ALL)?;
    kit::destroy(first)?;
    // It takes the free slot of the Pool.
    let second = kit.make(Kind::Notification)?;
    for (number, cap) in [
        (Syscall::Signal, old),
        (Syscall::Wait, old),
        (Syscall::Signal, first),
    ] {
        expect(Status::InvalidCap, Call::system(number, cap).make().0)?;
    }
    expect(
        Status::InvalidCap,
        answer(
            u64::from(slot::SPACE),
            op::space::DESTROY_OBJECT,
            [old, 0, 0, 0],
        ),
    )?;
    expect(
        Status::Timeout,
        Call::system(Syscall::Wait, second).make().0,
    )
}

fn stale_pool(kit: &mut Kit) -> Outcome {
    let memory = kit.part(4 * PAGE)?;
    let pool = kit.make_pool(memory)?;
    let old = kit.copy(pool, rights::ALL)?;
    let inside = kit.make_from(pool, Kind::Notification, 0, [0; 2])?;
    kit::destroy_pool(pool)?;
    // The same memory, and the same number.
    let again = kit.make_pool(memory)?;
    let new = kit.make_from(again, Kind::Notification, 0, [0; 2])?;
    for cap in [pool, old] {
        expect(Status::InvalidCap, answer(cap, op::pool::STAT, [0; 4]))?;
        expect(Status::InvalidCap, answer(cap, op::pool::DESTROY, [0; 4]))?;
    }
    expect(
        Status::InvalidCap,
        Call::system(Syscall::Signal, inside).make().0,
    )?;
    expect(Status::Timeout, Call::system(Syscall::Wait, new).make().0)
}

fn dead_makes_room(kit: &mut Kit) -> Outcome {
    let slot = kit.make(Kind::Notification)?;
    kit::destroy(slot)?;
    let pool = kit.live(Kind::Pool);
    ask(pool, op::pool::CREATE, [Kind::Endpoint as u64, slot, 0, 0])?;
    expect(
        Status::WrongType,
        Call::system(Syscall::Signal, slot).make().0,
    )
}

fn copy_intersects(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let send = kit.copy(notification, rights::SEND | rights::GRANT)?;
    let all_of_send = kit.copy(send, rights::ALL)?;
    expect(
        Status::Ok,
        Call::system(Syscall::Signal, all_of_send).make().0,
    )?;
    expect(
        Status::MissingRight,
        Call::system(Syscall::Wait, all_of_send).make().0,
    )?;
    let none = kit.copy(notification, 0)?;
    expect(
        Status::MissingRight,
        Call::system(Syscall::Signal, none).make().0,
    )?;
    let dest = kit.dest()?;
    let words = [none, dest, u64::from(rights::ALL), 0];
    expect(
        Status::MissingRight,
        answer(u64::from(slot::SPACE), op::space::COPY_CAP, words),
    )?;
    // Rights that do not exist give none.
    let strange = kit.copy(notification, 0xff00)?;
    expect(
        Status::MissingRight,
        Call::system(Syscall::Signal, strange).make().0,
    )
}

fn badge_stays(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let badged = kit.badged(notification, rights::ALL, 0x8000_0000_0000_0010)?;
    let copy = kit.copy(badged, rights::SEND)?;
    expect(Status::Ok, Call::system(Syscall::Signal, copy).make().0)?;
    let (status, r) = Call::system(Syscall::Wait, notification).make();
    expect(Status::Signal, status)?;
    same("bits", &0x8000_0000_0000_0010, &r.value)
}

fn dropped(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let copy = kit.copy(notification, rights::SEND)?;
    kit.drop_cap(copy)?;
    expect(
        Status::InvalidCap,
        Call::system(Syscall::Signal, copy).make().0,
    )?;
    kit.drop_cap(copy)?;
    expect(
        Status::Ok,
        Call::system(Syscall::Signal, notification).make().0,
    )
}

fn last_slot(kit: &mut Kit) -> Outcome {
    let space = kit.live(Kind::Space);
    let notification = kit.live(Kind::Notification);
    for (at, status) in [
        (127, Status::Ok),
        (128, Status::InvalidCap),
        (1023, Status::InvalidCap),
    ] {
        expect(
            status,
            answer(space, op::space::COPY_CAP, [notification, at, 1, 0]),
        )?;
        expect(status, answer(space, op::space::DROP_CAP, [at, 0, 0, 0]))?;
    }
    Ok(())
}

fn spare_bits(kit: &mut Kit) -> Outcome {
    let pool = kit.live(Kind::Pool);
    let dest = kit.dest()?;
    let high = 0xffff_ffff_u64 << 32;
    ask(
        pool,
        op::pool::CREATE,
        [Kind::Endpoint as u64 | high, dest, u64::MAX, u64::MAX],
    )?;
    // Payload and capabilities that an operation does not take are not looked at.
    let mut call = Call::operation(pool, op::pool::STAT, [u64::MAX; 4]);
    call.tag = Tag(call.tag.0 | 0xffff);
    expect(Status::Ok, call.make().0)
}

fn no_deadline(kit: &mut Kit) -> Outcome {
    let mut call = Call::operation(kit.live(Kind::Pool), op::pool::STAT, [0; 4]);
    call.at_once = true;
    for _ in 0..3 {
        expect(Status::Ok, call.make().0)?;
    }
    Ok(())
}
