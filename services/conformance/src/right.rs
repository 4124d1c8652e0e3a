//! The right call of each operation, on the standing objects, and how to undo what it did.

use alloc::vec;
use alloc::vec::Vec;

use ipc_schema::abi::layout;
use ipc_schema::abi::operations::{Arg, Entry, Operation, Place};
use ipc_schema::abi::vm::{Exit, ExitWord};
use ipc_schema::abi::{Kind, Status, Syscall, ThreadRegs, op, rights};
use runtime::sys::Registers;

use crate::case::{Failure, Outcome, expect, fail, same};
use crate::kernel::{Call, ask};
use crate::kit::{self, Kit, MEMORY, PAGE, PORT, STATE, UTCB};

/// Where the standing Memory is mapped, in the standing Space or GuestSpace.
pub const AT: u64 = 0x1_0000;
/// First port of the standing route.
pub const ROUTE: u64 = 0x4000;
/// A slot in the standing Space that calls fill.
const FREE_THERE: u64 = 5;
const ACCESS: u64 = (rights::READ | rights::WRITE) as u64;

/// A call that is to work.
#[derive(Clone, Debug)]
pub struct Right {
    /// The call.
    pub call: Call,
    /// The answer, `Ok` but for what only ends with its deadline.
    pub answer: Status,
    /// The slot that it fills.
    pub dest: Option<u64>,
}

/// The right call of an operation. Everything that it needs is there; what it does is undone by [`undo`].
pub fn prepare(kit: &mut Kit, operation: &Operation) -> Outcome<Right> {
    let (kind, label) = match operation.entry {
        Entry::System(number) => return system(kit, number),
        Entry::Call(kind, label) => (kind, label),
    };
    let dest = kit.dest()?;
    let live = |kind| kit.live(kind);
    let space = live(Kind::Space);
    let (memory, pool) = (live(Kind::Memory), live(Kind::Pool));
    let notification = live(Kind::Notification);
    let mapped = [AT, memory | ACCESS << 32, 0, 2 * PAGE];
    let mut target = live(kind);
    let mut payload = Vec::new();
    let mut answer = Status::Ok;
    let words = match operation.name {
        "pool.create space" => [Kind::Space as u64, dest, 16, 0],
        "pool.create thread" => [Kind::Thread as u64, dest, space, UTCB + PAGE],
        "pool.create budget" => [Kind::Budget as u64, dest, 0, 0],
        "pool.create endpoint" => [Kind::Endpoint as u64, dest, 0, 0],
        "pool.create notification" => [Kind::Notification as u64, dest, 0, 0],
        "pool.create guest space" => [Kind::GuestSpace as u64, dest, 0, 0],
        "pool.create vcpu" => {
            let high = live(Kind::GuestSpace) << 32;
            [Kind::Vcpu as u64 | high, dest, space, STATE + PAGE]
        }
        "pool.destroy" => {
            target = kit.small_pool(4)?;
            [0; 4]
        }
        "memory.divide" => [PAGE, 2 * PAGE, dest, pool],
        "memory.make_pool" => [dest, 0, 0, 0],
        "space.map" | "guest_space.map" => mapped,
        "space.unmap" | "guest_space.unmap" => {
            ask(target, op::space::MAP, mapped)?;
            [AT, 0, 0, 0]
        }
        "space.copy_cap" => [notification, FREE_THERE, u64::from(rights::SEND), 0],
        "space.drop_cap" => {
            let all = u64::from(rights::ALL);
            ask(
                target,
                op::space::COPY_CAP,
                [notification, FREE_THERE, all, 0],
            )?;
            [FREE_THERE, 0, 0, 0]
        }
        "space.destroy_object" => {
            create_at(kit, dest)?;
            [dest, 0, 0, 0]
        }
        "thread.configure" => [live(Kind::Budget), live(Kind::Endpoint), 7, notification],
        "thread.start" => [layout::IMAGE, layout::STACK_TOP, 1, 0],
        "thread.write_regs" => {
            payload = vec![0; ThreadRegs::WORDS * 8];
            [0; 4]
        }
        "budget.configure" => [live(Kind::Cpu), 1, 1000, 1000],
        "guest_space.route call" => [route(1), live(Kind::Endpoint), 1000, 0],
        "guest_space.route doorbell" => [route(2), notification, 0, 0],
        "guest_space.unroute" => {
            ask(
                target,
                op::guest_space::ROUTE,
                [route(2), notification, 0, 0],
            )?;
            [ROUTE, 0, 0, 0]
        }
        "vcpu.on_exit" => [Exit::Hlt as u64, 1, 0, 0],
        "thread.bind_event" | "budget.bind_event" | "irq.bind" | "log.bind" => {
            [notification, 0, 0, 0]
        }
        "ports.in" => [PORT | 1 << 16, 0, 0, 0],
        "ports.out" => [PORT | 1 << 16, 0xff, 0, 0],
        "ports.out_bytes" => {
            payload = vec![0xff; 4];
            [PORT, 0, 0, 0]
        }
        "ports.divide" => [PORT + 4, 4, dest, pool],
        "cpu.create_irq" => [dest, pool, 0, 0],
        // Of processors there are few, and what has been added stays: right but for the last check, and so refused by that.
        "cpu.add" => {
            answer = Status::Busy;
            let apic_id = ask(target, op::cpu::INFO, [0; 4])?[1];
            [dest, pool, apic_id, 0]
        }
        "cpu.start" => {
            answer = Status::Busy;
            [0; 4]
        }
        "log.write" => {
            payload = vec![0; 8];
            [0; 4]
        }
        "pool.stat" | "memory.revoke" | "memory.info" | "thread.suspend" | "thread.resume"
        | "thread.read_regs" | "budget.stat" | "irq.info" | "cpu.info" | "cpu.stat"
        | "log.read" => [0; 4],
        _ => return fail("the suite has no right call of this operation"),
    };
    Ok(Right {
        call: Call::operation(target, label, words).with_payload(payload),
        answer,
        dest: (answer == Status::Ok && is_dest(operation)).then_some(dest),
    })
}

