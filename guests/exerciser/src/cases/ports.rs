//! IN and OUT: widths, merging, routed and unrouted ports, ranges' ends, the UART.

use exerciser::boot::BootInfo;
use exerciser::cpu::{inb, inl, inw, outb, outl, outw};
use exerciser::exec::Registers;
use exerciser::serial::{self, UART};
use exerciser::{clock, idt, ioapic};

use crate::check::{Case, Check, ensure, equal, pattern, probe};

pub const CASES: &[Case] = &[
    Case::new("port-in", input),
    Case::new("port-out", output),
    Case::new("port-unrouted", unrouted),
    Case::new("port-immediate", immediate),
    Case::vireo("port-straddle", straddle),
    Case::new("uart-loopback", loopback),
    Case::new("uart-interrupt", interrupt),
];

/// The UART's scratch register: routed straight to a device server.
pub const SCRATCH: u16 = 0x3ff;
/// A port of nobody's.
pub const NOBODY: u16 = 0x1234;

/// [`pattern`] with DX = `port`, the rest of RDX not zero.
fn at(port: u16) -> Registers {
    Registers {
        rdx: 0xabcd_0000_0000_0000 | u64::from(port),
        rax: 0xdead_beef_cafe_f00d,
        ..pattern()
    }
}

fn input(_: &BootInfo) -> Check {
    for value in [0x5a, 0x00, 0xff, 0xa5] {
        outb(SCRATCH, value);
        let before = at(SCRATCH);
        let after = Registers {
            rax: before.rax & !0xff | u64::from(value),
            ..before
        };
        // Prefixes without meaning here count in the length.
        for form in [
            &[0xec][..],
            &[0x48, 0xec],
            &[0xf3, 0xec],
            &[0x66, 0xec],
            &[0x2e, 0x67, 0xec],
        ] {
            probe(form, before, after)?;
        }
    }
    Ok(())
}

fn output(_: &BootInfo) -> Check {
    for value in [0x12u64, 0xed, 0] {
        let before = Registers {
            rax: 0xdead_beef_cafe_f000 | value,
            ..at(SCRATCH)
        };
        for form in [&[0xee][..], &[0x66, 0xee], &[0x4a, 0xee]] {
            outb(SCRATCH, !value as u8);
            probe(form, before, before)?;
            equal!(
                u64::from(inb(SCRATCH)),
                value,
                "scratch register after {form:02x?}"
            );
        }
    }
    Ok(())
}

fn unrouted(_: &BootInfo) -> Check {
    let before = at(NOBODY);
    probe(
        &[0xec],
        before,
        Registers {
            rax: before.rax | 0xff,
            ..before
        },
    )?;
    probe(
        &[0x66, 0xed],
        before,
        Registers {
            rax: before.rax | 0xffff,
            ..before
        },
    )?;
    // 32 bits fill the register with zeros above, all ones below.
    probe(
        &[0xed],
        before,
        Registers {
            rax: 0xffff_ffff,
            ..before
        },
    )?;
    probe(
        &[0x48, 0xed],
        before,
        Registers {
            rax: 0xffff_ffff,
            ..before
        },
    )?;
    for form in [&[0xee][..], &[0x66, 0xef], &[0xef]] {
        probe(form, before, before)?;
    }
    outw(NOBODY, 0);
    outl(NOBODY, 0);
    equal!(
        (inb(NOBODY), inw(NOBODY), inl(NOBODY)),
        (0xff, 0xffff, 0xffff_ffff),
        "after writes"
    );
    equal!(inb(0xffff), 0xff, "port 0xffff");
    Ok(())
}

/// The forms with the port in the instruction: nobody's port 0xe4 and the VMM's 0x21.
fn immediate(_: &BootInfo) -> Check {
    let before = at(0);
    probe(
        &[0xe4, 0xe4],
        before,
        Registers {
            rax: before.rax | 0xff,
            ..before
        },
    )?;
    probe(
        &[0x66, 0xe5, 0xe4],
        before,
        Registers {
            rax: before.rax | 0xffff,
            ..before
        },
    )?;
    probe(
        &[0xe5, 0xe4],
        before,
        Registers {
            rax: 0xffff_ffff,
            ..before
        },
    )?;
    probe(&[0xe6, 0xe4], before, before)?;
    probe(&[0x66, 0xe7, 0xe4], before, before)?;
    probe(&[0xe7, 0xe4], before, before)?;
    // The first PIC's mask.
    let write = Registers {
        rax: before.rax & !0xff | 0xf5,
        ..before
    };
    probe(&[0xe6, 0x21], write, write)?;
    probe(&[0xe4, 0x21], before, write)?;
    outb(0x21, 0xff);
    equal!(inb(0x21), 0xff, "PIC mask");
    Ok(())
}

/// Accesses that begin in the UART's range and end outside it (QEMU stops at an assertion here).
/// Either the bus splits them, and the outside bytes are ones, or no device takes them; the
/// rest of RAX must be right, and the next access must work.
fn straddle(_: &BootInfo) -> Check {
    outb(SCRATCH, 0x77);
    let word = inw(SCRATCH);
    ensure!(
        word == 0xff77 || word == 0xffff,
        "16 bits at the end of the range: {word:#x}"
    );
    let before = at(SCRATCH);
    probe(
        &[0x66, 0xed],
        before,
        Registers {
            rax: before.rax & !0xffff | u64::from(word),
            ..before
        },
    )?;
    let long = inl(SCRATCH);
    probe(
        &[0xed],
        before,
        Registers {
            rax: u64::from(long),
            ..before
        },
    )?;
    equal!(
        inb(SCRATCH),
        0x77,
        "scratch register after straddling reads"
    );
    Ok(())
}

/// Loopback mode (MCR bit 4): what is sent comes back.
fn loopback(_: &BootInfo) -> Check {
    serial::drain();
    while serial::receive().is_some() {}
    let control = inb(UART + 4);
    outb(UART + 4, control | 0x10);
    let mut seen = [0; 3];
    for (byte, place) in [0x55, 0xaa, 0x01].into_iter().zip(&mut seen) {
        outb(UART, byte);
        clock::wait_for(200, || inb(UART + 5) & 1 != 0);
        *place = inb(UART);
    }
    // RTS and OUT2 come back as CTS and DCD.
    outb(UART + 4, 0x1a);
    let status = inb(UART + 6) & 0xf0;
    outb(UART + 4, control);
    equal!(seen, [0x55, 0xaa, 0x01], "bytes in loopback");
    equal!(status, 0x90, "modem status in loopback");
    Ok(())
}

/// The transmitter-empty interrupt, IRQ 4 through the IOAPIC.
fn interrupt(info: &BootInfo) -> Check {
    const VECTOR: u8 = 0x44;
    serial::drain();
    ioapic::route(info.wiring(4).gsi, VECTOR, 0);
    outb(UART + 1, 0);
    outb(UART + 1, 2);
    let came = clock::wait_open(500, || idt::count(VECTOR) > 0);
    let cause = inb(UART + 2) & 0xf;
    outb(UART + 1, 0);
    let after = inb(UART + 2) & 1;
    ensure!(came, "no interrupt within 500 ms (IIR {cause:#x})");
    equal!(cause, 2, "interrupt identification");
    equal!(after, 1, "nothing pending once disabled");
    Ok(())
}
