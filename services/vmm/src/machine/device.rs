//! The VMM's view of a device server: its ports, its interrupt line and what it leaves in its pages.

use super::CPU;
use crate::chipset::Chipset;
use alloc::vec::Vec;
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::manifest::{self, DeviceKind, PortRange};
use ipc_schema::state_page::{Access, Outcome, StatePage, kind};

/// Where a device's interrupts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupts {
    /// To a line, by GSI.
    Line(u32),
    /// To a PCI function, by its number on the bus.
    Function(usize),
}

/// One device server.
pub struct Device<'a> {
    /// What it answers; a PCI function, where its guest has put it, or nothing ([`NOWHERE`]).
    pub(super) ports: PortRange,
    pub(super) doorbell: Option<u16>,
    interrupts: Interrupts,
    kind: DeviceKind,
    reader: InterruptReader<'a>,
    state: &'a StatePage,
    /// Its line's level, a bit of the page's, as the chipset last saw it.
    levels: u64,
    /// Stamps given to accesses that the VMM asks for.
    stamps: u32,
    /// The first ports of the routes that a PCI function has.
    pub(super) routes: Vec<u16>,
}

/// No ports.
pub(super) const NOWHERE: PortRange = PortRange::new(0, 0);

impl<'a> Device<'a> {
    /// The device of the description, with its shared pages.
    #[must_use]
    pub fn new(device: &manifest::Device, irq: &'a InterruptPage, state: &'a StatePage) -> Self {
        let gsi = u32::from(device.irq);
        let (interrupts, reader) = match device.kind.slot() {
            // Until it is plugged in.
            Some(_) => (
                Interrupts::Function(usize::MAX),
                InterruptReader::function(irq),
            ),
            None => (
                Interrupts::Line(gsi),
                InterruptReader::new(irq, 1u64.checked_shl(gsi).unwrap_or(0)),
            ),
        };
        Self {
            ports: device.ports,
            doorbell: device.doorbell,
            interrupts,
            kind: device.kind,
            reader,
            state,
            levels: 0,
            stamps: 0,
            routes: Vec::new(),
        }
    }

    /// Its number on the PCI bus, if it is a function there.
    pub(super) fn function(&self) -> Option<usize> {
        match self.interrupts {
            Interrupts::Line(_) => None,
            Interrupts::Function(number) => Some(number),
        }
    }

    /// It has been plugged in under this number.
    pub(super) fn plugged(&mut self, number: usize) {
        self.interrupts = Interrupts::Function(number);
    }

    /// Its virtqueues.
    pub(super) fn queues(&self) -> u16 {
        self.kind.queues()
    }

    /// Those of its virtqueues at which it waits for more; told once.
    pub(super) fn held(&self) -> u64 {
        match self.queues() {
            0 => 0,
            queues => {
                let others = u64::MAX.checked_shl(queues.into()).unwrap_or(0);
                self.reader.take_held() & !others
            }
        }
    }

    /// An access that the VMM is to ask for, told from all before it.
    pub(super) fn stamped(&mut self, access: PortAccess) -> PortAccess {
        self.stamps = self.stamps.wrapping_add(1);
        access.stamped(self.stamps)
    }

    /// Number of commits so far.
    pub(super) fn sequence(&self) -> u64 {
        self.state.sequence()
    }

    /// What became of an access that the server had taken.
    pub(super) fn outcome(&self, access: PortAccess, value: u32) -> Outcome {
        let kind = match self.kind {
            DeviceKind::Uart => kind::UART,
            DeviceKind::Rtc => kind::RTC,
            DeviceKind::TestDev => kind::TESTDEV,
            DeviceKind::VirtioRng { .. } => kind::VIRTIO_RNG,
            DeviceKind::VirtioBlk { .. } => kind::VIRTIO_BLK,
            DeviceKind::VirtioNet { .. } => kind::VIRTIO_NET,
            DeviceKind::VirtioConsole { .. } => kind::VIRTIO_CONSOLE,
        };
        self.state.outcome(kind, Access::of(access, value))
    }

    /// Whether all of `width` bytes from `port` on are its own.
    #[inline]
    pub(super) fn has(&self, port: u16, width: u8) -> bool {
        let first = u32::from(port);
        first >= u32::from(self.ports.first) && first + u32::from(width) <= self.ports.end()
    }

    /// Whether some of them are.
    #[inline]
    pub(super) fn touches(&self, port: u16, width: u8) -> bool {
        let first = u32::from(port);
        first < self.ports.end() && first + u32::from(width) > u32::from(self.ports.first)
    }
}

/// Takes the devices' lines to the interrupt controllers. True if one moved.
#[inline]
pub(super) fn look(devices: &mut [Device<'_>], chipset: &mut Chipset) -> bool {
    let mut moved = false;
    for device in devices {
        let lines = device.reader.look();
        if lines.rises != 0 || lines.levels != device.levels {
            device.levels = lines.levels;
            match device.interrupts {
                Interrupts::Line(gsi) => chipset.line(gsi, lines.rises != 0, lines.levels != 0),
                Interrupts::Function(number) => {
                    chipset.function_signals(number, lines.rises, lines.pin());
                }
            }
            moved = true;
        }
    }
    moved
}

/// Before an EOI: a level-triggered line that has fallen must be seen to have before its interrupt ends.
#[inline]
pub(super) fn look_before_end(devices: &mut [Device<'_>], chipset: &mut Chipset) {
    if chipset.ends_level(CPU) {
        look(devices, chipset);
    }
}
