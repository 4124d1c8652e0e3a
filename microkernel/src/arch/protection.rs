//! What must hold of the kernel's half of every address space: nothing writable is executable, nothing is user level's.

use super::paging::{ADDRESS, Entry};
use crate::mem;

/// How a page of the kernel's half gives more than it may, and its address.
pub type Broken = (&'static str, u64);
const WRITE_EXECUTE: &str = "writable and executable";
const USER_LEVEL: &str = "accessible at user level";

/// Walks the kernel's half of the page table at `root`.
///
/// # Errors
/// The first page that is not as it must be.
pub fn check(root: u64) -> Result<(), Broken> {
    // SAFETY: a page-table page: the root, or what a present entry of one that maps no page leads to.
    let read = |table: u64, i: usize| unsafe { mem::page(table & ADDRESS) }.0[i].get();
    let all = Entry::PRESENT | Entry::WRITE | Entry::USER;
    walk(&read, root, 4, 0, all)
}

/// A table at `level`, for addresses from `base` on; `above`: what the entries that lead to it allow.
fn walk(
    read: &impl Fn(u64, usize) -> u64,
    table: u64,
    level: u32,
    base: u64,
    above: Entry,
) -> Result<(), Broken> {
    let first = if level == 4 { 256 } else { 0 };
    for i in first..512 {
        let raw = read(table, i);
        let entry = Entry::from_bits_truncate(raw);
        if !entry.contains(Entry::PRESENT) {
            continue;
        }
        // Each level can only take away.
        let all = (above & entry & (Entry::WRITE | Entry::USER))
            | ((above | entry) & Entry::NO_EXECUTE)
            | Entry::PRESENT;
        let executable = !all.contains(Entry::NO_EXECUTE) && all.contains(Entry::WRITE);
        if !executable && !all.contains(Entry::USER) {
            // Nothing below can give it again.
            continue;
        }
        let at = base | (i as u64) << (12 + 9 * (level - 1));
        if level > 1 && !entry.contains(Entry::LARGE) {
            walk(read, raw, level - 1, at, all)?;
            continue;
        }
        let at = at | 0xffff << 48;
        return Err(if executable {
            (WRITE_EXECUTE, at)
        } else {
            (USER_LEVEL, at)
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page at the bottom of the kernel's half, with these bits at each level.
    fn judged(bits: [Entry; 3]) -> Result<(), Broken> {
        let read = |table: u64, i: usize| match (table & ADDRESS, i) {
            (0x1000, 256) => 0x2000 | bits[0].bits(),
            // The lower half is user level's, and no matter here.
            (0x1000, 0) => 0x2000 | 7,
            (0x2000, 0) => 0x3000 | bits[1].bits(),
            (0x3000, 1) => (bits[2] | Entry::LARGE).bits(),
            _ => 0,
        };
        walk(
            &read,
            0x1000,
            4,
            0,
            Entry::PRESENT | Entry::WRITE | Entry::USER,
        )
    }

    #[test]
    fn what_is_both_writable_and_executable_is_found() {
        let p = Entry::PRESENT;
        let (w, u, nx) = (p | Entry::WRITE, p | Entry::USER, p | Entry::NO_EXECUTE);
        let at = 0xffff_8000_0020_0000;
        for (bits, expected) in [
            ([w, w, w], Err((WRITE_EXECUTE, at))),
            ([w, w, p], Ok(())),
            ([w, p, w], Ok(())),
            ([p, w, w], Ok(())),
            ([w, w, w | nx], Ok(())),
            ([w | nx, w, w], Ok(())),
            ([u, u, u], Err((USER_LEVEL, at))),
            ([u | nx, u, u], Err((USER_LEVEL, at))),
            ([u, p, u], Ok(())),
            ([u, u, p], Ok(())),
        ] {
            assert_eq!(judged(bits), expected, "{bits:?}");
        }
    }
}
