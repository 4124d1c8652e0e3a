//! Single words beside the records.

use core::sync::atomic::{AtomicU64, Ordering};

/// A note: 32 bits beside the records that are written by one store, with a check of their own, so often that a record would cost too much
/// (where a packed virtqueue is, before each buffer that is published). What they mean the record of the same kind must say. It is kept
/// twice, in both slots, so that a scribble over one of them costs nothing.
#[derive(Clone, Copy)]
pub struct Note<'a> {
    word: &'a AtomicU64,
    copy: &'a AtomicU64,
    salt: u64,
}

impl<'a> Note<'a> {
    pub(super) const fn new([word, copy]: [&'a AtomicU64; 2], salt: u64) -> Self {
        Self { word, copy, salt }
    }

    fn word(self, value: u32) -> u64 {
        // Any change of the value changes the product, and as good as any its upper half.
        let mixed = (self.salt ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed & !0xFFFF_FFFF | u64::from(value)
    }

    /// Writes it, behind all that was written before. After a death in between the copy has what was written the time before, and nothing
    /// that is to follow has.
    #[inline]
    pub fn set(self, value: u32) {
        let word = self.word(value);
        self.word.store(word, Ordering::Release);
        self.copy.store(word, Ordering::Release);
    }

    /// What was written last; `None` if nothing was, or it is damaged.
    #[must_use]
    pub fn get(self) -> Option<u32> {
        [self.word, self.copy].into_iter().find_map(|cell| {
            let word = cell.load(Ordering::Acquire);
            let value = word as u32;
            (self.word(value) == word).then_some(value)
        })
    }
}
