//! Whose RAM is whose: runs of physical pages, taken and given back.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a large page; runs for guests begin at multiples of it, so that the kernel can map them with large pages.
pub const LARGE: u64 = 2 << 20;
/// The same of one that is larger still.
pub const HUGE: u64 = 1 << 30;
/// Most runs that [`Ram::take_many`] makes a whole of.
pub const MAX_RUNS: usize = 16;

/// A run of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First physical address.
    pub phys: u64,
    /// Bytes.
    pub len: u64,
}

/// A range that the kernel gave: runs are parts of one.
#[derive(Clone, Copy, Debug)]
struct Source {
    phys: u64,
    len: u64,
    slot: u32,
    /// Where the Memory in that slot begins: not after `phys`.
    origin: u64,
}

/// All RAM that root has.
#[derive(Clone, Debug, Default)]
pub struct Ram {
    sources: Vec<Source>,
    /// Free runs: first address to length. Runs of one source are never adjacent.
    free: BTreeMap<u64, u64>,
    /// What has been used before, and so may hold what another must not see: first address to end.
    used: BTreeMap<u64, u64>,
}

impl Ram {
    /// Adds a range that the kernel gave in slot `slot`.
    pub fn add(&mut self, phys: u64, len: u64, slot: u32) {
        let end = phys.saturating_add(len) / PAGE * PAGE;
        let origin = phys;
        // An address that cannot be rounded up has no page after it.
        let phys = phys.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        if phys < end {
            let len = end - phys;
            self.sources.push(Source {
                phys,
                len,
                slot,
                origin,
            });
            self.free.insert(phys, len);
        }
    }

    /// Takes a run of `len` bytes (rounded up to pages) at a multiple of `align` (a power of two): out of the smallest
    /// free run that will do.
    pub fn take(&mut self, len: u64, align: u64) -> Option<Run> {
        let len = len.max(1).checked_next_multiple_of(PAGE)?;
        let fit = |(&at, &size): (&u64, &u64)| {
            let start = at.checked_next_multiple_of(align.max(PAGE))?;
            let end = start.checked_add(len)?;
            (end <= at + size).then_some((size, at, start))
        };
        let (size, at, start) = self.free.iter().filter_map(fit).min()?;
        self.free.remove(&at);
        if start > at {
            self.free.insert(at, start - at);
        }
        let rest = at + size - (start + len);
        if rest > 0 {
            self.free.insert(start + len, rest);
        }
        Some(Run { phys: start, len })
    }

    /// Takes `len` bytes (rounded up to pages) in at most [`MAX_RUNS`] runs, each at a multiple of [`HUGE`] or [`LARGE`] when it is
    /// that long, if there is one: for guests, whose memory need not be in one piece. Nothing is taken on failure.
    pub fn take_many(&mut self, len: u64) -> Option<Vec<Run>> {
        let mut left = len.max(1).checked_next_multiple_of(PAGE)?;
        let mut runs = Vec::new();
        while left > 0 {
            let whole = [HUGE, LARGE].map(|size| (self.largest(size).min(left), size));
            let fits = |&(want, size): &(u64, u64)| left >= size && want > 0;
            let small = (left, if left < LARGE { PAGE } else { LARGE });
            let (want, align) = whole.into_iter().find(fits).unwrap_or(small);
            match self.take(want, align).filter(|_| runs.len() < MAX_RUNS) {
                Some(run) => {
                    left -= run.len;
                    runs.push(run);
                }
                None => {
                    for run in runs {
                        self.give_untouched(run);
                    }
                    return None;
                }
            }
        }
        Some(runs)
    }

    /// Bytes of the largest free run of whole pages of this size.
    fn largest(&self, page: u64) -> u64 {
        let whole = |(&at, &size): (&u64, &u64)| {
            let start = at.checked_next_multiple_of(page)?;
            Some((at + size).checked_sub(start)? / page * page)
        };
        self.free.iter().filter_map(whole).max().unwrap_or(0)
    }

    /// Gives a run back; whoever gets it next must clear it.
    pub fn give(&mut self, run: Run) {
        self.give_untouched(run);
        insert_joined(&mut self.used, run.phys, run.phys + run.len);
    }

    fn give_untouched(&mut self, run: Run) {
        let source = |phys: u64| {
            self.sources
                .iter()
                .position(|s| phys.wrapping_sub(s.phys) < s.len)
        };
        let (mut at, mut len) = (run.phys, run.len);
        let before = self.free.range(..at).next_back().map(|(a, l)| (*a, *l));
        if let Some((a, l)) = before.filter(|(a, l)| a + l == at && source(*a) == source(at)) {
            self.free.remove(&a);
            (at, len) = (a, len + l);
        }
        let end = at + len;
        if let Some(l) = self
            .free
            .get(&end)
            .copied()
            .filter(|_| source(end) == source(at))
        {
            self.free.remove(&end);
            len += l;
        }
        self.free.insert(at, len);
    }

    /// Whether some of the run has been used before.
    #[must_use]
    pub fn was_used(&self, run: Run) -> bool {
        let before = self.used.range(..run.phys + run.len).next_back();
        before.is_some_and(|(_, end)| *end > run.phys)
    }

    /// The slot of the range that the run is a part of, and its offset there.
    #[must_use]
    pub fn place(&self, run: Run) -> Option<(u32, u64)> {
        let source = self
            .sources
            .iter()
            .find(|s| run.phys.wrapping_sub(s.phys) < s.len)?;
        Some((source.slot, run.phys - source.origin))
    }

