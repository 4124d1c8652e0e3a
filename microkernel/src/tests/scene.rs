//! The end of each kind of object in the middle of whatever it is in, by two processors at once.

use super::ends::numbers;
use super::smp::{start, sys_on, thread_on};
use super::*;
use crate::object::guest_space::Way;
use crate::object::irq::Irq;
use crate::object::ports::Ports;
use crate::object::{GuestSpace, Vcpu};
use ipc_schema::abi::{op, rights};
use proptest::prelude::*;

/// A VM, servers and what they are in the middle of, on two processors, all in one Pool: slots of all that can be ended.
struct Scene {
    m: Machine,
    /// The Pool, and the one made of its Memory, come last.
    all: Vec<u64>,
    pools: [u64; 2],
    bosses: [Obj<Thread>; 2],
    going: [Option<u64>; 2],
    own: u64,
    begin: (u64, u64),
}

impl Scene {
    #[allow(clippy::too_many_lines, reason = "one situation after the other")]
    fn new() -> Self {
        let m = Machine::new();
        let one = start(1);
        thread_on(&m, 1, 0);
        let bosses = [m.thread(30), m.thread(30)];
        let (own, payer) = (m.name(m.space), m.put(m.pool_cap));
        let (_, ram) = m.memory(16 << 20, 8 << 20);
        let begin = (m.pool.stat().0 + m.pool.overhead(), numbers());
        let mut all = vec![];
        let boss = bosses[0];
        let divide = |at: u64, len: u64, payer| {
            let dest = m.put(Cap::EMPTY);
            let words = [at << 20, len << 20, dest, payer];
            assert_eq!(m.operate(boss, ram, op::memory::DIVIDE, words), Status::Ok);
            dest
        };
        let make_pool = |memory, quota| {
            let dest = m.put(Cap::EMPTY);
            let made = m.operate(boss, memory, op::memory::MAKE_POOL, [dest, quota, 0, 0]);
            assert_eq!(made, Status::Ok);
            dest
        };
        let backing = divide(0, 1, payer);
        let outer = make_pool(backing, 1);
        let p = Pool::from_cap(&m.space.slot(outer).unwrap().get(), 0).unwrap();
        let (mapped, inside) = (divide(1, 2, outer), divide(3, 1, outer));
        let pools = [outer, make_pool(inside, 0)];
        all.extend([backing, mapped, inside]);
        let s = Space::create(p, 128).unwrap();
        let g = GuestSpace::create(p).unwrap();
        all.extend([m.name(s), m.name(g)]);
        let slot = std::cell::Cell::new(1);
        // A capability in the Space of the scene.
        let there = |cap: Cap| {
            let at = slot.replace(slot.get() + 1);
            s.slot(at).unwrap().set(cap);
            at
        };
        let memory = m.space.slot(mapped).unwrap().get();
        let threads = std::cell::Cell::new(0);
        let mut thread = |priority: u64, cpu: usize| {
            let n = threads.replace(threads.get() + 1);
            let t = Thread::create(p, s, 0x5000_0000 + n * 8192, m.cpu).unwrap();
            let b = Budget::create(p, 0).unwrap();
            t.set_own_budget(Some(b));
            b.configure(priority, 1_000_000, 1_000_000, crate::arch::now());
            crate::sched::make_ready(m.cpu, t);
            b.move_to(&Cpu::all()[cpu]).unwrap();
            all.extend([m.name(t), m.name(b)]);
            t
        };
        let (call, serve, last) = (thread(5, 0), thread(6, 0), thread(7, 0));
        let (queued, faulted, waits_for_call) = (thread(5, 0), thread(5, 0), thread(5, 0));
        let (exhausted, routed, suspended) = (thread(8, 0), thread(5, 0), thread(5, 0));
        let (runs, in_guest, waits) = (thread(20, 1), thread(6, 1), thread(7, 1));
        thread(4, 1).state.set(State::Ready);
        let endpoints: Vec<_> = (0..4).map(|_| Endpoint::create(p).unwrap()).collect();
        let bells: Vec<_> = (0..4)
            .map(|_| Notification::create(p, 0).unwrap())
            .collect();
        all.extend(endpoints.iter().map(|&e| m.name(e)));
        all.extend(bells.iter().map(|&n| m.name(n)));
        let e: Vec<_> = endpoints
            .iter()
            .map(|e| there(Cap::new(e.get().header())))
            .collect();
        let n: Vec<_> = bells
            .iter()
            .map(|n| there(Cap::new(n.get().header())))
            .collect();
        let (to_s, to_g) = (m.name(s), m.name(g));
        let rw = u64::from(rights::READ | rights::WRITE) << 32;
        for (target, at) in [
            (to_s, 0x7000_0000),
            (to_s, 0x7800_0000),
            (to_g, 0),
            (to_g, 1 << 30),
        ] {
            let words = [at, mapped | rw, 0, 2 << 20];
            assert_eq!(m.operate(boss, target, op::space::MAP, words), Status::Ok);
        }
        there(memory);
        // In a call, and in one for that; in a queue; before a supervisor that does not answer; waiting for calls, bound.
        m.receive(serve, e[0]);
        m.receive(last, e[1]);
        assert!(m.call(call, e[0], [0; 4]) == serve && m.call(serve, e[1], [0; 4]) == last);
        m.sys(queued, 0, e[2], 0, [0; 4], crate::arch::now() + 40_000);
        faulted
            .supervisor
            .set(Cap::new(endpoints[2].get().header()));
        m.run(faulted);
        crate::ipc::fault(m.cpu, faulted, 14, 0, 0);
        waits_for_call.bind(Some(bells[0]));
        m.sys(
            waits_for_call,
            1,
            e[3],
            0,
            [0; 4],
            crate::arch::now() + 60_000,
        );
        m.operate(boss, m.name(suspended), op::thread::SUSPEND, [0; 4]);
        let b = exhausted.own_budget.get().unwrap();
        b.configure(8, 100, 300_000, crate::arch::now());
        m.run(exhausted);
        crate::arch::advance(1_000);
        crate::sched::pick(m.cpu);
        assert!(b.exhausted.get());
        // A guest that waits for a device's answer, and one that runs, its registers loaded.
        let cap = Cap::new(endpoints[2].get().header());
        g.get()
            .add_route(0xf0, 8, Way::Endpoint, cap, 50_000)
            .unwrap();
        let cap = Cap::new(bells[1].get().header());
        g.get()
            .add_route(0x1f0, 8, Way::Doorbell(None), cap, 0)
            .unwrap();
        let v = Vcpu::create(p, g, s, 0x6000_0000).unwrap();
        v.get().adopt(routed).unwrap();
        m.run(routed);
        routed.resume.set(Resume::Guest);
        let access = crate::virt::Plain {
            port: 0xf0,
            width: 1,
            input: true,
            next: 0x1234,
        };
        crate::virt::with_virt!(b => { let _ = crate::exit::route::port::<b::BackEnd>(m.cpu, routed, v, access); });
        assert!(routed.state.get() == State::Queued && routed.resume.get() == Resume::Guest);
        Cpu::play(1);
        let w = Vcpu::create(p, g, s, 0x6000_2000).unwrap();
        w.get().adopt(in_guest).unwrap();
        in_guest.resume.set(Resume::Guest);
        one.fpu_owner.set(Some(w));
        all.extend([m.name(v), m.name(w)]);
        let irq = Irq::create(one, p).unwrap();
        irq.target.set(Cap::new(bells[1].get().header()));
        all.extend([m.name(irq), m.name(Ports::create(p, 0x100, 16).unwrap())]);
        // Waiting there, at home there; a signal on the way there; and one that runs there.
        bells[2].move_to(1);
        sys_on(waits, 3, n[2], [0; 4], crate::arch::now() + 50_000);
        bells[3].move_to(1);
        Cpu::play(0);
        crate::ipc::signal(m.cpu, bells[3], 1);
        sys_on(runs, 5, 0, [0; 4], NEVER);
        Cpu::play(0);
        assert!(one.current.get() == Some(runs) && waits.state.get() == State::Waiting);
        all.extend(pools);
        crate::checker::check().unwrap();
        Self {
            m,
            all,
            pools,
            bosses,
            going: [None; 2],
            own,
            begin,
        }
    }

