//! I/O ports: ranges of them, and which the VMM has itself.

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::Vm;
use super::{CheckError, Fault, Place};

/// The guest's debug-exit port, present when [`Vm::debug_exit`] is set.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// Ports that every VMM serves itself (PIC, PIT, port 0x61, reset, PCI configuration space, ACPI).
pub const VMM_PORTS: [PortRange; 9] = [
    PortRange::new(0x20, 2),
    PortRange::new(0x40, 4),
    PortRange::new(0x61, 1),
    PortRange::new(0x92, 1),
    PortRange::new(0xa0, 2),
    PortRange::new(0x4d0, 2),
    PortRange::new(0x600, 0x40),
    PortRange::new(0xcf8, 8),
    PortRange::new(0xb2, 2),
];

/// A range of I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Number of ports.
    pub count: u16,
}

impl PortRange {
    /// `count` ports from `first` on.
    pub const fn new(first: u16, count: u16) -> Self {
        Self { first, count }
    }

    /// One past the last port; at most 0x10000 in a range that passed the check.
    pub const fn end(self) -> u32 {
        // Two u16 cannot overflow a u32.
        self.first as u32 + self.count as u32
    }

    /// Whether a port is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        (self.first as u32) < other.end() && (other.first as u32) < self.end()
    }
}

/// Whether a range is of so many ports, all of them there.
pub(super) fn check_ports(place: Place, ports: PortRange, count: u16) -> Result<(), CheckError> {
    if ports.count != count || ports.end() > 0x1_0000 {
        let fault = Fault::BadPorts;
        return Err(CheckError { place, fault });
    }
    Ok(())
}
