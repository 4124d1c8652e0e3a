//! What the processor must offer, what is switched on, and what to tell the person if something is missing.

use crate::arch::{Cpu, console, cpuid, descriptors, entry, extended, machine_check, speculation};
use crate::mem::{self, PAGE};
use crate::virt::vmx::control::{Capabilities, Controls, TRUE_CONTROLS, choose, controls};
use crate::virt::{svm, use_vmx, vmx};
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
    if speculation::intel() {
        return check_vmx().map(|_| ());
    }
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

const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_FEATURE_CONTROL: locked; VMXON is allowed (SDM vol. 3, 24.7).
const LOCKED: u64 = 1;
const VMXON: u64 = 1 << 2;

/// The same for VMX: answers the controls for all VMCSs.
fn check_vmx() -> Result<Controls, &'static str> {
    if cpuid(1).ecx & 1 << 5 == 0 {
        return Err(
            "this processor has no hardware virtualisation (VMX): use one that has, or switch \"Intel Virtualization \
             Technology\" (\"VT-x\") on in the firmware setup. In QEMU: -cpu max,+svm,+npt.",
        );
    }
    if cpuid(7).ebx & 1 == 0 {
        return Err("this processor has no FSGSBASE, which Vireo needs: use a newer one.");
    }
    // SAFETY: VMX is there; the MSRs beyond the first are read only if those before say that they are there.
    let read = |msr| unsafe { Msr::new(msr).read() };
    if read(FEATURE_CONTROL) & (LOCKED | VMXON) == LOCKED {
        return Err(
            "hardware virtualisation (VMX) is disabled and locked by the firmware: enter its setup and switch \"Intel \
             Virtualization Technology\" (also \"VT-x\" or \"VMX\") on.",
        );
    }
    let basic = read(0x480);
    let secondary = if read(0x482) >> 63 != 0 {
        read(0x48b)
    } else {
        0
    };
    // With EPT or VPID.
    let there = secondary >> 32 & (1 << 1 | 1 << 5) != 0;
    let truly = basic & TRUE_CONTROLS != 0;
    choose(&Capabilities {
        basic,
        sets: [0x48d, 0x48e, 0x48f, 0x490].map(|m| if truly { read(m) } else { 0 }),
        secondary,
        ept: if there { read(0x48c) } else { 0 },
        cr4: read(0x489),
    })
}

/// Stops with a message unless this processor, the first, can do the work; switches on its protections.
pub fn require() {
    if let Err(missing) = check() {
        console::fatal(missing, &[]);
    }
    if speculation::intel() {
        use_vmx();
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
            c.remove(Cr4Flags::PAGE_GLOBAL | Cr4Flags::TIMESTAMP_DISABLE);
            // With VMX the way in and out of guests needs it (`virt::vmx`).
            c.set(Cr4Flags::FSGSBASE, vmx());
            c.set(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS, vmx());
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
            e.insert(EferFlags::NO_EXECUTE_ENABLE);
            // With VMX the MSRs of SYSCALL are guests'.
            e.set(EferFlags::SYSTEM_CALL_EXTENSIONS, !vmx());
            e.set(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE, !vmx());
        });
    }
    machine_check::init();
    speculation::start();
}

/// Another processor than the first: the same on it. False: it lacks something, or differs in what guests can use.
pub fn join(cpu: &Cpu) -> bool {
    if check().is_err() || vmx() && check_vmx() != Ok(controls()) {
        return false;
    }
    protect();
    let same = extended::init(false);
    if same {
        enable(cpu);
    }
    same
}

/// Switches virtualisation on, with permission maps of three and two pages for all VMs; `phys` finds the physical address of something of
/// the kernel's. Answers the stub page.
pub fn enable_virtualisation(cpu: &Cpu, io: u64, msr: u64, phys: impl Fn(u64) -> u64) -> u64 {
    let controls = check_vmx();
    // SAFETY: fresh pages of the kernel's.
    unsafe {
        match controls {
            Ok(controls) if vmx() => crate::virt::vmx::control::init(controls, msr),
            _ => svm::init_maps(io, msr),
        }
    }
    enable(cpu);
    if vmx() {
        entry::use_sysenter(phys)
    } else {
        phys(&raw const entry::vireo_stub as u64)
    }
}

fn enable(cpu: &Cpu) {
    if vmx() {
        return enable_vmx(cpu);
    }
    let host = cpu.host_control.get();
    cpu.asids.set(cpuid(0x8000_000a).ebx.max(2));
    // SAFETY: this processor's own pages: a VMCB for the host's state, which VMSAVE keeps and VMLOAD brings back after each exit, and
    // behind it the host save area; SVM is on.
    unsafe {
        Msr::new(VM_HSAVE_PA).write(host + PAGE);
        core::arch::asm!("vmsave rax", in("rax") host, options(nostack));
    }
}

fn enable_vmx(cpu: &Cpu) {
    let region = cpu.host_control.get();
    cpu.asids.set(1 << 16);
    let [gdt, ..] = descriptors::tables(cpu);
    cpu.gdt.set([u64::from(descriptors::GDT_LIMIT) << 48, gdt]);
    entry::init_sysenter(cpu);
    let mut control = Msr::new(FEATURE_CONTROL);
    // SAFETY: VMX is there, and not locked off (`check_vmx`); the region is this processor's own page with its revision identifier, CR0
    // and CR4 are as they must be (`protect`). What an earlier kernel left under any identifier goes.
    unsafe {
        if control.read() & LOCKED == 0 {
            control.write(control.read() | VMXON | LOCKED);
        }
        mem::page(region).0[0].set(controls().revision.into());
        core::arch::asm!("vmxon [{}]", in(reg) &region, options(nostack));
    }
    crate::virt::vmx::control::invalidate_vpid(2, 0);
}
