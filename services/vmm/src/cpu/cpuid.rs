//! CPUID policy.

use core::arch::x86_64::CpuidResult;

/// What an answer depends on beside the leaf: the vCPU's own state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// The vCPU's (x2)APIC ID.
    pub apic_id: u32,
    /// Its CR4 (group CR): OSXSAVE is mirrored.
    pub cr4: u64,
    /// Its XCR0 (group XCR, or the VMM's copy from the last XSETBV): sizes in leaf 0xD.
    pub xcr0: u64,
}

/// The answers to every leaf, made once for a VM.
pub struct Policy {}

impl Policy {
    /// Makes the table. `host` executes CPUID on the host.
    pub fn new(host: &dyn Fn(u32, u32) -> CpuidResult, vcpus: u32, tsc_hz: u64, apic_hz: u64) -> Self {
        let _ = (host, vcpus, tsc_hz, apic_hz);
        Self {}
    }

    /// eax, ebx, ecx, edx for a leaf and subleaf (the guest's eax and ecx).
    pub fn answer(&self, leaf: u32, subleaf: u32, dynamic: &Dynamic) -> [u32; 4] {
        let _ = (leaf, subleaf, dynamic);
        [0; 4]
    }

    /// The XCR0 bits that the guest may set; 0 if it has no XSAVE.
    pub fn xcr0_supported(&self) -> u64 {
        0
    }
}
