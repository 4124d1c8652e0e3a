//! Instructions that are refused, software interrupts, single steps and breakpoints.

use exerciser::boot::BootInfo;
use exerciser::cpu::{self, TF};
use exerciser::exec::{self, GP, Registers, UD};
use exerciser::{apic, idt};

use super::ports::SCRATCH;
use crate::check::{Case, Check, Stop, ensure, equal, faults, pattern, probe};

pub const CASES: &[Case] = &[
    Case::new("ud-svm", svm),
    Case::new("ud-vmx", vmx),
    Case::vireo("ud-monitor", monitor),
    Case::vireo("gp-rdpmc", rdpmc),
    Case::new("invd-wbinvd", caches),
    Case::new("xsetbv", xsetbv),
    Case::new("int-n", software),
    Case::new("int-pending", software_pending),
    Case::new("icebp", icebp),
    Case::new("step-port", step_port),
    Case::new("step-cpuid", step_cpuid),
    Case::new("step-mmio-msr", step_mmio_msr),
    Case::new("breakpoint-after-exit", breakpoint),
    Case::new("page-fault", page_fault),
];

fn svm(_: &BootInfo) -> Check {
    let before = Registers {
        rax: 0x1000,
        ..pattern()
    };
    // VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, INVLPGA.
    (0xd8..=0xdf).try_for_each(|last| faults(&[0x0f, 0x01, last], before, UD))
}

fn vmx(_: &BootInfo) -> Check {
    let before = Registers {
        rdi: paging_frame(),
        ..pattern()
    };
    for code in [
        &[0x0f, 0x01, 0xc1][..], // VMCALL
        &[0x0f, 0x01, 0xc2],     // VMLAUNCH
        &[0x0f, 0x01, 0xc3],     // VMRESUME
        &[0x0f, 0x01, 0xc4],     // VMXOFF
        &[0x0f, 0x78, 0xc0],     // VMREAD
    ] {
        faults(code, before, UD)?;
    }
    Ok(())
}

/// Harmless memory for instructions that take an address.
fn paging_frame() -> u64 {
    exerciser::paging::frame(7)
}

fn monitor(_: &BootInfo) -> Check {
    let before = Registers {
        rax: paging_frame(),
        rcx: 0,
        rdx: 0,
        ..pattern()
    };
    faults(&[0x0f, 0x01, 0xc8], before, UD)?;
    faults(&[0x0f, 0x01, 0xc9], before, UD)
}

fn rdpmc(_: &BootInfo) -> Check {
    for counter in [0, 1, 0x4000_0000, 0xffff_ffff] {
        faults(
            &[0x0f, 0x33],
            Registers {
                rcx: counter,
                ..pattern()
            },
            GP,
        )?;
    }
    Ok(())
}

fn caches(_: &BootInfo) -> Check {
    // WBINVD first: INVD would lose what a real cache has not written back.
    probe(&[0x0f, 0x09], pattern(), pattern())?;
    probe(&[0x0f, 0x09, 0x0f, 0x08], pattern(), pattern())
}

fn xsetbv(_: &BootInfo) -> Check {
    const SET: [u8; 3] = [0x0f, 0x01, 0xd1];
    if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        return Err(Stop::Skip("no XSAVE"));
    }
    let old = cpu::cr4();
    // SAFETY: CPUID says that the bit exists.
    unsafe { cpu::set_cr4(old | 1 << 18) };
    let state = cpu::cpuid(0xd, 0);
    let supported = u64::from(state.eax) | u64::from(state.edx) << 32;
    let with = |index, value: u64| Registers {
        rcx: index,
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
        ..pattern()
    };
    for value in [1, 3, supported & 7, 1, supported & 7] {
        probe(&SET, with(0, value), with(0, value))?;
        let mut after = with(0, 0);
        exec::run(&[0x0f, 0x01, 0xd0], &mut after)?;
        equal!(after.rdx << 32 | after.rax, value, "XCR0 read back");
    }
    for value in [
        0,
        2,
        supported & !1,
        5,
        1 | !supported & 1 << 62,
        1 | 1 << 63,
    ] {
        faults(&SET, with(0, value), GP)?;
    }
    faults(&SET, with(1, 1), GP)?;
    faults(&SET, with(0xffff_ffff, 1), GP)?;
    // SAFETY: the value it had, and then without the bit.
    unsafe { cpu::set_cr4(old & !(1 << 18)) };
    let refused = faults(&SET, with(0, 1), UD);
    // SAFETY: as above.
    unsafe { cpu::set_cr4(old) };
    refused
}

