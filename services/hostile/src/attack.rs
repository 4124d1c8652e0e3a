//! One attacker's mind: what it believes its slots hold, and the next call that it makes of that.

mod call;

use ipc_schema::abi::vm::{Exit, VcpuState};
use ipc_schema::abi::{Kind, NEVER, Tag, layout, op};

use crate::ops::{self, CHANCES, Op};
use crate::rng::Rng;

pub use call::Call;

/// Slots of an attacker's table.
pub const SLOTS: usize = 128;
/// Slots from here on are its own to fill.
pub const FREE: u64 = 32;

/// Where vCPUs' state pages go in an attacker's Space: eight pages.
pub const VCPU_PAGES: u64 = 0x5800_0000;
/// Where it maps Memory: a range of its own.
pub const WINDOW: u64 = 0x7000_0000;
/// Where UTCBs of threads that it makes go.
pub const UTCBS: u64 = 0x5c00_0000;
/// Bytes of the Memory that it starts with.
pub const PLAY: u64 = 1 << 20;

const PAGE: u64 = 4096;
/// Word of EFER in a vCPU's state page.
const EFER: u64 = core::mem::offset_of!(VcpuState, efer) as u64 / 8;

/// What an attacker remembers; it lives in a page of its own, whatever happens to its thread.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Mind {
    /// Its random numbers.
    pub rng: Rng,
    /// Kind of object in each slot, as far as it knows; 0: empty.
    pub kinds: [u8; SLOTS],
    /// vCPU state pages that it believes to be mapped: a bit each.
    pub pages: u64,
    /// Where it mapped something last: a ring, and its next place.
    pub mapped: ([u64; 8], usize),
    /// First ports of the routes that it made last.
    pub routed: ([u64; 8], usize),
    /// Code and stack for threads that it starts, and their Spaces' page with its state.
    pub entry: [u64; 3],
}

impl Mind {
    /// One that knows nothing.
    #[must_use]
    pub const fn new(rng: Rng) -> Self {
        Self {
            rng,
            kinds: [0; SLOTS],
            pages: 0,
            mapped: ([0; 8], 0),
            routed: ([0; 8], 0),
            entry: [0; 3],
        }
    }

    /// A slot for an object of `kind`: mostly one that it believes to hold such; else any, else none at all.
    fn slot(&mut self, kind: u8) -> u64 {
        match self.rng.below(20) {
            0 => self.rng.below(SLOTS as u64 + 4),
            1 if self.rng.once_in(2) => {
                let wild = [0, u64::MAX, SLOTS as u64, 1 << 32, 1 << 63, 0xffff_ffff];
                self.rng.of(&wild)
            }
            _ => {
                let from = self.rng.below(SLOTS as u64) as usize;
                let holds = |i: &usize| self.kinds.get(i % SLOTS) == Some(&kind);
                let found = (from..from + SLOTS).find(holds);
                found.map_or_else(|| self.rng.below(SLOTS as u64), |i| (i % SLOTS) as u64)
            }
        }
    }

    fn slot_of(&mut self, kind: Kind) -> u64 {
        self.slot(kind as u8)
    }

    /// A slot for a new capability: mostly one that it believes to be empty.
    fn dest(&mut self) -> u64 {
        if self.rng.once_in(12) {
            return self.rng.below(SLOTS as u64 + 2);
        }
        let from = FREE + self.rng.below(SLOTS as u64 - FREE);
        let empty = |i: &u64| self.kinds.get(*i as usize) == Some(&0);
        (from..SLOTS as u64)
            .chain(FREE..from)
            .find(empty)
            // A full table: something has to go.
            .unwrap_or(from)
    }

    fn optional(&mut self, kind: Kind) -> u64 {
        if self.rng.once_in(3) {
            0
        } else {
            self.slot_of(kind)
        }
    }

    fn pages(&mut self) -> u64 {
        match self.rng.below(16) {
            0 => self.rng.word(),
            1 => 0,
            2 => 2 << 20,
            3 => self.rng.below(PLAY),
            _ => (1 + self.rng.below(16)) * PAGE,
        }
    }

