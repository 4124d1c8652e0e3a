//! Page tables: tables that belong to the Pool, leaves of user level only, none writable and executable at once.

use super::{ADDRESS, COUNT, Entry, ONE, PAGES_TO, Table, present, size, table};
use crate::checker::{Checked, ensure};
use crate::object::Pool;
use crate::object::pool::check as pool_check;

/// What the leaves add up to.
#[derive(Default)]
pub struct Leaves {
    /// Bytes mapped.
    pub bytes: u64,
}

/// Checks all tables under the first `top` entries of the root; answers how many tables there are. `strict`: no page may be
/// writable and executable (host tables).
pub fn tables(
    t: &Table,
    pool: &Pool,
    top: usize,
    strict: bool,
    at: u64,
    leaves: &mut Leaves,
) -> Checked<u64> {
    level(t.root, pool, 4, top, strict, at, leaves)
}

fn level(
    phys: u64,
    pool: &Pool,
    n: u32,
    entries: usize,
    strict: bool,
    at: u64,
    leaves: &mut Leaves,
) -> Checked<u64> {
    ensure(
        pool_check::is_raw(pool, phys),
        "a page table is of its object's Pool",
        at,
        phys,
    )?;
    let mut pages = 1;
    for e in &table(phys).0[..entries] {
        let v = e.get();
        let bits = Entry::from_bits_truncate(v);
        if !bits.contains(Entry::PRESENT) {
            ensure(v == 0, "an absent entry is zero", at, v)?;
            continue;
        }
        ensure(
            // In an extended page table: executable.
            bits.contains(Entry::USER) || !strict && crate::virt::vmx::HERE.get(),
            "an entry is user level's",
            at,
            v,
        )?;
        if n > 1 && !bits.contains(Entry::LARGE) {
            pages += level(v & ADDRESS, pool, n - 1, 512, strict, at, leaves)?;
            let entries = table(v).0.iter().filter(|e| present(e.get())).count() as u64;
            ensure(
                v & COUNT == entries * ONE,
                "a table's entries are counted",
                at,
                v,
            )?;
            continue;
        }
        ensure(
            n <= PAGES_TO.get(),
            "a page is of a size that there is",
            at,
            v,
        )?;
        ensure(
            n == 1 || v & ADDRESS & (size(n) - 1) == 0,
            "a page is aligned",
            at,
            v,
        )?;
        ensure(
            !strict || !bits.contains(Entry::WRITE) || bits.contains(Entry::NO_EXECUTE),
            "no page is writable and executable",
            at,
            v,
        )?;
        leaves.bytes += size(n);
    }
    Ok(pages)
}

/// All leaves: `f(address, entry)`.
#[cfg(not(target_os = "none"))]
pub fn each_leaf(t: &Table, f: &mut impl FnMut(u64, u64)) {
    fn level(phys: u64, n: u32, at: u64, f: &mut impl FnMut(u64, u64)) {
        for (i, e) in (0..).zip(&table(phys).0) {
            let (v, at) = (e.get(), at | i << (12 + 9 * (n - 1)));
            if n > 1 && super::is_table(v) {
                level(v & ADDRESS, n - 1, at, f);
            } else if present(v) {
                f(at, v);
            }
        }
    }
    level(t.root, 4, 0, f);
}
