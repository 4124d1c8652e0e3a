//! The generator: ChaCha20 (RFC 8439, 2.3) keyed by whatever the machine gives, and keyed anew by its own output, mixed with more of
//! that, after every request: who learns the state later does not learn what came before.

/// "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A generator.
#[derive(Clone)]
pub struct Generator {
    key: [u32; 8],
    counter: u32,
}

fn quarter(s: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (x, y, z, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        s[x & 15] = s[x & 15].wrapping_add(s[y & 15]);
        s[z & 15] = (s[z & 15] ^ s[x & 15]).rotate_left(by);
    }
}

/// The block function (RFC 8439, 2.3.1).
fn block(key: &[u32; 8], counter: u32, nonce: [u32; 3]) -> [u32; 16] {
    const COLUMNS: [[usize; 4]; 4] = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]];
    const DIAGONALS: [[usize; 4]; 4] =
        [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];
    let mut start = [0; 16];
    let words = CONSTANTS.iter().chain(key).chain([&counter]).chain(&nonce);
    for (to, from) in start.iter_mut().zip(words) {
        *to = *from;
    }
    let mut state = start;
    for _ in 0..10 {
        for round in COLUMNS.into_iter().chain(DIAGONALS) {
            quarter(&mut state, round);
        }
    }
    core::array::from_fn(|i| state[i & 15].wrapping_add(start[i & 15]))
}

impl Generator {
    /// One that knows nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        let (key, counter) = ([0; 8], 0);
        Self { key, counter }
    }

    /// Mixes words in that the guest cannot know.
    pub fn mix(&mut self, words: [u64; 4]) {
        let halves = words.into_iter().flat_map(|w| [w as u32, (w >> 32) as u32]);
        for (key, word) in self.key.iter_mut().zip(halves) {
            *key ^= word;
        }
        let next = block(&self.key, u32::MAX, [0; 3]);
        for (key, word) in self.key.iter_mut().zip(next) {
            *key = word;
        }
        self.counter = 0;
    }

    /// The next 64 bytes.
    #[must_use]
    pub fn block(&mut self) -> [u8; 64] {
        let words = block(&self.key, self.counter, [1, 0, 0]);
        self.counter = self.counter.wrapping_add(1);
        let mut bytes = [0; 64];
        for (to, from) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }
}

impl Default for Generator {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8439, 2.3.2.
    #[test]
    fn the_block_function_gives_the_test_vector() {
        let key = core::array::from_fn(|i| {
            let first = i as u32 * 4;
            u32::from_le_bytes(core::array::from_fn(|j| (first + j as u32) as u8))
        });
        let words = block(&key, 1, [0x0900_0000, 0x4a00_0000, 0]);
        assert_eq!(
            words[..4],
            [0xe4e7_f110, 0x1559_3bd1, 0x1fdd_0f50, 0xc471_20a3]
        );
        assert_eq!(
            words[12..],
            [0xd19c_12b5, 0xb94e_16de, 0xe883_d0cb, 0x4e3c_50a2]
        );
    }

    #[test]
    fn nothing_comes_twice() {
        let mut a = Generator::new();
        a.mix([1, 2, 3, 4]);
        let mut b = a.clone();
        let first = a.block();
        assert_ne!(first, a.block());
        assert_eq!(first, b.block());
        b.mix([0; 4]);
        a.mix([0; 4]);
        assert_eq!(a.block(), b.block(), "the same key from the same");
        b.mix([0, 0, 0, 1]);
        a.mix([0; 4]);
        assert_ne!(a.block(), b.block());
    }
}