    fn address(&mut self) -> u64 {
        let places = [
            0,
            layout::STUB,
            layout::IMAGE,
            layout::UTCB,
            VCPU_PAGES,
            UTCBS,
            layout::USER_END - PAGE,
            layout::USER_END,
            0x8000_0000_0000,
            0xffff_8000_0000_0000,
            u64::MAX,
        ];
        match self.rng.below(12) {
            0 => self.rng.of(&places),
            1 => self.rng.word(),
            2 => WINDOW + self.rng.below(8) * (2 << 20),
            3 => WINDOW + self.rng.below(1 << 24),
            _ => WINDOW + self.rng.below(256) * PAGE,
        }
    }

    /// A deadline: near, past or (seldom) none, for whoever waits without one is out of the game unless somebody frees it.
    fn deadline(&mut self, now: u64) -> u64 {
        match self.rng.below(512) {
            0 => NEVER,
            1 => NEVER - 1,
            2 => self.rng.word(),
            3..20 => 0,
            20..40 => now,
            _ => now.saturating_add(self.rng.below(20_000)),
        }
    }

    /// The next call, at TSC `now`.
    pub fn next(&mut self, now: u64) -> Call {
        let (row, op) = ops::at(self.rng.below(CHANCES));
        let mut c = Call {
            row,
            number: op.number,
            utcb: [(u64::MAX, 0); 4],
            state: [(u64::MAX, 0, 0); 3],
            ..Call::default()
        };
        c.slot = self.slot(op.kind);
        c.deadline = self.deadline(now);
        self.arguments(op, &mut c);
        self.spoil(op, &mut c);
        c
    }

    /// Arguments as they should be, or nearly.
    fn arguments(&mut self, op: &Op, c: &mut Call) {
        c.tag = Tag::new(op.label).0;
        let kind = |k: Kind| op.kind == k as u8;
        if op.number == 4 {
            return self.run(c);
        }
        if op.number != 0 || kind(Kind::Endpoint) {
            return self.message(op, c);
        }
        match op.label {
            l if kind(Kind::Pool) && l == op::pool::CREATE => self.create(c),
            l if kind(Kind::Memory) && l == op::memory::DIVIDE => {
                let dest = self.dest();
                c.words = [
                    self.rng.below(256) * PAGE,
                    self.pages(),
                    dest,
                    self.slot_of(Kind::Pool),
                ];
                if self.rng.once_in(4) {
                    c.words[0] = self.rng.below(PLAY);
                }
                c.fills = (dest, Kind::Memory as u8);
            }
            l if kind(Kind::Memory) && l == op::memory::MAKE_POOL => {
                let dest = self.dest();
                let pools = [0, 0, 0, 1, 2, 511, u64::MAX];
                c.words = [dest, self.rng.of(&pools), 0, 0];
                c.fills = (dest, Kind::Pool as u8);
            }
            l if (kind(Kind::Space) && l == op::space::MAP)
                || (kind(Kind::GuestSpace) && l == op::guest_space::MAP) =>
            {
                let rights = self.rng.of(&[1, 3, 3, 5, 5, 7, 2, 8, 255]);
                let at = if kind(Kind::GuestSpace) && !self.rng.once_in(4) {
                    self.rng.below(64) * PAGE
                } else {
                    self.address()
                };
                let memory = self.slot_of(Kind::Memory) & 0xffff_ffff;
                c.words = [
                    at,
                    memory | rights << 32,
                    self.rng.below(16) * PAGE,
                    self.pages(),
                ];
            }
            l if (kind(Kind::Space) && l == op::space::UNMAP)
                || (kind(Kind::GuestSpace) && l == op::guest_space::UNMAP) =>
            {
                c.words[0] = self.address();
                if !self.rng.once_in(4) {
                    c.words[0] = self.rng.of(&self.mapped.0);
                }
            }
            l if kind(Kind::Space) && l == op::space::COPY_CAP => {
                let any = 1 + self.rng.below(13) as u8;
                let (source, dest) = (self.slot(any), self.dest());
                let rights = if self.rng.once_in(2) {
                    255
                } else {
                    self.rng.word()
                };
                let badge = if self.rng.once_in(2) {
                    0
                } else {
                    self.rng.word()
                };
                c.words = [source, dest, rights, badge];
                let held = self.kinds.get(source as usize).copied().unwrap_or(0);
                c.fills = (dest, held);
            }
            l if kind(Kind::Space) && l == op::space::DROP_CAP => {
                // Its own first capabilities seldom: it would be left with nothing to attack with.
                c.words[0] = if self.rng.once_in(40) {
                    self.rng.below(SLOTS as u64)
                } else {
                    FREE + self.rng.below(SLOTS as u64 - FREE)
                };
                c.empties = c.words[0];
            }
            l if kind(Kind::Space) && l == op::space::DESTROY_OBJECT => {
                c.words[0] = if self.rng.once_in(60) {
                    self.rng.below(SLOTS as u64)
                } else {
                    FREE + self.rng.below(SLOTS as u64 - FREE)
                };
                c.empties = c.words[0];
            }
            _ => self.rest(op, c),
        }
    }

