//! The table as a page to read.

use core::fmt::{self, Display, Formatter};

use super::super::{Kind, Status, Syscall};
use super::{Arg, Check, Entry, Is, Operation, Place, all, each_right, right_name};

/// Renders the whole table as Markdown: what `microkernel/docs/ABI.md` holds.
pub struct Reference;

/// What each kind of object is, and what its destruction does.
const OBJECTS: [(Kind, &str); 13] = [
    (
        Kind::Pool,
        "Kernel memory that its owner gave. Everything else is made from one; nothing else allocates. Its capability is the \
        result of `memory.make_pool`; destroying it destroys all that was made from it.",
    ),
    (
        Kind::Memory,
        "A run of physical pages: RAM or device registers. Destroying it takes it, and its parts, out of every mapping.",
    ),
    (
        Kind::Space,
        "A host address space with its capability table: one protection domain. Destroying it destroys its Threads and \
        mappings.",
    ),
    (
        Kind::Thread,
        "An execution context with a UTCB page. Destroying it ends its call, and answers `Dead` to the call that it serves.",
    ),
    (
        Kind::Budget,
        "A scheduling context: processor, priority, budget, period; lent along calls. Destroying it leaves its thread with none.",
    ),
    (
        Kind::Endpoint,
        "Where servers receive calls. Destroying it answers `Dead` to all who queue or wait at it; a call that was taken \
        goes on.",
    ),
    (
        Kind::Notification,
        "A word of pending bits. Destroying it answers `Dead` to who waits; a bound thread has none then.",
    ),
    (
        Kind::GuestSpace,
        "A VM: nested page table and exit routes. Destroying it destroys its Vcpus and mappings.",
    ),
    (
        Kind::Vcpu,
        "A guest's registers; a thread runs it. Destroying it ends a `run` of it with `Dead`.",
    ),
    (
        Kind::Irq,
        "An interrupt vector of a processor. Destroying it frees the vector.",
    ),
    (Kind::Ports, "A range of I/O ports."),
    (
        Kind::Cpu,
        "A processor: the right to give out its time and its vectors. It cannot be destroyed.",
    ),
    (
        Kind::Log,
        "The ring of log records. It cannot be destroyed.",
    ),
];

impl Display for Reference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        f.write_str("\n# System calls\n")?;
        for op in all().filter(|op| matches!(op.entry, Entry::System(_))) {
            operation(f, op)?;
        }
        for (kind, text) in OBJECTS {
            writeln!(f, "\n# {kind:?}\n\n{text}")?;
            let mut any = false;
            for op in all().filter(|op| matches!(op.entry, Entry::Call(k, _) if k == kind)) {
                operation(f, op)?;
                any = true;
            }
            if !any {
                let calls = if kind == Kind::Endpoint {
                    "`call` and `reply_recv`"
                } else {
                    "`signal` and `wait`"
                };
                writeln!(f, "\nIt has no operations but the system calls {calls}.")?;
            }
        }
        Ok(())
    }
}

const HEAD: &str = "\
<!-- Rendered from `ipc-schema/src/abi/operations`; a test compares it (microkernel/tests/abi_reference.rs says how to renew it). -->
The kernel's operations: for each what it takes, does and leaves behind, and every error, in the order in which the kernel looks for
it. Where two things are wrong the first one's error is the answer. Whatever is refused has changed nothing.

Registers, tag and UTCB are described at `ipc_schema::abi`, state pages and exits at `ipc_schema::abi::vm`. *wN* is message word N,
*wN[a..b]* bits a to b (exclusive) of it; bits that no argument has are ignored. A *slot* is a number in the caller's capability table.

A capability argument is refused as:

| | when |
|---|---|
| `InvalidCap` | the slot is 0 (unless 0 says: none), empty, or outside the table; or the object has been destroyed |
| `WrongType` | it is for an object of another kind |
| `MissingRight` | it lacks a right that the argument needs |

A slot for a new capability is refused with `InvalidCap` if it is 0 or outside the table, with `Occupied` if a live capability is in
it; a dead one makes room. A number outside its limits is `OutOfRange`, a choice that does not exist `InvalidArg`, an address, offset
or length that is no multiple of 4096 `Misaligned`. A system call whose number is not one of the six is `BadOperation`.
";

