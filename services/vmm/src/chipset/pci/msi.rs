//! MSI: one message in place of a function's pin (PCI Local Bus 3.0, 6.8.1), for drivers that know no MSI-X.
//!
//! A message is sent for each rise of what the pin would show. So a driver that finds out why and lets it fall again, as it does for a
//! pin, hears of everything: what comes before it has found out it finds, and what comes later is a rise.

use super::msix::Message;
use super::space::Space;

/// Number of the capability.
const CAPABILITY: u32 = 0x05;
/// Message Control, in the upper half of the capability's first doubleword: the function uses MSI, and not its pin.
const ENABLE: u32 = 1 << 16;
/// Message Control: its address has 64 bits. It has one message, and no mask.
const WIDE: u32 = 1 << 23;

/// The capability of a function.
#[derive(Clone, Debug)]
pub struct Msi {
    /// Its offset.
    at: u8,
    pending: bool,
}

impl Msi {
    /// Adds the capability to `space`.
    pub fn new(space: &mut Space) -> Option<Self> {
        // Control, address (of doublewords), its upper half, data.
        let at = space.capability(&[
            (CAPABILITY | WIDE, ENABLE),
            (0, !3),
            (0, u32::MAX),
            (0, 0xFFFF),
        ])?;
        Some(Self { at, pending: false })
    }

    /// Whether the function uses MSI.
    pub fn enabled(&self, space: &Space) -> bool {
        space.get(self.at) & ENABLE != 0
    }

    /// These bits of the doubleword at `offset` have been changed, while the pin would show `level`. True if they are of Message Control.
    pub fn changed(&mut self, space: &Space, offset: u8, bits: u32, level: bool) -> bool {
        if offset != self.at || bits & ENABLE == 0 {
            return false;
        }
        // What has risen before is heard of now, if nobody has found out why.
        self.pending = level && self.enabled(space);
        true
    }

    /// The pin would have risen.
    pub fn signal(&mut self) {
        self.pending = true;
    }

    /// The message, if it is to be sent.
    #[inline]
    pub fn take(&mut self, space: &Space) -> Option<Message> {
        if !self.pending || !self.enabled(space) {
            return None;
        }
        self.pending = false;
        let word = |number: u8| space.get(self.at.saturating_add(4 * number));
        let address = u64::from(word(1)) | u64::from(word(2)) << 32;
        Some((address, word(3)))
    }
}
