//! Operations on kernel objects: each is decoded in full, where every check can fail, and then carried out, where nothing can.

mod machine;
mod thread;

use super::cap::{Cap, cap_at};
use super::guest_space::Way;
use super::mapping::{Mapping, Request};
use super::space::Slot;
use super::step::Step;
use super::{
    Budget, Domain, Endpoint, GuestSpace, Memory, Notification, Object, Pool, Space, Thread, Vcpu,
    lookup, refuse_if,
};
use crate::arch::Cpu;
use crate::ipc::{self, WORDS};
use crate::mem::Obj;
use crate::object::thread::{State, reg};
use crate::sched;
use crate::sync::Operation;
use core::cell::Cell;
use ipc_schema::abi::rights::{CONTROL, DESTROY, READ, SEND, WRITE};
use ipc_schema::abi::{Kind, Status, Syscall, Tag, Utcb, op, vm};

const PAYLOAD_WORD: usize = Utcb::PAYLOAD_OFFSET / 8;

/// The arguments of an operation, and who asks.
struct Args<'a> {
    cpu: &'a Cpu,
    op: Operation<'a>,
    t: Obj<Thread>,
    step: Step,
    /// Bytes of the reply's payload.
    payload: Cell<usize>,
}

/// The words of the reply are in the thread's registers by the time that it is `Ok`; where an operation has none, those of the call
/// are still there.
type Answer = Result<(), Status>;
const NONE: Answer = Ok(());

impl<'a> Args<'a> {
    /// A word of the call. The thread's registers stay as they are until the operation is done.
    #[inline(always)]
    fn w(&self, n: usize) -> u64 {
        self.t.get().get(WORDS[n])
    }
    #[inline(always)]
    fn tag(&self) -> Tag {
        Tag(self.t.get().get(reg::RSI))
    }
    /// The words of the reply, which nothing can come in the way of any more.
    fn words(&self, w: [u64; 4]) -> Answer {
        WORDS
            .into_iter()
            .zip(w)
            .for_each(|(r, w)| self.t.get().set(r, w));
        NONE
    }
    fn obj<T: Object>(&self, slot: u64, need: u32) -> Result<Obj<T>, Status> {
        lookup::<T>(self.t.get(), slot, need).map(|(_, o)| o)
    }
    fn optional<T: Object>(&self, slot: u64, need: u32) -> Result<Option<Obj<T>>, Status> {
        if slot == 0 {
            Ok(None)
        } else {
            self.obj(slot, need).map(Some)
        }
    }
    /// A capability of type `T`, to be kept (0: none).
    fn keep<T: Object>(&self, slot: u64, need: u32) -> Result<Cap, Status> {
        if slot == 0 {
            Ok(Cap::EMPTY)
        } else {
            lookup::<T>(self.t.get(), slot, need).map(|(c, _)| *c)
        }
    }
    fn pool(&self, slot: u64) -> Result<&'static Pool, Status> {
        Pool::from_cap(&cap_at(self.t.get(), slot)?, CONTROL)
    }
    fn space(&self) -> &'a Space {
        self.t.get().space.get()
    }
    /// The slot for a new capability.
    fn dest(&self, slot: u64) -> Result<Slot<'a>, Status> {
        self.space().empty_slot(slot)
    }
}

/// Carries out `call` on anything but an Endpoint.
#[inline(never)]
pub fn invoke(cpu: &Cpu, t: Obj<Thread>, cap: &Cap) -> Obj<Thread> {
    let Some(op) = Operation::begin(cpu, t, Syscall::Call) else {
        return sched::pick(cpu);
    };
    let th = t.get();
    let a = Args {
        cpu,
        op,
        t,
        step: Step::default(),
        payload: Cell::new(0),
    };
    let answer = dispatch(&a, cap);
    let payload = a.payload.get();
    drop(a);
    // The thread may have been stopped or destroyed by its own operation.
    if cpu.current.get() != Some(t) {
        return sched::pick(cpu);
    }
    match answer {
        Ok(()) => {
            th.set(reg::RSI, Tag::default().with_payload(payload).0);
            th.finish(Status::Ok);
        }
        // A step of a long operation is done: the thread makes its call again, as if it had not been here. Whatever became pending
        // meanwhile comes first: interrupts on the way out, threads with precedence below.
        Err(Status::Again) => th.restart(Syscall::Call),
        Err(e) => th.finish(e),
    }
    // Had it stopped itself, it would be asked to make way.
    debug_assert!(t.state.get() == State::Ready || cpu.reschedule.get());
    sched::current_or_better(cpu, t)
}

