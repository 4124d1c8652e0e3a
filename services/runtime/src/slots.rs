//! Which slots of a server's capability table are free. The kernel only checks; each server chooses.

/// Number of a slot in the server's own capability table.
pub type Slot = u32;

/// Slots that the largest capability table has.
pub const MAX: u32 = 1024;
const WORDS: usize = (MAX / 64) as usize;

/// A set of free slots.
#[derive(Clone, Debug)]
pub struct Slots {
    free: [u64; WORDS],
}

impl Slots {
    /// The slots from `first` on, up to `end` (exclusive, at most [`MAX`]), all free.
    #[must_use]
    pub fn new(first: Slot, end: Slot) -> Self {
        let mut slots = Self { free: [0; WORDS] };
        for slot in first..end.min(MAX) {
            slots.give_back(slot);
        }
        slots
    }

    /// Takes one.
    pub fn take(&mut self) -> Option<Slot> {
        let (i, word) = (0u32..).zip(self.free.iter_mut()).find(|(_, w)| **w != 0)?;
        let bit = word.trailing_zeros();
        *word &= *word - 1;
        Some(i * 64 + bit)
    }

    /// Takes `count` slots in a row, for received capabilities.
    pub fn take_run(&mut self, count: u32) -> Option<Slot> {
        let first = (0..MAX).find(|&s| (0..count).all(|i| self.is_free(s + i)))?;
        for slot in first..first + count {
            self.set(slot, false);
        }
        Some(first)
    }

    /// Makes a slot free again; the capability in it must have been dropped.
    pub fn give_back(&mut self, slot: Slot) {
        self.set(slot, true);
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free.iter().map(|w| w.count_ones()).sum()
    }

    fn is_free(&self, slot: Slot) -> bool {
        let word = self.free.get((slot / 64) as usize);
        word.is_some_and(|w| w & (1 << (slot % 64)) != 0)
    }

    fn set(&mut self, slot: Slot, free: bool) {
        if let Some(word) = self.free.get_mut((slot / 64) as usize) {
            let bit = 1 << (slot % 64);
            *word = if free { *word | bit } else { *word & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_and_singles() {
        let mut slots = Slots::new(16, 100);
        assert_eq!(slots.free(), 84);
        assert_eq!(slots.take(), Some(16));
        assert_eq!(slots.take_run(60), Some(17));
        assert_eq!(slots.take_run(60), None);
        assert_eq!(slots.take(), Some(77));
        slots.give_back(20);
        assert_eq!(slots.take(), Some(20));
        assert_eq!(Slots::new(1000, 5000).take_run(25), None);
    }

    proptest! {
        #[test]
        fn never_twice(ops in proptest::collection::vec(any::<bool>(), 0..500)) {
            let mut slots = Slots::new(1000, MAX);
            let mut held = std::collections::BTreeSet::new();
            for take in ops {
                if take {
                    if let Some(s) = slots.take() {
                        prop_assert!((1000..MAX).contains(&s) && held.insert(s));
                    } else {
                        prop_assert_eq!(held.len(), 24);
                    }
                } else if let Some(s) = held.pop_last() {
                    slots.give_back(s);
                }
                prop_assert_eq!(slots.free() as usize, 24 - held.len());
            }
        }
    }
}
