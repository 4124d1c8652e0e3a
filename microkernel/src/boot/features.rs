//! What the processor must offer, what is switched on, and what to tell the person if something is missing.

use crate::arch::{Cpu, console};
use crate::mem;
use crate::virt::svm;
use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// VM_CR.SVMDIS: firmware has switched SVM off (APM vol. 2, 15.4).
const SVMDIS: u64 = 1 << 4;

/// Stops with a message unless this processor can do the work; switches on its protections.
pub fn require() {
    let id = CpuId::new();
    let extended = id.get_extended_processor_and_feature_identifiers();
    if !extended
        .as_ref()
        .is_some_and(raw_cpuid::ExtendedProcessorFeatureIdentifiers::has_execute_disable)
    {
        console::fatal(format_args!(
            "this processor has no execute-disable (NX): switch it on in the firmware setup."
        ));
    }
    if !extended
        .as_ref()
        .is_some_and(raw_cpuid::ExtendedProcessorFeatureIdentifiers::has_svm)
    {
        let vendor = id.get_vendor_info();
        if vendor
            .as_ref()
            .is_some_and(|v| v.as_str() == "GenuineIntel")
        {
            console::fatal(format_args!(
                "this processor has no AMD SVM, and this version has no Intel VMX back end yet: use an AMD machine. \
                 In QEMU: -cpu max,+svm,+npt."
            ));
        }
        console::fatal(format_args!(
            "this processor has no hardware virtualisation (SVM): use one that has, or switch \"SVM Mode\" on in the firmware setup. \
             In QEMU: -cpu max,+svm,+npt."
        ));
    }
    // SAFETY: VM_CR exists where SVM does.
    if unsafe { Msr::new(VM_CR).read() } & SVMDIS != 0 {
        console::fatal(format_args!(
            "hardware virtualisation (SVM) is disabled by the firmware: enter its setup and switch \"SVM Mode\" (also \"AMD-V\" or \
             \"Virtualization\") on."
        ));
    }
    if !id.get_svm_info().is_some_and(|s| s.has_nested_paging()) {
        console::fatal(format_args!(
            "this processor has SVM but no nested paging (NPT), which Vireo needs: use a newer one. In QEMU: -cpu max,+svm,+npt."
        ));
    }
    let features = id.get_extended_feature_info();
    let mut cr4 = Cr4Flags::empty();
    if let Some(f) = &features {
        cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, f.has_smep());
        cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, f.has_smap());
        cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, f.has_umip());
    }
    // SAFETY: each is there (CPUID). The kernel never touches user addresses (it uses the physical map), so SMAP holds at once.
    unsafe {
        Cr4::update(|c| {
            c.insert(cr4);
            c.remove(Cr4Flags::PAGE_GLOBAL | Cr4Flags::TIMESTAMP_DISABLE | Cr4Flags::FSGSBASE);
        });
        Cr0::update(|c| c.insert(Cr0Flags::WRITE_PROTECT));
        Efer::update(|e| {
            e.insert(
                EferFlags::NO_EXECUTE_ENABLE
                    | EferFlags::SYSTEM_CALL_EXTENSIONS
                    | EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE,
            );
        });
    }
    svm::extended::init();
}

/// Gives SVM its pages: host save area, host VMLOAD state, permission maps (three and two pages).
pub fn enable_virtualisation(cpu: &Cpu, save: u64, host: u64, io: u64, msr: u64) {
    cpu.host_control.set(host);
    cpu.asids.set(
        CpuId::new()
            .get_svm_info()
            .map_or(2, |s| s.supported_asids())
            .max(2),
    );
    // SAFETY: fresh pages of the kernel's; SVM is on. VMSAVE keeps what VMLOAD brings back after each exit.
    unsafe {
        svm::init_maps(io, msr);
        Msr::new(VM_HSAVE_PA).write(save);
        core::arch::asm!("vmsave rax", in("rax") host, options(nostack));
    }
    debug_assert!(mem::virt(save) != 0);
    crate::arch::set_can_virtualise();
}
