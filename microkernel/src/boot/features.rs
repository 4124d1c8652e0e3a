//! What the processor must offer, what is switched on, and what to tell the person if something is missing.

use crate::arch::{Cpu, console, cpuid, extended, machine_check, speculation};
use crate::mem::PAGE;
use crate::virt::svm;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// VM_CR.SVMDIS: firmware has switched SVM off (APM vol. 2, 15.4).
const SVMDIS: u64 = 1 << 4;

/// Whether this processor can do the work (APM vol. 3, E.4.2, E.4.9); what it lacks, and what to do about it.
fn check() -> Result<(), &'static str> {
    let features = cpuid(0x8000_0001);
    if features.edx & 1 << 20 == 0 {
        return Err(
            "this processor has no execute-disable (NX): switch it on in the firmware setup.",
        );
    }
    if features.ecx & 1 << 2 == 0 {
        return Err(if speculation::intel() {
            "this processor has no AMD SVM, and this version has no Intel VMX back end yet: use an AMD machine. \
             In QEMU: -cpu max,+svm,+npt."
        } else {
            "this processor has no hardware virtualisation (SVM): use one that has, or switch \"SVM Mode\" on in the \
             firmware setup. In QEMU: -cpu max,+svm,+npt."
        });
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

/// Stops with a message unless this processor, the first, can do the work; switches on its protections.
pub fn require() {
    if let Err(missing) = check() {
        console::fatal(missing, &[]);
    }
    protect();
    extended::init(true);
}

/// Switches protections on: SMEP, SMAP, UMIP where they are, NX, write protection in the kernel; SVM; and has an FPU instruction at
/// user level, or in the kernel, fault.
fn protect() {
    let features = cpuid(7);
    let mut cr4 = Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
    let [smep, smap] = [7, 20].map(|bit| features.ebx & 1 << bit != 0);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, smep);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, smap);
    let umip = features.ecx & 1 << 2 != 0;
    cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, umip);
    // SAFETY: each is there (CPUID). The kernel never touches user addresses (it uses the physical map), so SMAP holds at once.
    unsafe {
        Cr4::update(|c| {
            c.insert(cr4);
            c.remove(Cr4Flags::PAGE_GLOBAL | Cr4Flags::TIMESTAMP_DISABLE | Cr4Flags::FSGSBASE);
        });
        Cr0::update(|c| {
            c.insert(
                Cr0Flags::WRITE_PROTECT
                    | Cr0Flags::TASK_SWITCHED
                    | Cr0Flags::MONITOR_COPROCESSOR
                    | Cr0Flags::NUMERIC_ERROR,
            );
        });
        Efer::update(|e| {
            e.insert(
                EferFlags::NO_EXECUTE_ENABLE
                    | EferFlags::SYSTEM_CALL_EXTENSIONS
                    | EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE,
            );
        });
    }
    machine_check::init();
    speculation::start();
}

/// Another processor than the first: the same on it. False: it lacks something, or differs in what guests can use.
pub fn join(cpu: &Cpu) -> bool {
    if check().is_err() {
        return false;
    }
    protect();
    let same = extended::init(false);
    if same {
        enable(cpu);
    }
    same
}

/// Switches virtualisation on, with permission maps of three and two pages for all VMs.
pub fn enable_virtualisation(cpu: &Cpu, io: u64, msr: u64) {
    // SAFETY: fresh pages of the kernel's.
    unsafe { svm::init_maps(io, msr) };
    enable(cpu);
}

fn enable(cpu: &Cpu) {
    let host = cpu.host_control.get();
    cpu.asids.set(cpuid(0x8000_000a).ebx.max(2));
    // SAFETY: this processor's own pages: a VMCB for the host's state, which VMSAVE keeps and VMLOAD brings back after each exit, and
    // behind it the host save area; SVM is on.
    unsafe {
        Msr::new(VM_HSAVE_PA).write(host + PAGE);
        core::arch::asm!("vmsave rax", in("rax") host, options(nostack));
    }
}
