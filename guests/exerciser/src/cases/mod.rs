//! The cases, by what they are about.

use exerciser::exec;
use exerciser::{apic, cpu, ioapic, legacy};

use crate::check::Case;

mod apic_modes;
mod clocks;
mod control;
mod cpuid;
mod exceptions;
mod fpu;
mod memory;
mod mmio;
mod msr;
mod ports;
mod shadow;
mod strings;
mod testdev;
mod timers;

/// All cases, in the order they run.
pub const ALL: &[&[Case]] = &[
    cpuid::CASES,
    ports::CASES,
    strings::CASES,
    exceptions::CASES,
    msr::CASES,
    control::CASES,
    fpu::CASES,
    memory::CASES,
    mmio::CASES,
    apic_modes::CASES,
    shadow::CASES,
    timers::CASES,
    clocks::CASES,
    testdev::CASES,
    apic_modes::X2APIC_CASES,
    timers::X2APIC_CASES,
    apic_modes::SWITCH_CASES,
];

/// Causes `rounds` of exits of each common kind: CPUID, a device's port, a port of the VMM's, a
/// port of nobody's, MMIO, an MSR.
fn exits(rounds: u32) {
    for round in 0..rounds {
        cpu::cpuid(round & 1, 0);
        cpu::inb(0x3ff);
        cpu::inb(0x61);
        cpu::inl(0x1234);
        ioapic::read(1);
        apic::read(apic::reg::VERSION);
        // The code page's run has a fault handler, so a missing MSR does no harm.
        let _ = exec::rdmsr(apic::APIC_BASE);
        legacy::pit_count(0);
    }
}
