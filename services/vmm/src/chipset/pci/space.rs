//! The registers of one function's configuration space: what they hold, and which of their bits can be written (PCI Local Bus 3.0, 6.1).

/// Doublewords of a configuration space without extended capabilities.
const WORDS: usize = 64;

/// Command and status registers, in a doubleword (6.2.2, 6.2.3).
pub const COMMAND: u8 = 0x04;
/// Header type, in bits 23:16.
const HEADER: u8 = 0x0C;
/// The first base address register (6.2.5).
pub const BAR0: u8 = 0x10;
/// Subsystem vendor and number (6.2.4).
const SUBSYSTEM: u8 = 0x2C;
/// Offset of the first capability (6.7).
const CAPABILITIES: u8 = 0x34;
/// Interrupt line and pin (6.2.4).
const INTERRUPT: u8 = 0x3C;
/// Where capabilities may begin: behind the header.
const FIRST_CAPABILITY: u8 = 0x40;

/// Command: the function answers in I/O space.
pub const COMMAND_IO: u32 = 1 << 0;
/// Command: it answers in memory space.
pub const COMMAND_MEMORY: u32 = 1 << 1;
/// Command: it may write to memory, which a message-signalled interrupt is.
pub const COMMAND_MASTER: u32 = 1 << 2;
/// Command: it keeps its interrupt pin silent.
pub const COMMAND_NO_INTX: u32 = 1 << 10;
/// Status, in the upper half: its interrupt is pending, whatever the command register says.
pub const STATUS_INTX: u32 = 1 << 19;
/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u32 = 1 << 20;

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device number of that vendor.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, in bits 23:0.
    pub class: u32,
    /// Subsystem's vendor and number.
    pub subsystem: (u16, u16),
}

/// A configuration space. What nobody has put there reads zeroes and cannot be written.
#[derive(Clone, Debug)]
pub struct Space {
    words: [u32; WORDS],
    writable: [u32; WORDS],
    /// Where the next capability goes, and the register that is to say so.
    next: u8,
    link: u8,
}

impl Space {
    /// A header of type 0, one function, without capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            words: [0; WORDS],
            writable: [0; WORDS],
            next: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        space.define(0, pair(identity.vendor, identity.device), 0);
        space.define(0x08, identity.class << 8 | u32::from(identity.revision), 0);
        space.define(HEADER, 0, 0);
        let (vendor, number) = identity.subsystem;
        space.define(SUBSYSTEM, pair(vendor, number), 0);
        space
    }

    /// Says what the doubleword at `offset` holds, and which bits of it the guest can write.
    pub fn define(&mut self, offset: u8, value: u32, writable: u32) {
        let at = usize::from(offset / 4);
        if let (Some(word), Some(mask)) = (self.words.get_mut(at), self.writable.get_mut(at)) {
            (*word, *mask) = (value, writable);
        }
    }

    /// Gives the function an interrupt pin, INTA, and tells the line that firmware would have written.
    pub fn interrupt(&mut self, line: u8) {
        const INTA: u32 = 1 << 8;
        self.define(INTERRUPT, u32::from(line) | INTA, 0xFF);
    }

    /// Adds a capability: doublewords with their writable bits, the first of which has the number in bits 7:0 and leaves bits 15:8 to
    /// the list. Gives its offset; `None` if there is no room for it.
    pub fn capability(&mut self, words: &[(u32, u32)]) -> Option<u8> {
        let at = self.next;
        let len = u8::try_from(words.len()).ok()?.checked_mul(4)?;
        // Offset 0 ends the list, so the space's last byte stays unused: nobody misses it.
        self.next = at.checked_add(len)?;
        for ((value, writable), offset) in words.iter().zip((at..).step_by(4)) {
            self.define(offset, *value, *writable);
        }
        let shift = if self.link == CAPABILITIES { 0 } else { 8 };
        self.set(self.link, u32::from(at) << shift, 0xFF << shift);
        self.set(COMMAND, STATUS_CAPABILITIES, STATUS_CAPABILITIES);
        self.link = at;
        Some(at)
    }

    /// The doubleword at `offset`.
    pub fn get(&self, offset: u8) -> u32 {
        self.words
            .get(usize::from(offset / 4))
            .copied()
            .unwrap_or(0)
    }

    /// Sets those bits of the doubleword at `offset` that are in `mask`, whoever may write them.
    pub fn set(&mut self, offset: u8, value: u32, mask: u32) {
        if let Some(word) = self.words.get_mut(usize::from(offset / 4)) {
            *word = *word & !mask | value & mask;
        }
    }

    /// Writes as the guest: only what it can write, of what is in `mask`. Gives the bits that have changed.
    pub fn write(&mut self, offset: u8, value: u32, mask: u32) -> u32 {
        let writable = self.writable.get(usize::from(offset / 4));
        let was = self.get(offset);
        self.set(offset, value, mask & writable.copied().unwrap_or(0));
        was ^ self.get(offset)
    }
}
