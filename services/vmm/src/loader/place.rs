//! The guest's memory map, and what is still free in it.

use super::LoadError;
use crate::chipset::map;
use crate::memory::GuestMemory;
use alloc::vec::Vec;

/// End of the usable conventional memory; the extended BIOS data area would follow.
const LOW_END: u64 = 0x9_FC00;
/// From here to 1 MiB: video memory and BIOS area, where the ACPI tables are.
const BIOS_HOLE: u64 = 0xA_0000;
/// 1 MiB.
const HIGH_START: u64 = 0x10_0000;
/// Nothing that a boot protocol hands over by a 32-bit address may lie above.
pub(super) const FOUR_GIB: u64 = 1 << 32;

/// Kind of a memory map entry; the numbers are those of INT 15h E820 (ACPI 6.5, 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Usable RAM.
    Ram = 1,
    /// Reserved.
    Reserved = 2,
}

/// A memory map entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
}

/// The memory map that the guest is told: its RAM without the BIOS area.
pub fn memory_map(memory: &GuestMemory) -> Vec<Entry> {
    let mut map = Vec::new();
    let mut ram = |base: u64, end: u64| {
        if base < end {
            map.push(Entry {
                base,
                len: end - base,
                kind: Kind::Ram,
            });
        }
    };
    for (gpa, len) in memory.regions() {
        let end = gpa.saturating_add(len);
        ram(gpa, end.min(LOW_END));
        ram(gpa.max(HIGH_START), end);
    }
    map.push(Entry {
        base: LOW_END,
        len: BIOS_HOLE - LOW_END,
        kind: Kind::Reserved,
    });
    map.push(Entry {
        base: BIOS_HOLE,
        len: HIGH_START - BIOS_HOLE,
        kind: Kind::Reserved,
    });
    // What ACPI's MCFG tells of may be reserved here too (PCI Firmware Specification 3.3, 4.1.2): some kernels want to see it.
    map.push(Entry {
        base: map::ECAM_BASE,
        len: map::ECAM_SIZE,
        kind: Kind::Reserved,
    });
    map.sort_by_key(|entry| entry.base);
    map
}

/// Which RAM is taken while a guest is loaded.
pub(super) struct Placement {
    ram: Vec<(u64, u64)>,
    used: Vec<(u64, u64)>,
}

impl Placement {
    /// All RAM of the map is free, but for the first page: a null pointer in boot information must mean "none".
    pub fn new(map: &[Entry]) -> Self {
        let ram = map
            .iter()
            .filter(|e| e.kind == Kind::Ram)
            .map(|e| (e.base, e.base.saturating_add(e.len)))
            .collect();
        Self {
            ram,
            used: alloc::vec![(0, 0x1000)],
        }
    }

    /// True if `len` bytes at `base` are RAM; they may be taken.
    fn is_ram(&self, base: u64, len: u64) -> bool {
        base.checked_add(len)
            .is_some_and(|end| self.ram.iter().any(|&(from, to)| from <= base && end <= to))
    }

    /// Takes `len` bytes at `base` for the kernel. Parts of the kernel may overlap each other.
    pub fn take_kernel(&mut self, base: u64, len: u64) -> Result<(), LoadError> {
        if !self.is_ram(base, len) {
            return Err(LoadError::NoRoomForKernel {
                address: base,
                size: len,
            });
        }
        self.used.push((base, base + len));
        Ok(())
    }

    /// The first used range that overlaps `[base, end)`.
    fn conflict(&self, base: u64, end: u64) -> Option<(u64, u64)> {
        self.used
            .iter()
            .copied()
            .find(|&(from, to)| from < end && base < to)
    }

    /// Takes the lowest free `len` bytes from `from` on that are RAM, end at or below `below`, and begin at a multiple of
    /// `align` (a power of two).
    pub fn take_low(&mut self, len: u64, align: u64, from: u64, below: u64) -> Option<u64> {
        for &(start, end) in &self.ram {
            let end = end.min(below);
            let mut base = align_up(start.max(from), align)?;
            while base.checked_add(len).is_some_and(|last| last <= end) {
                match self.conflict(base, base + len) {
                    Some((_, to)) => base = align_up(to, align)?,
                    None => {
                        self.used.push((base, base + len));
                        return Some(base);
                    }
                }
            }
        }
        None
    }

