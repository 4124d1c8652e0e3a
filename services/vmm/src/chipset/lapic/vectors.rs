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
}
