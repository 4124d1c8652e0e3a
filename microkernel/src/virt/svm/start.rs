//! Whether a processor has SVM and lets it be used; switching it on.

use crate::arch::{Cpu, cpuid};
use crate::mem::PAGE;
use x86_64::registers::model_specific::Msr;

const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// VM_CR.SVMDIS: firmware has switched SVM off (APM vol. 2, 15.4).
const SVMDIS: u64 = 1 << 4;

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
    // behind it the host save area; SVM is on.
    unsafe {
        Msr::new(VM_HSAVE_PA).write(host + PAGE);
        core::arch::asm!("vmsave rax", in("rax") host, options(nostack));
    }
}
