//! MSI-X: a function's table of vectors and its pending bits (PCI Local Bus 3.0, 6.8.2).
//!
//! Both are in one memory BAR of a page, which the VMM serves. A vector that is signalled while it is masked stays pending and is sent
//! when it no longer is.

use alloc::vec::Vec;

use super::space::Space;

/// Number of the capability.
const CAPABILITY: u32 = 0x11;
/// Message Control, in the upper half of the capability's first doubleword: all vectors are masked.
const FUNCTION_MASK: u32 = 1 << 30;
/// Message Control: the function uses MSI-X, and not its pin.
const ENABLE: u32 = 1 << 31;
/// Vector Control: this vector is masked.
const MASKED: u32 = 1;
/// Bytes of an entry.
const ENTRY: u32 = 16;
/// Where the pending bits begin.
const PENDING: u32 = 0x800;
/// Bytes of the BAR.
pub const BAR_SIZE: u32 = 0x1000;
/// Most vectors: as many as an interrupt page has.
pub const MAX_VECTORS: u16 = 64;
const _: () = assert!(ENTRY * MAX_VECTORS as u32 <= PENDING);

/// A vector: where its message goes and what it is.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Address, its upper half, data, control.
    words: [u32; 4],
}

/// The table of a function.
#[derive(Clone, Debug)]
pub struct Msix {
    /// Offset of the capability.
    at: u8,
    table: Vec<Entry>,
    pending: u64,
}

/// An interrupt message: address and data.
pub type Message = (u64, u32);

impl Msix {
    /// Adds the capability to `space`, for 1 to [`MAX_VECTORS`] `vectors` in the function's BAR number `bar`.
    pub fn new(space: &mut Space, vectors: u16, bar: u8) -> Option<Self> {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        let control = u32::from(vectors - 1) << 16;
        let bar = u32::from(bar);
        let at = space.capability(&[
            (CAPABILITY | control, ENABLE | FUNCTION_MASK),
            (bar, 0),
            (PENDING | bar, 0),
        ])?;
        // After reset every vector is masked (6.8.2.9).
        let entry = Entry {
            words: [0, 0, 0, MASKED],
        };
        Some(Self {
            at,
            table: alloc::vec![entry; vectors.into()],
            pending: 0,
        })
    }

    /// Whether `offset` is the doubleword of Message Control.
    pub fn is_control(&self, offset: u8) -> bool {
        offset == self.at
    }

    /// Whether the function uses MSI-X.
    pub fn enabled(&self, space: &Space) -> bool {
        space.get(self.at) & ENABLE != 0
    }

    /// The device has signalled these vectors; those that there are none of are ignored.
    #[inline]
    pub fn signal(&mut self, vectors: u64) {
        let there = u64::MAX >> (64 - self.table.len().clamp(1, 64));
        self.pending |= vectors & there;
    }

    /// The next message to be sent, if there is one that nothing holds back.
    #[inline]
    pub fn take(&mut self, space: &Space) -> Option<Message> {
        if self.pending == 0 || space.get(self.at) & (ENABLE | FUNCTION_MASK) != ENABLE {
            return None;
        }
        let mut left = self.pending;
        while left != 0 {
            let number = left.trailing_zeros();
            left &= left - 1;
            let [low, high, data, control] = self.table.get(number as usize)?.words;
            if control & MASKED == 0 {
                self.pending &= !(1 << number);
                return Some((u64::from(high) << 32 | u64::from(low), data));
            }
        }
        None
    }

    /// The doubleword at `offset` of the BAR.
    pub fn read(&self, offset: u32) -> u32 {
        let offset = offset & !3;
        if let Some(at) = offset.checked_sub(PENDING) {
            return match at {
                0 => self.pending as u32,
                4 => (self.pending >> 32) as u32,
                _ => 0,
            };
        }
        let entry = self.table.get((offset / ENTRY) as usize);
        let word = entry.and_then(|entry| entry.words.get((offset % ENTRY / 4) as usize));
        word.copied().unwrap_or(0)
    }

    /// Writes those bits of the doubleword at `offset` of the BAR that are in `mask`.
    pub fn write(&mut self, offset: u32, value: u32, mask: u32) {
        // Addresses are of doublewords; of Vector Control only the mask bit is there.
        const WRITABLE: [u32; 4] = [!3, u32::MAX, u32::MAX, MASKED];
        let number = (offset % ENTRY / 4) as usize;
        let entry = self.table.get_mut((offset / ENTRY) as usize);
        if let Some(word) = entry.and_then(|entry| entry.words.get_mut(number)) {
            let mask = mask & WRITABLE.get(number).copied().unwrap_or(0);
            *word = *word & !mask | value & mask;
        }
    }
}
