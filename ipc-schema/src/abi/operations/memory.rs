//! Pool, Memory, Space: what is made of what, and who sees it.

use super::super::rights::{CONTROL, DESTROY, GRANT, READ, WRITE};
use super::super::{Kind, Status, layout, op};
use super::{Check, Is, Operation, cap, field, on, state, word};

const NO_MEMORY: Check = state(
    "pool is full",
    Status::NoMemory,
    "the Pool has not enough free pages",
);
const DYING: Check = state("dying", Status::Busy, "the Pool is being destroyed");
/// The mask of READ, WRITE and EXEC with READ: what a mapping may allow.
pub(super) const ACCESS: &[u64] = &[1, 3, 5, 7];

/// `CREATE` for one kind; its word 0 has the kind, which the row says.
const fn create(name: &'static str) -> Operation {
    on(Kind::Pool, op::pool::CREATE, name, CONTROL)
}
/// Kinds that can be made from a Pool.
const CREATABLE: &[u64] = &[3, 4, 5, 6, 7, 8, 9];
const fn kind(name: &'static str) -> super::Arg {
    field(name, 0, 0, 32, Is::Choice(CREATABLE))
}
const DEST: super::Arg = word("slot for the capability", 1, Is::Dest);
const CREATED: &str = "The slot holds a capability with all rights and no badge. The Pool has fewer free pages or slots.";
/// What every `CREATE` begins with.
macro_rules! create_checks {
    ($($more:expr),*) => {
        &[Check::Target, Check::Label, Check::Right, DYING, Check::Arg(0), Check::Arg(1), $($more),*]
    };
}
const IN_USE: Check = state("page in use", Status::Overlap, "something is mapped there");

/// Operations on Pools.
pub(super) const POOL: &[Operation] = &[
    Operation {
        args: &[
            kind("3: kind Space"),
            DEST,
            word(
                "slots of its capability table",
                2,
                Is::Number {
                    least: 1,
                    most: 1024,
                },
            ),
        ],
        does: "Makes a Space: an address space with nothing but the stub page, and an empty capability table.",
        post: CREATED,
        checks: create_checks!(Check::Arg(2), NO_MEMORY),
        ..create("pool.create space")
    },
    Operation {
        args: &[
            kind("4: kind Thread"),
            DEST,
            word("its Space", 2, cap(Kind::Space, CONTROL)),
            word("address of its UTCB there", 3, Is::Page(layout::USER_END)),
        ],
        does: "Makes a Thread in a Space: stopped, without Budget, supervisor and Notification. Its UTCB page is mapped there, cleared.",
        post: CREATED,
        checks: create_checks!(
            Check::Arg(2),
            Check::Aligned(&[3]),
            Check::Arg(3),
            IN_USE,
            NO_MEMORY
        ),
        ..create("pool.create thread")
    },
    Operation {
        args: &[kind("5: kind Budget"), DEST],
        does: "Makes a Budget that grants nothing yet.",
        post: CREATED,
        checks: create_checks!(NO_MEMORY),
        ..create("pool.create budget")
    },
    Operation {
        args: &[kind("6: kind Endpoint"), DEST],
        does: "Makes an Endpoint.",
        post: CREATED,
        checks: create_checks!(NO_MEMORY),
        ..create("pool.create endpoint")
    },
    Operation {
        args: &[kind("7: kind Notification"), DEST],
        does: "Makes a Notification without pending bits.",
        post: CREATED,
        checks: create_checks!(NO_MEMORY),
        ..create("pool.create notification")
    },
    Operation {
        args: &[kind("8: kind GuestSpace"), DEST],
        does: "Makes a GuestSpace without memory and routes.",
        post: CREATED,
        checks: create_checks!(NO_MEMORY),
        ..create("pool.create guest space")
    },
    Operation {
        args: &[
            kind("9: kind Vcpu"),
            DEST,
            field("its GuestSpace", 0, 32, 64, cap(Kind::GuestSpace, CONTROL)),
            word("the VMM's Space", 2, cap(Kind::Space, CONTROL)),
            word(
                "address of its state page there",
                3,
                Is::Page(layout::USER_END),
            ),
        ],
        does: "Makes a Vcpu of a GuestSpace, in its reset state. Its state page is mapped in the VMM's Space.",
        post: CREATED,
        checks: create_checks!(
            Check::Arg(2),
            Check::Arg(3),
            Check::Aligned(&[4]),
            Check::Arg(4),
            IN_USE,
            NO_MEMORY
        ),
        ..create("pool.create vcpu")
    },
    Operation {
        does: "Says how full the Pool is.",
        post: "Nothing has changed.",
        answers: "w0 = free pages, w1 = all pages, w2 = Pools that can yet be made of Memory that lives in it",
        checks: &[Check::Target, Check::Label, Check::Right, DYING],
        ..on(Kind::Pool, op::pool::STAT, "pool.stat", CONTROL)
    },
    Operation {
        does: "Destroys the Pool and all that was made from it, Pools made of Memory that lives in it included, a bounded part at a time: \
            interrupts and threads with precedence come in between, for which the Pool is `Busy`.",
        post: "Every capability to the Pool, and to what was made from it, is dead. The Memory it was made from can be used again.",
        checks: &[Check::Target, Check::Label, Check::Right],
        ..on(Kind::Pool, op::pool::DESTROY, "pool.destroy", DESTROY)
    },
];

