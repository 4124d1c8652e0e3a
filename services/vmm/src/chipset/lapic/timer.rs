//! The local APIC's timer (Intel SDM vol. 3, 11.5.4). It is a function of the TSC: it is only told to look at the time.

use crate::chipset::time::{Clock, NEVER};

/// What the timer does when its count ends: LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Counts down once.
    OneShot,
    /// Counts down again and again.
    Periodic,
    /// Compares the TSC with IA32_TSC_DEADLINE.
    TscDeadline,
}

impl Mode {
    /// Decodes an LVT timer entry; the reserved encoding 3 is taken as one-shot.
    pub fn from_lvt(entry: u32) -> Self {
        match (entry >> 17) & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// The timer of one local APIC.
#[derive(Clone, Debug)]
pub struct Timer {
    clock: Clock,
    /// Shortest time, in periods of `clock`, between two periodic expiries that the host is woken for.
    floor: u64,
    mode: Mode,
    divide: u32,
    initial: u32,
    /// The count that was in the counter when the clock was at `from`; 0: stopped.
    count: u32,
    from: u64,
    /// No wake-up before the clock is here.
    not_before: u64,
    /// IA32_TSC_DEADLINE; 0: disarmed.
    deadline: u64,
}

/// The most periodic expiries a second for which the host wakes up; missed ones coalesce.
const MAX_RATE_HZ: u64 = 10_000;

impl Timer {
    /// A stopped timer that counts at `hz` before division.
    pub fn new(hz: u64, tsc_hz: u64) -> Self {
        Self {
            clock: Clock::new(hz, tsc_hz),
            floor: hz / MAX_RATE_HZ,
            mode: Mode::OneShot,
            divide: 0,
            initial: 0,
            count: 0,
            from: 0,
            not_before: 0,
            deadline: 0,
        }
    }

    /// Back to the state after reset, with the same frequencies.
    pub fn reset(&mut self) {
        self.mode = Mode::OneShot;
        self.divide = 0;
        self.initial = 0;
        self.count = 0;
        self.not_before = 0;
        self.deadline = 0;
    }

    /// Power of two by which the clock is divided.
    fn shift(&self) -> u32 {
        (((self.divide >> 1 & 4) | (self.divide & 3)) + 1) & 7
    }

    /// The clock at the end of the count now running; `None` if it is stopped.
    fn end(&self) -> Option<u64> {
        (self.count != 0).then(|| {
            self.from
                .saturating_add(u64::from(self.count) << self.shift())
        })
    }

    /// Brings the timer to `now`. True if it expired since the last time, once however often it did.
    /// Every other method wants this to have been called first.
    #[inline]
    pub fn expire(&mut self, now: u64) -> bool {
        if self.mode != Mode::TscDeadline {
            return self.expire_count(now);
        }
        let expired = self.deadline != 0 && now >= self.deadline;
        if expired {
            self.deadline = 0;
        }
        expired
    }

    fn expire_count(&mut self, now: u64) -> bool {
        let ticks = self.clock.ticks(now);
        let Some(end) = self.end().filter(|&end| ticks >= end) else {
            return false;
        };
        self.count = 0;
        if self.mode == Mode::Periodic && self.initial != 0 {
            // `ticks >= end`, so neither subtraction wraps.
            let period = u64::from(self.initial) << self.shift();
            self.from = ticks - (ticks - end) % period;
            self.count = self.initial;
            self.not_before = ticks.saturating_add(self.floor);
        }
        true
    }

    /// The TSC at which [`Timer::expire`] will next be true; [`NEVER`] if it will not.
    #[inline]
    pub fn next(&self) -> u64 {
        match self.mode {
            Mode::TscDeadline if self.deadline == 0 => NEVER,
            Mode::TscDeadline => self.deadline,
            _ => self.next_count(),
        }
    }

    fn next_count(&self) -> u64 {
        self.end()
            .map_or(NEVER, |end| self.clock.tsc_at(end.max(self.not_before)))
    }

    /// The divide configuration register.
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Sets the divide configuration register. A running count goes on from its value at the new rate.
    pub fn set_divide(&mut self, value: u32, now: u64) {
        self.count = self.current(now);
        self.from = self.clock.ticks(now);
        self.divide = value & 0xB;
    }

    /// The initial-count register.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Sets the initial count and starts the timer (0: stops it). Ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, value: u32, now: u64) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = value;
        self.count = value;
        self.from = self.clock.ticks(now);
        self.not_before = 0;
    }

    /// The current-count register: 0 when stopped and in TSC-deadline mode.
    pub fn current(&self, now: u64) -> u32 {
        let counted = self.clock.ticks(now).saturating_sub(self.from) >> self.shift();
        u64::from(self.count).saturating_sub(counted) as u32
    }

    /// Sets the mode. To or from TSC-deadline mode disarms the timer; between the others a count goes on.
    pub fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.count = 0;
            self.initial = 0;
            self.deadline = 0;
        }
        self.mode = mode;
    }

    /// IA32_TSC_DEADLINE: 0 when disarmed and outside its mode.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Arms the timer for TSC `value` (0: disarms it). Ignored outside TSC-deadline mode.
    pub fn set_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GHZ: u64 = 1_000_000_000;

    #[test]
    fn divide_values() {
        let mut timer = Timer::new(GHZ, GHZ);
        for (register, divisor) in [
            (0, 2),
            (1, 4),
            (2, 8),
            (3, 16),
            (8, 32),
            (9, 64),
            (10, 128),
            (11, 1),
        ] {
            timer.set_divide(register, 0);
            timer.set_initial(1000, 0);
            assert_eq!(timer.next(), 1000 * divisor);
            assert_eq!(timer.current(10 * divisor), 990);
        }
    }

    #[test]
    fn one_shot_expires_once() {
        let mut timer = Timer::new(GHZ, 2 * GHZ);
        timer.set_divide(11, 0);
        timer.set_initial(500, 1000);
        assert_eq!(timer.next(), 2000);
        assert!(!timer.expire(1999));
        assert!(timer.expire(2000));
        assert_eq!(
            (timer.current(2500), timer.initial(), timer.next()),
            (0, 500, NEVER)
        );
        assert!(!timer.expire(1 << 40));
    }

    #[test]
    fn periodic_coalesces_missed_periods_and_keeps_phase() {
        let mut timer = Timer::new(GHZ, GHZ);
        timer.set_divide(11, 0);
        timer.set_mode(Mode::Periodic);
        timer.set_initial(1_000_000, 0);
        assert!(timer.expire(1_000_000));
        assert_eq!(timer.next(), 2_000_000);
        assert!(timer.expire(57_300_000));
        assert!(!timer.expire(57_300_000));
        assert_eq!(timer.current(57_300_000), 700_000);
        assert_eq!(timer.next(), 58_000_000);
    }

    #[test]
    fn a_tiny_period_does_not_storm() {
        let mut timer = Timer::new(GHZ, GHZ);
        timer.set_mode(Mode::Periodic);
        timer.set_initial(1, 0);
        let mut now = 0;
        let mut expiries = 0;
        while now < GHZ {
            now = timer.next();
            assert!(timer.expire(now));
            expiries += 1;
        }
        assert!(expiries <= MAX_RATE_HZ + 2, "{expiries}");
    }

    #[test]
    fn tsc_deadline() {
        let mut timer = Timer::new(GHZ, GHZ);
        timer.set_deadline(5);
        assert_eq!(timer.deadline(), 0);
        timer.set_mode(Mode::TscDeadline);
        timer.set_initial(1000, 0);
        assert_eq!((timer.initial(), timer.next()), (0, NEVER));
        timer.set_deadline(5000);
        assert_eq!((timer.next(), timer.current(0)), (5000, 0));
        assert!(!timer.expire(4999));
        assert!(timer.expire(5000));
        assert_eq!((timer.deadline(), timer.next()), (0, NEVER));
        timer.set_deadline(9000);
        timer.set_mode(Mode::OneShot);
        assert_eq!((timer.deadline(), timer.next()), (0, NEVER));
    }

    #[test]
    fn a_new_divisor_keeps_the_count() {
        let mut timer = Timer::new(GHZ, GHZ);
        timer.set_divide(11, 0);
        timer.set_initial(1000, 0);
        timer.set_divide(0, 400);
        assert_eq!(timer.current(400), 600);
        assert_eq!(timer.next(), 400 + 1200);
    }
}
