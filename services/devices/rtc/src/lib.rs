//! The MC146818A real-time clock and its CMOS memory that a VM sees: the model only, pure.
//!
//! Job: port accesses and the TSC in, values, an interrupt level and the next deadline out. Place: one `device-rtc`
//! server a VM; the kernel routes the guest's ports 0x70 and 0x71 straight to it. Trust: the guest is hostile; any
//! register content has a defined meaning and every search is bounded. What a state page holds is checked.
//!
//! Source: Motorola MC146818A data sheet; the century at 0x32 and CMOS memory above 0x0d are the PC's (ACPI FADT
//! `CENTURY`).
//!
//! Nothing runs between accesses: the divider chain is a number, 32,768 Hz ticks since the clock's base, and the flags
//! of register C follow from the ticks that passed since the last look.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod alarm;
mod calendar;
pub mod server;
mod state;
#[cfg(test)]
mod tests;
mod time;

pub use state::STATE_WORDS;
pub use time::Clock;
use time::TICKS_PER_SECOND;

/// The index port; bit 7 is the PC's NMI mask and is ignored.
pub const PORT_INDEX: u16 = 0x70;
/// The data port.
pub const PORT_DATA: u16 = 0x71;
/// Bytes of registers and CMOS memory.
pub const CMOS_BYTES: usize = 128;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
const TIME_REGISTERS: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
const A_RATE: u8 = 0x0f;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_REQUEST: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const D_VALID: u8 = 0x80;
const HOURS_PM: u8 = 0x80;

/// UIP rises 244 microseconds before the update.
const UPDATE_AHEAD_TICKS: i64 = 8;

/// The RTC. All `now` are TSC values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rtc {
    clock: Clock,
    index: u8,
    /// Registers and CMOS memory as the guest wrote them. The time registers here count only while time is halted.
    cmos: [u8; CMOS_BYTES],
    /// Guest time in ticks since 1970 = ticks of `clock` + this.
    offset: i64,
    /// Added to the weekday of the date, modulo 7: the guest may count weekdays as it likes.
    weekday_shift: u8,
    /// Flags of register C without the summary bit.
    flags: u8,
    /// Guest time of the last look, in ticks.
    seen: i64,
    /// The second in which the alarm is due next; `None`: never. Derived from the registers.
    alarm: Option<i64>,
    dirty: bool,
}

