//! The device's side of a packed virtqueue (virtio 1.2, 2.8).
//!
//! One ring of descriptors serves both ways: the driver makes a chain available in it, and the device writes over the chain's first
//! descriptor when it is used. Buffers are used in the order in which they were made available, as in a split queue, so that a used
//! descriptor is always written where its chain began.
//!
//! **What a successor needs.** Flags say of a descriptor whether it is available or used in this round, but not how many more its chain
//! had, so that the place where the queue goes on cannot be found in the ring. A [`Note`] keeps it, one word that is written before each
//! buffer is published: where the queue was and where it will be. Publishing is one store of eight bytes, which changes the flags at the
//! old place; so those flags say which of the two places holds, whenever the server dies. They say so as long as the note is the last
//! one: the driver can make the old place available once more, but not go round to it a second time before the device publishes again.
//! Nothing else in the ring was touched, so that what is not published is found as the driver left it, and done again.
//!
//! Who must do nothing again commits where the queue [is](Packed::position) before it publishes: both places, and the one buffer that is
//! complete and whose descriptor is overwritten only then.

mod step;

use alloc::boxed::Box;

use ipc_schema::state_page::Note;
use ipc_schema::virtio::feature;

use crate::chain::{Chain, DESCRIPTOR, INDIRECT, NEXT, Next, Token, generation};
use crate::memory::{Window, barrier};
use crate::split::{MAX_SIZE, Place};
use crate::{Error, Memory};
use step::{At, Buffer, Turn, USED, WRAP, passed};

/// An event suppression structure's flags (2.8.10): events, none, or one at a descriptor.
const ENABLE: u32 = 0;
const DISABLE: u32 = 1;
const AT: u32 = 2;
/// Bytes of it.
const EVENT: u32 = 4;

/// A buffer that was taken: its first descriptor, how many it has, and the first one's word with length and flags.
struct Head {
    first: u16,
    count: u16,
    word: u64,
    token: Token,
}

/// One that was noted: only such a one is published.
struct Noted(Turn);

/// A virtqueue.
pub struct Packed<'m> {
    memory: &'m Memory,
    generation: u32,
    ring: Window<'m>,
    /// What the driver wants to be told of, and what the device wants to be.
    driver: Window<'m>,
    device: Window<'m>,
    note: Note<'m>,
    size: u16,
    indirect: bool,
    event_idx: bool,
    /// Where the next is taken, and published.
    next: At,
    published: At,
    /// The step that led there.
    last: Turn,
    /// Descriptors between both.
    open: u16,
    /// Where the driver was last asked whether it wants an interrupt, and descriptors published since, at most all there are.
    asked: At,
    unasked: u16,
    /// Numbers of the next to be taken, and of the next to be published.
    taken: u16,
    told: u16,
    /// By number modulo their length, which is a power of two.
    buffers: Box<[Buffer]>,
}

impl<'m> Packed<'m> {
    /// A queue that the driver has just enabled.
    pub fn new(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        note: Note<'m>,
    ) -> Result<Self, Error> {
        let queue = Self::at(memory, place, features, note, At::START)?;
        let _ = queue.note(queue.last);
        Ok(queue)
    }

    /// A queue that a predecessor served: what it did not publish is taken again. An interrupt is due: its last one may have been lost.
    pub fn restore(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        note: Note<'m>,
    ) -> Result<Self, Error> {
        let note_word = note.get().ok_or(Error::Place)?;
        // One of the two that it is kept in may be damaged, and nothing else be written before the other is.
        note.set(note_word);
        let turn = Turn::from_word(note_word.into());
        let mut queue = Self::before(memory, place, features, note, turn)?;
        if turn.from != turn.to {
            // Used in this round, or available in the next one.
            let flags = (queue.ring.load_u64(turn.from.word())? >> 48) as u16;
            if (flags & USED != 0) == turn.from.wrap() {
                queue.go_on(turn);
            }
        }
        Ok(queue)
    }

    /// A queue of a predecessor that committed where it was ([`Self::position`]) before it published: what it did not come to publish is
    /// published now, and nothing is done again.
    pub fn resume(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        note: Note<'m>,
        position: u64,
    ) -> Result<Self, Error> {
        let turn = Turn::from_word(position);
        let mut queue = Self::before(memory, place, features, note, turn)?;
        let Noted(turn) = queue.note(turn);
        if turn.from != turn.to {
            let at = turn.from.word();
            // Else it is used in this round, or the driver has made it available for the next one; it comes no further alone.
            if turn.from.available((queue.ring.load_u64(at)? >> 48) as u16) {
                queue.ring.store_u64(at, turn.buffer.used(turn.from))?;
            }
            queue.go_on(turn);
        }
        Ok(queue)
    }

