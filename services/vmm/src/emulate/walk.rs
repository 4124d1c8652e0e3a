//! Page walks: a guest's linear address to a guest-physical one, in each paging mode.
//!
//! [`code`] is for instruction fetches that the processor has just made itself: it looks at present bits and nothing
//! else. [`data`] is for operands that the emulator touches in the guest's stead: it checks rights, and sets accessed
//! and dirty bits as the processor would (Intel SDM vol. 3, chapter 4; AMD APM vol. 2, chapter 5).

use super::Exception;
use crate::memory::GuestMemory;
use ipc_schema::abi::vm::VcpuState;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// Address bits of a 64-bit entry.
const FRAME: u64 = 0x000F_FFFF_FFFF_F000;

/// Why a walk for code ends nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// An entry is not present (any more).
    NotPresent,
    /// A page table is not in the guest's RAM.
    TableOutsideRam,
}

/// Guest-physical address of the byte of code at `linear`.
#[inline]
pub fn code(memory: &GuestMemory, state: &VcpuState, linear: u64) -> Result<u64, WalkError> {
    if state.cr0 & CR0_PG == 0 {
        return Ok(linear & 0xFFFF_FFFF);
    }
    if state.efer & EFER_LMA == 0 {
        return code_legacy(memory, state, linear as u32);
    }
    let mut table = state.cr3 & FRAME;
    if state.cr4 & CR4_LA57 != 0 {
        let entry = step(memory, table, linear >> 48)?;
        table = entry & FRAME;
    }
    let entry = step(memory, table, linear >> 39)?;
    let entry = step(memory, entry & FRAME, linear >> 30)?;
    if entry & LARGE != 0 {
        return Ok(entry & (FRAME & !0x3FFF_FFFF) | linear & 0x3FFF_FFFF);
    }
    let entry = step(memory, entry & FRAME, linear >> 21)?;
    if entry & LARGE != 0 {
        return Ok(entry & (FRAME & !0x1F_FFFF) | linear & 0x1F_FFFF);
    }
    let entry = step(memory, entry & FRAME, linear >> 12)?;
    Ok(entry & FRAME | linear & 0xFFF)
}

/// The present entry of a 64-bit table at an index whose low 9 bits count.
#[inline(always)]
fn step(memory: &GuestMemory, table: u64, index: u64) -> Result<u64, WalkError> {
    match memory.read_u64(table + (index & 0x1FF) * 8) {
        Ok(entry) if entry & PRESENT != 0 => Ok(entry),
        Ok(_) => Err(WalkError::NotPresent),
        Err(_) => Err(WalkError::TableOutsideRam),
    }
}

/// 32-bit and PAE paging.
#[cold]
fn code_legacy(memory: &GuestMemory, state: &VcpuState, linear: u32) -> Result<u64, WalkError> {
    let mut path = Path::new();
    legacy(memory, state, linear, &mut path)
}

/// What the emulator is about to do to an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Read it.
    Read,
    /// Write it.
    Write,
}

/// The entries that a walk went through, and the rights that they leave.
struct Path {
    entries: [(u64, u64); 5],
    len: usize,
    wide: bool,
    rights: u64,
}

impl Path {
    const fn new() -> Self {
        Self {
            entries: [(0, 0); 5],
            len: 0,
            wide: true,
            rights: WRITABLE | USER,
        }
    }

    /// Notes one entry; `None` keeps rights as they are (PAE's top level has none).
    fn push(&mut self, at: u64, entry: u64) {
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = (at, entry);
            self.len += 1;
        }
        self.rights &= entry;
    }
}

/// A present entry of `T` bits at `at`, noted in the path.
fn noted64(memory: &GuestMemory, at: u64, path: &mut Path) -> Result<u64, WalkError> {
    let entry = memory
        .read_u64(at)
        .map_err(|_| WalkError::TableOutsideRam)?;
    if entry & PRESENT == 0 {
        return Err(WalkError::NotPresent);
    }
    path.push(at, entry);
    Ok(entry)
}

/// 4- and 5-level paging, noting each entry.
fn long(
    memory: &GuestMemory,
    state: &VcpuState,
    linear: u64,
    path: &mut Path,
) -> Result<u64, WalkError> {
    let levels = if state.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let mut table = state.cr3 & FRAME;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = noted64(memory, table + ((linear >> shift) & 0x1FF) * 8, path)?;
        let within = (1u64 << shift) - 1;
        if level == 0 || (level <= 2 && entry & LARGE != 0) {
            return Ok(entry & FRAME & !within | linear & within);
        }
        table = entry & FRAME;
    }
    Err(WalkError::NotPresent)
}

