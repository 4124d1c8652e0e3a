//! The shared memory of a channel, and its two ends.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Answer, DEPTH, Op, Places, Request, SPAN, Status};
use crate::ring::{announce, take_announcement};

/// A request and its answer.
#[repr(C, align(128))]
struct Slot {
    op: AtomicU32,
    first: AtomicU32,
    count: AtomicU32,
    status: AtomicU32,
    /// The request's number, plus one, that `status` is of.
    answered: AtomicU32,
    /// Of a commit: [`Request::skip`], a byte each.
    skip: AtomicU32,
    epoch: AtomicU64,
    places: [AtomicU32; SPAN],
    _rest: [AtomicU64; 4],
}

/// The layout of the shared memory. Zeroes are a valid, empty channel.
#[repr(C, align(4096))]
pub struct Channel {
    /// Requests ever asked, modulo 2^32. Written by the client only.
    head: AtomicU32,
    /// The client sleeps until there are answers. Set by the client, cleared by `store`.
    client_waits: AtomicU32,
    _client_line: [AtomicU32; 30],
    /// Requests ever answered, modulo 2^32. Written by `store` only.
    tail: AtomicU32,
    /// `store` sleeps until there are requests. Set by `store`, cleared by the client.
    store_waits: AtomicU32,
    _store_line: [AtomicU32; 30],
    slots: [Slot; DEPTH as usize],
    _unused: [AtomicU64; UNUSED],
}

const UNUSED: usize = (3 * 4096 - 256 - 128 * DEPTH as usize) / 8;

/// Bytes of a channel.
pub const CHANNEL_BYTES: u64 = size_of::<Channel>() as u64;
const _: () = assert!(size_of::<Slot>() == 128 && CHANNEL_BYTES == 3 * 4096);

impl Channel {
    /// An empty channel; the same as zeroes.
    #[must_use]
    pub const fn new() -> Self {
        const fn slot() -> Slot {
            Slot {
                op: AtomicU32::new(0),
                first: AtomicU32::new(0),
                count: AtomicU32::new(0),
                status: AtomicU32::new(0),
                answered: AtomicU32::new(0),
                skip: AtomicU32::new(0),
                epoch: AtomicU64::new(0),
                places: [const { AtomicU32::new(0) }; SPAN],
                _rest: [const { AtomicU64::new(0) }; 4],
            }
        }
        Self {
            head: AtomicU32::new(0),
            client_waits: AtomicU32::new(0),
            _client_line: [const { AtomicU32::new(0) }; 30],
            tail: AtomicU32::new(0),
            store_waits: AtomicU32::new(0),
            _store_line: [const { AtomicU32::new(0) }; 30],
            slots: [const { slot() }; DEPTH as usize],
            _unused: [const { AtomicU64::new(0) }; UNUSED],
        }
    }

    fn slot(&self, number: u32) -> &Slot {
        // Masked to DEPTH - 1, so the lookup is always within `slots`.
        &self.slots[(number & (DEPTH - 1)) as usize]
    }
}

impl Default for Channel {
    fn default() -> Self {
        Self::new()
    }
}

impl Slot {
    fn set_places(&self, places: &[u32]) {
        for (to, &from) in self.places.iter().zip(places) {
            to.store(from, Ordering::Relaxed);
        }
    }

    fn places(&self, count: u32) -> Places {
        let mut places = [0; SPAN];
        for (to, from) in places.iter_mut().zip(&self.places).take(count as usize) {
            *to = from.load(Ordering::Relaxed);
        }
        places
    }
}

/// The client's end. One for a channel.
pub struct Client<'a> {
    channel: &'a Channel,
    /// Requests written; those from the channel's head on are not yet shown.
    head: u32,
    /// Answers taken, or of no interest.
    seen: u32,
    /// Most requests under way.
    depth: u32,
}

impl<'a> Client<'a> {
    /// Takes the end over. Answers to a predecessor's requests are not seen; the first request should be [`Op::Begin`].
    #[must_use]
    pub fn new(channel: &'a Channel) -> Self {
        let head = channel.head.load(Ordering::Relaxed);
        Self {
            channel,
            head,
            seen: head,
            depth: DEPTH,
        }
    }

    /// Has at most so many requests under way.
    #[must_use]
    pub fn with_depth(self, depth: u32) -> Self {
        let depth = depth.min(DEPTH);
        Self { depth, ..self }
    }

    fn tail(&self) -> u32 {
        self.channel.tail.load(Ordering::Acquire)
    }

    /// Requests that can be asked now; none if `store`'s index is nonsense.
    #[must_use]
    pub fn room(&self) -> u32 {
        // After a predecessor, `store` may be behind what this client looks at.
        let unanswered = self.head.wrapping_sub(self.tail());
        let unseen = self.head.wrapping_sub(self.seen);
        self.depth.saturating_sub(unanswered.max(unseen))
    }

