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

/// An XSAVE area (Intel SDM vol. 1, 13.4): x87, SSE and AVX end at byte 832.
#[repr(C, align(64))]
struct Area(UnsafeCell<[u8; 1024]>);
// SAFETY: touched by the main flow only.
unsafe impl Sync for Area {}
static PLANTED: Area = Area(UnsafeCell::new([0; 1024]));
static SEEN: Area = Area(UnsafeCell::new([0; 1024]));

impl Area {
    /// A copy of its bytes.
    fn get(&self) -> [u8; 1024] {
        // SAFETY: the main flow alone uses it.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces its bytes.
    fn set(&self, bytes: [u8; 1024]) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(bytes) };
    }
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
    area.set([0; 1024]);
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
    let mut area = PLANTED.get();
    let value = |index: usize| (index as u8).wrapping_mul(29).wrapping_add(seed);
    let high = avx_offset(components).unwrap_or(416);
    for (index, byte) in area.iter_mut().enumerate() {
        let x87 = (32..160).contains(&index) && index % 16 < 10;
        if x87 || (160..416).contains(&index) || high > 416 && (high..high + 256).contains(&index) {
            *byte = value(index);
        }
    }
    // Control word: other rounding; tags: all in use; MXCSR: flush to zero, all masked; or nothing masked, which is 0.
    area[..2].copy_from_slice(&0x0f7fu16.to_le_bytes());
    area[4] = 0xff;
    let mxcsr = if seed.is_multiple_of(2) { 0 } else { 0x9f80u32 };
    area[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    area[512] = components as u8;
    PLANTED.set(area);
    restore(components);
}

/// Compares all registers with what was planted.
fn compare(components: u64, when: &str) -> Check {
    save(&SEEN, components);
    let (planted, seen) = (PLANTED.get(), SEEN.get());
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
        if cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0 {
            // TSC_AUX comes to the processor with all the rest.
            exec::run(
                &[0x0f, 0x30],
                &mut Registers {
                    rcx: 0xc000_0103,
                    rax: u64::from(round),
                    ..Registers::default()
                },
            )?;
            compare(components, "another TSC_AUX")?;
        }
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
    let mut empty = [0; 1024];
    empty[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    PLANTED.set(empty);
    // XSTATE_BV 0: every component gets its initial state.
    restore(components);
    exits(5);
    save(&SEEN, components);
    let (seen, high) = (SEEN.get(), avx_offset(components).unwrap_or(416));
    let looked_at = seen[32..416]
        .iter()
        .chain(&seen[high..if high > 416 { high + 256 } else { 416 }]);
    let dirty = looked_at.filter(|byte| **byte != 0).count();
    ensure!(
        dirty == 0,
        "{dirty} bytes of the initial state are not zero"
    );
    Ok(())
}
