//! Where the platform's devices are: the one place that the devices and the ACPI tables both take addresses from.
//!
//! All ports are I/O-space addresses, all bases are guest-physical addresses.

/// Base of every vCPU's local APIC page (Intel SDM vol. 3, 11.4.1), the reset value of IA32_APIC_BASE's field.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// Base of the IOAPIC's registers (82093AA datasheet, 3.0).
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Size in bytes of the page that each of the two APICs decodes.
pub const APIC_PAGE_SIZE: u64 = 0x1000;
/// APIC ID of the IOAPIC, for the MADT.
pub const IOAPIC_ID: u8 = 0;
/// Number of the IOAPIC's input pins: GSIs `0..IOAPIC_PINS`.
pub const IOAPIC_PINS: usize = 24;
/// First global system interrupt of the IOAPIC, for the MADT.
pub const IOAPIC_GSI_BASE: u32 = 0;

/// The most vCPUs the platform describes: APIC IDs are 8 bits in the MADT's and IOAPIC's short forms, and 0xFF is
/// the broadcast.
pub const MAX_VCPUS: u32 = 254;

/// Guest-physical memory from here up to [`PCI_END`] is never RAM: PCI has it, BARs first.
pub const PCI_BASE: u64 = 0xC000_0000;
/// End (exclusive) of PCI's memory: the IOAPIC follows.
pub const PCI_END: u64 = IOAPIC_BASE;
/// End (exclusive) of the window for memory BARs.
pub const PCI_BARS_END: u64 = ECAM_BASE;
/// Configuration space in memory (PCI Express Base 5.0, 7.2.2): that of bus 0.
pub const ECAM_BASE: u64 = 0xE000_0000;
/// Its size: 4 KiB a function.
pub const ECAM_SIZE: u64 = 256 << 12;
/// First port of the window for PCI I/O BARs: below is what ISA devices and the platform itself have.
pub const PCI_IO_BASE: u16 = 0x1000;
/// Last port (inclusive) of the window for PCI I/O BARs.
pub const PCI_IO_LAST: u16 = 0xFFFF;
/// Where the first I/O BAR is put.
pub const PCI_IO_FIRST: u16 = 0xC000;
/// The IOAPIC's first pin for PCI functions' own pins, four of them.
pub const PIRQ_GSI: u32 = 16;

/// The interrupt of PIT channel 0 on the 8259 pair.
pub const PIT_IRQ: u8 = 0;
/// The IOAPIC pin that ISA IRQ 0 is wired to: a MADT interrupt source override (bus 0, source 0, edge, active high).
pub const PIT_GSI: u32 = 2;
/// The interrupt of ACPI (FADT `SCI_INT`); a MADT interrupt source override states it as level, active high.
pub const SCI_GSI: u32 = 9;

/// Master 8259: command port; data is the next one.
pub const PIC_MASTER: u16 = 0x20;
/// Slave 8259: command port; data is the next one.
pub const PIC_SLAVE: u16 = 0xA0;
/// Edge/level control of the master's inputs; the slave's is the next port.
pub const ELCR: u16 = 0x4D0;
/// 8254: counter 0; counters 1 and 2 and the control word follow.
pub const PIT: u16 = 0x40;
/// System control port B: gate and output of PIT channel 2, refresh toggle.
pub const PORT_B: u16 = 0x61;
/// Keyboard controller, data port. Only its reset and A20 lines exist (FADT `IAPC_BOOT_ARCH` 8042 flag: clear).
pub const I8042_DATA: u16 = 0x60;
/// Keyboard controller, status and command port.
pub const I8042_COMMAND: u16 = 0x64;
/// POST code: holds the last byte written.
pub const POST: u16 = 0x80;
/// System control port A: A20 and fast reset.
pub const PORT_A: u16 = 0x92;
/// Delay port of some kernels: holds the last byte written.
pub const DELAY: u16 = 0xED;
/// Test guests' exit port, there only when the VM's configuration enables it.
pub const DEBUG_EXIT: u16 = 0xF4;
/// PCI configuration mechanism #1, address (32-bit accesses only).
pub const PCI_CONFIG_ADDRESS: u16 = 0xCF8;
/// PCI configuration mechanism #1, data (4 ports).
pub const PCI_CONFIG_DATA: u16 = 0xCFC;

/// ACPI PM1a event block: status (16 bits), then enable (16 bits). FADT `PM1a_EVT_BLK`.
pub const PM1A_EVENT: u16 = 0x600;
/// FADT `PM1_EVT_LEN`.
pub const PM1_EVENT_LEN: u8 = 4;
/// ACPI PM1a control block. FADT `PM1a_CNT_BLK`.
pub const PM1A_CONTROL: u16 = 0x604;
/// FADT `PM1_CNT_LEN`.
pub const PM1_CONTROL_LEN: u8 = 2;
/// ACPI power management timer. FADT `PM_TMR_BLK`.
pub const PM_TIMER: u16 = 0x608;
/// FADT `PM_TMR_LEN`.
pub const PM_TIMER_LEN: u8 = 4;
/// Width in bits of the power management timer: 24, so FADT flag `TMR_VAL_EXT` is clear.
pub const PM_TIMER_BITS: u32 = 24;
/// Frequency in Hz of the power management timer (ACPI 6.5, 4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// ACPI general-purpose event block 0: status (16 bits), then enable (16 bits). FADT `GPE0_BLK`.
pub const GPE0: u16 = 0x620;
/// FADT `GPE0_BLK_LEN`.
pub const GPE0_LEN: u8 = 4;
/// FADT `SMI_CMD`: none, so the platform is always in ACPI mode and `SCI_EN` always reads 1.
pub const SMI_COMMAND: u16 = 0;
/// `SLP_TYP` of soft-off, both values of the DSDT's `\_S5` package's first two elements. No other state exists.
pub const S5_SLEEP_TYPE: u8 = 5;
/// FADT `RESET_REG`, an 8-bit I/O port (set flag `RESET_REG_SUP`).
pub const RESET: u16 = 0xCF9;
/// FADT `RESET_VALUE`.
pub const RESET_VALUE: u8 = 0x06;

/// IA32_APIC_BASE (Intel SDM vol. 3, 11.4.4).
pub const MSR_APIC_BASE: u32 = 0x1B;
/// IA32_TSC_DEADLINE (Intel SDM vol. 3, 11.5.4.1).
pub const MSR_TSC_DEADLINE: u32 = 0x6E0;
/// First MSR of the x2APIC (Intel SDM vol. 3, 11.12.1.2).
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// The x2APIC's EOI register (Intel SDM vol. 3, table 11-6).
pub const MSR_X2APIC_EOI: u32 = 0x80B;
/// Last MSR (inclusive) of the x2APIC's range; those without a register fault.
pub const MSR_X2APIC_LAST: u32 = 0x8FF;
