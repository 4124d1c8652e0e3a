//! Interrupts of the local APIC: self-IPIs, priorities, task priority, end of interrupt; each
//! in xAPIC and in x2APIC mode.

use exerciser::boot::BootInfo;
use exerciser::exec::{self, GP, Registers};
use exerciser::{apic, cpu, idt};

use crate::check::{Case, Check, Stop, ensure, equal, faults, pattern};

pub const CASES: &[Case] = &[
    Case::new("apic-self-ipi", |_| self_ipi()),
    Case::new("apic-priority", |_| priority()),
    Case::new("apic-tpr", |_| task_priority()),
    Case::new("apic-cr8", cr8),
    Case::new("apic-nesting", |_| nesting()),
];

/// The same in x2APIC mode, which stays on: there are processors that cannot leave it.
pub const X2APIC_CASES: &[Case] = &[
    Case::new("x2apic-registers", |_| in_x2apic(x2apic_registers)),
    Case::vireo("x2apic-illegal", |_| in_x2apic(x2apic_illegal)),
    Case::new("x2apic-self-ipi", |_| in_x2apic(self_ipi)),
    Case::new("x2apic-self-ipi-msr", |_| in_x2apic(self_ipi_msr)),
    Case::new("x2apic-priority", |_| in_x2apic(priority)),
    Case::new("x2apic-tpr", |_| in_x2apic(task_priority)),
    Case::new("x2apic-cr8", |info| {
        not_in_qemu(info)?;
        in_x2apic(lower_cr8)
    }),
    Case::new("x2apic-nesting", |_| in_x2apic(nesting)),
];

/// Last of all: in and out of x2APIC mode.
pub const SWITCH_CASES: &[Case] = &[Case::new("x2apic-enable", x2apic)];

/// Runs a check in x2APIC mode, and stays there.
pub fn in_x2apic(check: fn() -> Check) -> Check {
    if !apic::has_x2apic() {
        return Err(Stop::Skip("no x2APIC"));
    }
    apic::enable_x2apic()?;
    apic::init();
    check()
}

/// The vectors that came, in order.
fn order<const N: usize>() -> [u8; N] {
    core::array::from_fn(|index| idt::event(index).map_or(0, |event| event.vector))
}

fn self_ipi() -> Check {
    for vector in [0x30, 0x7f, 0xfd] {
        idt::clear_log();
        apic::send_self(vector);
        ensure!(
            apic::is_set(apic::reg::IRR, vector),
            "{vector:#x} is not in the IRR"
        );
        equal!(idt::logged(), 0, "interrupts while IF is 0");
        cpu::open_window();
        equal!(
            (idt::logged(), order()),
            (1, [vector]),
            "interrupts once IF is 1"
        );
        ensure!(
            !apic::is_set(apic::reg::IRR, vector),
            "{vector:#x} is still in the IRR"
        );
        ensure!(
            !apic::is_set(apic::reg::ISR, vector),
            "{vector:#x} is still in the ISR"
        );
        equal!(apic::read(apic::reg::ICR) & 1 << 12, 0, "delivery status");
    }
    Ok(())
}

fn self_ipi_msr() -> Check {
    exec::wrmsr(0x83f, 0x5c)?;
    cpu::open_window();
    equal!((idt::logged(), order()), (1, [0x5c]), "interrupts");
    Ok(())
}

/// Of several that wait the highest comes first, and one sent twice comes once.
fn priority() -> Check {
    for vector in [0x31, 0x52, 0x41, 0x41, 0xe0] {
        apic::send_self(vector);
    }
    for _ in 0..6 {
        cpu::open_window();
    }
    equal!(
        (idt::logged(), order()),
        (4, [0xe0, 0x52, 0x41, 0x31]),
        "interrupts"
    );
    Ok(())
}

/// A task priority holds back what is below it; lowering it lets that in at once.
fn task_priority() -> Check {
    apic::write(apic::reg::TPR, 0x5a);
    equal!(cpu::cr8(), 5, "CR8 after TPR");
    for vector in [0x41, 0x60] {
        apic::send_self(vector);
    }
    cpu::open_window();
    cpu::open_window();
    equal!((idt::logged(), order()), (1, [0x60]), "above priority 5");
    equal!(apic::read(apic::reg::PPR), 0x5a, "PPR");
    apic::write(apic::reg::TPR, 0x30);
    equal!(cpu::cr8(), 3, "CR8 after TPR");
    cpu::open_window();
    equal!((idt::logged(), order()), (2, [0x60, 0x41]), "interrupts");
    apic::write(apic::reg::TPR, 0);
    Ok(())
}

/// QEMU's emulation of SVM (7.2 to 10.0) delivers a virtual interrupt whose priority equals the task priority, which must
/// be above it (APM vol. 2, 15.21.4), and stops at an assertion of its own when CR8 is written while one waits.
fn not_in_qemu(info: &BootInfo) -> Check {
    if info.command_line.value("emulator") == Some("qemu") {
        return Err(Stop::Skip(
            "QEMU stops when CR8 falls below a virtual interrupt",
        ));
    }
    Ok(())
}

