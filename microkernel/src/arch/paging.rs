//! Page tables of four levels: host (AMD APM vol. 2, 5.3) and nested (15.25), which share the format; extended (Intel SDM vol. 3,
//! 29.3.2), whose entries for tables are the same (READ, WRITE and EXECUTE where the others have PRESENT, WRITE and USER), and whose
//! pages are [`EXTENDED`].

use crate::mem::{self, Global, PAGE, Words};
use crate::object::{Pool, refuse_if, step::Step};
use core::cell::Cell;
use ipc_schema::abi::{Status, rights};

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
        /// A page of 2 MiB or 1 GiB above the lowest level.
        const LARGE = 1 << 7;
        /// Not executable.
        const NO_EXECUTE = 1 << 63;
    }
}

/// Bits of the physical address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The highest level that has pages: 2 (2 MiB), or 3 (1 GiB) where there are such in host and nested tables (boot).
pub static PAGES_TO: Global<Cell<u32>> = Global(Cell::new(2));

/// Access that a mapping gives.
#[derive(Clone, Copy)]
pub struct Access(pub Entry);

impl Access {
    /// From READ, WRITE, EXEC; `base` is [`HOST`] or [`EXTENDED`].
    #[inline(always)]
    #[must_use]
    pub fn new(base: &Base, rights: u32, device: bool) -> Self {
        const { assert!(rights::WRITE == 2 && rights::EXEC == 4) };
        let access = rights & (rights::WRITE | rights::EXEC);
        let access = u64::from(access) | u64::from(!rights & rights::EXEC) << 61;
        Self(Entry::from_bits_retain(access) | base[usize::from(device)])
    }
}

/// What an entry for a page has whatever its rights: of memory, and of device registers.
pub type Base = [Entry; 2];
/// In a host's or nested table. User level's in any case.
pub const HOST: Base = {
    let memory = Entry::PRESENT.union(Entry::USER);
    [memory, memory.union(Entry::UNCACHED)]
};
/// In an extended one: memory type write-back. That it is executable is said by USER; bit 63 says nothing. Guests have no devices.
pub const EXTENDED: Base = [Entry::PRESENT.union(Entry::from_bits_retain(6 << 3)); 2];

/// A page table, by its root.
///
/// An entry for a table says in bits 52 to 61, which the processor leaves alone (APM vol. 2, 5.4), how many entries of that table are
/// present: a table goes back to its Pool with the last of them.
pub struct Table {
    /// Physical address of the root page.
    pub root: u64,
}

/// One more entry in the table that an entry is for.
const ONE: u64 = 1 << 52;
/// All bits of that number.
const COUNT: u64 = 0x3ff << 52;
/// Instructions to clear a page and to look for it.
const NEW_TABLE: u32 = 650;

/// A range of addresses and what is behind it.
#[derive(Clone, Copy)]
pub struct Run {
    /// First address.
    pub va: u64,
    /// First physical address.
    pub phys: u64,
    /// Bytes.
    pub len: u64,
}

/// An entry.
type Word = Cell<u64>;
/// Where there is a place for an entry, or why not.
type Place<'a> = Result<&'a Word, Status>;
/// Whether it is done, or why not.
type Done = Result<(), Status>;

/// A page-table page.
#[inline(always)]
fn table<'a>(phys: u64) -> &'a Words {
    // SAFETY: only called for roots that a Pool gave and for entries that `make` wrote itself: pages of the table's Pool; and at boot for
    // the loader's.
    unsafe { mem::page(phys & ADDRESS) }
}

/// Bytes of a page of level `level`.
#[inline(always)]
#[must_use]
pub const fn size(level: u32) -> u64 {
    1 << (3 + 9 * level)
}

#[inline(always)]
fn index(va: u64, level: u32) -> usize {
    ((va >> (12 + 9 * (level - 1))) & 511) as usize
}

#[inline(always)]
fn present(e: u64) -> bool {
    e & Entry::PRESENT.bits() != 0
}

/// Whether an entry above the lowest level is for a table.
#[inline(always)]
fn is_table(e: u64) -> bool {
    present(e) && e & Entry::LARGE.bits() == 0
}

/// The entry for `va` in the table of level `level` that `e` is for, if it is for one, with something in it: pages have no count.
#[inline(always)]
fn way<'a>(e: &Cell<u64>, va: u64, level: u32) -> Option<&'a Cell<u64>> {
    (e.get() & COUNT != 0).then(|| &table(e.get()).0[index(va, level)])
}

