//! ACPI fixed hardware: PM1a event and control blocks, the power management timer, GPE block 0 (ACPI 6.5, 4.8).

use super::map::{
    GPE0, PM_TIMER, PM_TIMER_BITS, PM_TIMER_HZ, PM1A_CONTROL, PM1A_EVENT, S5_SLEEP_TYPE,
};
use super::time::{Clock, NEVER};

/// PM1 status and enable: the timer's most significant bit changed.
const TIMER: u16 = 1 << 0;
/// PM1 status and enable: global lock released by firmware.
const GLOBAL: u16 = 1 << 5;
/// PM1 status and enable: power button.
const POWER_BUTTON: u16 = 1 << 8;
/// PM1 status and enable: sleep button.
const SLEEP_BUTTON: u16 = 1 << 9;
/// PM1 status and enable: real-time clock alarm.
const RTC: u16 = 1 << 10;
/// PM1 enable bits that exist.
const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;

/// PM1 control: ACPI mode. There is no other, so it is always 1.
const SCI_ENABLE: u16 = 1 << 0;
/// PM1 control: bits that hold what was written: bus master reload, sleep type.
const CONTROL_HELD: u16 = 1 << 1 | 7 << 10;
/// PM1 control: write-only, enters the sleep state of the sleep type.
const SLEEP_ENABLE: u8 = 1 << 5;

/// A carry out of the timer's bits below the most significant one sets the timer's status.
const TIMER_HALF_BITS: u32 = PM_TIMER_BITS - 1;

/// The power management registers. Every access is a byte: the bus splits wider ones.
#[derive(Clone, Debug)]
pub struct Pm {
    clock: Clock,
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// Half periods of the timer completed when its status was last cleared.
    timer_seen: u64,
}

impl Pm {
    /// The registers after power-on.
    pub fn new(tsc_hz: u64) -> Self {
        Self {
            clock: Clock::new(PM_TIMER_HZ, tsc_hz),
            status: 0,
            enable: 0,
            control: SCI_ENABLE,
            gpe_status: 0,
            gpe_enable: 0,
            timer_seen: 0,
        }
    }

    /// Looks at the time: sets the timer's status if its most significant bit changed.
    pub fn advance(&mut self, now: u64) {
        let halves = self.clock.ticks(now) >> TIMER_HALF_BITS;
        if halves > self.timer_seen {
            self.timer_seen = halves;
            self.status |= TIMER;
        }
    }

    /// The TSC of the timer's next event, if anyone would see it.
    pub fn deadline(&self) -> u64 {
        if self.enable & TIMER == 0 || self.status & TIMER != 0 {
            return NEVER;
        }
        let tick = self
            .timer_seen
            .saturating_add(1)
            .saturating_mul(1 << TIMER_HALF_BITS);
        self.clock.tsc_at(tick)
    }

    /// The level of the SCI.
    pub fn sci(&self) -> bool {
        self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0
    }

    /// The power button was pressed.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// General-purpose event `event` (0 to 15) occurred.
    pub fn raise_gpe(&mut self, event: u8) {
        self.gpe_status |= 1u16.checked_shl(u32::from(event)).unwrap_or(0);
    }

    /// The power management timer.
    pub fn timer(&self, now: u64) -> u32 {
        (self.clock.ticks(now) & ((1 << PM_TIMER_BITS) - 1)) as u32
    }

    /// Reads a byte; `None` where there is no register.
    pub fn read(&mut self, port: u16, now: u64) -> Option<u8> {
        self.advance(now);
        let (block, offset) = block(port)?;
        let bytes = match block {
            PM1A_EVENT => pair(self.status, self.enable),
            PM1A_CONTROL => pair(self.control, 0),
            PM_TIMER => self.timer(now).to_le_bytes(),
            _ => pair(self.gpe_status, self.gpe_enable),
        };
        bytes.get(offset).copied()
    }

    /// Writes a byte. True if the guest turned itself off. Status bits are cleared by writing 1.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> bool {
        self.advance(now);
        let Some((block, offset)) = block(port) else {
            return false;
        };
        let shift = 8 * (offset & 1);
        let wide = u16::from(value) << shift;
        let keep = !(0xFF << shift);
        match (block, offset) {
            (PM1A_EVENT, 0 | 1) => self.status &= !wide,
            (PM1A_EVENT, 2 | 3) => self.enable = (self.enable & keep | wide) & ENABLES,
            (PM1A_CONTROL, 0 | 1) => {
                self.control = (self.control & keep | wide) & CONTROL_HELD | SCI_ENABLE;
                // The sleep type is in the same byte; types that the DSDT does not name do nothing.
                return offset == 1
                    && value & SLEEP_ENABLE != 0
                    && self.control >> 10 & 7 == u16::from(S5_SLEEP_TYPE);
            }
            (GPE0, 0 | 1) => self.gpe_status &= !wide,
            (GPE0, 2 | 3) => self.gpe_enable = self.gpe_enable & keep | wide,
            _ => {}
        }
        false
    }
}

