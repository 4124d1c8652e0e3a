//! A virtio entropy source (virtio 1.2, 5.4) for one guest: its queue is filled with random bytes.
//!
//! Job: a generator ([`entropy`]) behind a virtio PCI device's registers and one queue ([`server`]), which `virtio` has for all models.
//! Place: behind the routed I/O BAR that the VMM describes as a PCI function, with the guest's memory mapped, an interrupt page and a
//! state page. Trust: registers, rings and descriptors are the guest's and hostile; what makes no sense ends in `DEVICE_NEEDS_RESET`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod entropy;
pub mod server;
#[cfg(test)]
mod tests;
