//! Ready queues: who is in one says so, and the bitmap knows which have members.

use crate::arch::Cpu;
use crate::checker::{Checked, ensure, live};
use crate::list::check::walk;

/// Checks a processor's queues; answers how many Budgets are in them.
pub fn ready(cpu: &Cpu) -> Checked<u64> {
    let mut all = 0;
    for (p, q) in cpu.ready.queues.iter().enumerate() {
        let n = walk(q, p as u64, live, |b| {
            let ok = b.queued.get() && usize::from(b.priority.get()) == p;
            ensure(
                ok,
                "a Budget is in the queue of its priority",
                b.addr(),
                p as u64,
            )?;
            ensure(
                super::tip(b).is_some(),
                "who is queued can run",
                b.addr(),
                0,
            )
        })?;
        let bit = cpu.ready.bitmap.get() & (1 << p) != 0;
        ensure(
            bit == (n > 0),
            "the bitmap knows which queues have members",
            p as u64,
            n,
        )?;
        all += n;
    }
    Ok(all)
}
