//! Guests: exits, routes, and what becomes of an access whose server is gone.

use ipc_schema::abi::layout::slot;
use ipc_schema::abi::vm::{Exit, ExitWord, Groups, PortAccess, gpr};
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::Special;
use crate::case::{Failure, Outcome, expect, same};
use crate::kernel::{Call, Page, ask, raw};
use crate::kit::{self, Kit, PAGE};
use crate::partner::{Partner, pause};

pub(super) const CASES: &[Special] = &[
    ("an access without a route is the VMM's", unrouted),
    ("a guest without memory faults", no_memory),
    ("memory taken from a guest is gone", revoked),
    ("a doorbell rings, and the guest goes on", doorbell),
    ("a doorbell of one value", doorbell_value),
    ("a doorbell is not read", doorbell_in),
    ("a dead doorbell is the VMM's", doorbell_dead),
    ("a routed OUT", routed_out),
    ("a routed IN", routed_in),
    (
        "an access across the end of a route is the VMM's",
        straddling,
    ),
    ("a route taken away", route_gone),
    ("a routed access that nobody takes", not_taken),
    ("a routed access that nobody answers", not_answered),
    ("a routed access at a dead Endpoint", dead_endpoint),
    ("a routed access whose Endpoint dies", endpoint_dies),
    ("a routed access whose server dies", server_dies),
    ("a late reply to a routed access is dropped", late_reply),
    ("the groups that an exit copies", groups),
    ("a Vcpu passes to another runner", passes_on),
];

/// JMP to itself.
pub const LOOP: &[u8] = &[0xeb, 0xfe];
/// MOV DX, 0x4000; OUT DX, AL; HLT.
const OUT: &[u8] = &[0xba, 0x00, 0x40, 0xee, 0xf4];
/// MOV DX, 0x4000; IN AL, DX; HLT.
pub(super) const IN: &[u8] = &[0xba, 0x00, 0x40, 0xec, 0xf4];
/// MOV DX, 0x4003; OUT DX, AX; HLT.
const OUT_ACROSS: &[u8] = &[0xba, 0x03, 0x40, 0xef, 0xf4];
/// HLT.
const HLT: &[u8] = &[0xf4];

const PORT: u64 = 0x4000;
pub(super) const SLOT: u64 = 10;
/// Word of a state page that has rip.
const RIP: usize = 16;
/// Guest-physical page of the reset vector (AMD APM vol. 2, 14.1.3).
const RESET_PAGE: u64 = 0xffff_f000;
/// Time limit of a routed call, in microseconds.
pub(super) const LIMIT: u64 = 1_000;

/// A VM whose one vCPU starts at the reset vector with this code.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its GuestSpace.
    pub space: u64,
    /// Its Vcpu, in the reset state.
    pub vcpu: u64,
    memory: u64,
    state: Page,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The exit.
    pub exit: Exit,
    /// What it tells.
    pub info: [u64; 4],
}

impl Guest {
    /// With at most 16 bytes of code.
    pub fn new(kit: &mut Kit, code: &[u8]) -> Outcome<Self> {
        let memory = kit.part(PAGE)?;
        let page = kit.window(memory, 0)?;
        for (i, word) in [510, 511].into_iter().zip(code.chunks(8)) {
            let mut bytes = [0; 8];
            bytes
                .iter_mut()
                .zip(word)
                .for_each(|(to, from)| *to = *from);
            page.set(i, u64::from_le_bytes(bytes));
        }
        let space = kit.make(Kind::GuestSpace)?;
        let access = u64::from(rights::READ | rights::WRITE | rights::EXEC) << 32;
        ask(
            space,
            op::guest_space::MAP,
            [RESET_PAGE, memory | access, 0, PAGE],
        )?;
        let pool = kit.live(Kind::Pool);
        let at = kit.page_address();
        let vcpu = kit.make_from(pool, Kind::Vcpu, space, [u64::from(slot::SPACE), at])?;
        Ok(Self {
            space,
            vcpu,
            memory,
            state: Page::at(at),
        })
    }

