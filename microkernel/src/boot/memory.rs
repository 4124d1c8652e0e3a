//! The loader's memory map: what the kernel keeps, and what becomes root's.

use crate::arch::paging::{Entry, Table};
use crate::arch::{self, BOOT, Cpu, apic, console, descriptors, protection};
use crate::mem::{self, PAGE};
use crate::object::{Cap, Memory, Pool};
use bootloader_api::BootInfo as Loader;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use ipc_schema::abi::{BootInfo, BootMemory, layout::slot, rights};

/// Kernel memory for root's own objects.
const POOL: u64 = 16 << 20;
/// Below, what no region claims is firmware; from there on, devices.
const FIRMWARE_END: u64 = 1 << 20;
/// What lies below belongs to nobody but processors that start (and the real-mode vectors).
const LOW: u64 = 0x1_0000;
/// First slots of root's memory capabilities.
const FIRST: u32 = slot::FIRST_NAMED;
/// Kinds of memory ([`BootMemory::kind`]).
const RAM: u32 = 0;
const DEVICE: u32 = 1;
const ARCHIVE: u32 = 2;
const FIRMWARE: u32 = 3;
/// End of the range that devices are placed in below 4 GiB.
const DEVICES_END: u64 = 1 << 32;

/// A place for the kernel's own Pool, at the end of the largest piece of memory below 4 GiB.
pub fn kernel_pool(regions: &[MemoryRegion]) -> Option<(u64, u64)> {
    regions
        .iter()
        .filter(|r| r.kind == MemoryRegionKind::Usable && r.end <= DEVICES_END)
        .max_by_key(|r| r.end - r.start)
        .filter(|r| r.end - r.start >= 4 * POOL)
        .map(|r| ((r.end - POOL) & !(PAGE - 1), POOL))
}

/// A page below 64 KiB where other processors can begin; root is given nothing there.
pub fn start_page(regions: &[MemoryRegion]) -> Option<u64> {
    regions
        .iter()
        .filter(|r| r.kind == MemoryRegionKind::Usable)
        .map(|r| (r.start.max(PAGE).next_multiple_of(PAGE), r.end.min(LOW)))
        .find(|(start, end)| start + PAGE <= *end)
        .map(|(start, _)| start)
}

/// The physical address of something of the kernel's, or that the loader mapped.
#[inline(never)]
pub fn phys(va: u64) -> Option<u64> {
    let table = Table {
        root: arch::kernel_root(),
    };
    table.translate(va).map(|(phys, _)| phys)
}

/// Leaves the loader's lower half behind, with nothing executable but the kernel's text, the local APIC uncached and the pages below
/// stacks out; ends the boot if anything is still both writable and executable.
pub fn own_page_table(cpu: &Cpu, root: u64) {
    let (old, _) = x86_64::registers::control::Cr3::read_raw();
    BOOT.root.set(old.start_address().as_u64());
    arch::share_kernel_half(root);
    // SAFETY: a page of the kernel's.
    let entries = unsafe { mem::page(root) }.0[256..511].iter();
    // Only the kernel's image (the last) has anything to execute; the loader leaves all that it maps beside it executable.
    for e in entries.filter(|e| e.get() != 0) {
        e.set(e.get() | Entry::NO_EXECUTE.bits());
    }
    let table = Table { root };
    if let Some((apic, _)) = table.leaf(mem::virt(apic::BASE)) {
        apic.set(apic.get() | Entry::UNCACHED.bits());
    }
    let mut broken = protection::check(root).err();
    for at in descriptors::guard_pages() {
        match table.leaf(at) {
            Some((guard, PAGE)) => guard.set(0),
            _ => broken = Some(("mapped below a stack", at)),
        }
    }
    if let Some((how, at)) = broken {
        console::stop(
            &[
                "the loader left a page of the kernel's as it may not be: ",
                how,
                ", at #. This is a bug in Vireo; please report it.",
            ],
            &[at],
        );
    }
    cpu.root.set(root);
    BOOT.root.set(root);
    arch::load_root(root);
}

