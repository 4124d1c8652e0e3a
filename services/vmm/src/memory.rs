//! The guest's memory, as the VMM sees it.
//!
//! Job: the only way by which this crate touches guest RAM. Place: below the loader, the emulator and the devices that
//! transfer data. Trust: every address comes from the guest and is checked here; the guest changes the bytes while we
//! read them, so nothing hands out a reference, each access is one volatile copy, and whoever needs a value twice reads
//! it once and keeps it.
//!
//! This is the one module of the crate that holds `unsafe`.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An access that is not wholly inside the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// Guest-physical address of the access.
    pub gpa: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "guest-physical {:#x} (+{:#x} bytes) is not RAM",
            self.gpa, self.len
        )
    }
}

impl core::error::Error for OutOfRange {}

/// One run of guest RAM: `len` bytes at guest-physical `gpa`, mapped in the VMM at `host`.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the VMM has it mapped, readable and writable.
    pub host: *mut u8,
}

/// All RAM of one guest.
///
/// Words in the region at guest-physical 0 (page tables and kernels live there) are reached by one comparison; other
/// accesses search the regions in order.
pub struct GuestMemory {
    /// Where guest-physical 0 is mapped.
    low: *mut u8,
    /// Below this address, eight bytes are inside the region at 0.
    low_words: u64,
    regions: Vec<Region>,
    owned: Vec<*mut [u64]>,
}

// SAFETY: the regions are plain memory, valid for the life of this value by the contract of `new`; every access is a
// volatile or atomic copy and no reference to it is ever made, so threads may share it as the vCPUs already do.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

/// An integer at any alignment: a volatile access of it is a single load or store on x86.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T: Copy>(T);

macro_rules! word_access {
    ($($read:ident, $write:ident: $t:ty;)*) => {$(
        #[doc = concat!("Reads a little-endian `", stringify!($t), "` at any alignment with one load.")]
        #[inline(always)]
        pub fn $read(&self, gpa: u64) -> Result<$t, OutOfRange> {
            let at = self.word(gpa, size_of::<$t>() as u64)?;
            // SAFETY: `word` checked that the whole value is inside a region, and `Unaligned` needs no alignment.
            Ok(unsafe { at.cast::<Unaligned<$t>>().read_volatile() }.0)
        }

        #[doc = concat!("Writes a little-endian `", stringify!($t), "` at any alignment with one store.")]
        #[inline(always)]
        pub fn $write(&self, gpa: u64, value: $t) -> Result<(), OutOfRange> {
            let at = self.word(gpa, size_of::<$t>() as u64)?;
            // SAFETY: as for the read; the region is writable by the contract of `new`.
            unsafe { at.cast::<Unaligned<$t>>().write_volatile(Unaligned(value)) };
            Ok(())
        }
    )*};
}

/// Some bytes of a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    /// Guest-physical address of the word.
    pub gpa: u64,
    /// What it holds.
    pub value: u64,
    /// Which bits count.
    pub mask: u64,
}

/// Words of guest memory and what they held ([`GuestMemory::watch`]).
#[derive(Clone, Copy, Debug)]
pub struct Watch<const T: usize, const C: usize> {
    /// All addresses are below it.
    limit: u64,
    tables: [(u64, u64); T],
    code: [Masked; C],
}

impl<const T: usize, const C: usize> Watch<T, C> {
    /// Of nothing, and never [`GuestMemory::unchanged`].
    pub const NEVER: Self = Self {
        limit: u64::MAX,
        tables: [(0, 0); T],
        code: [Masked {
            gpa: 0,
            value: 0,
            mask: 0,
        }; C],
    };
}

impl GuestMemory {
    /// Takes the mapped regions of one guest. The region with the lowest address comes first; empty ones are dropped.
    ///
    /// # Safety
    /// Each region must be mapped readable and writable at `host` for `len` bytes for as long as the value lives, must
    /// hold no Rust object, and must not overlap another one in guest-physical space or wrap around.
    pub unsafe fn new(regions: &[Region]) -> Self {
        let mut regions: Vec<Region> = regions.iter().copied().filter(|r| r.len != 0).collect();
        regions.sort_by_key(|r| r.gpa);
        let (low, low_words) = match regions.first() {
            Some(first) if first.gpa == 0 => (first.host, first.len.saturating_sub(7)),
            _ => (core::ptr::NonNull::dangling().as_ptr(), 0),
        };
        Self {
            low,
            low_words,
            regions,
            owned: Vec::new(),
        }
    }

    /// Memory of its own at the given `(gpa, len)` runs, zeroed: for tests and tools. Lengths are rounded up to 8.
    pub fn owned(runs: &[(u64, u64)]) -> Self {
        let mut owned = Vec::new();
        let mut regions = Vec::new();
        for &(gpa, len) in runs {
            let words = usize::try_from(len.div_ceil(8)).unwrap_or(0);
            let raw = Box::into_raw(alloc::vec![0u64; words].into_boxed_slice());
            owned.push(raw);
            regions.push(Region {
                gpa,
                len: words as u64 * 8,
                host: raw.cast::<u8>(),
            });
        }
        // SAFETY: each region is an allocation of its own of that length, freed only when the value is dropped.
        let mut memory = unsafe { Self::new(&regions) };
        memory.owned = owned;
        memory
    }