fn pair(low: u16, high: u16) -> [u8; 4] {
    (u32::from(high) << 16 | u32::from(low)).to_le_bytes()
}

/// The block that `port` is in, by its base, and the offset there.
fn block(port: u16) -> Option<(u16, usize)> {
    [(PM1A_EVENT, 4), (PM1A_CONTROL, 2), (PM_TIMER, 4), (GPE0, 4)]
        .into_iter()
        .find_map(|(base, length)| {
            let offset = port.checked_sub(base)?;
            (offset < length).then_some((base, usize::from(offset)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read32(pm: &mut Pm, port: u16, now: u64) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|offset| pm.read(port + offset, now).unwrap_or(0xFF)))
    }

    #[test]
    fn the_timer_counts_24_bits_at_its_frequency() {
        let tsc_hz = 3_000_000_000;
        let mut pm = Pm::new(tsc_hz);
        assert_eq!(read32(&mut pm, PM_TIMER, 0), 0);
        assert_eq!(read32(&mut pm, PM_TIMER, tsc_hz), 3_579_545);
        assert_eq!(
            read32(&mut pm, PM_TIMER, 10 * tsc_hz),
            35_795_450 & 0xFF_FFFF
        );
    }

    #[test]
    fn the_timer_interrupts_when_its_top_bit_changes() {
        let mut pm = Pm::new(PM_TIMER_HZ);
        assert_eq!(pm.deadline(), NEVER);
        pm.write(PM1A_EVENT + 2, 1, 100);
        assert_eq!(pm.deadline(), 1 << 23);
        pm.advance((1 << 23) - 1);
        assert!(!pm.sci());
        pm.advance(1 << 23);
        assert!(pm.sci());
        assert_eq!(pm.deadline(), NEVER);
        pm.write(PM1A_EVENT, 1, 1 << 23);
        assert!(!pm.sci());
        assert_eq!(pm.deadline(), 2 << 23);
        pm.advance(9 << 23);
        assert_eq!(pm.read(PM1A_EVENT, 9 << 23), Some(1));
    }

    #[test]
    fn the_power_button_raises_the_sci_when_enabled() {
        let mut pm = Pm::new(1);
        pm.press_power_button();
        assert!(!pm.sci());
        pm.write(PM1A_EVENT + 3, 0xFF, 0);
        assert_eq!(pm.read(PM1A_EVENT + 3, 0), Some(0x07));
        assert!(pm.sci());
        assert_eq!(pm.read(PM1A_EVENT + 1, 0), Some(1));
        pm.write(PM1A_EVENT + 1, 1, 0);
        assert!(!pm.sci());
    }

    #[test]
    fn only_soft_off_powers_off() {
        let mut pm = Pm::new(1);
        assert_eq!(pm.read(PM1A_CONTROL, 0), Some(1));
        pm.write(PM1A_CONTROL, 0, 0);
        assert_eq!(pm.read(PM1A_CONTROL, 0), Some(1));
        for kind in 0..8 {
            assert!(!pm.write(PM1A_CONTROL + 1, kind << 2, 0));
            assert_eq!(pm.read(PM1A_CONTROL + 1, 0), Some(kind << 2));
            assert_eq!(
                pm.write(PM1A_CONTROL + 1, kind << 2 | SLEEP_ENABLE, 0),
                kind == S5_SLEEP_TYPE
            );
        }
    }

    #[test]
    fn general_purpose_events() {
        let mut pm = Pm::new(1);
        pm.raise_gpe(9);
        pm.raise_gpe(16);
        assert_eq!(read32(&mut pm, GPE0, 0), 0x0000_0200);
        pm.write(GPE0 + 3, 2, 0);
        assert!(pm.sci());
        pm.write(GPE0 + 1, 2, 0);
        assert!(!pm.sci());
        assert_eq!(pm.read(PM1A_CONTROL + 2, 0), None);
        assert_eq!(pm.read(PM1A_EVENT - 1, 0), None);
    }
}
