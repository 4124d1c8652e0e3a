//! A 16-byte FIFO in one integer: nothing to index, cheap to store in a state page.

/// Bytes that a 16550A's FIFO holds.
pub const DEPTH: u8 = 16;

/// The oldest byte is the lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fifo {
    bytes: u128,
    len: u8,
}

impl Fifo {
    /// From stored words; `None` if they are not what [`Fifo::words`] gives.
    pub fn from_words(low: u64, high: u64, len: u8) -> Option<Self> {
        let bytes = u128::from(high) << 64 | u128::from(low);
        let beyond = bytes.checked_shr(u32::from(len) * 8).unwrap_or(0);
        (len <= DEPTH && beyond == 0).then_some(Self { bytes, len })
    }

    /// The content as two words, lower first.
    pub fn words(self) -> (u64, u64) {
        (self.bytes as u64, (self.bytes >> 64) as u64)
    }

    pub fn len(self) -> u8 {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Appends a byte; false if there is no room.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.len >= DEPTH {
            return false;
        }
        self.bytes |= u128::from(byte) << (u32::from(self.len) * 8);
        self.len += 1;
        true
    }

    pub fn pop(&mut self) -> Option<u8> {
        if self.len == 0 {
            return None;
        }
        let byte = self.bytes as u8;
        self.bytes >>= 8;
        self.len -= 1;
        Some(byte)
    }
}
