//! The device's side of virtio 1.2, for all models.
//!
//! Job: guest memory ([`memory`]), virtqueues ([`split`]), and the registers of a modern PCI device in one I/O BAR ([`pci`]). Place:
//! below each device model; it knows no kernel and no device. Trust: whatever is in guest memory or written to a register is hostile.
//! A ring or chain that makes no sense ends in an [`Error`], which the model answers with [`pci::Transport::needs_reset`]; never in a
//! panic, an endless loop or an access outside the guest's memory.
//!
//! **What a death costs.** A queue publishes in the order in which buffers were made available, whatever the order of completion (a
//! device may always do so). Then the used ring's index, which is in guest memory and outlives the server, says by itself what is done:
//! everything before it was told to the driver, everything from it on was not. A successor begins there, so nothing is lost. What had
//! been carried out but not published is carried out again: the driver still waits for it and has left its buffers to the device, so a
//! read or a write of a disk has the same effect twice, and a packet may be sent twice, as networks may do. The interrupt that was to
//! follow the last publication may have been lost: the successor raises one for each queue. Registers are saved by
//! [`pci::Transport::save`] when they change, which they do not on the data path: a request costs the state page nothing.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

#[allow(
    unsafe_code,
    reason = "guest memory is no Rust object: the one module that reaches it, by checked copies"
)]
pub mod memory;
pub mod pci;
pub mod split;

pub use memory::Memory;
pub use split::{Chain, Split as Queue, Token};

/// What the driver (or, for [`Error::Token`], the model) has done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A buffer or ring is not wholly in the guest's memory.
    Memory,
    /// A ring is misaligned, or its size is none (2.7).
    Ring,
    /// More buffers are available than the queue holds.
    Index,
    /// A descriptor's number is outside its table.
    Descriptor,
    /// A chain is longer than its table, or of more than 2^32 - 1 bytes.
    Length,
    /// A buffer to be read comes after one to be written (2.7.4.2).
    Order,
    /// An indirect table where there may be none, or of a wrong length (2.7.5.3).
    Indirect,
    /// The buffer is not in flight.
    Token,
}
