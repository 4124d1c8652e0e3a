//! Bytes as values, and what the arguments of each operation are.

use super::*;
use crate::object::cap;
use ipc_schema::abi::{Kind, op};

/// Slots that the driver uses.
pub const SLOTS: u64 = 96;

/// Bytes read as values; zeroes at the end.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(f, r)| (*f, r));
        self.0 = rest;
        first
    }
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end.max(1)
    }
    pub fn u64(&mut self) -> u64 {
        (0..8).fold(0, |v, _| v << 8 | u64::from(self.u8()))
    }
    /// Of any magnitude.
    pub fn number(&mut self) -> u64 {
        let how = self.u8();
        let shift = u32::from(how & 63);
        match how >> 6 {
            0 => self.u8().into(),
            1 => u64::from(self.u8()) << shift,
            2 => (1u64 << shift).wrapping_sub(u64::from(self.u8() & 3)),
            _ => self.u64(),
        }
    }
}

/// What an operation's argument is.
#[derive(Clone, Copy)]
pub enum Arg {
    /// A slot that holds, or held, this kind.
    Of(Kind),
    /// A slot for a new capability.
    Dest,
    /// A page-aligned address in a small range.
    Page,
    /// A length in pages.
    Pages,
    /// A Memory's slot, with rights to map by.
    Mapped,
    /// Anything.
    Any,
    /// A small number.
    Small,
}
pub use Arg::{Any, Dest, Mapped, Of, Page, Pages, Small};

/// The arguments of the operations of each kind, from `ipc_schema::abi::op`.
pub fn arguments(kind: u32, label: u64) -> [Arg; 4] {
    let of = |k: Kind| k as u32;
    match (kind, label) {
        (k, op::memory::DIVIDE) if k == of(Kind::Memory) => [Page, Pages, Dest, Of(Kind::Pool)],
        (k, op::memory::MAKE_POOL) if k == of(Kind::Memory) => [Dest, Small, Any, Any],
        (k, op::space::MAP) if k == of(Kind::Space) || k == of(Kind::GuestSpace) => {
            [Page, Mapped, Page, Pages]
        }
        (k, op::space::UNMAP) if k == of(Kind::Space) || k == of(Kind::GuestSpace) => {
            [Page, Any, Any, Any]
        }
        (k, op::space::COPY_CAP) if k == of(Kind::Space) => [Dest, Dest, Any, Small],
        (k, op::space::DROP_CAP | op::space::DESTROY_OBJECT) if k == of(Kind::Space) => {
            [Dest, Any, Any, Any]
        }
        (k, op::thread::CONFIGURE) if k == of(Kind::Thread) => [
            Of(Kind::Budget),
            Of(Kind::Endpoint),
            Small,
            Of(Kind::Notification),
        ],
        (k, op::thread::START) if k == of(Kind::Thread) => [Page, Page, Any, Any],
        (k, op::budget::CONFIGURE) if k == of(Kind::Budget) => [Of(Kind::Cpu), Small, Small, Small],
        (k, op::budget::BIND_EVENT) if k == of(Kind::Budget) => {
            [Of(Kind::Notification), Any, Any, Any]
        }
        (k, op::thread::BIND_EVENT) if k == of(Kind::Thread) => {
            [Of(Kind::Notification), Any, Any, Any]
        }
        (k, op::irq::BIND) if k == of(Kind::Irq) => [Of(Kind::Notification), Any, Any, Any],
        (k, op::ports::DIVIDE) if k == of(Kind::Ports) => [Small, Small, Dest, Of(Kind::Pool)],
        (k, op::cpu::CREATE_IRQ) if k == of(Kind::Cpu) => [Dest, Of(Kind::Pool), Any, Any],
        (k, op::cpu::ADD) if k == of(Kind::Cpu) => [Dest, Of(Kind::Pool), Small, Any],
        (k, op::cpu::START) if k == of(Kind::Cpu) => [Small, Any, Any, Any],
        (k, op::log::BIND) if k == of(Kind::Log) => [Of(Kind::Notification), Any, Any, Any],
        _ => [Any; 4],
    }
}

/// An operation, decoded.
#[derive(Clone, Copy)]
pub struct Operation {
    pub t: Obj<Thread>,
    pub slot: u64,
    pub cap: Cap,
    pub label: u64,
    pub w: [u64; 4],
    pub tag: u64,
    pub deadline: u64,
}

