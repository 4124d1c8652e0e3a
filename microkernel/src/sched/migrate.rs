//! From one processor to another. The other processors are stopped: both ends can be touched.

use crate::arch::Cpu;
use crate::mem::Obj;
use crate::object::thread::State;
use crate::object::{Budget, Thread};
use crate::sched::timer::Owner;
use crate::{ipc, sched};
use ipc_schema::abi::{NEVER, Syscall};

/// Moves `t`, which is movable ([`Thread::movable`]), with its own Budget, its bound Notification and its guest.
///
/// What it waited for it waits for again on the new processor: it makes its system call anew there, so that whatever is already
/// there to be received is found.
pub fn thread(t: Obj<Thread>, to: &Cpu) {
    let from = t.home();
    if from.number == to.number {
        return;
    }
    match t.state.get() {
        State::Receiving => {
            ipc::leave(from, t);
            t.restart(Syscall::ReplyRecv);
            t.state.set(State::Ready);
        }
        State::Waiting => {
            let n = t.waits_for.get();
            ipc::leave(from, t);
            if let Some(n) = n.filter(|n| n.bound.get().is_none()) {
                n.move_to(to.number);
            }
            t.restart(Syscall::Wait);
            t.state.set(State::Ready);
        }
        _ => {}
    }
    let b = t.own_budget.get();
    if let Some(b) = b {
        budget(b, to);
    }
    from.forget(t);
    from.timers.cancel(&t.timer);
    if let Some(v) = t.vcpu.get() {
        v.get().fetch(to);
    }
    if let Some(n) = t.bound.get() {
        n.move_to(to.number);
    }
    t.cpu.set(to.number);
    t.space.get().used_on(to.number);
    if t.state.get() == State::Ready {
        if t.deadline.get() != NEVER {
            sched::set_deadline(to, t, t.deadline.get());
        }
        sched::make_ready(to, t);
    }
}

/// Moves `b`, which is lent to nobody.
pub fn budget(b: Obj<Budget>, to: &Cpu) {
    let from = b.home();
    if from.number == to.number {
        return;
    }
    let tip = b.thread.get();
    sched::detach(from, b);
    b.thread.set(tip);
    from.timers.cancel(&b.timer);
    b.cpu.set(to.number);
    if b.exhausted.get() && b.period.get() != 0 {
        to.timers.arm(&b.timer, b.ends(), Owner::Budget(b));
        crate::arch::timer_at_most(to, to.timers.next());
    }
}
