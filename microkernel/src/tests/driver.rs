//! System calls out of bytes: what a fuzzer, or a random generator, has the kernel do, judged after each step.
//!
//! Two Spaces with threads, capabilities of every kind, and hostile user level that also writes to whatever RAM it may map. Beside
//! the invariants ([`super::census`]) a model says what may have died and what may have been born by each operation, and that no
//! capability ever gains a right.
//!
//! One to three processors are played, a step at a time by any of them, as the input says: signals stay in flight until their
//! processor looks, stops and moves strike while the others are anywhere, and who waits for the object lock finds what another
//! processor has done meanwhile.

use super::census::{Census, Name, goes_on, in_guest};
use super::decode::*;
use super::model::{Expected, Model, Outcome};
use super::*;
use crate::arch::meanwhile;
use crate::exit;
use crate::object::cpu::CpuObject;
use crate::object::log::LogObject;
use crate::object::ports::Ports;
use crate::object::{GuestSpace, Vcpu, cap};
use crate::virt::{Plain, with_virt};
use ipc_schema::abi::vm::gpr;
use ipc_schema::abi::{Kind, op, rights};
use std::cell::RefCell;
use std::rc::Rc;

/// RAM that user level has: 2 MiB, aligned so that large pages occur.
const RAM: u64 = 16 << 20;
const RAM_LEN: u64 = 2 << 20;
/// Steps at most: an input that goes on for ever tells nothing new.
const STEPS: usize = 160;
/// Slot of the first Space's own name, and one that the driver alone uses.
const OWN: u64 = 1;
const HAND: u64 = 200;

struct Driver {
    m: Machine,
    model: Rc<RefCell<Model>>,
    /// A thread that no capability names; it sleeps until the end.
    reaper: Obj<Thread>,
    /// Those that are always ready, one a processor.
    idle: Vec<Obj<Thread>>,
}

/// Has the kernel do what the bytes say.
///
/// # Panics
/// When something that must hold does not.
pub fn drive(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut d = Driver::new(1 + input.below(3));
    let mut steps = 0;
    while !input.0.is_empty() && steps < STEPS {
        steps += 1;
        d.step(&mut input);
    }
    d.model.borrow().census.check_pages();
    d.end();
}

impl Driver {
    fn new(cpus: usize) -> Self {
        let m = Machine::new();
        let mut idle = vec![m.space.threads.first().unwrap()];
        idle.extend((1..cpus).map(|n| m.add_cpu(n as u32)));
        let reaper = m.thread(20);
        reaper.suspended.set(true);
        reaper.state.set(State::Stopped);
        crate::sched::change_budget(m.cpu, reaper, None);
        crate::sched::change_budget(m.cpu, reaper, reaper.own_budget.get());
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
        m.name(Memory::create(m.pool, (1 << 31, 1 << 16), true, 255, 0).unwrap());
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
        for (t, cpu) in t.iter().zip(Cpu::all()).take(cpus).skip(1) {
            m.name(CpuObject::create(m.pool, cpu.number).unwrap());
            let moved = t.own_budget.get().unwrap().move_to(cpu);
            assert_eq!(moved, Ok(()));
        }
        // The other Space knows the Endpoint, the Notification, itself and two threads.
        for (to, from) in [(1, 13), (2, ep), (3, bell), (4, 2), (5, 16), (6, 22)] {
            let cap = m.space.get().slot(from).unwrap().get();
            other.get().slot(to).unwrap().set(cap);
        }
        Self {
            model: Rc::new(RefCell::new(Model::new())),
            m,
            reaper,
            idle,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        let cpu = Cpu::play(usize::from(what >> 4) % self.idle.len());
        let ready = self.ready(cpu);
        let now = crate::arch::now();
        trace(|| format!("{}: step {}", cpu.number, what % 16));
        match what % 16 {
            0..9 => {
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
            // What others have signalled arrives.
            9 => {
                crate::ipc::collect(cpu);
                self.nothing();
            }
            10 | 11 => {
                let by = u64::from(input.u8()) << (input.u8() & 15);
                crate::arch::advance(by);
                crate::sched::tick(cpu);
                self.nothing();
            }
            12 => {
                crate::sched::pick(cpu);
                self.nothing();
            }
            13 => {
                let Some(&t) = ready.get(input.below(ready.len())) else {
                    return;
                };
                // What faults is user level's code, not a guest, and has somebody to tell.
                if !in_guest(t) && t.supervisor.get().typed::<Endpoint>(rights::SEND).is_ok() {
                    crate::ipc::fault(self.m.run(t), t, 14, 4, now);
                    self.nothing();
                }
            }
            _ => self.user_writes(input),
        }
    }

    /// The threads that could be running there. Not the one that is always ready: it must never wait.
    fn ready(&self, cpu: &Cpu) -> Vec<Obj<Thread>> {
        let mut all = self.model.borrow().census.runnable(cpu);
        all.retain(|t| !self.idle.contains(t));
        all
    }

    /// A guest does something that makes it leave.
    fn guest(&mut self, t: Obj<Thread>, input: &mut Input<'_>) {
        let cpu = self.m.run(t);
        let how = input.u8();
        match t.vcpu.get() {
            Some(v) if how & 3 != 0 => {
                let port = u16::from(input.u8()) + 0xf0;
                let access = Plain {
                    port,
                    width: 1 << (how >> 2 & 3).min(2),
                    input: how & 16 != 0,
                    next: 0x1234,
                };
                v.gpr(gpr::RAX).set(input.u8().into());
                with_virt!(b => { let _ = exit::route::port::<b::BackEnd>(cpu, t, v, access); });
            }
            _ => {
                with_virt!(b => exit::enter::<b::BackEnd>(cpu, t));
            }
        }
        self.nothing();
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
                slot(t, input, Kind::Endpoint) * u64::from(input.u8() & 7 != 0),
                input.number(),
                [0; 4],
            ),
            2 | 3 => (slot(t, input, Kind::Notification), 0, [0; 4]),
            4 => (
                slot(t, input, Kind::Vcpu),
                input.number(),
                [input.number(), input.number(), 0, 0],
            ),
            _ => (0, 0, [0; 4]),
        };
        message(t, input);
        self.m.sys(t, number, slot, tag, words, deadline);
        self.nothing();
    }

