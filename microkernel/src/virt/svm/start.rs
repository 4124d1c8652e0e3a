//! Whether a processor has SVM and lets it be used; switching it on.

use super::control::{BY_HAND, FLUSH_OWN, MAPS, SVME};
use crate::arch::{Cpu, cpuid, entry};
use crate::mem::{self, PAGE};
use crate::virt::apic;
use x86_64::registers::control::{Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// VM_CR.SVMDIS: firmware has switched SVM off (APM vol. 2, 15.4).
const SVMDIS: u64 = 1 << 4;

/// Pages for maps of MSRs, and with AVIC for a table.
pub const MSR_PAGES: u64 = if cfg!(feature = "unproven") { 5 } else { 2 };

/// Boot: fills the permission maps: `io` is three pages, `msr` [`MSR_PAGES`] (APM vol. 2, 15.10.1, 15.11).
///
/// # Safety
/// Both are runs of kernel pages that are nothing else's.
pub unsafe fn init(io: u64, msr: u64) {
    for phys in [io, io + PAGE, io + 2 * PAGE, msr + PAGE] {
        // SAFETY: the caller's pages.
        let page = unsafe { mem::page(phys) };
        page.0.iter().for_each(|w| w.set(!0));
    }
    // The guest's own MSRs are all in the first page of the map.
    // SAFETY: the caller's page.
    apic::permit(unsafe { mem::page(msr) }, false, false);
    MAPS.set((io, msr));
    #[cfg(feature = "unproven")]
    {
        // SAFETY: the caller's pages.
        let [first, rest] = [2, 3].map(|i| unsafe { mem::page(msr + i * PAGE) });
        apic::permit(first, true, false);
        rest.0.iter().for_each(|w| w.set(!0));
        super::newer::HAS.set(cpuid(0x8000_000a).edx);
    }
    // By hand: next RIP saved, but no decode assists.
    BY_HAND.set(u64::from(cpuid(0x8000_000a).edx & 0x88 == 8) << 32);
    FLUSH_OWN.set(3 * u64::from(cpuid(0x8000_000a).edx >> 6 & 1));
}

/// Whether this processor can do the work (APM vol. 3, E.4.2, E.4.9).
///
/// # Errors
/// What it lacks, and what to do about it.
pub fn check() -> Result<(), &'static str> {
    let features = cpuid(0x8000_0001);
    if features.ecx & 1 << 2 == 0 {
        return Err(
            "this processor has no hardware virtualisation (SVM): use one that has, or switch \"SVM Mode\" on in the \
             firmware setup. In QEMU: -cpu max,+svm,+npt.",
        );
    }
    // SAFETY: VM_CR exists where SVM does.
    if unsafe { Msr::new(VM_CR).read() } & SVMDIS != 0 {
        return Err(
            "hardware virtualisation (SVM) is disabled by the firmware: enter its setup and switch \"SVM Mode\" (also \
             \"AMD-V\" or \"Virtualization\") on.",
        );
    }
    if cpuid(0x8000_000a).edx & 1 == 0 {
        return Err(
            "this processor has SVM but no nested paging (NPT), which Vireo needs: use a newer one. In QEMU: \
             -cpu max,+svm,+npt.",
        );
    }
    Ok(())
}

/// Switches it on.
pub fn enable(cpu: &Cpu) {
    let host = cpu.host_control.get();
    cpu.asids.set(cpuid(0x8000_000a).ebx.max(2));
    // SAFETY: this processor's own pages: a VMCB for the host's state, which VMSAVE keeps and VMLOAD brings back after each exit, and
    // behind it the host save area.
    unsafe {
        // SVM, and SYSCALL.
        Efer::update(|e| e.insert(EferFlags::from_bits_retain(SVME | 1)));
        Msr::new(VM_HSAVE_PA).write(host + PAGE);
        core::arch::asm!("vmsave rax", in("rax") host, options(nostack));
    }
}

/// Boot: servers enter by SYSCALL. Answers the address of the stub page for it.
pub fn stub() -> u64 {
    &raw const entry::vireo_stub as u64
}