fn operation(f: &mut Formatter<'_>, op: &Operation) -> fmt::Result {
    writeln!(f, "\n## `{}`\n\n{}\n", op.name, op.does)?;
    match op.entry {
        Entry::System(call) => write!(f, "System call {}", call as u64)?,
        Entry::Call(kind, label) => write!(f, "`call` on a {kind:?}, label {label}")?,
    }
    match op.target {
        Some(kind) => {
            if let Entry::System(_) = op.entry {
                write!(f, " on the {kind:?} in rdi")?;
                if op.target_optional {
                    f.write_str(", or 0")?;
                }
            }
            f.write_str("; needs ")?;
            rights(f, op.rights)?;
            f.write_str(".\n")?;
        }
        None => f.write_str(", without a capability.\n")?,
    }
    if !op.args.is_empty() {
        f.write_str("\n| argument | | |\n|---|---|---|\n")?;
        for arg in op.args {
            write!(f, "| {} | {} | ", At(arg.at), arg.name)?;
            is(f, arg)?;
            f.write_str(" |\n")?;
        }
    }
    if !op.answers.is_empty() {
        writeln!(f, "\nAnswers: {}.", op.answers)?;
    }
    writeln!(f, "\nAfterwards: {}", op.post)?;
    if op.checks.is_empty() {
        return f.write_str("\nIt cannot fail.\n");
    }
    f.write_str("\n| error | when |\n|---|---|\n")?;
    op.checks.iter().try_for_each(|c| check(f, op, c))
}

fn rights(f: &mut Formatter<'_>, mask: u32) -> fmt::Result {
    if mask == 0 {
        return f.write_str("no right");
    }
    for (i, right) in each_right(mask).enumerate() {
        write!(f, "{}{}", if i == 0 { "" } else { ", " }, right_name(right))?;
    }
    Ok(())
}

/// A place as the page writes it.
struct At(Place);

impl Display for At {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::Word {
                word,
                low: 0,
                high: 64,
            } => write!(f, "w{word}"),
            Place::Word { word, low, high } => write!(f, "w{word}[{low}..{high}]"),
            Place::Length => f.write_str("payload length"),
            Place::Payload(n) => write!(f, "payload word {n}"),
        }
    }
}

fn is(f: &mut Formatter<'_>, arg: &Arg) -> fmt::Result {
    match arg.is {
        Is::Cap {
            kind,
            rights: mask,
            optional,
        } => {
            write!(f, "slot of a {kind:?}, ")?;
            rights(f, mask)?;
            f.write_str(if optional { "; 0: none" } else { "" })
        }
        Is::Any { rights: mask } => {
            f.write_str("slot of any capability, ")?;
            rights(f, mask)
        }
        Is::Dest => f.write_str("empty slot"),
        Is::DestThere => f.write_str("empty slot of the Space's table"),
        Is::SlotThere => f.write_str("slot of the Space's table, not 0"),
        Is::Number { least, most } if most == u64::MAX => write!(f, "at least {least}"),
        Is::Number { least, most } => write!(f, "{least} to {most}"),
        Is::Choice(of) => {
            f.write_str("one of")?;
            of.iter().try_for_each(|c| write!(f, " {c}"))
        }
        Is::Existing => f.write_str("of one that exists"),
        Is::Page(end) => write!(f, "multiple of 4096 below {end:#x}"),
        Is::Address(end) => write!(f, "below {end:#x}"),
        Is::Offset => f.write_str("multiple of 4096 in the Memory"),
        Is::Extent => f.write_str("multiple of 4096, not 0; the range lies in the Memory"),
        Is::Free => f.write_str("any"),
    }
}

fn check(f: &mut Formatter<'_>, op: &Operation, check: &Check) -> fmt::Result {
    let mut line = |error: Status, when: &dyn Display| writeln!(f, "| `{error:?}` | {when} |");
    match *check {
        Check::Target => {
            line(
                Status::InvalidCap,
                &"the slot called holds no live capability",
            )?;
            match (op.entry, op.target) {
                (Entry::System(Syscall::Call), _) => line(
                    Status::WrongType,
                    &"it is for a Notification, which has no operations",
                ),
                (Entry::System(_), Some(kind)) => {
                    line(Status::WrongType, &format_args!("it is for no {kind:?}"))
                }
                _ => Ok(()),
            }
        }
        Check::Right => line(
            Status::MissingRight,
            &"the capability called lacks the right",
        ),
        Check::Label => line(
            Status::BadOperation,
            &"no operation of the object has this label",
        ),
        Check::State { error, when, .. } | Check::Untried { error, when } => line(error, &when),
        Check::Aligned(args) => args.iter().try_for_each(|&i| match op.args.get(i) {
            Some(arg) => line(
                Status::Misaligned,
                &format_args!("{}: {}", At(arg.at), arg.name),
            ),
            None => Ok(()),
        }),
        Check::Arg(i) => {
            // Ways with the same error follow on one another.
            let mut last = None;
            for wrong in op.ways(check) {
                let error = wrong.way.error();
                if last == Some(error) {
                    continue;
                }
                last = Some(error);
                if let Some(arg) = op.args.get(i) {
                    line(error, &format_args!("{}: {}", At(arg.at), arg.name))?;
                }
            }
            Ok(())
        }
    }
}
