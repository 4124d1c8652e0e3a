//! Where each block of a disk is: kept twice, each word with a checksum of its own, in memory that outlives the process.
//!
//! A word is changed by one store, the first copy before the second, so that a death at any instruction leaves the old place or the new
//! one. A word whose checksum is wrong is mended from the other copy; if both are wrong, that block is lost, and nothing else.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use ipc_schema::disk::{Base, Geometry, MAP_HEADER as HEADER, Place};

/// Words of a copy of the header: a cache line.
const COPY: usize = HEADER / 2;
/// Marks a map that has been begun.
const MAGIC: u64 = u64::from_le_bytes(*b"diskmap\x01");

/// What a map was like when it was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// It was new.
    pub new: bool,
    /// Words that were mended from the other copy.
    pub mended: u32,
    /// Blocks of which both words were wrong.
    pub lost: u32,
}

/// What is known of a block is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// A disk's map, and which of its pages are taken.
pub struct Map<'a> {
    header: &'a [AtomicU64],
    first: &'a [AtomicU64],
    second: &'a [AtomicU64],
    blocks: u32,
    image: u32,
    pages: u32,
    /// A bit a page: taken.
    taken: Vec<u64>,
    free: u32,
    /// Where the search for a free page begins.
    next: usize,
}

/// Mixes bits: SplitMix64's finalizer.
const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// A block's word: its place, and above it a checksum over place and block. Never 0.
const fn seal(block: u32, place: u32) -> u64 {
    let check = mix((block as u64) << 32 | place as u64) | 1 << 63;
    check >> 32 << 32 | place as u64
}

/// The place that a word tells of a block.
fn open(block: u32, word: u64) -> Option<Place> {
    (seal(block, word as u32) == word).then(|| Place::unpack(word as u32))
}

impl<'a> Map<'a> {
    /// Takes a map over, or begins one in zeroed memory. `None`: there are not so many words.
    #[must_use]
    pub fn new(words: &'a [AtomicU64], disk: &Geometry) -> Option<(Self, Report)> {
        let (header, places) = words.split_at_checked(HEADER)?;
        let (first, places) = places.split_at_checked(disk.blocks as usize)?;
        let second = places.get(..disk.blocks as usize)?;
        let taken = alloc::vec![0; (disk.pages as usize).div_ceil(64)];
        let mut map = Self {
            header,
            first,
            second,
            blocks: disk.blocks,
            image: disk.image,
            pages: disk.pages,
            taken,
            free: disk.pages,
            next: 0,
        };
        let report = map.take_over();
        Some((map, report))
    }

    fn take_over(&mut self) -> Report {
        let mut report = Report::default();
        if self.untouched() {
            for block in 0..self.blocks {
                self.put(block, Place::Base(self.base(block)));
            }
            report.new = true;
        }
        // A header that is wrong says only that something was: the places speak for themselves.
        let header = [MAGIC, self.header_sum()];
        for copy in self.header.chunks(COPY) {
            for (cell, word) in copy.iter().zip(header) {
                let old = cell.swap(word, Ordering::Relaxed);
                report.mended += u32::from(!report.new && old != word);
            }
        }
        for block in 0..self.blocks {
            match self.mend(block) {
                Ok(mended) => report.mended += u32::from(mended),
                Err(Damaged) => report.lost += 1,
            }
        }
        report
    }

    fn header_sum(&self) -> u64 {
        let sizes = u64::from(self.blocks) << 32 | u64::from(self.pages);
        mix(mix(sizes) ^ MAGIC ^ u64::from(self.image))
    }

    /// Whether the map was never begun, or somebody died over that before there was anything to lose: there is no header, which follows
    /// when all places are there, and no place but those that a map begins with.
    fn untouched(&self) -> bool {
        let none = self.header.iter().all(|w| w.load(Ordering::Relaxed) == 0);
        let mut places = (0..self.blocks).zip(self.first.iter().zip(self.second));
        none && places.all(|(block, (first, second))| {
            let begins = seal(block, Place::Base(self.base(block)).pack());
            [first, second].iter().all(|word| {
                let word = word.load(Ordering::Relaxed);
                word == 0 || word == begins
            })
        })
    }

    /// What a block is before it is written.
    fn base(&self, block: u32) -> Base {
        if block < self.image {
            Base::Image
        } else {
            Base::Hole
        }
    }

    /// Makes both words of a block one, and counts its page. True if one was wrong.
    fn mend(&mut self, block: u32) -> Result<bool, Damaged> {
        let (Some(one), Some(two)) = (self.word(self.first, block), self.word(self.second, block))
        else {
            return Err(Damaged);
        };
        let places = (self.sound(block, one), self.sound(block, two));
        // Both good and different: the second was still to follow.
        let place = places.0.or(places.1).ok_or(Damaged)?;
        if let Place::Page(page) = place
            && !self.take(page)
        {
            // It is another block's already.
            for copy in [self.first, self.second] {
                if let Some(cell) = copy.get(block as usize) {
                    cell.store(0, Ordering::Relaxed);
                }
            }
            return Err(Damaged);
        }
        if one != two {
            self.put(block, place);
        }
        Ok(places.0.is_none() || places.1.is_none())
    }

    fn word(&self, copy: &[AtomicU64], block: u32) -> Option<u64> {
        copy.get(block as usize).map(|w| w.load(Ordering::Relaxed))
    }

    /// The place that a word tells, if it can be so.
    fn sound(&self, block: u32, word: u64) -> Option<Place> {
        open(block, word).filter(|place| match *place {
            Place::Base(Base::Hole) => true,
            Place::Base(Base::Image) => block < self.image,
            Place::Page(page) => page < self.pages,
            Place::Fresh(..) => false,
        })
    }

    /// Where a block of the disk is.
    #[inline]
    pub fn get(&self, block: u32) -> Result<Place, Damaged> {
        let word = self.word(self.first, block).ok_or(Damaged)?;
        self.sound(block, word).ok_or(Damaged)
    }

    fn put(&self, block: u32, place: Place) {
        let word = seal(block, place.pack());
        for copy in [self.first, self.second] {
            if let Some(cell) = copy.get(block as usize) {
                cell.store(word, Ordering::Release);
            }
        }
    }

    /// A block of the disk is somewhere else from now on; the page that it had is free.
    pub fn set(&mut self, block: u32, place: Place) {
        let old = self.get(block);
        self.put(block, place);
        if let Ok(Place::Page(page)) = old
            && old != Ok(place)
        {
            self.give(page);
        }
    }

    /// Marks a page taken; false if it was, or is not there.
    fn take(&mut self, page: u32) -> bool {
        let Some(word) = self.taken.get_mut(page as usize / 64) else {
            return false;
        };
        let bit = 1 << (page % 64);
        if page >= self.pages || *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.free -= 1;
        true
    }

    /// Takes a free page.
    #[must_use]
    pub fn take_free(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let words = self.taken.len();
        for step in 0..words {
            let at = (self.next + step) % words;
            let word = self.taken.get(at).copied().unwrap_or(u64::MAX);
            if word != u64::MAX {
                let page = at as u32 * 64 + word.trailing_ones();
                // Bits past the last page are never taken.
                if self.take(page) {
                    self.next = at;
                    return Some(page);
                }
            }
        }
        None
    }

    /// Gives a page back.
    pub fn give(&mut self, page: u32) {
        if let Some(word) = self.taken.get_mut(page as usize / 64)
            && *word & 1 << (page % 64) != 0
        {
            *word &= !(1 << (page % 64));
            self.free += 1;
        }
    }

    /// Pages that are free.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.free
    }

    /// Blocks of the disk.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