/// By the kind of object; each is a function of its own, so that none saves registers for another.
#[inline(always)]
fn dispatch(a: &Args, cap: &Cap) -> Answer {
    match Kind::from_raw(cap.kind()) {
        Some(Kind::Pool) => pool(a, cap),
        Some(Kind::Memory) => memory(a, cap),
        Some(Kind::Space) => space(a, cap),
        Some(Kind::Thread) => thread::thread(a, cap),
        Some(Kind::Budget) => thread::budget(a, cap),
        Some(Kind::GuestSpace) => guest_space(a, cap),
        Some(Kind::Vcpu) => vcpu(a, cap),
        Some(Kind::Irq) => machine::irq(a, cap),
        Some(Kind::Ports) => machine::ports(a, cap),
        Some(Kind::Cpu) => machine::cpu(a, cap),
        Some(Kind::Log) => machine::log(a, cap),
        _ => cap.object().and(Err(Status::WrongType)),
    }
}

#[inline(never)]
fn pool(a: &Args, cap: &Cap) -> Answer {
    match a.tag().label() {
        op::pool::CREATE => {
            let pool = Pool::from_cap(cap, CONTROL)?;
            // The kinds of which anyone can make some.
            let kind = Kind::from_raw(a.w(0) as u32)
                .filter(|&k| (Kind::Space as u32..=Kind::Vcpu as u32).contains(&(k as u32)))
                .ok_or(Status::InvalidArg)?;
            let dest = a.dest(a.w(1))?;
            let home = a.cpu.number;
            dest.set(match kind {
                Kind::Space => Cap::of(Space::create(pool, a.w(2))?),
                Kind::Thread => {
                    let space = a.obj::<Space>(a.w(2), CONTROL)?;
                    a.op.stop_for(space.cpus.get());
                    Cap::of(Thread::create(pool, space, a.w(3), a.cpu)?)
                }
                Kind::Budget => Cap::of(Budget::create(pool, home)?),
                Kind::Endpoint => Cap::of(Endpoint::create(pool)?),
                Kind::Notification => Cap::of(Notification::create(pool, home)?),
                Kind::GuestSpace => Cap::of(GuestSpace::create(pool)?),
                _ => {
                    let guest = a.obj::<GuestSpace>(a.w(0) >> 32, CONTROL)?;
                    let space = a.obj::<Space>(a.w(2), CONTROL)?;
                    Cap::of(Vcpu::create(pool, guest, space, a.w(3))?)
                }
            });
            NONE
        }
        op::pool::STAT => {
            let pool = Pool::from_cap(cap, CONTROL)?;
            let (free, all) = pool.stat();
            a.words([free, all, pool.quota.get(), 0])
        }
        op::pool::DESTROY => {
            let object = cap.typed::<super::pool::PoolObject>(DESTROY)?;
            let pool = super::pool::pool_of(object.get().header());
            a.op.stop();
            pool.destroy_step(&a.step)
        }
        _ => cap.object().and(Err(Status::BadOperation)),
    }
}

#[inline(never)]
fn memory(a: &Args, cap: &Cap) -> Answer {
    match a.tag().label() {
        op::memory::DIVIDE => {
            let m = cap.typed::<Memory>(CONTROL)?;
            let dest = a.dest(a.w(2))?;
            let part = m.get().divide(a.w(0), a.w(1), a.pool(a.w(3))?)?;
            dest.set(Cap {
                rights: cap.rights,
                ..Cap::of(part)
            });
            NONE
        }
        op::memory::REVOKE => {
            let m = cap.typed::<Memory>(CONTROL)?;
            a.op.stop();
            m.get().revoke(&a.step)
        }
        op::memory::MAKE_POOL => {
            let m = cap.typed::<Memory>(CONTROL | READ | WRITE)?;
            let dest = a.dest(a.w(0))?;
            if !m.mappings.is_empty() {
                a.op.stop();
            }
            dest.set(m.get().make_pool(a.w(1), &a.step)?);
            NONE
        }
        op::memory::INFO => {
            let m = cap.typed::<Memory>(0)?;
            let phys = if u32::from(cap.rights) & CONTROL != 0 {
                m.phys
            } else {
                0
            };
            a.words([m.len, u64::from(m.device), phys, 0])
        }
        _ => cap.object().and(Err(Status::BadOperation)),
    }
}

