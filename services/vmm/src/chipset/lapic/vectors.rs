//! A set of the 256 interrupt vectors, as IRR, ISR and TMR hold it (Intel SDM vol. 3, 11.8.4).

/// 256 bits; register `n` of eight shows bits `32 * n ..`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors([u32; 8]);

impl Vectors {
    /// Adds `vector`.
    pub fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    /// Removes `vector`.
    pub fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    /// Whether `vector` is in the set.
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    /// The highest vector in the set; 0 if there is none (vectors below 16 are never in one).
    pub fn highest(&self) -> u8 {
        for (base, word) in [0xE0, 0xC0, 0xA0, 0x80, 0x60, 0x40, 0x20, 0u8]
            .into_iter()
            .zip(self.0.iter().rev())
        {
            if let Some(bit) = word.checked_ilog2() {
                return base | bit as u8;
            }
        }
        0
    }

    /// The set in words of 64 vectors.
    pub fn words(&self) -> [u64; 4] {
        core::array::from_fn(|i| u64::from(self.0[2 * i]) | u64::from(self.0[2 * i + 1]) << 32)
    }

    /// The set that [`Vectors::words`] gives as these. Vectors below 16 are never in one.
    pub fn from_words(words: [u64; 4]) -> Self {
        let half = |i: usize| (words[i / 2] >> (32 * (i % 2))) as u32;
        let mut set = Self(core::array::from_fn(half));
        set.0[0] &= !0xFFFF;
        set
    }

    /// Register `index` modulo 8 of the set.
    pub fn register(&self, index: u32) -> u32 {
        self.0[(index & 7) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_of_every_pair() {
        for low in 16..=255u8 {
            let mut set = Vectors::default();
            assert_eq!(set.highest(), 0);
            set.set(16);
            set.set(low);
            assert_eq!(set.highest(), low);
            assert!(set.contains(low));
            assert_eq!(
                set.register(u32::from(low >> 5)) & 1 << (low & 31),
                1 << (low & 31)
            );
            set.clear(low);
            assert!(!set.contains(low));
        }
    }

    #[test]
    fn words_and_back() {
        let mut set = Vectors::default();
        for vector in [16, 63, 64, 127, 200, 255] {
            set.set(vector);
        }
        let words = set.words();
        assert_eq!(words, [1 << 16 | 1 << 63, 1 | 1 << 63, 0, 1 << 8 | 1 << 63]);
        assert_eq!(Vectors::from_words(words), set);
        assert_eq!(Vectors::from_words([u64::MAX; 4]).register(0), !0xFFFF);
    }
}
