//! Vireo's test device (`services/devices/testdev`): routed ports, its interrupt line, its
//! doorbell, and what the guest sees when its server crashes or hangs in the middle of an
//! access: a pause, never an error.

use exerciser::boot::BootInfo;
use exerciser::cpu::{inb, inl, inw, outb, outl, outw};
use exerciser::{clock, idt, ioapic};

use exerciser::exec::Registers;

use crate::check::{Case, Check, Stop, ensure, equal, pattern, probe};

pub const CASES: &[Case] = &[
    Case::new("testdev-scratch", scratch),
    Case::new("testdev-count", count),
    Case::new("testdev-line", line),
    Case::new("testdev-pulse", pulse),
    Case::new("testdev-doorbell", doorbell),
    Case::new("testdev-crash", |_| dies(CRASH_NEXT)),
    Case::new("testdev-hang", |_| dies(HANG_NEXT)),
    Case::new("testdev-crash-in-out", |_| dies_in_out(CRASH_NOW)),
    Case::new("testdev-hang-in-out", |_| dies_in_out(HANG_NOW)),
    Case::new("testdev-hang-after-commit", |_| dies(HANG_AFTER_COMMIT)),
    Case::new("testdev-touch-kernel", |_| dies(TOUCH_KERNEL_NEXT)),
    Case::new("testdev-touch-fpu", |_| dies(TOUCH_FPU_NEXT)),
    Case::new("testdev-touch-port", |_| dies(TOUCH_PORT_NEXT)),
    Case::new("testdev-flood", |_| dies(FLOOD_NEXT)),
];

/// The device's first port; offsets as its crate documents them.
const SCRATCH: u16 = 0x5000;
const COUNT: u16 = 0x5004;
const LINE: u16 = 0x5008;
const COMMAND: u16 = 0x500c;
const DOORBELL: u16 = 0x5010;
/// Its interrupt.
const GSI: u32 = 5;
const VECTOR: u8 = 0x65;

const HANG_NEXT: u32 = 1;
const CRASH_NEXT: u32 = 2;
const HANG_NOW: u32 = 3;
const CRASH_NOW: u32 = 4;
const HANG_AFTER_COMMIT: u32 = 5;
const PULSE: u32 = 6;
const TOUCH_KERNEL_NEXT: u32 = 7;
const TOUCH_FPU_NEXT: u32 = 8;
const TOUCH_PORT_NEXT: u32 = 9;
const FLOOD_NEXT: u32 = 11;

/// Goes on only where the device is; clears what earlier cases left.
fn present() -> Check {
    if inl(SCRATCH) == u32::MAX {
        outl(SCRATCH, 0);
        if inl(SCRATCH) == u32::MAX {
            return Err(Stop::Skip("no test device"));
        }
    }
    outl(LINE, 0);
    Ok(())
}

fn scratch(_: &BootInfo) -> Check {
    present()?;
    for value in [0u32, 0x1234_5678, 0xfedc_ba98] {
        outl(SCRATCH, value);
        equal!(
            (inl(SCRATCH), inw(SCRATCH), inb(SCRATCH)),
            (value, value as u16, value as u8),
            "scratch"
        );
    }
    // Every width merges or extends into RAX as it should, from a routed port.
    outl(SCRATCH, 0x89ab_cdef);
    let before = Registers {
        rax: 0x1122_3344_5566_7788,
        rdx: u64::from(SCRATCH),
        ..pattern()
    };
    for (form, rax) in [
        (&[0xec][..], 0x1122_3344_5566_77ef),
        (&[0x66, 0xed], 0x1122_3344_5566_cdef),
        (&[0xed], 0x89ab_cdef),
        (&[0x48, 0xed], 0x89ab_cdef),
    ] {
        probe(form, before, Registers { rax, ..before })?;
    }
    for (form, value) in [
        (&[0xee][..], 0x89ab_cd88),
        (&[0x66, 0xef], 0x89ab_7788),
        (&[0xef], 0x5566_7788),
    ] {
        probe(form, before, before)?;
        equal!(inl(SCRATCH), value, "scratch after {form:02x?}");
    }
    outw(SCRATCH, 0xabcd);
    equal!(inw(SCRATCH), 0xabcd, "16 bits");
    outb(SCRATCH, 0x5e);
    equal!(inb(SCRATCH), 0x5e, "8 bits");
    Ok(())
}

