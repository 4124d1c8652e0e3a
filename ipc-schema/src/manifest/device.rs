//! What a VM's devices are.

use alloc::string::String;
use serde::{Deserialize, Serialize};

use super::{PortRange, Ports};
use crate::virtio::net_queues;

/// What a device model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// 16550A serial port, eight ports.
    Uart,
    /// MC146818 real-time clock, two ports.
    Rtc,
    /// Our own test device, sixteen ports and a doorbell.
    TestDev,
    /// Virtio entropy source.
    VirtioRng {
        /// Its device number on PCI bus 0.
        slot: u8,
    },
    /// Virtio block device.
    VirtioBlk {
        /// Its device number on PCI bus 0.
        slot: u8,
        /// The number of its disk in [`super::System::disks`].
        disk: u32,
        /// Its virtqueues, at most [`super::MAX_QUEUES`].
        queues: u16,
        /// Packed virtqueues are offered.
        packed: bool,
    },
    /// Virtio network card.
    VirtioNet {
        /// Its device number on PCI bus 0.
        slot: u8,
        /// Cards of one number reach each other.
        network: u32,
        /// Its Ethernet address.
        mac: [u8; 6],
        /// Bytes per second that its guest may send; 0: no limit.
        rate: u64,
        /// Packed virtqueues are offered.
        packed: bool,
        /// Its pairs of virtqueues, at most [`super::MAX_PAIRS`]; beside them it has one for control.
        pairs: u16,
    },
    /// Virtio console.
    VirtioConsole {
        /// Its device number on PCI bus 0.
        slot: u8,
        /// Its guest takes the rows before the columns when the window's size changes, as Linux did before 2025; else the columns come
        /// first (virtio 1.2, 5.3.6.2).
        rows_first: bool,
        /// Its ports.
        ports: Ports,
        /// Packed virtqueues are offered.
        packed: bool,
    },
}

impl DeviceKind {
    /// Number of ports it always answers. A PCI function has none: its guest says where it answers.
    pub const fn ports(self) -> u16 {
        match self {
            Self::Uart => 8,
            Self::Rtc => 2,
            Self::TestDev => 16,
            Self::VirtioRng { .. }
            | Self::VirtioBlk { .. }
            | Self::VirtioNet { .. }
            | Self::VirtioConsole { .. } => 0,
        }
    }

    /// Its device number on PCI bus 0, if it is a PCI function: then it has no lines and no ports of its own, but the guest's memory.
    pub const fn slot(self) -> Option<u8> {
        match self {
            Self::Uart | Self::Rtc | Self::TestDev => None,
            Self::VirtioRng { slot }
            | Self::VirtioBlk { slot, .. }
            | Self::VirtioNet { slot, .. }
            | Self::VirtioConsole { slot, .. } => Some(slot),
        }
    }

    /// Its virtqueues, each with a doorbell of its own: bit n of the server's Notification is queue n.
    pub const fn queues(self) -> u16 {
        match self {
            Self::Uart | Self::Rtc | Self::TestDev => 0,
            Self::VirtioRng { .. } => 1,
            Self::VirtioBlk { queues, .. } => queues,
            Self::VirtioNet { pairs, .. } => net_queues(pairs),
            // Not more than 18.
            Self::VirtioConsole { ports, .. } => 2 * (ports.count() as u16 + 1),
        }
    }

    /// Whether it offers packed virtqueues.
    pub const fn packed(self) -> bool {
        match self {
            Self::Uart | Self::Rtc | Self::TestDev => false,
            Self::VirtioRng { .. } => true,
            Self::VirtioBlk { packed, .. }
            | Self::VirtioNet { packed, .. }
            | Self::VirtioConsole { packed, .. } => packed,
        }
    }

    /// The number of its disk in [`super::System::disks`], if it has one.
    pub const fn disk(self) -> Option<u32> {
        match self {
            Self::VirtioBlk { disk, .. } => Some(disk),
            _ => None,
        }
    }

    /// The number of its network, if it is a network card.
    pub const fn network(self) -> Option<u32> {
        match self {
            Self::VirtioNet { network, .. } => Some(network),
            _ => None,
        }
    }

    /// Package name of its server.
    pub const fn package(self) -> &'static str {
        match self {
            Self::Uart => "device-uart",
            Self::Rtc => "device-rtc",
            Self::TestDev => "device-testdev",
            Self::VirtioRng { .. } => "device-virtio-rng",
            Self::VirtioBlk { .. } => "device-virtio-blk",
            Self::VirtioNet { .. } => "device-virtio-net",
            Self::VirtioConsole { .. } => "device-virtio-console",
        }
    }
}

/// One device of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Name of the server instance, unique in the system, as `linux.uart0`.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Archive file of its server.
    pub binary: String,
    /// Guest ports that are routed to it; none for a PCI function.
    pub ports: PortRange,
    /// Guest ISA interrupt line, 0 to 15; 0 for a PCI function, which has none.
    pub irq: u8,
    /// Guest port whose writes only ring its doorbell.
    pub doorbell: Option<u16>,
    /// Where a PCI function shows its registers first; [`Registers::Ports`] for all others.
    pub registers: Registers,
}

/// Where a PCI function shows its registers first: they are in I/O space and in memory, and a driver takes the first that it can use
/// (virtio 1.2, 4.1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Registers {
    /// In I/O space, where its server is reached without the VMM.
    #[default]
    Ports,
    /// In memory, from where the VMM forwards: for a driver that looks at the first alone and takes no ports.
    Memory,
}

impl Device {
    /// All guest ports it takes: its range, and its doorbell when that lies outside.
    pub fn ranges(&self) -> impl Iterator<Item = PortRange> + use<> {
        let ports = self.ports;
        let bell = self.doorbell.map(|port| PortRange::new(port, 1));
        core::iter::once(ports).chain(bell.filter(move |b| !b.overlaps(ports)))
    }
}
