//! The guest's memory, as a device model has it mapped.
//!
//! Trust: addresses are the guest's and are checked here; the guest changes bytes while they are read, so that nothing hands out a
//! reference: each access is a volatile copy, between fences where order matters. The one module of the crate that holds `unsafe`.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};

use crate::Error;

/// A run of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// Where it is mapped, readable and writable.
    pub host: *mut u8,
}

/// All memory of one guest: below PCI's hole, and above 4 GiB.
pub struct Memory {
    ranges: Vec<Range>,
    owned: Vec<*mut [u128]>,
}

// SAFETY: the ranges are plain memory, valid as long as the value by the contract of `new`; every access is a volatile copy and no
// reference to it is made.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// An integer at any alignment; a volatile access of it is one load or store on x86.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned(u64);

/// As above.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct UnalignedHalf(u32);

/// A part of the guest's memory that was found once: a ring.
#[derive(Clone, Copy)]
pub struct Window<'m> {
    host: *mut u8,
    len: u32,
    memory: PhantomData<&'m Memory>,
}

// SAFETY: it is a part of a `Memory`, which may be shared.
unsafe impl Send for Window<'_> {}
// SAFETY: as above.
unsafe impl Sync for Window<'_> {}

impl Memory {
    /// Takes the mapped memory of one guest; empty ranges are dropped.
    ///
    /// # Safety
    /// Each range is mapped readable and writable at `host` for `len` bytes as long as the value lives, holds no Rust object, and wraps
    /// around neither in the guest's addresses nor in ours.
    #[must_use]
    pub unsafe fn new(ranges: &[Range]) -> Self {
        let mut ranges: Vec<Range> = ranges.iter().copied().filter(|r| r.len != 0).collect();
        ranges.sort_by_key(|r| r.gpa);
        let owned = Vec::new();
        Self { ranges, owned }
    }

    /// Memory of its own, zeroed, at `(gpa, len)`: for tests and tools. Lengths are rounded up to 16.
    #[must_use]
    pub fn owned(runs: &[(u64, u64)]) -> Self {
        let (mut ranges, mut owned) = (Vec::new(), Vec::new());
        for &(gpa, len) in runs {
            let words = usize::try_from(len.div_ceil(16)).unwrap_or(0);
            let raw = Box::into_raw(alloc::vec![0u128; words].into_boxed_slice());
            owned.push(raw);
            let (len, host) = (words as u64 * 16, raw.cast());
            ranges.push(Range { gpa, len, host });
        }
        // SAFETY: each is an allocation of its own of that length, freed only with the value.
        let mut memory = unsafe { Self::new(&ranges) };
        memory.owned = owned;
        memory
    }

    fn host(&self, gpa: u64, len: u64) -> Result<*mut u8, Error> {
        for range in &self.ranges {
            // Below the range it wraps around, to at least what the range has.
            let offset = gpa.wrapping_sub(range.gpa);
            if offset <= range.len && len <= range.len - offset {
                // SAFETY: `offset + len` is within the range, which is one mapped run by the contract of `new`.
                return Ok(unsafe { range.host.add(offset as usize) });
            }
        }
        Err(Error::Memory)
    }

    /// Checks that `len` bytes at `gpa` are memory of one range.
    pub fn check(&self, gpa: u64, len: u64) -> Result<(), Error> {
        self.host(gpa, len).map(drop)
    }

    /// Copies out of guest memory.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), Error> {
        let from = self.host(gpa, to.len() as u64)?;
        // SAFETY: `from` is good for so many bytes; `to` is ours alone and no guest memory.
        unsafe { copy(to.as_mut_ptr(), from, to.len()) };
        Ok(())
    }

    /// Copies into guest memory.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), Error> {
        let to = self.host(gpa, from.len() as u64)?;
        // SAFETY: `to` is good for so many bytes, and no Rust object lies there.
        unsafe { copy(to, from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies into other memory, which may be the same one; where both overlap, anything may be left.
    pub fn transfer(&self, gpa: u64, to: &Memory, at: u64, len: u32) -> Result<(), Error> {
        let from = self.host(gpa, len.into())?;
        let to = to.host(at, len.into())?;
        // SAFETY: both are good for so many bytes, no Rust object lies there, and each word is copied by itself.
        unsafe { copy(to, from, len as usize) };
        Ok(())
    }

    /// Finds `len` bytes at `gpa`, which are to be aligned to `align`, once for many accesses.
    pub fn window(&self, gpa: u64, len: u32, align: u64) -> Result<Window<'_>, Error> {
        let host = self.host(gpa, len.into())?;
        let align = align.max(1);
        if !gpa.is_multiple_of(align) || !(host as u64).is_multiple_of(align) {
            return Err(Error::Ring);
        }
        let memory = PhantomData;
        Ok(Window { host, len, memory })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for raw in self.owned.drain(..) {
            // SAFETY: came from `Box::into_raw` in `owned`, freed only here.
            drop(unsafe { Box::from_raw(raw) });
        }
    }
}

