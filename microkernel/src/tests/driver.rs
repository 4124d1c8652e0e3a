//! System calls out of bytes: what a fuzzer, or a random generator, has the kernel do, judged after each step.
//!
//! Two Spaces with threads, capabilities of every kind, and hostile user level that also writes to whatever RAM it may map. Beside
//! the invariants ([`super::census`]) a model says what may have died and what may have been born by each operation, and that no
//! capability ever gains a right.

use super::census::{Census, Name, goes_on, in_guest};
use super::model::{Expected, Model, Outcome};
use super::*;
use crate::exit;
use crate::object::cpu::CpuObject;
use crate::object::log::LogObject;
use crate::object::ports::Ports;
use crate::object::{GuestSpace, Vcpu, cap};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::abi::{Kind, op, rights};

/// RAM that user level has: 2 MiB, aligned so that large pages occur.
const RAM: u64 = 16 << 20;
const RAM_LEN: u64 = 2 << 20;
/// Slots that the driver uses.
const SLOTS: u64 = 96;
/// Steps at most: an input that goes on for ever tells nothing new.
const STEPS: usize = 160;
/// Slot of the first Space's own name, and one that the driver alone uses.
const OWN: u64 = 1;
const HAND: u64 = 200;

/// Bytes read as values; zeroes at the end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(f, r)| (*f, r));
        self.0 = rest;
        first
    }
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end.max(1)
    }
    fn u64(&mut self) -> u64 {
        (0..8).fold(0, |v, _| v << 8 | u64::from(self.u8()))
    }
    /// Of any magnitude.
    fn number(&mut self) -> u64 {
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
enum Arg {
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
use Arg::{Any, Dest, Mapped, Of, Page, Pages, Small};

/// The arguments of the operations of each kind, from `ipc_schema::abi::op`.
fn arguments(kind: u32, label: u64) -> [Arg; 4] {
    let of = |k: Kind| k as u32;
    match (kind, label) {
        (k, op::memory::DIVIDE) if k == of(Kind::Memory) => [Page, Pages, Dest, Of(Kind::Pool)],
        (k, op::memory::MAKE_POOL) if k == of(Kind::Memory) => [Dest, Any, Any, Any],
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

struct Driver {
    m: Machine,
    model: Model,
    /// A thread that no capability names; it sleeps until the end.
    reaper: Obj<Thread>,
    /// The one that is always ready.
    idle: Obj<Thread>,
}

/// Has the kernel do what the bytes say.
///
/// # Panics
/// When something that must hold does not.
pub fn drive(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut d = Driver::new();
    let mut steps = 0;
    while !input.0.is_empty() && steps < STEPS {
        steps += 1;
        d.step(&mut input);
    }
    d.model.census.check_pages();
    d.end();
}

impl Driver {
    fn new() -> Self {
        let m = Machine::new();
        let idle = m.space.threads.first().unwrap();
        let reaper = m.thread(20);
        reaper.suspended.set(true);
        crate::sched::stop(m.cpu, reaper);
        reaper.state.set(State::Stopped);
        // Slots 1 to 24. Of what the driver itself stands on, nothing can be destroyed.
        let hold = rights::ALL as u16 & !(rights::DESTROY as u16);
        let kept = |c: Cap| m.put(Cap { rights: hold, ..c });
        let own = kept(Cap::new(m.space.get().header()));
        assert_eq!(own, OWN);
        kept(m.pool_cap);
        m.name(CpuObject::create(m.pool, 0).unwrap());
        m.name(LogObject::create(m.pool).unwrap());
        m.name(Ports::create(m.pool, 0x100, 0x100).unwrap());
        m.memory(RAM, RAM_LEN);
        m.memory(RAM + RAM_LEN, 24 * 4096);
        m.name(Memory::create(m.pool, 1 << 31, 1 << 16, true, 255).unwrap());
        let (_, ep) = m.endpoint();
        let (_, bell) = m.notification();
        m.endpoint();
        m.notification();
        let other = Space::create(m.pool, 128).unwrap();
        m.name(other);
        let g = GuestSpace::create(m.pool).unwrap();
        m.name(g);
        m.name(Vcpu::create(m.pool, g, m.space, 0x7000_0000).unwrap());
        let t: Vec<_> = (0..5_u64)
            .map(|i| m.thread_in(if i < 3 { m.space } else { other }, 2 + i % 3))
            .collect();
        for &t in &t {
            t.supervisor.set(Cap::new(
                m.space.slot(ep).unwrap().get().object().unwrap().get(),
            ));
            m.name(t);
            m.name(t.own_budget.get().unwrap());
        }
        // The other Space knows the Endpoint, the Notification, itself and two threads.
        for (to, from) in [(1, 13), (2, ep), (3, bell), (4, 2), (5, 16), (6, 22)] {
            let cap = m.space.get().slot(from).unwrap().get();
            other.get().slot(to).unwrap().set(cap);
        }
        Self {
            model: Model::new(),
            m,
            reaper,
            idle,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        let ready = self.model.census.runnable();
        let now = crate::arch::now();
        match what % 16 {
            0..10 => {
                let Some(&t) = ready.get(input.below(ready.len())) else {
                    return;
                };
                if in_guest(t) {
                    self.guest(t, input);
                } else if goes_on(t) {
                    self.go_on(t);
                } else {
                    self.syscall(t, input);
                }
            }
            10 | 11 => {
                let by = u64::from(input.u8()) << (input.u8() & 15);
                crate::arch::advance(by);
                crate::sched::tick(self.m.cpu);
                self.nothing();
            }
            12 => {
                crate::sched::pick(self.m.cpu);
                self.nothing();
            }
            13 => {
                let Some(&t) = ready.get(input.below(ready.len())) else {
                    return;
                };
                // What faults is user level's code, not a guest, and has somebody to tell.
                if !in_guest(t) && t.supervisor.get().typed::<Endpoint>(rights::SEND).is_ok() {
                    self.m.run(t);
                    crate::ipc::fault(self.m.cpu, t, 14, 4, now);
                    self.nothing();
                }
            }
            _ => self.user_writes(input),
        }
    }

    /// A guest does something that makes it leave.
    fn guest(&mut self, t: Obj<Thread>, input: &mut Input<'_>) {
        self.m.run(t);
        let how = input.u8();
        match t.vcpu.get() {
            Some(v) if how & 3 != 0 => {
                let port = u16::from(input.u8()) + 0xf0;
                let access = PortAccess::new(port, 1 << (how >> 2 & 3).min(2), how & 16 != 0);
                exit::route::port(self.m.cpu, t, v, access.0, input.u8().into(), 0x1234);
            }
            _ => {
                exit::enter(self.m.cpu, t);
            }
        }
        self.nothing();
    }

    /// Slot of a capability of this kind, dead or alive.
    fn slot(&self, t: Obj<Thread>, input: &mut Input<'_>, kind: Kind) -> u64 {
        let is = |slot: &u64| cap::cap_at(t.get(), *slot).is_ok_and(|c| c.kind() == kind as u32);
        let all: Vec<u64> = (1..SLOTS).filter(is).collect();
        match all.get(input.below(all.len() + 1)) {
            Some(&slot) => slot,
            None => input.number(),
        }
    }

    fn argument(&self, t: Obj<Thread>, input: &mut Input<'_>, arg: Arg) -> u64 {
        match arg {
            Of(kind) => self.slot(t, input, kind),
            Dest => u64::from(input.u8()) % SLOTS,
            Page => (u64::from(input.u8()) << 12) + (u64::from(input.u8() & 3) << 20),
            Pages => match input.u8() {
                0xff => 2 << 20,
                n => u64::from(n % 40) << 12,
            },
            Mapped => self.slot(t, input, Kind::Memory) | (u64::from(input.u8() % 16) << 32),
            Small => u64::from(input.u8() % 40),
            Any => input.number(),
        }
    }

    fn syscall(&mut self, t: Obj<Thread>, input: &mut Input<'_>) {
        let number = u64::from(input.u8() % 16);
        let deadline = match input.u8() {
            0 => NEVER,
            d => crate::arch::now() + u64::from(d) * 16,
        };
        let (slot, tag, words) = match number {
            // An operation on an object, or a call.
            0 | 6..15 => return self.operation(t, input, deadline),
            1 => (
                self.slot(t, input, Kind::Endpoint) * u64::from(input.u8() & 7 != 0),
                input.number(),
                [0; 4],
            ),
            2 | 3 => (self.slot(t, input, Kind::Notification), 0, [0; 4]),
            4 => (
                self.slot(t, input, Kind::Vcpu),
                input.number(),
                [input.number(), input.number(), 0, 0],
            ),
            _ => (0, 0, [0; 4]),
        };
        self.message(t, input);
        self.m.sys(t, number, slot, tag, words, deadline);
        self.nothing();
    }

    /// Fills what a message reads of the UTCB: the window for capabilities, and those to send.
    fn message(&self, t: Obj<Thread>, input: &mut Input<'_>) {
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

    fn operation(&mut self, t: Obj<Thread>, input: &mut Input<'_>, deadline: u64) {
        let slot = u64::from(input.u8()) % SLOTS;
        let label = u64::from(input.u8() % 8);
        let cap = cap::cap_at(t.get(), slot).unwrap_or(Cap::EMPTY);
        let kind = cap.kind();
        let mut w = arguments(kind, label).map(|a| self.argument(t, input, a));
        if kind == Kind::Pool as u32 && label == op::pool::CREATE {
            w = self.creation(t, input);
        }
        if kind == Kind::GuestSpace as u32 && label == op::guest_space::ROUTE {
            let doorbell = u64::from(input.u8() & 1) + 1;
            let target = if doorbell == 2 {
                Kind::Notification
            } else {
                Kind::Endpoint
            };
            let range = (0xf0 + u64::from(input.u8())) | u64::from(input.u8() % 9) << 16;
            let only = u64::from(input.u8() & 1) << 40;
            w = [
                range | doorbell << 32 | only,
                self.slot(t, input, target),
                u64::from(input.u8()),
                0,
            ];
        }
        let payload = u64::from(input.u8()) * 16;
        let caps = u64::from(input.u8() & 7) << 12;
        self.message(t, input);
        let expected = self.model.expected(t, &cap, label, &w);
        let name = Name::object(t);
        let tag = Tag::new(label).0 | caps | payload;
        self.m.sys(t, 0, slot, tag, w, deadline);
        self.after(name, &cap, label, &w, &expected);
    }

    /// The next part of a long operation, with what is in the registers.
    fn go_on(&mut self, t: Obj<Thread>) {
        let slot = t.get().get(reg::RDI);
        let cap = cap::cap_at(t.get(), slot).unwrap_or(Cap::EMPTY);
        let (tag, w) = (t.get().get(reg::RSI), words(t));
        let label = Tag(tag).label();
        let number = t.get().get(reg::RAX);
        if number != 0 {
            // What it makes of its registers is no call: it has been changed since.
            t.get().regs.rip.set(0);
            return;
        }
        let expected = self.model.expected(t, &cap, label, &w);
        let name = Name::object(t);
        self.m.sys(t, number, slot, tag, w, NEVER);
        self.after(name, &cap, label, &w, &expected);
    }

    /// After a call of thread `name`.
    fn after(&mut self, name: Name, cap: &Cap, label: u64, w: &[u64; 4], expected: &Expected) {
        let called = cap.kind() == Kind::Endpoint as u32;
        // A thread that ended itself has succeeded.
        let t = name.get::<Thread>();
        let outcome = match t {
            _ if called => Outcome::Nothing,
            None => Outcome::Done,
            Some(t) if goes_on(t) => Outcome::Part,
            Some(t) if status(t) == Status::Ok => Outcome::Done,
            Some(_) => Outcome::Nothing,
        };
        self.model.judge(expected, outcome);
        if let Some(t) = t.filter(|_| outcome == Outcome::Done) {
            self.model.learn(t, cap, label, w);
        }
    }

    /// Arguments of `CREATE`.
    fn creation(&self, t: Obj<Thread>, input: &mut Input<'_>) -> [u64; 4] {
        let kind = 3 + u64::from(input.u8() % 7);
        let dest = u64::from(input.u8()) % SLOTS;
        let at = (0x6000_0000 + (u64::from(input.u8()) << 12)) | u64::from(input.u8() == 255);
        let space = self.slot(t, input, Kind::Space);
        match kind {
            3 => [kind, dest, u64::from(input.u8()) + 1, 0],
            4 => [kind, dest, space, at],
            9 => [
                kind | self.slot(t, input, Kind::GuestSpace) << 32,
                dest,
                space,
                at,
            ],
            _ => [kind, dest, 0, 0],
        }
    }

    /// User level writes to a page that it may map: what the kernel still believed to be there is gone.
    fn user_writes(&mut self, input: &mut Input<'_>) {
        let mut all: Vec<_> = self.model.census.mappable().collect();
        all.sort_by_key(|m| m.phys);
        let Some(memory) = all.get(input.below(all.len())) else {
            return;
        };
        let at = memory.phys + u64::from(input.u8()) * 4096 % memory.len;
        let value = [0x4141_4141_4141_4141, 0, !0, 7 << 32][input.below(4)];
        super::census::fill(at, value);
        self.nothing();
    }

    /// Nothing is to have been made or ended.
    fn nothing(&mut self) {
        self.model.judge(&Expected::default(), Outcome::Nothing);
    }

    /// Everything is taken down: not a page, not a record stays behind.
    fn end(&mut self) {
        let m = &self.m;
        self.reaper.suspended.set(false);
        if self.reaper.state.get() != State::Ready {
            crate::sched::make_ready(m.cpu, self.reaper);
        }
        let hand = m.space.get().slot(HAND).unwrap();
        let put = |header: &crate::object::Header| hand.set(Cap::new(header));
        // Pools made from Memory that lives in another Pool go before that one.
        loop {
            let pools = Census::take().pools;
            let made = pools.iter().filter(|p| p.number != m.pool_cap.pool);
            let results: Vec<_> = made
                .map(|pool| {
                    put(pool.header());
                    m.operate(self.reaper, HAND, op::pool::DESTROY, [0; 4])
                })
                .collect();
            if results.is_empty() {
                break;
            }
            assert!(
                results.contains(&Status::Ok),
                "Pools that never go: {results:?}"
            );
        }
        let stays = [Kind::Pool, Kind::Cpu, Kind::Log, Kind::Mapping].map(|k| k as u32);
        let mut kept = vec![
            Name::object(m.space),
            Name::object(self.reaper),
            Name::object(self.idle),
        ];
        kept.extend(
            [self.reaper, self.idle]
                .iter()
                .filter_map(|t| t.own_budget.get())
                .map(Name::object),
        );
        let mut names: Vec<_> = Census::take().objects.into_iter().collect();
        names.sort_by_key(|(at, _)| *at);
        for (at, name) in names {
            if stays.contains(&name.kind()) || kept.contains(&name) || !name.is_alive() {
                continue;
            }
            put(super::census::header(at));
            let own = m.operate(self.reaper, OWN, op::space::DESTROY_OBJECT, [HAND, 0, 0, 0]);
            assert_eq!(own, Status::Ok, "destroying {name:?}");
        }
        let census = Census::take();
        census.check();
        census.check_pages();
        let left = census.objects.values().filter(|n| !kept.contains(n));
        let unexpected: Vec<_> = left.filter(|n| !stays[..3].contains(&n.kind())).collect();
        assert!(unexpected.is_empty(), "left behind: {unexpected:?}");
    }
}
