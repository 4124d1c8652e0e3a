//! Exit routes: a guest's port accesses that go straight to a server.

use super::leave;
use crate::arch::{self, Cpu};
use crate::mem::Obj;
use crate::object::guest_space::Way;
use crate::object::{Endpoint, Notification, Thread, Vcpu};
use crate::virt::{Virt, virt};
use crate::{ipc, sched};
use ipc_schema::abi::vm::{Exit, PortAccess};
use ipc_schema::abi::{Tag, rights};

/// The guest of `t` executed IN or OUT (`value`: of an OUT; `next`: address of the next instruction). Answers who goes on; `None`: the
/// guest, at once.
#[inline(always)]
pub fn port(
    cpu: &Cpu,
    t: Obj<Thread>,
    v: Obj<Vcpu>,
    access: u64,
    value: u64,
    next: u64,
) -> Option<Obj<Thread>> {
    let a = PortAccess(access);
    let Some(route) = v.guest.routes().find(a) else {
        return Some(leave(t, v, Exit::Port, [access, next, value, 0]));
    };
    let cap = &route.target;
    match route.way {
        Way::Endpoint => {
            let deadline = arch::now() + route.limit;
            t.routed.set(true);
            t.message[0].set(Tag::new(Tag::PORT).0);
            // The stamp: no two accesses have the same deadline.
            t.message[1].set(access | deadline << 32);
            t.message[2].set(value);
            t.message[3].set(0);
            t.message[4].set(0);
            v.next_rip.set(next);
            match cap.typed::<Endpoint>(rights::SEND) {
                Ok(ep) => Some(ipc::send(cpu, t, ep, cap.badge, deadline)),
                Err(_) => {
                    lost(t);
                    Some(t)
                }
            }
        }
        Way::Doorbell(only) => {
            if a.input() || only.is_some_and(|w| w != value) {
                return Some(leave(t, v, Exit::Port, [access, next, value, 0]));
            }
            match cap.typed::<Notification>(rights::SEND) {
                Ok(n) => {
                    virt().advance(v.get(), next);
                    ipc::signal(cpu, n, cap.badge.max(1));
                    cpu.reschedule.get().then(|| sched::pick(cpu))
                }
                Err(_) => Some(leave(t, v, Exit::Port, [access, next, value, 0])),
            }
        }
    }
}

/// The server has answered: completes the guest's instruction. The caller makes the thread run.
#[inline(always)]
pub fn complete(t: Obj<Thread>, value: u64) {
    t.routed.set(false);
    let Some(v) = t.vcpu.get() else { return };
    let a = PortAccess(t.message[1].get());
    if a.input() {
        v.get().merge_rax(a.width(), value);
    }
    virt().advance(v.get(), v.next_rip.get());
    let cpu = Cpu::current();
    sched::set_deadline(cpu, t, t.run_deadline.get());
}

/// No answer will come: the VMM is told, with the guest still before the instruction.
pub fn lost(t: Obj<Thread>) {
    t.routed.set(false);
    if let Some(v) = t.vcpu.get() {
        leave(
            t,
            v,
            Exit::RouteLost,
            [t.message[1].get(), t.message[2].get(), v.next_rip.get(), 0],
        );
    }
}

impl Thread {
    /// Its routed call had been taken by a server: says so in what the VMM will see.
    pub fn taken_lost(&self) {
        if self.routed.get() {
            self.message[1].set(self.message[1].get() | 1 << 23);
        }
    }
}