    fn rest(&mut self, op: &Op, c: &mut Call) {
        let kind = |k: Kind| op.kind == k as u8;
        match op.label {
            l if kind(Kind::Thread) && l == op::thread::CONFIGURE => {
                c.words = [
                    self.optional(Kind::Budget),
                    self.optional(Kind::Endpoint),
                    self.rng.below(16),
                    self.optional(Kind::Notification),
                ];
            }
            l if kind(Kind::Thread) && l == op::thread::START => {
                let [rip, rsp, arg] = self.entry;
                c.words = [rip, rsp, arg, 0];
                if self.rng.once_in(3) {
                    c.words = [self.address(), self.address(), self.rng.word(), 0];
                }
            }
            l if kind(Kind::Thread) && l == op::thread::WRITE_REGS => {
                c.tag = Tag::new(l).with_payload(144).0;
            }
            l if kind(Kind::Budget) && l == op::budget::CONFIGURE => {
                // It has no Cpu: this must fail.
                c.words = [
                    self.slot_of(Kind::Cpu),
                    self.rng.below(40),
                    self.rng.word(),
                    self.rng.word(),
                ];
            }
            l if (kind(Kind::Budget) && l == op::budget::BIND_EVENT)
                || (kind(Kind::Thread) && l == op::thread::BIND_EVENT)
                || (kind(Kind::Irq) && l == op::irq::BIND)
                || (kind(Kind::Log) && l == op::log::BIND) =>
            {
                c.words[0] = self.optional(Kind::Notification);
            }
            l if kind(Kind::GuestSpace) && l == op::guest_space::ROUTE => {
                let first = self.rng.below(0x1_0100);
                let count = self.rng.of(&[1, 1, 2, 8, 16, 256, 0, 3000]);
                let way = self.rng.of(&[1, 1, 2, 2, 0, 3, 0x102]);
                let target = if way == 1 {
                    self.slot_of(Kind::Endpoint)
                } else {
                    self.slot_of(Kind::Notification)
                };
                c.words = [
                    first | count << 16 | way << 32,
                    target,
                    self.rng.below(50_000),
                    0,
                ];
            }
            l if kind(Kind::GuestSpace) && l == op::guest_space::UNROUTE => {
                c.words[0] = self.rng.below(0x1_0000);
                if !self.rng.once_in(4) {
                    c.words[0] = self.rng.of(&self.routed.0);
                }
            }
            l if kind(Kind::Vcpu) && l == op::vcpu::ON_EXIT => {
                c.words[0] = self.rng.below(Exit::COUNT as u64 + 2);
                c.words[1] = self.rng.word();
                if self.rng.once_in(3) {
                    c.words[0] = u64::MAX;
                }
            }
            _ => {
                c.words = [
                    self.rng.word(),
                    self.rng.below(SLOTS as u64),
                    self.rng.below(16),
                    0,
                ]
            }
        }
    }

    fn create(&mut self, c: &mut Call) {
        let kinds = [
            Kind::Space as u8,
            Kind::Thread as u8,
            Kind::Thread as u8,
            Kind::Budget as u8,
            Kind::Endpoint as u8,
            Kind::Notification as u8,
            Kind::GuestSpace as u8,
            Kind::Vcpu as u8,
            Kind::Memory as u8,
        ];
        let kind = self.rng.of(&kinds);
        let dest = self.dest();
        c.words = [u64::from(kind), dest, 0, 0];
        c.fills = (dest, kind);
        if kind == Kind::Space as u8 {
            c.words[2] = self.rng.of(&[1, 16, 128, 1024, 0, 1025, u64::MAX]);
        } else if kind == Kind::Thread as u8 {
            c.words[2] = self.slot_of(Kind::Space);
            c.words[3] = UTCBS + self.rng.below(64) * PAGE;
        } else if kind == Kind::Vcpu as u8 {
            c.words[0] |= self.slot_of(Kind::GuestSpace) << 32;
            c.words[2] = self.slot_of(Kind::Space);
            c.words[3] = VCPU_PAGES + self.rng.below(8) * PAGE;
        }
        if self.rng.once_in(16) {
            c.words[3] = self.address();
        }
    }

