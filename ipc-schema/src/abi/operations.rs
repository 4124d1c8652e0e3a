//! What the kernel can be asked, as data: each operation's arguments, the rights it needs, what holds before and after, and
//! every error in the order in which the kernel looks for it.
//!
//! Job: the one place that says what the kernel answers. `microkernel/docs/ABI.md` is rendered from it ([`Reference`]), and
//! the conformance server (`services/conformance`) derives its cases from it: each argument of each operation wrong in each
//! [`Way`] that its kind allows. Place: beside [`super::op`], which has the numbers. A new operation is a new row in its
//! object's file; the conformance server then asks for a right call of it, and for a case of each [`Check::State`].
//!
//! The order of [`Operation::checks`] is part of the contract: where two things are wrong, the answer is the first one's error.

mod guest;
mod machine;
mod memory;
mod reference;
mod system;
mod thread;

pub use reference::Reference;

use super::{Kind, Status, Syscall, rights};

/// How the kernel is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A system call of its own.
    System(Syscall),
    /// [`Syscall::Call`] on a capability for an object of this kind, with this label.
    Call(Kind, u64),
}

/// An argument: a field of a message word, or what stands in the payload.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// What it is called.
    pub name: &'static str,
    /// Where it is.
    pub at: Place,
    /// What it may be.
    pub is: Is,
}

/// Where an argument is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Bits `low..high` of message word `word`.
    Word {
        /// 0 to 3.
        word: usize,
        /// First bit.
        low: u32,
        /// One past the last bit.
        high: u32,
    },
    /// The length of the payload that the tag announces, in bytes.
    Length,
    /// A word of the payload.
    Payload(usize),
}

/// What an argument may be, and so in which [`Way`]s it can be wrong.
#[derive(Clone, Copy, Debug)]
pub enum Is {
    /// Slot of a capability for an object of this kind with these rights; 0 for none if `optional`.
    Cap {
        /// Kind of the object.
        kind: Kind,
        /// Rights needed.
        rights: u32,
        /// Whether 0 says: none.
        optional: bool,
    },
    /// Slot of a capability for an object of any kind, with these rights.
    Any {
        /// Rights needed.
        rights: u32,
    },
    /// Slot of the caller's that takes the new capability: empty, or with a dead capability.
    Dest,
    /// The same in the Space that the operation is for.
    DestThere,
    /// Any slot of the Space that the operation is for but slot 0.
    SlotThere,
    /// A number from `least` to `most`.
    Number {
        /// Least.
        least: u64,
        /// Most.
        most: u64,
    },
    /// One of these.
    Choice(&'static [u64]),
    /// The beginning of something that exists.
    Existing,
    /// Address of a page below this end.
    Page(u64),
    /// Any address below this end.
    Address(u64),
    /// Where in the Memory a range begins: a multiple of the page size.
    Offset,
    /// Bytes of a range that lies in the Memory: a multiple of the page size, not 0.
    Extent,
    /// Anything.
    Free,
}

/// Something that the kernel makes sure of.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// The slot holds a live capability (for a system call: of the right kind).
    Target,
    /// It has the operation's rights.
    Right,
    /// There is an operation of this label.
    Label,
    /// The argument of this number is what it must be; the errors are its kind's ([`Way::error`]).
    Arg(usize),
    /// The arguments of these numbers are multiples of the page size: `Misaligned`.
    Aligned(&'static [usize]),
    /// The objects are in a state that allows it.
    State {
        /// Name of the case.
        name: &'static str,
        /// The answer if not.
        error: Status,
        /// When.
        when: &'static str,
    },
    /// The same where no test of one machine with one processor can bring the state about.
    Untried {
        /// The answer if not.
        error: Status,
        /// When.
        when: &'static str,
    },
}

/// A way for an argument, or for the capability that is called, to be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Slot 0, which is always empty.
    Null,
    /// A slot that nothing is in.
    Empty,
    /// The first slot behind the table.
    Outside,
    /// A slot number of which only the lower half names a good slot.
    Huge,
    /// A capability whose object was destroyed, its slot used again by another of the same kind.
    Stale,
    /// A live capability with all rights, for an object of each other kind.
    OtherKind,
    /// Without this right.
    Lacks(u32),
    /// The destination holds a live capability.
    Occupied,
    /// Not a multiple of the page size.
    Misaligned,
    /// Less than the least.
    Below,
    /// More than the most: by one, and by as much as can be said.
    Above,
    /// None of the choices, or the beginning of nothing.
    Unknown,
    /// No operation has this label.
    NoSuchLabel,
}

