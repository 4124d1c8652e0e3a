//! PCI configuration space by mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2): the host bridge and what is plugged in.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// CONFIG_ADDRESS: accesses of the data ports go to configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: bits that can be written: enable, bus, device, function, doubleword.
const ADDRESS_BITS: u32 = 0x80FF_FFFC;

/// A function on bus 0.
pub trait Function: Send {
    /// Reads the doubleword at byte `offset` (a multiple of 4) of its configuration space.
    fn read(&mut self, offset: u8) -> u32;
    /// Writes those bits of the doubleword at byte `offset` that are set in `mask`.
    fn write(&mut self, offset: u8, value: u32, mask: u32);
}

/// The host bridge, at 00:00.0. Nothing of it can be written.
struct HostBridge;

impl Function for HostBridge {
    fn read(&mut self, offset: u8) -> u32 {
        match offset {
            // A virtual host bridge that no driver knows, so that none applies a real chipset's workarounds.
            0x00 => 0x0D57_8086,
            // Class 06, subclass 00: host bridge.
            0x08 => 0x0600_0000,
            _ => 0,
        }
    }

    fn write(&mut self, _offset: u8, _value: u32, _mask: u32) {}
}

/// Configuration mechanism #1 and the functions of bus 0.
pub struct Pci {
    address: u32,
    /// By device and function number.
    functions: Vec<(u8, Box<dyn Function>)>,
}

impl Default for Pci {
    fn default() -> Self {
        let bridge: Box<dyn Function> = Box::new(HostBridge);
        Self {
            address: 0,
            functions: Vec::from([(0, bridge)]),
        }
    }
}

impl fmt::Debug for Pci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pci")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Pci {
    /// Plugs `function` in as `device` (0 to 31), `number` (0 to 7) of bus 0. False if the place is taken or not there.
    pub fn add(&mut self, device: u8, number: u8, function: Box<dyn Function>) -> bool {
        let place = device << 3 | number;
        if device > 31 || number > 7 || self.functions.iter().any(|&(taken, _)| taken == place) {
            return false;
        }
        self.functions.push((place, function));
        true
    }

    /// CONFIG_ADDRESS.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Writes CONFIG_ADDRESS.
    pub fn set_address(&mut self, value: u32) {
        self.address = value & ADDRESS_BITS;
    }

    /// The function that the address selects, and the doubleword's offset.
    fn selected(&mut self) -> Option<(&mut dyn Function, u8)> {
        let [offset, place, bus, _] = self.address.to_le_bytes();
        if self.address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let (_, function) = self
            .functions
            .iter_mut()
            .find(|&&mut (at, _)| at == place)?;
        Some((function.as_mut(), offset))
    }

    /// Reads `width` bytes of CONFIG_DATA from byte `lane` on; what is not there, or beyond, reads ones.
    pub fn read(&mut self, lane: u8, width: u8) -> u32 {
        let value = self
            .selected()
            .map_or(u32::MAX, |(function, offset)| function.read(offset));
        let lane = u32::from(lane & 3) * 8;
        let shifted = (u64::from(value) | 0xFFFF_FFFF_0000_0000) >> lane;
        shifted as u32 & super::width_mask(width)
    }

    /// Writes `width` bytes of CONFIG_DATA from byte `lane` on.
    pub fn write(&mut self, lane: u8, width: u8, value: u32) {
        let lane = u32::from(lane & 3) * 8;
        let mask = super::width_mask(width) << lane;
        if let Some((function, offset)) = self.selected() {
            function.write(offset, value << lane, mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers everything that was written to its one doubleword.
    struct Scratch(u32);

    impl Function for Scratch {
        fn read(&mut self, offset: u8) -> u32 {
            if offset == 0x40 { self.0 } else { 0x1234_5678 }
        }
        fn write(&mut self, offset: u8, value: u32, mask: u32) {
            if offset == 0x40 {
                self.0 = self.0 & !mask | value & mask;
            }
        }
    }

    #[test]
    fn the_host_bridge_is_the_only_function() {
        let mut pci = Pci::default();
        assert_eq!(pci.read(0, 4), u32::MAX);
        pci.set_address(0x8000_0008);
        assert_eq!((pci.read(2, 2), pci.read(3, 1)), (0x0600, 0x06));
        pci.set_address(0x8000_0000);
        assert_eq!((pci.read(0, 2), pci.read(2, 2)), (0x8086, 0x0D57));
        pci.write(0, 4, 0);
        assert_eq!(pci.read(0, 2), 0x8086);
        for place in 1..0x1_0000u32 {
            pci.set_address(ENABLE | place << 8);
            assert_eq!(pci.read(0, 4), u32::MAX);
        }
    }

    #[test]
    fn lanes_and_widths() {
        let mut pci = Pci::default();
        assert!(pci.add(3, 1, Box::new(Scratch(0))));
        assert!(!pci.add(3, 1, Box::new(Scratch(0))));
        assert!(!pci.add(0, 0, Box::new(Scratch(0))));
        assert!(!pci.add(32, 0, Box::new(Scratch(0))));
        pci.set_address(0xFFFF_FFFF);
        assert_eq!(pci.address(), ADDRESS_BITS);
        pci.set_address(ENABLE | 3 << 11 | 1 << 8 | 0x40);
        pci.write(0, 4, 0x4433_2211);
        pci.write(1, 1, 0xFFAA);
        pci.write(2, 2, 0xBBCC);
        assert_eq!(pci.read(0, 4), 0xBBCC_AA11);
        assert_eq!(
            (pci.read(1, 1), pci.read(1, 2), pci.read(3, 1)),
            (0xAA, 0xCCAA, 0xBB)
        );
        // What lies beyond the last port is nobody's.
        assert_eq!(pci.read(3, 2), 0xFFBB);
        pci.write(3, 4, 0x0102_0304);
        assert_eq!(pci.read(0, 4), 0x04CC_AA11);
    }
}
