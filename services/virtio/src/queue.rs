//! A virtqueue of either kind.

use ipc_schema::state_page::Note;
use ipc_schema::virtio::feature;

use crate::packed::Packed;
use crate::split::{Place, Split};
use crate::{Chain, Error, Memory, Next, Token};

/// A virtqueue, as the driver has chosen it.
pub enum Queue<'m> {
    /// Three rings (2.7).
    Split(Split<'m>),
    /// One ring (2.8).
    Packed(Packed<'m>),
}

/// Calls the same of both.
macro_rules! either {
    ($queue:expr, $inner:ident => $what:expr) => {
        match $queue {
            Queue::Split($inner) => $what,
            Queue::Packed($inner) => $what,
        }
    };
}

impl<'m> Queue<'m> {
    /// A queue that the driver has just enabled. The note is its own.
    pub fn new(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        note: Note<'m>,
    ) -> Result<Self, Error> {
        if features & feature::RING_PACKED != 0 {
            return Packed::new(memory, place, features, note).map(Self::Packed);
        }
        Split::new(memory, place, features).map(Self::Split)
    }

    /// A queue that a predecessor served: what it did not publish is taken again. An interrupt is due: its last one may have been lost.
    pub fn restore(
        memory: &'m Memory,
        place: &Place,
        features: u64,
        note: Note<'m>,
    ) -> Result<Self, Error> {
        if features & feature::RING_PACKED != 0 {
            return Packed::restore(memory, place, features, note).map(Self::Packed);
        }
        Split::restore(memory, place, features).map(Self::Split)
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
        if features & feature::RING_PACKED != 0 {
            return Packed::resume(memory, place, features, note, position).map(Self::Packed);
        }
        // A split queue's is one index.
        Split::resume(memory, place, features, position as u16).map(Self::Split)
    }

    /// Where it is once all that is complete has been published.
    #[must_use]
    pub fn position(&self) -> u64 {
        match self {
            Self::Split(queue) => queue.position().into(),
            Self::Packed(queue) => queue.position(),
        }
    }

    /// No second buffer may be completed before this queue's place is committed and what is complete published.
    #[must_use]
    pub fn must_publish(&self) -> bool {
        match self {
            Self::Split(_) => false,
            Self::Packed(queue) => queue.must_publish(),
        }
    }

    /// Buffers taken and not published.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        either!(self, queue => queue.in_flight())
    }

    /// Takes the next buffer, if one is there.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Chain<'m>>, Error> {
        either!(self, queue => queue.pop())
    }

    /// As above, with less to do for a buffer of one part.
    #[inline]
    pub fn take(&mut self) -> Result<Next<'m>, Error> {
        either!(self, queue => queue.take())
    }

    /// Whether the buffer is in flight here: taken, and neither complete nor of a queue that was reset since. While it is not, its
    /// memory is the driver's.
    #[must_use]
    pub fn holds(&self, token: Token) -> bool {
        either!(self, queue => queue.holds(token))
    }

    /// A buffer is done with, `written` bytes of it written. The driver learns it by [`Self::publish`].
    #[inline]
    pub fn complete(&mut self, token: Token, written: u32) -> Result<(), Error> {
        either!(self, queue => queue.complete(token, written))
    }

    /// Tells the driver of all that are complete, in order; true if it wants an interrupt for them.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, Error> {
        either!(self, queue => queue.publish())
    }

    /// As [`Self::publish`], but that the driver is not asked: so many are to be [asked](Self::ask) for.
    #[inline]
    pub fn tell(&mut self) -> Result<u16, Error> {
        either!(self, queue => queue.tell())
    }

    /// Whether the driver wants an interrupt for what it has been told of since it was last asked. It may have gone on since, so that it
    /// does not want one any more: to ask later is to be slow between both, as a device may.
    #[inline]
    pub fn ask(&mut self) -> Result<bool, Error> {
        either!(self, queue => queue.ask())
    }

    /// Asks for a notification when more becomes available; true if more is there already, so that none may come.
    pub fn arm(&mut self) -> Result<bool, Error> {
        either!(self, queue => queue.arm())
    }

    /// Asks for no notifications.
    pub fn disarm(&mut self) -> Result<(), Error> {
        either!(self, queue => queue.disarm())
    }
}