    /// A queue whose next step may be this one of a predecessor's.
    fn before(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        note: Note<'m>,
        turn: Turn,
    ) -> Result<Self, Error> {
        let queue = Self::at(memory, place, features, note, turn.from)?;
        if turn.from.index() >= place.size || turn.to.index() >= place.size {
            return Err(Error::Place);
        }
        Ok(queue)
    }

    const fn go_on(&mut self, turn: Turn) {
        (self.next, self.published, self.asked) = (turn.to, turn.to, turn.to);
        self.last = turn;
    }

    /// The last step, or the one that publishes the next buffer if that is complete: it must be the only one
    /// ([`Self::must_publish`]), and no more than 64 KiB - 1 of it be written.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.turn().unwrap_or(self.last).word()
    }

    /// A buffer is complete, and [`Self::position`] has no room for a second.
    #[must_use]
    pub fn must_publish(&self) -> bool {
        self.turn().is_some()
    }

    fn at(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        note: Note<'m>,
        at: At,
    ) -> Result<Self, Error> {
        let size = place.size;
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(Error::Ring);
        }
        let buffers = alloc::vec![Buffer::default(); usize::from(size).next_power_of_two()];
        // 2.8: sizes and alignments.
        Ok(Self {
            memory,
            generation: generation(),
            ring: memory.window(place.descriptors, DESCRIPTOR * u32::from(size), 16)?,
            driver: memory.window(place.driver, EVENT, 4)?,
            device: memory.window(place.device, EVENT, 4)?,
            note,
            size,
            indirect: features & feature::INDIRECT_DESC != 0,
            event_idx: features & feature::EVENT_IDX != 0,
            next: at,
            published: at,
            last: Turn::none(at),
            open: 0,
            asked: at,
            unasked: 0,
            taken: 0,
            told: 0,
            buffers: buffers.into_boxed_slice(),
        })
    }

    #[inline]
    fn note(&self, turn: Turn) -> Noted {
        // Both places, without the buffer.
        self.note.set(turn.word() as u32);
        Noted(turn)
    }

    fn slot(&self, number: u16) -> usize {
        usize::from(number) & self.buffers.len().wrapping_sub(1)
    }

    /// Buffers taken and not published.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.taken.wrapping_sub(self.told)
    }

    /// Takes the next buffer, if one is there.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Chain<'m>>, Error> {
        Ok(self.head()?.map(|head| self.chain(&head)))
    }

    /// As above, with less to do for a buffer of one part.
    #[inline]
    pub fn take(&mut self) -> Result<Next<'m>, Error> {
        let Some(head) = self.head()? else {
            return Ok(Next::Nothing);
        };
        let flags = (head.word >> 48) as u16;
        if head.count != 1 || flags & INDIRECT != 0 {
            return Ok(Next::Chain(self.chain(&head)));
        }
        let gpa = self.ring.load_u64(DESCRIPTOR * u32::from(head.first))?;
        Next::one(self.memory, (gpa, head.word as u32, flags), head.token)
    }

    fn chain(&self, head: &Head) -> Chain<'m> {
        let (memory, len) = (self.memory, u32::from(self.size));
        let run = (head.first, head.count);
        Chain::packed(memory, self.ring, len, run, self.indirect, head.token)
    }

    #[inline]
    fn head(&mut self) -> Result<Option<Head>, Error> {
        let first = self.next;
        let begin = self.ring.load_u64(first.word())?;
        let mut word = begin;
        if !first.available((word >> 48) as u16) {
            return Ok(None);
        }
        // The descriptors of all that are in flight are the device's: none is in two chains, and none twice in one.
        let room = self.size - self.open;
        let mut count = 1;
        while (word >> 48) as u16 & NEXT != 0 && count < room {
            word = self.ring.load_u64(first.on(count, self.size).word())?;
            count += 1;
        }
        if count > room {
            return Err(Error::Index);
        }
        if (word >> 48) as u16 & NEXT != 0 {
            return Err(Error::Length);
        }
        // The last one has the ID (2.8.6).
        let id = (word >> 32) as u16;
        let position = self.taken;
        let slot = self.slot(position);
        if let Some(buffer) = self.buffers.get_mut(slot) {
            *buffer = Buffer::new(id, count);
        }
        self.taken = position.wrapping_add(1);
        self.open += count;
        self.next = first.on(count, self.size);
        let token = Token {
            generation: self.generation,
            position,
            id,
            room: 0,
        };
        Ok(Some(Head {
            first: first.index(),
            count,
            word: begin,
            token,
        }))
    }

    /// Whether the buffer is in flight here: taken, and neither complete nor of a queue that was reset since. While it is not, its
    /// memory is the driver's.
    #[must_use]
    pub fn holds(&self, token: Token) -> bool {
        let buffer = self.buffers.get(self.slot(token.position));
        self.is_out(token) && buffer.is_some_and(|buffer| !buffer.is_complete())
    }

    /// Whether it was taken here, and not published.
    const fn is_out(&self, token: Token) -> bool {
        token.generation == self.generation
            && token.position.wrapping_sub(self.told) < self.in_flight()
    }

    /// A buffer is done with, `written` bytes of it written. The driver learns it by [`Self::publish`].
    #[inline]
    pub fn complete(&mut self, token: Token, written: u32) -> Result<(), Error> {
        let (slot, is_out) = (self.slot(token.position), self.is_out(token));
        match self.buffers.get_mut(slot) {
            Some(buffer) if is_out && !buffer.is_complete() => {
                if written > token.room {
                    return Err(Error::Written);
                }
                buffer.complete(written);
                Ok(())
            }
            _ => Err(Error::Token),
        }
    }

    /// The next step, if the next buffer is complete.
    #[inline]
    fn turn(&self) -> Option<Turn> {
        if self.told == self.taken {
            return None;
        }
        let buffer = *self.buffers.get(self.slot(self.told))?;
        if !buffer.is_complete() {
            return None;
        }
        let from = self.published;
        let to = from.on(buffer.count(), self.size);
        Some(Turn { from, to, buffer })
    }

    /// Writes a used descriptor: length, ID and flags by one store, behind all that was written before.
    #[inline]
    fn show(&mut self, Noted(turn): Noted) -> Result<(), Error> {
        let word = turn.buffer.used(turn.from);
        self.ring.store_u64(turn.from.word(), word)?;
        self.published = turn.to;
        self.last = turn;
        self.told = self.told.wrapping_add(1);
        self.open -= turn.buffer.count();
        Ok(())
    }

    /// Tells the driver of all that are complete, in order; true if it wants an interrupt for them.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, Error> {
        self.tell()?;
        self.ask()
    }

    /// As above, but that the driver is not asked. How many descriptors it has been told of since [`Self::ask`].
    #[inline]
    pub fn tell(&mut self) -> Result<u16, Error> {
        let open = self.open;
        while let Some(turn) = self.turn() {
            let noted = self.note(turn);
            self.show(noted)?;
        }
        self.unasked = self.unasked.saturating_add(open - self.open);
        if self.unasked > self.size {
            // Only the last round counts.
            (self.asked, self.unasked) = (At(self.published.0 ^ WRAP), self.size);
        }
        Ok(self.unasked)
    }

    /// Whether the driver wants an interrupt for what it has been told of since this was last asked (2.8.10).
    #[inline]
    pub fn ask(&mut self) -> Result<bool, Error> {
        let (old, count) = (self.asked, self.unasked);
        if count == 0 {
            return Ok(false);
        }
        (self.asked, self.unasked) = (self.published, 0);
        barrier();
        let event = self.driver.load_u32(0)?;
        Ok(match event >> 16 & 3 {
            AT if self.event_idx => passed(At(event as u16), old, count.into(), self.size),
            flags => flags != DISABLE,
        })
    }

    /// Asks for a notification when more becomes available (2.8.10); true if more is there already, so that none may come.
    pub fn arm(&mut self) -> Result<bool, Error> {
        let event = if self.event_idx {
            u32::from(self.next.0) | AT << 16
        } else {
            ENABLE << 16
        };
        self.device.store_u32(0, event)?;
        barrier();
        let word = self.ring.load_u64(self.next.word())?;
        Ok(self.next.available((word >> 48) as u16))
    }

    /// Asks for no notifications. With the event index nothing need be said: the driver notifies once it passes the place of the last
    /// [`Self::arm`], and not before it has gone round.
    pub fn disarm(&mut self) -> Result<(), Error> {
        if self.event_idx {
            return Ok(());
        }
        self.device.store_u32(0, DISABLE << 16)
    }
}

#[cfg(test)]
mod tests;
