//! When the alarm is due.

use crate::calendar::DAY;
use crate::{HOURS_ALARM, MINUTES_ALARM, Rtc, SECONDS_ALARM};

/// An alarm register with both top bits set matches everything.
const ANY: u8 = 0xc0;

impl Rtc {
    /// Finds the first second after now that matches the alarm registers; none while time stands still.
    pub(crate) fn plan_alarm(&mut self) {
        self.alarm = if self.halted() {
            None
        } else {
            self.next_alarm()
        };
    }

    fn next_alarm(&self) -> Option<i64> {
        let wanted = |index, hours: bool| {
            let value = self.cmos(index);
            let decoded = if hours {
                self.decode_hour(value)
            } else {
                self.decode(value)
            };
            (value < ANY).then_some(i64::from(decoded))
        };
        let hour = wanted(HOURS_ALARM, true);
        let minute = wanted(MINUTES_ALARM, false);
        let second = wanted(SECONDS_ALARM, false);
        let beyond = |field: Option<i64>, limit| field.is_some_and(|value| value >= limit);
        if beyond(hour, 24) || beyond(minute, 60) || beyond(second, 60) {
            return None;
        }
        let matches = |field: Option<i64>, value| field.is_none_or(|wanted| wanted == value);
        let mut at = self.now_second().saturating_add(1);
        let end = at.saturating_add(DAY);
        // Skips whole hours, then whole minutes: some 24 + 60 + 60 rounds at most.
        while at < end {
            let time = at.rem_euclid(DAY);
            at = if !matches(hour, time / 3600) {
                at.saturating_add(3600 - time % 3600)
            } else if !matches(minute, time / 60 % 60) {
                at.saturating_add(60 - time % 60)
            } else if !matches(second, time % 60) {
                at.saturating_add(1)
            } else {
                return Some(at);
            };
        }
        None
    }
}
