//! INS and OUTS: single and repeated, both directions, address sizes, segments, page borders
//! and faults half-way.

use core::cell::UnsafeCell;

use exerciser::boot::BootInfo;
use exerciser::cpu::{DF, inb, outb};
use exerciser::exec::{self, PF, Registers};
use exerciser::paging;

use super::ports::{NOBODY, SCRATCH};
use crate::check::{Case, Check, ensure, equal, pattern, probe};

pub const CASES: &[Case] = &[
    Case::new("outs", outs),
    Case::new("ins", ins),
    Case::new("string-rep-zero", rep_zero),
    Case::new("string-address-size", address_size),
    Case::new("string-segment", segment),
    Case::new("string-page", page),
    Case::new("string-fault", fault),
];

struct Buffer(UnsafeCell<[u8; 64]>);
// SAFETY: touched by the main flow only.
unsafe impl Sync for Buffer {}
static BUFFER: Buffer = Buffer(UnsafeCell::new([0; 64]));

/// The buffer's address.
fn buffer() -> u64 {
    BUFFER.0.get() as u64
}

/// Writes the buffer.
fn set(bytes: [u8; 64]) {
    // SAFETY: the main flow alone uses it.
    unsafe { BUFFER.0.get().write_volatile(bytes) };
}

/// Reads the buffer.
fn get() -> [u8; 64] {
    // SAFETY: as above.
    unsafe { BUFFER.0.get().read_volatile() }
}

/// Numbers from 1.
fn numbered() -> [u8; 64] {
    core::array::from_fn(|index| index as u8 + 1)
}

/// Registers for a string instruction on `port`.
fn registers(port: u16, count: u64) -> Registers {
    let here = buffer() + 16;
    Registers {
        rdx: u64::from(port),
        rcx: count,
        rsi: here,
        rdi: here,
        ..pattern()
    }
}

fn outs(_: &BootInfo) -> Check {
    set(numbered());
    let back = 0u64.wrapping_sub(1);
    for (form, count, flags, step, taken, last) in [
        (&[0x6e][..], 9, 0, 1u64, 0u64, 17),
        (&[0x6e], 9, DF, back, 0, 17),
        (&[0xf3, 0x6e], 5, 0, 5, 5, 21),
        (&[0xf3, 0x6e], 5, DF, back.wrapping_mul(5), 5, 13),
        (&[0xf2, 0x48, 0x6e], 3, 0, 3, 3, 19),
    ] {
        outb(SCRATCH, 0);
        let before = Registers {
            rflags: 0x8d7 | flags,
            ..registers(SCRATCH, count)
        };
        let after = Registers {
            rsi: before.rsi.wrapping_add(step),
            rcx: count - taken,
            ..before
        };
        probe(form, before, after)?;
        equal!(
            inb(SCRATCH),
            last,
            "last byte out by {form:02x?} with flags {flags:#x}"
        );
    }
    for (form, width) in [
        (&[0xf3, 0x66, 0x6f][..], 2),
        (&[0xf3, 0x6f], 4),
        (&[0xf3, 0x48, 0x6f], 4),
    ] {
        let before = registers(NOBODY, 3);
        probe(
            form,
            before,
            Registers {
                rsi: before.rsi + 3 * width,
                rcx: 0,
                ..before
            },
        )?;
    }
    Ok(())
}

fn ins(_: &BootInfo) -> Check {
    outb(SCRATCH, 0xc3);
    for (form, count, flags, first, length) in [
        (&[0x6c][..], 7, 0, 16, 1),
        (&[0x6c], 7, DF, 16, 1),
        (&[0xf3, 0x6c], 6, 0, 16, 6),
        (&[0xf3, 0x6c], 6, DF, 11, 6),
    ] {
        set(numbered());
        let before = Registers {
            rflags: 0x8d7 | flags,
            ..registers(SCRATCH, count)
        };
        let moved = if flags == 0 {
            length
        } else {
            0u64.wrapping_sub(length)
        };
        let left = if form.len() > 1 { 0 } else { count };
        probe(
            form,
            before,
            Registers {
                rdi: before.rdi.wrapping_add(moved),
                rcx: left,
                ..before
            },
        )?;
        let mut expected = numbered();
        expected[first..first + length as usize].fill(0xc3);
        ensure!(
            get() == expected,
            "memory after {form:02x?} with flags {flags:#x}"
        );
    }
    for (form, width) in [
        (&[0xf3, 0x66, 0x6d][..], 2),
        (&[0xf3, 0x6d], 4),
        (&[0xf3, 0x48, 0x6d], 4),
    ] {
        set(numbered());
        let before = registers(NOBODY, 2);
        probe(
            form,
            before,
            Registers {
                rdi: before.rdi + 2 * width,
                rcx: 0,
                ..before
            },
        )?;
        let mut expected = numbered();
        expected[16..16 + 2 * width as usize].fill(0xff);
        ensure!(get() == expected, "memory after {form:02x?}");
    }
    Ok(())
}

fn rep_zero(_: &BootInfo) -> Check {
    set(numbered());
    outb(SCRATCH, 0x42);
    let before = registers(SCRATCH, 0);
    probe(&[0xf3, 0x6c], before, before)?;
    probe(&[0xf3, 0x6e], before, before)?;
    ensure!(get() == numbered(), "memory changed by zero repetitions");
    equal!(inb(SCRATCH), 0x42, "scratch register");
    Ok(())
}