fn count(_: &BootInfo) -> Check {
    present()?;
    outl(COUNT, 100);
    for expected in 101..301 {
        equal!(inl(COUNT), expected, "reads counted");
    }
    Ok(())
}

/// The handler of the level interrupt: lowers the line.
fn lower(_: &mut idt::Frame) {
    outl(LINE, 0);
}

/// The same, but the first two times the line stays high.
fn lower_third(_: &mut idt::Frame) {
    if idt::logged() >= 3 {
        outl(LINE, 0);
    }
}

fn line(_: &BootInfo) -> Check {
    present()?;
    idt::set_handler(VECTOR, Some(lower));
    ioapic::route(GSI, VECTOR, ioapic::LEVEL);
    let mut came = 0;
    for round in 1..=20 {
        outl(LINE, 1);
        clock::wait_open(1000, || idt::logged() >= round);
        came = idt::logged();
        if came != round {
            break;
        }
    }
    clock::wait_open(3, || false);
    let (after, entry) = (idt::logged(), ioapic::read(ioapic::low(GSI)));
    ioapic::mask(GSI);
    idt::set_handler(VECTOR, None);
    outl(LINE, 0);
    equal!(came, 20, "interrupts for 20 rises of the line");
    equal!(after, 20, "interrupts with the line low");
    equal!(
        entry & ioapic::REMOTE_IRR,
        0,
        "remote IRR after the end of interrupt"
    );
    // A line that stays high comes again after each end of interrupt, before anything else is executed.
    idt::clear_log();
    idt::set_handler(VECTOR, Some(lower_third));
    ioapic::route(GSI, VECTOR, ioapic::LEVEL);
    outl(LINE, 1);
    clock::wait_open(20, || false);
    outl(LINE, 0);
    ioapic::mask(GSI);
    idt::set_handler(VECTOR, None);
    equal!(idt::logged(), 3, "interrupts of a line high for three");
    Ok(())
}

fn pulse(_: &BootInfo) -> Check {
    present()?;
    ioapic::route(GSI, VECTOR, 0);
    for round in 1..=10 {
        outl(COMMAND, PULSE);
        clock::wait_open(1000, || idt::logged() >= round);
        equal!(idt::logged(), round, "interrupts of an edge-triggered pin");
    }
    ioapic::mask(GSI);
    Ok(())
}

fn doorbell(_: &BootInfo) -> Check {
    present()?;
    for value in [0, 1, u32::MAX] {
        let before = inl(COMMAND);
        outl(DOORBELL, value);
        outw(DOORBELL, value as u16);
        let rang = clock::wait_open(1000, || inl(COMMAND) != before);
        ensure!(rang, "no doorbell seen by the device");
        let rings = inl(COMMAND).wrapping_sub(before);
        ensure!((1..=2).contains(&rings), "{rings} doorbells for 2 rings");
    }
    Ok(())
}

/// The server dies in the middle of an IN that counts: the IN completes, counted once.
fn dies(command: u32) -> Check {
    present()?;
    for _ in 0..2 {
        outl(SCRATCH, 0x600d_cafe);
        outl(COUNT, 40);
        outl(COMMAND, command);
        equal!(inl(COUNT), 41, "the read that the server died in");
        equal!(inl(COUNT), 42, "the next read");
        equal!(inl(SCRATCH), 0x600d_cafe, "what the device held before");
    }
    // The rest of the machine went on.
    outb(super::ports::SCRATCH, 0x39);
    equal!(
        inb(super::ports::SCRATCH),
        0x39,
        "the UART's scratch register"
    );
    Ok(())
}

/// The server dies in the middle of an OUT: it completes, and the device works afterwards.
fn dies_in_out(command: u32) -> Check {
    present()?;
    outl(COUNT, 7);
    outl(SCRATCH, 0x1357_9bdf);
    outl(COMMAND, command);
    equal!(inl(SCRATCH), 0x1357_9bdf, "scratch after the restart");
    equal!(inl(COUNT), 8, "count after the restart");
    Ok(())
}