/// 32-bit and PAE paging, noting each entry that has rights and accessed bits.
fn legacy(
    memory: &GuestMemory,
    state: &VcpuState,
    linear: u32,
    path: &mut Path,
) -> Result<u64, WalkError> {
    let linear = u64::from(linear);
    if state.cr4 & CR4_PAE != 0 {
        // PAE: the four top entries hold no rights and no accessed bit (Intel SDM vol. 3, 4.4.1).
        let top = memory
            .read_u64((state.cr3 & 0xFFFF_FFE0) + (linear >> 30) * 8)
            .map_err(|_| WalkError::TableOutsideRam)?;
        if top & PRESENT == 0 {
            return Err(WalkError::NotPresent);
        }
        let entry = noted64(memory, (top & FRAME) + ((linear >> 21) & 0x1FF) * 8, path)?;
        if entry & LARGE != 0 {
            return Ok(entry & FRAME & !0x1F_FFFF | linear & 0x1F_FFFF);
        }
        let entry = noted64(memory, (entry & FRAME) + ((linear >> 12) & 0x1FF) * 8, path)?;
        return Ok(entry & FRAME | linear & 0xFFF);
    }
    path.wide = false;
    let mut noted32 = |at: u64| {
        let entry = u64::from(
            memory
                .read_u32(at)
                .map_err(|_| WalkError::TableOutsideRam)?,
        );
        if entry & PRESENT == 0 {
            return Err(WalkError::NotPresent);
        }
        path.push(at, entry);
        Ok(entry)
    };
    let entry = noted32((state.cr3 & 0xFFFF_F000) + (linear >> 22) * 4)?;
    if entry & LARGE != 0 && state.cr4 & CR4_PSE != 0 {
        // PSE-36: bits 13..21 are address bits 32..40 (Intel SDM vol. 3, 4.3).
        return Ok((entry >> 13 & 0xFF) << 32 | entry & 0xFFC0_0000 | linear & 0x3F_FFFF);
    }
    let entry = noted32((entry & 0xFFFF_F000) + ((linear >> 12) & 0x3FF) * 4)?;
    Ok(entry & 0xFFFF_F000 | linear & 0xFFF)
}

/// The entries, as (guest-physical address, contents), that a walk through four levels goes through, and the address that it
/// ends at; a large page's last entry comes again. `None` with more levels, or where it ends nowhere.
pub(super) fn four_levels(
    memory: &GuestMemory,
    state: &VcpuState,
    linear: u64,
) -> Option<([(u64, u64); 4], u64)> {
    if state.cr0 & CR0_PG == 0 || state.efer & EFER_LMA == 0 || state.cr4 & CR4_LA57 != 0 {
        return None;
    }
    let mut path = Path::new();
    let gpa = long(memory, state, linear, &mut path).ok()?;
    let last = path.entries.get(path.len.checked_sub(1)?)?;
    let mut entries = [*last; 4];
    for (to, from) in entries.iter_mut().zip(path.entries.iter().take(path.len)) {
        *to = *from;
    }
    Some((entries, gpa))
}

/// Guest-physical address of the operand byte at `linear`, with the page fault that the access raises otherwise.
///
/// Protection keys, shadow stacks and reserved bits are not looked at: the guest is shown no keys and no shadow stacks,
/// and the processor meets reserved bits by itself on the next access.
pub fn data(
    memory: &GuestMemory,
    state: &VcpuState,
    linear: u64,
    intent: Intent,
) -> Result<u64, Exception> {
    if state.cr0 & CR0_PG == 0 {
        return Ok(linear & 0xFFFF_FFFF);
    }
    let user = state.cpl == 3;
    let write = intent == Intent::Write;
    let code = (u32::from(write) << 1) | (u32::from(user) << 2);
    // A processor of the guest may change an entry between our look and our accessed bit: then look again. Bounded,
    // because a guest that never stops is told of a fault that it may well have made.
    for _ in 0..16 {
        let mut path = Path::new();
        let walked = if state.efer & EFER_LMA != 0 {
            long(memory, state, linear, &mut path)
        } else {
            legacy(memory, state, linear as u32, &mut path)
        };
        let Ok(gpa) = walked else {
            return Err(Exception::page_fault(linear, code));
        };
        let user_page = path.rights & USER != 0;
        let writable = path.rights & WRITABLE != 0;
        let smap = !user && user_page && state.cr4 & CR4_SMAP != 0 && state.rflags & RFLAGS_AC == 0;
        let read_only = write && !writable && (user || state.cr0 & CR0_WP != 0);
        if (user && !user_page) || smap || read_only {
            return Err(Exception::page_fault(linear, code | 1));
        }
        if mark(memory, &path, write) {
            return Ok(gpa);
        }
    }
    Err(Exception::page_fault(linear, code))
}

/// Sets accessed bits, and the last entry's dirty bit for a write. False if an entry changed meanwhile.
fn mark(memory: &GuestMemory, path: &Path, write: bool) -> bool {
    for (i, &(at, entry)) in path.entries.iter().take(path.len).enumerate() {
        let wanted = if write && i + 1 == path.len {
            ACCESSED | DIRTY
        } else {
            ACCESSED
        };
        if entry & wanted == wanted {
            continue;
        }
        let set = if path.wide {
            memory.set_bits_u64(at, entry, wanted)
        } else {
            memory.set_bits_u32(at, entry as u32, wanted as u32)
        };
        if set != Ok(true) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests;