/// Operations on Memory.
pub(super) const MEMORY: &[Operation] = &[
    Operation {
        args: &[
            word("offset", 0, Is::Offset),
            word("bytes", 1, Is::Extent),
            word("slot for the capability", 2, Is::Dest),
            word("the Pool that pays", 3, cap(Kind::Pool, CONTROL)),
        ],
        does: "Makes a part of it, with the rights of the capability that is called. While it has parts it cannot be mapped.",
        post: "The slot holds a capability to the part, which dies with the whole.",
        checks: &[
            Check::Target,
            Check::Label,
            Check::Right,
            Check::Arg(2),
            Check::Arg(3),
            DYING,
            Check::Aligned(&[0, 1]),
            Check::Arg(0),
            Check::Arg(1),
            state(
                "too deep",
                Status::OutOfRange,
                "it is a part of a part, and so on: 32 are one within the other",
            ),
            state(
                "mapped",
                Status::Busy,
                "it is mapped, or it is a Pool, or it is being destroyed",
            ),
            state(
                "parts overlap",
                Status::Overlap,
                "another part has some of it",
            ),
            NO_MEMORY,
        ],
        ..on(Kind::Memory, op::memory::DIVIDE, "memory.divide", CONTROL)
    },
    Operation {
        does: "Takes it, and its parts, out of every mapping.",
        post: "No processor, no guest and no device reaches it any more. It can be mapped again.",
        checks: &[Check::Target, Check::Label, Check::Right],
        ..on(Kind::Memory, op::memory::REVOKE, "memory.revoke", CONTROL)
    },
    Operation {
        args: &[
            word("slot for the capability", 0, Is::Dest),
            word(
                "how many Pools can be made of Memory that lives in it",
                1,
                Is::Free,
            ),
        ],
        does: "Gives it, all of it, to the kernel as a Pool. This one, and those that can be made of Memory that lives in it, are taken \
            off the number of the Pool that the Memory lives in.",
        post: "The slot holds a capability to the Pool. It is out of every mapping, and `Busy` until the Pool is destroyed. That gives \
            the numbers back.",
        checks: &[
            Check::Target,
            Check::Label,
            Check::Right,
            Check::Arg(0),
            state(
                "has parts",
                Status::Busy,
                "it has parts, or it is a Pool, or it is being destroyed",
            ),
            state("device", Status::InvalidArg, "it is no RAM"),
            state(
                "too small",
                Status::OutOfRange,
                "it has fewer than 2 pages, or 4 GiB or more",
            ),
            state(
                "too many pools",
                Status::NoMemory,
                "of Memory that lives in its Pool not so many Pools more can be made",
            ),
        ],
        ..on(
            Kind::Memory,
            op::memory::MAKE_POOL,
            "memory.make_pool",
            READ | WRITE | CONTROL,
        )
    },
    Operation {
        does: "Says what it is.",
        post: "Nothing has changed.",
        answers: "w0 = bytes, w1 = 0 for RAM or 1 for device registers, w2 = physical address (with CONTROL, else 0)",
        checks: &[Check::Target, Check::Label],
        ..on(Kind::Memory, op::memory::INFO, "memory.info", 0)
    },
];

