//! The device's side of a split virtqueue (virtio 1.2, 2.7).
//!
//! Rings are found once, when the queue is enabled. Buffers are used in the order in which they were made available, whatever order they
//! are completed in: buffer number n of the available ring is number n of the used ring, too. So a completion writes its element at
//! once, where nobody looks yet, and publication is one store of the index for all that are done.

use ipc_schema::virtio::feature;

use crate::memory::{Window, barrier};
use crate::{Error, Memory};

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 1024;
/// Most descriptors of an indirect table: a queue may be shorter than the chains that a driver makes.
const MAX_INDIRECT: u32 = 1024;

/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;
/// Bits of a descriptor's flags (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Available ring's flags: no interrupt, please (2.7.6). Used ring's: no notification, please (2.7.8).
const SUPPRESS: u16 = 1;
/// Offset of a ring's index, and of its elements.
const INDEX: u32 = 2;
const ELEMENTS: u32 = 4;

/// Where the driver has put a queue: guest-physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Descriptors.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub driver: u64,
    /// The used ring.
    pub device: u64,
}

/// A buffer in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its number in the rings.
    position: u16,
    /// Its first descriptor.
    head: u16,
}

/// A virtqueue.
pub struct Split<'m> {
    memory: &'m Memory,
    descriptors: Window<'m>,
    available: Window<'m>,
    used: Window<'m>,
    size: u16,
    indirect: bool,
    event_idx: bool,
    /// The available ring's index, as last read.
    end: u16,
    /// The next to take.
    next: u16,
    /// The first that is not complete.
    done: u16,
    /// The used ring's index.
    published: u16,
    /// Those from `done` on that are complete, by position modulo size.
    completed: [u64; MAX_SIZE as usize / 64],
}

impl<'m> Split<'m> {
    /// A queue that the driver has just enabled.
    pub fn new(memory: &'m Memory, place: &Place, features: u64) -> Result<Self, Error> {
        let size = u32::from(place.size);
        if !size.is_power_of_two() || place.size > MAX_SIZE {
            return Err(Error::Ring);
        }
        // 2.7: sizes and alignments; the event fields are there whether or not they are used.
        Ok(Self {
            memory,
            descriptors: memory.window(place.descriptors, DESCRIPTOR * size, 16)?,
            available: memory.window(place.driver, ELEMENTS + 2 * size + 2, 2)?,
            used: memory.window(place.device, ELEMENTS + 8 * size + 2, 4)?,
            size: place.size,
            indirect: features & feature::INDIRECT_DESC != 0,
            event_idx: features & feature::EVENT_IDX != 0,
            end: 0,
            next: 0,
            done: 0,
            published: 0,
            completed: [0; MAX_SIZE as usize / 64],
        })
    }

    /// A queue that a predecessor served: what it did not publish is taken again. An interrupt is due: its last one may have been lost.
    pub fn restore(memory: &'m Memory, place: &Place, features: u64) -> Result<Self, Error> {
        let mut queue = Self::new(memory, place, features)?;
        let index = queue.used.load_u16(INDEX)?;
        (queue.end, queue.next, queue.done, queue.published) = (index, index, index, index);
        Ok(queue)
    }

    fn slot(&self, position: u16) -> u32 {
        u32::from(position & (self.size - 1))
    }

    /// Buffers taken and not published.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.next.wrapping_sub(self.published)
    }

    fn look(&mut self) -> Result<(), Error> {
        self.end = self.available.load_u16(INDEX)?;
        // The driver makes none available twice before it is used, so no more are between the indices than the queue holds.
        let open = self.end.wrapping_sub(self.published);
        if open > self.size || open < self.in_flight() {
            return Err(Error::Index);
        }
        Ok(())
    }

    /// Takes the next buffer, if one is there.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Chain<'m>>, Error> {
        if self.next == self.end {
            self.look()?;
            if self.next == self.end {
                return Ok(None);
            }
        }
        let position = self.next;
        let head = self
            .available
            .load_u16(ELEMENTS + 2 * self.slot(position))?;
        self.next = position.wrapping_add(1);
        Ok(Some(Chain {
            memory: self.memory,
            table: self.descriptors,
            len: self.size.into(),
            left: self.size.into(),
            at: Some(head),
            indirect: self.indirect,
            bytes: 0,
            writable: false,
            token: Token { position, head },
        }))
    }

    /// A buffer is done with, `written` bytes of it written. The driver learns it by [`Self::publish`].
    #[inline]
    pub fn complete(&mut self, token: Token, written: u32) -> Result<(), Error> {
        let ahead = token.position.wrapping_sub(self.done);
        if ahead >= self.next.wrapping_sub(self.done) {
            return Err(Error::Token);
        }
        let slot = self.slot(token.position);
        let element = u64::from(token.head) | u64::from(written) << 32;
        if ahead == 0 {
            self.used.store_u64(ELEMENTS + 8 * slot, element)?;
            self.done = self.done.wrapping_add(1);
            self.catch_up();
            return Ok(());
        }
        let word = self.completed.get_mut(slot as usize / 64);
        let (word, bit) = (word.ok_or(Error::Token)?, 1 << (slot % 64));
        if *word & bit != 0 {
            return Err(Error::Token);
        }
        *word |= bit;
        self.used.store_u64(ELEMENTS + 8 * slot, element)
    }

    /// Counts those that were complete before their turn.
    #[inline]
    fn catch_up(&mut self) {
        while self.done != self.next {
            let slot = self.slot(self.done);
            let Some(word) = self.completed.get_mut(slot as usize / 64) else {
                return;
            };
            let bit = 1 << (slot % 64);
            if *word & bit == 0 {
                return;
            }
            *word &= !bit;
            self.done = self.done.wrapping_add(1);
        }
    }

    /// Tells the driver of all that are complete, in order; true if it wants an interrupt for them (2.7.7).
    #[inline]
    pub fn publish(&mut self) -> Result<bool, Error> {
        let (old, new) = (self.published, self.done);
        if old == new {
            return Ok(false);
        }
        self.used.store_u16(INDEX, new)?;
        self.published = new;
        barrier();
        if self.event_idx {
            let event = ELEMENTS + 2 * u32::from(self.size);
            return Ok(passed(self.available.load_u16(event)?, old, new));
        }
        Ok(self.available.load_u16(0)? & SUPPRESS == 0)
    }

    /// Asks for a notification when more becomes available (2.7.10); true if more is there already, so that none may come.
    pub fn arm(&mut self) -> Result<bool, Error> {
        if self.event_idx {
            self.used
                .store_u16(ELEMENTS + 8 * u32::from(self.size), self.next)?;
        } else {
            self.used.store_u16(0, 0)?;
        }
        barrier();
        self.look()?;
        Ok(self.end != self.next)
    }

    /// Asks for no notifications. With the event index nothing need be said: the driver notifies once it passes the index of the last
    /// [`Self::arm`], and not before it has gone round.
    pub fn disarm(&mut self) -> Result<(), Error> {
        if self.event_idx {
            return Ok(());
        }
        self.used.store_u16(0, SUPPRESS)
    }
}

/// Whether the index passed `event` on its way from `old` to `new` (2.7.7.2).
const fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
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

impl Chain<'_> {
    /// What to complete it by.
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

#[cfg(test)]
mod tests;
