//! The device's side of virtio 1.2, for all models.
//!
//! Job: guest memory ([`memory`]), virtqueues ([`split`], [`packed`]), the registers of a modern PCI device in one I/O BAR ([`pci`]), and the server
//! around a model ([`device`]). Place: below each device model; it knows no kernel and no device. Trust: whatever is in guest memory or
//! written to a register is hostile. A ring or chain that makes no sense ends in an [`Error`], for which the server calls
//! [`pci::Transport::needs_reset`]; never in a panic, an endless loop or an access outside the guest's memory.
//!
//! **What a death costs.** A queue publishes in the order in which buffers were made available, whatever the order of completion (a
//! device may always do so). Then the used ring's index, which is in guest memory and outlives the server, says by itself what is done:
//! everything before it was told to the driver, everything from it on was not. A successor begins there: it answers every buffer.
//!
//! * What had been carried out but not published is carried out again: the driver still waits for it and has left its buffers to the
//!   device, so a read or a write of a disk has the same effect twice, and a packet may be sent twice, as networks may do. (A model that
//!   overwrites what it has read in the same buffer would break this; no virtio device does.)
//! * Input that the model had taken from its back end and put into buffers, but not published, is **lost**: the successor finds those
//!   buffers empty and fills them with what comes next. The guest sees a packet that never arrived (a network may drop one; TCP sends it
//!   again), or characters missing from a console, where nothing sends them again. A model whose input must not be lost lets its back
//!   end keep it until it was published: copy, [`Queue::publish`], and only then release what was read; then the last of it may come
//!   twice instead. An entropy source has no input to lose.
//!   Or it commits the queue's place and its own together before it publishes ([`Queue::position`], [`Queue::resume`]): then neither is
//!   lost nor comes twice, for a commit of its state page each time.
//! * The interrupt that was to follow the last publication may have been lost: the successor raises one for each queue.
//!
//! A packed ring says less of itself than a split one, so that there the place where it goes on is noted in the state page, one word for each
//! buffer ([`packed`]). Registers are saved by [`pci::Transport::save`] when they change, which they do not on the data path.
//!
//! **Why in order.** A split ring names what is in flight only as long as its entries in the available ring last, and the driver may write
//! over an entry as soon as it has a free descriptor, in flight or not: with one slow request and a ring full of quick ones published past
//! it, nothing in memory says any more that the slow one was taken. In order, what is in flight is always `used.idx..avail.idx`, all of it
//! still there. The price is that a request which is complete waits, unpublished, for those before it: work is not held up, only its
//! telling, and never for ever, as no request waits for a later one. A model keeps it low by what it owns: requests that take long
//! (a flush) are rare and are barriers to the guest anyway; each queue has an order of its own, so that a multi-queue device holds up one
//! processor's requests at most.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

mod chain;
pub mod device;
#[allow(
    unsafe_code,
    reason = "guest memory is no Rust object: the one module that reaches it, by checked copies"
)]
pub mod memory;
pub mod packed;
pub mod pci;
mod queue;
pub mod split;
#[cfg(test)]
mod tests;

pub use chain::{Chain, Next, Part, Token};
pub use device::{Device, Model, Server, Signals};
pub use memory::Memory;
pub use queue::Queue;

/// What the driver (or, for [`Error::Token`] and [`Error::Written`], the model) has done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A buffer or ring is not wholly in the guest's memory.
    Memory,
    /// A ring is misaligned, or its size is none (2.7, 2.8).
    Ring,
    /// More buffers are available than the queue holds.
    Index,
    /// A descriptor's number is outside its table.
    Descriptor,
    /// A descriptor is in two chains that are in flight, or twice in one.
    Overlap,
    /// A chain is longer than its table, or of more than 2^32 - 1 bytes.
    Length,
    /// A buffer to be read comes after one to be written (2.7.4.2).
    Order,
    /// An indirect table where there may be none, or of a wrong length (2.7.5.3).
    Indirect,
    /// Where a packed queue goes on is not known: the state page is damaged.
    Place,
    /// The buffer is not in flight.
    Token,
    /// More is said to be written than was handed out to be written.
    Written,
}