impl Way {
    /// What the kernel answers.
    #[must_use]
    pub const fn error(self) -> Status {
        match self {
            Self::Null | Self::Empty | Self::Outside | Self::Huge | Self::Stale => {
                Status::InvalidCap
            }
            Self::OtherKind => Status::WrongType,
            Self::Lacks(_) => Status::MissingRight,
            Self::Occupied => Status::Occupied,
            Self::Misaligned => Status::Misaligned,
            Self::Below | Self::Above => Status::OutOfRange,
            Self::Unknown => Status::InvalidArg,
            Self::NoSuchLabel => Status::BadOperation,
        }
    }
}

/// What is wrong in a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The argument's number; `None`: the capability that is called, or the label.
    pub arg: Option<usize>,
    /// In which way.
    pub way: Way,
}

/// One thing that the kernel can be asked.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// How.
    pub entry: Entry,
    /// Its name, unique.
    pub name: &'static str,
    /// Kind of the object (the capability in rdi); `None`: no capability is looked at.
    pub target: Option<Kind>,
    /// Slot 0 instead of the capability is allowed.
    pub target_optional: bool,
    /// Rights that the capability must have.
    pub rights: u32,
    /// Its arguments.
    pub args: &'static [Arg],
    /// What it does.
    pub does: &'static str,
    /// What holds afterwards when the answer is `Ok`.
    pub post: &'static str,
    /// What the answer's words say.
    pub answers: &'static str,
    /// What is made sure of, in this order, before anything changes.
    pub checks: &'static [Check],
}

/// Kinds that a capability can be for.
pub const KINDS: [Kind; 13] = [
    Kind::Pool,
    Kind::Memory,
    Kind::Space,
    Kind::Thread,
    Kind::Budget,
    Kind::Endpoint,
    Kind::Notification,
    Kind::GuestSpace,
    Kind::Vcpu,
    Kind::Irq,
    Kind::Ports,
    Kind::Cpu,
    Kind::Log,
];

/// Kinds whose objects last as long as the machine runs, so that no capability to one is ever stale.
pub const ETERNAL: [Kind; 2] = [Kind::Cpu, Kind::Log];

/// All operations, object by object.
pub fn all() -> impl Iterator<Item = &'static Operation> {
    [
        system::OPERATIONS,
        memory::POOL,
        memory::MEMORY,
        memory::SPACE,
        thread::THREAD,
        thread::BUDGET,
        guest::GUEST_SPACE,
        guest::VCPU,
        machine::IRQ,
        machine::PORTS,
        machine::CPU,
        machine::LOG,
    ]
    .into_iter()
    .flatten()
}

/// Rights of a mask, one by one.
pub fn each_right(mask: u32) -> impl Iterator<Item = u32> {
    (0..32)
        .map(|bit| 1u32 << bit)
        .filter(move |right| mask & rights::ALL & right != 0)
}

const NAMES: [(u32, &str); 8] = [
    (rights::READ, "READ"),
    (rights::WRITE, "WRITE"),
    (rights::EXEC, "EXEC"),
    (rights::SEND, "SEND"),
    (rights::RECV, "RECV"),
    (rights::CONTROL, "CONTROL"),
    (rights::DESTROY, "DESTROY"),
    (rights::GRANT, "GRANT"),
];

/// Name of a single right.
#[must_use]
pub fn right_name(right: u32) -> &'static str {
    NAMES
        .iter()
        .find(|(r, _)| *r == right)
        .map_or("?", |(_, name)| name)
}

/// Stale capabilities cannot be made for kinds that last.
fn can_be_stale(kind: Kind) -> bool {
    !ETERNAL.contains(&kind)
}

