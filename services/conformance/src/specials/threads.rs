//! Threads: what they are doing, stopping them, faults and their repair.

use alloc::vec::Vec;

use ipc_schema::abi::layout;
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, ThreadRegs, op, rights, thread_state};
use runtime::object::Thread;
use runtime::time;

use super::Special;
use crate::case::{Outcome, expect, fail, same};
use crate::kernel::{Call, ask, raw};
use crate::kit::{self, Kit, PAGE};
use crate::partner::{Act, Partner, answer_fault, next_fault, pause};

pub(super) const CASES: &[Special] = &[
    ("the states of a thread", states),
    ("the call that a thread serves", served),
    ("suspended in wait", suspended_in_wait),
    ("suspended in a call", suspended_in_call),
    ("suspended while it runs", suspended_running),
    ("one resume undoes many suspends", one_resume),
    ("a fault, repaired", repaired),
    ("a fault, skipped", skipped),
    ("a fault, and started anew", started_anew),
    (
        "a faulted thread destroyed before the answer",
        destroyed_faulted,
    ),
    (
        "a fault without a supervisor stops the thread",
        no_supervisor,
    ),
    (
        "a fault at a dead Endpoint stops the thread",
        dead_supervisor,
    ),
    ("the badge of faults", fault_badge),
    (
        "kernel addresses are refused as registers",
        kernel_registers,
    ),
    ("flags that are not a thread's to set", flags),
];

/// Where partners have nothing.
const NOTHING: u64 = 0x7100_0000;
const PAGE_FAULT: u64 = 14;
/// Error code of a read of nothing at user level.
const USER_READ: u64 = 4;
const SLOT: u64 = 10;

fn state(thread: u64) -> Outcome<u64> {
    Ok(ask(thread, op::thread::READ_REGS, [0; 4])?[0])
}

fn states(kit: &mut Kit) -> Outcome {
    let (pool, space) = (kit.live(Kind::Pool), kit.live(Kind::Space));
    let fresh = kit.make_from(pool, Kind::Thread, 0, [space, kit::UTCB + 4 * PAGE])?;
    same("fresh", &thread_state::STOPPED, &state(fresh)?)?;
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut partner = Partner::new(kit)?;
    partner.give(endpoint, SLOT, rights::ALL, 0)?;
    same(
        "waiting for its bell",
        &thread_state::WAITING,
        &state(partner.thread)?,
    )?;
    partner.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], time::after(1_000));
    same("receiving", &thread_state::WAITING, &state(partner.thread)?)?;
    partner.finish()?;
    partner.start(Syscall::Call, SLOT, Tag(0), [0; 4], time::after(1_000));
    same("calling", &thread_state::CALLING, &state(partner.thread)?)?;
    partner.finish()?;
    ask(partner.thread, op::thread::SUSPEND, [0; 4])?;
    same("suspended", &thread_state::STOPPED, &state(partner.thread)?)?;
    ask(partner.thread, op::thread::RESUME, [0; 4])?;
    let mut faulty = Partner::new(kit)?;
    faulty.act(Act::Load(NOTHING));
    same("faulted", &thread_state::FAULTED, &state(faulty.thread)?)?;
    next_fault()?;
    same(
        "faulted, and taken",
        &thread_state::FAULTED,
        &state(faulty.thread)?,
    )?;
    answer_fault(1)
}

fn served(kit: &mut Kit) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let (mut client, mut server) = (Partner::new(kit)?, Partner::new(kit)?);
    client.give(endpoint, SLOT, rights::ALL, 0xbad6e)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    let words = ask(server.thread, op::thread::READ_REGS, [0; 4])?;
    same("serves nobody", &0, &words[1])?;
    client.start(Syscall::Call, SLOT, Tag::new(5), [1, 2, 3, 4], NEVER);
    server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], 0)?;
    let (_, doing) = Thread(server.thread as u32).read_regs()?;
    same("serves", &true, &doing.serving)?;
    let call = [0xbad6e, Tag::new(5).0, 1, 2, 3, 4];
    same("the call", &call, &doing.call)
}