    /// Memory at guest-physical 0 that starts as a copy of `bytes`: for tests.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let memory = Self::owned(&[(0, bytes.len() as u64)]);
        let _ = memory.write(0, &bytes);
        memory
    }

    /// The regions as `(gpa, len)`, lowest first.
    pub fn regions(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().map(|r| (r.gpa, r.len))
    }

    /// True if all `len` bytes at `gpa` are RAM of one region.
    #[inline]
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        self.host(gpa, len).is_ok()
    }

    /// Where a word of up to eight bytes at `gpa` is mapped, or that it is not RAM.
    #[inline(always)]
    fn word(&self, gpa: u64, len: u64) -> Result<*mut u8, OutOfRange> {
        if gpa < self.low_words {
            // SAFETY: `gpa + 8` is within the region at 0, which is one mapped run by the contract of `new`.
            return Ok(unsafe { self.low.add(gpa as usize) });
        }
        self.host(gpa, len)
    }

    /// Where `len` bytes at `gpa` are mapped, or that they are not RAM.
    #[inline(never)]
    fn host(&self, gpa: u64, len: u64) -> Result<*mut u8, OutOfRange> {
        for region in &self.regions {
            if let (Some(offset), Some(room)) =
                (gpa.checked_sub(region.gpa), region.len.checked_sub(len))
                && offset <= room
            {
                // SAFETY: `offset + len` is within the region, which is one mapped run by the contract of `new`.
                return Ok(unsafe { region.host.add(offset as usize) });
            }
        }
        Err(OutOfRange { gpa, len })
    }

    word_access! {
        read_u8, write_u8: u8;
        read_u16, write_u16: u16;
        read_u32, write_u32: u32;
        read_u64, write_u64: u64;
    }

    /// Notes what words hold, to ask later by [`Self::unchanged`] whether they still do. `None` if one is not in the region at
    /// guest-physical 0.
    #[must_use]
    pub fn watch<const T: usize, const C: usize>(
        &self,
        tables: [(u64, u64); T],
        code: [Masked; C],
    ) -> Option<Watch<T, C>> {
        let mut all = tables.iter().map(|t| t.0).chain(code.iter().map(|c| c.gpa));
        let inside = all.all(|gpa| gpa < self.low_words);
        inside.then_some(Watch {
            limit: self.low_words,
            tables,
            code,
        })
    }

    /// Whether all words hold what they held. Each is read anew.
    #[must_use]
    #[inline(always)]
    pub fn unchanged<const T: usize, const C: usize>(&self, watch: &Watch<T, C>) -> bool {
        if watch.limit > self.low_words {
            return false;
        }
        let read = |gpa: u64| {
            // SAFETY: `watch` found it below its `low_words`, which is no more than ours, so that all eight bytes are in the region
            // at 0; `Unaligned` needs no alignment.
            unsafe {
                self.low
                    .add(gpa as usize)
                    .cast::<Unaligned<u64>>()
                    .read_volatile()
            }
            .0
        };
        watch.tables.iter().all(|&(gpa, value)| read(gpa) == value)
            && watch
                .code
                .iter()
                .all(|c| (read(c.gpa) ^ c.value) & c.mask == 0)
    }

    /// Copies guest memory at `gpa` out to `to`.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), OutOfRange> {
        let from = self.host(gpa, to.len() as u64)?;
        // SAFETY: `from` is good for `to.len()` bytes, `to` is exclusively ours and no part of guest memory.
        unsafe { copy(to.as_mut_ptr(), from, to.len()) };
        Ok(())
    }

    /// Copies `from` into guest memory at `gpa`.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let to = self.host(gpa, from.len() as u64)?;
        // SAFETY: `to` is good for `from.len()` bytes and writable, and no Rust object lies in guest memory.
        unsafe { copy(to, from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Sets `len` bytes at `gpa` to `byte`.
    pub fn fill(&self, gpa: u64, len: u64, byte: u8) -> Result<(), OutOfRange> {
        let to = self.host(gpa, len)?;
        let words = (len / 8) as usize;
        // SAFETY: `8 * words <= len` bytes from `to` are inside the region; the direction flag is clear, as for `copy`.
        unsafe {
            asm!("rep stosq", inout("rcx") words => _, inout("rdi") to => _,
                in("rax") u64::from(byte) * 0x0101_0101_0101_0101, options(nostack, preserves_flags));
        }
        for i in words * 8..len as usize {
            // SAFETY: `i < len`.
            unsafe { to.add(i).write_volatile(byte) };
        }
        Ok(())
    }

    /// Sets `bits` in the aligned 64-bit word at `gpa` if it still holds `old`; says whether it did. For the accessed
    /// and dirty bits of page tables, which the guest's processors change too.
    pub fn set_bits_u64(&self, gpa: u64, old: u64, bits: u64) -> Result<bool, OutOfRange> {
        let at = self.host(gpa, 8)?;
        if !at.cast::<u64>().is_aligned() {
            return Err(OutOfRange { gpa, len: 8 });
        }
        // SAFETY: in range by `host`, aligned by the check; accessed by others only with atomic or volatile accesses.
        let word = unsafe { AtomicU64::from_ptr(at.cast()) };
        Ok(word
            .compare_exchange(old, old | bits, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok())
    }

    /// As [`Self::set_bits_u64`], for a 32-bit word.
    pub fn set_bits_u32(&self, gpa: u64, old: u32, bits: u32) -> Result<bool, OutOfRange> {
        let at = self.host(gpa, 4)?;
        if !at.cast::<u32>().is_aligned() {
            return Err(OutOfRange { gpa, len: 4 });
        }
        // SAFETY: as in `set_bits_u64`.
        let word = unsafe { AtomicU32::from_ptr(at.cast()) };
        Ok(word
            .compare_exchange(old, old | bits, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok())
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        for raw in self.owned.drain(..) {
            // SAFETY: came from `Box::into_raw` in `owned`, and is freed only here.
            drop(unsafe { Box::from_raw(raw) });
        }
    }
}

/// Copies `len` bytes, eight at a time; what is long (kernels and RAM disks of many megabytes) the processor copies by itself.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes, and they must not overlap.
#[inline]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    let words = if len < STRING { 0 } else { len / 8 };
    if words > 0 {
        // SAFETY: `8 * words <= len`; the direction flag is clear (System V ABI for x86-64, 3.2.1). Rust does not see the accesses, so
        // that it may not matter that the guest makes others there.
        unsafe {
            asm!("rep movsq", inout("rcx") words => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags));
        }
    }
    let mut i = words * 8;
    while i + 8 <= len {
        // SAFETY: `i + 8 <= len`.
        unsafe {
            let word = from.add(i).cast::<Unaligned<u64>>().read_volatile();
            to.add(i).cast::<Unaligned<u64>>().write_volatile(word);
        }
        i += 8;
    }
    for i in i..len {
        // SAFETY: `i < len`.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
}

/// From so many bytes on the processor copies by itself.
const STRING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges_of_the_regions() {
        let m = GuestMemory::owned(&[(0, 0x1000), (0x1_0000_0000, 0x1000)]);
        assert!(m.read_u64(0xFF8).is_ok());
        assert_eq!(m.read_u64(0xFF9), Err(OutOfRange { gpa: 0xFF9, len: 8 }));
        assert!(m.read_u64(u64::MAX).is_err());
        assert!(m.read_u64(u64::MAX - 7).is_err());
        m.write_u32(0x1_0000_0FFC, 0xAABB_CCDD).unwrap();
        assert_eq!(m.read_u16(0x1_0000_0FFE).unwrap(), 0xAABB);
        assert!(m.write_u32(0x1_0000_0FFD, 0).is_err());
        assert!(m.write_u8(0xFFFF_FFFF, 0).is_err());
        assert!(m.contains(0, 0x1000) && !m.contains(0, 0x1001) && !m.contains(1, u64::MAX));
        assert_eq!(
            m.regions().collect::<Vec<_>>(),
            [(0, 0x1000), (0x1_0000_0000, 0x1000)]
        );
    }

    #[test]
    fn no_memory_at_all() {
        let m = GuestMemory::owned(&[]);
        assert!(m.read_u8(0).is_err());
        assert!(m.read(0, &mut [0; 4]).is_err());
        assert_eq!(m.regions().count(), 0);
    }

    #[test]
    fn bits_are_set_only_on_the_old_value() {
        let m = GuestMemory::from_vec(alloc::vec![0; 64]);
        m.write_u64(8, 0x1003).unwrap();
        assert!(!m.set_bits_u64(8, 0x1001, 0x20).unwrap());
        assert!(m.set_bits_u64(8, 0x1003, 0x20).unwrap());
        assert_eq!(m.read_u64(8).unwrap(), 0x1023);
        assert!(m.set_bits_u64(9, 0, 1).is_err());
        assert!(m.set_bits_u32(8, 0x1023, 0x40).unwrap());
        assert_eq!(m.read_u32(8).unwrap(), 0x1063);
    }

    proptest! {
        #[test]
        fn copies_agree_with_a_plain_vector(
            ops in prop::collection::vec((0u64..300, prop::collection::vec(any::<u8>(), 0..80), any::<bool>()), 0..20)
        ) {
            let m = GuestMemory::from_vec(alloc::vec![0; 256]);
            let mut plain = alloc::vec![0u8; 256];
            for (at, data, fill) in ops {
                let end = at as usize + data.len();
                let ok = if fill {
                    m.fill(at, data.len() as u64, data.first().copied().unwrap_or(0))
                } else {
                    m.write(at, &data)
                };
                prop_assert_eq!(ok.is_ok(), end <= 256);
                if end <= 256 {
                    if fill {
                        plain[at as usize..end].fill(data.first().copied().unwrap_or(0));
                    } else {
                        plain[at as usize..end].copy_from_slice(&data);
                    }
                }
            }
            let mut all = alloc::vec![0u8; 256];
            m.read(0, &mut all).unwrap();
            prop_assert_eq!(all, plain);
        }
    }
}
