//! A function: its configuration space, its BARs, its interrupts.

use ipc_schema::interrupt_page::Pin;
use ipc_schema::manifest::PortRange;

use super::msi::Msi;
use super::msix::{self, Message, Msix};
use super::space::{
    BAR0, COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, COMMAND_NO_INTX, Identity,
    STATUS_INTX, Space,
};
use crate::chipset::map;

/// BARs of a header of type 0.
pub const BARS: u8 = 6;
/// BAR: in I/O space.
const IO_SPACE: u32 = 1;
/// Flags of a BAR in I/O space and of one in memory.
const IO_FLAGS: u32 = 3;
const MEMORY_FLAGS: u32 = 15;

/// A range of addresses that a function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bar {
    /// None.
    Absent,
    /// So many ports.
    Io(u32),
    /// So many bytes of memory below 4 GiB, not prefetchable.
    Memory(u32),
}

/// What a write to configuration space has changed beside the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Where the function answers.
    pub ranges: bool,
    /// Whether its interrupts get through.
    pub interrupts: bool,
}

/// A window into a BAR from configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    /// Offset of the capability that it is.
    at: u8,
}

/// An access to a BAR through configuration space (virtio 1.2, 4.1.4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// The BAR's number.
    pub bar: u8,
    /// Offset in it.
    pub offset: u32,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
}

/// One function.
#[derive(Clone, Debug)]
pub struct Function {
    pub(super) space: Space,
    bars: [Bar; BARS as usize],
    msix: Option<(Msix, u8)>,
    msi: Option<Msi>,
    window: Option<Window>,
    /// The device's interrupt, as its pin would show it, and how often that has risen.
    pin: Pin,
}

impl Function {
    /// One that answers nowhere but in configuration space.
    pub fn new(identity: &Identity) -> Self {
        Self {
            space: Space::new(identity),
            bars: [Bar::Absent; BARS as usize],
            msix: None,
            msi: None,
            window: None,
            pin: Pin::default(),
        }
    }

    /// Gives it BAR number `bar`, in I/O space at `base`, with `size` ports (a power of two, at least four).
    pub fn io_bar(&mut self, bar: u8, base: u32, size: u32) {
        self.bar(bar, base | IO_SPACE, !(size - 1) & !IO_FLAGS, Bar::Io(size));
        self.can(COMMAND_IO);
    }

    /// Gives it BAR number `bar`, in memory at `base`, with `size` bytes (a power of two, at least 16).
    pub fn memory_bar(&mut self, bar: u8, base: u32, size: u32) {
        self.bar(bar, base, !(size - 1) & !MEMORY_FLAGS, Bar::Memory(size));
        self.can(COMMAND_MEMORY);
    }

    fn bar(&mut self, number: u8, value: u32, writable: u32, bar: Bar) {
        if let Some(place) = self.bars.get_mut(usize::from(number)) {
            *place = bar;
            self.space.define(BAR0 + 4 * number, value, writable);
        }
    }

    /// Gives it these bits of the command register, set: firmware would have set them.
    fn can(&mut self, bits: u32) {
        let writable = self.commands() | bits;
        let value = self.space.get(COMMAND) | bits;
        self.space.define(COMMAND, value, writable);
    }

    /// Bits of the command register that it has.
    fn commands(&self) -> u32 {
        let has = |io: bool| {
            self.bars.iter().any(|bar| match bar {
                Bar::Absent => false,
                Bar::Io(_) => io,
                Bar::Memory(_) => !io,
            })
        };
        let mut bits = COMMAND_MASTER | COMMAND_NO_INTX;
        for (io, bit) in [(true, COMMAND_IO), (false, COMMAND_MEMORY)] {
            if has(io) {
                bits |= bit;
            }
        }
        bits
    }

    /// Gives it MSI-X with so many vectors, in a memory BAR of its own at `base`.
    pub fn msix(&mut self, vectors: u16, bar: u8, base: u32) {
        self.memory_bar(bar, base, msix::BAR_SIZE);
        self.msix = Msix::new(&mut self.space, vectors, bar).map(|msix| (msix, bar));
    }

    /// Gives it MSI.
    pub fn msi(&mut self) {
        self.msi = Msi::new(&mut self.space);
    }

    /// Makes the capability at `at` the window into its BARs.
    pub(super) fn window(&mut self, at: u8) {
        self.window = Some(Window { at });
    }

    /// The doubleword at `offset`.
    pub fn read(&self, offset: u8) -> u32 {
        let value = self.space.get(offset);
        if offset == COMMAND && self.pin.level() {
            value | STATUS_INTX
        } else {
            value
        }
    }

