//! What the processor must offer, what is switched on, and what to tell the person if something is missing.

use crate::arch::{Cpu, MAX_CPUS, console, machine_check, paging::Table, speculation};
use crate::mem::Global;
use crate::virt::svm;
use core::cell::Cell;
use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// VM_CR.SVMDIS: firmware has switched SVM off (APM vol. 2, 15.4).
const SVMDIS: u64 = 1 << 4;

/// What a processor lacks.
enum Missing {
    NoExecute,
    SvmOnIntel,
    Svm,
    SvmDisabled,
    NestedPaging,
}

fn check() -> Result<(), Missing> {
    let id = CpuId::new();
    let extended = id.get_extended_processor_and_feature_identifiers();
    let has = |f: fn(&raw_cpuid::ExtendedProcessorFeatureIdentifiers) -> bool| {
        extended.as_ref().is_some_and(f)
    };
    if !has(|e| e.has_execute_disable()) {
        return Err(Missing::NoExecute);
    }
    if !has(|e| e.has_svm()) {
        let intel = id
            .get_vendor_info()
            .is_some_and(|v| v.as_str() == "GenuineIntel");
        return Err(if intel {
            Missing::SvmOnIntel
        } else {
            Missing::Svm
        });
    }
    // SAFETY: VM_CR exists where SVM does.
    if unsafe { Msr::new(VM_CR).read() } & SVMDIS != 0 {
        return Err(Missing::SvmDisabled);
    }
    if !id.get_svm_info().is_some_and(|s| s.has_nested_paging()) {
        return Err(Missing::NestedPaging);
    }
    Ok(())
}

/// Stops with a message unless this processor can do the work; switches on its protections.
pub fn require() {
    if let Err(missing) = check() {
        console::fatal(format_args!(
            "{}",
            match missing {
                Missing::NoExecute =>
                    "this processor has no execute-disable (NX): switch it on in the firmware setup.",
                Missing::SvmOnIntel =>
                    "this processor has no AMD SVM, and this version has no Intel VMX back end yet: use an AMD machine. \
                     In QEMU: -cpu max,+svm,+npt.",
                Missing::Svm =>
                    "this processor has no hardware virtualisation (SVM): use one that has, or switch \"SVM Mode\" on in the \
                     firmware setup. In QEMU: -cpu max,+svm,+npt.",
                Missing::SvmDisabled =>
                    "hardware virtualisation (SVM) is disabled by the firmware: enter its setup and switch \"SVM Mode\" (also \
                     \"AMD-V\" or \"Virtualization\") on.",
                Missing::NestedPaging =>
                    "this processor has SVM but no nested paging (NPT), which Vireo needs: use a newer one. In QEMU: \
                     -cpu max,+svm,+npt.",
            }
        ));
    }
    protect();
    svm::extended::init();
}

/// Switches protections on: SMEP, SMAP, UMIP where they are, NX, write protection in the kernel; and SVM.
fn protect() {
    let features = CpuId::new().get_extended_feature_info();
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
    machine_check::init();
    speculation::start();
}

/// Another processor than the first: the same on it. False: it lacks something, or differs in what guests can use.
pub fn join(cpu: &Cpu) -> bool {
    if check().is_err() {
        return false;
    }
    protect();
    if !svm::extended::init_other() {
        return false;
    }
    enable(cpu);
    true
}

/// The pages that SVM wants of each processor: host save area, and a VMCB for the host's VMLOAD state.
#[repr(C, align(4096))]
struct Pages([Cell<[u8; 4096]>; 2]);
static PAGES: Global<[Pages; MAX_CPUS]> =
    Global([const { Pages([const { Cell::new([0; 4096]) }; 2]) }; MAX_CPUS]);

/// Switches virtualisation on, with permission maps of three and two pages for all VMs.
pub fn enable_virtualisation(cpu: &Cpu, io: u64, msr: u64) {
    // SAFETY: fresh pages of the kernel's.
    unsafe { svm::init_maps(io, msr) };
    enable(cpu);
    crate::arch::set_can_virtualise();
}

fn enable(cpu: &Cpu) {
    let table = Table {
        root: crate::arch::kernel_root(),
    };
    let [save, host] = &PAGES[cpu.number as usize % MAX_CPUS].0;
    let phys = |page: &Cell<[u8; 4096]>| table.translate(page.as_ptr() as u64).map(|(p, _)| p);
    let (Some(save), Some(host)) = (phys(save), phys(host)) else {
        console::fatal(format_args!("the kernel is not mapped as it should be."));
    };
    cpu.host_control.set(host);
    cpu.asids.set(
        CpuId::new()
            .get_svm_info()
            .map_or(2, |s| s.supported_asids())
            .max(2),
    );
    // SAFETY: this processor's own pages; SVM is on. VMSAVE keeps what VMLOAD brings back after each exit.
    unsafe {
        Msr::new(VM_HSAVE_PA).write(save);
        core::arch::asm!("vmsave rax", in("rax") host, options(nostack));
    }
}
