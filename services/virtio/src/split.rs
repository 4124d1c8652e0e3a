//! The device's side of a split virtqueue (virtio 1.2, 2.7).
//!
//! Rings are found once, when the queue is enabled. Buffers are used in the order in which they were made available, whatever order they
//! are completed in: buffer number n of the available ring is number n of the used ring, too. So a completion writes its element at
//! once, where nobody looks yet, and publication is one store of the index for all that are done.

use alloc::boxed::Box;

use ipc_schema::virtio::feature;

use crate::chain::{Chain, DESCRIPTOR, INDIRECT, NEXT, Next, Token, generation};
use crate::memory::{Window, barrier};
use crate::{Error, Memory};

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 1024;
/// Available ring's flags: no interrupt, please (2.7.6). Used ring's: no notification, please (2.7.8).
const SUPPRESS: u16 = 1;
/// Offset of a ring's index, and of its elements.
const INDEX: u32 = 2;
const ELEMENTS: u32 = 4;

/// In place of the number of the descriptor that follows: none does.
const LAST: u16 = u16::MAX;
/// The same: the descriptor is the driver's.
const FREE: u16 = u16::MAX - 1;

/// Where the driver has put a queue: guest-physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Descriptors.
    pub size: u16,
    /// The descriptor table, or the ring.
    pub descriptors: u64,
    /// The available ring, or the driver's event suppression.
    pub driver: u64,
    /// The used ring, or the device's event suppression.
    pub device: u64,
}

