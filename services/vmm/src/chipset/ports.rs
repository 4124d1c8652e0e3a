//! I/O space: which port is whose. Accesses of more than a byte are split as an ISA bus would, but for the few registers
//! that are wider.

use super::functions::Configured;
use super::{Chipset, Effect, map, width_mask};

impl Chipset {
    /// IN of `width` (1, 2 or 4) bytes. What is not there reads ones.
    pub fn pio_read(&mut self, port: u16, width: u8, now: u64) -> u32 {
        match port {
            // In one piece: guests that keep time by it read it all the time.
            map::PM_TIMER if width == 4 => return self.pm.timer(now),
            map::PCI_CONFIG_ADDRESS if width == 4 => return self.pci.address(),
            0xCFC..=0xCFF => return self.configure_by_ports(port, width, None).0,
            _ => {}
        }
        let mut value = u32::MAX;
        for lane in 0..u32::from(width.min(4)) {
            let byte =
                u16::try_from(u32::from(port) + lane).map_or(0xFF, |port| self.read8(port, now));
            value = value & !(0xFF << (8 * lane)) | u32::from(byte) << (8 * lane);
        }
        value & width_mask(width)
    }

    /// OUT of `width` (1, 2 or 4) bytes.
    pub fn pio_write(&mut self, port: u16, width: u8, value: u32, now: u64) -> Effect {
        match port {
            map::PCI_CONFIG_ADDRESS if width == 4 => {
                self.pci.set_address(value);
                return Effect::None;
            }
            0xCFC..=0xCFF => return self.configure_by_ports(port, width, Some(value)).1,
            map::DEBUG_EXIT if self.debug_exit => {
                return Effect::DebugExit(value & width_mask(width));
            }
            _ => {}
        }
        let mut effect = Effect::None;
        for (lane, byte) in (0u16..)
            .zip(value.to_le_bytes())
            .take(usize::from(width.min(4)))
        {
            if let Some(port) = port.checked_add(lane)
                && effect == Effect::None
            {
                effect = self.write8(port, byte, now);
            }
        }
        if effect == Effect::None {
            self.next_effect()
        } else {
            effect
        }
    }

    /// An access of CONFIG_DATA that whoever has the devices' servers has not taken: a window to their registers leads to nothing here.
    fn configure_by_ports(&mut self, port: u16, width: u8, value: Option<u32>) -> (u32, Effect) {
        let access = self.pci.by_ports(port as u8 & 3, width);
        match self.configure(access, value) {
            Configured::Done(value, effect) => (value, effect),
            Configured::Through(..) => (width_mask(width), Effect::None),
        }
    }

    /// Reads a byte of I/O space.
    fn read8(&mut self, port: u16, now: u64) -> u8 {
        match port {
            0x40..=0x43 => {
                self.sync_pit(now);
                self.pit.read(port, now)
            }
            map::PORT_B => {
                self.sync_pit(now);
                self.pit.read_port_b(now)
            }
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => {
                self.sync_pit(now);
                let value = self.pic.read(port);
                self.pic_changed();
                value
            }
            map::PM1A_EVENT..=0x623 => {
                let value = self.pm.read(port, now);
                self.update_sci();
                value.unwrap_or(0xFF)
            }
            _ => self.legacy.read(port).unwrap_or(0xFF),
        }
    }

    /// Writes a byte of I/O space.
    fn write8(&mut self, port: u16, value: u8, now: u64) -> Effect {
        match port {
            0x40..=0x43 => {
                self.sync_pit(now);
                self.pit.write(port, value, now);
                self.update_deadline();
            }
            map::PORT_B => {
                self.sync_pit(now);
                self.pit.write_port_b(value, now);
            }
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => {
                self.sync_pit(now);
                self.bus.ways.forget();
                self.pic.write(port, value);
                self.pic_changed();
                self.update_deadline();
            }
            map::PM1A_EVENT..=0x623 => {
                if self.pm.write(port, value, now) {
                    return Effect::PowerOff;
                }
                self.update_sci();
                self.update_deadline();
            }
            // Bit 2 resets the processor; the other bits say how hard.
            map::RESET if value & 4 != 0 => return Effect::Reset,
            _ if self.legacy.write(port, value) => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }
}
