//! Driver of a real virtio block device: the machine's second disk, shared out by partitions.
//!
//! Job: answers device models of disks ([`ipc_schema::disk`]) out of the partition that each of them has. Place: one server, which holds
//! the function's registers, its interrupt, and memory that the device reaches; its clients' pages are mapped here too, for their
//! addresses' sake: no byte of a guest is copied or looked at. Trust: no client, and of the device only that it reaches no other memory
//! than it is told: there is no IOMMU in the way yet, and the log says so at each start. What it answers is checked: a device that answers
//! nonsense is reset, by this server's death.
//!
//! A successor resets the device, and then asks its clients for everything that was not answered: it needs nothing of its predecessor.
//!
//! Sources: Virtual I/O Device 1.2 (2.7 split virtqueues, 4.1 PCI, 5.2 block devices); UEFI 2.10, 5 (GUID partition table).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod client;
pub mod gpt;
pub mod pci;
pub mod server;

#[cfg(test)]
mod tests;
