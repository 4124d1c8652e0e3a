//! What the guest does instead of its cases when the command line says `mode=...`.

use core::arch::asm;

use exerciser::boot::BootInfo;
use exerciser::cpu::{self, inb, inw, outb, outw};
use exerciser::{apic, clock, exec, idt, say, serial};

/// Enters the mode that the command line names, if any, for good.
pub fn enter(info: &BootInfo) {
    match info.command_line.value("mode") {
        None => {}
        Some("triple-fault") => triple_fault(),
        Some("hang") => {
            say!("HANG");
            loop {
                core::hint::spin_loop();
            }
        }
        Some("halt") => {
            say!("HALT");
            // Not 0xf4: the machine stays, its processor asleep with interrupts on.
            loop {
                cpu::sleep();
            }
        }
        Some("uartloop") => uart_loop(),
        Some("bursts") => bursts(),
        Some("poweroff") => power_off(info),
        Some("reset") => reset(info),
        Some("debug-storm") => debug_storm(),
        Some(other) => {
            say!("FAIL mode: no mode {other}");
            cpu::exit(2);
        }
    }
}

/// Makes the IDT empty and takes an exception.
fn triple_fault() -> ! {
    say!("TRIPLE");
    serial::drain();
    idt::load(0);
    // SAFETY: ends the machine, which is the point.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Counts aloud for ever and sends back what it receives.
fn uart_loop() -> ! {
    let mut count = 0u64;
    loop {
        say!("COUNT {count}");
        count += 1;
        clock::wait_for(100, || {
            if let Some(byte) = serial::receive() {
                say!("ECHO {:#04x} {:?}", byte, char::from(byte));
            }
            false
        });
    }
}

/// Writes numbered lines of 16 bytes for ever, each from a moment on at which so many bits of the TSC are 0, and sleeps in between: a
/// server that has the same TSC knows when. Every second line fills the transmitter's FIFO without a look at it, the others look before
/// each byte.
fn bursts() -> ! {
    const BITS: u32 = 24;
    const VECTOR: u8 = 0x70;
    let mut number = 0u32;
    apic::init();
    apic::write(apic::reg::LVT_TIMER, apic::DEADLINE | u32::from(VECTOR));
    loop {
        let mut line = *b"000000========\r\n";
        let mut rest = number;
        for digit in line[..6].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        serial::drain();
        let next = ((cpu::tsc() >> BITS) + 1) << BITS;
        if exec::wrmsr(apic::TSC_DEADLINE, next).is_err() {
            say!("FAIL bursts: no TSC deadline");
            cpu::exit(2)
        }
        while cpu::tsc() < next {
            cpu::sleep();
        }
        for byte in line {
            if number & 1 == 0 {
                outb(serial::UART, byte);
            } else {
                serial::send(byte);
            }
        }
        number += 1;
    }
}

/// ACPI S5 (ACPI 6.5 §7.4.2.6): SLP_TYPa with SLP_EN to the PM1a control block.
fn power_off(info: &BootInfo) -> ! {
    let Some(tables) = info.acpi else {
        say!("FAIL poweroff: no ACPI tables");
        cpu::exit(2)
    };
    let (Some(kind), port @ 1..) = (tables.s5, tables.pm1a_control) else {
        say!(
            "FAIL poweroff: S5 {:?}, PM1a control port {:#x}",
            tables.s5,
            tables.pm1a_control
        );
        cpu::exit(2)
    };
    let (smi_port, enable) = tables.smi_command;
    if smi_port != 0 && inw(port) & 1 == 0 {
        outb(smi_port, enable);
        clock::wait_for(1000, || inw(port) & 1 != 0);
    }
    say!("POWEROFF type {kind} port {port:#x}");
    serial::drain();
    outw(
        port,
        inw(port) & !(7 << 10) | u16::from(kind & 7) << 10 | 1 << 13,
    );
    clock::wait_for(2000, || false);
    say!("FAIL poweroff: still here");
    cpu::exit(2)
}

/// The FADT's reset register; without one, port 0xcf9.
fn reset(info: &BootInfo) -> ! {
    let (port, value) = info
        .acpi
        .and_then(|tables| tables.reset)
        .unwrap_or((0xcf9, 6));
    say!("RESET port {port:#x} value {value:#x}");
    serial::drain();
    outb(port, value);
    clock::wait_for(2000, || false);
    say!("FAIL reset: still here (status {:#x})", inb(port));
    cpu::exit(2)
}

/// A write breakpoint on the very stack slot that the processor writes when it delivers #DB:
/// the delivery causes the next #DB, without end (CVE-2015-8104). The guest may hang; its
/// machine must not. If the processor does not go round, the guest says so. QEMU 7.2 stops at an
/// assertion of its own, with or without a hypervisor in between: this is for Bochs and hardware.
fn debug_storm() -> ! {
    say!("STORM");
    serial::drain();
    // On a stack of its own every delivery writes the same slots.
    let slot = idt::use_fault_stack(1);
    // SAFETY: debug registers only; the program ends in any case.
    unsafe {
        asm!(
            "mov dr0, {slot}",
            "mov dr7, {control}",
            ".byte 0xf1", // ICEBP
            slot = in(reg) slot,
            // DR0 enabled for writes of 8 bytes.
            control = in(reg) 0x401u64 | 0b1001 << 16,
        );
    }
    say!("CALM after {} exceptions", idt::logged());
    cpu::exit(0)
}