    /// Writes a request; false if there is no room. `store` sees it by [`Client::publish`].
    #[must_use]
    pub fn ask(&mut self, request: &Request) -> bool {
        if self.room() == 0 {
            return false;
        }
        let slot = self.channel.slot(self.head);
        slot.op
            .store(request.op.map_or(0, |op| op as u32), Ordering::Relaxed);
        slot.first.store(request.first, Ordering::Relaxed);
        slot.count.store(request.count, Ordering::Relaxed);
        slot.epoch.store(request.epoch, Ordering::Relaxed);
        if request.op == Some(Op::Commit) {
            slot.set_places(request.places.get(..request.count as usize).unwrap_or(&[]));
            let (before, behind) = request.skip;
            let skip = u32::from(before) | u32::from(behind) << 8;
            slot.skip.store(skip, Ordering::Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        true
    }

    /// Shows `store` all that was asked. True if it sleeps and must be signalled.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.channel.head.load(Ordering::Relaxed) == self.head {
            return false;
        }
        self.channel.head.store(self.head, Ordering::Release);
        take_announcement(&self.channel.store_waits)
    }

    fn waiting(&self) -> u32 {
        let waiting = self.tail().wrapping_sub(self.seen);
        // More than were asked: `store` is still behind, or its index is nonsense.
        if waiting > self.head.wrapping_sub(self.seen) {
            0
        } else {
            waiting
        }
    }

    /// The next answer: to the requests asked, in their order. `count` is how many places it has.
    #[must_use]
    pub fn answer(&mut self, count: u32) -> Option<Answer> {
        if self.waiting() == 0 {
            return None;
        }
        let slot = self.channel.slot(self.seen);
        self.seen = self.seen.wrapping_add(1);
        let status = Status::of(slot.status.load(Ordering::Relaxed));
        let this = slot.answered.load(Ordering::Relaxed) == self.seen;
        Some(Answer {
            status: status.filter(|_| this).unwrap_or(Status::Stale),
            epoch: slot.epoch.load(Ordering::Relaxed),
            places: slot.places(count),
        })
    }

    /// Announces that the client is about to sleep. `false`: there are answers, do not sleep.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        announce(&self.channel.client_waits, || self.waiting() == 0)
    }
}

/// `store`'s end. One for a channel.
pub struct Provider<'a> {
    channel: &'a Channel,
    /// Requests answered.
    tail: u32,
}

impl<'a> Provider<'a> {
    /// Takes the end over: goes on at the first request that was not answered.
    #[must_use]
    pub fn new(channel: &'a Channel) -> Self {
        let tail = channel.tail.load(Ordering::Relaxed);
        let mut provider = Self { channel, tail };
        let _ = provider.distance();
        provider
    }

    /// Requests that wait. If the indices are nonsense, all are passed over: the client finds no answers and asks again.
    fn distance(&mut self) -> u32 {
        let head = self.channel.head.load(Ordering::Acquire);
        let distance = head.wrapping_sub(self.tail);
        if distance <= DEPTH {
            return distance;
        }
        self.tail = head;
        self.channel.tail.store(head, Ordering::Release);
        0
    }

    /// The next request that is not answered yet.
    #[must_use]
    pub fn peek(&mut self) -> Option<Request> {
        self.peek_at(0)
    }

    /// The number, modulo 2^32, of the next request that is not answered yet.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.tail
    }

    /// The request that comes so many behind the next that is not answered yet.
    #[must_use]
    pub fn peek_at(&mut self, ahead: u32) -> Option<Request> {
        if self.distance() <= ahead {
            return None;
        }
        let slot = self.channel.slot(self.tail.wrapping_add(ahead));
        let op = Op::of(slot.op.load(Ordering::Relaxed));
        let count = slot.count.load(Ordering::Relaxed);
        let (places, skip) = match op {
            Some(Op::Commit) => {
                let [before, behind, ..] = slot.skip.load(Ordering::Relaxed).to_le_bytes();
                (slot.places(count), (before, behind))
            }
            _ => ([0; SPAN], (0, 0)),
        };
        Some(Request {
            op,
            first: slot.first.load(Ordering::Relaxed),
            count,
            epoch: slot.epoch.load(Ordering::Relaxed),
            places,
            skip,
        })
    }

    /// Answers that request. What a commit brought stays as it is, so that a successor finds it if this one dies now.
    pub fn answer(&mut self, status: Status, places: Option<(u64, &[u32])>) {
        let slot = self.channel.slot(self.tail);
        if let Some((epoch, places)) = places {
            slot.epoch.store(epoch, Ordering::Relaxed);
            slot.set_places(places);
        }
        slot.status.store(status as u32, Ordering::Relaxed);
        self.tail = self.tail.wrapping_add(1);
        slot.answered.store(self.tail, Ordering::Relaxed);
        self.channel.tail.store(self.tail, Ordering::Release);
    }

    /// True if the client sleeps and must now be signalled. To be asked after answering.
    #[must_use]
    pub fn needs_signal(&self) -> bool {
        take_announcement(&self.channel.client_waits)
    }

    /// Announces that `store` is about to sleep. `false`: there are requests, do not sleep.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        self.prepare_sleep_behind(0)
    }

    /// The same, when so many requests that are not answered yet have been looked at. A client that takes back what it has asked has
    /// nothing to be looked at.
    #[must_use]
    pub fn prepare_sleep_behind(&self, taken: u32) -> bool {
        let head = || self.channel.head.load(Ordering::Acquire);
        announce(&self.channel.store_waits, || {
            head().wrapping_sub(self.tail) <= taken
        })
    }
}

#[cfg(test)]
mod tests;