/// A virtqueue.
pub struct Split<'m> {
    memory: &'m Memory,
    generation: u32,
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
    /// What it was when the driver was last asked whether it wants an interrupt.
    asked: u16,
    /// Those from `done` on that are complete, by position modulo size.
    completed: [u64; MAX_SIZE as usize / 64],
    /// By descriptor: which one follows it in the chain in flight that it is in, as it was when that was taken, or [`FREE`].
    links: Box<[u16]>,
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
            generation: generation(),
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
            asked: 0,
            completed: [0; MAX_SIZE as usize / 64],
            links: alloc::vec![FREE; place.size.into()].into_boxed_slice(),
        })
    }

    /// A queue that a predecessor served: what it did not publish is taken again. An interrupt is due: its last one may have been lost.
    pub fn restore(memory: &'m Memory, place: &Place, features: u64) -> Result<Self, Error> {
        let mut queue = Self::new(memory, place, features)?;
        let index = queue.used.load_u16(INDEX)?;
        (queue.end, queue.next, queue.done) = (index, index, index);
        (queue.published, queue.asked) = (index, index);
        Ok(queue)
    }

    /// A queue of a predecessor that committed where it was ([`Self::position`]) before it published: what it did not come to publish is
    /// published now, and nothing is done again.
    pub fn resume(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        position: u16,
    ) -> Result<Self, Error> {
        let queue = Self::new(memory, place, features)?;
        queue.used.store_u16(INDEX, position)?;
        Self::restore(memory, place, features)
    }

    /// Where it is once all that is complete has been published.
    #[must_use]
    pub const fn position(&self) -> u16 {
        self.done
    }

    fn slot(&self, position: u16) -> u32 {
        u32::from(position & (self.size - 1))
    }

    /// Buffers taken and not published.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
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
        let head = self.head()?;
        Ok(head.map(|(token, _)| self.chain(token)))
    }

    /// As above, with less to do for a buffer of one part.
    #[inline]
    pub fn take(&mut self) -> Result<Next<'m>, Error> {
        let Some((token, rest)) = self.head()? else {
            return Ok(Next::Nothing);
        };
        let at = DESCRIPTOR * u32::from(token.id);
        let flags = (rest >> 32) as u16;
        if flags & (NEXT | INDIRECT) != 0 {
            return Ok(Next::Chain(self.chain(token)));
        }
        let gpa = self.descriptors.load_u64(at)?;
        Next::one(self.memory, (gpa, rest as u32, flags), token)
    }

    const fn chain(&self, token: Token) -> Chain<'m> {
        let len = self.size as u32;
        Chain::linked(self.memory, self.descriptors, len, self.indirect, token)
    }

    /// The next buffer, and the second word of its first descriptor.
    #[inline]
    fn head(&mut self) -> Result<Option<(Token, u64)>, Error> {
        if self.next == self.end {
            self.look()?;
            if self.next == self.end {
                return Ok(None);
            }
        }
        let position = self.next;
        let slot = ELEMENTS + 2 * self.slot(position);
        let id = self.available.load_u16(slot)?;
        let rest = self.claim(id)?;
        self.next = position.wrapping_add(1);
        let token = Token {
            generation: self.generation,
            position,
            id,
            room: 0,
        };
        Ok(Some((token, rest)))
    }

    /// Takes the chain's descriptors from the driver until it is complete; gives the first one's second word. Where a chain makes no sense
    /// otherwise, who walks through it finds that.
    #[inline]
    fn claim(&mut self, head: u16) -> Result<u64, Error> {
        let (mut at, mut first) = (head, None);
        loop {
            let link = self.links.get_mut(usize::from(at));
            let link = link.ok_or(Error::Descriptor)?;
            if *link != FREE {
                return Err(Error::Overlap);
            }
            // Length, flags, next (2.7.5).
            let rest = self.descriptors.load_u64(DESCRIPTOR * u32::from(at) + 8)?;
            let word = *first.get_or_insert(rest);
            let (flags, next) = ((rest >> 32) as u16, (rest >> 48) as u16);
            if flags & (NEXT | INDIRECT) != NEXT || next >= self.size {
                *link = LAST;
                return Ok(word);
            }
            *link = next;
            at = next;
        }
    }

    /// Gives them back.
    #[inline]
    fn release(&mut self, head: u16) {
        let mut at = head;
        while let Some(link) = self.links.get_mut(usize::from(at)) {
            at = core::mem::replace(link, FREE);
            if at >= FREE {
                return;
            }
        }
    }

    /// Whether the buffer is in flight here: taken, and neither complete nor of a queue that was reset since. While it is not, its
    /// memory is the driver's.
    #[must_use]
    pub fn holds(&self, token: Token) -> bool {
        let ahead = token.position.wrapping_sub(self.done);
        let slot = self.slot(token.position);
        let word = self.completed.get(slot as usize / 64);
        let complete = word.is_none_or(|word| word & 1 << (slot % 64) != 0);
        token.generation == self.generation
            && ahead < self.next.wrapping_sub(self.done)
            && !complete
    }

    /// A buffer is done with, `written` bytes of it written. The driver learns it by [`Self::publish`].
    #[inline]
    pub fn complete(&mut self, token: Token, written: u32) -> Result<(), Error> {
        if !self.holds(token) {
            return Err(Error::Token);
        }
        if written > token.room {
            return Err(Error::Written);
        }
        let slot = self.slot(token.position);
        self.release(token.id);
        let element = u64::from(token.id) | u64::from(written) << 32;
        self.used.store_u64(ELEMENTS + 8 * slot, element)?;
        if token.position == self.done {
            self.done = self.done.wrapping_add(1);
            self.catch_up();
        } else if let Some(word) = self.completed.get_mut(slot as usize / 64) {
            *word |= 1 << (slot % 64);
        }
        Ok(())
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

    /// Tells the driver of all that are complete, in order; true if it wants an interrupt for them.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, Error> {
        self.tell()?;
        self.ask()
    }

    /// As above, but that the driver is not asked. How many have been told of since [`Self::ask`].
    #[inline]
    pub fn tell(&mut self) -> Result<u16, Error> {
        if self.published != self.done {
            self.used.store_u16(INDEX, self.done)?;
            self.published = self.done;
        }
        Ok(self.published.wrapping_sub(self.asked))
    }

    /// Whether the driver wants an interrupt for what it has been told of since this was last asked (2.7.7).
    #[inline]
    pub fn ask(&mut self) -> Result<bool, Error> {
        let (old, new) = (self.asked, self.published);
        if old == new {
            return Ok(false);
        }
        self.asked = new;
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

#[cfg(test)]
mod tests;
