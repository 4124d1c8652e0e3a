//! Control and debug registers, and translations that change under the hypervisor.
//!
//! Values that are illegal in CR4 are not tried: the processor refuses those by itself, without
//! an exit (and QEMU's does not).

use core::arch::asm;

use exerciser::boot::BootInfo;
use exerciser::exec::{self, Registers};
use exerciser::{cpu, paging};

use super::exits;
use crate::check::{Case, Check, ensure, equal, faults, pattern, probe};

pub const CASES: &[Case] = &[
    Case::new("cr0", cr0),
    Case::new("cr0-illegal", cr0_illegal),
    Case::new("cr4", cr4),
    Case::new("cr2-cr8-keep", cr2_cr8),
    Case::new("cr3-remap", remap),
    Case::new("debug-registers", debug_registers),
];

/// MOV CR0, RAX.
const SET_CR0: [u8; 3] = [0x0f, 0x22, 0xc0];

fn cr0(_: &BootInfo) -> Check {
    let old = cpu::cr0();
    // WP, AM, TS: set and cleared, kept over exits.
    for bit in [16, 18, 3] {
        let other = old ^ 1 << bit;
        let registers = Registers {
            rax: other,
            ..pattern()
        };
        probe(&SET_CR0, registers, registers)?;
        exits(3);
        let seen = cpu::cr0();
        // SAFETY: the value it had.
        unsafe { cpu::set_cr0(old) };
        equal!(seen, other, "CR0 with bit {bit} changed");
    }
    // TS makes FNINIT a #NM, also after exits; CLTS (which is an exit of its own kind) ends that.
    let registers = Registers {
        rax: old | 8,
        ..pattern()
    };
    probe(&SET_CR0, registers, registers)?;
    exits(3);
    let refused = faults(&[0xdb, 0xe3], pattern(), 7);
    probe(&[0x0f, 0x06, 0xdb, 0xe3], pattern(), pattern())?;
    equal!(cpu::cr0(), old & !8, "CR0 after CLTS");
    refused?;
    // SMSW and LMSW.
    let mut registers = Registers {
        rax: 0,
        ..pattern()
    };
    exec::run(&[0x0f, 0x01, 0xe0], &mut registers)?;
    equal!(registers.rax & 0xffff, old & 0xffff, "SMSW");
    let registers = Registers {
        rax: old & 0xf | 8,
        ..pattern()
    };
    probe(&[0x0f, 0x01, 0xf0], registers, registers)?;
    let seen = cpu::cr0();
    // SAFETY: the value it had.
    unsafe { cpu::set_cr0(old) };
    equal!(seen, old | 8, "CR0 after LMSW with TS");
    Ok(())
}

/// What no processor lets 64-bit code put into CR0 (AMD APM vol. 2, 3.1.1), and what it ignores.
fn cr0_illegal(info: &BootInfo) -> Check {
    let old = cpu::cr0();
    let (pe, nw, cd, pg) = (1, 1 << 29, 1 << 30, 1 << 31);
    // QEMU 7.2 does not look at the upper half, and tells no hypervisor of it.
    let upper = if info.command_line.value("emulator") == Some("qemu") {
        old & !pe
    } else {
        old | 1 << 32
    };
    for illegal in [
        old & !pg,
        old & !(pg | pe),
        old & !pe,
        (old | nw) & !cd,
        upper,
    ] {
        let registers = Registers {
            rax: illegal,
            ..pattern()
        };
        faults(&SET_CR0, registers, exec::GP)?;
        equal!(cpu::cr0(), old, "CR0 after {illegal:#x} was refused");
    }
    // LMSW sets EM and MP from memory, and leaves PE.
    paging::fill(0, 0, &[0x06, 0xff]);
    let registers = Registers {
        rdi: paging::frame(0),
        ..pattern()
    };
    probe(&[0x0f, 0x01, 0x37], registers, registers)?;
    let seen = cpu::cr0();
    // SAFETY: the value it had.
    unsafe { cpu::set_cr0(old) };
    equal!(seen, old & !0xe | 0x6, "CR0 after LMSW from memory");
    Ok(())
}

