//! Endpoints: whoever is in a queue says so.

use super::Endpoint;
use crate::checker::{Checked, Tally, count, ensure, live};
use crate::list::check::walk;
use crate::mem::Obj;
use crate::object::thread::State;

/// Checks one.
pub fn check(e: Obj<Endpoint>, tally: &Tally) -> Checked {
    let at = e.addr();
    for (cpu, q) in (0..).zip(&e.queues) {
        let callers = walk(&q.callers, at, live, |t| {
            let ok =
                t.state.get() == State::Queued && t.endpoint.get() == Some(e) && t.cpu.get() == cpu;
            ensure(ok, "who is queued at an Endpoint says so", at, t.addr())
        })?;
        let receivers = walk(&q.receivers, at, live, |t| {
            let ok = t.state.get() == State::Receiving
                && t.endpoint.get() == Some(e)
                && t.cpu.get() == cpu;
            ensure(ok, "who waits at an Endpoint says so", at, t.addr())
        })?;
        ensure(
            callers == 0 || receivers == 0,
            "no call waits where somebody waits for one",
            at,
            cpu.into(),
        )?;
        count(&tally.callers[1], callers);
        count(&tally.receivers[1], receivers);
    }
    Ok(())
}
