//! Irq, Ports, Cpu, Log.

use super::super::rights::{CONTROL, READ, SEND, WRITE};
use super::super::{Kind, Status, op};
use super::{Arg, Check, Is, Operation, Place, cap, field, maybe, on, state, untried, word};

/// Every operation on these but the Log begins so.
macro_rules! checks {
    ($($more:expr),*) => { &[Check::Target, Check::Right, Check::Label, $($more),*] };
}
/// On the Log the right depends on the operation.
macro_rules! log_checks {
    ($($more:expr),*) => { &[Check::Target, Check::Label, Check::Right, $($more),*] };
}
const NO_MEMORY: Check = state(
    "pool is full",
    Status::NoMemory,
    "the Pool has not enough free pages",
);
const DYING: Check = state("dying", Status::Busy, "the Pool is being destroyed");
const PORT: Arg = field("port", 0, 0, 16, Is::Free);
const WIDTH: Arg = field("bytes", 0, 16, 64, Is::Choice(&[1, 2, 4]));
const NOT_ITS: Check = state(
    "not its ports",
    Status::OutOfRange,
    "the access is not wholly in its range",
);

/// Operations on Irqs.
pub(super) const IRQ: &[Operation] = &[
    Operation {
        args: &[word("a Notification", 0, maybe(Kind::Notification, SEND))],
        does: "Says whom to signal at each interrupt; 0 for nobody.",
        post: "The Notification is signalled then, with the capability's badge.",
        checks: checks!(Check::Arg(0)),
        ..on(Kind::Irq, op::irq::BIND, "irq.bind", CONTROL)
    },
    Operation {
        does: "Says which vector it is.",
        post: "Nothing has changed.",
        answers: "w0 = vector",
        checks: checks!(),
        ..on(Kind::Irq, op::irq::INFO, "irq.info", CONTROL)
    },
];

/// Operations on Ports.
pub(super) const PORTS: &[Operation] = &[
    Operation {
        args: &[PORT, WIDTH],
        does: "Reads a port.",
        post: "The device has seen one read of this width.",
        answers: "w0 = value",
        checks: checks!(Check::Arg(1), NOT_ITS),
        ..on(Kind::Ports, op::ports::IN, "ports.in", CONTROL)
    },
    Operation {
        args: &[PORT, WIDTH, word("value", 1, Is::Free)],
        does: "Writes a port.",
        post: "The device has seen one write of this width.",
        checks: checks!(Check::Arg(1), NOT_ITS),
        ..on(Kind::Ports, op::ports::OUT, "ports.out", CONTROL)
    },
    Operation {
        args: &[PORT, word("bytes of the payload to leave out", 1, Is::Free)],
        does: "Writes the payload's bytes (at most 3072) to a port, one after the other.",
        post: "The device has seen as many writes.",
        checks: checks!(NOT_ITS),
        ..on(
            Kind::Ports,
            op::ports::OUT_BYTES,
            "ports.out_bytes",
            CONTROL,
        )
    },
    Operation {
        args: &[
            word("first port", 0, Is::Free),
            word(
                "ports",
                1,
                Is::Number {
                    least: 1,
                    most: 0x1_0000,
                },
            ),
            word("slot for the capability", 2, Is::Dest),
            word("the Pool that pays", 3, cap(Kind::Pool, CONTROL)),
        ],
        does: "Makes a part of it. Parts may overlap, and outlive the whole.",
        post: "The slot holds a capability to the part, with all rights.",
        checks: checks!(
            Check::Arg(2),
            Check::Arg(3),
            DYING,
            Check::Arg(1),
            state(
                "not its ports",
                Status::OutOfRange,
                "the part is not wholly in its range"
            ),
            NO_MEMORY
        ),
        ..on(Kind::Ports, op::ports::DIVIDE, "ports.divide", CONTROL)
    },
];