/// Gives root a Memory for every range that the kernel does not keep; answers the first slot left.
pub fn give(
    pool: &Pool,
    loader: &Loader,
    kept: (u64, u64),
    info: &mut BootInfo,
    put: &dyn Fn(u32, Cap),
) -> u32 {
    let mut next = FIRST;
    let add: &mut dyn FnMut(u64, u64, u32) = &mut |from, to, kind| {
        let (phys, end) = (from.next_multiple_of(PAGE), to & !(PAGE - 1));
        let Some(told) = info.memory.get_mut(info.memory_count as usize) else {
            return;
        };
        if end <= phys {
            return;
        }
        let len = end - phys;
        let limit = if kind == ARCHIVE || kind == FIRMWARE {
            rights::READ
        } else {
            rights::READ | rights::WRITE | rights::EXEC
        };
        let Ok(m) = Memory::create(pool, (phys, len), kind == DEVICE, limit as u16, 0) else {
            return;
        };
        let slot = next;
        put(slot, Cap::of(m));
        *told = BootMemory {
            phys,
            len,
            slot,
            kind,
        };
        info.memory_count += 1;
        next += 1;
    };
    // The archive first: there may be more ranges than root can be told of.
    let (start, end) = archive(loader);
    add(start, end, ARCHIVE);
    // Neighbours of one kind become one range: UEFI firmware tells of hundreds.
    let mut last = (0, 0, 0);
    let mut join = |start: u64, end: u64, kind: u32| {
        if kind == last.2 && start == last.1 {
            last.1 = end;
        } else {
            add(last.0, last.1, last.2);
            last = (start, end, kind);
        }
    };
    let regions = &loader.memory_regions;
    for r in regions.iter() {
        match r.kind {
            // The kernel's Pool lies at the end of one of them. The first 64 KiB (real-mode vectors) stay unused.
            MemoryRegionKind::Usable if (r.start..r.end).contains(&kept.0) => {
                join(r.start.max(LOW), kept.0, RAM);
            }
            MemoryRegionKind::Usable => join(r.start.max(LOW), r.end, RAM),
            MemoryRegionKind::UnknownUefi(_) | MemoryRegionKind::UnknownBios(_) => {
                join(r.start, r.end, FIRMWARE);
            }
            _ => {}
        }
    }
    join(0, 0, u32::MAX);
    // What no region claims below 4 GiB is devices, but for the local APIC, which nobody gets.
    let apic = (apic::BASE, apic::BASE + PAGE);
    let taken = || regions.iter().map(|r| (r.start, r.end)).chain([apic]);
    let mut at = 0xa_0000;
    while at < DEVICES_END {
        if let Some((_, end)) = taken().find(|&(start, end)| start <= at && at < end) {
            at = end.next_multiple_of(PAGE);
            continue;
        }
        let (kind, limit) = if at < FIRMWARE_END {
            (FIRMWARE, FIRMWARE_END)
        } else {
            (DEVICE, DEVICES_END)
        };
        let starts = taken().map(|(start, _)| start).filter(|&s| s > at);
        let end = starts.fold(limit, u64::min);
        add(at, end, kind);
        at = end;
    }
    next
}

/// The boot archive, which the loader mapped somewhere.
fn archive(loader: &Loader) -> (u64, u64) {
    let Some(at) = loader.ramdisk_addr.into_option() else {
        console::fatal(
            "the loader brought no boot archive: build the image with `cargo xtask image`.",
            &[],
        );
    };
    let pages = 0..loader.ramdisk_len.div_ceil(PAGE);
    let Some(first) = phys(at) else {
        console::fatal("the boot archive is not where the loader says.", &[]);
    };
    let end = first + pages.end * PAGE;
    if first % PAGE != 0
        || !pages
            .map(|i| i * PAGE)
            .all(|i| phys(at + i) == Some(first + i))
    {
        console::fatal(
            "the boot archive is not in one piece of memory: use a smaller one.",
            &[],
        );
    }
    (first, end)
}