fn cr8(info: &BootInfo) -> Check {
    not_in_qemu(info)?;
    lower_cr8()
}

/// The same by CR8, which makes no exit.
fn lower_cr8() -> Check {
    cpu::set_cr8(5);
    equal!(apic::read(apic::reg::TPR), 0x50, "TPR after CR8");
    for vector in [0x41, 0x5f, 0x60] {
        apic::send_self(vector);
    }
    cpu::open_window();
    cpu::open_window();
    equal!((idt::logged(), order()), (1, [0x60]), "above priority 5");
    equal!(apic::read(apic::reg::PPR), 0x50, "PPR");
    // MOV CR8, RAX; NOP, with interrupts on: 0x5f comes right behind the MOV.
    let mut registers = Registers {
        rax: 4,
        ..pattern()
    };
    exec::run(
        &[0xfb, 0x90, 0x44, 0x0f, 0x22, 0xc0, 0x90, 0x90, 0xfa],
        &mut registers,
    )?;
    let event = idt::event(1).map(|event| (event.vector, event.rip - exec::base()));
    equal!(event, Some((0x5f, 6)), "interrupt when CR8 falls to 4");
    apic::write(apic::reg::TPR, 0);
    equal!(cpu::cr8(), 0, "CR8 after TPR");
    cpu::open_window();
    equal!(
        (idt::logged(), order()),
        (3, [0x60, 0x5f, 0x41]),
        "interrupts"
    );
    Ok(())
}

/// A handler that lets interrupts in is itself interrupted by higher ones only.
fn nesting() -> Check {
    idt::set_handler(
        0x50,
        Some(|_| {
            for vector in [0x40, 0x5e, 0x60] {
                apic::send_self(vector);
            }
            cpu::open_window();
            cpu::open_window();
        }),
    );
    apic::send_self(0x50);
    for _ in 0..4 {
        cpu::open_window();
    }
    idt::set_handler(0x50, None);
    equal!(
        (idt::logged(), order()),
        (4, [0x50, 0x60, 0x5e, 0x40]),
        "interrupts"
    );
    Ok(())
}

fn x2apic(_: &BootInfo) -> Check {
    if !apic::has_x2apic() {
        return Err(Stop::Skip("no x2APIC"));
    }
    if apic::is_x2apic() {
        apic::enable_xapic()?;
    }
    let base = exec::rdmsr(apic::APIC_BASE)?;
    equal!(base & 0xf_ffff_f000, apic::BASE, "APIC base");
    equal!(base >> 8 & 1, 1, "boot processor");
    for _ in 0..3 {
        faults(
            &[0x0f, 0x32],
            Registers {
                rcx: 0x802,
                ..pattern()
            },
            GP,
        )?;
        apic::enable_x2apic()?;
        equal!(
            exec::rdmsr(apic::APIC_BASE)?,
            base | 1 << 10,
            "APIC base in x2APIC mode"
        );
        equal!(exec::rdmsr(0x802)?, 0, "APIC ID");
        // Back to xAPIC only by way of "disabled".
        let direct = Registers {
            rcx: 0x1b,
            rax: base & 0xffff_ffff,
            rdx: base >> 32,
            ..pattern()
        };
        faults(&[0x0f, 0x30], direct, GP)?;
        apic::enable_xapic()?;
        equal!(exec::rdmsr(apic::APIC_BASE)?, base, "APIC base again");
    }
    Ok(())
}

fn x2apic_registers() -> Check {
    let version = exec::rdmsr(0x803)?;
    ensure!(
        (0x10..=0x1f).contains(&(version & 0xff)),
        "version {version:#x}"
    );
    equal!(exec::rdmsr(0x80d)?, 1, "logical destination of APIC 0");
    for value in [0x30, 0xf0, 0] {
        exec::wrmsr(0x808, value)?;
        equal!(
            (exec::rdmsr(0x808)?, cpu::cr8()),
            (value, value >> 4),
            "TPR and CR8"
        );
    }
    exec::wrmsr(0x80b, 0)?;
    exec::wrmsr(0x828, 0)?;
    Ok(())
}

/// Read-only registers, registers that are gone, values with reserved bits; QEMU takes some.
fn x2apic_illegal() -> Check {
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80b, 1),
        (0x828, 1),
        (0x80d, 1),
        (0x808, 0x100),
        (0x80a, 0),
    ] {
        let before = Registers {
            rcx: msr,
            rax: value,
            rdx: 0,
            ..pattern()
        };
        faults(&[0x0f, 0x30], before, GP)?;
    }
    for msr in [0x80b, 0x80e, 0x831, 0x83f, 0x8ff] {
        faults(
            &[0x0f, 0x32],
            Registers {
                rcx: msr,
                ..pattern()
            },
            GP,
        )?;
    }
    Ok(())
}
