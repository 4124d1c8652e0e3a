//! What figures mean.

/// How far `is` is from `expected`, in ten-thousandths of `expected`: positive if there is more.
#[must_use]
pub fn off_by(is: u64, expected: u64) -> i64 {
    let (is, expected) = (i128::from(is), i128::from(expected.max(1)));
    i64::try_from((is - expected) * 10_000 / expected).unwrap_or(i64::MAX)
}

/// A sequence of numbers that repeats: xorshift (Marsaglia, "Xorshift RNGs", 2003).
#[derive(Clone, Copy, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// From a seed that is not 0.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(if seed == 0 { 1 } else { seed })
    }

    /// The next, below `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        if end == 0 { 0 } else { self.0 % end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        assert_eq!(off_by(100, 100), 0);
        assert_eq!(off_by(101, 100), 100);
        assert_eq!(off_by(99, 100), -100);
        assert_eq!(off_by(0, 100), -10_000);
        assert_eq!(off_by(1, 0), 0);
        assert_eq!(off_by(u64::MAX, 0), i64::MAX);
    }

    #[test]
    fn numbers_differ_and_stay_below() {
        let mut numbers = Numbers::new(0);
        let all: std::collections::BTreeSet<u64> =
            (0..100).map(|_| numbers.below(1 << 40)).collect();
        assert!(all.len() == 100 && all.iter().all(|&n| n < 1 << 40));
        assert_eq!(numbers.below(0), 0);
    }
}