impl Operation {
    pub fn call(&self) {
        enter(self.t, 0, self.slot, self.tag, self.w, self.deadline);
    }
}

/// Slot of a capability of this kind, dead or alive.
pub fn slot(t: Obj<Thread>, input: &mut Input<'_>, kind: Kind) -> u64 {
    let is = |slot: &u64| cap::cap_at(t.get(), *slot).is_ok_and(|c| c.kind() == kind as u32);
    let all: Vec<u64> = (1..SLOTS).filter(is).collect();
    match all.get(input.below(all.len() + 1)) {
        Some(&slot) => slot,
        None => input.number(),
    }
}

pub fn argument(t: Obj<Thread>, input: &mut Input<'_>, arg: Arg) -> u64 {
    match arg {
        Of(kind) => slot(t, input, kind),
        Dest => u64::from(input.u8()) % SLOTS,
        Page => (u64::from(input.u8()) << 12) + (u64::from(input.u8() & 3) << 20),
        Pages => match input.u8() {
            0xff => 2 << 20,
            n => u64::from(n % 40) << 12,
        },
        Mapped => slot(t, input, Kind::Memory) | (u64::from(input.u8() % 16) << 32),
        Small => u64::from(input.u8() % 40),
        Any => input.number(),
    }
}

/// Fills what a message reads of the UTCB: the window for capabilities, and those to send.
pub fn message(t: Obj<Thread>, input: &mut Input<'_>) {
    if input.u8() & 3 == 0 {
        let utcb = &t.get().utcb().0;
        let (first, count) = (u64::from(input.u8()) % SLOTS, u64::from(input.u8() % 6));
        utcb[0].set(first | count << 32);
        for i in 0..4 {
            let rights = if input.u8() & 1 == 0 {
                255
            } else {
                u64::from(input.u8())
            };
            utcb[1 + 2 * i].set((u64::from(input.u8()) % SLOTS) | rights << 32);
            utcb[2 + 2 * i].set(u64::from(input.u8() % 3));
        }
    }
}

pub fn decode(t: Obj<Thread>, input: &mut Input<'_>, deadline: u64) -> Operation {
    let slot = u64::from(input.u8()) % SLOTS;
    let label = u64::from(input.u8() % 8);
    let cap = cap::cap_at(t.get(), slot).unwrap_or(Cap::EMPTY);
    let kind = cap.kind();
    let mut w = arguments(kind, label).map(|a| argument(t, input, a));
    if kind == Kind::Pool as u32 && label == op::pool::CREATE {
        w = creation(t, input);
    }
    if kind == Kind::GuestSpace as u32 && label == op::guest_space::ROUTE {
        w = route(t, input);
    }
    let payload = u64::from(input.u8()) * 16;
    let caps = u64::from(input.u8() & 7) << 12;
    Operation {
        t,
        slot,
        cap,
        label,
        w,
        tag: Tag::new(label).0 | caps | payload,
        deadline,
    }
}

pub fn route(t: Obj<Thread>, input: &mut Input<'_>) -> [u64; 4] {
    let doorbell = u64::from(input.u8() & 1) + 1;
    let target = if doorbell == 2 {
        Kind::Notification
    } else {
        Kind::Endpoint
    };
    let range = (0xf0 + u64::from(input.u8())) | u64::from(input.u8() % 9) << 16;
    let only = u64::from(input.u8() & 1) << 40;
    [
        range | doorbell << 32 | only,
        slot(t, input, target),
        u64::from(input.u8()),
        0,
    ]
}

/// Arguments of `CREATE`.
pub fn creation(t: Obj<Thread>, input: &mut Input<'_>) -> [u64; 4] {
    let kind = 3 + u64::from(input.u8() % 7);
    let dest = u64::from(input.u8()) % SLOTS;
    let at = (0x6000_0000 + (u64::from(input.u8()) << 12)) | u64::from(input.u8() == 255);
    let space = slot(t, input, Kind::Space);
    match kind {
        3 => [kind, dest, u64::from(input.u8()) + 1, 0],
        4 => [kind, dest, space, at],
        9 => [
            kind | slot(t, input, Kind::GuestSpace) << 32,
            dest,
            space,
            at,
        ],
        _ => [kind, dest, 0, 0],
    }
}