    /// Runs it for at most a few milliseconds.
    pub fn run(&mut self) -> Outcome<Ended> {
        let (status, r) = raw(
            Syscall::Run,
            self.vcpu,
            Tag(0),
            [0; 4],
            time::after(5 * LIMIT),
        );
        expect(Status::Ok, status)?;
        Ok(Ended {
            exit: ExitWord(r.tag).exit(),
            info: r.words,
        })
    }

    /// Runs it to this exit.
    fn until(&mut self, exit: Exit) -> Outcome<[u64; 4]> {
        let ended = self.run()?;
        if ended.exit == exit {
            return Ok(ended.info);
        }
        Err(Failure(alloc::format!("expected {exit:?}, got {ended:x?}")))
    }

    /// The route that it has gets this target and time limit.
    pub fn reroute(&self, target: u64, limit: u64) -> Outcome {
        ask(self.space, op::guest_space::UNROUTE, [PORT, 0, 0, 0])?;
        self.route(1, target, limit)
    }

    /// A word of its state page.
    #[must_use]
    pub fn get(&self, word: usize) -> u64 {
        self.state.get(word)
    }

    /// Its instruction pointer, as the last exit left it.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.state.get(RIP)
    }

    /// Sets its rax.
    pub fn set_rax(&mut self, value: u64) {
        self.state.set(gpr::RAX, value);
    }

    fn route(&self, kind: u64, target: u64, word: u64) -> Outcome {
        let words = [PORT | 4 << 16 | kind << 32, target, word, 0];
        ask(self.space, op::guest_space::ROUTE, words)?;
        Ok(())
    }
}

fn access(info: u64) -> (u16, u8, bool, bool) {
    let a = PortAccess(info);
    (a.port(), a.width(), a.input(), a.taken())
}

fn unrouted(kit: &mut Kit) -> Outcome {
    let mut guest = Guest::new(kit, OUT)?;
    guest.state.set(gpr::RAX, 0x77);
    let info = guest.until(Exit::Port)?;
    same("access", &(0x4000, 1, false, false), &access(info[0]))?;
    let mut guest = Guest::new(kit, IN)?;
    let info = guest.until(Exit::Port)?;
    same("access", &(0x4000, 1, true, false), &access(info[0]))
}

fn no_memory(kit: &mut Kit) -> Outcome {
    let mut guest = Guest::new(kit, HLT)?;
    ask(guest.space, op::guest_space::UNMAP, [RESET_PAGE, 0, 0, 0])?;
    let info = guest.until(Exit::NestedFault)?;
    same("address", &(RESET_PAGE + 0xff0), &info[0])
}

fn revoked(kit: &mut Kit) -> Outcome {
    let mut guest = Guest::new(kit, LOOP)?;
    guest.until(Exit::Timeout)?;
    ask(guest.memory, op::memory::REVOKE, [0; 4])?;
    let info = guest.until(Exit::NestedFault)?;
    same("address", &(RESET_PAGE + 0xff0), &info[0])
}

fn bits(notification: u64) -> u64 {
    match Call::system(Syscall::Wait, notification).make() {
        (Status::Signal, r) => r.value,
        _ => 0,
    }
}

fn doorbell(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let badged = kit.badged(notification, rights::SEND, 0x20)?;
    let mut guest = Guest::new(kit, OUT)?;
    guest.route(2, badged, 0)?;
    guest.until(Exit::Hlt)?;
    same("bits", &0x20, &bits(notification))
}

fn doorbell_value(kit: &mut Kit) -> Outcome {
    for (value, exit, expected) in [(0x33, Exit::Hlt, 1), (0x34, Exit::Port, 0)] {
        let notification = kit.make(Kind::Notification)?;
        let mut guest = Guest::new(kit, OUT)?;
        guest.route(2 | 1 << 8, notification, 0x33)?;
        guest.state.set(gpr::RAX, value);
        guest.until(exit)?;
        same("bits", &expected, &bits(notification))?;
    }
    Ok(())
}

fn doorbell_in(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut guest = Guest::new(kit, IN)?;
    guest.route(2, notification, 0)?;
    guest.until(Exit::Port)?;
    same("bits", &0, &bits(notification))
}

