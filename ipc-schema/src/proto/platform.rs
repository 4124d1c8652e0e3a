//! What one asks the platform server: interrupts, the machine's parts, its power.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use super::{CpuState, Refusal};

/// What one asks the platform server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlatformRequest {
    /// Routes a global system interrupt to the caller; the Irq capability comes with the answer
    /// [`PlatformResponse::Irq`].
    ClaimIrq {
        /// The global system interrupt; ISA interrupts are translated by their overrides.
        gsi: u32,
    },
    /// Switches the machine off, or ends the emulator with this code. Answered only if it failed.
    PowerOff {
        /// The code.
        code: u32,
    },
    /// What the machine has. Answer: [`PlatformResponse::Machine`].
    Describe,
    /// The interrupt has been handled: a level-triggered one may come again. Answer: [`PlatformResponse::Done`].
    Unmask {
        /// The global system interrupt.
        gsi: u32,
    },
    /// Starts the machine again. Answered only if it failed.
    Reset,
    /// Routes a global system interrupt to a processor's vector, which root took for it. Answer:
    /// [`PlatformResponse::Irq`].
    RouteIrq {
        /// The global system interrupt; ISA interrupts are translated by their overrides.
        gsi: u32,
        /// The vector.
        vector: u8,
        /// The processor's local APIC id.
        apic_id: u32,
    },
    /// Root only: a processor beside the first, with its Cpu capability if it is online. The answer is
    /// [`PlatformResponse::Processor`]; `Unknown`: there are no more.
    Processor {
        /// Which, from 0 on.
        index: u32,
    },
    /// Root only: the PCI function of this vendor that is one of these devices. The answer is [`PlatformResponse::Function`]; `Unknown`:
    /// there are no more.
    Function {
        /// The vendor.
        vendor: u16,
        /// The devices.
        devices: Vec<u16>,
        /// Which of those that there are, from 0 on.
        index: u32,
    },
    /// Root only: lets a PCI function answer in memory, reach memory itself, and interrupt by MSI-X, by its first message alone. Answer:
    /// [`PlatformResponse::Done`].
    StartFunction {
        /// Its address, as in [`PciDevice`].
        address: u16,
        /// The vector.
        vector: u8,
        /// The processor's local APIC id.
        apic_id: u32,
    },
}

/// What the platform server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlatformResponse {
    /// Done.
    Done,
    /// Not done.
    Refused(Refusal),
    /// The interrupt is the caller's.
    Irq {
        /// It is level-triggered: masked after each interrupt until [`PlatformRequest::Unmask`].
        level: bool,
        /// It is active low.
        active_low: bool,
    },
    /// What the machine has.
    Machine(Machine),
    /// A processor.
    Processor {
        /// Its number in the kernel.
        number: u32,
        /// Its local APIC id.
        apic_id: u32,
        /// Whether it came up.
        state: CpuState,
    },
    /// A PCI function.
    Function(PciFunction),
}

/// What the machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Local APIC ids of its processors.
    pub processors: Vec<u32>,
    /// I/O APICs.
    pub ioapics: Vec<IoApic>,
    /// PCI devices, as many as fit.
    pub pci: Vec<PciDevice>,
    /// Whether it can be switched off through ACPI.
    pub acpi_power_off: bool,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// Its first global system interrupt.
    pub gsi_base: u32,
    /// How many it has.
    pub lines: u32,
}

/// A PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Bus 8..16, device 3..8, function 0..3.
    pub address: u16,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass and programming interface: 16..24, 8..16, 0..8.
    pub class: u32,
}

/// A PCI function, as its driver has to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunction {
    /// Its address, as in [`PciDevice`].
    pub address: u16,
    /// Its configuration space (PCI Local Bus 3.0, 6.1), as it was.
    pub config: Vec<u8>,
    /// Its ranges of memory, but for the one that its MSI-X table is in.
    pub bars: Vec<PciBar>,
}

/// A range of memory that a PCI function answers in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBar {
    /// The number of its (first) base address register.
    pub number: u8,
    /// Its physical address.
    pub base: u64,
    /// Its bytes.
    pub len: u64,
}
