//! Numbers under which the TLB keeps the translations of Spaces (PCIDs: Intel SDM vol. 3, 4.10.1; AMD APM vol. 2, 5.5.1), where a
//! processor has them and INVPCID.
//!
//! What is loaded into CR3 for a Space has its number, and a bit that lets the translations under it stay. The kernel's own table, and
//! Spaces beyond the 4,095th, have number 0, whose translations go with each load. Who takes something out of a Space's table drops what
//! is under its number on the own processor; others that may have it are stopped then, and drop everything before they go on.

use super::{Cpu, invpcid, load_root};
use crate::mem::Global;
use core::cell::Cell;

crate::mem::begins! {
    /// The numbers.
    struct Numbers {
        /// Whether there are any.
        there: Cell<bool> = Cell::new(false),
        /// A bit for each that is in use: all of them while there are none.
        used: [Cell<u64>; 64] = [const { Cell::new(!0) }; 64],
    }
}
static NUMBERS: Global<Numbers> = Global(Numbers::NEW);
/// In CR3: translations stay.
const STAY: u64 = 1 << 63;

impl Numbers {
    /// All but 0 are free.
    fn begin(&self) {
        self.there.set(true);
        self.used.iter().for_each(|w| w.set(0));
        self.used[0].set(1);
    }

    fn take(&self) -> Option<u64> {
        let (i, w) = (0..).zip(&self.used).find(|(_, w)| w.get() != !0)?;
        let bit = w.get().trailing_ones();
        w.set(w.get() | 1 << bit);
        Some(i * 64 + u64::from(bit))
    }

    fn give(&self, n: u64) {
        let w = &self.used[n as usize / 64 % 64];
        w.set(w.get() & !(1 << (n % 64)));
    }
}

/// The processors have them: from now on they are used.
pub fn begin() {
    NUMBERS.begin();
}

/// What is to be loaded for a Space whose table is at `root`.
pub fn tag(root: u64) -> u64 {
    NUMBERS.take().map_or(root, |n| root | STAY | n)
}

/// The Space for which this was loaded is gone.
pub fn untag(loaded: u64) {
    if loaded & STAY != 0 {
        flush_space(loaded);
        NUMBERS.give(loaded & 0xfff);
    }
}

/// Drops the translations of the Space for which this is loaded, on this processor.
pub fn flush_space(loaded: u64) {
    if loaded & STAY != 0 {
        invpcid(1, loaded & 0xfff);
    } else if Cpu::current().root.get() == loaded {
        load_root(loaded);
    }
}

/// Drops all translations of Spaces on this processor.
pub fn flush_spaces() {
    if NUMBERS.there.get() {
        invpcid(3, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_given_once() {
        let numbers = Numbers::NEW;
        assert_eq!((numbers.take(), numbers.there.get()), (None, false));
        numbers.begin();
        let mut all: Vec<_> = core::iter::from_fn(|| numbers.take()).collect();
        all.sort_unstable();
        assert_eq!(all, (1..4096).collect::<Vec<_>>());
        numbers.give(77);
        numbers.give(4095);
        assert_eq!(numbers.take(), Some(77));
        assert_eq!(numbers.take(), Some(4095));
        // That all are in use does not say that there are none: their translations go at stops.
        assert_eq!((numbers.take(), numbers.there.get()), (None, true));
    }

    #[test]
    fn without_numbers_a_table_is_loaded_as_it_is() {
        assert_eq!(tag(0x1000), 0x1000);
        untag(0x1000);
    }
}