    /// Makes an operation, and perhaps one of another processor that has the object lock first.
    fn operation(&mut self, t: Obj<Thread>, input: &mut Input<'_>, deadline: u64) {
        let o = decode(t, input, deadline);
        let first = if input.u8() & 3 == 0 {
            self.first(t, input)
        } else {
            None
        };
        message(t, input);
        let expected = self.model.borrow().expected(t, &o.cap, o.label, &o.w);
        self.carry_out(&o, first, expected);
    }

    /// The operation of a thread on another processor than `t`'s.
    fn first(&self, t: Obj<Thread>, input: &mut Input<'_>) -> Option<Operation> {
        let cpu = &Cpu::all()[(t.cpu.get() as usize + 1 + input.below(2)) % self.idle.len()];
        if cpu.number == t.cpu.get() {
            return None;
        }
        let mut ready = self.ready(cpu);
        ready.retain(|&t| !in_guest(t) && !goes_on(t));
        let o = decode(
            *ready.get(input.below(ready.len()))?,
            input,
            crate::arch::now(),
        );
        // A call takes no lock, and needs nobody to wait.
        (o.cap.kind() != Kind::Endpoint as u32).then_some(o)
    }

    /// `o`, with `first` in between its entry into the kernel and its having the lock.
    fn carry_out(&mut self, o: &Operation, first: Option<Operation>, expected: Expected) {
        let name = Name::object(o.t);
        let expected = Rc::new(RefCell::new((expected, true)));
        if let Some(f) = first {
            let (o, shared, model) = (*o, Rc::clone(&expected), Rc::clone(&self.model));
            meanwhile(Some(Box::new(move || {
                crate::sync::check::hold(false);
                let e = model.borrow().expected(f.t, &f.cap, f.label, &f.w);
                let by = Name::object(f.t);
                f.call();
                Self::judge(&mut model.borrow_mut(), by, &f, &e);
                // Does it go on, and with what?
                let goes_on = name.is_alive() && o.t.state.get() == State::Ready;
                *shared.borrow_mut() = if goes_on {
                    (model.borrow().expected(o.t, &o.cap, o.label, &o.w), true)
                } else {
                    (Expected::default(), false)
                };
            })));
            crate::sync::check::hold(true);
        }
        o.call();
        // It was refused before it needed the lock.
        if meanwhile(None) {
            crate::sync::check::hold(false);
        }
        let (expected, went_on) = expected.replace((Expected::default(), true));
        if went_on {
            Self::judge(&mut self.model.borrow_mut(), name, o, &expected);
        } else {
            self.nothing();
        }
    }

    /// The next part of a long operation, with what is in the registers.
    fn go_on(&mut self, t: Obj<Thread>) {
        let slot = t.get().get(reg::RDI);
        let cap = cap::cap_at(t.get(), slot).unwrap_or(Cap::EMPTY);
        let (tag, w) = (t.get().get(reg::RSI), words(t));
        let number = t.get().get(reg::RAX);
        let o = Operation {
            t,
            slot,
            cap,
            label: Tag(tag).label(),
            w,
            tag,
            deadline: t.get().get(reg::R13),
        };
        if number == 0 {
            let expected = self.model.borrow().expected(t, &cap, o.label, &w);
            return self.carry_out(&o, None, expected);
        }
        // A `wait`, `reply_recv` or `run` that is made again on another processor.
        self.m.sys(t, number, slot, tag, w, o.deadline);
        self.nothing();
    }

    /// After operation `o` of thread `name`.
    fn judge(model: &mut Model, name: Name, o: &Operation, expected: &Expected) {
        let called = o.cap.kind() == Kind::Endpoint as u32;
        // A thread that ended itself has succeeded.
        let t = name.get::<Thread>();
        let outcome = match t {
            _ if called => Outcome::Nothing,
            None => Outcome::Done,
            Some(t) if goes_on(t) => Outcome::Part,
            Some(t) if status(t) == Status::Ok => Outcome::Done,
            Some(_) => Outcome::Nothing,
        };
        model.judge(expected, outcome);
        if let Some(t) = t.filter(|_| outcome == Outcome::Done) {
            model.learn(t, &o.cap, o.label, &o.w);
        }
    }

    /// User level writes to a page that it may map: what the kernel still believed to be there is gone.
    fn user_writes(&mut self, input: &mut Input<'_>) {
        let mut all: Vec<_> = self.model.borrow().census.mappable().collect();
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
        let mut model = self.model.borrow_mut();
        model.judge(&Expected::default(), Outcome::Nothing);
    }

    /// Everything is taken down: not a page, not a record stays behind.
    fn end(&mut self) {
        let m = &self.m;
        self.reaper.suspended.set(false);
        if self.reaper.state.get() != State::Ready {
            crate::sched::make_ready(m.cpu, self.reaper);
        }
        let hand = m.space.get().slot(HAND).unwrap();
        // It may have been dropped.
        let own = Cap::new(m.space.get().header());
        m.space.get().slot(OWN).unwrap().set(own);
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
        let mut kept = vec![Name::object(m.space), Name::object(self.reaper)];
        kept.extend(self.idle.iter().map(|&t| Name::object(t)));
        kept.extend(
            [self.reaper]
                .iter()
                .chain(&self.idle)
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