fn software(_: &BootInfo) -> Check {
    for vector in [0x80, 0x8f] {
        idt::clear_log();
        probe(&[0xcd, vector], pattern(), pattern())?;
        let came = idt::event(0).map(|event| (event.vector, event.rip - exec::base()));
        equal!(
            (came, idt::logged()),
            (Some((vector, 2)), 1),
            "INT {vector:#x}"
        );
    }
    idt::clear_log();
    probe(&[0xcc], pattern(), pattern())?;
    let came = idt::event(0).map(|event| (event.vector, event.rip - exec::base()));
    equal!(came, Some((3, 1)), "INT3");
    Ok(())
}

/// STI; INT n with an interrupt pending: first the INT, in the shadow, then the interrupt.
fn software_pending(_: &BootInfo) -> Check {
    for (code, first) in [
        (&[0xfb, 0xcd, 0x80, 0x90, 0xfa][..], (0x80, 3)),
        (&[0xfb, 0xcc, 0x90, 0xfa], (3, 2)),
    ] {
        idt::clear_log();
        apic::send_self(0x50);
        exec::run(code, &mut pattern())?;
        let came = |index| idt::event(index).map(|event| (event.vector, event.rip - exec::base()));
        equal!(
            (came(0), came(1)),
            (Some(first), Some((0x50, first.1))),
            "order of {code:02x?}"
        );
        equal!(idt::logged(), 2, "events of {code:02x?}");
    }
    Ok(())
}

fn icebp(_: &BootInfo) -> Check {
    if exec::run(&[0xf1], &mut pattern()).is_err_and(|fault| fault.vector == UD) {
        return Err(Stop::Skip("this processor has no ICEBP (QEMU 7.2)"));
    }
    for round in 0..3 {
        idt::clear_log();
        probe(&[0xf1], pattern(), pattern())?;
        let came = idt::event(0).map(|event| (event.vector, event.rip - exec::base()));
        equal!(
            (came, idt::logged()),
            (Some((1, 1)), 1),
            "ICEBP, round {round}"
        );
    }
    Ok(())
}

/// Single-steps `code`; `ends` are the offsets behind its instructions.
fn step(code: &[u8], mut registers: Registers, ends: &[u64]) -> Check {
    set_dr6(0xffff_0ff0)?;
    registers.rflags = TF;
    exec::run(code, &mut registers)?;
    // The first step is the call into the code.
    let expected = core::iter::once(0).chain(ends.iter().copied());
    let mut seen = [u64::MAX; 8];
    exec::steps()
        .zip(&mut seen)
        .for_each(|(step, place)| *place = step);
    ensure!(
        exec::steps().eq(expected),
        "steps over {code:02x?} at {seen:x?}"
    );
    let mut registers = Registers::default();
    exec::run(&[0x0f, 0x21, 0xf0], &mut registers)?;
    equal!(registers.rax & 1 << 14, 1 << 14, "DR6.BS");
    set_dr6(0xffff_0ff0)
}

/// MOV DR6, RAX.
fn set_dr6(value: u64) -> Check {
    Ok(exec::run(
        &[0x0f, 0x23, 0xf0],
        &mut Registers {
            rax: value,
            ..Registers::default()
        },
    )?)
}