fn doorbell_dead(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut guest = Guest::new(kit, OUT)?;
    guest.route(2, notification, 0)?;
    kit::destroy(notification)?;
    guest.until(Exit::Port).map(drop)
}

/// A guest whose ports go to a partner, which has precedence over this server, the runner.
pub(super) fn routed(kit: &mut Kit, code: &[u8], receives: bool) -> Outcome<(Guest, Partner, u64)> {
    let endpoint = kit.make(Kind::Endpoint)?;
    let badged = kit.badged(endpoint, rights::SEND, 0x66)?;
    let guest = Guest::new(kit, code)?;
    guest.route(1, badged, time::cycles(LIMIT))?;
    let mut server = Partner::new(kit)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    if receives {
        server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER);
    }
    Ok((guest, server, endpoint))
}

/// The server has been called for the guest, and did not answer in time: the VMM has the access, and the server the call.
fn taken_and_lost(kit: &mut Kit, code: &[u8], value: u64) -> Outcome<(Guest, Partner, [u64; 4])> {
    let (mut guest, server, _) = routed(kit, code, true)?;
    guest.state.set(gpr::RAX, value);
    let info = guest.until(Exit::RouteLost)?;
    same("taken", &true, &PortAccess(info[0]).taken())?;
    let got = server.finish()?;
    same("badge", &0x66, &got.value)?;
    same("label", &Tag::PORT, &got.tag.label())?;
    Ok((guest, server, got.words))
}

fn routed_out(kit: &mut Kit) -> Outcome {
    let (_, _, words) = taken_and_lost(kit, OUT, 0x1122_3344)?;
    same("access", &(0x4000, 1, false, false), &access(words[0]))?;
    same("value", &0x44, &(words[1] & 0xff))
}

/// A partner runs the guest, so that another may answer.
fn routed_in(kit: &mut Kit) -> Outcome {
    let (guest, mut server, _) = routed(kit, IN, true)?;
    guest.state.set(gpr::RAX, 0x1111_1111_2222_2222);
    let mut runner = Partner::new(kit)?;
    runner.give(guest.vcpu, SLOT, rights::ALL, 0)?;
    runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
    let got = server.finish()?;
    same("access", &(0x4000, 1, true, false), &access(got.words[0]))?;
    server.start(
        Syscall::ReplyRecv,
        SLOT,
        Tag(0),
        [0xabcd_ef99, 0, 0, 0],
        NEVER,
    );
    let ended = runner.finish()?;
    same("exit", &Exit::Hlt, &ExitWord(ended.tag.0).exit())?;
    // Eight bits come in, the others stay.
    same("rax", &0x1111_1111_2222_2299, &guest.state.get(gpr::RAX))
}

fn straddling(kit: &mut Kit) -> Outcome {
    let (mut guest, server, _) = routed(kit, OUT_ACROSS, true)?;
    let info = guest.until(Exit::Port)?;
    same("access", &(0x4003, 2, false, false), &access(info[0]))?;
    same("the server was called", &false, &server.done())
}

fn route_gone(kit: &mut Kit) -> Outcome {
    let (mut guest, server, _) = routed(kit, OUT, true)?;
    ask(guest.space, op::guest_space::UNROUTE, [PORT, 0, 0, 0])?;
    guest.until(Exit::Port)?;
    same("the server was called", &false, &server.done())
}

fn not_taken(kit: &mut Kit) -> Outcome {
    let (mut guest, mut server, _) = routed(kit, OUT, false)?;
    guest.state.set(gpr::RAX, 0x55);
    let from = runtime::now();
    let info = guest.until(Exit::RouteLost)?;
    same("access", &(0x4000, 1, false, false), &access(info[0]))?;
    same("value", &0x55, &(info[1] & 0xff))?;
    same(
        "within the limit",
        &true,
        &(runtime::now() - from < time::cycles(2 * LIMIT)),
    )?;
    // Nothing is in the queue; the guest is still before its instruction, and can try again.
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], 0);
    expect(Status::Timeout, server.finish()?.status)?;
    guest.until(Exit::RouteLost).map(drop)
}

