//! Irq: an interrupt vector of a processor.

use super::Result;
use crate::abi::op::irq;
use crate::ipc::Notification;
use crate::slots::Slot;
use crate::sys::invoke;

/// A capability to an Irq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq(pub Slot);

impl Irq {
    /// The Notification (with its badge) that is signalled at each interrupt.
    pub fn bind(self, notification: Option<Notification>) -> Result<()> {
        let slot = u64::from(notification.map_or(0, |n| n.0));
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, irq::BIND, [slot, 0, 0, 0]) }.map(|_| ())
    }

    /// Its vector.
    pub fn vector(self) -> Result<u64> {
        // SAFETY: asking changes nothing.
        unsafe { invoke(self.0, irq::INFO, [0; 4]) }.map(|w| w[0])
    }
}
