//! What is compared before and after a case.

use ipc_schema::abi::layout::slot;
use ipc_schema::abi::{Kind, Status, op};

use super::Kit;
use crate::kernel::ask;

/// Figures that nothing refused may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pool: [u64; 4],
    own_pool: [u64; 4],
    thread: [u64; 4],
    budget: [u64; 4],
    memory: [u64; 4],
    irq: [u64; 4],
}

impl Figures {
    /// Without this server's own Pool, which pays for parts of the RAM.
    #[must_use]
    pub const fn without_own_pool(self) -> Self {
        Self {
            own_pool: [0; 4],
            ..self
        }
    }
}

impl Kit {
    /// The figures now.
    pub fn figures(&self) -> Result<Figures, Status> {
        let on = |kind, label| ask(self.live(kind), label, [0; 4]);
        let [_, priority, budget, period] = on(Kind::Budget, op::budget::STAT)?;
        Ok(Figures {
            pool: on(Kind::Pool, op::pool::STAT)?,
            own_pool: ask(u64::from(slot::POOL), op::pool::STAT, [0; 4])?,
            thread: on(Kind::Thread, op::thread::READ_REGS)?,
            budget: [0, priority, budget, period],
            memory: on(Kind::Memory, op::memory::INFO)?,
            irq: on(Kind::Irq, op::irq::INFO)?,
        })
    }
}
