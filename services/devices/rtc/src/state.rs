//! The RTC's state as words for a state page.

use crate::{CMOS_BYTES, Clock, Rtc};

/// Words of state.
pub const STATE_WORDS: usize = 6 + CMOS_BYTES / 8;

/// Guest times beyond this (34,000 years) are not what a guest can set.
const FAR: u64 = 1 << 55;

impl Rtc {
    /// The whole state: clock (3 words), offset, time of the last look, small registers; then CMOS memory.
    #[must_use]
    pub fn state(&self) -> [u64; STATE_WORDS] {
        let small = [self.index, self.weekday_shift, self.flags, 0, 0, 0, 0, 0];
        let mut words = [0; STATE_WORDS];
        let head = [
            self.clock.unix_seconds as u64,
            self.clock.tsc,
            self.clock.hz,
            self.offset as u64,
            self.seen as u64,
            u64::from_le_bytes(small),
        ];
        let (bytes, _) = self.cmos.as_chunks::<8>();
        let values = head
            .into_iter()
            .chain(bytes.iter().map(|&chunk| u64::from_le_bytes(chunk)));
        for (word, value) in words.iter_mut().zip(values) {
            *word = value;
        }
        words
    }

    /// Rebuilds a clock from [`Rtc::state`]'s words; `None` if they are not a state that it can have.
    #[must_use]
    pub fn restore(words: &[u64]) -> Option<Self> {
        let (head, bytes) = words.split_first_chunk::<6>()?;
        let &[unix_seconds, tsc, hz, offset, seen, small] = head;
        let [index, weekday_shift, flags, rest @ ..] = small.to_le_bytes();
        let (offset, seen) = (offset as i64, seen as i64);
        let possible = bytes.len() == CMOS_BYTES / 8
            && hz != 0
            && offset.unsigned_abs() < FAR
            && seen.unsigned_abs() < FAR
            && index < 0x80
            && weekday_shift < 7
            && flags & !0x70 == 0
            && rest == [0; 5];
        if !possible {
            return None;
        }
        let mut cmos = [0; CMOS_BYTES];
        for (into, word) in cmos.as_chunks_mut::<8>().0.iter_mut().zip(bytes) {
            *into = word.to_le_bytes();
        }
        let clock = Clock {
            unix_seconds: unix_seconds as i64,
            tsc,
            hz,
        };
        let mut rtc = Self {
            clock,
            index,
            cmos,
            offset,
            weekday_shift,
            flags,
            seen,
            alarm: None,
            dirty: false,
        };
        rtc.plan_alarm();
        Some(rtc)
    }
}
