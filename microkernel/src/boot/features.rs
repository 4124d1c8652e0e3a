//! What the processor must offer, what is switched on, and what to tell the person if something is missing.

use crate::arch::{Cpu, console, cpuid, extended, machine_check, paging, speculation};
use crate::virt::{vmx, with_virt};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

/// Whether this processor can do the work (APM vol. 3, E.4.2, E.4.9); what it lacks, and what to do about it.
fn check() -> Result<(), &'static str> {
    let features = cpuid(0x8000_0001);
    if features.edx & 1 << 20 == 0 {
        return Err(
            "this processor has no execute-disable (NX): switch it on in the firmware setup.",
        );
    }
    with_virt!(v => v::start::check())
}

/// The highest level of pages in all tables: of 1 GiB if host (and nested) tables have them, and extended ones.
fn pages_to() -> u32 {
    let large = cpuid(0x8000_0001).edx & 1 << 26 != 0;
    2 + u32::from(large && (!vmx::HERE.get() || vmx::start::gigabyte()))
}

/// Stops with a message unless this processor, the first, can do the work; switches on its protections.
pub fn require() {
    vmx::HERE.set(vmx::start::intel());
    if let Err(missing) = check() {
        console::fatal(missing, &[]);
    }
    protect();
    extended::init(true);
    paging::PAGES_TO.set(pages_to());
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
        Efer::update(|e| e.insert(EferFlags::NO_EXECUTE_ENABLE));
    }
    machine_check::init();
    speculation::start();
}

/// Another processor than the first: the same on it. False: it lacks something, or differs in what guests can use.
pub fn join(cpu: &Cpu) -> bool {
    if check().is_err() || pages_to() != paging::PAGES_TO.get() {
        return false;
    }
    protect();
    let same = extended::init(false);
    if same {
        with_virt!(v => v::start::enable(cpu));
    }
    same
}

/// Switches virtualisation on, with permission maps of three and two pages for all VMs. Answers the stub page's address.
pub fn enable_virtualisation(cpu: &Cpu, io: u64, msr: u64) -> u64 {
    // SAFETY: fresh pages of the kernel's.
    unsafe { with_virt!(v => v::start::init(io, msr)) };
    with_virt!(v => v::start::enable(cpu));
    with_virt!(v => v::start::stub())
}
