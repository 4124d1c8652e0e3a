//! What is promised of routed accesses: nothing comes in between, each ends, and each is carried out once at most.

use ipc_schema::abi::vm::{Exit, ExitWord, PortAccess, gpr};
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::Special;
use super::guest::{Guest, IN, LIMIT, SLOT, lost, routed, waiting};
use crate::case::{Outcome, expect, same};
use crate::kernel::{Call, ask};
use crate::kit::{self, Kit};
use crate::partner::{Partner, pause};

pub(super) const CASES: &[Special] = &[
    ("a signal waits for the routed access", signal_taken),
    (
        "a signal waits for an access that nobody takes",
        signal_queued,
    ),
    (
        "the deadline of run waits for the routed access",
        deadline_taken,
    ),
    (
        "the deadline of run waits for an access that nobody takes",
        deadline_queued,
    ),
    (
        "an access outlives the server that did not take it",
        next_server,
    ),
    (
        "the access after a lost one is the next server's",
        next_access,
    ),
    (
        "a late reply does not answer the next access",
        late_for_the_next,
    ),
    (
        "the VMM's own try after a lost access is no other",
        tried_again,
    ),
    ("a routed access whose runner dies", runner_dies),
    ("a routed access whose Vcpu dies", vcpu_dies),
];

/// A time limit of routes that does not matter.
const LONG: u64 = 50 * LIMIT;

/// A partner runs the guest's IN until this deadline, with a Notification bound to it; the server has taken it if `taken`.
struct Pending {
    guest: Guest,
    runner: Partner,
    server: Partner,
    notification: u64,
}

fn pending(kit: &mut Kit, taken: bool, limit: u64, deadline: u64) -> Outcome<Pending> {
    let (mut guest, server, endpoint) = routed(kit, IN, taken)?;
    let badged = kit.badged(endpoint, rights::SEND, 0x67)?;
    guest.reroute(badged, limit)?;
    guest.set_rax(0x5555);
    let mut runner = Partner::new(kit)?;
    runner.give(guest.vcpu, SLOT, rights::ALL, 0)?;
    let notification = kit.make(Kind::Notification)?;
    let words = [runner.budget, kit.supervisor, 0, notification];
    ask(runner.thread, op::thread::CONFIGURE, words)?;
    runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], deadline);
    same("in its access", &false, &runner.done())?;
    if taken {
        server.finish()?;
    }
    Ok(Pending {
        guest,
        runner,
        server,
        notification,
    })
}

impl Pending {
    fn signal(&self) -> Outcome {
        let (status, _) = Call::system(Syscall::Signal, self.notification).make();
        expect(Status::Ok, status)
    }

    /// The server answers; the guest's instruction has been carried out, and then `run` ends with this exit.
    fn answered(&mut self, exit: Exit) -> Outcome {
        same("still in its access", &false, &self.runner.done())?;
        self.server
            .start(Syscall::ReplyRecv, SLOT, Tag(0), [0x99; 4], NEVER);
        let ended = self.runner.finish()?;
        same("exit", &exit, &ExitWord(ended.tag.0).exit())?;
        same("rax", &0x5599, &self.guest.get(gpr::RAX))?;
        same("rip, behind the IN", &0xfff4, &self.guest.rip())?;
        let bits = u64::from(exit == Exit::Signal);
        same("bits", &bits, &ended.words[0])
    }

    /// Nobody answers: the VMM has the access, and then what had to wait.
    fn lost_first(&mut self, then: Exit) -> Outcome {
        same("still in its access", &false, &self.runner.done())?;
        pause(2 * LIMIT);
        lost(&self.runner, false)?;
        let ended = self
            .runner
            .call(Syscall::Run, SLOT, Tag(0), [0; 4], time::after(0))?;
        same("exit", &then, &ExitWord(ended.tag.0).exit())
    }
}

fn signal_taken(kit: &mut Kit) -> Outcome {
    let mut p = pending(kit, true, time::cycles(LONG), NEVER)?;
    p.signal()?;
    p.answered(Exit::Signal)
}

fn signal_queued(kit: &mut Kit) -> Outcome {
    let mut p = pending(kit, false, time::cycles(LIMIT), NEVER)?;
    p.signal()?;
    p.lost_first(Exit::Signal)
}