/// `n` entries of a table are gone: `ways` are the entries that lead to it, nearest first. Tables without entries go back to `pool`.
#[inline(always)]
fn release(pool: &Pool, ways: &[&Cell<u64>], mut n: u64) {
    for e in ways {
        let v = e.get().wrapping_sub(n * ONE);
        if v & COUNT != 0 {
            return e.set(v);
        }
        e.set(0);
        pool.give_page(v & ADDRESS);
        n = 1;
    }
}

/// `n` entries from `first` on; more than there are is none.
#[inline(always)]
fn some(t: &Words, first: usize, n: u64) -> &[Cell<u64>] {
    t.0.get(first..first + n as usize).unwrap_or_default()
}

/// Bits of an entry for a large page.
const LARGE_PAGE: u64 = Entry::PRESENT.bits() | Entry::LARGE.bits();

/// Clears up to `n` entries from `first` on, as long as they have all of `bits`; answers how many were present.
#[inline(always)]
fn clear_some(t: &Words, first: usize, n: u64, bits: u64) -> u64 {
    let mut gone = 0;
    for e in some(t, first, n) {
        let v = e.get();
        if v & bits != bits {
            break;
        }
        gone += v & 1;
        e.set(0);
    }
    gone
}

impl Table {
    /// The entry that maps `va`, and the bytes that it maps.
    #[must_use]
    pub fn leaf<'a>(&self, va: u64) -> Option<(&'a Cell<u64>, u64)> {
        let mut at = self.root;
        for level in (1..=4).rev() {
            let e = &table(at).0[index(va, level)];
            at = e.get();
            if !is_table(at) || level == 1 {
                return present(at).then_some((e, size(level)));
            }
        }
        None
    }

    /// The entry that leads to the table of level `level` for `va`, which is made if it is not there.
    ///
    /// # Errors
    /// `Overlap`: a page is there; `NoMemory`: no empty table stays.
    fn make<'a>(&self, pool: &Pool, va: u64, level: u32, step: &Step) -> Place<'a> {
        let e4 = &table(self.root).0[index(va, 4)];
        let e3 = Self::next(pool, e4, va, 3, &[], step)?;
        if level == 3 {
            return Ok(e4);
        }
        let e2 = Self::next(pool, e3, va, 2, &[e4], step)?;
        if level == 2 {
            return Ok(e3);
        }
        Self::next(pool, e2, va, 1, &[e3, e4], step)?;
        Ok(e2)
    }

    /// The entry for `va` in the table of level `level` that `e` is for. The entries `ways` lead to `e`; if there is no memory for a table,
    /// those that are empty go.
    fn next<'a>(
        pool: &Pool,
        e: &Word,
        va: u64,
        level: u32,
        ways: &[&Word],
        step: &Step,
    ) -> Place<'a> {
        if !present(e.get()) {
            step.spent(NEW_TABLE);
            let new = pool.take_page().inspect_err(|_| {
                if ways.first().is_some_and(|w| w.get() & COUNT == 0) {
                    release(pool, ways, 0);
                }
            })?;
            e.set(new | (Entry::PRESENT | Entry::WRITE | Entry::USER).bits());
            if let Some(w) = ways.first() {
                w.set(w.get() + ONE);
            }
        }
        refuse_if(!is_table(e.get()), Status::Overlap)?;
        Ok(&table(e.get()).0[index(va, level)])
    }

    /// Maps one small page, if its place is free and the tables above it are there; answers whether it did.
    #[inline(always)]
    pub fn fill_page(&self, va: u64, phys: u64, access: Access) -> bool {
        let top = &table(self.root).0[index(va, 4)];
        let parent = way(top, va, 3).and_then(|e| way(e, va, 2));
        match parent.and_then(|p| Some((p, way(p, va, 1)?))) {
            Some((p, e)) if !present(e.get()) => {
                e.set(phys | access.0.bits());
                p.set(p.get() + ONE);
                true
            }
            _ => false,
        }
    }

    /// Maps what of `run` has not been mapped: `done` bytes of it have been.
    ///
    /// # Errors
    /// `Again`: there is more to do. `Overlap`, `NoMemory`: it can't go on; what is mapped so far is the caller's to clear.
    #[inline(never)]
    pub fn fill(&self, pool: &Pool, run: Run, access: Access, done: &Word, step: &Step) -> Done {
        while done.get() < run.len {
            let at = done.get();
            let (va, phys, rest) = (run.va + at, run.phys + at, run.len - at);
            let fits = |&l: &u32| (va | phys) & (size(l) - 1) == 0 && rest >= size(l);
            let level = (2..=PAGES_TO.get()).rev().find(fits).unwrap_or(1);
            let shift = size(level).ilog2();
            let first = index(va, level);
            // A table of smaller pages ends where a larger page may begin.
            let n = step.spend_pieces(80, (rest >> shift).min(512 - first as u64))?;
            let parent = self.make(pool, va, level, step)?;
            let entries = some(table(parent.get()), first, n);
            refuse_if(entries.iter().any(|e| present(e.get())), Status::Overlap)?;
            let kind = if level > 1 {
                Entry::LARGE
            } else {
                Entry::empty()
            };
            let mut entry = phys | (access.0 | kind).bits();
            for e in entries {
                e.set(entry);
                entry += 1 << shift;
            }
            parent.set(parent.get() + n * ONE);
            done.set(at + (n << shift));
        }
        Ok(())
    }

    /// Maps one page, for the kernel.
    ///
    /// # Errors
    /// `Overlap`, `NoMemory`. Nothing has changed then.
    pub fn map_page(&self, pool: &Pool, va: u64, phys: u64, access: Access) -> Result<(), Status> {
        let run = Run {
            va,
            phys,
            len: PAGE,
        };
        self.fill(pool, run, access, &Cell::new(0), &Step::endless())
    }

    /// Clears the entries of a range of which `done` bytes have been cleared; tables that become empty go back to `pool`. The caller
    /// flushes the TLBs before the Pool gives anything out again.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    #[inline(always)]
    pub fn clear(&self, pool: &Pool, va: u64, len: u64, done: &Word, step: &Step) -> Done {
        while done.get() < len {
            let (at, rest) = (va + done.get(), len - done.get());
            // Clears entries of level `level` that have all of `bits`: the bytes that are done. `ways` lead to them.
            let clear = |level: u32, bits, from: &Cell<u64>, ways: &[&Cell<u64>]| {
                let first = index(at, level);
                let most = 512 - first as u64;
                let n = step.spend_pieces(80, (rest / size(level)).clamp(1, most))?;
                let gone = clear_some(table(from.get()), first, n, bits);
                release(pool, ways, gone);
                Ok(size(level) * if bits == 0 { n } else { gone })
            };
            let e4 = &table(self.root).0[index(at, 4)];
            let e3 = way(e4, at, 3);
            let e2 = e3.and_then(|e3| way(e3, at, 2));
            let cleared = match (e3, e2, e2.and_then(|e2| way(e2, at, 1))) {
                (Some(e3), Some(e2), Some(_)) => clear(1, 0, e2, &[e2, e3, e4])?,
                // What follows may be in smaller pages.
                (Some(e3), Some(e2), None) if present(e2.get()) => {
                    clear(2, LARGE_PAGE, e3, &[e3, e4])?
                }
                (Some(e3), None, _) if present(e3.get()) => clear(3, LARGE_PAGE, e4, &[e4])?,
                _ => {
                    step.spend(80)?;
                    PAGE
                }
            };
            done.set(done.get() + cleared);
        }
        Ok(())
    }

    /// Clears one page, if it is there.
    pub fn clear_page(&self, pool: &Pool, va: u64) {
        // Endless: it always gets to the end.
        let _ = self.clear(pool, va, PAGE, &Cell::new(0), &Step::endless());
    }

    /// Gives back to `pool` the tables under the first `top` entries of the root (host tables share the upper half with the kernel),
    /// whatever is still in them, and the root. Nothing has to be kept between steps: what is gone is not found again.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy(&self, pool: &Pool, top: usize, step: &Step) -> Result<(), Status> {
        let tables = |t: &'static Words, top: usize| {
            step.spent(3 * top as u32);
            t.0[..top].iter().filter(|e| is_table(e.get()))
        };
        let free = |e: &Cell<u64>, way: Option<&Cell<u64>>| {
            pool.give_page(e.replace(0) & ADDRESS);
            if let Some(w) = way {
                w.set(w.get() - ONE);
            }
            step.spend(60)
        };
        for e4 in tables(table(self.root), top) {
            for e3 in tables(table(e4.get()), 512) {
                for e2 in tables(table(e3.get()), 512) {
                    free(e2, Some(e3))?;
                }
                free(e3, Some(e4))?;
            }
            free(e4, None)?;
        }
        pool.give_page(self.root);
        Ok(())
    }

    /// The physical address behind `va`, and its entry.
    #[must_use]
    pub fn translate(&self, va: u64) -> Option<(u64, Entry)> {
        let (e, size) = self.leaf(va)?;
        let phys = (e.get() & ADDRESS & !(size - 1)) | (va & (size - 1));
        Some((phys, Entry::from_bits_truncate(e.get())))
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/paging.rs"]
pub(crate) mod check;
