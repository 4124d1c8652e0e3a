//! FPU, SSE and AVX registers keep what was put into them, whatever exits happen.
//!
//! The guest's own code is soft-float, so nothing but the hypervisor could change them.

use core::arch::asm;
use core::cell::UnsafeCell;

use exerciser::boot::BootInfo;
use exerciser::cpu;
use exerciser::exec::{self, Registers};

use super::{exits, timers};
use crate::check::{Case, Check, Stop, ensure};

pub const CASES: &[Case] = &[
    Case::new("fpu-keep", keep),
    Case::new("fpu-nothing-leaks", fresh),
];

/// An XSAVE area (Intel SDM vol. 1, 13.4).
#[repr(C, align(64))]
struct Area(UnsafeCell<[u8; 4096]>);
// SAFETY: touched by the main flow only.
unsafe impl Sync for Area {}
static PLANTED: Area = Area(UnsafeCell::new([0; 4096]));
static SEEN: Area = Area(UnsafeCell::new([0; 4096]));

/// The bytes of an area.
fn bytes(area: &Area) -> &mut [u8; 4096] {
    // SAFETY: the main flow alone uses them, one borrow at a time.
    unsafe { &mut *area.0.get() }
}

/// Switches the FPU and all its state on; the state components that there are.
fn enable() -> Result<u64, Stop> {
    if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        return Err(Stop::Skip("no XSAVE"));
    }
    // SAFETY: CPUID says that OSXSAVE exists; OSFXSR and OSXMMEXCPT always do.
    unsafe { cpu::set_cr4(cpu::cr4() | 1 << 18 | 3 << 9) };
    let components = u64::from(cpu::cpuid(0xd, 0).eax) & 7;
    exec::run(
        &[0x0f, 0x01, 0xd1],
        &mut Registers {
            rax: components,
            ..Registers::default()
        },
    )?;
    Ok(components)
}

/// XRSTOR from the planted area.
fn restore(components: u64) {
    // SAFETY: the area holds what XSAVE wrote, with register contents changed.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) PLANTED.0.get(), in("eax") components as u32, in("edx") 0,
             options(nostack));
    }
}

/// XSAVE to an area.
fn save(area: &Area, components: u64) {
    bytes(area).fill(0);
    // SAFETY: the area is large enough for x87, SSE and AVX (832 bytes).
    unsafe {
        asm!("xsave64 [{}]", in(reg) area.0.get(), in("eax") components as u32, in("edx") 0,
             options(nostack));
    }
}

/// Where the high halves of the YMM registers are, if there are any.
fn avx_offset(components: u64) -> Option<usize> {
    (components & 4 != 0).then(|| cpu::cpuid(0xd, 2).ebx as usize)
}

/// Plants a pattern in all registers.
fn plant(components: u64, seed: u8) {
    // SAFETY: resets the x87 registers, which no Rust code here uses.
    unsafe { asm!("fninit", options(nostack)) };
    save(&PLANTED, components);
    let area = bytes(&PLANTED);
    let value = |index: usize| (index as u8).wrapping_mul(29).wrapping_add(seed);
    // Control word: other rounding; MXCSR: flush to zero, all masked; tags: all in use.
    area[..2].copy_from_slice(&0x0f7fu16.to_le_bytes());
    area[4] = 0xff;
    area[24..28].copy_from_slice(&0x9f80u32.to_le_bytes());
    for register in 0..8 {
        for index in 0..10 {
            area[32 + register * 16 + index] = value(register * 16 + index);
        }
    }
    for index in 160..416 {
        area[index] = value(index);
    }
    if let Some(start) = avx_offset(components) {
        for index in start..start + 256 {
            area[index] = value(index);
        }
    }
    area[512] = components as u8;
    restore(components);
}

/// Compares all registers with what was planted.
fn compare(components: u64, when: &str) -> Check {
    save(&SEEN, components);
    let (planted, seen) = (bytes(&PLANTED), bytes(&SEEN));
    // Control, status, tag; MXCSR; x87 registers; XMM; YMM. Not the last instruction's
    // address, which processors differ on.
    let ranges = [0..5, 24..28, 32..160, 160..416];
    let high = avx_offset(components).map(|start| start..start + 256);
    for range in ranges.into_iter().chain(high) {
        for index in range {
            ensure!(
                planted[index] == seen[index],
                "byte {index} of the state is {:#x}, was {:#x}, after {when}",
                seen[index],
                planted[index]
            );
        }
    }
    Ok(())
}

fn keep(_: &BootInfo) -> Check {
    let components = enable()?;
    for round in 0..5 {
        plant(components, 17 + round);
        compare(components, "nothing")?;
        exits(10);
        compare(components, "exits")?;
        timers::nap();
        compare(components, "a HLT")?;
        exec::run(&[0x0f, 0x09], &mut Registers::default())?;
        exits(1);
        compare(components, "WBINVD")?;
    }
    // XCR0 changed while values are held: they come back with the bits.
    if components & 4 != 0 {
        exec::run(
            &[0x0f, 0x01, 0xd1],
            &mut Registers {
                rax: 3,
                ..Registers::default()
            },
        )?;
        exits(3);
        exec::run(
            &[0x0f, 0x01, 0xd1],
            &mut Registers {
                rax: components,
                ..Registers::default()
            },
        )?;
        compare(components, "a smaller XCR0")?;
    }
    // SAFETY: resets registers that no Rust code here uses.
    unsafe { asm!("fninit", options(nostack)) };
    Ok(())
}

/// After the initial state is loaded nothing else shows, exits or not.
fn fresh(_: &BootInfo) -> Check {
    let components = enable()?;
    plant(components, 0x77);
    exits(2);
    bytes(&PLANTED).fill(0);
    bytes(&PLANTED)[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    // XSTATE_BV 0: every component gets its initial state.
    restore(components);
    exits(5);
    save(&SEEN, components);
    let high = avx_offset(components).map(|start| start..start + 256);
    for range in [32..416].into_iter().chain(high) {
        for index in range {
            ensure!(
                bytes(&SEEN)[index] == 0,
                "byte {index} of the state is not zero"
            );
        }
    }
    Ok(())
}
