//! ELF kernels with a PVH entry (Xen's public header `arch-x86/hvm/start_info.h`, "PVH direct boot ABI").

use super::elf_image::Image;
use super::place::{self, FOUR_GIB, Placement};
use super::state::EntryState;
use super::{Format, LoadError, Request};
use crate::memory::GuestMemory;

/// XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_PHYS32_ENTRY: u64 = 18;
/// `hvm_start_info.magic`: "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336E_C578;
/// Version 1 has the memory map.
const VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
const MAP_ENTRY_SIZE: u64 = 24;

/// The 32-bit entry point of the PVH note, if the file has one.
pub(super) fn entry(image: &Image<'_>) -> Result<Option<u64>, LoadError> {
    let Some(descriptor) = image
        .note(b"Xen", NOTE_PHYS32_ENTRY)
        .or_else(|| image.note(b"Xen\0", NOTE_PHYS32_ENTRY))
    else {
        return Ok(None);
    };
    let mut bytes = [0; 8];
    match descriptor.len() {
        len @ (4 | 8) => {
            for (to, from) in bytes.iter_mut().zip(descriptor.iter().take(len)) {
                *to = *from;
            }
            Ok(Some(u64::from_le_bytes(bytes)))
        }
        len => Err(LoadError::BadField {
            field: "length of the PVH note",
            value: len as u64,
        }),
    }
}

/// Bytes of a command line that Linux keeps.
const MAX_CMDLINE: u64 = 2047;

/// Loads an ELF with a PVH note.
pub(super) fn load(
    memory: &GuestMemory,
    request: &Request<'_>,
    image: &Image<'_>,
    entry: u64,
) -> Result<EntryState, LoadError> {
    let map = place::memory_map(memory);
    let mut placement = Placement::new(&map);
    image.load(memory, &mut placement)?;
    let entry32 = u32::try_from(entry).ok().filter(|_| image.holds(entry));
    let Some(entry32) = entry32 else {
        return Err(LoadError::BadEntry { address: entry });
    };
    let entries = map.len() as u64;
    let info = placement.take_info(START_INFO_SIZE + MODULE_SIZE + entries * MAP_ENTRY_SIZE)?;
    let cmdline = placement.cmdline(memory, &request.linux_cmdline(MAX_CMDLINE))?;
    let modules = info + START_INFO_SIZE;
    let memmap = modules + MODULE_SIZE;
    let initrd = match request.initrd.filter(|initrd| !initrd.is_empty()) {
        Some(initrd) => Some((
            placement.initrd(memory, initrd, FOUR_GIB)?,
            initrd.len() as u64,
        )),
        None => None,
    };
    memory.fill(info, START_INFO_SIZE + MODULE_SIZE, 0)?;
    memory.write_u32(info, MAGIC)?;
    memory.write_u32(info + 4, VERSION)?;
    // 8: flags, none.
    memory.write_u64(info + 24, cmdline)?;
    memory.write_u64(info + 32, request.rsdp)?;
    memory.write_u64(info + 40, memmap)?;
    memory.write_u32(info + 48, entries as u32)?;
    if let Some((address, size)) = initrd {
        memory.write_u32(info + 12, 1)?;
        memory.write_u64(info + 16, modules)?;
        memory.write_u64(modules, address)?;
        memory.write_u64(modules + 8, size)?;
    }
    for (i, entry) in (0u64..).zip(&map) {
        let slot = memmap + i * MAP_ENTRY_SIZE;
        memory.write_u64(slot, entry.base)?;
        memory.write_u64(slot + 8, entry.len)?;
        memory.write_u32(slot + 16, entry.kind as u32)?;
        memory.write_u32(slot + 20, 0)?;
    }
    Ok(EntryState::protected32(
        Format::Pvh,
        entry32,
        0,
        info as u32,
    ))
}
