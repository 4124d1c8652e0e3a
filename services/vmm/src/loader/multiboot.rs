//! Multiboot 1 kernels (Multiboot Specification, version 0.6.96).

use super::elf_image::{self, Image};
use super::place::{self, Entry, FOUR_GIB, Kind, Placement};
use super::state::EntryState;
use super::{Format, LoadError, Request, file};
use crate::memory::GuestMemory;

const HEADER_MAGIC: u32 = 0x1BAD_B002;
/// In EAX at the entry.
const BOOT_MAGIC: u32 = 0x2BAD_B002;
/// The header lies wholly within this much of the file, on a 4-byte boundary (3.1).
const SEARCH: usize = 8192;
/// Header flags that demand something which we do: page-aligned modules, memory information. The video mode (bit 2) is
/// taken for the wish that it is in practice: the information structure says that there is none.
const FLAGS_UNDERSTOOD: u32 = 0x7;
/// Flags in this half must be understood.
const FLAGS_REQUIRED: u32 = 0xFFFF;
/// The header's address fields are valid.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Information flags: mem_*, cmdline, mods_*, mmap_*, boot_loader_name (3.3).
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 6 | 1 << 9;
const INFO_MODULES: u32 = 1 << 3;
const INFO_SIZE: u64 = 120;
const MODULE_SIZE: u64 = 16;
const MAP_ENTRY_SIZE: u64 = 24;
const NAME: &[u8; 6] = b"Vireo\0";
const NAME_ROOM: u64 = 8;

/// The header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where in the file it is.
    at: usize,
    flags: u32,
}

/// Finds the header: magic, flags and checksum.
pub(super) fn find(kernel: &[u8]) -> Option<Header> {
    (0..SEARCH.min(kernel.len()).saturating_sub(11))
        .step_by(4)
        .find_map(|at| {
            if file::u32(kernel, at) != Ok(HEADER_MAGIC) {
                return None;
            }
            let flags = file::u32(kernel, at + 4).ok()?;
            let checksum = file::u32(kernel, at + 8).ok()?;
            (HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0)
                .then_some(Header { at, flags })
        })
}

/// Loads by the header's address fields (3.1.3); gives the entry point.
fn load_flat(
    memory: &GuestMemory,
    kernel: &[u8],
    header: Header,
    placement: &mut Placement,
) -> Result<u64, LoadError> {
    let field = |i: usize| file::u32(kernel, header.at + 12 + 4 * i).map(u64::from);
    let (header_addr, load_addr, load_end, bss_end, entry) =
        (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    // The byte of the file that goes to `load_addr`.
    let start = header_addr
        .checked_sub(load_addr)
        .and_then(|before| (header.at as u64).checked_sub(before))
        .ok_or(LoadError::BadField {
            field: "load_addr",
            value: load_addr,
        })?;
    let have = kernel.len() as u64;
    let size = if load_end == 0 {
        have.saturating_sub(start)
    } else {
        load_end.checked_sub(load_addr).ok_or(LoadError::BadField {
            field: "load_end_addr",
            value: load_end,
        })?
    };
    let whole = if bss_end == 0 {
        size
    } else {
        let whole = bss_end
            .checked_sub(load_addr)
            .filter(|&whole| whole >= size);
        whole.ok_or(LoadError::BadField {
            field: "bss_end_addr",
            value: bss_end,
        })?
    };
    if entry.wrapping_sub(load_addr) >= whole {
        return Err(LoadError::BadEntry { address: entry });
    }
    let image = file::bytes(kernel, start as usize, size as usize)?;
    placement.take_kernel(load_addr, whole)?;
    memory.write(load_addr, image)?;
    memory.fill(load_addr + size, whole - size, 0)?;
    Ok(entry)
}

/// KiB of memory below and above 1 MiB, up to the first hole.
fn mem_fields(map: &[Entry]) -> (u32, u32) {
    let ram = |base: u64| {
        map.iter()
            .find(|e| e.kind == Kind::Ram && e.base == base)
            .map_or(0, |e| e.len / 1024)
    };
    (
        ram(0) as u32,
        ram(0x10_0000).min(u64::from(u32::MAX)) as u32,
    )
}

/// Loads a Multiboot kernel.
pub(super) fn load(
    memory: &GuestMemory,
    request: &Request<'_>,
    header: Header,
) -> Result<EntryState, LoadError> {
    let unknown = header.flags & FLAGS_REQUIRED & !FLAGS_UNDERSTOOD;
    if unknown != 0 {
        return Err(LoadError::MultibootFeature { flags: unknown });
    }
    let map = place::memory_map(memory);
    let mut placement = Placement::new(&map);
    let entry = if header.flags & FLAG_ADDRESSES != 0 {
        load_flat(memory, request.kernel, header, &mut placement)?
    } else if elf_image::is_elf(request.kernel) {
        let image = Image::parse(request.kernel)?;
        image.load(memory, &mut placement)?;
        image.physical_entry()?
    } else {
        return Err(LoadError::BadField {
            field: "Multiboot flags (no ELF and no address fields)",
            value: header.flags.into(),
        });
    };
    let entry = u32::try_from(entry).map_err(|_| LoadError::BadEntry { address: entry })?;

    let entries = map.len() as u64;
    let info =
        placement.take_info(INFO_SIZE + MODULE_SIZE + NAME_ROOM + entries * MAP_ENTRY_SIZE)?;
    let module = info + INFO_SIZE;
    let name = module + MODULE_SIZE;
    let mmap = name + NAME_ROOM;
    let cmdline = placement.cmdline(memory, request.cmdline)?;
    memory.fill(info, INFO_SIZE + MODULE_SIZE + NAME_ROOM, 0)?;
    let (lower, upper) = mem_fields(&map);
    memory.write_u32(info + 4, lower)?;
    memory.write_u32(info + 8, upper)?;
    memory.write_u32(info + 16, cmdline as u32)?;
    memory.write_u32(info + 44, (entries * MAP_ENTRY_SIZE) as u32)?;
    memory.write_u32(info + 48, mmap as u32)?;
    memory.write_u32(info + 64, name as u32)?;
    memory.write(name, NAME)?;
    for (i, entry) in (0u64..).zip(&map) {
        let slot = mmap + i * MAP_ENTRY_SIZE;
        // The size field does not count itself (3.3).
        memory.write_u32(slot, MAP_ENTRY_SIZE as u32 - 4)?;
        memory.write_u64(slot + 4, entry.base)?;
        memory.write_u64(slot + 12, entry.len)?;
        memory.write_u32(slot + 20, entry.kind as u32)?;
    }
    let mut flags = INFO_FLAGS;
    if let Some(initrd) = request.initrd.filter(|initrd| !initrd.is_empty()) {
        let base = placement.initrd(memory, initrd, FOUR_GIB)?;
        flags |= INFO_MODULES;
        memory.write_u32(info + 20, 1)?;
        memory.write_u32(info + 24, module as u32)?;
        memory.write_u32(module, base as u32)?;
        memory.write_u32(module + 4, (base + initrd.len() as u64) as u32)?;
        // The module's own string: empty, the last byte of the name's room.
        memory.write_u32(module + 8, (name + NAME_ROOM - 1) as u32)?;
    }
    memory.write_u32(info, flags)?;
    Ok(EntryState::protected32(
        Format::Multiboot,
        entry,
        BOOT_MAGIC,
        info as u32,
    ))
}
