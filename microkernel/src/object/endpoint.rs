//! Endpoints: where servers receive calls; a queue for each processor, so that no two processors meet on the way.

use super::{Header, Object, Pool, Thread, object, pool::pool_of, step::Step};
use crate::arch::{Cpu, MAX_CPUS};
use crate::list::List;
use crate::mem::Obj;
use ipc_schema::abi::{Kind, Status};

/// One processor's part of an Endpoint. At most one of the lists has members.
#[derive(Default)]
pub struct Queue {
    /// Threads waiting for a call.
    pub receivers: List<Thread, 0>,
    /// Threads whose call waits for a receiver.
    pub callers: List<Thread, 0>,
}

/// An Endpoint.
#[repr(C)]
pub struct Endpoint {
    header: Header,
    queues: [Queue; MAX_CPUS],
}
object!(Endpoint, Kind::Endpoint);

impl Endpoint {
    /// An Endpoint with empty queues.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            queues: core::array::from_fn(|_| Queue::default()),
        })
    }

    /// This processor's queue.
    #[inline(always)]
    pub fn queue(&self, cpu: &Cpu) -> &Queue {
        &self.queues[cpu.number as usize % MAX_CPUS]
    }

    /// Ends it: callers in the queue, and receivers, get `Dead`, and so does who comes meanwhile. The other processors are stopped.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy(&self, step: &Step) -> Result<(), Status> {
        self.dies();
        for (q, cpu) in self.queues.iter().zip(Cpu::all()) {
            while let Some(t) = q.callers.first().or(q.receivers.first()) {
                step.spend(200)?;
                crate::ipc::leave(cpu, t);
                crate::ipc::give_up(cpu, t, Status::Dead);
            }
        }
        step.spend(200)?;
        pool_of(&self.header).free_object(Obj::of(self));
        Ok(())
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/endpoint.rs"]
pub(crate) mod check;
