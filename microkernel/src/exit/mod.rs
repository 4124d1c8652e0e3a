//! `run`: from the VMM into the guest and back; what both vendors share.

pub mod route;

use crate::arch::{self, Cpu};
use crate::mem::Obj;
use crate::object::thread::{Resume, reg};
use crate::object::{Cap, Object, Thread, Vcpu, lookup};
use crate::sched;
use crate::sync::Operation;
use crate::virt::{Left, Then, Virt, virt};
use ipc_schema::abi::vm::{Exit, ExitWord, Groups};
use ipc_schema::abi::{NEVER, Status, Syscall, rights};

/// System call `run`: decodes, loads what the VMM changed, and turns the thread into the guest.
#[inline(always)]
pub fn run(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    let th = t.get();
    let v = match lookup::<Vcpu>(th, th.get(reg::RDI), rights::CONTROL) {
        Ok((_, v)) => v,
        Err(e) => {
            th.finish(e);
            return t;
        }
    };
    if v.runner.get() != Some(t) {
        match v.get().adopt(t) {
            Ok(()) => {}
            Err(Status::Again) => return fetch(cpu, t, v),
            Err(e) => {
                th.finish(e);
                return t;
            }
        }
    }
    let dirty = th.get(reg::RSI) & Groups::ALL;
    virt().load(v.get(), dirty);
    virt().arm(v.get(), th.get(reg::R8), th.get(reg::R9));
    let deadline = th.get(reg::R13);
    th.expired.set(false);
    th.run_deadline.set(deadline);
    sched::set_deadline(cpu, t, deadline);
    th.resume.set(Resume::Guest);
    guest(cpu, t, v)
}

/// `t` wants to run `v`, whose state another processor has: brings it here. Then `t` makes its call again.
#[cold]
fn fetch(cpu: &Cpu, t: Obj<Thread>, v: Obj<Vcpu>) -> Obj<Thread> {
    let cap = Cap::new(v.get().header());
    let Some(op) = Operation::begin(cpu, t, Syscall::Run) else {
        return sched::pick(cpu);
    };
    if let Ok(v) = cap.typed::<Vcpu>(0)
        && v.runner.get().is_none()
    {
        op.stop();
        v.get().fetch(cpu);
    }
    t.restart(Syscall::Run);
    t
}

/// `t` is picked and in its guest: enters it, and deals with the exit. Answers who goes on.
#[inline(always)]
pub fn enter(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    let Some(v) = t.vcpu.get() else {
        t.finish(Status::Dead);
        return t;
    };
    guest(cpu, t, v)
}

/// Enters the guest of `t`, again as long as its exits leave nothing to anybody else. Answers who goes on.
#[inline(always)]
fn guest(cpu: &Cpu, t: Obj<Thread>, v: Obj<Vcpu>) -> Obj<Thread> {
    loop {
        // Latched while the guest could not be left; nothing comes in between here and the entry, since interrupts are off and then
        // exit the guest at once.
        if let Some(n) = t.bound.get()
            && n.pending()
        {
            let bits = n.take();
            return leave(t, v, Exit::Signal, [bits, 0, 0, 0]);
        }
        if t.expired.get() {
            return leave(t, v, Exit::Timeout, [0; 4]);
        }
        // By address: one comparison, whether there is an owner or not.
        if cpu.fpu_owner.get().map_or(core::ptr::null_mut(), Obj::ptr) != v.ptr() {
            virt().switch_extended(cpu, v.get());
        }
        let next = virt().enter(cpu, v.get(), Exited { t, v });
        if let Some(next) = next {
            return next;
        }
    }
}

/// What is done about an exit.
struct Exited {
    t: Obj<Thread>,
    v: Obj<Vcpu>,
}

impl Then for Exited {
    /// Who goes on; `None`: the guest, at once.
    type Answer = Option<Obj<Thread>>;

    #[inline(always)]
    fn then(self, left: Left) -> Self::Answer {
        let (Self { t, v }, cpu) = (self, Cpu::current());
        match left {
            Left::Interrupt => {
                arch::take_interrupts(cpu);
                Some(sched::current_or_better(cpu, t))
            }
            Left::Port {
                access,
                value,
                next,
            } => route::port(cpu, t, v, access, value, next),
            Left::Exit(exit, info) => Some(leave(t, v, exit, info)),
        }
    }
}

/// Back to the VMM.
#[inline(always)]
pub fn leave(t: Obj<Thread>, v: Obj<Vcpu>, exit: Exit, info: [u64; 4]) -> Obj<Thread> {
    let groups = v.on_exit[exit as usize % 32].get();
    let (word, event) = virt().left(v.get(), u64::from(groups));
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
