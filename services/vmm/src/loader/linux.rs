//! Linux bzImage by the 64-bit boot protocol (the kernel's documentation, "The Linux/x86 Boot Protocol").

use super::place::{self, FOUR_GIB, Placement, align_up};
use super::state::{EntryState, LONG_MODE_TABLES_SIZE, long_mode_tables};
use super::{Format, LoadError, Request, file};
use crate::memory::GuestMemory;

/// Offsets in the file and, from `SETUP_SECTS` on, in the boot parameters ("zero page") too.
mod at {
    pub const SETUP_SECTS: usize = 0x1F1;
    pub const SYSSIZE: usize = 0x1F4;
    pub const BOOT_FLAG: usize = 0x1FE;
    pub const JUMP_LENGTH: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADER_TYPE: u64 = 0x210;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21C;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22C;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// End of the room for the header in the boot parameters (the EDD buffer follows).
    pub const HEADER_END: usize = 0x290;
    /// Boot parameters only.
    pub const ACPI_RSDP: u64 = 0x070;
    pub const E820_ENTRIES: u64 = 0x1E8;
    pub const E820_TABLE: u64 = 0x2D0;
}

const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG: u16 = 0xAA55;
/// The first version with XLF_KERNEL_64.
const MIN_VERSION: u16 = 0x020C;
/// From here on `acpi_rsdp_addr` is read.
const RSDP_VERSION: u16 = 0x020E;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry is here behind the load address.
const ENTRY_64: u64 = 0x200;
/// Loader type: none of the registered ones.
const UNREGISTERED_LOADER: u8 = 0xFF;
/// Entries that the table in the boot parameters holds.
const E820_MAX: usize = 128;
/// Nothing of the kernel is put below 1 MiB.
const LOWEST_LOAD: u64 = 0x10_0000;

/// True if the file has a Linux boot sector and header.
pub(super) fn is_linux(kernel: &[u8]) -> bool {
    file::u16(kernel, at::BOOT_FLAG) == Ok(BOOT_FLAG) && file::u32(kernel, at::MAGIC) == Ok(MAGIC)
}

/// What the header says, checked.
struct Header {
    version: u16,
    /// Where in the file the protected-mode kernel begins.
    payload: usize,
    /// Its length in bytes.
    len: usize,
    initrd_max: u64,
    alignment: u64,
    relocatable: bool,
    cmdline_max: u64,
    preferred: u64,
    init_size: u64,
    /// End of the setup header in the file.
    header_end: usize,
}

fn parse(kernel: &[u8]) -> Result<Header, LoadError> {
    let version = file::u16(kernel, at::VERSION)?;
    if version < MIN_VERSION {
        return Err(LoadError::LinuxTooOld { version });
    }
    if file::u16(kernel, at::XLOADFLAGS)? & XLF_KERNEL_64 == 0 {
        return Err(LoadError::LinuxNot64Bit);
    }
    let setup_sects = match file::u8(kernel, at::SETUP_SECTS)? {
        0 => 4,
        n => usize::from(n),
    };
    let payload = (setup_sects + 1) * 512;
    let rest = kernel.len().saturating_sub(payload);
    // In units of 16 bytes, the last of which the file may hold in part. What follows (a signature) is not loaded.
    let wanted = file::u32(kernel, at::SYSSIZE)? as usize * 16;
    if wanted == 0 {
        return Err(LoadError::BadField {
            field: "syssize",
            value: 0,
        });
    }
    if wanted > rest + 15 {
        let end = (payload + wanted) as u64;
        return Err(LoadError::Truncated {
            what: "the protected-mode kernel",
            end,
            have: kernel.len() as u64,
        });
    }
    let alignment = u64::from(file::u32(kernel, at::KERNEL_ALIGNMENT)?);
    if !alignment.is_power_of_two() {
        return Err(LoadError::BadField {
            field: "kernel_alignment",
            value: alignment,
        });
    }
    let init_size = u64::from(file::u32(kernel, at::INIT_SIZE)?);
    let len = wanted.min(rest);
    if init_size < len as u64 {
        return Err(LoadError::BadField {
            field: "init_size",
            value: init_size,
        });
    }
    Ok(Header {
        version,
        payload,
        len,
        initrd_max: u64::from(file::u32(kernel, at::INITRD_ADDR_MAX)?),
        alignment,
        relocatable: file::u8(kernel, at::RELOCATABLE)? != 0,
        cmdline_max: u64::from(file::u32(kernel, at::CMDLINE_SIZE)?),
        preferred: file::u64(kernel, at::PREF_ADDRESS)?,
        init_size,
        header_end: (at::MAGIC + usize::from(file::u8(kernel, at::JUMP_LENGTH)?))
            .min(at::HEADER_END),
    })
}

