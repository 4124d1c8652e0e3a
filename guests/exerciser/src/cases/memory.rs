//! Guest memory: all of it is there and is RAM; what is outside is not.

use core::cell::UnsafeCell;

use exerciser::boot::{BootInfo, Region};
use exerciser::cpu;
use exerciser::exec::Registers;
use exerciser::paging::{self, PAGE};

use crate::check::{Case, Check, ensure, equal, pattern, probe};

pub const CASES: &[Case] = &[
    Case::new("memory-touch", touch),
    Case::vireo("memory-outside", outside),
    Case::vireo("memory-far-outside", far_outside),
];

/// Pages whose old content there is room to keep.
const MOST: usize = 32768;
struct Kept(UnsafeCell<[(u64, u64); MOST]>);
// SAFETY: touched by the main flow only.
unsafe impl Sync for Kept {}
static KEPT: Kept = Kept(UnsafeCell::new([(0, 0); MOST]));

unsafe extern "C" {
    static __image_start: u8;
    static __bss_end: u8;
}

/// The word of a page that the test writes.
fn word(page: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut((page + 0x7f8) as usize)
}

/// Pages of a region to touch: all of its last 8 MiB, and with what stride before that.
fn pages(region: &Region, stride: u64) -> impl Iterator<Item = u64> {
    let first = region.start.next_multiple_of(PAGE).max(PAGE);
    let end = (region.start + region.length) & !(PAGE - 1);
    let top = end.saturating_sub(8 << 20).max(first);
    let image = (&raw const __image_start as u64)..(&raw const __bss_end as u64);
    (first..top)
        .step_by((PAGE * stride) as usize)
        .chain((top..end).step_by(PAGE as usize))
        .filter(move |page| !image.contains(page))
}

/// Writes a value of its own to a word of each page, then finds each there: no page is missing
/// and no two are the same. What was there comes back afterwards.
fn touch(info: &BootInfo) -> Check {
    let total: u64 = info.ram.iter().map(|region| region.length / PAGE).sum();
    ensure!(total >= 256, "the memory map has only {total} pages of RAM");
    let stride = total / (MOST as u64 / 2) + 1;
    // SAFETY: the main flow alone uses it.
    let kept = unsafe { &mut *KEPT.0.get() };
    let mut used = 0;
    for region in info.ram.iter().filter(|region| region.length > 0) {
        let end = region.start + region.length;
        for large in (region.start.max(1 << 32) & !0x1f_ffff..end).step_by(2 << 20) {
            ensure!(
                paging::map(large, Some(large), true),
                "no page tables left for {large:#x}"
            );
        }
        for page in pages(region, stride) {
            let Some(slot) = kept.get_mut(used) else {
                break;
            };
            // SAFETY: RAM by the memory map, mapped to itself, outside this program; the old
            // content comes back below, before anything else runs.
            unsafe {
                *slot = (page, word(page).read_volatile());
                word(page).write_volatile(page.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
            used += 1;
        }
    }
    let mut wrong = None;
    for (page, old) in kept.iter().take(used) {
        // SAFETY: as above.
        unsafe {
            let seen = word(*page).read_volatile();
            if seen != page.wrapping_mul(0x9e37_79b9_7f4a_7c15) && wrong.is_none() {
                wrong = Some((*page, seen));
            }
            word(*page).write_volatile(*old);
        }
    }
    ensure!(wrong.is_none(), "page and what was read there: {wrong:x?}");
    ensure!(used >= 200, "only {used} pages touched");
    Ok(())
}

/// An address in the hole below the IOAPIC, where nothing is.
const HOLE: u64 = 0xfeb0_0000;

/// Loads of all widths read ones, stores vanish.
fn absent(address: u64) -> Check {
    let before = Registers {
        rdi: address,
        rcx: 0x55,
        ..pattern()
    };
    let ones = u64::MAX;
    let bits = |mask: u64| Registers {
        rax: before.rax & !mask | mask,
        ..before
    };
    let all = |rax| Registers { rax, ..before };
    for (load, after) in [
        (&[0x8a, 0x07][..], bits(0xff)),        // MOV AL, [RDI]
        (&[0x66, 0x8b, 0x07], bits(0xffff)),    // MOV AX
        (&[0x8b, 0x07], all(0xffff_ffff)),      // MOV EAX
        (&[0x48, 0x8b, 0x07], all(ones)),       // MOV RAX
        (&[0x0f, 0xb6, 0x07], all(0xff)),       // MOVZX EAX, BYTE
        (&[0x0f, 0xb7, 0x07], all(0xffff)),     // MOVZX EAX, WORD
        (&[0x48, 0x0f, 0xbe, 0x07], all(ones)), // MOVSX RAX, BYTE
        (&[0x48, 0x63, 0x07], all(ones)),       // MOVSXD RAX, DWORD
    ] {
        for store in [
            &[0x88, 0x0f][..], // MOV [RDI], CL
            &[0x66, 0x89, 0x0f],
            &[0x89, 0x0f],
            &[0x48, 0x89, 0x0f],
            &[0xc6, 0x07, 0x00],             // MOV BYTE [RDI], 0
            &[0x48, 0xc7, 0x07, 0, 0, 0, 0], // MOV QWORD [RDI], 0
        ] {
            probe(store, before, before)?;
        }
        probe(load, before, after)?;
    }
    Ok(())
}

fn outside(_: &BootInfo) -> Check {
    absent(HOLE)?;
    absent(HOLE + 0xff8)?;
    // Misaligned, and across two absent pages.
    absent(HOLE + 0x1ffd)
}

/// Above all RAM, where the processor still has address bits.
fn far_outside(info: &BootInfo) -> Check {
    let bits = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    let far = 1u64 << (bits - 1);
    let top = info
        .ram
        .iter()
        .map(|region| region.start + region.length)
        .max()
        .unwrap_or(0);
    for physical in [far, top.next_multiple_of(2 << 20).max(1 << 32)] {
        let here = paging::WINDOW + (1 << 30);
        ensure!(
            paging::map(here, Some(physical), true),
            "no page tables left"
        );
        paging::reload();
        absent(here + 0x1230)?;
        // SAFETY: mapped just now.
        let seen =
            unsafe { core::ptr::with_exposed_provenance::<u32>(here as usize).read_volatile() };
        equal!(seen, u32::MAX, "at {physical:#x}");
    }
    Ok(())
}
