//! A virtio entropy source (virtio 1.2, 5.4) for one guest: its queue is filled with random bytes.
//!
//! Job: the registers of a modern virtio-pci device ([`registers`]), one split virtqueue ([`queue`]), and a generator ([`entropy`]).
//! Place: behind the routed I/O BAR that the VMM describes as a PCI function, with the guest's memory mapped, an interrupt page and a
//! state page ([`server`]). Trust: registers, rings and descriptors are the guest's and hostile: every address is checked by
//! [`Memory`], every chain is bounded, and what makes no sense ends in `DEVICE_NEEDS_RESET`.
//!
//! Requests are served in order and one at a time, so that the used ring's index, which is in the guest's memory, says how many there
//! were: a successor needs to know no more than the registers.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod entropy;
pub mod queue;
pub mod registers;
pub mod server;
#[cfg(test)]
mod tests;

/// The guest's memory. `None`: some of it is not there.
pub trait Memory {
    /// Copies from guest-physical `gpa`. A naturally aligned integer is read at once.
    fn read(&self, gpa: u64, to: &mut [u8]) -> Option<()>;
    /// Copies to guest-physical `gpa`. A naturally aligned integer is written at once.
    fn write(&self, gpa: u64, from: &[u8]) -> Option<()>;
    /// Orders what was written before what is read next, as the guest's processors see it.
    fn fence(&self);
}
