//! From TSC differences to a figure.

use alloc::vec::Vec;

/// Samples of a figure.
pub const SAMPLES: usize = 1000;

/// FNV-1a, 64 bits: a row's name in a register, for a debugger.
#[must_use]
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A figure, the cost of measuring taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// The least.
    pub min: u64,
    /// The one in the middle; of two the lower.
    pub median: u64,
    /// The most.
    pub max: u64,
}

/// Makes a figure of samples, each of which includes `empty`. `None`: there are none.
pub fn figure(mut samples: Vec<u64>, empty: u64) -> Option<Figure> {
    samples.sort_unstable();
    let off = |sample: &u64| sample.saturating_sub(empty);
    let middle = samples.len().checked_sub(1)? / 2;
    Some(Figure {
        min: samples.first().map(off)?,
        median: samples.get(middle).map(off)?,
        max: samples.last().map(off)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_a_name() {
        // The published test vectors of FNV-1a.
        assert_eq!(name_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(name_hash("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn figures() {
        let of = |min, median, max| Some(Figure { min, median, max });
        assert_eq!(figure(vec![30, 10, 20], 4), of(6, 16, 26));
        assert_eq!(figure(vec![40, 10, 30, 20], 0), of(10, 20, 40));
        assert_eq!(figure(vec![3], 4), of(0, 0, 0));
        assert_eq!(figure(vec![], 4), None);
        let many = (0..SAMPLES as u64).rev().collect();
        assert_eq!(figure(many, 0), of(0, 499, 999));
    }
}
