//! GuestSpace and Vcpu.

use super::super::rights::{CONTROL, SEND};
use super::super::{Kind, Status, op, vm};
use super::memory::{ACCESS, map_args, map_checks};
use super::{Check, Is, Operation, cap, field, on, state, word};

/// First guest-physical address that cannot be mapped.
const GUEST_END: u64 = super::super::layout::USER_END;

/// Every operation on these begins so.
macro_rules! checks {
    ($($more:expr),*) => { &[Check::Target, Check::Right, Check::Label, $($more),*] };
}

const FIRST: super::Arg = field("first port", 0, 0, 16, Is::Free);
const COUNT: super::Arg = field(
    "ports",
    0,
    16,
    32,
    Is::Number {
        least: 1,
        most: 1024,
    },
);
const ROUTED: &str = "Plain accesses wholly in the range go there and not to the VMM.";
/// What both kinds of route make sure of.
macro_rules! route_checks {
    () => {
        checks!(
            Check::Arg(2),
            Check::Arg(3),
            Check::Arg(1),
            state(
                "beyond the last port",
                Status::OutOfRange,
                "the range ends behind port 0xffff"
            ),
            state(
                "already routed",
                Status::Overlap,
                "one of the ports has a route"
            ),
            state("too many routes", Status::NoMemory, "it has 48 routes"),
            Check::Untried {
                error: Status::NoMemory,
                when: "the GuestSpace's Pool is full and pages of the index are needed"
            }
        )
    };
}

/// Operations on GuestSpaces.
pub(super) const GUEST_SPACE: &[Operation] = &[
    Operation {
        args: map_args!(GUEST_END),
        does: "Maps a range of a Memory at a guest-physical address. The GuestSpace's Pool pays for tables and record.",
        post: "The guest reaches the range as asked.",
        checks: map_checks!(state("device", Status::InvalidArg, "the Memory is no RAM")),
        ..on(
            Kind::GuestSpace,
            op::guest_space::MAP,
            "guest_space.map",
            CONTROL,
        )
    },
    Operation {
        args: &[word("address that `MAP` was called with", 0, Is::Existing)],
        does: "Takes a mapping away, all of it.",
        post: "No vCPU reaches the range.",
        checks: checks!(Check::Arg(0)),
        ..on(
            Kind::GuestSpace,
            op::guest_space::UNMAP,
            "guest_space.unmap",
            CONTROL,
        )
    },
    Operation {
        args: &[
            FIRST,
            COUNT,
            field("1: to an Endpoint", 0, 32, 40, Is::Choice(&[1, 2])),
            word("the Endpoint", 1, cap(Kind::Endpoint, SEND)),
            word("time limit of a call in TSC cycles", 2, Is::Free),
        ],
        does: "Routes ports to a server: the kernel calls it with each access.",
        post: ROUTED,
        checks: route_checks!(),
        ..on(
            Kind::GuestSpace,
            op::guest_space::ROUTE,
            "guest_space.route call",
            CONTROL,
        )
    },
    Operation {
        args: &[
            FIRST,
            COUNT,
            field("2: a doorbell", 0, 32, 40, Is::Choice(&[1, 2])),
            word("the Notification", 1, cap(Kind::Notification, SEND)),
            word("the value, if bit 40 of w0 is set", 2, Is::Free),
        ],
        does: "Routes writes of ports to a Notification, all or those of one value; the guest goes on at once.",
        post: ROUTED,
        checks: route_checks!(),
        ..on(
            Kind::GuestSpace,
            op::guest_space::ROUTE,
            "guest_space.route doorbell",
            CONTROL,
        )
    },
    Operation {
        args: &[field("first port of a route", 0, 0, 16, Is::Existing)],
        does: "Takes a route away. A call that is under way is finished.",
        post: "Accesses of its ports go to the VMM.",
        checks: checks!(Check::Arg(0)),
        ..on(
            Kind::GuestSpace,
            op::guest_space::UNROUTE,
            "guest_space.unroute",
            CONTROL,
        )
    },
];

/// Operations on Vcpus.
pub(super) const VCPU: &[Operation] = &[Operation {
    args: &[
        word("exit, or !0 for all", 0, Is::Free),
        field("groups", 1, 0, 9, Is::Free),
    ],
    does: "Says which groups are copied to the state page at an exit.",
    post: "From the next exit on it is so.",
    checks: checks!(state(
        "no such exit",
        Status::OutOfRange,
        "neither the number of an exit nor !0"
    )),
    ..on(Kind::Vcpu, op::vcpu::ON_EXIT, "vcpu.on_exit", CONTROL)
}];

// `ON_EXIT` takes numbers below this.
const _: () = assert!(vm::Exit::COUNT == 23);
