//! Places in the ring, and the step from one to the next that publishes a buffer.

use crate::chain::{DESCRIPTOR, WRITE};

/// Flags of a descriptor that say whose it is (2.8.1).
const AVAILABLE: u16 = 1 << 7;
pub(super) const USED: u16 = 1 << 15;

/// A place in the ring as the event suppression structures have it: a descriptor's number and, above it, the wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(pub(super) u16);

pub(super) const WRAP: u16 = 1 << 15;

impl At {
    /// Where both sides begin (2.8.1).
    pub(super) const START: Self = Self(WRAP);

    pub(super) const fn index(self) -> u16 {
        self.0 & !WRAP
    }

    pub(super) const fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// So many descriptors on, at most `size`.
    pub(super) const fn on(self, count: u16, size: u16) -> Self {
        let index = self.index() + count;
        match index.checked_sub(size) {
            Some(index) => Self((self.0 & WRAP ^ WRAP) | index),
            None => Self(self.0 & WRAP | index),
        }
    }

    /// Where the word with length, ID and flags of its descriptor is.
    pub(super) const fn word(self) -> u32 {
        DESCRIPTOR * self.index() as u32 + 8
    }

    /// Whether a descriptor with these flags is available there in this round (2.8.1).
    pub(super) const fn available(self, flags: u16) -> bool {
        flags & (AVAILABLE | USED) == if self.wrap() { AVAILABLE } else { USED }
    }

    /// Flags of one that is used there in this round.
    pub(super) const fn used(self) -> u16 {
        if self.wrap() { AVAILABLE | USED } else { 0 }
    }
}

/// A buffer that was taken and not published: the word of its used descriptor, but that in the place of the flags stand the number of
/// descriptors that it has and, highest, whether it is complete.
#[derive(Clone, Copy, Default)]
pub(super) struct Buffer(u64);

impl Buffer {
    const COMPLETE: u64 = 1 << 63;

    pub(super) const fn new(id: u16, count: u16) -> Self {
        Self((id as u64) << 32 | (count as u64) << 48)
    }

    /// Descriptors of the ring that it has.
    pub(super) const fn count(self) -> u16 {
        ((self.0 & !Self::COMPLETE) >> 48) as u16
    }

    pub(super) const fn is_complete(self) -> bool {
        self.0 & Self::COMPLETE != 0
    }

    pub(super) const fn complete(&mut self, written: u32) {
        self.0 |= written as u64 | Self::COMPLETE;
    }

    /// The word of its used descriptor there (2.8.5).
    pub(super) const fn used(self, at: At) -> u64 {
        let flags = at.used() | if self.0 as u32 != 0 { WRITE } else { 0 };
        self.0 << 16 >> 16 | (flags as u64) << 48
    }
}

/// The step from one place to the next that publishes a buffer.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) from: At,
    pub(super) to: At,
    pub(super) buffer: Buffer,
}

impl Turn {
    /// No buffer yet.
    pub(super) const fn none(at: At) -> Self {
        Self {
            from: at,
            to: at,
            buffer: Buffer(0),
        }
    }

    /// As a word: both places, the buffer's ID, and how much of it is written, up to 64 KiB - 1.
    pub(super) const fn word(self) -> u64 {
        let Buffer(buffer) = self.buffer;
        let written = match buffer as u32 {
            len if len > u16::MAX as u32 => u16::MAX,
            len => len as u16,
        };
        let places = self.from.0 as u64 | (self.to.0 as u64) << 16;
        places | (buffer >> 32 & 0xFFFF) << 32 | (written as u64) << 48
    }

    pub(super) const fn from_word(word: u64) -> Self {
        Self {
            from: At(word as u16),
            to: At((word >> 16) as u16),
            buffer: Buffer(word >> 48 | (word >> 32 & 0xFFFF) << 32),
        }
    }
}

/// Whether `event` is one of the `count` descriptors from `old` on.
pub(super) fn passed(event: At, old: At, count: u32, size: u16) -> bool {
    let lap = if event.wrap() == old.wrap() {
        0
    } else {
        u32::from(size)
    };
    let at = u32::from(event.index()) + lap;
    at.checked_sub(old.index().into())
        .is_some_and(|ahead| ahead < count)
}
