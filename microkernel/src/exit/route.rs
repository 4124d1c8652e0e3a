//! Exit routes: a guest's port accesses that go straight to a server.

use super::{Next, leave, signalled};
use crate::arch::{self, Cpu};
use crate::mem::Obj;
use crate::object::guest_space::Way;
use crate::object::{Endpoint, Notification, Thread, Vcpu};
use crate::virt::{Plain, Virt};
use crate::{ipc, sched};
use ipc_schema::abi::vm::{Exit, PortAccess, gpr};
use ipc_schema::abi::{Tag, rights};

/// The guest of `t` executed IN or OUT. Answers who goes on, or the guest, which does so at once.
#[inline(always)]
pub fn port<V: Virt>(cpu: &Cpu, t: Obj<Thread>, v: Obj<Vcpu>, a: Plain) -> Next {
    // Of an OUT, by width.
    const WRITTEN: [u32; 8] = [0, 0xff, 0xffff, 0, u32::MAX, 0, 0, 0];
    let value = || {
        let rax = v.gpr(gpr::RAX).get() & u64::from(WRITTEN[a.width as usize % 8]);
        if a.input { 0 } else { rax }
    };
    let runner = || {
        let info = [a.access(), a.next, value(), 0];
        Err(leave::<V>(t, v, Exit::Port, info))
    };
    let Some(route) = v.guest.get().route(a) else {
        return runner();
    };
    let cap = &route.target;
    match route.way {
        Way::Endpoint => {
            let deadline = arch::now() + route.limit;
            t.routed.set(true);
            // The stamp: no two accesses have the same deadline.
            let stamped = a.access() | deadline << 32;
            t.call_with(Tag::PORT, [stamped, value(), 0, 0]);
            v.next_rip.set(a.next);
            let Ok(ep) = cap.typed::<Endpoint>(rights::SEND) else {
                lost::<V>(t);
                return Err(t);
            };
            Err(ipc::send(cpu, t, ep, cap.badge, deadline))
        }
        Way::Doorbell(only) => {
            if a.input || only.is_some_and(|w| w != value()) {
                return runner();
            }
            let Ok(n) = cap.typed::<Notification>(rights::SEND) else {
                return runner();
            };
            V::advance(v.get(), a.next);
            ipc::signal(cpu, n, cap.badge.max(1));
            if cpu.reschedule.get() {
                return Err(sched::pick(cpu));
            }
            Ok(t)
        }
    }
}

/// The server has answered: completes the guest's instruction. The caller makes the thread run.
#[inline(always)]
pub fn complete<V: Virt>(t: Obj<Thread>, value: u64) {
    t.routed.set(false);
    let Some(v) = t.vcpu.get() else { return };
    let a = PortAccess(t.message[1].get());
    if a.input() {
        v.get().merge_rax(a.width(), value);
    }
    V::advance(v.get(), v.next_rip.get());
    if !signalled::<V>(t, v) {
        sched::set_deadline(Cpu::current(), t, t.run_deadline.get());
    }
}

/// No answer will come: the VMM is told, with the guest still before the instruction.
pub fn lost<V: Virt>(t: Obj<Thread>) {
    t.routed.set(false);
    if let Some(v) = t.vcpu.get() {
        let info = [t.message[1].get(), t.message[2].get(), v.next_rip.get(), 0];
        leave::<V>(t, v, Exit::RouteLost, info);
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