impl Window<'_> {
    fn at(&self, offset: u32, len: u32) -> Result<*mut u8, Error> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::Memory);
        }
        // SAFETY: within the window, which is within one mapped range.
        Ok(unsafe { self.host.add(offset as usize) })
    }

    fn half(&self, offset: u32) -> Result<*mut u16, Error> {
        let at = self.at(offset, 2)?.cast::<u16>();
        if !at.is_aligned() {
            return Err(Error::Ring);
        }
        Ok(at)
    }

    fn whole(&self, offset: u32) -> Result<*mut u32, Error> {
        let at = self.at(offset, 4)?.cast::<u32>();
        if !at.is_aligned() {
            return Err(Error::Ring);
        }
        Ok(at)
    }

    /// Loads a half that what it covers is read after.
    #[inline]
    pub fn load_u16(&self, offset: u32) -> Result<u16, Error> {
        let at = self.half(offset)?;
        // SAFETY: inside the window and aligned, so that it is one load.
        let value = unsafe { at.read_volatile() };
        fence(Ordering::Acquire);
        Ok(u16::from_le(value))
    }

    /// Stores a half behind all that was written before.
    #[inline]
    pub fn store_u16(&self, offset: u32, value: u16) -> Result<(), Error> {
        let at = self.half(offset)?;
        fence(Ordering::Release);
        // SAFETY: as for `load_u16`: one store.
        unsafe { at.write_volatile(value.to_le()) };
        Ok(())
    }

    /// As [`Self::load_u16`], a word.
    #[inline]
    pub fn load_u32(&self, offset: u32) -> Result<u32, Error> {
        let at = self.whole(offset)?;
        // SAFETY: inside the window and aligned, so that it is one load.
        let value = unsafe { at.read_volatile() };
        fence(Ordering::Acquire);
        Ok(u32::from_le(value))
    }

    /// As [`Self::store_u16`], a word.
    #[inline]
    pub fn store_u32(&self, offset: u32, value: u32) -> Result<(), Error> {
        let at = self.whole(offset)?;
        fence(Ordering::Release);
        // SAFETY: as for `load_u32`: one store.
        unsafe { at.write_volatile(value.to_le()) };
        Ok(())
    }

    /// Loads eight bytes; where they are aligned by one load that what they cover is read after.
    #[inline]
    pub fn load_u64(&self, offset: u32) -> Result<u64, Error> {
        let at = self.at(offset, 8)?.cast::<Unaligned>();
        // SAFETY: all eight bytes are inside the window.
        let value = unsafe { at.read_volatile() }.0;
        fence(Ordering::Acquire);
        Ok(u64::from_le(value))
    }

    /// Stores eight bytes; where they are aligned by one store, behind all that was written before.
    #[inline]
    pub fn store_u64(&self, offset: u32, value: u64) -> Result<(), Error> {
        let at = self.at(offset, 8)?.cast::<Unaligned>();
        fence(Ordering::Release);
        // SAFETY: all eight bytes are inside the window.
        unsafe { at.write_volatile(Unaligned(value.to_le())) };
        Ok(())
    }
}

/// Orders what was written before what is read next, as the guest's processors see it.
#[inline]
pub fn barrier() {
    fence(Ordering::SeqCst);
}

/// Copies by eight bytes, the last of which may be copied twice, fewer by four or by one; by hand where that is shorter than it takes the
/// processor to begin.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`, and they do not overlap.
#[inline]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: in each use eight bytes from `i` on are below `len`.
    let word = |i: usize| unsafe {
        let word = from.add(i).cast::<Unaligned>().read_volatile();
        to.add(i).cast::<Unaligned>().write_volatile(word);
    };
    // SAFETY: in each use four bytes from `i` on are.
    let half = |i: usize| unsafe {
        let word = from.add(i).cast::<UnalignedHalf>().read_volatile();
        to.add(i).cast::<UnalignedHalf>().write_volatile(word);
    };
    if len >= STRING {
        // SAFETY: no more than `len`; the direction flag is clear (System V ABI for x86-64, 3.2.1). Rust does not see the accesses, so that
        // it may not matter that the guest makes others there.
        unsafe {
            asm!("rep movsq", inout("rcx") len / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags));
        }
    } else if len >= 8 {
        let mut i = 0;
        while i + 8 <= len {
            word(i);
            i += 8;
        }
    } else if len >= 4 {
        half(0);
        half(len - 4);
        return;
    } else {
        for i in 0..len {
            // SAFETY: `i < len`.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
        return;
    }
    if !len.is_multiple_of(8) {
        word(len - 8);
    }
}

/// From so many bytes on the processor copies by itself.
const STRING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges() {
        let m = Memory::owned(&[(0, 0x1000), (1 << 32, 0x1000)]);
        m.write((1 << 32) + 0xFF5, b"hello world").unwrap();
        let mut back = [0; 11];
        m.read((1 << 32) + 0xFF5, &mut back).unwrap();
        assert_eq!(&back, b"hello world");
        for (gpa, len) in [
            (0xFFF, 2),
            (0x1000, 1),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (0, u64::MAX),
            ((1 << 32) - 1, 2),
        ] {
            assert_eq!(m.check(gpa, len), Err(Error::Memory), "{gpa:#x} {len:#x}");
        }
        assert!(m.check(0xFFF, 1).is_ok() && m.check((1 << 32) + 0xFFF, 1).is_ok());
    }

    #[test]
    fn windows_end_where_they_end() {
        let m = Memory::owned(&[(0, 0x1000)]);
        assert_eq!(m.window(8, 8, 16).err(), Some(Error::Ring));
        assert_eq!(m.window(0xFF8, 16, 8).err(), Some(Error::Memory));
        let w = m.window(0xFE0, 24, 16).unwrap();
        w.store_u64(16, 0x0102_0304_0506_0708).unwrap();
        w.store_u16(22, 0xAABB).unwrap();
        assert_eq!(w.load_u64(16), Ok(0xAABB_0304_0506_0708));
        assert_eq!(w.load_u16(20), Ok(0x0304));
        for offset in [17, 24, u32::MAX] {
            assert!(w.load_u64(offset).is_err() && w.store_u64(offset, 0).is_err());
        }
        for offset in [23, 24, u32::MAX, u32::MAX - 1] {
            assert!(w.load_u16(offset).is_err() && w.store_u16(offset, 0).is_err());
        }
    }
}
