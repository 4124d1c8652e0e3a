//! A pattern in memory that nobody else is to change.

/// Where it is: RAM that this program does not use (its VM has at least 64 MiB).
const FIRST: u64 = 32 << 20;
/// Words of it.
const WORDS: u64 = (4 << 20) / 8;
/// Words that one look takes; all have had their turn after 64 looks.
const STEP: u64 = WORDS / 64;

fn word(key: u8, n: u64) -> u64 {
    (n ^ u64::from(key) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn at(n: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut((FIRST + n * 8) as usize)
}

/// Writes it.
pub fn fill(key: u8) {
    for n in 0..WORDS {
        // SAFETY: RAM, mapped to itself, that nothing of this program lies in (it is linked at 1 MiB and smaller than 31).
        unsafe { at(n).write_volatile(word(key, n)) };
    }
}

/// Where it has changed, if it has: a part of it is looked at each time.
pub fn changed(key: u8, look: u64) -> Option<u64> {
    let first = look % 64 * STEP;
    // SAFETY: as in `fill`.
    let wrong = |n: &u64| unsafe { at(*n).read_volatile() } != word(key, *n);
    (first..first + STEP).find(wrong).map(|n| FIRST + n * 8)
}
