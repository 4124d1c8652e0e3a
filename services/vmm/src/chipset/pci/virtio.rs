//! A virtio device as a PCI function (virtio 1.2, 4.1).
//!
//! BAR 0, in I/O space, has all that the device's server answers; BAR 1, in memory, is the MSI-X table, which is the VMM's; BAR 2, in
//! memory, is the registers once more, for drivers that take no ports: the VMM forwards. A window from configuration space leads to all
//! of them (4.1.4.9).

use super::{Function, Identity, msix};
use ipc_schema::manifest::Registers;
use ipc_schema::virtio::{
    BAR_SIZE, COMMON, COMMON_LEN, DEVICE, DEVICE_0, DEVICE_LEN, ISR, ISR_LEN, Identity as Who,
    NOTIFY, NOTIFY_LEN, NOTIFY_MULTIPLIER, VENDOR,
};

/// Number of the BAR that is the device's registers.
pub const REGISTERS: u8 = 0;
/// Number of the BAR that is the MSI-X table.
const TABLE: u8 = 1;
/// Number of the BAR that is the registers in memory.
pub const MEMORY: u8 = 2;
/// Bytes of it: a page, since a guest gives rights by pages. Behind the registers is nothing.
const MEMORY_SIZE: u32 = 0x1000;
/// Bytes of memory that a function is given.
pub const GIVEN: u32 = msix::BAR_SIZE + MEMORY_SIZE;

/// Vendor-specific capability (PCI Local Bus 3.0, appendix H).
const VENDOR_SPECIFIC: u32 = 0x09;

/// Configuration structure types (4.1.4).
mod structure {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const WINDOW: u8 = 5;
}

/// What tells one kind of virtio device from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Device ID (5).
    pub id: u16,
    /// PCI class, subclass and programming interface.
    pub class: u32,
    /// Virtqueues.
    pub queues: u16,
    /// Bytes of device-specific configuration, 0 if it has none.
    pub config: u32,
}

impl Kind {
    /// This kind with so many queues.
    #[must_use]
    pub const fn of(who: &Who, queues: u16) -> Self {
        Self {
            id: who.id,
            class: who.class,
            queues,
            config: who.config_len as u32,
        }
    }
}

/// What firmware would have given a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its first port.
    pub io: u16,
    /// Address of its [`GIVEN`] bytes of memory: its MSI-X table, and its registers.
    pub memory: u32,
    /// The input of the 8259 pair that its pin leads to.
    pub irq: Option<u8>,
    /// Where its registers are shown first.
    pub first: Registers,
}

/// Makes the function.
pub fn function(kind: &Kind, given: &Given) -> Function {
    /// Interrupt line: unknown, or no connection (PCI Local Bus 3.0, 6.2.4).
    const NO_LINE: u8 = 0xFF;
    let mut function = Function::new(&Identity {
        vendor: VENDOR,
        device: DEVICE_0.saturating_add(kind.id),
        // At least 1 (4.1.2.1).
        revision: 1,
        class: kind.class,
        subsystem: (VENDOR, DEVICE_0.saturating_add(kind.id)),
    });
    function.space.interrupt(given.irq.unwrap_or(NO_LINE));
    function.io_bar(REGISTERS, given.io.into(), BAR_SIZE.into());
    function.msix(Who::vectors(kind.queues), TABLE, given.memory);
    let memory = given.memory.saturating_add(msix::BAR_SIZE);
    function.memory_bar(MEMORY, memory, MEMORY_SIZE);
    let bars = match given.first {
        Registers::Ports => [REGISTERS, MEMORY],
        Registers::Memory => [MEMORY, REGISTERS],
    };
    for bar in bars {
        structures(&mut function, kind, bar);
    }
    window(&mut function);
    function.msi();
    function
}

/// The structures of a device, all in the BAR of this number.
fn structures(function: &mut Function, kind: &Kind, bar: u8) {
    let common = (COMMON, COMMON_LEN);
    capability(function, bar, structure::COMMON, common, &[]);
    let multiplier = [(NOTIFY_MULTIPLIER.into(), 0)];
    let notify = (NOTIFY, NOTIFY_LEN);
    capability(function, bar, structure::NOTIFY, notify, &multiplier);
    capability(function, bar, structure::ISR, (ISR, ISR_LEN), &[]);
    if kind.config != 0 {
        let range = (DEVICE, DEVICE_LEN.min(kind.config as u16));
        capability(function, bar, structure::DEVICE, range, &[]);
    }
}

/// First doubleword of a capability of so many doublewords.
fn head(doublewords: usize, kind: u8) -> u32 {
    let len = (doublewords * 4) as u32;
    VENDOR_SPECIFIC | len << 16 | u32::from(kind) << 24
}

/// A structure in this BAR: offset and length; what follows in its capability.
fn capability(
    function: &mut Function,
    bar: u8,
    kind: u8,
    (at, len): (u16, u16),
    more: &[(u32, u32)],
) {
    let common = [
        (head(4 + more.len(), kind), 0),
        (bar.into(), 0),
        (at.into(), 0),
        (len.into(), 0),
    ];
    let words: alloc::vec::Vec<_> = common.iter().chain(more).copied().collect();
    let _ = function.space.capability(&words);
}

/// The window: BAR, offset and length can be written (4.1.4.9.1); its data is the BAR's.
fn window(function: &mut Function) {
    let words = [
        (head(5, structure::WINDOW), 0),
        (0, 0xFF),
        (0, u32::MAX),
        (0, u32::MAX),
        (0, 0),
    ];
    if let Some(at) = function.space.capability(&words) {
        function.window(at);
    }
}
