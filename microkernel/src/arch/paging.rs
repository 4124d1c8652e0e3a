//! Page tables of four levels: host (AMD APM vol. 2, 5.3) and nested (15.25), which share the format.

use crate::mem::{self, PAGE, Words};
use crate::object::Pool;
use core::cell::Cell;
use ipc_schema::abi::Status;

bitflags::bitflags! {
    /// Bits of a page-table entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Entry: u64 {
        /// Present.
        const PRESENT = 1;
        /// Writable.
        const WRITE = 2;
        /// User level.
        const USER = 4;
        /// Cache disable: uncached device registers.
        const UNCACHED = 1 << 4 | 1 << 3;
        /// A 2 MiB page in the third level.
        const LARGE = 1 << 7;
        /// Not executable.
        const NO_EXECUTE = 1 << 63;
    }
}

/// Bits of the physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bytes of a large page.
pub const LARGE: u64 = 2 << 20;

/// Access that a mapping gives.
#[derive(Clone, Copy)]
pub struct Access(pub Entry);

impl Access {
    /// From READ, WRITE, EXEC.
    #[must_use]
    pub fn new(rights: u32, device: bool) -> Self {
        let mut e = Entry::PRESENT | Entry::USER;
        e.set(Entry::WRITE, rights & ipc_schema::abi::rights::WRITE != 0);
        e.set(
            Entry::NO_EXECUTE,
            rights & ipc_schema::abi::rights::EXEC == 0,
        );
        e.set(Entry::UNCACHED, device);
        Self(e)
    }
}

/// A page table, by its root.
pub struct Table {
    /// Physical address of the root page.
    pub root: u64,
}

/// A page-table page.
fn table<'a>(phys: u64) -> &'a Words {
    // SAFETY: only called for roots that a Pool gave and for entries that `walk` wrote itself: pages of the table's Pool.
    unsafe { mem::page(phys & ADDRESS) }
}

fn index(va: u64, level: u32) -> usize {
    ((va >> (12 + 9 * (level - 1))) & 511) as usize
}

impl Table {
    /// The entry for `va` at `level` (4 to 1), if the tables above it are there.
    fn entry<'a>(&self, va: u64, level: u32) -> Option<&'a Cell<u64>> {
        let mut t = table(self.root);
        let mut l = 4;
        loop {
            let e = &t.0[index(va, l)];
            if l == level {
                return Some(e);
            }
            let v = e.get();
            if v & Entry::PRESENT.bits() == 0 || v & Entry::LARGE.bits() != 0 {
                return None;
            }
            t = table(v);
            l -= 1;
        }
    }

    /// Level of the page that a range is mapped with at `va`: 2 (2 MiB) where address, target and rest allow it.
    fn level(va: u64, phys: u64, rest: u64) -> u32 {
        if (va | phys).is_multiple_of(LARGE) && rest >= LARGE {
            2
        } else {
            1
        }
    }