    /// A message: label, payload, capabilities.
    fn message(&mut self, op: &Op, c: &mut Call) {
        let label = match self.rng.below(16) {
            0 => Tag::FAULT,
            1 => Tag::PORT,
            2 => self.rng.word() >> 16,
            _ => self.rng.below(3),
        };
        let payload = self.rng.of(&[0, 0, 0, 1, 8, 100, 3072, 3073, 4095]);
        let caps = self.rng.of(&[0, 0, 0, 1, 2, 4, 5, 15]);
        c.tag = Tag::new(label).with_payload(payload).with_caps(caps).0;
        c.words = core::array::from_fn(|_| self.rng.word());
        if op.number == 1 && self.rng.once_in(4) {
            c.slot = 0;
        }
        // Capabilities to send, and room for some to come.
        let (a, b) = (self.rng.below(SLOTS as u64), self.rng.below(SLOTS as u64));
        let window = self.dest() | self.rng.below(6) << 32;
        let badge = if self.rng.once_in(2) {
            0
        } else {
            self.rng.word()
        };
        c.utcb = [
            (0, window),
            (1, a | 255 << 32),
            (2, badge),
            (3, b | self.rng.word() << 32),
        ];
    }

    fn run(&mut self, c: &mut Call) {
        // Mostly no more than the guest's place changes; now and then everything.
        c.tag = self.rng.of(&[0, 0, 1, 1, 5, 511, u64::MAX]);
        let (post, event) = (self.rng.word(), self.rng.word());
        if self.rng.once_in(4) {
            c.words[0] = post;
        }
        if self.rng.once_in(4) {
            c.words[1] = event;
        }
        let page = self.rng.below(8);
        for s in &mut c.state {
            // The registers and groups of the page: 89 words.
            *s = (page, self.rng.below(89), self.rng.word());
            if self.rng.once_in(2) {
                s.2 &= 0xffff;
            }
            // QEMU 7.2 does not come back whole from a guest that has EFER.LME without CR4.PAE: no fault of the kernel's.
            if s.1 == EFER {
                s.2 &= !(1 << 8);
            }
        }
    }

    /// Makes one thing wrong, now and then.
    fn spoil(&mut self, op: &Op, c: &mut Call) {
        if self.rng.once_in(12) {
            let i = self.rng.below(4) as usize;
            let wild = self.rng.word();
            let value = self.rng.of(&[0, u64::MAX, 1 << 63, 4096, 1, wild]);
            // Which operation it is, stays: the report's rows are true.
            if let Some(w) = c.words.get_mut(i) {
                *w = value;
            }
        }
        if self.rng.once_in(40) && op.number == 0 {
            c.tag |= self.rng.word() & 0xffff;
        }
        if self.rng.once_in(30) {
            let at = self.rng.below(512);
            c.utcb[3] = (at, self.rng.word());
        }
    }

    /// What came of it.
    pub fn learn(&mut self, c: &Call, ok: bool) {
        if !ok {
            return;
        }
        let op = ops::OPS
            .get(c.row)
            .map_or(0, |op| op.label << 8 | u64::from(op.kind));
        let is = |kind: Kind, label: u64| op == label << 8 | kind as u64;
        let remember = |ring: &mut ([u64; 8], usize), value| {
            ring.0[ring.1 % 8] = value;
            ring.1 = (ring.1 + 1) % 8;
        };
        if is(Kind::Space, op::space::MAP) || is(Kind::GuestSpace, op::guest_space::MAP) {
            remember(&mut self.mapped, c.words[0]);
        } else if is(Kind::GuestSpace, op::guest_space::ROUTE) {
            remember(&mut self.routed, c.words[0] & 0xffff);
        }
        let (dest, kind) = c.fills;
        if kind != 0
            && let Some(k) = self.kinds.get_mut(dest as usize)
        {
            *k = kind;
            let at = c.words[3].wrapping_sub(VCPU_PAGES) / PAGE;
            if kind == Kind::Vcpu as u8 && at < 8 {
                self.pages |= 1 << at;
            }
        }
        if c.empties != 0
            && let Some(k) = self.kinds.get_mut(c.empties as usize)
        {
            *k = 0;
        }
    }
}

#[cfg(test)]
#[path = "attack_tests.rs"]
mod tests;
