//! PCI bus 0: the host bridge, what is plugged in, and the two ways to configuration space: mechanism #1 (PCI Local Bus 3.0,
//! 3.2.2.3.2) and the enhanced one, ECAM (PCI Express Base 5.0, 7.2.2).
//!
//! Every function is a conventional one: 256 bytes of configuration space; from there on ECAM reads zeroes, which says that there are no
//! extended capabilities (7.9.1), and ignores writes.

mod function;
mod msi;
mod msix;
mod space;
pub mod virtio;

pub use function::{Changed, Function, Through};
pub use msix::{MAX_VECTORS, Message};
pub use space::Identity;

use alloc::vec::Vec;
use ipc_schema::manifest::PortRange;

use super::map;

/// CONFIG_ADDRESS: accesses of the data ports go to configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: bits that can be written: enable, bus, device, function, doubleword.
const ADDRESS_BITS: u32 = 0x80FF_FFFC;
/// First offset that is only reached by ECAM.
const EXTENDED: u16 = 0x100;
/// Lines that the pins of bus 0 are wired to.
pub const PIRQS: u32 = 4;

/// The host bridge. A virtual one that no driver knows, so that none applies a real chipset's workarounds.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x8086,
    device: 0x0D57,
    revision: 0,
    class: 0x06_0000,
    subsystem: (0, 0),
};

/// An access within one doubleword of configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Device and function number; `None`: the address names nothing on bus 0.
    place: Option<u8>,
    offset: u16,
    /// First byte in the doubleword.
    lane: u8,
    /// Bytes. Those beyond the doubleword are nobody's.
    width: u8,
}

impl Access {
    /// The bits of the doubleword that it is about.
    fn mask(&self) -> u32 {
        super::width_mask(self.width) << (u32::from(self.lane & 3) * 8)
    }

    /// Its part of a doubleword; what lies beyond reads ones.
    fn of(&self, word: u32) -> u32 {
        let shifted = (u64::from(word) | 0xFFFF_FFFF_0000_0000) >> (u32::from(self.lane & 3) * 8);
        shifted as u32 & super::width_mask(self.width)
    }
}

/// What is at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A byte of configuration space: the function's place, and its offset.
    Configuration(u8, u16),
    /// A BAR of a function (by its number in the order of [`Pci::add`]), and the offset in it.
    Bar(usize, u8, u32),
}

/// Bus 0.
#[derive(Debug)]
pub struct Pci {
    address: u32,
    /// By device and function number. The first is the host bridge.
    functions: Vec<(u8, Function)>,
    /// Ports that are no PCI function's, whatever a BAR says.
    others: Vec<PortRange>,
    /// Lines that assert, as the interrupt controllers last heard; and the 8259 pair's input that all of them lead to.
    pub(super) asserted: u32,
    pub(super) irq: Option<u8>,
}

impl Default for Pci {
    fn default() -> Self {
        Self {
            address: 0,
            functions: Vec::from([(0, Function::new(&HOST_BRIDGE))]),
            others: Vec::new(),
            asserted: 0,
            irq: None,
        }
    }
}

impl Pci {
    /// Plugs `function` in as function 0 of `device` (1 to 31). Gives its number; `None` if the place is taken or not there.
    pub fn add(&mut self, device: u8, function: Function) -> Option<usize> {
        let place = device << 3;
        if device > 31 || self.functions.iter().any(|&(taken, _)| taken == place) {
            return None;
        }
        self.functions.push((place, function));
        Some(self.functions.len() - 1)
    }

    /// Keeps these ports out of all BARs: they are another device's.
    pub fn keep_out(&mut self, ports: PortRange) {
        self.others.push(ports);
    }

    /// How many functions there are.
    pub(super) fn count(&self) -> usize {
        self.functions.len()
    }

    /// The function of this number, to be changed.
    #[inline]
    pub(super) fn function_mut(&mut self, number: usize) -> Option<&mut Function> {
        self.functions.get_mut(number).map(|(_, function)| function)
    }