fn cr4(_: &BootInfo) -> Check {
    let old = cpu::cr4();
    // TSD, DE, PGE, PCE, OSFXSR.
    for bit in [2, 3, 7, 8, 9] {
        for _ in 0..2 {
            let other = old ^ 1 << bit;
            // SAFETY: bits that every processor with long mode has.
            unsafe { cpu::set_cr4(other) };
            exits(2);
            let seen = cpu::cr4();
            // SAFETY: the value it had.
            unsafe { cpu::set_cr4(old) };
            equal!(seen, other, "CR4 with bit {bit} changed");
        }
    }
    Ok(())
}

fn cr2_cr8(_: &BootInfo) -> Check {
    let planted = 0x1234_5678_9abc_def0u64;
    // SAFETY: CR2 holds whatever it is given.
    unsafe { asm!("mov cr2, {}", in(reg) planted, options(nomem, nostack, preserves_flags)) };
    for priority in [15, 7, 0] {
        cpu::set_cr8(priority);
        exits(5);
        equal!(cpu::cr8(), priority, "CR8");
        let tpr = exerciser::apic::read(exerciser::apic::reg::TPR);
        equal!(u64::from(tpr), priority << 4, "TPR beside CR8");
    }
    equal!(cpu::cr2(), planted, "CR2");
    Ok(())
}

const HERE: u64 = paging::WINDOW + 0x30_0000;

/// What stands at the start of the page at `address`.
fn first_byte(address: u64) -> u8 {
    // SAFETY: mapped by the caller.
    unsafe { core::ptr::with_exposed_provenance::<u8>(address as usize).read_volatile() }
}

/// A page whose frame changes is seen anew after INVLPG and after MOV CR3.
fn remap(_: &BootInfo) -> Check {
    for index in 0..paging::FRAMES {
        paging::fill(index, 0, &[0xf0 + index as u8]);
    }
    for round in 0..200 {
        let index = round * 5 % paging::FRAMES;
        ensure!(
            paging::map(HERE, Some(paging::frame(index)), false),
            "no page tables left"
        );
        if round & 1 == 0 {
            paging::invalidate(HERE)
        } else {
            paging::reload()
        }
        if round % 3 == 0 {
            exits(1);
        }
        equal!(
            first_byte(HERE),
            0xf0 + index as u8,
            "frame {index} in round {round}"
        );
    }
    ensure!(paging::map(HERE, None, false), "no page tables left");
    paging::invalidate(HERE);
    let mut registers = Registers {
        rdi: HERE,
        ..pattern()
    };
    let gone = exec::run(&[0x8a, 0x07], &mut registers);
    ensure!(
        gone.is_err_and(|fault| fault.vector == exec::PF),
        "an unmapped page is still there"
    );
    Ok(())
}

fn debug_registers(_: &BootInfo) -> Check {
    let dr: [u64; 4] = [
        0x1111_2222_3333,
        0xffff_8000_4444_5555,
        0x6666,
        0x7777_7777_7777,
    ];
    // No breakpoint enabled, but types and lengths set.
    let dr7 = 0xdddd_0400u64;
    let (mut seen, dr6, mut seen7): ([u64; 4], u64, u64);
    // SAFETY: no breakpoint is enabled.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr7, {}", "mov dr6, {}",
             in(reg) dr[0], in(reg) dr[1], in(reg) dr[2], in(reg) dr[3], in(reg) dr7,
             in(reg) 0xffff_0ff5u64, options(nomem, nostack, preserves_flags));
    }
    exits(20);
    super::timers::nap();
    seen = [0; 4];
    // SAFETY: reads.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, dr6", "mov {}, dr7",
             out(reg) seen[0], out(reg) seen[1], out(reg) seen[2], out(reg) seen[3], out(reg) dr6,
             out(reg) seen7, options(nomem, nostack, preserves_flags));
        asm!("mov dr7, {}", in(reg) 0x400u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nomem, nostack, preserves_flags));
    }
    equal!(seen, dr, "DR0 to DR3");
    equal!(dr6, 0xffff_0ff5, "DR6");
    seen7 &= 0xffff_ffff;
    equal!(seen7, dr7, "DR7");
    Ok(())
}