fn deadline_taken(kit: &mut Kit) -> Outcome {
    let mut p = pending(kit, true, time::cycles(LONG), time::after(LIMIT / 2))?;
    pause(LIMIT);
    p.answered(Exit::Timeout)
}

fn deadline_queued(kit: &mut Kit) -> Outcome {
    let mut p = pending(kit, false, time::cycles(LIMIT), time::after(LIMIT / 4))?;
    pause(LIMIT / 2);
    p.lost_first(Exit::Timeout)
}

/// A server at the Endpoint takes the access and answers it; the guest goes on to its HLT.
fn served(kit: &mut Kit, endpoint: u64, runner: &Partner) -> Outcome {
    let mut server = Partner::new(kit)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
    same("label", &Tag::PORT, &got.tag.label())?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0x42; 4], NEVER);
    let ended = runner.finish()?;
    same("exit", &Exit::Hlt, &ExitWord(ended.tag.0).exit())
}

/// The Endpoint is there, and the access in its queue, when the server that did not come to it dies.
fn next_server(kit: &mut Kit) -> Outcome {
    let (runner, server, endpoint) = waiting(kit, false, LONG)?;
    kit::destroy(server.space)?;
    same("still in its access", &false, &runner.done())?;
    served(kit, endpoint, &runner)
}

fn next_access(kit: &mut Kit) -> Outcome {
    let (mut runner, server, endpoint) = waiting(kit, true, LONG)?;
    kit::destroy(server.space)?;
    lost(&runner, true)?;
    // The guest is before its instruction, and does it again.
    runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
    same("in its access again", &false, &runner.done())?;
    served(kit, endpoint, &runner)
}

fn late_for_the_next(kit: &mut Kit) -> Outcome {
    let mut p = pending(kit, true, time::cycles(LIMIT), NEVER)?;
    pause(2 * LIMIT);
    lost(&p.runner, true)?;
    // The second waits in the queue while the server is at the first.
    p.runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
    p.server
        .start(Syscall::ReplyRecv, SLOT, Tag(0), [0x77; 4], NEVER);
    let got = p.server.finish()?;
    same("the second", &Tag::PORT, &got.tag.label())?;
    p.answered(Exit::Hlt)
}

/// Between the loss and the next entry the VMM has the guest before its instruction: nothing of it was done.
fn tried_again(kit: &mut Kit) -> Outcome {
    let mut p = pending(kit, false, time::cycles(LIMIT), NEVER)?;
    pause(2 * LIMIT);
    lost(&p.runner, false)?;
    same("rax", &0x5555, &p.guest.get(gpr::RAX))?;
    same("rip, at the IN", &0xfff3, &p.guest.rip())?;
    for _ in 0..3 {
        p.runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
        pause(2 * LIMIT);
        lost(&p.runner, false)?;
    }
    p.runner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
    p.server
        .call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
    p.answered(Exit::Hlt)
}

fn runner_dies(kit: &mut Kit) -> Outcome {
    for taken in [false, true] {
        let p = pending(kit, taken, time::cycles(LONG), NEVER)?;
        kit::destroy(p.runner.space)?;
        let mut server = p.server;
        if taken {
            server.lives()?;
        }
        // The answer reaches nobody, and nothing is in the queue.
        server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0x99; 4], 0);
        expect(Status::Timeout, server.finish()?.status)?;
        // The vCPU is nobody's, and before its instruction.
        same("rax", &0x5555, &p.guest.get(gpr::RAX))?;
        let mut guest = p.guest;
        let ended = guest.run()?;
        same("exit", &Exit::RouteLost, &ended.exit)?;
        same("taken", &false, &PortAccess(ended.info[0]).taken())?;
    }
    Ok(())
}

fn vcpu_dies(kit: &mut Kit) -> Outcome {
    for taken in [false, true] {
        let p = pending(kit, taken, time::cycles(LONG), NEVER)?;
        kit::destroy(p.guest.vcpu)?;
        // At once, not when the server answers or the time is up.
        same("ended", &true, &p.runner.done())?;
        expect(Status::Dead, p.runner.finish()?.status)?;
        let mut server = p.server;
        if taken {
            server.lives()?;
        }
        server.start(Syscall::ReplyRecv, SLOT, Tag(0), [0x99; 4], 0);
        expect(Status::Timeout, server.finish()?.status)?;
    }
    Ok(())
}