    /// The ports that function `number` answers. Where two want the same, it is the earlier one's.
    pub fn ports(&self, number: usize) -> Option<PortRange> {
        let of = |number: usize| self.functions.get(number)?.1.ports();
        let ports = of(number)?;
        let earlier = (0..number).filter_map(of);
        let mut taken = earlier.chain(self.others.iter().copied());
        (!taken.any(|other| other.overlaps(ports))).then_some(ports)
    }

    /// What an I/O BAR of function `number` says of its address, whether or not it answers there.
    pub fn io_base(&self, number: usize, bar: u8) -> u16 {
        let function = self.functions.get(number);
        // I/O space has 64 Ki ports, whatever the register holds.
        function.map_or(0, |(_, function)| function.base(bar) as u16)
    }

    /// What is at `gpa`, an address in the window of PCI: ECAM first, then the functions in their order.
    pub fn locate(&self, gpa: u64) -> Option<Place> {
        if let Some(offset) = gpa.checked_sub(map::ECAM_BASE)
            && offset < map::ECAM_SIZE
        {
            let [_, place, ..] = (offset as u32 >> 4).to_le_bytes();
            return Some(Place::Configuration(place, offset as u16 & 0xFFF));
        }
        (0..).zip(&self.functions).find_map(|(number, (_, f))| {
            let (bar, offset) = f.at(gpa)?;
            Some(Place::Bar(number, bar, offset))
        })
    }

    /// CONFIG_ADDRESS.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Writes CONFIG_ADDRESS.
    pub fn set_address(&mut self, value: u32) {
        self.address = value & ADDRESS_BITS;
    }

    /// An access of CONFIG_DATA, `width` bytes from byte `lane` on.
    pub fn by_ports(&self, lane: u8, width: u8) -> Access {
        let [offset, place, bus, _] = self.address.to_le_bytes();
        let there = self.address & ENABLE != 0 && bus == 0;
        Access {
            place: there.then_some(place),
            offset: offset.into(),
            lane: lane & 3,
            width,
        }
    }

    /// An access by ECAM of `width` bytes, which do not go beyond a doubleword.
    pub fn by_memory(place: u8, offset: u16, width: u8) -> Access {
        Access {
            place: Some(place),
            offset: offset & !3,
            lane: offset as u8 & 3,
            width,
        }
    }

    fn selected(&self, access: Access) -> Option<(usize, &Function)> {
        let place = access.place?;
        let number = self.functions.iter().position(|&(at, _)| at == place)?;
        Some((number, &self.functions.get(number)?.1))
    }

    /// Whether an access goes through a window to a BAR (of the function that is given too): `Some(None)` if to nothing.
    pub fn through(&self, access: Access) -> Option<(usize, Option<Through>)> {
        let (number, function) = self.selected(access)?;
        let offset = u8::try_from(access.offset).ok()?;
        Some((number, function.through(offset, access.lane, access.width)?))
    }

    /// Reads; what is not there reads ones.
    pub fn read(&self, access: Access) -> u32 {
        access.of(match self.selected(access) {
            None => u32::MAX,
            Some(_) if access.offset >= EXTENDED => 0,
            Some((_, function)) => function.read(access.offset as u8),
        })
    }

    /// Writes.
    pub fn write(&mut self, access: Access, value: u32) -> Changed {
        let shifted = value << (u32::from(access.lane & 3) * 8);
        let number = self.selected(access).map(|(number, _)| number);
        match number.and_then(|number| self.function_mut(number)) {
            Some(function) if access.offset < EXTENDED => {
                function.write(access.offset as u8, shifted, access.mask())
            }
            _ => Changed::default(),
        }
    }

    /// The lines that assert now. The pin of device `n` is wired to line `n` modulo [`PIRQS`], as `_PRT` says.
    pub(super) fn lines(&self) -> u32 {
        let asserting = self.functions.iter().filter(|(_, f)| f.asserts());
        asserting.fold(0, |lines, (place, _)| lines | 1 << pirq(place >> 3))
    }
}

/// The line that the pin of `device` is wired to.
pub const fn pirq(device: u8) -> u32 {
    device as u32 % PIRQS
}

#[cfg(test)]
mod tests;
