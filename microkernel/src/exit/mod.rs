//! `run`: from the VMM into the guest and back; what both vendors share.

pub mod route;

use crate::arch::{self, Cpu};
use crate::mem::Obj;
use crate::object::thread::{Resume, reg};
use crate::object::{Thread, Vcpu, lookup};
use crate::virt::{Left, Then, Virt, Who};
use crate::{ipc, sched, sync};
use core::marker::PhantomData;
use ipc_schema::abi::vm::{Exit, ExitWord, Groups};
use ipc_schema::abi::{NEVER, Status, Syscall, rights};

/// System call `run`: decodes, loads what the VMM changed, and turns the thread into the guest.
#[inline(always)]
pub fn run<V: Virt>(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    let th = t.get();
    let v = match lookup::<Vcpu>(th, th.get(reg::RDI), rights::CONTROL) {
        Ok((_, v)) => v,
        Err(e) => return ipc::done(t, e),
    };
    // By address: one comparison, whether there is a runner or not.
    if v.runner.get().map_or(core::ptr::null_mut(), Obj::ptr) != t.ptr() {
        return claim(cpu, t, v);
    }
    let dirty = th.get(reg::RSI) & Groups::ALL;
    V::load(v.get(), dirty);
    V::arm(v.get(), th.get(reg::R8), th.get(reg::R9));
    let deadline = th.get(reg::R13);
    th.expired.set(false);
    th.run_deadline.set(deadline);
    sched::set_deadline(cpu, t, deadline);
    th.resume.set(V::RESUME);
    let (Ok(next) | Err(next)) = match V::RESUME {
        // One way in is enough where it is long.
        Resume::GuestVmx => Ok(t),
        _ => guest::<V>(cpu, t, v),
    };
    next
}

/// `t` wants to run `v`, which it does not run yet: it becomes the runner, once the state has come here if another processor has it. Then
/// it makes its call again.
#[cold]
#[inline(never)]
fn claim(cpu: &Cpu, t: Obj<Thread>, v: Obj<Vcpu>) -> Obj<Thread> {
    match v.get().adopt(t) {
        Err(Status::Again) => sync::prepare(cpu, t, Syscall::Run, v, |v| {
            if v.runner.get().is_none() {
                v.get().fetch(cpu);
            }
            Ok(())
        }),
        Err(e) => ipc::done(t, e),
        Ok(()) => {
            t.restart(Syscall::Run);
            t
        }
    }
}

/// `t` is picked and in its guest: enters it, again as long as its exits leave nothing to anybody else. Answers who goes on.
#[inline(always)]
pub fn enter<V: Virt>(cpu: &Cpu, mut t: Obj<Thread>) -> Obj<Thread> {
    while let Some(v) = t.vcpu.get() {
        match guest::<V>(cpu, t, v) {
            Ok(again) => t = again,
            Err(next) => return next,
        }
    }
    t.finish(Status::Dead);
    t
}

/// Whose guest goes on at once, or who goes on.
type Next = Result<Obj<Thread>, Obj<Thread>>;

/// Enters the guest of `t`, unless it is to end, and deals with the exit.
#[inline(always)]
fn guest<V: Virt>(cpu: &Cpu, t: Obj<Thread>, v: Obj<Vcpu>) -> Next {
    // Nothing comes in between here and the entry, since interrupts are off and then exit the guest at once.
    if ended::<V>(t, v) {
        return Err(t);
    }
    // By address, as above.
    if cpu.fpu_owner.get().map_or(core::ptr::null_mut(), Obj::ptr) != v.ptr() {
        V::switch_extended(cpu, v.get());
    }
    V::enter(cpu, v.get(), Exited(PhantomData::<V>))
}

/// Whether `run` ends, by the bound Notification's bits, which are latched while the guest cannot be left, or the deadline.
#[inline(always)]
fn ended<V: Virt>(t: Obj<Thread>, v: Obj<Vcpu>) -> bool {
    if signalled::<V>(t, v) {
        return true;
    }
    if t.expired.get() {
        leave::<V>(t, v, Exit::Timeout, [0; 4]);
    }
    t.expired.get()
}

/// Whether the bound Notification has bits: then it is back to the VMM with them.
#[inline(always)]
fn signalled<V: Virt>(t: Obj<Thread>, v: Obj<Vcpu>) -> bool {
    let Some(n) = t.bound.get().filter(|n| n.pending()) else {
        return false;
    };
    leave::<V>(t, v, Exit::Signal, [n.take_now(), 0, 0, 0]);
    true
}

/// What is done about an exit.
struct Exited<V>(PhantomData<V>);

impl<V: Virt> Then for Exited<V> {
    type Answer = Next;

    #[inline(always)]
    fn then(self, (cpu, t, v): Who, left: Left) -> Next {
        let (t, v) = (Obj::of(t), Obj::of(v));
        match left {
            Left::Interrupt => {
                arch::take_interrupts(cpu);
                if cpu.reschedule.get() {
                    return Err(sched::pick(cpu));
                }
                // The vCPU may be gone. If it is the deadline that has come, there is no need to go round.
                match t.vcpu.get() {
                    Some(v) if ended::<V>(t, v) => Err(t),
                    _ => Ok(t),
                }
            }
            Left::Port(access) => route::port::<V>(cpu, t, v, access),
            Left::Exit(exit, info) => Err(leave::<V>(t, v, exit, info)),
        }
    }
}

/// Back to the VMM.
#[inline(always)]
pub fn leave<V: Virt>(t: Obj<Thread>, v: Obj<Vcpu>, exit: Exit, info: [u64; 4]) -> Obj<Thread> {
    let groups = v.on_exit[exit as usize % 32].get();
    let (word, event) = V::left(v.get(), u64::from(groups));
    let th = t.get();
    th.set(reg::RSI, ExitWord(word | exit as u64).0);
    th.set(reg::RDI, event);
    th.set(reg::R8, info[0]);
    th.set(reg::R9, info[1]);
    th.set(reg::R10, info[2]);
    th.set(reg::R12, info[3]);
    th.deadline.set(NEVER);
    th.finish(Status::Ok);
    t
}