/// Takes room for the kernel: where it prefers to be, else (if it can be moved) at the lowest aligned place.
fn place_kernel(header: &Header, placement: &mut Placement) -> Result<u64, LoadError> {
    let preferred = if header.relocatable {
        align_up(header.preferred.max(LOWEST_LOAD), header.alignment)
    } else {
        Some(header.preferred)
    };
    if let Some(base) = preferred
        && base
            .checked_add(header.init_size)
            .is_some_and(|end| end <= FOUR_GIB)
        && placement.take_kernel(base, header.init_size).is_ok()
    {
        return Ok(base);
    }
    let no_room = LoadError::NoRoomForKernel {
        address: header.preferred,
        size: header.init_size,
    };
    if !header.relocatable {
        return Err(no_room);
    }
    placement
        .take_low(header.init_size, header.alignment, LOWEST_LOAD, FOUR_GIB)
        .ok_or(no_room)
}

/// Loads a bzImage.
pub(super) fn load(memory: &GuestMemory, request: &Request<'_>) -> Result<EntryState, LoadError> {
    let kernel = request.kernel;
    let header = parse(kernel)?;
    let len = request.cmdline.len() as u64;
    if len > header.cmdline_max {
        return Err(LoadError::CommandLineTooLong {
            len,
            max: header.cmdline_max,
        });
    }
    let map = place::memory_map(memory);
    let mut placement = Placement::new(&map);
    let base = place_kernel(&header, &mut placement)?;
    let params = placement.take_info(0x1000)?;
    let tables = placement.take_info(LONG_MODE_TABLES_SIZE)?;
    let cmdline = placement.cmdline(memory, &request.linux_cmdline(header.cmdline_max))?;

    memory.write(base, file::bytes(kernel, header.payload, header.len)?)?;
    long_mode_tables(memory, tables)?;

    memory.fill(params, 0x1000, 0)?;
    let setup = file::bytes(
        kernel,
        at::SETUP_SECTS,
        header.header_end.saturating_sub(at::SETUP_SECTS),
    )?;
    memory.write(params + at::SETUP_SECTS as u64, setup)?;
    memory.write_u8(params + at::LOADER_TYPE, UNREGISTERED_LOADER)?;
    memory.write_u32(params + at::CMD_LINE_PTR, cmdline as u32)?;
    let (mut image, mut size) = (0, 0);
    if let Some(initrd) = request.initrd.filter(|initrd| !initrd.is_empty()) {
        image = placement.initrd(memory, initrd, header.initrd_max + 1)?;
        size = initrd.len() as u64;
    }
    // Both below 4 GiB, so the upper halves (`ext_*`) stay 0.
    memory.write_u32(params + at::RAMDISK_IMAGE, image as u32)?;
    memory.write_u32(params + at::RAMDISK_SIZE, size as u32)?;
    if header.version >= RSDP_VERSION {
        memory.write_u64(params + at::ACPI_RSDP, request.rsdp)?;
    }
    let mut count = 0u8;
    for (i, entry) in (0u64..).zip(map.iter().take(E820_MAX)) {
        let slot = params + at::E820_TABLE + i * 20;
        memory.write_u64(slot, entry.base)?;
        memory.write_u64(slot + 8, entry.len)?;
        memory.write_u32(slot + 16, entry.kind as u32)?;
        count += 1;
    }
    memory.write_u8(params + at::E820_ENTRIES, count)?;
    Ok(EntryState::long64(
        Format::LinuxBzImage,
        base + ENTRY_64,
        tables,
        params,
    ))
}
