//! The local APIC, by memory (xAPIC) or by MSRs (x2APIC); Intel SDM vol. 3, chapter 11.

use crate::cpu;
use crate::exec::{self, Fault};

/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// Where the registers are in xAPIC mode.
pub const BASE: u64 = 0xfee0_0000;

/// Register offsets in xAPIC mode; the x2APIC's MSR is 0x800 + offset / 16.
#[allow(missing_docs, reason = "they are the manual's names")]
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// LVT: masked.
pub const MASKED: u32 = 1 << 16;
/// LVT: delivery mode ExtINT.
pub const EXTINT: u32 = 7 << 8;
/// LVT timer: periodic.
pub const PERIODIC: u32 = 1 << 17;
/// LVT timer: TSC-deadline.
pub const DEADLINE: u32 = 2 << 17;

/// Whether the processor has the x2APIC.
pub fn has_x2apic() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Whether the timer has the TSC-deadline mode.
pub fn has_deadline() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 24 != 0
}

/// Whether x2APIC mode is on.
pub fn is_x2apic() -> bool {
    // SAFETY: every processor with long mode has this MSR.
    unsafe { cpu::rdmsr(APIC_BASE) & 1 << 10 != 0 }
}

/// Reads a register.
pub fn read(register: u32) -> u32 {
    if is_x2apic() {
        // SAFETY: the registers in `reg` exist in x2APIC mode, but for ICR_HIGH.
        unsafe { cpu::rdmsr(0x800 + (register >> 4)) as u32 }
    } else {
        let address = BASE as usize + register as usize;
        // SAFETY: the xAPIC's registers, mapped to themselves; never Rust memory.
        unsafe { core::ptr::with_exposed_provenance::<u32>(address).read_volatile() }
    }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    if is_x2apic() {
        // SAFETY: as in `read`; the values written here are legal.
        unsafe { cpu::wrmsr(0x800 + (register >> 4), u64::from(value)) }
    } else {
        let address = BASE as usize + register as usize;
        // SAFETY: as in `read`.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(address).write_volatile(value) }
    }
}

/// Switched on, nothing masked by priority, all local interrupts masked, nothing in service.
pub fn init() {
    write(reg::SVR, 0x1ff);
    write(reg::TPR, 0);
    write(reg::TIMER_INITIAL, 0);
    for register in [
        reg::LVT_TIMER,
        reg::LVT_LINT0,
        reg::LVT_LINT1,
        reg::LVT_ERROR,
    ] {
        write(register, MASKED | 0xfe);
    }
}

/// Ends the interrupt in service.
pub fn acknowledge() {
    write(reg::EOI, 0);
}

/// Sends an interrupt to this processor.
pub fn send_self(vector: u8) {
    // Fixed, to "self" (shorthand 01), level asserted.
    write(reg::ICR, 1 << 18 | 1 << 14 | u32::from(vector));
}

/// Whether `vector` is pending in the bit field that starts at `register` (ISR, IRR).
pub fn is_set(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector / 32) * 16) & 1 << (vector % 32) != 0
}

/// From xAPIC to x2APIC mode.
pub fn enable_x2apic() -> Result<(), Fault> {
    let base = exec::rdmsr(APIC_BASE)?;
    exec::wrmsr(APIC_BASE, base | 3 << 10)
}

/// Back to xAPIC mode, by way of "disabled", which resets the APIC (SDM vol. 3, 11.12.5).
pub fn enable_xapic() -> Result<(), Fault> {
    let base = exec::rdmsr(APIC_BASE)? & !(3 << 10);
    exec::wrmsr(APIC_BASE, base)?;
    exec::wrmsr(APIC_BASE, base | 1 << 11)?;
    init();
    Ok(())
}

/// Starts the timer: the LVT's mode bits with `vector`, divided by 1.
pub fn start_timer(mode: u32, vector: u8, count: u32) {
    write(reg::TIMER_DIVIDE, 0b1011);
    write(reg::LVT_TIMER, mode | u32::from(vector));
    write(reg::TIMER_INITIAL, count);
}

/// Stops and masks the timer.
pub fn stop_timer() {
    write(reg::LVT_TIMER, MASKED | 0xfe);
    write(reg::TIMER_INITIAL, 0);
}
