//! Notifications: a word of pending bits that anyone with the right may set and one thread waits for.
//!
//! Bits are set from any processor. Whoever waits for them does so on the Notification's home processor, which alone looks at
//! `waiter` and `bound`; a signal from elsewhere sets the bits and puts the Notification into the home's mailbox. The home changes only
//! while the other processors are stopped.

use super::{Header, Pool, Thread, object, pool::pool_of};
use crate::arch::Cpu;
use crate::mail::{Letter, Mail};
use crate::mem::Obj;
use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use ipc_schema::abi::{Kind, Status, Syscall};

/// A Notification.
#[repr(C)]
#[derive(Default)]
pub struct Notification {
    header: Header,
    /// Bits set and not yet taken.
    pub bits: AtomicU64,
    /// The thread whose `reply_recv` and `run` it ends.
    pub bound: Cell<Option<Obj<Thread>>>,
    /// The thread in `wait`.
    pub waiter: Cell<Option<Obj<Thread>>>,
    /// Number of the processor where both of these are.
    pub home: Cell<u32>,
    letter: Letter<Notification>,
}
object!(Notification, Kind::Notification);
impl Mail for Notification {
    fn letter(&self) -> &Letter<Self> {
        &self.letter
    }
}

impl Notification {
    /// One with no bits set, at home on processor `home`.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool, home: u32) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            home: Cell::new(home),
            ..Self::default()
        })
    }

    /// Whether bits are pending.
    #[inline(always)]
    pub fn pending(&self) -> bool {
        self.bits.load(Ordering::Relaxed) != 0
    }

    /// Sets bits.
    #[inline(always)]
    pub fn add(&self, bits: u64) {
        self.bits.fetch_or(bits, Ordering::Release);
    }

    /// Takes all bits.
    #[inline(always)]
    pub fn take(&self) -> u64 {
        if self.pending() {
            self.bits.swap(0, Ordering::Acquire)
        } else {
            0
        }
    }

    /// Takes all bits, of which there are some as a rule.
    #[inline(always)]
    pub fn take_now(&self) -> u64 {
        self.bits.swap(0, Ordering::Acquire)
    }

    /// Its home becomes processor `home`. The other processors are stopped if that is a change. Who waits for it elsewhere makes its
    /// system call again.
    pub fn move_to(&self, home: u32) {
        if let Some(t) = self.waiter.get()
            && t.cpu.get() != home
        {
            crate::ipc::leave(t.home(), t);
            t.restart(Syscall::Wait);
            crate::sched::make_ready(t.home(), t);
        }
        self.home.set(home);
    }

    /// Ends it: a waiter gets `Dead`. The other processors are stopped.
    pub fn destroy(&self) {
        if let Some(t) = self.waiter.get() {
            let cpu = t.home();
            crate::ipc::leave(cpu, t);
            crate::ipc::give_up(cpu, t, Status::Dead);
        }
        if let Some(t) = self.bound.take() {
            t.bound.set(None);
        }
        if self.letter.linked() {
            Cpu::all()
                .iter()
                .for_each(|c| c.mail.remove(NonNull::from(self)));
        }
        pool_of(&self.header).free_object(Obj::of(self));
    }
}
