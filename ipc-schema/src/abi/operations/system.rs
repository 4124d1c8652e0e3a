//! The six system calls.

use super::super::{Kind, Status, Syscall, rights};
use super::{Check, Entry, Operation, on, state};

const fn system(call: Syscall, name: &'static str, target: Kind, rights: u32) -> Operation {
    Operation {
        entry: Entry::System(call),
        ..on(target, 0, name, rights)
    }
}

/// All of them.
pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        does: "Sends a message to an Endpoint and waits for the reply. On any other object it performs an operation. Payload \
            and capabilities that the tag announces are copied when a receiver takes the call; the receiver runs on the \
            caller's Budget; when that runs out, or the caller leaves, on that of the next caller in the queue, else on its own.",
        post: "The reply's tag and words are in the registers, its payload and capabilities in the UTCB. What could not be \
            copied was left out; `received` counts the capabilities that came, when the tag announces any.",
        answers: "the replier's tag and words",
        checks: &[
            Check::Target,
            Check::Right,
            state(
                "too deep",
                Status::Busy,
                "16 calls already lead to the caller: the next would not be bounded",
            ),
            state(
                "nobody takes it",
                Status::Timeout,
                "the deadline passed before a receiver took the call: it was not made",
            ),
            state(
                "nobody answers",
                Status::Timeout,
                "the deadline passed before the reply: a late reply is dropped",
            ),
            state(
                "endpoint destroyed",
                Status::Dead,
                "the Endpoint was destroyed while the call waited in its queue",
            ),
            state(
                "receiver destroyed",
                Status::Dead,
                "the thread that had taken the call was destroyed",
            ),
        ],
        ..system(Syscall::Call, "call", Kind::Endpoint, rights::SEND)
    },
    Operation {
        target_optional: true,
        does: "Replies to the caller being served, if any, then waits for the next call, for the bound Notification, or for \
            the deadline. With slot 0 it waits for the Notification and the deadline only.",
        post: "`Ok`: a call is there: rdi has the badge of the caller's capability. `Signal`: rdi has the Notification's bits, \
            which are now clear. In both cases, and with `Timeout`, the reply has been given; with `InvalidCap`, `WrongType` \
            and `MissingRight` it has not.",
        answers: "the caller's tag and words",
        checks: &[
            Check::Target,
            Check::Right,
            state(
                "nothing comes",
                Status::Timeout,
                "the deadline passed; a call being waiting, or a bit, comes first",
            ),
            state(
                "endpoint destroyed",
                Status::Dead,
                "the Endpoint was destroyed while this thread waited at it",
            ),
        ],
        ..system(
            Syscall::ReplyRecv,
            "reply_recv",
            Kind::Endpoint,
            rights::RECV,
        )
    },
    Operation {
        does: "Sets the bits of the capability's badge in a Notification (bit 0 if it has none).",
        post: "Who waits for it, in `wait` or bound to it in `reply_recv` or `run`, wakes with all bits; else they stay pending.",
        checks: &[Check::Target, Check::Right],
        ..system(Syscall::Signal, "signal", Kind::Notification, rights::SEND)
    },
    Operation {
        does: "Waits until a Notification has pending bits. Bits that are there come before the deadline, even one that is past.",
        post: "The answer is `Signal`, rdi has all its bits, and they are clear.",
        checks: &[
            Check::Target,
            Check::Right,
            state("another waits", Status::Busy, "another thread waits for it"),
            state("nothing comes", Status::Timeout, "the deadline passed"),
            state("destroyed", Status::Dead, "it was destroyed meanwhile"),
        ],
        ..system(Syscall::Wait, "wait", Kind::Notification, rights::RECV)
    },
    Operation {
        does: "Turns the calling thread into a guest. Groups of the state page that rsi names are loaded first. Pending bits of \
            the bound Notification, and a deadline that is past, end it at once.",
        post: "rsi has the exit; the state page has the groups that were asked for with it. A state that the processor refuses \
            is the exit `EntryFailed`, not an error.",
        answers: "information of the exit",
        checks: &[
            Check::Target,
            Check::Right,
            state(
                "another runs it",
                Status::Busy,
                "another thread ran it last, and has since neither been destroyed nor run another",
            ),
            state(
                "destroyed",
                Status::Dead,
                "the vCPU was destroyed meanwhile",
            ),
        ],
        ..system(Syscall::Run, "run", Kind::Vcpu, rights::CONTROL)
    },
    Operation {
        target: None,
        does: "Lets other threads of the same priority run.",
        post: "The answer is `Ok`.",
        ..system(Syscall::Yield, "yield", Kind::Mapping, 0)
    },
];
