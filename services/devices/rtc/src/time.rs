//! Guest time: the divider chain, the time registers, and setting them.

use crate::calendar::{self, DateTime};
use crate::{
    A, A_DIVIDER, A_RATE, A_UPDATE_IN_PROGRESS, B, B_24_HOURS, B_BINARY, B_SET, B_UPDATE, CENTURY,
    DAY, HOURS, HOURS_PM, MINUTES, MONTH, Rtc, SECONDS, TIME_REGISTERS, WEEKDAY, YEAR,
};

/// The crystal's frequency, in Hz.
pub(crate) const TICKS_PER_SECOND: i64 = 32_768;
const TICKS: u128 = 32_768;

/// How TSC values become time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Seconds since 1970-01-01 00:00 UTC at `tsc`.
    pub unix_seconds: i64,
    /// A TSC value.
    pub tsc: u64,
    /// TSC cycles a second. 0 counts as 1.
    pub hz: u64,
}

impl Clock {
    /// Ticks since the base; 0 before it.
    pub(crate) fn ticks(&self, now: u64) -> i64 {
        let elapsed = u128::from(now.saturating_sub(self.tsc));
        i64::try_from(elapsed * TICKS / u128::from(self.hz.max(1))).unwrap_or(i64::MAX)
    }

    /// The first TSC value at which `ticks` have passed since the base.
    pub(crate) fn tsc(&self, ticks: i64) -> u64 {
        let ticks = u128::try_from(ticks).unwrap_or(0);
        let cycles = (ticks * u128::from(self.hz.max(1))).div_ceil(TICKS);
        u64::try_from(cycles)
            .unwrap_or(u64::MAX)
            .saturating_add(self.tsc)
    }

    /// Ticks since 1970 at the base. Clamped to the years that four BCD digits can show.
    pub(crate) fn base_ticks(&self) -> i64 {
        self.unix_seconds.clamp(-62_135_596_800, 253_402_300_799) * TICKS_PER_SECOND
    }
}

fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

impl Rtc {
    /// A field as the guest sees it, BCD or binary.
    fn encode(&self, value: u8) -> u8 {
        if self.cmos(B) & B_BINARY != 0 {
            value
        } else {
            to_bcd(value)
        }
    }

    /// The value of a field that the guest wrote. Digits beyond 9 count as they come.
    pub(crate) fn decode(&self, value: u8) -> u8 {
        if self.cmos(B) & B_BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0x0f)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cmos(B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOURS_PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }

    /// The hour (0 to 23, if the guest wrote a valid one) behind an hours register.
    pub(crate) fn decode_hour(&self, value: u8) -> u8 {
        if self.cmos(B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & !HOURS_PM) % 12;
        if value & HOURS_PM != 0 {
            hour + 12
        } else {
            hour
        }
    }

    pub(crate) fn now_second(&self) -> i64 {
        self.seen.div_euclid(TICKS_PER_SECOND)
    }

    /// A time register while time runs.
    pub(crate) fn time_register(&self, index: u8) -> u8 {
        let date = calendar::from_seconds(self.now_second());
        let year = date.year.rem_euclid(10_000);
        match index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            WEEKDAY => self.encode((date.weekday + 6 + self.weekday_shift % 7) % 7 + 1),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode((year % 100) as u8),
            CENTURY => self.encode((year / 100) as u8),
            _ => 0xff,
        }
    }

    /// Copies the running time into the registers, where it stands still.
    fn halt(&mut self) {
        for index in TIME_REGISTERS {
            self.set_cmos(index, self.time_register(index));
        }
    }

    /// Makes time run from what the registers say. `into` is where in the second it starts, in ticks.
    fn resume(&mut self, into: i64) {
        let decoded = |index| self.decode(self.cmos(index));
        let date = DateTime {
            year: i64::from(decoded(CENTURY).min(99)) * 100 + i64::from(decoded(YEAR).min(99)),
            month: decoded(MONTH),
            day: decoded(DAY).clamp(1, 31),
            weekday: 1,
            hour: self.decode_hour(self.cmos(HOURS)).min(23),
            minute: decoded(MINUTES).min(59),
            second: decoded(SECONDS).min(59),
        };
        let weekday = decoded(WEEKDAY).clamp(1, 7);
        let second = calendar::to_seconds(&date);
        self.weekday_shift = (weekday + 7 - calendar::from_seconds(second).weekday) % 7;
        self.jump(second * TICKS_PER_SECOND + into);
        self.plan_alarm();
    }

    pub(crate) fn write_time(&mut self, index: u8, value: u8) {
        if self.halted() {
            self.set_cmos(index, value);
            return;
        }
        self.halt();
        self.set_cmos(index, value);
        self.resume(self.seen.rem_euclid(TICKS_PER_SECOND));
    }

    pub(crate) fn write_a(&mut self, value: u8) {
        let was_halted = self.halted();
        let was_reset = self.divider_reset();
        let value = value & !A_UPDATE_IN_PROGRESS & (A_DIVIDER | A_RATE);
        if value & 0x60 == 0x60 && !was_halted {
            self.halt();
        }
        self.set_cmos(A, value);
        self.plan_alarm();
        if was_reset && !self.divider_reset() {
            // The first update follows half a second after the reset ends.
            let half = TICKS_PER_SECOND / 2;
            if self.halted() {
                let time = self.seen - self.seen.rem_euclid(TICKS_PER_SECOND);
                self.jump(time.saturating_add(half));
            } else {
                self.resume(half);
            }
        }
    }

    /// Makes `time`, in ticks, the guest time of this moment.
    fn jump(&mut self, time: i64) {
        self.offset = self.offset.saturating_add(time.saturating_sub(self.seen));
        self.seen = time;
    }

    pub(crate) fn write_b(&mut self, value: u8) {
        let was_halted = self.halted();
        // SET clears the update interrupt's enable bit.
        let value = if value & B_SET != 0 {
            value & !B_UPDATE
        } else {
            value
        };
        if value & B_SET != 0 && !was_halted {
            self.halt();
        }
        self.set_cmos(B, value);
        if was_halted && !self.halted() {
            self.resume(self.seen.rem_euclid(TICKS_PER_SECOND));
        }
        self.plan_alarm();
    }
}
