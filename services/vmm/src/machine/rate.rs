//! The rate of the guest's TSC beside the machine's, where the description asks for one (`tsc_mhz`) and the processor scales it.

/// Fraction bits of a ratio, as the state page has it.
const FRACTION: u32 = 48;

/// The guest's cycles for one of the machine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rate {
    /// 16.48 bits; 0: one.
    ratio: u64,
}

impl Rate {
    /// `guest` Hz where the machine has `host`. `None`: too far apart for the processor.
    pub(super) fn new(guest: u64, host: u64) -> Option<Self> {
        if guest == host {
            return Some(Self::default());
        }
        let ratio = (u128::from(guest) << FRACTION) / u128::from(host.max(1));
        // SVM has 8 bits before the point (AMD APM vol. 2, 15.30.5), VMX 16.
        u64::try_from(ratio)
            .ok()
            .filter(|&r| r != 0 && r >> (FRACTION + 8) == 0)
            .map(|ratio| Self { ratio })
    }

    /// As the state page has it.
    pub(super) const fn ratio(self) -> u64 {
        self.ratio
    }

    /// The guest's TSC, but for its offset, when the machine's is `tsc`; as the processor computes it (Intel SDM vol. 3, 25.3).
    #[inline]
    pub(super) const fn guest(self, tsc: u64) -> u64 {
        if self.ratio == 0 {
            return tsc;
        }
        ((tsc as u128 * self.ratio as u128) >> FRACTION) as u64
    }

    /// Cycles of the machine's in which the guest's TSC has counted at least so many of its own; at most `u64::MAX`.
    #[inline]
    pub(super) fn host(self, cycles: u64) -> u64 {
        if self.ratio == 0 {
            return cycles;
        }
        let host = (u128::from(cycles) << FRACTION).div_ceil(u128::from(self.ratio));
        u64::try_from(host).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;
    use proptest::prelude::*;

    #[test]
    fn rates() {
        let half = Rate::new(1_000_000_000, 2_000_000_000).unwrap();
        assert_eq!(half.ratio(), 1 << 47);
        assert_eq!((half.guest(1001), half.host(500)), (500, 1000));
        assert_eq!(Rate::new(5, 5).unwrap().ratio(), 0);
        // The product is of 128 bits; what does not fit is cut off.
        let four = Rate::new(4, 1).unwrap();
        assert_eq!(four.guest(u64::MAX), u64::MAX - 3);
        assert_eq!(half.host(u64::MAX), u64::MAX);
        assert!(Rate::new(256, 1).is_none());
        assert!(Rate::new(255, 1).is_some());
        assert!(Rate::new(0, 1).is_none());
    }

    proptest! {
        #[test]
        fn a_deadline_is_not_early_and_hardly_late(
            guest in 1_000_000..10_000_000_000_u64, host in 100_000_000..5_000_000_000_u64, cycles in 0..1_u64 << 50,
        ) {
            let rate = Rate::new(guest, host).unwrap();
            let took = rate.host(cycles);
            prop_assert!(rate.guest(took) >= cycles);
            prop_assert!(took == 0 || rate.guest(took - 1) < cycles);
        }
    }
}
