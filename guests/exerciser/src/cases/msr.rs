//! RDMSR and WRMSR: what is legal keeps its value, what is not is a #GP.

use exerciser::boot::BootInfo;
use exerciser::cpu::{self, tsc};
use exerciser::exec::{self, Fault, GP, Registers};

use super::exits;
use crate::check::{Case, Check, ensure, equal, faults, pattern};

pub const CASES: &[Case] = &[
    Case::new("msr-keep", keep),
    Case::vireo("msr-tsc", time),
    Case::new("msr-efer", efer),
    Case::vireo("msr-efer-illegal", efer_illegal),
    Case::vireo("msr-unknown", unknown),
    Case::vireo("msr-vm-cr", vm_cr),
    Case::vireo("msr-bad-value", bad_value),
    Case::new("msr-registers", registers),
];

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;

/// MSRs that hold any canonical address or 32-bit value and that this guest does not use.
const FREE: [(u32, u64); 11] = [
    (0xc000_0081, 0x0010_0008_1234_5678), // STAR
    (0xc000_0082, 0xffff_8000_0000_1110), // LSTAR
    (0xc000_0083, 0x0000_7fff_0000_2220), // CSTAR
    (0xc000_0084, 0x0000_0000_0004_7700), // SFMASK
    (0xc000_0100, 0x0000_1234_5678_9abc), // FS_BASE
    (0xc000_0101, 0xffff_ffff_8000_0000), // GS_BASE
    (0xc000_0102, 0x0000_0fed_cba9_8765), // KERNEL_GS_BASE
    (0x174, 0x10),                        // SYSENTER_CS
    (0x175, 0xffff_9000_0000_3330),       // SYSENTER_ESP
    (0x176, 0xffff_9000_0000_4440),       // SYSENTER_EIP
    (PAT, 0x0007_0406_0007_0406),
];

fn keep(_: &BootInfo) -> Check {
    let mut old = [0; FREE.len()];
    for ((msr, value), old) in FREE.iter().zip(&mut old) {
        *old = exec::rdmsr(*msr)?;
        exec::wrmsr(*msr, *value)?;
    }
    exits(20);
    let mut result = Ok(());
    for ((msr, value), old) in FREE.iter().zip(&old) {
        let seen = exec::rdmsr(*msr)?;
        exec::wrmsr(*msr, *old)?;
        if result.is_ok() && seen != *value {
            result = (|| {
                equal!(seen, *value, "MSR {msr:#x}");
                Ok(())
            })();
        }
    }
    result
}

/// QEMU itself reads 0 there.
fn time(_: &BootInfo) -> Check {
    for _ in 0..50 {
        let before = tsc();
        let read = exec::rdmsr(0x10)?;
        let after = tsc();
        ensure!(
            before <= read && read <= after,
            "TSC by MSR {read} not in {before}..={after}"
        );
    }
    Ok(())
}

/// SCE and NXE may be switched; LMA stays.
fn efer(_: &BootInfo) -> Check {
    let old = exec::rdmsr(EFER)?;
    equal!(old & 0x500, 0x500, "LME and LMA");
    let nx = cpu::cpuid(0x8000_0001, 0).edx & 1 << 20 != 0;
    for value in [old | 1, old & !1, old ^ u64::from(nx) << 11, old] {
        exec::wrmsr(EFER, value)?;
        exits(1);
        equal!(exec::rdmsr(EFER)?, value, "EFER");
    }
    Ok(())
}

/// Reserved bits, SVME without SVM, and LME changed while paging is on.
fn efer_illegal(_: &BootInfo) -> Check {
    let old = exec::rdmsr(EFER)?;
    for value in [
        old | 1 << 1,
        old | 1 << 12,
        old | 1 << 20,
        old | 1 << 40,
        old | 1 << 63,
        old & !0x100,
    ] {
        refuses(EFER, value)?;
        equal!(
            exec::rdmsr(EFER)?,
            old,
            "EFER after a refused write of {value:#x}"
        );
    }
    Ok(())
}

/// WRMSR must be a #GP.
fn refuses(msr: u32, value: u64) -> Check {
    let before = Registers {
        rcx: u64::from(msr),
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
        ..pattern()
    };
    faults(&[0x0f, 0x30], before, GP)
}

fn unknown(_: &BootInfo) -> Check {
    // None of these is an MSR of any processor; 0xc001_0117 is SVM's own, which there is none of.
    for msr in [
        0x1234_5678,
        0x4000_0000,
        0x7fff_ffff,
        0xffff_ffff,
        0xc001_0117,
        0x480,
    ] {
        faults(
            &[0x0f, 0x32],
            Registers {
                rcx: u64::from(msr),
                ..pattern()
            },
            GP,
        )?;
        refuses(msr, 0)?;
        refuses(msr, 1)?;
    }
    Ok(())
}

/// VM_CR, if it is there, says that SVM is switched off, for good (APM vol. 2, 15.30.1).
fn vm_cr(_: &BootInfo) -> Check {
    const VM_CR: u32 = 0xc001_0114;
    let Ok(value) = exec::rdmsr(VM_CR) else {
        return Ok(());
    };
    equal!(value & 0x18, 0x18, "LOCK and SVMDIS");
    let _ = exec::wrmsr(VM_CR, 0);
    equal!(exec::rdmsr(VM_CR)?, value, "VM_CR after a write");
    Ok(())
}

fn bad_value(_: &BootInfo) -> Check {
    // Memory types 2 and 3 do not exist; x2APIC without the APIC is no mode.
    refuses(PAT, 0x0007_0406_0007_0402)?;
    refuses(PAT, 0x0307_0406_0007_0406)?;
    let base = exec::rdmsr(0x1b)?;
    refuses(0x1b, base & !(1 << 11) | 1 << 10)?;
    refuses(0x1b, base | 1 << 60)
}

/// RDMSR fills EDX:EAX with zeros above and leaves the rest; prefixes count in the length.
fn registers(_: &BootInfo) -> Check {
    let value = exec::rdmsr(0x1b)?;
    for code in [
        &[0x0f, 0x32][..],
        &[0x48, 0x0f, 0x32],
        &[0x66, 0xf3, 0x0f, 0x32],
    ] {
        let before = Registers {
            rcx: 0xffff_ffff_0000_001b,
            ..pattern()
        };
        let after = Registers {
            rax: value & 0xffff_ffff,
            rdx: value >> 32,
            ..before
        };
        crate::check::probe(code, before, after)?;
    }
    let result: Result<u64, Fault> = exec::rdmsr(PAT);
    ensure!(result.is_ok(), "PAT: {result:x?}");
    Ok(())
}
