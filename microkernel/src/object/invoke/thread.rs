//! Operations on what runs: Threads and Budgets.

use super::{Answer, Args, NONE, PAYLOAD_WORD};
use crate::arch;
use crate::ipc;
use crate::object::cap::Cap;
use crate::object::cpu::CpuObject;
use crate::object::thread::{Resume, State, reg};
use crate::object::{Budget, Endpoint, Notification, Thread, refuse_if};
use crate::sched;
use ipc_schema::abi::rights::{CONTROL, GRANT, RECV, SEND};
use ipc_schema::abi::{Status, ThreadRegs, layout, op, thread_state};

/// The thread's processor is stopped from the beginning: what is looked at cannot change between the look and the act.
#[inline(never)]
pub fn thread(a: &Args, cap: &Cap) -> Answer {
    let o = cap.typed::<Thread>(CONTROL)?;
    let t = o.get();
    a.op.stop_for(1 << t.cpu.get());
    match a.tag().label() {
        op::thread::CONFIGURE => {
            let budget = a.optional::<Budget>(a.w(0), CONTROL)?;
            let supervisor = a.keep::<Endpoint>(a.w(1), SEND)?;
            // Nobody speaks under a badge that he could not hand out.
            let free = supervisor.badge == 0 && u32::from(supervisor.rights) & GRANT != 0;
            let badge = match a.w(2) {
                0 => supervisor.badge,
                w if w == supervisor.badge || free || supervisor == Cap::EMPTY => w,
                _ => return Err(Status::MissingRight),
            };
            let bound = a.optional::<Notification>(a.w(3), RECV)?;
            t.can_have(budget, bound)?;
            let to = budget.map_or(t.home(), |b| b.home());
            let moves = to.number != t.cpu.get();
            if moves {
                t.movable()?;
            }
            let homes = bound.map_or(0, |n| 1 << n.home.get());
            a.op.stop_for(1 << to.number | homes);
            if moves {
                // As if it were stopped: it is not to go on with anybody's Budget from here.
                let state = t.state.replace(State::Stopped);
                t.set_own_budget(None);
                t.state.set(state);
                sched::migrate::thread(o, to);
            }
            t.set_own_budget(budget);
            t.bind(bound);
            t.supervisor.set(supervisor);
            t.supervisor_badge.set(badge);
            if moves && o == a.t {
                answer_elsewhere(t);
            }
        }
        op::thread::START => {
            if t.state.get() != State::Stopped || t.suspended.get() {
                return Err(Status::Busy);
            }
            if a.w(0) >= layout::USER_END || a.w(1) >= layout::USER_END {
                return Err(Status::OutOfRange);
            }
            t.regs.gpr.iter().for_each(|r| r.set(0));
            t.set(reg::RSP, a.w(1));
            t.set(reg::RDI, a.w(2));
            t.go_on_at(a.w(0), 0);
            t.faulted.set(false);
            t.started.set(true);
            sched::make_ready(t.home(), o);
        }
        op::thread::SUSPEND => {
            let home = t.home();
            t.suspended.set(true);
            if matches!(
                t.state.get(),
                State::Ready | State::Receiving | State::Waiting
            ) {
                let waiting = t.state.get() != State::Ready;
                ipc::leave(home, o);
                // Nothing is queued that cannot run.
                if let Some(b) = t.budget.get() {
                    home.ready.remove(b);
                }
                if waiting {
                    t.finish(Status::Timeout);
                }
                t.state.set(State::Stopped);
                if home.current.get() == Some(o) {
                    home.reschedule.set(true);
                }
            }
        }
        op::thread::RESUME => {
            let stopped = t.suspended.replace(false) && t.state.get() == State::Stopped;
            if stopped && t.started.get() {
                t.faulted.set(false);
                sched::make_ready(t.home(), o);
            }
        }
        op::thread::READ_REGS => {
            let out = &a.t.get().utcb().0[PAYLOAD_WORD..];
            let regs = t.regs.gpr.iter().chain([&t.regs.rip, &t.regs.rflags]);
            out.iter().zip(regs).for_each(|(o, r)| o.set(r.get()));
            let state = match t.state.get() {
                _ if t.faulted.get() => thread_state::FAULTED,
                State::Stopped => thread_state::STOPPED,
                State::Ready => thread_state::READY,
                State::Queued | State::Calling => thread_state::CALLING,
                State::Receiving | State::Waiting => thread_state::WAITING,
            };
            let call = t.caller.get().map_or([0; 6], |c| ipc::pending(c.get()));
            let rest = out[ThreadRegs::WORDS..].iter();
            rest.zip(call).for_each(|(o, w)| o.set(w));
            let serving = u64::from(t.caller.get().is_some());
            a.payload.set((ThreadRegs::WORDS + call.len()) * 8);
            return a.words([state, serving, 0, 0]);
        }
        op::thread::WRITE_REGS => {
            // A faulted thread waits for its supervisor's answer; one that calls for itself is not to be changed.
            let faulted = t.faulted.get()
                && t.resume.get() == Resume::Interrupt
                && matches!(t.state.get(), State::Queued | State::Calling);
            refuse_if(!faulted && t.state.get() != State::Stopped, Status::Busy)?;
            let input = &a.t.get().utcb().0[PAYLOAD_WORD..];
            refuse_if(input[16].get() >= layout::USER_END, Status::OutOfRange)?;
            let (gpr, flags) = (t.regs.gpr.iter(), input[17].get() & 0xcd5);
            gpr.zip(input).for_each(|(r, i)| r.set(i.get()));
            t.go_on_at(input[16].get(), flags);
        }
        op::thread::BIND_EVENT => t.event.set(a.keep::<Notification>(a.w(0), SEND)?),
        _ => return Err(Status::BadOperation),
    }
    NONE
}

/// The caller has moved itself to another processor, where it goes on with the answer.
fn answer_elsewhere(t: &Thread) {
    t.set(reg::RSI, 0);
    t.finish(Status::Ok);
}

/// As for [`thread`], the Budget's processor is stopped from the beginning.
#[inline(never)]
pub fn budget(a: &Args, cap: &Cap) -> Answer {
    let b = cap.typed::<Budget>(CONTROL)?;
    a.op.stop_for(1 << b.cpu.get());
    match a.tag().label() {
        op::budget::CONFIGURE => {
            let to = a.obj::<CpuObject>(a.w(0), CONTROL)?.get().online()?;
            Budget::check(a.w(1), a.w(2), a.w(3))?;
            let from = b.home();
            a.op.stop_for(1 << to.number);
            b.move_to(to)?;
            sched::charge(to);
            b.configure(a.w(1), a.w(2), a.w(3), arch::now());
            if from.number != to.number && b.owner.get() == Some(a.t) {
                answer_elsewhere(a.t.get());
            }
            NONE
        }
        op::budget::STAT => {
            sched::charge(b.home());
            a.words([
                b.used.get(),
                u64::from(b.priority.get()),
                b.budget.get(),
                b.period.get(),
            ])
        }
        op::budget::BIND_EVENT => {
            b.event.set(a.keep::<Notification>(a.w(0), SEND)?);
            NONE
        }
        _ => Err(Status::BadOperation),
    }
}