    /// Writes those bits of the doubleword at `offset` that are in `mask`.
    pub fn write(&mut self, offset: u8, value: u32, mask: u32) -> Changed {
        let offset = offset & !3;
        let changed = self.space.write(offset, value, mask);
        let level = self.pin.level();
        let msi = self.msi.as_mut();
        let control = self.msix.as_ref().is_some_and(|m| m.0.is_control(offset))
            || msi.is_some_and(|m| m.changed(&self.space, offset, changed, level));
        let bars = BAR0..BAR0 + 4 * BARS;
        let decodes = offset == COMMAND && changed & (COMMAND_IO | COMMAND_MEMORY) != 0;
        Changed {
            ranges: decodes || changed != 0 && bars.contains(&offset),
            interrupts: changed != 0 && (control || offset == COMMAND),
        }
    }

    /// What an access of `width` bytes at byte `lane` of the doubleword at `offset` does beside: if that is the window's data, the
    /// access is one to a BAR. `Some(None)`: to nothing.
    pub fn through(&self, offset: u8, lane: u8, width: u8) -> Option<Option<Through>> {
        /// Offsets in the capability: number of the BAR, offset, length, data (virtio 1.2, 4.1.4 and 4.1.4.9).
        const BAR: u8 = 4;
        const OFFSET: u8 = 8;
        const LENGTH: u8 = 12;
        const DATA: u8 = 16;
        let at = self.window?.at;
        if offset & !3 != at + DATA {
            return None;
        }
        let through = Through {
            bar: self.space.get(at + BAR) as u8,
            offset: self.space.get(at + OFFSET),
            width,
        };
        let wanted = self.space.get(at + LENGTH);
        let fits = lane == 0
            && matches!(width, 1 | 2 | 4)
            && wanted == u32::from(width)
            && through.offset.is_multiple_of(wanted)
            && self.size(through.bar).is_some_and(|s| through.offset < s);
        Some(fits.then_some(through))
    }

    /// Bytes or ports of a BAR.
    fn size(&self, bar: u8) -> Option<u32> {
        match self.bars.get(usize::from(bar))? {
            Bar::Absent => None,
            Bar::Io(size) | Bar::Memory(size) => Some(*size),
        }
    }

    /// What a BAR's register says of the address, whether or not the function answers there.
    pub fn base(&self, bar: u8) -> u32 {
        let flags = match self.bars.get(usize::from(bar)) {
            Some(Bar::Io(_)) => IO_FLAGS,
            _ => MEMORY_FLAGS,
        };
        self.space.get(BAR0 + 4 * (bar % BARS)) & !flags
    }

    /// Ports that it answers: of its first BAR in I/O space, if it is on and the range is one for PCI.
    pub fn ports(&self) -> Option<PortRange> {
        if self.space.get(COMMAND) & COMMAND_IO == 0 {
            return None;
        }
        let (number, size) = (0u8..).zip(&self.bars).find_map(|(i, bar)| match bar {
            Bar::Io(size) => Some((i, *size)),
            _ => None,
        })?;
        let first = u16::try_from(self.base(number)).ok()?;
        let range = PortRange::new(first, u16::try_from(size).ok()?);
        (first >= map::PCI_IO_BASE && range.end() <= 1 + u32::from(map::PCI_IO_LAST))
            .then_some(range)
    }

    /// The BAR that answers at guest-physical `gpa`, and the offset in it.
    pub fn at(&self, gpa: u64) -> Option<(u8, u32)> {
        if self.space.get(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        (0u8..).zip(&self.bars).find_map(|(i, bar)| match bar {
            Bar::Memory(size) => {
                let offset = u32::try_from(gpa).ok()?.checked_sub(self.base(i))?;
                (offset < *size).then_some((i, offset))
            }
            _ => None,
        })
    }

    /// The BAR that its MSI-X table is in.
    pub fn table(&mut self, bar: u8) -> Option<&mut Msix> {
        match &mut self.msix {
            Some((msix, at)) if *at == bar => Some(msix),
            _ => None,
        }
    }

    /// What its device says: vectors newly signalled, and its pin.
    #[inline]
    pub fn signal(&mut self, vectors: u64, pin: Pin) {
        if pin != self.pin {
            let before = core::mem::replace(&mut self.pin, pin);
            if let Some(msi) = self.msi.as_mut().filter(|_| pin.rose(before)) {
                msi.signal();
            }
        }
        if let Some((msix, _)) = &mut self.msix {
            msix.signal(vectors);
        }
    }

    /// The next message to be sent. A message is a write to memory: without leave for that it waits.
    #[inline]
    pub fn take_message(&mut self) -> Option<Message> {
        if self.space.get(COMMAND) & COMMAND_MASTER == 0 {
            return None;
        }
        if let Some((msix, _)) = &mut self.msix
            && msix.enabled(&self.space)
        {
            return msix.take(&self.space);
        }
        self.msi.as_mut()?.take(&self.space)
    }

    /// Whether its pin asserts. It never does while it uses MSI-X (6.8.3.3), or MSI (6.8.1.3).
    pub fn asserts(&self) -> bool {
        let space = &self.space;
        let messages = self.msix.as_ref().is_some_and(|m| m.0.enabled(space))
            || self.msi.as_ref().is_some_and(|m| m.enabled(space));
        self.pin.level() && !messages && space.get(COMMAND) & COMMAND_NO_INTX == 0
    }
}
