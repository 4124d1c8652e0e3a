//! Thread and Budget.

use super::super::rights::{CONTROL, RECV, SEND};
use super::super::{Kind, Status, layout, op};
use super::{Arg, Check, Is, Operation, Place, cap, maybe, on, state, untried, word};

/// Every operation on these begins so.
macro_rules! checks {
    ($($more:expr),*) => { &[Check::Target, Check::Right, Check::Label, $($more),*] };
}

/// Operations on Threads.
pub(super) const THREAD: &[Operation] = &[
    Operation {
        args: &[
            word("its Budget", 0, maybe(Kind::Budget, CONTROL)),
            word(
                "the Endpoint that gets its faults",
                1,
                maybe(Kind::Endpoint, SEND),
            ),
            word(
                "badge of these calls, 0 for the capability's own",
                2,
                Is::Free,
            ),
            word(
                "the Notification bound to it",
                3,
                maybe(Kind::Notification, RECV),
            ),
        ],
        does: "Sets all four, at any time; 0 stands for none.",
        post: "It runs on that Budget, on the Budget's processor, and so on. What it had before is free for another.",
        checks: checks!(
            Check::Arg(0),
            Check::Arg(1),
            state(
                "another's badge",
                Status::MissingRight,
                "w2 is neither 0 nor the capability's own badge, and the capability has a badge or lacks GRANT"
            ),
            Check::Arg(3),
            state(
                "notification taken",
                Status::Busy,
                "the Notification is bound to another thread"
            ),
            state(
                "budget taken",
                Status::Busy,
                "the Budget is another thread's"
            ),
            untried(
                Status::Busy,
                "the Budget is on another processor, and the thread is in a call or serves one"
            )
        ),
        ..on(
            Kind::Thread,
            op::thread::CONFIGURE,
            "thread.configure",
            CONTROL,
        )
    },
    Operation {
        args: &[
            word("rip", 0, Is::Address(layout::USER_END)),
            word("rsp", 1, Is::Address(layout::USER_END)),
            word("rdi", 2, Is::Free),
        ],
        does: "Starts a stopped thread, with all other registers 0.",
        post: "It is ready; it runs when its Budget does.",
        checks: checks!(
            state(
                "not stopped",
                Status::Busy,
                "it has been started, or it is suspended"
            ),
            Check::Arg(0),
            Check::Arg(1)
        ),
        ..on(Kind::Thread, op::thread::START, "thread.start", CONTROL)
    },
    Operation {
        does: "Stops it where it is. In a call it stops when the reply comes; waiting in `reply_recv` or `wait`, that ends with `Timeout`.",
        post: "It does not run. The call that it serves stays unanswered.",
        checks: checks!(),
        ..on(Kind::Thread, op::thread::SUSPEND, "thread.suspend", CONTROL)
    },
    Operation {
        does: "Lets a suspended thread go on, if it has been started. One that is not suspended is left alone.",
        post: "It is not suspended.",
        checks: checks!(),
        ..on(Kind::Thread, op::thread::RESUME, "thread.resume", CONTROL)
    },
    Operation {
        does: "Reads its registers and the call that it serves. Registers that the ABI does not preserve are as the last entry left them.",
        post: "Nothing has changed.",
        answers: "w0 = `thread_state`, w1 = 1 if it serves a call; payload: `ThreadRegs`, then badge, tag and four words of that call",
        checks: checks!(),
        ..on(
            Kind::Thread,
            op::thread::READ_REGS,
            "thread.read_regs",
            CONTROL,
        )
    },
    Operation {
        args: &[Arg {
            name: "rip",
            at: Place::Payload(16),
            is: Is::Address(layout::USER_END),
        }],
        does: "Sets the registers of a stopped or faulted thread from the payload (`ThreadRegs`). Of the flags only the arithmetic ones \
            and DF are taken.",
        post: "It goes on with these registers when it next runs.",
        checks: checks!(
            state(
                "not stopped",
                Status::Busy,
                "it is neither stopped nor faulted"
            ),
            Check::Arg(0)
        ),
        ..on(
            Kind::Thread,
            op::thread::WRITE_REGS,
            "thread.write_regs",
            CONTROL,
        )
    },
    Operation {
        args: &[word("a Notification", 0, maybe(Kind::Notification, SEND))],
        does: "Says whom to signal each time it could go on and has no Budget: its own is gone, or it has none and the client that it \
            serves has left or has no time left, and no other call waits for it. 0 for nobody.",
        post: "The Notification is signalled then, with the capability's badge. With a Budget of its own (`thread.configure`) it goes on.",
        checks: checks!(Check::Arg(0)),
        ..on(
            Kind::Thread,
            op::thread::BIND_EVENT,
            "thread.bind_event",
            CONTROL,
        )
    },
];

/// Operations on Budgets.
pub(super) const BUDGET: &[Operation] = &[
    Operation {
        args: &[
            word("a Cpu", 0, cap(Kind::Cpu, CONTROL)),
            word("priority", 1, Is::Number { least: 0, most: 31 }),
            word(
                "budget in TSC cycles",
                2,
                Is::Number {
                    least: 1,
                    most: u64::MAX,
                },
            ),
            word("period in TSC cycles", 3, Is::Free),
        ],
        does: "Sets what it grants: so many cycles in each period, on this processor, at this priority. One equal to its period is never exhausted.",
        post: "A new period has begun, with the whole budget. Its thread is on that processor.",
        checks: checks!(
            Check::Arg(0),
            state("off", Status::Unsupported, "the processor is not online"),
            Check::Arg(1),
            Check::Arg(2),
            state(
                "more than the period",
                Status::OutOfRange,
                "the budget is larger than the period"
            ),
            untried(
                Status::Busy,
                "it is on another processor, and its thread is in a call or serves one, or it is lent"
            )
        ),
        ..on(
            Kind::Budget,
            op::budget::CONFIGURE,
            "budget.configure",
            CONTROL,
        )
    },
    Operation {
        does: "Says what it grants and what was used.",
        post: "Nothing has changed.",
        answers: "w0 = TSC cycles used in all, w1 = priority, w2 = budget, w3 = period",
        checks: checks!(),
        ..on(Kind::Budget, op::budget::STAT, "budget.stat", CONTROL)
    },
    Operation {
        args: &[word("a Notification", 0, maybe(Kind::Notification, SEND))],
        does: "Says whom to signal each time it is exhausted; 0 for nobody.",
        post: "The Notification is signalled then, with the capability's badge.",
        checks: checks!(Check::Arg(0)),
        ..on(
            Kind::Budget,
            op::budget::BIND_EVENT,
            "budget.bind_event",
            CONTROL,
        )
    },
];