    /// Takes the highest free `len` bytes that are RAM and end at or below `below`, at a multiple of `align`.
    pub fn take_high(&mut self, len: u64, align: u64, below: u64) -> Option<u64> {
        for &(start, end) in self.ram.iter().rev() {
            let mut last = end.min(below);
            while let Some(base) = last.checked_sub(len).map(|b| b & !(align - 1)) {
                if base < start {
                    break;
                }
                match self.conflict(base, base + len) {
                    Some((from, _)) => last = from,
                    None => {
                        self.used.push((base, base + len));
                        return Some(base);
                    }
                }
            }
        }
        None
    }

    /// Takes room for boot information of `len` bytes: below 1 MiB if it fits there, else anywhere below 4 GiB.
    pub fn take_info(&mut self, len: u64) -> Result<u64, LoadError> {
        self.take_low(len, 0x1000, 0x1000, FOUR_GIB)
            .ok_or(LoadError::NoRoomForBootInformation)
    }

    /// Copies a RAM disk as high as it goes below `below`, on a page boundary; gives its address.
    pub fn initrd(
        &mut self,
        memory: &GuestMemory,
        initrd: &[u8],
        below: u64,
    ) -> Result<u64, LoadError> {
        let size = initrd.len() as u64;
        let below = below.min(FOUR_GIB);
        let base = self
            .take_high(size, 0x1000, below)
            .ok_or(LoadError::NoRoomForInitrd { size, below })?;
        memory.write(base, initrd)?;
        Ok(base)
    }

    /// Copies a command line with its final NUL; gives its address.
    pub fn cmdline(&mut self, memory: &GuestMemory, cmdline: &str) -> Result<u64, LoadError> {
        let len = cmdline.len() as u64;
        let base = self.take_info(len + 1)?;
        memory.write(base, cmdline.as_bytes())?;
        memory.write_u8(base + len, 0)?;
        Ok(base)
    }
}

/// The next multiple of `align`, a power of two.
pub(super) fn align_up(value: u64, align: u64) -> Option<u64> {
    Some(value.checked_add(align - 1)? & !(align - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn map_leaves_out_the_bios_area() {
        let memory = GuestMemory::owned(&[(0, 4 << 20), (FOUR_GIB, 1 << 20)]);
        let map = memory_map(&memory);
        let ram: Vec<_> = map
            .iter()
            .filter(|e| e.kind == Kind::Ram)
            .map(|e| (e.base, e.len))
            .collect();
        assert_eq!(
            ram,
            [(0, LOW_END), (HIGH_START, 3 << 20), (FOUR_GIB, 1 << 20)]
        );
        assert!(map.windows(2).all(|w| w[0].base + w[0].len <= w[1].base));
    }

    #[test]
    fn a_tiny_guest_has_only_low_memory() {
        let map = memory_map(&GuestMemory::owned(&[(0, 0x8000)]));
        assert_eq!(
            map[0],
            Entry {
                base: 0,
                len: 0x8000,
                kind: Kind::Ram
            }
        );
        assert_eq!(map.iter().filter(|e| e.kind == Kind::Ram).count(), 1);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_ram_and_never_overlaps(
            kernel in (0u64..0x40_0000, 0u64..0x20_0000),
            asks in prop::collection::vec((any::<bool>(), 1u64..0x10_0000, 0u32..14), 1..20),
            below in 0u64..0x60_0000,
        ) {
            let memory = GuestMemory::owned(&[(0, 4 << 20), (0x50_0000, 1 << 20)]);
            let mut place = Placement::new(&memory_map(&memory));
            let _ = place.take_kernel(kernel.0, kernel.1);
            for (high, len, shift) in asks {
                let align = 1 << shift;
                let before = place.used.clone();
                let got = if high { place.take_high(len, align, below) } else { place.take_low(len, align, 0, below) };
                if let Some(base) = got {
                    prop_assert_eq!(base % align, 0);
                    prop_assert!(place.is_ram(base, len) && base + len <= below && memory.contains(base, len));
                    prop_assert!(before.iter().all(|&(f, t)| t <= base || base + len <= f));
                }
            }
        }
    }
}