/// Operations on Cpus.
pub(super) const CPU: &[Operation] = &[
    Operation {
        args: &[
            word("slot for the capability", 0, Is::Dest),
            word("the Pool that pays", 1, cap(Kind::Pool, CONTROL)),
        ],
        does: "Takes a free interrupt vector of the processor.",
        post: "The slot holds a capability to its Irq, bound to nothing.",
        answers: "w0 = vector, w1 = local APIC id: what an interrupt controller is to be told",
        checks: checks!(
            Check::Arg(0),
            Check::Arg(1),
            DYING,
            state("off", Status::Unsupported, "the processor is not online"),
            state(
                "no vector left",
                Status::NoMemory,
                "all vectors of the processor are taken"
            ),
            NO_MEMORY
        ),
        ..on(Kind::Cpu, op::cpu::CREATE_IRQ, "cpu.create_irq", CONTROL)
    },
    Operation {
        does: "Says which processor it is.",
        post: "Nothing has changed.",
        answers: "w0 = number, w1 = local APIC id, w2 = TSC cycles idle, w3 = `cpu_state`",
        checks: checks!(),
        ..on(Kind::Cpu, op::cpu::INFO, "cpu.info", CONTROL)
    },
    Operation {
        args: &[
            word("slot for the capability", 0, Is::Dest),
            word("the Pool that pays", 1, cap(Kind::Pool, CONTROL)),
            word(
                "local APIC id",
                2,
                Is::Number {
                    least: 0,
                    most: 254,
                },
            ),
        ],
        does: "Makes the Cpu of another processor of the machine. What is known of a processor is never forgotten, even if \
            the Pool that paid goes.",
        post: "The slot holds a capability to it; it is off until it is started.",
        answers: "w0 = number",
        checks: checks!(
            Check::Arg(0),
            Check::Arg(1),
            DYING,
            Check::Arg(2),
            state(
                "known already",
                Status::Busy,
                "a processor of this id has a Cpu"
            ),
            NO_MEMORY,
            state(
                "no more processors",
                Status::NoMemory,
                "the kernel knows as many processors as it can"
            )
        ),
        ..on(Kind::Cpu, op::cpu::ADD, "cpu.add", CONTROL)
    },
    Operation {
        args: &[word(
            "step: 0 INIT, 1 start-up message, 2 admit it",
            0,
            Is::Choice(&[0, 1, 2]),
        )],
        does: "Takes one step of starting the processor. The caller waits between them (Intel SDM vol. 3, 9.4.4): 10 ms after \
            INIT, then until the state is `WAITING`.",
        post: "The step is done.",
        answers: "w0 = `cpu_state` afterwards",
        checks: checks!(
            untried(
                Status::Unsupported,
                "the machine has no page below 1 MiB to start processors in"
            ),
            Check::Arg(0),
            state(
                "not its turn",
                Status::Busy,
                "the processor is in no state for this step, or another one is being started"
            ),
            untried(
                Status::Unsupported,
                "step 2: its time-stamp counter differs, or it lacks what the first processor has: it is off again"
            )
        ),
        ..on(Kind::Cpu, op::cpu::START, "cpu.start", CONTROL)
    },
    Operation {
        does: "Says what the processor has done.",
        post: "Nothing has changed.",
        answers: "w0 = TSC cycles that were neither idle nor any Budget's, w1 = acquisitions of shared locks, w2 = times stopped for another processor, w3 = longest \
            time with interrupts off, where the kernel measures it",
        checks: checks!(),
        ..on(Kind::Cpu, op::cpu::STAT, "cpu.stat", CONTROL)
    },
];

/// Operations on the Log.
pub(super) const LOG: &[Operation] = &[
    Operation {
        args: &[Arg {
            name: "bytes",
            at: Place::Length,
            is: Is::Number {
                least: 1,
                most: 255,
            },
        }],
        does: "Adds the payload as one record, its source the capability's badge. The oldest records make room.",
        post: "The record is in the ring; who is bound to it is signalled.",
        checks: log_checks!(Check::Arg(0)),
        ..on(Kind::Log, op::log::WRITE, "log.write", WRITE)
    },
    Operation {
        args: &[word("position, 0 at first", 0, Is::Free)],
        does: "Reads whole records {u16 length, u8 source, bytes} from a position on, at most 3072 bytes.",
        post: "Nothing has changed.",
        answers: "w0 = next position, w1 = bytes lost because the ring had wrapped; payload: the records",
        checks: log_checks!(),
        ..on(Kind::Log, op::log::READ, "log.read", READ)
    },
    Operation {
        args: &[word("a Notification", 0, maybe(Kind::Notification, SEND))],
        does: "Says whom to signal when records are added; 0 for nobody.",
        post: "The Notification is signalled then, with the capability's badge.",
        checks: log_checks!(Check::Arg(0)),
        ..on(Kind::Log, op::log::BIND, "log.bind", READ)
    },
];
