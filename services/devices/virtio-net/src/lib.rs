//! A virtio network card (virtio 1.2, 5.1) for one guest, at a port of the switch.
//!
//! Job: frames go from the guest's transmit queue into its link ([`ipc_schema::link`]), and from the link into the guest's receive queue; each
//! is copied once here. What the sender left to be done (checksum, cutting into segments) goes along, and is done here for a guest that has
//! not said that it takes such frames ([`offload`]). A guest of several processors may have a pair of queues for each ([`flow`]), and it says
//! which frames it wants ([`control`]). Place: behind the routed I/O BAR that the VMM describes as a PCI function, with the guest's
//! memory, an interrupt page, a state page and the link. Trust: registers, rings and frames are the guest's, and the link is the switch's: all
//! hostile. What makes no sense in a queue ends in `DEVICE_NEEDS_RESET`, a frame that makes none is dropped.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod control;
pub mod flow;
pub mod offload;
pub mod patience;
pub mod receive;
pub mod restraint;
pub mod server;
#[cfg(test)]
mod tests;
pub mod transmit;

use virtio::{Error, Memory, Part};

/// Bytes of a network header (5.1.6): there is a number of buffers with `VERSION_1`, merged or not.
pub const NET_HEADER: u32 = 12;

/// Feature bits of a network card (5.1.3).
pub mod feature {
    /// Frames whose checksum the device computes.
    pub const CSUM: u64 = 1;
    /// The driver takes frames whose checksum is not computed.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// There is an address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 yet to be cut into segments.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// As above, over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device cuts TCP over IPv4 into segments.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// As above, over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A frame may fill several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// There is a link state.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The driver can say which frames it wants.
    pub const CTRL_RX: u64 = 1 << 18;
    /// As above, more exactly.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// There are several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The address can be set.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
}

/// A run of guest memory in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

impl Span {
    /// Where a part is.
    #[must_use]
    pub const fn of(Part { gpa, len, .. }: Part) -> Self {
        Self { gpa, len }
    }
}

/// Bytes at an offset of what lies in several runs.
#[inline]
fn gather(memory: &Memory, spans: &[Span], offset: u64, to: &mut [u8]) -> Result<(), Error> {
    let (mut skip, mut rest) = (offset, to);
    for span in spans {
        let there = u64::from(span.len);
        let at = skip.min(there);
        skip -= at;
        let len = rest.len().min((there - at) as usize);
        let (now, after) = rest.split_at_mut(len);
        memory.read(span.gpa + at, now)?;
        rest = after;
    }
    Ok(())
}
