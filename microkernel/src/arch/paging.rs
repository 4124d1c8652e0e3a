//! Page tables of four levels: host (AMD APM vol. 2, 5.3) and nested (15.25), which share the format.

use crate::mem::{self, PAGE, Words};
use crate::object::{Pool, step::Step};
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

/// A page-table page.
#[inline(always)]
fn table<'a>(phys: u64) -> &'a Words {
    // SAFETY: only called for roots that a Pool gave and for entries that `make` wrote itself: pages of the table's Pool.
    unsafe { mem::page(phys & ADDRESS) }
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

/// `n` entries of a table are gone: `ways` are the entries that lead to it, nearest first. Tables without entries go back to `pool`.
#[inline(always)]
fn release(pool: &Pool, ways: &[&Cell<u64>], mut n: u64) {
    for e in ways {
        let v = e.get().wrapping_sub(n * ONE);
        if v & COUNT != 0 {
            return e.set(v);
        }
        e.set(0);
        pool.give_pages(v & ADDRESS, 1);
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
    /// The entry for `va` at `level` (4 to 1), if the tables above it are there.
    fn entry<'a>(&self, va: u64, level: u32) -> Option<&'a Cell<u64>> {
        let mut t = table(self.root);
        let mut l = 4;
        loop {
            let e = &t.0[index(va, l)];
            if l == level {
                return Some(e);
            }
            if !is_table(e.get()) {
                return None;
            }
            t = table(e.get());
            l -= 1;
        }
    }

    /// Level of the page that a range is mapped with at `va`: 2 (2 MiB) where address, target and rest allow it.
    #[inline(always)]
    fn level(va: u64, phys: u64, rest: u64) -> u32 {
        if (va | phys) & (LARGE - 1) == 0 && rest >= LARGE {
            2
        } else {
            1
        }
    }

    /// The table for `va` at `level`, and the entry that leads to it; made if it is not there.
    ///
    /// # Errors
    /// `Overlap`: a large page is there; `NoMemory`: no empty table stays.
    #[inline(always)]
    fn make<'a>(
        &self,
        pool: &Pool,
        va: u64,
        level: u32,
        step: &Step,
    ) -> Result<(&'a Words, &'a Cell<u64>), Status> {
        let mut parent: &Cell<u64> = &table(self.root).0[index(va, 4)];
        if !present(parent.get()) {
            Self::add(pool, parent, &[], step)?;
        }
        let root_entry = parent;
        let mut l = 3;
        loop {
            let t = table(parent.get());
            if l == level {
                return Ok((t, parent));
            }
            let e = &t.0[index(va, l)];
            let v = e.get();
            if !present(v) {
                let above = if l == 3 {
                    &[parent][..]
                } else {
                    &[parent, root_entry]
                };
                Self::add(pool, e, above, step)?;
            } else if v & Entry::LARGE.bits() != 0 {
                return Err(Status::Overlap);
            }
            parent = e;
            l -= 1;
        }
    }

    /// Adds a table at `e`, which the entries `ways` lead to. If there is no memory for it, those that are empty go.
    #[inline(never)]
    fn add(pool: &Pool, e: &Cell<u64>, ways: &[&Cell<u64>], step: &Step) -> Result<(), Status> {
        step.spent(NEW_TABLE);
        let new = match pool.take_pages(1) {
            Ok(new) => new,
            Err(err) => {
                if ways.first().is_some_and(|w| w.get() & COUNT == 0) {
                    release(pool, ways, 0);
                }
                return Err(err);
            }
        };
        e.set(new | (Entry::PRESENT | Entry::WRITE | Entry::USER).bits());
        if let Some(w) = ways.first() {
            w.set(w.get() + ONE);
        }
        Ok(())
    }

    /// Maps what of `run` has not been mapped: `done` bytes of it have been.
    ///
    /// # Errors
    /// `Again`: there is more to do. `Overlap`, `NoMemory`: it can't go on; what is mapped so far is the caller's to clear.
    #[inline(always)]
    pub fn fill(
        &self,
        pool: &Pool,
        run: Run,
        access: Access,
        done: &Cell<u64>,
        step: &Step,
    ) -> Result<(), Status> {
        loop {
            step.spend(60)?;
            let at = done.get();
            let (va, phys, rest) = (run.va + at, run.phys + at, run.len - at);
            let level = Self::level(va, phys, rest);
            let (t, parent) = self.make(pool, va, level, step)?;
            let (shift, bits) = if level == 2 {
                (21, access.0.bits() | Entry::LARGE.bits())
            } else {
                (12, access.0.bits())
            };
            // A table of small pages ends where a large page may begin.
            let first = index(va, level);
            let n = step.pieces((rest >> shift).min(512 - first as u64), 11);
            let mut target = phys | bits;
            let mut added = 0;
            for e in some(t, first, n) {
                if present(e.get()) {
                    break;
                }
                e.set(target);
                target += 1 << shift;
                added += 1;
            }
            parent.set(parent.get() + added * ONE);
            done.set(at + (added << shift));
            if added < n {
                return Err(Status::Overlap);
            }
            if at + (added << shift) >= run.len {
                return Ok(());
            }
        }
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
    pub fn clear(
        &self,
        pool: &Pool,
        va: u64,
        len: u64,
        done: &Cell<u64>,
        step: &Step,
    ) -> Result<(), Status> {
        while done.get() < len {
            step.spend(80)?;
            let (at, rest) = (va + done.get(), len - done.get());
            let e4 = &table(self.root).0[index(at, 4)];
            let (mut cleared, mut shift) = (1, 12);
            if is_table(e4.get()) {
                let e3 = &table(e4.get()).0[index(at, 3)];
                if is_table(e3.get()) {
                    let large = table(e3.get());
                    let e2 = &large.0[index(at, 2)];
                    if is_table(e2.get()) {
                        let most = (rest >> 12).min(512 - index(at, 1) as u64);
                        cleared = step.pieces(most, 7);
                        let gone = clear_some(table(e2.get()), index(at, 1), cleared, 0);
                        release(pool, &[e2, e3, e4], gone);
                    } else if present(e2.get()) {
                        shift = 21;
                        let most = (rest >> 21).min(512 - index(at, 2) as u64).max(1);
                        // What follows may be in small pages.
                        cleared = clear_some(large, index(at, 2), step.pieces(most, 7), LARGE_PAGE);
                        release(pool, &[e3, e4], cleared);
                    }
                }
            }
            done.set(done.get() + (cleared << shift));
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
            pool.give_pages(e.replace(0) & ADDRESS, 1);
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
        pool.give_pages(self.root, 1);
        Ok(())
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
