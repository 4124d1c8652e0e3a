//! An interrupt that waits is taken behind the instruction that follows STI, neither before
//! nor later, whatever way that instruction exits.

use exerciser::boot::BootInfo;
use exerciser::exec::{self, Registers};
use exerciser::{apic, cpu, idt, ioapic};

use super::ports::{NOBODY, SCRATCH};
use crate::check::{Case, Check, ensure, equal, pattern};

pub const CASES: &[Case] = &[
    Case::new("sti-shadow-nop", |_| all(&[&[0x90]], 0)),
    Case::new("sti-shadow-port", port),
    Case::new("sti-shadow-cpuid", |_| {
        all(&[&[0x0f, 0xa2], &[0x66, 0x0f, 0xa2]], 0)
    }),
    Case::new("sti-shadow-kept", |_| kept()),
    Case::new("sti-shadow-mmio", mmio),
    Case::new("sti-shadow-msr", |_| all(&[&[0x0f, 0x32]], 0)),
    Case::new("sti-shadow-wbinvd", |_| all(&[&[0x0f, 0x09]], 0)),
    Case::new("sti-shadow-hlt", |_| all(&[&[0xf4]], 0)),
    Case::new("mov-ss-shadow", mov_ss),
    Case::new("interrupt-after-exit", after_exit),
];

/// Runs STI, `code`, NOPs with an interrupt pending: it must come behind `code`.
fn shadow(code: &[u8], rdx: u16) -> Check {
    let mut bytes = [0x90; 16];
    bytes[0] = 0xfb;
    bytes[1..=code.len()].copy_from_slice(code);
    bytes[15] = 0xfa;
    idt::clear_log();
    apic::send_self(0x50);
    let mut registers = Registers {
        rax: 0,
        rcx: u64::from(apic::APIC_BASE),
        rdx: u64::from(rdx),
        rdi: ioapic::BASE,
        rflags: 2,
        ..pattern()
    };
    exec::run(&bytes, &mut registers)?;
    let came = idt::event(0).map(|event| (event.vector, event.rip - exec::base()));
    equal!(
        came,
        Some((0x50, code.len() as u64 + 1)),
        "vector and place, STI then {code:02x?}"
    );
    equal!(idt::logged(), 1, "interrupts");
    Ok(())
}

/// CPUID with a leaf that Vireo executes twice, to ask for more of the state: the shadow lasts until it is done.
fn kept() -> Check {
    let bytes = [0xfb, 0x0f, 0xa2, 0x90, 0x90, 0xfa];
    for _ in 0..3 {
        idt::clear_log();
        apic::send_self(0x50);
        let mut registers = Registers {
            rax: 0xd,
            rcx: 0,
            rflags: 2,
            ..pattern()
        };
        exec::run(&bytes, &mut registers)?;
        let came = idt::event(0).map(|event| (event.vector, event.rip - exec::base()));
        equal!(came, Some((0x50, 3)), "vector and place");
    }
    Ok(())
}

/// The same for several instructions.
fn all(codes: &[&[u8]], rdx: u16) -> Check {
    codes.iter().try_for_each(|code| shadow(code, rdx))
}

fn port(_: &BootInfo) -> Check {
    all(&[&[0xec], &[0x66, 0xec], &[0xee]], SCRATCH)?;
    all(&[&[0xec], &[0x66, 0xed], &[0xed], &[0xef]], NOBODY)?;
    all(&[&[0xec], &[0xee]], 0x61)
}

fn mmio(_: &BootInfo) -> Check {
    all(&[&[0x8b, 0x07], &[0x89, 0x07], &[0x09, 0x07]], 0)
}

/// STI; MOV SS, EAX; IN; NOP: whether the second shadow counts is the processor's choice, but
/// the one that the IN ends must not last longer.
fn mov_ss(_: &BootInfo) -> Check {
    for code in [
        &[0xfb, 0x8e, 0xd0, 0xec, 0x90, 0x90, 0xfa][..],
        &[0xfb, 0x8e, 0xd0, 0xe4, 0x61, 0x90, 0x90, 0xfa],
    ] {
        idt::clear_log();
        apic::send_self(0x50);
        let mut registers = Registers {
            rax: 0x10,
            rdx: u64::from(SCRATCH),
            ..pattern()
        };
        exec::run(code, &mut registers)?;
        let behind = if code[3] == 0xec { 4 } else { 5 };
        let place = idt::event(0).map(|event| event.rip - exec::base());
        ensure!(
            place == Some(3) || place == Some(behind),
            "interrupt at {place:?}, {code:02x?}"
        );
    }
    Ok(())
}

/// Interrupts on all the time: one that an instruction itself causes comes right behind it.
fn after_exit(_: &BootInfo) -> Check {
    for _ in 0..20 {
        idt::clear_log();
        // MOV [RDI], EAX to the interrupt command register: a self-IPI.
        let mut registers = Registers {
            rax: 1 << 18 | 1 << 14 | 0x50,
            rdi: apic::BASE + u64::from(apic::reg::ICR),
            ..pattern()
        };
        // The jump is for QEMU, which looks at interrupts between its translated blocks only.
        let code = [0xfb, 0x90, 0x90, 0x89, 0x07, 0xeb, 0x00, 0x90, 0x90, 0xfa];
        exec::run(&code, &mut registers)?;
        let came = idt::event(0).map(|event| (event.vector, event.rip - exec::base()));
        let late = !cpu::on_vireo() && came == Some((0x50, 7));
        ensure!(
            came == Some((0x50, 5)) || late,
            "self-IPI by a store: {came:x?}"
        );
        equal!(idt::logged(), 1, "interrupts");
    }
    Ok(())
}