/// Prefix 0x67: ESI, EDI and ECX count, without their upper halves.
fn address_size(_: &BootInfo) -> Check {
    set(numbered());
    outb(SCRATCH, 0x99);
    let junk = 0x7777_0000_0000_0000;
    let plain = registers(SCRATCH, 3);
    let before = Registers {
        rdi: plain.rdi | junk,
        rsi: plain.rsi | junk,
        rcx: junk | 3,
        ..plain
    };
    let mut after = before;
    exec::run(&[0x67, 0xf3, 0x6c], &mut after)?;
    equal!(
        (after.rdi, after.rcx),
        (plain.rdi + 3, 0),
        "rdi and rcx after INS"
    );
    equal!(
        get()[15..20],
        [16, 0x99, 0x99, 0x99, 20],
        "memory after INS"
    );
    let mut after = before;
    exec::run(&[0x67, 0x6e], &mut after)?;
    equal!(after.rsi, plain.rsi + 1, "rsi after OUTS");
    Ok(())
}

/// OUTS with FS override and a base; INS ignores overrides.
fn segment(_: &BootInfo) -> Check {
    const FS_BASE: u32 = 0xc000_0100;
    set(numbered());
    exec::wrmsr(FS_BASE, buffer())?;
    let before = Registers {
        rsi: 30,
        ..registers(SCRATCH, 1)
    };
    let result = probe(&[0x64, 0x6e], before, Registers { rsi: 31, ..before });
    let seen = inb(SCRATCH);
    let before = registers(SCRATCH, 1);
    let ignored = probe(
        &[0x64, 0x6c],
        before,
        Registers {
            rdi: before.rdi + 1,
            ..before
        },
    );
    exec::wrmsr(FS_BASE, 0)?;
    result?;
    equal!(seen, 31, "byte out of FS:[30]");
    ignored
}

const HERE: u64 = paging::WINDOW + 0x20_0000;

/// Maps the two pages of the window: frame 0, then `second`.
fn map(second: Option<u64>) -> Check {
    ensure!(
        paging::map(HERE, Some(paging::frame(0)), false),
        "no page tables left"
    );
    ensure!(
        paging::map(HERE + 4096, second, false),
        "no page tables left"
    );
    paging::invalidate(HERE);
    paging::invalidate(HERE + 4096);
    Ok(())
}

/// Bytes of frame `index` from `offset` on.
fn frame_bytes(index: usize, offset: u64) -> [u8; 8] {
    let at =
        core::ptr::with_exposed_provenance::<[u8; 8]>((paging::frame(index) + offset) as usize);
    // SAFETY: inside a test frame, identity-mapped.
    unsafe { at.read_volatile() }
}

/// A buffer across two pages whose frames are no neighbours.
fn page(_: &BootInfo) -> Check {
    for index in 0..3 {
        paging::fill(index, 0, &[0x11; 4096]);
    }
    map(Some(paging::frame(2)))?;
    let before = Registers {
        rdi: HERE + 4096 - 5,
        rcx: 10,
        rdx: u64::from(SCRATCH),
        ..pattern()
    };
    outb(SCRATCH, 0xe1);
    probe(
        &[0xf3, 0x6c],
        before,
        Registers {
            rdi: before.rdi + 10,
            rcx: 0,
            ..before
        },
    )?;
    equal!(
        frame_bytes(0, 4088),
        [0x11, 0x11, 0x11, 0xe1, 0xe1, 0xe1, 0xe1, 0xe1],
        "end of the first page"
    );
    equal!(
        frame_bytes(2, 0),
        [0xe1, 0xe1, 0xe1, 0xe1, 0xe1, 0x11, 0x11, 0x11],
        "start of the second"
    );
    equal!(frame_bytes(1, 0), [0x11; 8], "the neighbour frame");
    // One access of four bytes, two on each side.
    let before = Registers {
        rdi: HERE + 4094,
        rdx: u64::from(NOBODY),
        ..pattern()
    };
    probe(
        &[0x6d],
        before,
        Registers {
            rdi: before.rdi + 4,
            ..before
        },
    )?;
    equal!(
        frame_bytes(0, 4088)[5..],
        [0xe1, 0xff, 0xff],
        "two bytes on the first page"
    );
    equal!(
        frame_bytes(2, 0)[..3],
        [0xff, 0xff, 0xe1],
        "two bytes on the second"
    );
    Ok(())
}

/// The second page is absent: #PF after the elements that fit, registers saying how many.
fn fault(_: &BootInfo) -> Check {
    paging::fill(0, 0, &[0x22; 4096]);
    map(None)?;
    for (form, error) in [([0xf3, 0x6c], 2), ([0xf3, 0x6e], 0)] {
        let start = HERE + 4096 - 3;
        let mut after = Registers {
            rdi: start,
            rsi: start,
            rcx: 8,
            rdx: u64::from(SCRATCH),
            ..pattern()
        };
        let Err(fault) = exec::run(&form, &mut after) else {
            ensure!(false, "{form:02x?} went through an absent page");
            return Ok(());
        };
        equal!(
            (fault.vector, fault.error, fault.offset),
            (PF, error, 0),
            "fault of {form:02x?}"
        );
        equal!(fault.cr2, HERE + 4096, "CR2 after {form:02x?}");
        let moved = if form[1] == 0x6c {
            after.rdi
        } else {
            after.rsi
        };
        equal!(
            (after.rcx, moved),
            (5, HERE + 4096),
            "rcx and pointer after {form:02x?}"
        );
    }
    Ok(())
}
