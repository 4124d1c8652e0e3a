//! Pool: kernel memory that its owner paid for.

use super::Result;
use crate::abi::{Kind, Status, op::pool};
use crate::ipc::{Endpoint, Notification};
use crate::object::{Budget, GuestSpace, Space, Thread, Vcpu};
use crate::slots::Slot;
use crate::sys::invoke;

/// A capability to a Pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool(pub Slot);

impl Pool {
    fn create(self, kind: Kind, high: Slot, dest: Slot, w2: u64, w3: u64) -> Result<()> {
        let w0 = kind as u64 | u64::from(high) << 32;
        // SAFETY: creating an object changes no mapping.
        unsafe { invoke(self.0, pool::CREATE, [w0, u64::from(dest), w2, w3]) }.map(|_| ())
    }

    /// A Space with `slots` slots (1 to 1024).
    pub fn create_space(self, dest: Slot, slots: u32) -> Result<Space> {
        self.create(Kind::Space, 0, dest, u64::from(slots), 0)?;
        Ok(Space(dest))
    }

    /// A Thread in `space`, with its UTCB page at `utcb` there.
    pub fn create_thread(self, dest: Slot, space: Space, utcb: u64) -> Result<Thread> {
        self.create(Kind::Thread, 0, dest, u64::from(space.0), utcb)?;
        Ok(Thread(dest))
    }

    /// A Budget.
    pub fn create_budget(self, dest: Slot) -> Result<Budget> {
        self.create(Kind::Budget, 0, dest, 0, 0)?;
        Ok(Budget(dest))
    }

    /// An Endpoint.
    pub fn create_endpoint(self, dest: Slot) -> Result<Endpoint> {
        self.create(Kind::Endpoint, 0, dest, 0, 0)?;
        Ok(Endpoint(dest))
    }

    /// A Notification.
    pub fn create_notification(self, dest: Slot) -> Result<Notification> {
        self.create(Kind::Notification, 0, dest, 0, 0)?;
        Ok(Notification(dest))
    }

    /// A GuestSpace.
    pub fn create_guest_space(self, dest: Slot) -> Result<GuestSpace> {
        self.create(Kind::GuestSpace, 0, dest, 0, 0)?;
        Ok(GuestSpace(dest))
    }

    /// A Vcpu of `guest`, with its state page at `state` in the VMM's Space.
    pub fn create_vcpu(
        self,
        dest: Slot,
        guest: GuestSpace,
        vmm: Space,
        state: u64,
    ) -> Result<Vcpu> {
        self.create(Kind::Vcpu, guest.0, dest, u64::from(vmm.0), state)?;
        Ok(Vcpu(dest))
    }

    /// Free pages, all pages, and Pools that can yet be made of Memory that lives in it.
    pub fn stat(self) -> Result<(u64, u64, u64)> {
        // SAFETY: asking changes nothing.
        unsafe { invoke(self.0, pool::STAT, [0; 4]) }.map(|w| (w[0], w[1], w[2]))
    }

    /// Destroys the Pool and all that was made from it, to the end.
    ///
    /// # Safety
    ///
    /// The caller's own Space, and Memory that it has references into, must not be from this Pool.
    pub unsafe fn destroy(self) -> Result<()> {
        loop {
            // SAFETY: the caller's obligation.
            match unsafe { invoke(self.0, pool::DESTROY, [0; 4]) } {
                Err(Status::Again) => {}
                done => return done.map(|_| ()),
            }
        }
    }
}