impl Rtc {
    /// A clock that runs, in 24-hour BCD mode, with empty CMOS memory.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let mut rtc = Self {
            clock,
            index: 0,
            cmos: [0; CMOS_BYTES],
            offset: clock.base_ticks(),
            weekday_shift: 0,
            flags: 0,
            seen: clock.base_ticks(),
            alarm: None,
            dirty: false,
        };
        rtc.set_cmos(A, 0x26);
        rtc.set_cmos(B, B_24_HOURS);
        rtc.plan_alarm();
        rtc
    }

    /// IN from [`PORT_INDEX`] or [`PORT_DATA`]. The index port cannot be read back.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        if port != PORT_DATA {
            return 0xff;
        }
        self.tick(now);
        match self.index {
            index if TIME_REGISTERS.contains(&index) && !self.halted() => self.time_register(index),
            A => self.cmos(A) | self.update_in_progress(),
            C => {
                let value = self.flags | if self.irq() { C_REQUEST } else { 0 };
                self.dirty |= self.flags != 0;
                self.flags = 0;
                value
            }
            D => D_VALID,
            index => self.cmos(index),
        }
    }

    /// OUT to [`PORT_INDEX`] or [`PORT_DATA`].
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        self.dirty = true;
        if port == PORT_INDEX {
            self.index = value & 0x7f;
            return;
        }
        if port != PORT_DATA {
            return;
        }
        self.tick(now);
        match self.index {
            A => self.write_a(value),
            B => self.write_b(value),
            C | D => {}
            index if TIME_REGISTERS.contains(&index) => self.write_time(index, value),
            index => {
                self.set_cmos(index, value);
                if matches!(index, SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM) {
                    self.plan_alarm();
                }
            }
        }
    }

    /// An IN of 1, 2 or 4 bytes at `port`: the bus splits it into bytes, lowest port first.
    pub fn read_wide(&mut self, port: u16, width: u8, now: u64) -> u32 {
        let mut value = 0;
        for i in 0..width.min(4) {
            let byte = self.read(port.saturating_add(u16::from(i)), now);
            value |= u32::from(byte) << (u32::from(i) * 8);
        }
        value
    }

    /// An OUT of 1, 2 or 4 bytes at `port`.
    pub fn write_wide(&mut self, port: u16, width: u8, value: u32, now: u64) {
        for (i, byte) in (0..u16::from(width.min(4))).zip(value.to_le_bytes()) {
            self.write(port.saturating_add(i), byte, now);
        }
    }

    /// Sets a byte of CMOS memory from outside the guest (for the platform: equipment, boot order). Registers below
    /// 0x0e and the century are not touched.
    pub fn set_nvram(&mut self, index: u8, value: u8) {
        if index > D && index != CENTURY {
            self.set_cmos(index, value);
            self.dirty = true;
        }
    }

    /// Brings the flags up to date. To be called when [`Rtc::next_deadline`] has passed; accesses do it themselves.
    pub fn tick(&mut self, now: u64) {
        let before = self.seen;
        let ticks = self.clock.ticks(now).saturating_add(self.offset);
        if self.divider_reset() {
            // Guest time stands still: the offset swallows what passes.
            self.offset = before.saturating_sub(self.clock.ticks(now));
            return;
        }
        if ticks <= before {
            return;
        }
        self.seen = ticks;
        let mut flags = self.flags;
        if let Some(period) = self.period()
            && ticks.div_euclid(period) != before.div_euclid(period)
        {
            flags |= C_PERIODIC;
        }
        let second = ticks.div_euclid(TICKS_PER_SECOND);
        if second != before.div_euclid(TICKS_PER_SECOND) && self.cmos(B) & B_SET == 0 {
            flags |= C_UPDATE;
            if self.alarm.is_some_and(|due| due <= second) {
                flags |= C_ALARM;
                self.plan_alarm();
            }
        }
        self.dirty |= flags != self.flags;
        self.flags = flags;
    }

    /// The level of the interrupt line: register C's summary bit.
    #[must_use]
    pub fn irq(&self) -> bool {
        // The flags and their enable bits have the same places in C and B.
        self.flags & self.cmos(B) & (C_PERIODIC | C_ALARM | C_UPDATE) != 0
    }

    /// When the interrupt line can rise next if nobody touches a register; `None`: never, or it is high already.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.irq() || self.divider_reset() {
            return None;
        }
        let enabled = |bit| self.cmos(B) & bit != 0;
        let periodic = self.period().filter(|_| enabled(B_PERIODIC));
        let running = !enabled(B_SET);
        let update = (running && enabled(B_UPDATE)).then_some(TICKS_PER_SECOND);
        let alarm = self.alarm.filter(|_| running && enabled(B_ALARM));
        let next = |period: i64| {
            self.seen
                .div_euclid(period)
                .saturating_add(1)
                .saturating_mul(period)
        };
        let due = [
            periodic.map(next),
            update.map(next),
            alarm.map(|s| s.saturating_mul(TICKS_PER_SECOND)),
        ];
        let ticks = due.into_iter().flatten().min()?;
        Some(self.clock.tsc(ticks.saturating_sub(self.offset)))
    }

    /// True if the state has changed since the last call: it should be committed.
    #[must_use]
    pub fn take_dirty(&mut self) -> bool {
        core::mem::take(&mut self.dirty)
    }

    fn cmos(&self, index: u8) -> u8 {
        self.cmos.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn set_cmos(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.cmos.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    /// The divider is held in reset: no time passes. (DV = 11x.)
    fn divider_reset(&self) -> bool {
        self.cmos(A) & 0x60 == 0x60
    }

    /// The time registers stand still: SET, or the divider is held in reset.
    fn halted(&self) -> bool {
        self.cmos(B) & B_SET != 0 || self.divider_reset()
    }

    /// Ticks between periodic interrupts (data sheet table 5, 32,768 Hz time base).
    fn period(&self) -> Option<i64> {
        match self.cmos(A) & A_RATE {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn update_in_progress(&self) -> u8 {
        let into = self.seen.rem_euclid(TICKS_PER_SECOND);
        let updating = !self.halted() && into >= TICKS_PER_SECOND - UPDATE_AHEAD_TICKS;
        if updating { A_UPDATE_IN_PROGRESS } else { 0 }
    }
}
