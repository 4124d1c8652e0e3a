//! A virtio console (virtio 1.2, 5.3) for one guest: its ports lead to the operator, by the manager's channels.
//!
//! Job: bytes go from each port's transmit queue into a ring that the manager reads, and from a ring that it writes into the port's receive
//! queue ([`port`]); what ports there are, what they are called and how large the operator's window is is told by control messages
//! ([`control`]) or, to a driver without several ports, by the configuration. Place: behind the routed I/O BAR that the VMM describes as a
//! PCI function, with the guest's memory, an interrupt page, a state page and two rings a port. Trust: registers, queues and control
//! messages are the guest's, the rings are shared with the manager: all hostile. What makes no sense in a queue ends in
//! `DEVICE_NEEDS_RESET`; a message that makes none is ignored.
//!
//! **No byte is lost and none comes twice**, whenever the server dies. Bytes cross between two places that cannot be changed at once: a queue
//! in the guest's memory and a ring. So where both will be is committed to the state page first, with everything else ([`server`] says
//! how); then both are published. A death before the commit means that nothing was seen of what was done; after it, the successor
//! publishes. A buffer of the guest's that is longer than the ring has room stays in its queue, with the number of its bytes that have
//! left.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod control;
pub mod port;
pub mod server;
#[cfg(test)]
mod tests;

/// Feature bits of a console (5.3.3).
pub mod feature {
    /// There are columns and rows.
    pub const SIZE: u64 = 1;
    /// There may be several ports, and there are control queues.
    pub const MULTIPORT: u64 = 1 << 1;
    /// A byte can be written without a queue.
    pub const EMERG_WRITE: u64 = 1 << 2;
}

/// The size of the operator's window, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Size {
    /// As the manager leaves it beside a ring: 0, and a size of nothing, when nobody has said it.
    #[must_use]
    pub const fn from_note(note: u32) -> Self {
        Self {
            columns: note as u16,
            rows: (note >> 16) as u16,
        }
    }

    /// The same as a word.
    #[must_use]
    pub const fn note(self) -> u32 {
        self.columns as u32 | (self.rows as u32) << 16
    }
}
