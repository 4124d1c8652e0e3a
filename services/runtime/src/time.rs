//! The TSC: the only clock of the ABI. Deadlines are absolute TSC values.

use core::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// TSC cycles a second; set once at the start, from the start page.
static TSC_HZ: AtomicU64 = AtomicU64::new(1_000_000_000);

/// The TSC now.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    // SAFETY: RDTSC is available: the kernel leaves CR4.TSD clear, and every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Tells this module the TSC's frequency; the entry point does it.
pub fn set_frequency(tsc_hz: u64) {
    TSC_HZ.store(tsc_hz.max(1), Ordering::Relaxed);
}

/// TSC cycles a second.
#[must_use]
pub fn frequency() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// TSC cycles in so many microseconds; saturates.
#[must_use]
pub fn cycles(microseconds: u64) -> u64 {
    scale(microseconds, frequency(), 1_000_000)
}

/// Microseconds in so many TSC cycles; saturates.
#[must_use]
pub fn microseconds(cycles: u64) -> u64 {
    scale(cycles, 1_000_000, frequency())
}

/// The deadline so many microseconds from now.
#[must_use]
pub fn after(microseconds: u64) -> u64 {
    now().saturating_add(cycles(microseconds))
}

/// `value * numerator / denominator` with a wide product; saturates.
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    // Two u64 cannot overflow the product, and the denominator is never 0.
    let wide = u128::from(value) * u128::from(numerator) / u128::from(denominator.max(1));
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// Which moment of the calendar a TSC value was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallClock {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub unix_seconds: u64,
    /// The TSC at that moment.
    pub at_tsc: u64,
}

impl WallClock {
    /// Microseconds since 1970-01-01 00:00:00 UTC at a TSC value not before [`WallClock::at_tsc`].
    #[must_use]
    pub fn unix_micros(&self, tsc: u64, tsc_hz: u64) -> u64 {
        let since = scale(tsc.saturating_sub(self.at_tsc), 1_000_000, tsc_hz);
        self.unix_seconds
            .saturating_mul(1_000_000)
            .saturating_add(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_goes_with_the_tsc() {
        let clock = WallClock {
            unix_seconds: 1000,
            at_tsc: 5_000,
        };
        assert_eq!(clock.unix_micros(5_000, 2_000_000), 1_000_000_000);
        assert_eq!(
            clock.unix_micros(5_000 + 3_000_000, 2_000_000),
            1_001_500_000
        );
        assert_eq!(clock.unix_micros(0, 2_000_000), 1_000_000_000);
        assert_eq!(clock.unix_micros(9_000, 0), 1_000_000_000 + 4_000_000_000);
    }

    #[test]
    fn wide_products() {
        assert_eq!(scale(u64::MAX, 3, 1), u64::MAX);
        assert_eq!(scale(u64::MAX, 1_000_000, 1_000_000), u64::MAX);
        assert_eq!(scale(3_000_000_000, 1_000_000, 3_000_000_000), 1_000_000);
    }
}
