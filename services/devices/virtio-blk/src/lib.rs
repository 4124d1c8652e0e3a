//! A virtio block device (virtio 1.2, 5.2) for one guest: one disk of `store`'s.
//!
//! Job: takes requests out of the queues ([`request`]), asks `store` where the blocks are, makes the one copy between the disk's pages and
//! the guest ([`content`]), and answers ([`server`]). Place: behind the routed I/O BAR that the VMM describes as a PCI function, with the
//! guest's memory and its disk's pages mapped, an interrupt page, a state page, and a channel to `store`. Trust: registers, rings and
//! requests are the guest's and hostile; what makes no sense as a request is refused with a status, what makes none as a ring ends in
//! `DEVICE_NEEDS_RESET`. `store`'s answers are bounded before they are used: a wrong one costs this disk its contents, nothing else.
//!
//! **Deaths.** A request is told to the guest when all of it is done, so what is under way at a death is done again by the successor,
//! which is the same as once: the guest has not been told and has left its buffers alone. A death of `store` is not even noticed.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod config;
pub mod content;
pub mod flight;
pub mod request;
pub mod server;
#[cfg(test)]
mod tests;
