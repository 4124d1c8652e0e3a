//! A buffer that the driver has made available: a walk over its descriptors, in rings and indirect tables.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::memory::Window;
use crate::{Error, Memory};

/// Bytes of a descriptor.
pub const DESCRIPTOR: u32 = 16;
/// Bits of a descriptor's flags (2.7.5, 2.8.1).
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

/// What a queue has.
pub enum Next<'m> {
    /// Nothing.
    Nothing,
    /// A buffer of one part, as most are where frames are short, and what to complete it by.
    One(Part, Token),
    /// Any other buffer.
    Chain(Chain<'m>),
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

/// How descriptors lie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Each names the next (2.7.5).
    Linked,
    /// One after the other in a packed ring, flags last (2.8.1).
    Ring,
    /// The same in an indirect table.
    Table,
}

/// A buffer: its parts, first those to be read, then those to be written. After an error it ends.
#[derive(Clone)]
pub struct Chain<'m> {
    memory: &'m Memory,
    table: Window<'m>,
    /// Descriptors of the table.
    len: u32,
    /// How many may follow: a chain that has more loops. In a packed queue, how many do.
    left: u32,
    at: Option<u16>,
    shape: Shape,
    /// An indirect table may follow.
    indirect: bool,
    bytes: u32,
    writable: bool,
    token: Token,
}

impl<'m> Next<'m> {
    /// A buffer with one descriptor, these words of it, and flags that lead no further.
    #[inline]
    pub(crate) fn one(
        memory: &Memory,
        (gpa, len, flags): (u64, u32, u16),
        mut token: Token,
    ) -> Result<Self, Error> {
        memory.check(gpa, len.into())?;
        let writable = flags & WRITE != 0;
        if writable {
            token.room = len;
        }
        Ok(Self::One(Part { gpa, len, writable }, token))
    }
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
            shape: Shape::Linked,
            indirect,
            bytes: 0,
            writable: false,
            token,
        }
    }

    /// A buffer of a packed queue with this ring of `len` descriptors: its first, and how many it has, one at least.
    pub(crate) fn packed(
        memory: &'m Memory,
        table: Window<'m>,
        len: u32,
        (first, count): (u16, u16),
        indirect: bool,
        token: Token,
    ) -> Self {
        Self {
            left: count.into(),
            at: Some(first),
            shape: Shape::Ring,
            ..Self::linked(memory, table, len, indirect, token)
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
        let mut index = index;
        let (mut gpa, mut rest) = self.descriptor(index)?;
        if self.leads_on(rest) {
            self.enter(gpa, rest)?;
            index = 0;
            (gpa, rest) = self.descriptor(index)?;
            if self.leads_on(rest) {
                return Err(Error::Indirect);
            }
        }
        let (len, flags) = (rest as u32, self.flags(rest));
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
        self.at = match self.shape {
            Shape::Linked => (flags & NEXT != 0).then_some((rest >> 48) as u16),
            Shape::Ring | Shape::Table => {
                let next = u32::from(index) + 1;
                let next = if next < self.len { next as u16 } else { 0 };
                (self.left != 0).then_some(next)
            }
        };
        Ok(Part { gpa, len, writable })
    }

    /// The flags in the second word of a descriptor.
    const fn flags(&self, rest: u64) -> u16 {
        (match self.shape {
            Shape::Linked => rest >> 32,
            Shape::Ring | Shape::Table => rest >> 48,
        }) as u16
    }

    /// Whether it names an indirect table. In a packed queue's table only one flag says anything (2.8.7).
    fn leads_on(&self, rest: u64) -> bool {
        self.shape != Shape::Table && self.flags(rest) & INDIRECT != 0
    }

    fn descriptor(&mut self, index: u16) -> Result<(u64, u64), Error> {
        if u32::from(index) >= self.len {
            return Err(Error::Descriptor);
        }
        self.left = self.left.checked_sub(1).ok_or(Error::Length)?;
        let at = DESCRIPTOR * u32::from(index);
        Ok((self.table.load_u64(at)?, self.table.load_u64(at + 8)?))
    }

    /// Goes on in an indirect table (2.7.5.3, 2.8.7): the last of the chain outside, and not inside another one.
    fn enter(&mut self, gpa: u64, rest: u64) -> Result<(), Error> {
        let (bytes, flags) = (rest as u32, self.flags(rest));
        let len = bytes / DESCRIPTOR;
        let fits = bytes.is_multiple_of(DESCRIPTOR) && (1..=MAX_INDIRECT).contains(&len);
        let last = flags & NEXT == 0 && (self.shape == Shape::Linked || self.left == 0);
        if !self.indirect || !last || !fits {
            return Err(Error::Indirect);
        }
        self.indirect = false;
        // Nothing is said of its alignment.
        self.table = self.memory.window(gpa, bytes, 1)?;
        (self.len, self.left) = (len, len);
        if self.shape == Shape::Ring {
            self.shape = Shape::Table;
        }
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
