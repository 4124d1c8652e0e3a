//! Notifications: a word of pending bits that anyone with the right may set and one thread waits for.

use super::{Header, Pool, Thread, object, pool::pool_of};
use crate::arch::Cpu;
use crate::mem::Obj;
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status};

/// A Notification.
#[repr(C)]
pub struct Notification {
    header: Header,
    /// Bits set and not yet taken.
    pub bits: Cell<u64>,
    /// The thread whose `reply_recv` and `run` it ends.
    pub bound: Cell<Option<Obj<Thread>>>,
    /// The thread in `wait`.
    pub waiter: Cell<Option<Obj<Thread>>>,
}
object!(Notification, Kind::Notification);

impl Notification {
    /// One with no bits set.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            bits: Cell::new(0),
            bound: Cell::new(None),
            waiter: Cell::new(None),
        })
    }

    /// Ends it: a waiter gets `Dead`.
    pub fn destroy(&self) {
        let cpu = Cpu::current();
        if let Some(t) = self.waiter.get() {
            crate::ipc::leave(cpu, t);
            crate::ipc::give_up(cpu, t, Status::Dead);
        }
        if let Some(t) = self.bound.take() {
            t.bound.set(None);
        }
        pool_of(&self.header).free_object(Obj::of(self));
    }
}