    /// Makes the tables for a range, and makes sure that nothing is mapped there. `fill` can then not fail.
    ///
    /// # Errors
    /// `Overlap`, `NoMemory`: tables made so far stay, empty.
    pub fn prepare(&self, pool: &Pool, va: u64, phys: u64, len: u64) -> Result<(), Status> {
        let mut done = 0;
        while done < len {
            let level = Self::level(va + done, phys + done, len - done);
            let mut t = table(self.root);
            for l in (level + 1..=4).rev() {
                let e = &t.0[index(va + done, l)];
                if e.get() & Entry::PRESENT.bits() == 0 {
                    let new = pool.take_pages(1)?;
                    e.set(new | (Entry::PRESENT | Entry::WRITE | Entry::USER).bits());
                } else if e.get() & Entry::LARGE.bits() != 0 {
                    return Err(Status::Overlap);
                }
                t = table(e.get());
            }
            // At the last table all its entries of this range are looked at in one go.
            let size = if level == 2 { LARGE } else { PAGE };
            let mut i = index(va + done, level);
            loop {
                let e = &t.0[i];
                if level == 2
                    && e.get() & Entry::PRESENT.bits() != 0
                    && e.get() & Entry::LARGE.bits() == 0
                {
                    // A table left over from small pages: free it if it is empty.
                    if table(e.get()).0.iter().any(|w| w.get() != 0) {
                        return Err(Status::Overlap);
                    }
                    pool.give_pages(e.get() & ADDRESS, 1);
                    e.set(0);
                }
                if e.get() & Entry::PRESENT.bits() != 0 {
                    return Err(Status::Overlap);
                }
                done += size;
                i += 1;
                if i == 512
                    || done >= len
                    || Self::level(va + done, phys + done, len - done) != level
                {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes the entries of a prepared range.
    pub fn fill(&self, va: u64, phys: u64, len: u64, access: Access) {
        let mut done = 0;
        while done < len {
            let level = Self::level(va + done, phys + done, len - done);
            let Some(e) = self.entry(va + done, level) else {
                return;
            };
            let large = if level == 2 { Entry::LARGE.bits() } else { 0 };
            e.set((phys + done) | access.0.bits() | large);
            done += if level == 2 { LARGE } else { PAGE };
        }
    }

    /// Clears the entries of a range; the caller flushes the TLBs.
    pub fn clear(&self, va: u64, len: u64) {
        let mut done = 0;
        while done < len {
            match self.entry(va + done, 2) {
                Some(e) if e.get() & Entry::LARGE.bits() != 0 => {
                    e.set(0);
                    done += LARGE;
                }
                Some(e) if e.get() & Entry::PRESENT.bits() != 0 => {
                    table(e.get()).0[index(va + done, 1)].set(0);
                    done += PAGE;
                }
                // Nothing there (half-prepared): on to the next page.
                _ => done += PAGE,
            }
        }
    }

    /// Gives all table pages back to `pool`: the root, and those under its first `top` entries (host tables share the upper half
    /// with the kernel).
    pub fn destroy(&self, pool: &Pool, top: usize) {
        Self::free_level(pool, self.root, 4, top);
    }

    fn free_level(pool: &Pool, phys: u64, level: u32, entries: usize) {
        for e in &table(phys).0[..entries] {
            let v = e.get();
            if level > 1 && v & Entry::PRESENT.bits() != 0 && v & Entry::LARGE.bits() == 0 {
                Self::free_level(pool, v & ADDRESS, level - 1, 512);
            }
        }
        pool.give_pages(phys & ADDRESS, 1);
    }

    /// Takes one small page of the kernel's own out (boot).
    pub fn forbid(&self, va: u64) {
        if let Some(e) = self.entry(va, 1) {
            e.set(0);
        }
    }

    /// Makes the page that maps `va` uncached, whatever its size.
    pub fn set_uncached(&self, va: u64) {
        for level in [3, 2, 1] {
            if let Some(e) = self.entry(va, level) {
                let v = e.get();
                if v & Entry::PRESENT.bits() != 0 && (level == 1 || v & Entry::LARGE.bits() != 0) {
                    e.set(v | Entry::UNCACHED.bits());
                }
            }
        }
    }

    /// The physical address behind `va`, and its entry.
    #[must_use]
    pub fn translate(&self, va: u64) -> Option<(u64, Entry)> {
        for level in [2, 1] {
            let v = self.entry(va, level)?.get();
            if v & Entry::PRESENT.bits() == 0 {
                return None;
            }
            if level == 1 || v & Entry::LARGE.bits() != 0 {
                let size = if level == 2 { LARGE } else { PAGE };
                return Some((
                    (v & ADDRESS & !(size - 1)) | (va & (size - 1)),
                    Entry::from_bits_truncate(v),
                ));
            }
        }
        None
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/paging.rs"]
pub(crate) mod check;