/// Arguments of both `MAP`s, addresses ending at `end`.
macro_rules! map_args {
    ($end:expr) => {
        &[
            word("address", 0, Is::Page($end)),
            field("the Memory", 1, 0, 32, cap(Kind::Memory, 0)),
            field("READ, with WRITE or EXEC", 1, 32, 64, Is::Choice(ACCESS)),
            word("offset in the Memory", 2, Is::Offset),
            word("bytes", 3, Is::Extent),
        ]
    };
}
pub(super) use map_args;
/// What both `MAP`s make sure of first.
macro_rules! map_checks {
    ($($more:expr),*) => {
        &[
            Check::Target,
            Check::Right,
            Check::Label,
            Check::Arg(1),
            Check::Aligned(&[0, 3, 4]),
            Check::Arg(4),
            Check::Arg(3),
            Check::Arg(0),
            Check::Arg(2),
            state("more than the capability allows", Status::MissingRight, "the capability to the Memory lacks one of the rights asked for"),
            state("memory has parts", Status::Busy, "the Memory has parts, or is a Pool"),
            $($more,)*
            state("in use", Status::Overlap, "something is mapped in the range"),
            state("pool is full", Status::NoMemory, "the Pool of the target has not enough pages for tables and record; tables made so far stay, empty"),
        ]
    };
}
pub(super) use map_checks;

/// Operations on Spaces.
pub(super) const SPACE: &[Operation] = &[
    Operation {
        args: map_args!(layout::USER_END),
        does: "Maps a range of a Memory. The Space's Pool pays for tables and record.",
        post: "The range is readable, and writable or executable as asked.",
        checks: map_checks!(state(
            "writable and executable",
            Status::InvalidArg,
            "both WRITE and EXEC are asked for"
        )),
        ..on(Kind::Space, op::space::MAP, "space.map", CONTROL)
    },
    Operation {
        args: &[word("address that `MAP` was called with", 0, Is::Existing)],
        does: "Takes a mapping away, all of it.",
        post: "No processor reaches the range by this Space.",
        checks: &[Check::Target, Check::Right, Check::Label, Check::Arg(0)],
        ..on(Kind::Space, op::space::UNMAP, "space.unmap", CONTROL)
    },
    Operation {
        args: &[
            word(
                "slot of the capability to copy",
                0,
                Is::Any { rights: GRANT },
            ),
            word("slot in this Space", 1, Is::DestThere),
            field("rights to keep", 2, 0, 16, Is::Free),
            word("badge, 0 to leave it", 3, Is::Free),
        ],
        does: "Copies a capability into the Space's table, with fewer rights, or with a badge (Endpoint, Notification, Log) where \
            it has none.",
        post: "The copy has the rights that both the original and w2 have.",
        checks: &[
            Check::Target,
            Check::Right,
            Check::Label,
            Check::Arg(0),
            state(
                "badge cannot be set",
                Status::MissingRight,
                "a badge is asked for, and the capability has one or its kind takes none",
            ),
            Check::Arg(1),
        ],
        ..on(Kind::Space, op::space::COPY_CAP, "space.copy_cap", CONTROL)
    },
    Operation {
        args: &[word("slot in this Space", 0, Is::SlotThere)],
        does: "Empties a slot of the Space's table. Nothing happens to the object; an empty slot stays empty.",
        post: "The slot is empty.",
        checks: &[Check::Target, Check::Right, Check::Label, Check::Arg(0)],
        ..on(Kind::Space, op::space::DROP_CAP, "space.drop_cap", CONTROL)
    },
    Operation {
        args: &[word(
            "slot of the object's capability",
            0,
            Is::Any { rights: DESTROY },
        )],
        does: "Destroys an object, whichever Space holds it.",
        post: "All capabilities to it are dead, and its memory is its Pool's again. Who waited for it has the answer `Dead`.",
        checks: &[
            Check::Target,
            Check::Right,
            Check::Label,
            Check::Arg(0),
            state(
                "indestructible",
                Status::WrongType,
                "it is a Pool (which has an operation of its own), a Cpu or the Log",
            ),
            state(
                "backs a pool",
                Status::Busy,
                "it is a Memory that is a Pool, or a part of it is",
            ),
        ],
        ..on(
            Kind::Space,
            op::space::DESTROY_OBJECT,
            "space.destroy_object",
            CONTROL,
        )
    },
];
