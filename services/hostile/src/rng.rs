//! Random numbers that are the same for the same seed, everywhere (SplitMix64, Steele, Lea, Flood 2014).

/// A generator. Its whole state is one word, so that it can live in a page that others scribble on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Rng(pub u64);

impl Rng {
    /// A generator for part `n` of what `seed` makes.
    #[must_use]
    pub fn part(seed: u64, n: u64) -> Self {
        let mut r = Self(seed ^ n.wrapping_mul(0xd134_2543_de82_ef95));
        r.word();
        r
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 if `n` is).
    pub fn below(&mut self, n: u64) -> u64 {
        // The high half of the product: no division, and no bias that matters here.
        ((u128::from(self.word()) * u128::from(n)) >> 64) as u64
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them; the default of an empty slice.
    pub fn of<T: Copy + Default>(&mut self, all: &[T]) -> T {
        let i = self.below(all.len() as u64) as usize;
        all.get(i).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_for_the_same_seed() {
        let three = |seed, part| {
            let mut r = Rng::part(seed, part);
            [r.word(), r.word(), r.word()]
        };
        assert_eq!(three(1, 2), three(1, 2));
        assert_ne!(three(1, 2), three(1, 3));
        assert_ne!(three(1, 2), three(2, 2));
    }

    #[test]
    fn bounds() {
        let mut r = Rng(7);
        assert!((0..1000).all(|_| r.below(5) < 5));
        assert_eq!(r.below(0), 0);
        assert_eq!(r.of::<u8>(&[]), 0);
    }
}
