//! The loader's memory map: what the kernel keeps, and what becomes root's.

use crate::arch::{Cpu, apic, console, entry, paging::Table, protection};
use crate::mem::{self, PAGE};
use crate::object::{Cap, Memory, Object, Pool};
use bootloader_api::BootInfo as Loader;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use ipc_schema::abi::{BootInfo, BootMemory, layout::slot, rights};

/// Kernel memory for root's own objects.
const POOL: u64 = 16 << 20;
/// What lies below belongs to nobody but processors that start (and the real-mode vectors).
const LOW: u64 = 0x1_0000;
/// First slots of root's memory capabilities.
const FIRST: u32 = slot::FIRST_NAMED;
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

/// Leaves the loader's lower half behind, with nothing executable but the kernel's text, the local APIC uncached and the pages below
/// stacks out; ends the boot if anything is still both writable and executable.
pub fn own_page_table(cpu: &Cpu, root: u64) {
    let (old, _) = x86_64::registers::control::Cr3::read_raw();
    // SAFETY: the loader's root page, and a fresh one.
    let (from, to) = unsafe { (mem::page(old.start_address().as_u64()), mem::page(root)) };
    for (i, (f, t)) in from.0.iter().zip(&to.0).enumerate().skip(256) {
        // Only the kernel's image has anything to execute; the loader leaves all that it maps beside it executable.
        let image = i == 511;
        t.set(if image || f.get() == 0 {
            f.get()
        } else {
            f.get() | 1 << 63
        });
    }
    let table = Table { root };
    table.set_uncached(mem::virt(apic::BASE));
    entry::guard_pages().for_each(|p| table.forbid(p));
    let unguarded = entry::guard_pages().find(|&p| table.translate(p).is_some());
    if let (Err(broken), _) | (Ok(()), Some(broken)) = (
        protection::check(root),
        unguarded.map(protection::Broken::Unguarded),
    ) {
        console::fatal(format_args!(
            "the loader left a page of the kernel's as it may not be: {broken:x?}. This is a bug in Vireo; please report it."
        ));
    }
    cpu.root.set(root);
    crate::arch::set_root(root);
    crate::arch::load_root(root);
}

/// Writes the stub page.
pub fn make_stub(phys: u64) {
    let code = entry::stub_code();
    // SAFETY: a fresh page of the kernel's; the code is a few bytes.
    unsafe {
        core::ptr::write_bytes(mem::virt(phys) as *mut u8, 0xcc, PAGE as usize);
        core::ptr::copy_nonoverlapping(code.as_ptr(), mem::virt(phys) as *mut u8, code.len());
    }
    crate::arch::set_stub(phys);
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
    let mut add = |phys: u64, len: u64, kind: u32| {
        let (start, end) = (phys.next_multiple_of(PAGE), (phys + len) & !(PAGE - 1));
        let n = info.memory_count as usize;
        if end <= start || n >= BootInfo::MAX_MEMORY {
            return;
        }
        let limit = if kind == 2 || kind == 3 {
            rights::READ
        } else {
            rights::READ | rights::WRITE | rights::EXEC
        };
        let device = kind == 1 || kind == 4;
        let Ok(m) = Memory::create(pool, start, end - start, device, limit as u16) else {
            return;
        };
        put(next, Cap::new(m.get().header()));
        info.memory[n] = BootMemory {
            phys: start,
            len: end - start,
            slot: next,
            kind,
        };
        info.memory_count += 1;
        next += 1;
    };
    // The archive first: there may be more ranges than root can be told of.
    archive(loader, &mut add);
    // Neighbours of one kind become one range: UEFI firmware tells of hundreds.
    let mut last = (0, 0, 0);
    let mut join = |phys: u64, len: u64, kind: u32| {
        if kind == last.2 && phys == last.0 + last.1 {
            last.1 += len;
        } else {
            add(last.0, last.1, last.2);
            last = (phys, len, kind);
        }
    };
    let regions = &loader.memory_regions;
    for r in regions.iter() {
        match r.kind {
            MemoryRegionKind::Usable => {
                // The kernel's Pool lies at the end of one of them. The first 64 KiB (real-mode vectors) stay unused.
                let end = if kept.0 >= r.start && kept.0 < r.end {
                    kept.0
                } else {
                    r.end
                };
                let start = r.start.max(LOW);
                join(start, end.saturating_sub(start), 0);
            }
            MemoryRegionKind::UnknownUefi(_) | MemoryRegionKind::UnknownBios(_) => {
                join(r.start, r.end - r.start, 3);
            }
            _ => {}
        }
    }
    join(0, 0, u32::MAX);
    // What no region claims below 4 GiB is devices, but for the local APIC, which nobody gets. Below 1 MiB there is firmware.
    let mut at = 0xa_0000;
    while at < DEVICES_END {
        if let Some(r) = regions.iter().find(|r| r.start <= at && at < r.end) {
            at = r.end.next_multiple_of(PAGE);
            continue;
        }
        let mut end = regions
            .iter()
            .map(|r| r.start)
            .filter(|&s| s > at)
            .min()
            .unwrap_or(DEVICES_END)
            .min(DEVICES_END);
        if at < 0x10_0000 {
            end = end.min(0x10_0000);
        } else if at <= apic::BASE {
            end = end.min(apic::BASE);
        }
        add(
            at,
            end.saturating_sub(at),
            if at < 0x10_0000 { 3 } else { 1 },
        );
        at = if end == apic::BASE {
            apic::BASE + PAGE
        } else {
            end.max(at + PAGE)
        };
    }
    // The framebuffer lies in a device range, which has been given.
    info.framebuffer = info_framebuffer(loader);
    next
}

/// The boot archive, which the loader mapped somewhere.
fn archive(loader: &Loader, add: &mut dyn FnMut(u64, u64, u32)) {
    let Some(at) = loader.ramdisk_addr.into_option() else {
        console::fatal(format_args!(
            "the loader brought no boot archive: build the image with `cargo xtask image`."
        ));
    };
    let table = Table {
        root: Cpu::current().root.get(),
    };
    let pages = loader.ramdisk_len.div_ceil(PAGE);
    let phys = |i: u64| table.translate(at + i * PAGE).map(|(p, _)| p);
    let Some(first) = phys(0) else {
        console::fatal(format_args!(
            "the boot archive is not where the loader says."
        ))
    };
    if first % PAGE != 0 || (0..pages).any(|i| phys(i) != Some(first + i * PAGE)) {
        console::fatal(format_args!(
            "the boot archive is not in one piece of memory: use a smaller one."
        ));
    }
    add(first, pages * PAGE, 2);
}

/// Address, width, height, stride and bytes a pixel.
fn info_framebuffer(loader: &Loader) -> [u64; 5] {
    let Some(f) = loader.framebuffer.as_ref() else {
        return [0; 5];
    };
    let i = f.info();
    let table = Table {
        root: Cpu::current().root.get(),
    };
    let phys = table
        .translate(f.buffer().as_ptr() as u64)
        .map_or(0, |(p, _)| p);
    [
        phys,
        i.width as u64,
        i.height as u64,
        i.stride as u64,
        i.bytes_per_pixel as u64,
    ]
}