fn suspended_in_wait(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut partner = Partner::new(kit)?;
    partner.give(notification, SLOT, rights::ALL, 0)?;
    partner.start(Syscall::Wait, SLOT, Tag(0), [0; 4], NEVER);
    ask(partner.thread, op::thread::SUSPEND, [0; 4])?;
    // It waits no more: the signal stays, and nobody wakes.
    expect(
        Status::Ok,
        Call::system(Syscall::Signal, notification).make().0,
    )?;
    same("stopped", &false, &partner.done())?;
    let (status, _) = Call::system(Syscall::Wait, notification).make();
    expect(Status::Signal, status)?;
    ask(partner.thread, op::thread::RESUME, [0; 4])?;
    expect(Status::Timeout, partner.finish()?.status)
}

fn suspended_in_call(kit: &mut Kit) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let (mut client, mut server) = (Partner::new(kit)?, Partner::new(kit)?);
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], 0)?;
    ask(client.thread, op::thread::SUSPEND, [0; 4])?;
    server.call(Syscall::ReplyRecv, 0, Tag(0), [44; 4], 0)?;
    pause(200);
    same("stopped with its answer", &false, &client.done())?;
    ask(client.thread, op::thread::RESUME, [0; 4])?;
    same("answer", &[44; 4], &client.finish()?.words)
}

fn suspended_running(kit: &mut Kit) -> Outcome {
    let mut spinner = Partner::new(kit)?;
    let (thread, budget) = (spinner.thread, spinner.budget);
    let period = time::cycles(10_000);
    ask(
        budget,
        op::budget::CONFIGURE,
        [kit.live(Kind::Cpu), 0, period, period],
    )?;
    let used = || Ok::<u64, Status>(ask(budget, op::budget::STAT, [0; 4])?[0]);
    spinner.act(Act::Spin);
    pause(500);
    ask(thread, op::thread::SUSPEND, [0; 4])?;
    let stopped = used()?;
    pause(500);
    same("cycles while suspended", &stopped, &used()?)?;
    ask(thread, op::thread::RESUME, [0; 4])?;
    pause(500);
    same("it goes on", &true, &(used()? > stopped))?;
    same("it does not end", &false, &spinner.done())
}

fn one_resume(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    for _ in 0..3 {
        ask(partner.thread, op::thread::SUSPEND, [0; 4])?;
    }
    for _ in 0..2 {
        ask(partner.thread, op::thread::RESUME, [0; 4])?;
    }
    partner.lives()
}

fn repaired(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    kit.window(memory, 0)?.set(0, 0x42);
    let mut partner = Partner::new(kit)?;
    partner.act(Act::Load(NOTHING + 0x10));
    let Some(fault) = next_fault()? else {
        return fail("no fault");
    };
    same(
        "vector, error, address",
        &[PAGE_FAULT, USER_READ, NOTHING + 0x10],
        &[fault[0], fault[1], fault[2]],
    )?;
    same(
        "rip in its code",
        &true,
        &(kit.code.from..kit.code.to).contains(&fault[3]),
    )?;
    let words = [NOTHING, memory | u64::from(rights::READ) << 32, 0, PAGE];
    ask(partner.space, op::space::MAP, words)?;
    answer_fault(0)?;
    partner.finish()?;
    same("the byte", &0x42, &partner.byte(NOTHING)?)
}

fn words_of(regs: &ThreadRegs) -> Vec<u8> {
    let words = regs.gpr.iter().chain([&regs.rip, &regs.rflags]);
    words.flat_map(|w| w.to_le_bytes()).collect()
}

fn write_regs(thread: u64, regs: &ThreadRegs) -> Status {
    let call = Call::operation(thread, op::thread::WRITE_REGS, [0; 4]);
    call.with_payload(words_of(regs)).make().0
}

fn skipped(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    partner.act(Act::Load(NOTHING));
    let Some(fault) = next_fault()? else {
        return fail("no fault");
    };
    let (mut regs, _) = Thread(partner.thread as u32).read_regs()?;
    same("rip", &fault[3], &regs.rip)?;
    same("rcx", &NOTHING, &regs.gpr[1])?;
    // MOVZX EAX, byte [RCX] has three bytes.
    regs.rip += 3;
    regs.gpr[0] = 0x99;
    expect(Status::Ok, write_regs(partner.thread, &regs))?;
    answer_fault(0)?;
    partner.finish()?;
    partner.lives()
}