fn step_port(_: &BootInfo) -> Check {
    let registers = Registers {
        rdx: u64::from(SCRATCH),
        ..pattern()
    };
    step(&[0xec, 0x90, 0xee, 0xec, 0x90], registers, &[1, 2, 3, 4, 5])?;
    let registers = Registers {
        rdx: u64::from(super::ports::NOBODY),
        ..pattern()
    };
    step(&[0xed, 0x66, 0xed, 0x90], registers, &[1, 3, 4])
}

fn step_cpuid(_: &BootInfo) -> Check {
    let registers = Registers {
        rax: 0,
        rcx: 0,
        ..pattern()
    };
    step(
        &[0x0f, 0xa2, 0x90, 0x66, 0x0f, 0xa2, 0x0f, 0xa2, 0x90],
        registers,
        &[2, 3, 6, 8, 9],
    )
}

fn step_mmio_msr(_: &BootInfo) -> Check {
    let registers = Registers {
        rdi: exerciser::ioapic::BASE,
        rcx: u64::from(apic::APIC_BASE),
        ..pattern()
    };
    // MOV EAX, [RDI]; MOV [RDI], EAX; RDMSR; NOP
    step(
        &[0x8b, 0x07, 0x89, 0x07, 0x0f, 0x32, 0x90],
        registers,
        &[2, 4, 6, 7],
    )
}

/// An instruction breakpoint on the NOP behind an instruction that exits.
fn breakpoint(_: &BootInfo) -> Check {
    let registers = Registers {
        rax: 0,
        rcx: 0,
        rdx: u64::from(SCRATCH),
        ..Registers::default()
    };
    idt::set_handler(1, Some(|frame| frame.rflags |= 1 << 16));
    let mut result = Ok(());
    for (code, behind) in [(&[0xec, 0x90][..], 1), (&[0x0f, 0xa2, 0x90], 2)] {
        idt::clear_log();
        let mut dr0 = Registers {
            rax: exec::base() + behind,
            ..Registers::default()
        };
        exec::run(&[0x0f, 0x23, 0xc0], &mut dr0)?;
        // DR7: enable DR0 for execution only while `code` runs.
        set_dr7(0x401)?;
        let ran = exec::run(code, &mut registers.clone());
        set_dr7(0x400)?;
        ran?;
        let came = idt::event(0).map(|event| (event.vector, event.rip - exec::base()));
        result = (|| {
            equal!(
                (came, idt::logged()),
                (Some((1, behind)), 1),
                "breakpoint behind {code:02x?}"
            );
            Ok(())
        })();
        if result.is_err() {
            break;
        }
    }
    idt::set_handler(1, None);
    set_dr6(0xffff_0ff0)?;
    result
}

/// MOV DR7, RAX by inline code, so that the code page holds what is to run next.
fn set_dr7(value: u64) -> Check {
    // SAFETY: the breakpoint's handler is in place.
    unsafe { core::arch::asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) };
    Ok(())
}

/// Faults of the guest's own paging stay the guest's.
fn page_fault(_: &BootInfo) -> Check {
    let away = exerciser::paging::WINDOW + 0x7000_0000;
    for (code, error) in [
        (&[0x8b, 0x07][..], 0),
        (&[0x89, 0x07], 2),
        (&[0xff, 0xe7], 0x10),
    ] {
        let mut registers = Registers {
            rdi: away,
            ..pattern()
        };
        let Err(fault) = exec::run(code, &mut registers) else {
            ensure!(false, "{code:02x?} went through an absent page");
            return Ok(());
        };
        equal!(
            (fault.vector, fault.cr2),
            (exec::PF, away),
            "fault of {code:02x?}"
        );
        // Fetches are told apart only with NX or SMEP on.
        equal!(fault.error & 7, error & 7, "error code of {code:02x?}");
    }
    Ok(())
}
