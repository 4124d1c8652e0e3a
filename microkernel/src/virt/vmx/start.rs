//! Whether a processor has VMX and lets it be used; switching it on, and the way into the kernel that goes with it.

use super::Vmx;
use super::control::{self, Capabilities, Controls, TRUE_CONTROLS, choose, controls};
use crate::arch::{Cpu, cpuid, descriptors, entry};
use crate::mem;
use x86_64::registers::model_specific::Msr;

const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_FEATURE_CONTROL: locked; VMXON is allowed (SDM vol. 3, 24.7).
const LOCKED: u64 = 1;
const VMXON: u64 = 1 << 2;

/// Whether this processor can do the work; answers the controls for all VMCSs.
///
/// # Errors
/// What it lacks, and what to do about it.
pub fn check() -> Result<Controls, &'static str> {
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

/// Whether this processor, another than the first, can do the same.
pub fn same() -> bool {
    check() == Ok(controls())
}

/// Boot: what all VMCSs have in common, with the page `bitmap`.
///
/// # Safety
/// As [`control::init`].
pub unsafe fn init(bitmap: u64) {
    if let Ok(controls) = check() {
        // SAFETY: the caller's page.
        unsafe { control::init(controls, bitmap) };
    }
}

/// Switches it on.
pub fn enable(cpu: &Cpu) {
    let region = cpu.host_control.get();
    cpu.asids.set(1 << 16);
    let [gdt, ..] = descriptors::tables(cpu);
    cpu.gdt.set([u64::from(descriptors::GDT_LIMIT) << 48, gdt]);
    init_sysenter(cpu);
    let mut control = Msr::new(FEATURE_CONTROL);
    // SAFETY: VMX is there, and not locked off (`check`); the region is this processor's own page with its revision identifier, CR0
    // and CR4 are as they must be (`protect`). What an earlier kernel left under any identifier goes.
    unsafe {
        if control.read() & LOCKED == 0 {
            control.write(control.read() | VMXON | LOCKED);
        }
        mem::page(region).0[0].set(controls().revision.into());
        core::arch::asm!("vmxon [{}]", in(reg) &region, options(nostack));
    }
    control::invalidate_vpid(2, 0);
}

unsafe extern "C" {
    // `arch::entry`.
    fn vireo_sysenter_entry();
    static vireo_leave_end: u8;
    static vireo_leave_sysexit: u8;
    static vireo_stub_sysenter: [u8; 4096];
}

/// As `entry::init`: on a processor of Intel's servers enter by SYSENTER (SDM vol. 3, 5.8.7): its MSRs are host state of a VMCS, while
/// those of SYSCALL stay the guest's until another vCPU needs them.
fn init_sysenter(cpu: &Cpu) {
    // SAFETY: the MSRs of the kernel's own entry.
    unsafe {
        use x86_64::registers::model_specific::Msr;
        let host = sysenter(cpu);
        for (msr, value) in (0x174..).zip(host) {
            Msr::new(msr).write(value);
        }
    }
}

/// SYSENTER_CS, _ESP and _EIP.
pub fn sysenter(cpu: &Cpu) -> [u64; 3] {
    let entry = vireo_sysenter_entry as *const () as u64;
    [descriptors::KERNEL_CODE.into(), cpu.stack.get(), entry]
}

/// Boot: servers enter by SYSENTER and are left to by SYSEXIT; `phys` finds the physical address of the kernel's own. Answers the stub
/// page for it.
pub fn use_sysenter(phys: impl Fn(u64) -> u64) -> u64 {
    entry::ENTER_GUEST.set(entry::enter_guest::<Vmx>);
    let (at, to) = (
        &raw const vireo_leave_end as u64,
        &raw const vireo_leave_sysexit as u64,
    );
    // JMP rel32.
    let jump = 0xe9 | (to.wrapping_sub(at + 5) & 0xffff_ffff) << 8;
    for i in 0..5 {
        let byte = mem::virt(phys(at + i)) as *mut u8;
        // SAFETY: five bytes of the kernel's text, an instruction of that length which is replaced before any thread runs, and before
        // any other processor.
        unsafe { byte.write((jump >> (8 * i)) as u8) };
    }
    // It serialises.
    let _ = cpuid(0);
    phys(&raw const vireo_stub_sysenter as u64)
}