    /// Bytes free.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }
}

/// Adds a range to a set of ranges (first to end), joining those that touch it.
fn insert_joined(set: &mut BTreeMap<u64, u64>, mut start: u64, mut end: u64) {
    while let Some((s, e)) = set.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
        if e < start {
            break;
        }
        set.remove(&s);
        (start, end) = (start.min(s), end.max(e));
    }
    set.insert(start, end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ram() -> Ram {
        let mut ram = Ram::default();
        ram.add(0x10_0800, 0x2_0000, 20);
        ram.add(0x100_0000, 64 << 20, 21);
        ram.add(0x500_0000, 1 << 20, 22);
        ram
    }

    #[test]
    fn odd_ends_are_left_out() {
        let mut r = Ram::default();
        r.add(0x1001, 0x1ffe, 1);
        assert_eq!(r.free_bytes(), 0);
        r.add(0x1fff, 0x1002, 1);
        assert_eq!(
            r.take(1, PAGE),
            Some(Run {
                phys: 0x2000,
                len: 0x1000
            })
        );
    }

    #[test]
    fn smallest_fit_and_place() {
        let mut r = ram();
        let small = r.take(0x3000, PAGE).unwrap();
        assert_eq!(small.phys, 0x10_1000);
        assert_eq!(r.place(small), Some((20, 0x800)));
        let large = r.take(4 << 20, LARGE).unwrap();
        assert_eq!((large.phys % LARGE, r.place(large)), (0, Some((21, 0))));
        assert_eq!(r.take(1 << 40, PAGE), None);
        assert_eq!(r.take(u64::MAX, PAGE), None);
    }

    #[test]
    fn what_was_used_is_known() {
        let mut r = ram();
        let a = r.take(0x4000, PAGE).unwrap();
        assert!(!r.was_used(a));
        r.give(a);
        let b = r.take(0x2000, PAGE).unwrap();
        assert!(r.was_used(b));
        assert!(!r.was_used(Run {
            phys: a.phys + a.len,
            len: 0x1000
        }));
        assert!(r.was_used(Run {
            phys: a.phys + a.len - 0x1000,
            len: 0x5000
        }));
    }

    #[test]
    fn neighbouring_sources_stay_apart() {
        let mut r = Ram::default();
        r.add(0x10_0000, 0x1000, 1);
        r.add(0x10_1000, 0x1000, 2);
        let (a, b) = (r.take(1, PAGE).unwrap(), r.take(1, PAGE).unwrap());
        r.give(a);
        r.give(b);
        assert_eq!(
            r.take(0x2000, PAGE),
            None,
            "a run must be part of one Memory"
        );
    }

    #[test]
    fn a_guest_in_pieces() {
        let mut r = Ram::default();
        r.add(0x20_0000, 3 << 20, 1);
        r.add(0x80_0000, 5 << 20, 2);
        let runs = r.take_many((6 << 20) + 0x3000).unwrap();
        assert_eq!(runs.iter().map(|r| r.len).sum::<u64>(), (6 << 20) + 0x3000);
        assert_eq!(
            runs[0],
            Run {
                phys: 0x80_0000,
                len: 4 << 20
            }
        );
        let before = r.free_bytes();
        assert_eq!(r.take_many(64 << 20), None);
        assert_eq!(r.free_bytes(), before);
    }

    #[test]
    fn a_large_guest_begins_where_its_largest_pages_do() {
        let mut r = Ram::default();
        r.add(0x10_0000, (3 << 30) - 0x20_0000, 1);
        r.add(4 << 30, 1 << 30, 2);
        let lens = |runs: &[Run]| runs.iter().map(|r| (r.phys, r.len)).collect::<Vec<_>>();
        // The whole of what is aligned first, then the rest, in smaller pages.
        let runs = r.take_many(0x6000_0000).unwrap();
        assert_eq!(lens(&runs), [(4 << 30, 1 << 30), (0x20_0000, 0x2000_0000)]);
        let runs = r.take_many(0x4020_0000).unwrap();
        assert_eq!(lens(&runs), [(1 << 30, 1 << 30), (0x2020_0000, 0x20_0000)]);
        // There is none: in pages of 2 MiB.
        let runs = r.take_many(0x5000_0000).unwrap();
        assert!(runs.iter().all(|r| r.phys % LARGE == 0));
        assert_eq!(runs.iter().map(|r| r.len).sum::<u64>(), 0x5000_0000);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_given_twice(ops in proptest::collection::vec((any::<bool>(), 1u64..0x40_0000, 12u32..22), 1..60)) {
            let mut r = ram();
            let all = r.free_bytes();
            let mut held: Vec<Run> = Vec::new();
            for (take, len, shift) in ops {
                if take {
                    if let Some(run) = r.take(len, 1 << shift) {
                        prop_assert_eq!(run.phys % (1 << shift), 0);
                        prop_assert!(held.iter().all(|h| run.phys + run.len <= h.phys || h.phys + h.len <= run.phys));
                        prop_assert!(r.place(run).is_some());
                        held.push(run);
                    }
                } else if let Some(run) = held.pop() {
                    r.give(run);
                }
                prop_assert_eq!(r.free_bytes() + held.iter().map(|h| h.len).sum::<u64>(), all);
            }
            for run in held.drain(..) {
                r.give(run);
            }
            prop_assert_eq!(r.free.len(), 3);
        }
    }
}
