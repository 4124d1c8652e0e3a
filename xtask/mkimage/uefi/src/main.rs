//! The UEFI stage of the boot loader: `efi/boot/bootx64.efi` of the UEFI image.
//!
//! Job: read `kernel-x86_64` and `ramdisk` from the volume it was started from, collect what the
//! kernel wants to know (memory map, framebuffer, RSDP), leave boot services and hand over to the
//! part that the BIOS stages share (`bootloader-x86_64-common`).
//! Place: between firmware and kernel. Trust: it believes the firmware; it has no other input.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

mod firmware;
mod memory;

use bootloader_boot_config::{BootConfig, LevelFilter};
use bootloader_x86_64_common::{
    Kernel, PageTables, RawFrameBufferInfo, SystemInfo, legacy_memory_region::LegacyFrameAllocator,
    load_and_switch_to_kernel,
};
use firmware::Firmware;
use uefi_raw::{Handle, Status, table::system::SystemTable};
use x86_64::{
    PhysAddr, VirtAddr,
    registers::control::{Cr3, Cr3Flags},
    structures::paging::{FrameAllocator, OffsetPageTable, PageTable, Size4KiB},
};

/// Entry point that the firmware calls.
#[unsafe(export_name = "efi_main")]
extern "efiapi" fn efi_main(image: Handle, table: *mut SystemTable) -> Status {
    // SAFETY: the firmware calls this once, with its own image handle and table (UEFI 2.10, 4.1),
    // and boot services are active.
    let firmware = unsafe { Firmware::new(image, table) };
    match boot(firmware) {
        Ok(never) => match never {},
        Err((firmware, what, status)) => {
            firmware.print("Vireo's UEFI loader: ");
            firmware.print(what);
            firmware.print("\r\n");
            status
        }
    }
}

enum Never {}

type Failure = (Firmware, &'static str, Status);

fn boot(firmware: Firmware) -> Result<Never, Failure> {
    let mut config = BootConfig::default();
    config.log_level = LevelFilter::Warn;
    let kernel = match firmware.read_file("kernel-x86_64") {
        Ok(bytes) => bytes,
        Err(status) => return Err((firmware, "cannot read kernel-x86_64", status)),
    };
    let ramdisk = match firmware.read_file("ramdisk") {
        Ok(bytes) => bytes,
        Err(status) => return Err((firmware, "cannot read ramdisk", status)),
    };
    let framebuffer = firmware.framebuffer();
    if let Some(fb) = framebuffer {
        // SAFETY: the firmware keeps the framebuffer identity-mapped, and nothing else writes to
        // it from here on.
        let pixels = unsafe {
            core::slice::from_raw_parts_mut(fb.addr.as_u64() as *mut u8, fb.info.byte_len)
        };
        bootloader_x86_64_common::init_logger(
            pixels,
            fb.info,
            config.log_level,
            config.frame_buffer_logging,
            config.serial_logging,
        );
    }
    let rsdp_addr = firmware.rsdp();
    let kernel = Kernel::parse(kernel);
    let map = firmware.exit_boot_services()?;
    let mut frames = LegacyFrameAllocator::new(map.iter().copied());
    let page_tables = page_tables(&mut frames, framebuffer.as_ref(), map);
    let info = SystemInfo {
        framebuffer,
        rsdp_addr,
        ramdisk_addr: Some(ramdisk.as_ptr() as u64),
        ramdisk_len: ramdisk.len() as u64,
    };
    load_and_switch_to_kernel(kernel, config, frames, page_tables, info)
}

/// Our own copy of the firmware's top-level table (which may be read-only), and an empty one for
/// the kernel. UEFI maps all memory one to one (UEFI 2.10, 2.3.4).
fn page_tables(
    frames: &mut impl FrameAllocator<Size4KiB>,
    framebuffer: Option<&RawFrameBufferInfo>,
    map: &[memory::Region],
) -> PageTables {
    let (old, _) = Cr3::read();
    // SAFETY: CR3 holds the table in use, which is mapped one to one.
    let old = unsafe { &*(old.start_address().as_u64() as *const PageTable) };
    let (copy_frame, copy) = new_table(frames);
    let four_gib = 1 << 32;
    let end = map.iter().map(|r| r.end()).max().unwrap_or(0).max(four_gib);
    let mut keep = |from: u64, to: u64| {
        let (first, last) = (VirtAddr::new(from), VirtAddr::new(to.saturating_sub(1)));
        for i in usize::from(first.p4_index())..=usize::from(last.p4_index()) {
            copy[i] = old[i].clone();
        }
    };
    keep(0, end);
    if let Some(fb) = framebuffer {
        let start = fb.addr.as_u64();
        keep(start, start.saturating_add(fb.info.byte_len as u64));
    }
    // SAFETY: the copy maps everything that the old table mapped of memory and framebuffer.
    unsafe { Cr3::write(copy_frame, Cr3Flags::empty()) };
    let (kernel_level_4_frame, kernel) = new_table(frames);
    let offset = VirtAddr::new(0);
    PageTables {
        // SAFETY: the table is the active one, and all memory is mapped at offset 0.
        bootloader: unsafe { OffsetPageTable::new(copy, offset) },
        // SAFETY: a new table of ours; memory is reached at offset 0 while it is filled.
        kernel: unsafe { OffsetPageTable::new(kernel, offset) },
        kernel_level_4_frame,
    }
}

fn new_table(
    frames: &mut impl FrameAllocator<Size4KiB>,
) -> (
    x86_64::structures::paging::PhysFrame,
    &'static mut PageTable,
) {
    let Some(frame) = frames.allocate_frame() else {
        panic!("no memory for a page table");
    };
    let table = frame.start_address().as_u64() as *mut PageTable;
    // SAFETY: a frame of usable memory that nobody else has, mapped one to one, page-aligned.
    unsafe {
        table.write(PageTable::new());
        (frame, &mut *table)
    }
}

/// Where a physical address is known only as a number.
fn phys(address: u64) -> PhysAddr {
    PhysAddr::new_truncate(address)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if let Some(logger) = bootloader_x86_64_common::logger::LOGGER.get() {
        // SAFETY: this processor alone runs, and it never goes back to whoever held the lock.
        unsafe { logger.force_unlock() };
    }
    log::error!("{info}");
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