fn is_dest(operation: &Operation) -> bool {
    use ipc_schema::abi::operations::Is;
    operation.args.iter().any(|a| matches!(a.is, Is::Dest))
}

/// Word 0 of a route of this kind.
const fn route(kind: u64) -> u64 {
    ROUTE | 4 << 16 | kind << 32
}

fn create_at(kit: &Kit, dest: u64) -> Result<(), Status> {
    let words = [Kind::Notification as u64, dest, 0, 0];
    ask(kit.live(Kind::Pool), op::pool::CREATE, words).map(drop)
}

fn system(kit: &mut Kit, number: Syscall) -> Outcome<Right> {
    let notification = kit.live(Kind::Notification);
    let (slot, answer) = match number {
        // Nobody receives there, and nobody calls.
        Syscall::Call | Syscall::ReplyRecv => (kit.live(Kind::Endpoint), Status::Timeout),
        Syscall::Signal => (notification, Status::Ok),
        Syscall::Wait => {
            let _ = Call::system(Syscall::Signal, notification).make();
            (notification, Status::Signal)
        }
        Syscall::Run => (kit.live(Kind::Vcpu), Status::Ok),
        Syscall::Yield => (0, Status::Ok),
    };
    Ok(Right {
        call: Call::system(number, slot),
        answer,
        dest: None,
    })
}

/// Makes the right call, sees that it did what it says, and undoes it.
pub fn works(kit: &mut Kit, operation: &Operation, right: &Right) -> Outcome {
    let (status, registers) = right.call.make();
    if status != right.answer {
        let why = expect(right.answer, status)
            .err()
            .map_or_else(Default::default, |f| f.0);
        return Err(Failure(alloc::format!("the right call: {why}")));
    }
    let seen = did(operation, right, &registers);
    let undone = undo(kit, operation, right);
    seen.and(undone)
}

/// What can be seen of it at once.
fn did(operation: &Operation, right: &Right, registers: &Registers) -> Outcome {
    if let Some(dest) = right.dest {
        same("the new slot is empty", &false, &kit::is_empty(dest))?;
    }
    let words = registers.words;
    match operation.name {
        "memory.info" => {
            same("bytes", &MEMORY, &words[0])?;
            same("kind", &0, &words[1])?;
            same("physical address is a page's", &0, &(words[2] % PAGE))
        }
        "pool.stat" => same("pages", &256, &words[1]),
        "budget.stat" => same("figures", &[1, 1000, 1000], &[words[1], words[2], words[3]]),
        "space.destroy_object" | "pool.destroy" => {
            let slot = match operation.name {
                "pool.destroy" => right.call.slot,
                _ => right.call.words[0],
            };
            same("the slot is empty", &true, &kit::is_empty(slot))
        }
        "wait" => same("bits", &1, &registers.value),
        // Nothing is mapped, or the deadline comes first: either way it is back.
        "run" => match ExitWord(registers.tag).exit() {
            Exit::Timeout | Exit::NestedFault | Exit::Shutdown => Ok(()),
            other => same("exit", &Exit::Timeout, &other),
        },
        _ => Ok(()),
    }
}

