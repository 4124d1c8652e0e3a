//! The 8254 timer and its connections: counter 0 to IRQ 0, counter 1 to memory refresh, counter 2 to the speaker
//! through system control port B.

mod counter;
#[cfg(test)]
mod tests;

use super::map::PIT;
use super::time::{Clock, NEVER};
use counter::Counter;

/// Frequency in Hz of the counters' clock: a third of the colour burst's quadruple.
pub const PIT_HZ: u64 = 1_193_182;
/// Shortest time in clock periods between two wake-ups of the host for a periodic counter: 100 us.
const FLOOR: u64 = PIT_HZ / 10_000;
/// Periods between two refresh requests: 15 us.
const REFRESH: u64 = 18;

/// Port B: gate of counter 2.
const GATE_2: u8 = 1 << 0;
/// Port B: bits that hold what was written: gate, speaker, parity and channel check enables.
const PORT_B_HELD: u8 = 0x0F;
/// Port B: refresh request, toggles.
const REFRESH_TOGGLE: u8 = 1 << 4;
/// Port B: OUT of counter 2.
const OUT_2: u8 = 1 << 5;

/// The timer. Every method that takes `now` wants [`Pit::advance`] called first.
#[derive(Clone, Debug)]
pub struct Pit {
    clock: Clock,
    counters: [Counter; 3],
    port_b: u8,
}

impl Pit {
    /// As a PC's firmware leaves it: counter 0 at 18.2 Hz, refresh, the speaker off.
    pub fn new(tsc_hz: u64) -> Self {
        let mut pit = Self {
            clock: Clock::new(PIT_HZ, tsc_hz),
            counters: [
                Counter::new(0x36, true),
                Counter::new(0x14, true),
                Counter::new(0xB6, false),
            ],
            port_b: 0,
        };
        let [_, refresh, _] = &mut pit.counters;
        refresh.write(REFRESH as u8, 0);
        pit
    }

    /// Brings the counters to `now`. True if counter 0's OUT, which is IRQ 0, rose since the last time.
    pub fn advance(&mut self, now: u64) -> bool {
        let t = self.clock.ticks(now);
        let [timer, refresh, speaker] = &mut self.counters;
        refresh.advance(t);
        speaker.advance(t);
        timer.advance(t)
    }

    /// The TSC at which counter 0's OUT next rises.
    pub fn deadline(&self) -> u64 {
        let [timer, ..] = &self.counters;
        timer
            .next_wake(FLOOR)
            .map_or(NEVER, |t| self.clock.tsc_at(t))
    }

    /// Reads one of the counters' ports; the control word cannot be read.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let t = self.clock.ticks(now);
        let counter = self.counters.get_mut(usize::from(port.wrapping_sub(PIT)));
        counter.map_or(0xFF, |counter| counter.read(t))
    }

    /// Writes one of the counters' ports or the control word.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        let t = self.clock.ticks(now);
        let index = usize::from(port.wrapping_sub(PIT));
        if let Some(counter) = self.counters.get_mut(index) {
            counter.write(value, t);
        } else if index == self.counters.len() {
            self.control(value, t);
        }
    }

    fn control(&mut self, value: u8, t: u64) {
        let Some(counter) = self.counters.get_mut(usize::from(value >> 6)) else {
            return self.read_back(value, t);
        };
        if value & 0x30 == 0 {
            counter.latch_count(t);
        } else {
            counter.control(value, t);
        }
    }

    /// The read-back command: bits 5 and 4, active low, say what to latch; bits 3:1 of which counters.
    fn read_back(&mut self, value: u8, t: u64) {
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(t);
            }
            if value & 0x10 == 0 {
                counter.latch_status(t);
            }
        }
    }

    /// Reads system control port B.
    pub fn read_port_b(&self, now: u64) -> u8 {
        let t = self.clock.ticks(now);
        let [.., speaker] = &self.counters;
        let refresh = if (t / REFRESH) & 1 != 0 {
            REFRESH_TOGGLE
        } else {
            0
        };
        let out = if speaker.out(t) { OUT_2 } else { 0 };
        self.port_b | refresh | out
    }

    /// Writes system control port B.
    pub fn write_port_b(&mut self, value: u8, now: u64) {
        let t = self.clock.ticks(now);
        self.port_b = value & PORT_B_HELD;
        let [.., speaker] = &mut self.counters;
        speaker.set_gate(value & GATE_2 != 0, t);
    }
}
