//! What is left of the PC's smaller devices: reset and A20 lines, and ports that only hold a byte.

use super::map::{DELAY, I8042_COMMAND, I8042_DATA, PORT_A, POST};

/// Port A: pulses the processor's reset when it goes from 0 to 1.
const FAST_RESET: u8 = 1 << 0;
/// Port A: A20 is enabled. It is only remembered: the address line is never masked.
const A20: u8 = 1 << 1;
/// Keyboard controller's output port: processor reset, active low.
const OUTPUT_RESET: u8 = 1 << 0;
/// Keyboard controller's command: the next data byte goes to the output port.
const WRITE_OUTPUT: u8 = 0xD1;
/// Keyboard controller's commands from here pulse output lines 3:0, each where its bit is 0.
const PULSE: u8 = 0xF0;

/// The small devices. Every access is a byte.
#[derive(Clone, Debug)]
pub struct Legacy {
    post: u8,
    delay: u8,
    port_a: u8,
    /// The keyboard controller waits for its output port's byte.
    output_next: bool,
}

impl Default for Legacy {
    fn default() -> Self {
        Self {
            post: 0,
            delay: 0,
            port_a: A20,
            output_next: false,
        }
    }
}

impl Legacy {
    /// Reads a byte; `None` where there is no register.
    pub fn read(&self, port: u16) -> Option<u8> {
        match port {
            POST => Some(self.post),
            DELAY => Some(self.delay),
            PORT_A => Some(self.port_a),
            // Status: nothing to read, ready for a command. There is no keyboard.
            I8042_DATA | I8042_COMMAND => Some(0),
            _ => None,
        }
    }

    /// Writes a byte. True if it resets the machine.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        match port {
            POST => self.post = value,
            DELAY => self.delay = value,
            PORT_A => {
                let was = core::mem::replace(&mut self.port_a, value & (A20 | FAST_RESET));
                return value & !was & FAST_RESET != 0;
            }
            I8042_COMMAND => {
                self.output_next = value == WRITE_OUTPUT;
                return value >= PULSE && value & OUTPUT_RESET == 0;
            }
            I8042_DATA => {
                return core::mem::take(&mut self.output_next) && value & OUTPUT_RESET == 0;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets() {
        let mut legacy = Legacy::default();
        assert!(legacy.write(0x64, 0xFE));
        assert!(!legacy.write(0x64, 0xFF));
        assert!(!legacy.write(0x64, 0xAA));
        assert!(!legacy.write(0x60, 0x00));
        legacy.write(0x64, 0xD1);
        assert!(!legacy.write(0x60, 0xDF));
        legacy.write(0x64, 0xD1);
        assert!(legacy.write(0x60, 0xDE));
        assert!(!legacy.write(0x92, 0x02));
        assert!(legacy.write(0x92, 0x03));
        assert!(!legacy.write(0x92, 0x03));
    }

    #[test]
    fn held_bytes() {
        let mut legacy = Legacy::default();
        assert_eq!((legacy.read(0x92), legacy.read(0x64)), (Some(2), Some(0)));
        for port in [0x80, 0xED] {
            assert!(!legacy.write(port, 0x5A));
            assert_eq!(legacy.read(port), Some(0x5A));
        }
        assert_eq!(legacy.read(0x81), None);
    }
}