    fn alive(&self, slot: u64) -> bool {
        !self.m.space.slot(slot).unwrap().get().is_dead()
    }

    /// A step of boss `who` towards the end of what it is ending, or else of `slot`; whether there is more to do.
    fn step(&mut self, who: usize, slot: u64) -> bool {
        Cpu::play(0);
        let slot = self.going[who].unwrap_or(slot);
        let (cap, label, words) = if self.pools.contains(&slot) {
            (slot, op::pool::DESTROY, [0; 4])
        } else {
            (self.own, op::space::DESTROY_OBJECT, [slot, 0, 0, 0])
        };
        let (boss, was) = (self.bosses[who], self.alive(slot));
        self.m.sys(boss, 0, cap, Tag::new(label).0, words, NEVER);
        let more = super::census::goes_on(boss);
        self.going[who] = more.then_some(slot);
        if !more {
            let expected = match status(boss) {
                Status::Ok => was && !self.alive(slot),
                Status::InvalidCap => !was,
                // A Memory that is a Pool.
                Status::Busy => was && self.alive(slot),
                _ => false,
            };
            assert!(expected, "{slot}: {:?}", status(boss));
        }
        more
    }

    /// Both come to their ends, then everything is ended: nothing is left of it anywhere.
    fn end(mut self) {
        for who in [0, 1] {
            while self.going[who].is_some() && self.step(who, 0) {}
        }
        if self.alive(self.pools[0]) {
            while self.step(0, self.pools[0]) {}
        }
        if self.alive(self.all[0]) {
            while self.step(0, self.all[0]) {}
        }
        assert!(self.all.iter().all(|&slot| !self.alive(slot)));
        let m = &self.m;
        assert_eq!((m.pool.stat().0 + m.pool.overhead(), numbers()), self.begin);
        for cpu in &Cpu::all()[..2] {
            assert!(cpu.fpu_owner.get().is_none() && cpu.irqs.iter().all(|i| i.get().is_none()));
            assert_eq!(cpu.timers.next(), NEVER);
            cpu.mail.take(|_| panic!("mail for nobody"));
        }
        crate::checker::check().unwrap();
    }
}