/// `MAP`, in a Space or a GuestSpace.
#[inline(never)]
fn map(a: &Args, domain: &Domain) -> Answer {
    let (cap, memory) = lookup::<Memory>(a.t.get(), a.w(1) & 0xffff_ffff, 0)?;
    let r = Request {
        memory,
        at: a.w(0),
        offset: a.w(2),
        len: a.w(3),
        rights: (a.w(1) >> 32) as u32,
        by: a.t,
    };
    Mapping::create(&r, u32::from(cap.rights), domain, &a.step, &a.op)
}

/// `UNMAP`.
fn unmap(a: &Args, domain: &Domain) -> Answer {
    let m = domain.mappings.find(a.w(0)).ok_or(Status::InvalidArg)?;
    a.op.stop_for(domain.cpus.get());
    m.get().destroy(&a.step)
}

#[inline(never)]
fn space(a: &Args, cap: &Cap) -> Answer {
    let s = cap.typed::<Space>(CONTROL)?;
    match a.tag().label() {
        op::space::MAP => map(a, s.get()),
        _ => space_but_map(a, s),
    }
}

#[inline(never)]
fn space_but_map(a: &Args, s: Obj<Space>) -> Answer {
    match a.tag().label() {
        op::space::UNMAP => return unmap(a, s.get()),
        op::space::COPY_CAP => {
            let source = cap_at(a.t.get(), a.w(0))?;
            source.object()?;
            let copy =
                ipc::transfer::derive(source, a.w(2) as u32, a.w(3)).ok_or(Status::MissingRight)?;
            a.op.stop_for(s.get().read_in_place());
            s.get().empty_slot(a.w(1))?.set(copy);
        }
        op::space::DROP_CAP => {
            a.op.stop_for(s.get().read_in_place());
            s.get().slot(a.w(0))?.set(Cap::EMPTY);
        }
        op::space::DESTROY_OBJECT => {
            let cap = cap_at(a.t.get(), a.w(0))?;
            let header = cap.object()?;
            refuse_if(u32::from(cap.rights) & DESTROY == 0, Status::MissingRight)?;
            a.op.stop();
            if [Kind::Pool as u32, Kind::Cpu as u32, Kind::Log as u32].contains(&cap.kind()) {
                return Err(Status::WrongType);
            }
            super::destroy(header, &a.step)?;
        }
        _ => return Err(Status::BadOperation),
    }
    NONE
}

#[inline(never)]
fn guest_space(a: &Args, cap: &Cap) -> Answer {
    let g = cap.typed::<GuestSpace>(CONTROL)?.get();
    match a.tag().label() {
        op::guest_space::MAP => return map(a, g),
        op::guest_space::UNMAP => return unmap(a, g),
        op::guest_space::ROUTE => {
            let (first, count) = (a.w(0) & 0xffff, (a.w(0) >> 16) & 0xffff);
            let (way, target) = match (a.w(0) >> 32) & 0xff {
                1 => (Way::Endpoint, a.keep::<Endpoint>(a.w(1), SEND)?),
                2 => {
                    let only = ((a.w(0) >> 40) & 1 == 1).then_some(a.w(2));
                    (Way::Doorbell(only), a.keep::<Notification>(a.w(1), SEND)?)
                }
                _ => return Err(Status::InvalidArg),
            };
            refuse_if(target == Cap::EMPTY, Status::InvalidCap)?;
            a.op.stop_for(g.cpus.get());
            g.add_route(first, count, way, target, a.w(2))?;
        }
        op::guest_space::UNROUTE => {
            a.op.stop_for(g.cpus.get());
            g.remove_route(a.w(0) & 0xffff)?;
        }
        _ => return Err(Status::BadOperation),
    }
    NONE
}

#[inline(never)]
fn vcpu(a: &Args, cap: &Cap) -> Answer {
    #[cfg(any(test, feature = "unproven"))]
    if a.tag().label() == vm::POST {
        return crate::virt::vmx::newer::posted::post(cap.typed::<Vcpu>(SEND)?.get(), a.w(0));
    }
    let v = cap.typed::<Vcpu>(CONTROL)?;
    match a.tag().label() {
        op::vcpu::ON_EXIT => {
            let groups = (a.w(1) & (vm::Groups::ALL | vm::Groups::IP)) as u16;
            a.op.stop_for(1 << v.cpu.get());
            if a.w(0) == !0 {
                v.on_exit.iter().for_each(|e| e.set(groups));
            } else {
                v.on_exit[..vm::Exit::COUNT]
                    .get(a.w(0) as usize)
                    .ok_or(Status::OutOfRange)?
                    .set(groups);
            }
            NONE
        }
        _ => Err(Status::BadOperation),
    }
}
