//! A buffer that the driver has made available: a walk over its descriptors, in rings and indirect tables.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::memory::Window;
use crate::{Error, Memory};

/// Bytes of a descriptor.
pub const DESCRIPTOR: u32 = 16;
/// Bits of a descriptor's flags (2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Most descriptors of an indirect table: a queue may be shorter than the chains that a driver makes.
const MAX_INDIRECT: u32 = 1024;

/// A buffer in flight: what it is completed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The queue that gave it: one that was reset and enabled again is another.
    pub(crate) generation: u32,
    /// Its number in the rings.
    pub(crate) position: u16,
    /// What the driver knows it by.
    pub(crate) id: u16,
    /// Bytes that may have been written: those of the writable parts that were handed out.
    pub(crate) room: u32,
}

/// A number for a queue that no other has.
pub fn generation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One part of a buffer. It was inside the guest's memory when it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it; else it reads it.
    pub writable: bool,
}

/// A buffer: its parts, first those to be read, then those to be written. After an error it ends.
#[derive(Clone)]
pub struct Chain<'m> {
    memory: &'m Memory,
    table: Window<'m>,
    /// Descriptors of the table.
    len: u32,
    /// How many may follow: a chain that has more loops.
    left: u32,
    at: Option<u16>,
    /// An indirect table may follow.
    indirect: bool,
    bytes: u32,
    writable: bool,
    token: Token,
}

impl<'m> Chain<'m> {
    /// A buffer of a split queue with this table of `len` descriptors.
    pub(crate) const fn linked(
        memory: &'m Memory,
        table: Window<'m>,
        len: u32,
        indirect: bool,
        token: Token,
    ) -> Self {
        Self {
            memory,
            table,
            len,
            left: len,
            at: Some(token.id),
            indirect,
            bytes: 0,
            writable: false,
            token,
        }
    }
}

impl Chain<'_> {
    /// What to complete it by. It allows for the parts that were handed out so far, so that it is to be asked for after them.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }

    fn part(&mut self, index: u16) -> Result<Part, Error> {
        let (mut gpa, mut rest) = self.descriptor(index)?;
        if (rest >> 32) as u16 & INDIRECT != 0 {
            self.enter(gpa, rest)?;
            (gpa, rest) = self.descriptor(0)?;
            if (rest >> 32) as u16 & INDIRECT != 0 {
                return Err(Error::Indirect);
            }
        }
        let (len, flags) = (rest as u32, (rest >> 32) as u16);
        let writable = flags & WRITE != 0;
        if self.writable && !writable {
            return Err(Error::Order);
        }
        self.writable = writable;
        self.bytes = self.bytes.checked_add(len).ok_or(Error::Length)?;
        self.memory.check(gpa, len.into())?;
        if writable {
            // Not more than all bytes, which fit.
            self.token.room += len;
        }
        if flags & NEXT != 0 {
            self.at = Some((rest >> 48) as u16);
        }
        Ok(Part { gpa, len, writable })
    }

    fn descriptor(&mut self, index: u16) -> Result<(u64, u64), Error> {
        if u32::from(index) >= self.len {
            return Err(Error::Descriptor);
        }
        self.left = self.left.checked_sub(1).ok_or(Error::Length)?;
        let at = DESCRIPTOR * u32::from(index);
        Ok((self.table.load_u64(at)?, self.table.load_u64(at + 8)?))
    }

    /// Goes on in an indirect table (2.7.5.3): the last of the chain outside, and not inside another one.
    fn enter(&mut self, gpa: u64, rest: u64) -> Result<(), Error> {
        let (bytes, flags) = (rest as u32, (rest >> 32) as u16);
        let len = bytes / DESCRIPTOR;
        let fits = bytes.is_multiple_of(DESCRIPTOR) && (1..=MAX_INDIRECT).contains(&len);
        if !self.indirect || flags & NEXT != 0 || !fits {
            return Err(Error::Indirect);
        }
        self.indirect = false;
        // Nothing is said of its alignment.
        self.table = self.memory.window(gpa, bytes, 1)?;
        (self.len, self.left) = (len, len);
        Ok(())
    }
}

impl Iterator for Chain<'_> {
    type Item = Result<Part, Error>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let index = self.at.take()?;
        let part = self.part(index);
        if part.is_err() {
            self.at = None;
        }
        Some(part)
    }
}