/// What happens next.
#[derive(Debug, Clone)]
enum Act {
    /// A boss takes a step towards the end of one of the objects.
    End(usize, usize),
    /// So much time passes on both processors.
    Time(u64),
    /// A processor looks at its mail and picks anew.
    Pick(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..2_usize, any::<usize>()).prop_map(|(who, what)| Act::End(who, what)),
        1 => (0..50_000_u64).prop_map(Act::Time),
        1 => (0..2_usize).prop_map(Act::Pick),
    ]
}

#[test]
fn each_object_by_itself_can_be_ended_in_whatever_it_is() {
    for size in [1, 2_500] {
        let objects = Scene::new().all.len();
        for i in 0..objects {
            let mut scene = Scene::new();
            crate::object::step::tests::set_size(size);
            let slot = scene.all[i];
            // A boss begins; the other does the same, or goes on with it.
            scene.step(0, slot);
            crate::checker::check().unwrap();
            while scene.step(1, slot) {
                crate::checker::check().unwrap();
            }
            scene.end();
            crate::object::step::tests::reset();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_objects_end_in_any_order_by_two_at_once(
        acts in proptest::collection::vec(act(), 1..120),
        size in prop_oneof![Just(1_u32), 1..2_500_u32],
    ) {
        let mut scene = Scene::new();
        crate::object::step::tests::set_size(size);
        for act in acts {
            match act {
                Act::End(who, what) => {
                    let slot = scene.all[what % scene.all.len()];
                    scene.step(who, slot);
                }
                Act::Time(by) => {
                    crate::arch::advance(by);
                    for n in [1, 0] {
                        crate::sched::tick(Cpu::play(n));
                    }
                }
                Act::Pick(n) => {
                    let cpu = Cpu::play(n);
                    crate::ipc::collect(cpu);
                    crate::sched::pick(cpu);
                }
            }
            crate::checker::check().unwrap();
        }
        scene.end();
        crate::object::step::tests::reset();
    }
}
