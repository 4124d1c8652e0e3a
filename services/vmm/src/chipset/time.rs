//! Device clocks, computed from the TSC: nothing here counts, so a clock that nobody reads costs nothing.
//!
//! A device's clock is the whole number of its periods since TSC 0. It never drifts, and it is exact however long the
//! guest was descheduled.

/// A TSC value that never comes: no timer is armed.
pub const NEVER: u64 = u64::MAX;

/// The frequency of a device clock, relative to the TSC's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    hz: u64,
    tsc_hz: u64,
}

impl Clock {
    /// A clock of `hz`, where the TSC counts at `tsc_hz`. Zero is taken as 1 Hz.
    pub fn new(hz: u64, tsc_hz: u64) -> Self {
        Self {
            hz: hz.max(1),
            tsc_hz: tsc_hz.max(1),
        }
    }

    /// The clock's periods completed at TSC `now`, saturating.
    pub fn ticks(&self, now: u64) -> u64 {
        if self.hz == self.tsc_hz {
            return now;
        }
        // The product of two 64-bit values fits in 128 bits.
        let ticks = u128::from(now) * u128::from(self.hz) / u128::from(self.tsc_hz);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The first TSC value at which [`Clock::ticks`] is at least `tick`; [`NEVER`] if that is out of range.
    pub fn tsc_at(&self, tick: u64) -> u64 {
        if self.hz == self.tsc_hz {
            return tick;
        }
        let tsc = (u128::from(tick) * u128::from(self.tsc_hz)).div_ceil(u128::from(self.hz));
        u64::try_from(tsc).unwrap_or(NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_the_first_tsc_that_shows_its_tick() {
        for (hz, tsc_hz) in [
            (1_193_182, 2_600_000_001),
            (3_579_545, 1_000_000_000),
            (1_000_000_000, 999_999_937),
            (7, 7),
        ] {
            let clock = Clock::new(hz, tsc_hz);
            for tick in [1, 2, 3, 65_536, 1 << 32, (1 << 40) + 12_345] {
                let at = clock.tsc_at(tick);
                assert!(clock.ticks(at) >= tick);
                assert!(clock.ticks(at - 1) < tick);
            }
        }
    }

    #[test]
    fn a_second_has_its_hertz_and_extremes_saturate() {
        let clock = Clock::new(1_193_182, 2_000_000_000);
        assert_eq!(clock.ticks(2_000_000_000), 1_193_182);
        assert_eq!(clock.tsc_at(u64::MAX), NEVER);
        assert_eq!(Clock::new(u64::MAX, 0).ticks(u64::MAX), u64::MAX);
        assert_eq!(Clock::new(0, 0).ticks(5), 5);
    }
}
