//! Who asks root in vain, over and over.
//!
//! Root answers on its own Budget, which is above everybody's: a server that did nothing but ask would take time of the processor that is not
//! its own. What root grants has its own bounds (a VMM has a device ended that hangs, and no other; deaths have their back-off and limit).
//! What it refuses is bounded here: who is refused too often is ended like one that faults. The manager and further servers, whom root obeys,
//! are not looked at.

/// Refusals of one server in [`WINDOW_MICROS`] that are let pass. One that is well is refused a few times a second; so many cost root
/// some millions of instructions.
pub const MOST: u32 = 1_000;
/// See [`MOST`].
pub const WINDOW_MICROS: u64 = 1_000_000;

/// The refusals of one server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    /// When the window began: TSC.
    since: u64,
    /// How many there were in it.
    count: u32,
}

impl Refusals {
    /// One more, `now`, windows being `window` cycles long; whether that is too many.
    pub fn another(&mut self, now: u64, window: u64) -> bool {
        if now.saturating_sub(self.since) > window {
            *self = Self {
                since: now,
                count: 0,
            };
        }
        self.count = self.count.saturating_add(1);
        self.count > MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 1_000_000;

    #[test]
    fn a_flood_is_too_many_and_a_trickle_never_is() {
        let mut flood = Refusals::default();
        let end = (0..).find(|i| flood.another(5_000_000 + i, WINDOW));
        assert_eq!(end, Some(u64::from(MOST)));
        let mut trickle = Refusals::default();
        let step = WINDOW / u64::from(MOST) + 1;
        assert!((0..10_000).all(|i| !trickle.another(5_000_000 + i * step, WINDOW)));
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut refusals = Refusals::default();
        for start in [0, 2 * WINDOW, 4 * WINDOW] {
            assert!((0..MOST).all(|_| !refusals.another(start, WINDOW)));
        }
        assert!(refusals.another(5 * WINDOW, WINDOW));
    }
}