/// Undoes it, so that it can be made again.
pub fn undo(kit: &mut Kit, operation: &Operation, right: &Right) -> Outcome {
    let call = &right.call;
    if let Some(dest) = right.dest {
        match kit::destroy(dest) {
            Err(Status::WrongType) => kit::destroy_pool(dest)?,
            other => other?,
        }
        kit.drop_cap(dest)?;
    }
    let again = |label, words| ask(call.slot, label, words).map(drop);
    let notification = kit.live(Kind::Notification);
    match operation.name {
        "pool.destroy" => {
            kit.drop_cap(call.slot)?;
            kit.remake_pool(call.slot)?;
        }
        "space.map" | "guest_space.map" => again(op::space::UNMAP, [AT, 0, 0, 0])?,
        "space.unmap" | "guest_space.unmap" => {
            let memory = kit.live(Kind::Memory);
            again(op::space::MAP, [AT, memory | ACCESS << 32, 0, 2 * PAGE])?;
        }
        "space.copy_cap" => again(op::space::DROP_CAP, [FREE_THERE, 0, 0, 0])?,
        "space.drop_cap" => {
            let all = u64::from(rights::ALL);
            again(op::space::COPY_CAP, [notification, FREE_THERE, all, 0])?;
        }
        "space.destroy_object" => {
            kit.drop_cap(call.words[0])?;
            create_at(kit, call.words[0])?;
        }
        "thread.configure" => again(op::thread::CONFIGURE, [0; 4])?,
        "thread.start" | "thread.suspend" | "thread.resume" => kit.renew(Kind::Thread)?,
        "guest_space.route call" | "guest_space.route doorbell" => {
            again(op::guest_space::UNROUTE, [ROUTE, 0, 0, 0])?;
        }
        "guest_space.unroute" => {
            again(op::guest_space::ROUTE, [route(2), notification, 0, 0])?;
        }
        "thread.bind_event" | "budget.bind_event" | "irq.bind" | "log.bind" => {
            again(label(operation), [0; 4])?;
        }
        "signal" => {
            let (status, r) = Call::system(Syscall::Wait, notification).make();
            expect(Status::Signal, status)?;
            same("bits", &1, &r.value)?;
        }
        "wait" => {
            let (status, _) = Call::system(Syscall::Signal, notification).make();
            expect(Status::Ok, status)?;
        }
        _ => {}
    }
    Ok(())
}

/// Undoes what [`prepare`] did that is no object of its own.
pub fn finish(kit: &mut Kit, operation: &Operation) -> Outcome {
    let on = |kit: &Kit, kind, label, word| ask(kit.live(kind), label, [word, 0, 0, 0]).map(drop);
    match operation.name {
        "space.unmap" => on(kit, Kind::Space, op::space::UNMAP, AT)?,
        "guest_space.unmap" => on(kit, Kind::GuestSpace, op::guest_space::UNMAP, AT)?,
        "space.drop_cap" => on(kit, Kind::Space, op::space::DROP_CAP, FREE_THERE)?,
        "guest_space.unroute" => on(kit, Kind::GuestSpace, op::guest_space::UNROUTE, ROUTE)?,
        "wait" => {
            let _ = Call::system(Syscall::Wait, kit.live(Kind::Notification)).make();
        }
        _ => {}
    }
    Ok(())
}

fn label(operation: &Operation) -> u64 {
    match operation.entry {
        Entry::Call(_, label) => label,
        Entry::System(_) => 0,
    }
}

/// An argument's value in a call.
#[must_use]
pub fn value(call: &Call, arg: &Arg) -> u64 {
    match arg.at {
        Place::Word { word, low, high } => {
            let w = call.words.get(word).copied().unwrap_or(0);
            (w >> low) & (u64::MAX >> (64 - (high - low)))
        }
        Place::Length => call.tag.payload() as u64,
        Place::Payload(n) => {
            let bytes = call.payload.get(n * 8..).and_then(|b| b.first_chunk::<8>());
            bytes.map_or(0, |b| u64::from_le_bytes(*b))
        }
    }
}

/// The call with another value of an argument.
#[must_use]
pub fn with(mut call: Call, arg: &Arg, value: u64) -> Call {
    match arg.at {
        Place::Word { word, low, high } => {
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            if let Some(w) = call.words.get_mut(word) {
                *w = (*w & !mask) | ((value << low) & mask);
            }
        }
        Place::Length => {
            call.payload.resize(value as usize, 0);
            call.tag = call.tag.with_payload(value as usize);
        }
        Place::Payload(n) => {
            let bytes = call.payload.get_mut(n * 8..n * 8 + 8);
            if let Some(bytes) = bytes {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_schema::abi::operations::{Is, all};

    /// Each argument of each operation can be set and read back without touching another.
    #[test]
    fn arguments_are_apart() {
        for operation in all() {
            let call = Call::operation(1, 1, [0; 4]).with_payload(vec![0; 144]);
            for arg in operation.args {
                let top = match arg.at {
                    Place::Word { low, high, .. } => u64::MAX >> (64 - (high - low)),
                    Place::Length => 0xfff,
                    Place::Payload(_) => u64::MAX,
                };
                let set = with(call.clone(), arg, top);
                assert_eq!(value(&set, arg), top, "{}: {}", operation.name, arg.name);
                for other in operation.args.iter().filter(|o| o.at != arg.at) {
                    let inside = matches!(other.is, Is::Free) && other.at == arg.at;
                    assert!(inside || value(&set, other) == value(&call, other));
                }
                assert_eq!(value(&with(set, arg, 0), arg), 0);
            }
        }
    }
}