impl Operation {
    /// Every way in which something that `check` looks at can be wrong; nothing for a state.
    pub fn ways(&self, check: &Check) -> impl Iterator<Item = Wrong> + use<> {
        const SLOT: [Way; 3] = [Way::Empty, Way::Outside, Way::Huge];
        let (arg, ways): (Option<usize>, [Option<Way>; 6]) = match *check {
            Check::Target => {
                let kind = self.target.unwrap_or(Kind::Mapping);
                // `call` on another kind is an operation of that kind.
                let system =
                    matches!(self.entry, Entry::System(s) if s as u64 != Syscall::Call as u64);
                let mut w = [None; 6];
                w[..3].copy_from_slice(&SLOT.map(Some));
                w[3] = (!self.target_optional).then_some(Way::Null);
                w[4] = can_be_stale(kind).then_some(Way::Stale);
                w[5] = system.then_some(Way::OtherKind);
                (None, w)
            }
            Check::Right => (None, lacks(self.rights)),
            Check::Label => (None, one(Way::NoSuchLabel)),
            Check::Arg(i) => {
                let Some(arg) = self.args.get(i) else {
                    return [None; 9].into_iter().flatten();
                };
                // A field of 32 bits cannot hold a number whose upper half is set.
                let wide = matches!(arg.at, Place::Word { low, high, .. } if high - low > 32);
                let huge = wide.then_some(Way::Huge);
                let (mut w, mut more) = ([None; 6], [None; 3]);
                match arg.is {
                    Is::Cap {
                        kind,
                        rights,
                        optional,
                    } => {
                        w = [
                            (!optional).then_some(Way::Null),
                            Some(Way::Empty),
                            Some(Way::Outside),
                            huge,
                            can_be_stale(kind).then_some(Way::Stale),
                            Some(Way::OtherKind),
                        ];
                        let mut missing = each_right(rights).map(Way::Lacks);
                        more = [missing.next(), missing.next(), missing.next()];
                    }
                    Is::Any { rights } => {
                        w = [
                            Some(Way::Null),
                            Some(Way::Empty),
                            Some(Way::Outside),
                            huge,
                            Some(Way::Stale),
                            None,
                        ];
                        more[0] = each_right(rights).map(Way::Lacks).next();
                    }
                    Is::Dest | Is::DestThere => {
                        w[..4].copy_from_slice(&[
                            Some(Way::Null),
                            Some(Way::Outside),
                            huge,
                            Some(Way::Occupied),
                        ]);
                    }
                    Is::SlotThere => {
                        w[..3].copy_from_slice(&[Some(Way::Null), Some(Way::Outside), huge]);
                    }
                    Is::Number { least, most } => {
                        let sayable = match arg.at {
                            Place::Word { low, high, .. } => u64::MAX >> (64 - (high - low)),
                            Place::Length => 0xfff,
                            Place::Payload(_) => u64::MAX,
                        };
                        w[0] = (least > 0).then_some(Way::Below);
                        w[1] = (most < sayable).then_some(Way::Above);
                    }
                    Is::Choice(_) | Is::Existing => w[0] = Some(Way::Unknown),
                    Is::Page(_) | Is::Address(_) | Is::Offset => w[0] = Some(Way::Above),
                    Is::Extent => w[..2].copy_from_slice(&[Some(Way::Below), Some(Way::Above)]),
                    Is::Free => {}
                }
                return join(Some(i), w, more);
            }
            // One argument at a time: the caller asks for each.
            Check::Aligned(args) => {
                let mut all = [None; 9];
                for (place, &i) in all.iter_mut().zip(args) {
                    *place = Some(Wrong {
                        arg: Some(i),
                        way: Way::Misaligned,
                    });
                }
                return all.into_iter().flatten();
            }
            Check::State { .. } | Check::Untried { .. } => {
                return [None; 9].into_iter().flatten();
            }
        };
        join(arg, ways, [None; 3])
    }
}

fn join(
    arg: Option<usize>,
    ways: [Option<Way>; 6],
    more: [Option<Way>; 3],
) -> core::iter::Flatten<core::array::IntoIter<Option<Wrong>, 9>> {
    let mut all = [None; 9];
    for (place, way) in all.iter_mut().zip(ways.into_iter().chain(more)) {
        *place = way.map(|way| Wrong { arg, way });
    }
    all.into_iter().flatten()
}

fn one(way: Way) -> [Option<Way>; 6] {
    let mut w = [None; 6];
    w[0] = Some(way);
    w
}

fn lacks(mask: u32) -> [Option<Way>; 6] {
    let mut w = [None; 6];
    for (place, right) in w.iter_mut().zip(each_right(mask)) {
        *place = Some(Way::Lacks(right));
    }
    w
}

/// A whole message word.
const fn word(name: &'static str, word: usize, is: Is) -> Arg {
    field(name, word, 0, 64, is)
}

/// Bits `low..high` of a message word.
const fn field(name: &'static str, word: usize, low: u32, high: u32, is: Is) -> Arg {
    Arg {
        name,
        at: Place::Word { word, low, high },
        is,
    }
}

/// A capability argument.
const fn cap(kind: Kind, rights: u32) -> Is {
    Is::Cap {
        kind,
        rights,
        optional: false,
    }
}

/// A capability argument that may be 0.
const fn maybe(kind: Kind, rights: u32) -> Is {
    Is::Cap {
        kind,
        rights,
        optional: true,
    }
}

const fn state(name: &'static str, error: Status, when: &'static str) -> Check {
    Check::State { name, error, when }
}

const fn untried(error: Status, when: &'static str) -> Check {
    Check::Untried { error, when }
}

/// An operation on an object, without arguments and answers.
const fn on(kind: Kind, label: u64, name: &'static str, rights: u32) -> Operation {
    Operation {
        entry: Entry::Call(kind, label),
        name,
        target: Some(kind),
        target_optional: false,
        rights,
        args: &[],
        does: "",
        post: "",
        answers: "",
        checks: &[],
    }
}

#[cfg(test)]
mod tests;