fn not_answered(kit: &mut Kit) -> Outcome {
    let (mut guest, ..) = taken_and_lost(kit, OUT, 1)?;
    // Tried again, it is not taken: the server is busy with the first.
    let info = guest.until(Exit::RouteLost)?;
    same("taken", &false, &PortAccess(info[0]).taken())
}

fn dead_endpoint(kit: &mut Kit) -> Outcome {
    let (mut guest, _, endpoint) = routed(kit, OUT, true)?;
    kit::destroy(endpoint)?;
    let info = guest.until(Exit::RouteLost)?;
    same("taken", &false, &PortAccess(info[0]).taken())
}

/// A runner whose access waits: in the queue, or with the server if that receives.
pub(super) fn waiting(
    kit: &mut Kit,
    receives: bool,
    limit: u64,
) -> Outcome<(Partner, Partner, u64)> {
    let (guest, server, endpoint) = routed(kit, OUT, receives)?;
    guest.reroute(endpoint, time::cycles(limit))?;
    let mut runner = Partner::new(kit)?;
    runner.give(guest.vcpu, SLOT, rights::ALL, 0)?;
    runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
    same("blocked", &false, &runner.done())?;
    Ok((runner, server, endpoint))
}

pub(super) fn lost(runner: &Partner, taken: bool) -> Outcome {
    let ended = runner.finish()?;
    expect(Status::Ok, ended.status)?;
    same("exit", &Exit::RouteLost, &ExitWord(ended.tag.0).exit())?;
    same("taken", &taken, &PortAccess(ended.words[0]).taken())
}

fn endpoint_dies(kit: &mut Kit) -> Outcome {
    let (runner, _, endpoint) = waiting(kit, false, LIMIT)?;
    kit::destroy(endpoint)?;
    lost(&runner, false)
}

fn server_dies(kit: &mut Kit) -> Outcome {
    let (runner, server, _) = waiting(kit, true, LIMIT)?;
    kit::destroy(server.space)?;
    lost(&runner, true)
}

fn late_reply(kit: &mut Kit) -> Outcome {
    let (runner, mut server, _) = waiting(kit, true, LIMIT)?;
    pause(2 * LIMIT);
    lost(&runner, true)?;
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [1; 4], 0)?;
    expect(Status::Timeout, got.status)
}

/// Group RIP is copied at each exit unless the VMM says otherwise; with none asked for, the page keeps what it had.
fn groups(kit: &mut Kit) -> Outcome {
    const CR0: usize = 21;
    let mut guest = Guest::new(kit, HLT)?;
    guest.state.set(CR0, 0xdead);
    guest.until(Exit::Hlt)?;
    same("rip", &0xfff0, &guest.state.get(RIP))?;
    same("cr0 was not asked for", &0xdead, &guest.state.get(CR0))?;
    let mut guest = Guest::new(kit, HLT)?;
    guest.state.set(RIP, 0xdead);
    ask(
        guest.vcpu,
        op::vcpu::ON_EXIT,
        [Exit::Hlt as u64, Groups::CR, 0, 0],
    )?;
    guest.until(Exit::Hlt)?;
    same("rip was not asked for", &0xdead, &guest.state.get(RIP))?;
    // PE and PG are off, ET is on after a reset.
    same("cr0", &0x10, &(guest.state.get(CR0) & 0x8000_0011))
}

fn passes_on(kit: &mut Kit) -> Outcome {
    let mut guest = Guest::new(kit, LOOP)?;
    guest.until(Exit::Timeout)?;
    let mut other = Partner::new(kit)?;
    other.give(guest.vcpu, SLOT, rights::ALL, 0)?;
    let got = other.call(Syscall::Run, SLOT, Tag(0), [0; 4], 0)?;
    expect(Status::Busy, got.status)?;
    // This server runs another: the first is free.
    Guest::new(kit, LOOP)?.until(Exit::Timeout)?;
    let got = other.call(Syscall::Run, SLOT, Tag(0), [0; 4], 0)?;
    expect(Status::Ok, got.status)
}