fn started_anew(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    partner.faults(Act::Load(NOTHING))?;
    let (regs, _) = Thread(partner.thread as u32).read_regs()?;
    let [entry, command] = [kit.code.entry, crate::partner::COMMAND];
    ask(
        partner.thread,
        op::thread::START,
        [entry, regs.gpr[4], command, 0],
    )?;
    same("state", &thread_state::WAITING, &state(partner.thread)?)?;
    partner.again();
    partner.lives()
}

fn destroyed_faulted(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    partner.act(Act::Load(NOTHING));
    next_fault()?;
    kit::destroy(partner.thread)?;
    answer_fault(0)?;
    let mut queued = Partner::new(kit)?;
    queued.act(Act::Load(NOTHING));
    kit::destroy(queued.thread)?;
    same("a fault of nobody", &None, &next_fault()?)
}

fn no_supervisor(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    ask(
        partner.thread,
        op::thread::CONFIGURE,
        [partner.budget, 0, 0, 0],
    )?;
    partner.act(Act::Load(NOTHING));
    same("a fault", &None, &next_fault()?)?;
    same("state", &thread_state::FAULTED, &state(partner.thread)?)
}

fn dead_supervisor(kit: &mut Kit) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut partner = Partner::new(kit)?;
    ask(
        partner.thread,
        op::thread::CONFIGURE,
        [partner.budget, endpoint, 0, 0],
    )?;
    let mut other = Partner::new(kit)?;
    ask(
        other.thread,
        op::thread::CONFIGURE,
        [other.budget, endpoint, 0, 0],
    )?;
    // One fault waits in the queue when the Endpoint goes, one comes later.
    partner.act(Act::Load(NOTHING));
    kit::destroy(endpoint)?;
    other.act(Act::Load(NOTHING));
    for thread in [partner.thread, other.thread] {
        same("state", &thread_state::FAULTED, &state(thread)?)?;
    }
    Ok(())
}

fn fault_badge(kit: &mut Kit) -> Outcome {
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut partner = Partner::new(kit)?;
    ask(
        partner.thread,
        op::thread::CONFIGURE,
        [partner.budget, endpoint, 0xfa, 0],
    )?;
    partner.act(Act::Store(layout::STUB));
    let (status, r) = raw(Syscall::ReplyRecv, endpoint, Tag(0), [0; 4], 0);
    expect(Status::Ok, status)?;
    same("badge", &0xfa, &r.value)?;
    same("label", &Tag::FAULT, &Tag(r.tag).label())?;
    // Present, write, user.
    same(
        "vector, error, address",
        &[14, 7, layout::STUB],
        &[r.words[0], r.words[1], r.words[2]],
    )?;
    let (status, _) = raw(Syscall::ReplyRecv, endpoint, Tag::new(1), [0; 4], 0);
    expect(Status::Timeout, status)
}

/// Neither START nor WRITE_REGS takes an address of the kernel's half, or one that is not canonical, as rip.
fn kernel_registers(kit: &mut Kit) -> Outcome {
    let thread = kit.live(Kind::Thread);
    for rip in [layout::USER_END, 1 << 47, 0xffff_8000_0000_0000, u64::MAX] {
        expect(
            Status::OutOfRange,
            super::caps::answer(thread, op::thread::START, [rip, 0, 0, 0]),
        )?;
        let regs = ThreadRegs {
            rip,
            ..ThreadRegs::default()
        };
        expect(Status::OutOfRange, write_regs(thread, &regs))?;
    }
    same("state", &thread_state::STOPPED, &state(thread)?)
}

fn flags(kit: &mut Kit) -> Outcome {
    let thread = kit.live(Kind::Thread);
    let regs = ThreadRegs {
        rflags: u64::MAX,
        ..ThreadRegs::default()
    };
    expect(Status::Ok, write_regs(thread, &regs))?;
    let (got, _) = Thread(thread as u32).read_regs()?;
    // IOPL, NT, RF, VM, AC, VIF, VIP are not; IF is always set, TF never.
    same("flags", &0xed7, &(got.rflags & !0x28))?;
    Ok(kit.renew(Kind::Thread)?)
}
