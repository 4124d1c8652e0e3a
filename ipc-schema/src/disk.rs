//! How a device model reads and writes a disk of `store`'s: a channel of requests and answers in shared memory, one for each client.
//!
//! **Who has what.** A disk's contents are *pages* of 4 KiB: those of its image, which nobody writes, and those of the memory that was
//! set aside for what is written. `store` says where each *block* of the disk is; it has the pages themselves not even mapped. The client
//! has, and makes the one copy between them and its guest. So a `store` that dies, or goes mad, touches no contents; and a client that
//! does so touches those of its own disk, which it may write anyhow, and no metadata.
//!
//! **Requests.** [`Op::Read`] is answered with a [`Place`] for each block. A write takes two steps: [`Op::Write`] is answered with pages,
//! the client fills them, and [`Op::Commit`] makes them the disk's. A block that has a page already is written in place. A fresh page holds
//! anything, so a client that writes a part of a block fills the rest from what the answer says was there ([`Base`]).
//!
//! **Order.** Requests are carried out, and answered, in the order in which they were asked, and the client must do what an answer says
//! before it looks at the next. Hence a page that is given up by one request and given out by a later one is never read or filled for both
//! at once.
//!
//! **Deaths.** Requests and answers are in the shared memory, and each may be carried out twice. A successor of `store` goes on at the
//! first that was not answered. What was given out for a write and not committed it does not know: such a commit is
//! [`Status::Stale`], since [`Answer::epoch`] is another, and the client writes again. A successor of the client asks [`Op::Begin`] first,
//! which takes back what its predecessor had been given out, and looks at no answer to what it did not ask itself.
//!
//! **Later drivers** answer the same requests: with pages that they read into, and by carrying out a commit.
//!
//! Trust: none. Each side keeps its own index for itself, bounds the other's, and decodes each word as an allegation. A hostile side can
//! garble this one link.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::ring::{announce, take_announcement};

/// Bytes of a block, and of a page that holds one.
pub const BLOCK: u64 = 4096;
/// Bytes of a sector, the unit of virtio (1.2, 5.2) and of most disks.
pub const SECTOR: u64 = 512;
/// Requests that are under way at a time.
pub const DEPTH: u32 = 64;
/// Blocks that one request reads, writes or commits at most.
pub const SPAN: usize = 16;
/// Blocks of the largest disk.
pub const MAX_BLOCKS: u64 = 1 << 28;

/// Words of a disk's map before those of its blocks.
pub const MAP_HEADER: usize = 16;

/// Words of the map of a disk of so many blocks, which `store` keeps twice.
#[must_use]
pub const fn map_words(blocks: u32) -> u64 {
    MAP_HEADER as u64 + 2 * blocks as u64
}

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Its name.
    pub name: String,
    /// Its blocks.
    pub blocks: u32,
    /// Blocks that its image has, the last perhaps in part.
    pub image: u32,
    /// Pages for what is written; 0: it is read-only.
    pub pages: u32,
}

/// What `store` is told at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreConfig {
    /// The disks; number n's map is region `map:n`.
    pub disks: Vec<Geometry>,
    /// For each client, the number of its disk; client n's channel is region `channel:n`, and its Notification `client:n`.
    pub clients: Vec<u32>,
}

/// What a device model of a disk is told at its start. Its regions are `channel`, `image` and `pages`, its way to `store` the
/// Notification `store`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkConfig {
    /// The disk.
    pub disk: Geometry,
    /// What the guest knows it by.
    pub serial: String,
    /// Its virtqueues.
    pub queues: u16,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// This client is new: what was given out to its predecessor and not committed is taken back.
    Begin = 1,
    /// Where are these blocks?
    Read = 2,
    /// Where may I write these blocks?
    Write = 3,
    /// I have written them.
    Commit = 4,
    /// Nobody needs these blocks any more: they read as zeroes, and their pages are free.
    Discard = 5,
    /// These blocks read as zeroes from now on.
    Zero = 6,
    /// All that was committed is to outlast a loss of power, if anything of this disk does.
    Flush = 7,
}

impl Op {
    const fn of(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Begin,
            2 => Self::Read,
            3 => Self::Write,
            4 => Self::Commit,
            5 => Self::Discard,
            6 => Self::Zero,
            7 => Self::Flush,
            _ => return None,
        })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Well.
    Ok = 1,
    /// No page is left of the disk's memory. Nothing was changed.
    Full = 2,
    /// What this builds on is no longer so: ask again from the start.
    Stale = 3,
    /// What `store` knew of one of these blocks is lost: its checksums are wrong.
    Damaged = 4,
    /// The disk cannot be written.
    ReadOnly = 5,
    /// No such blocks, or more than [`SPAN`]; no such request.
    Malformed = 6,
}

impl Status {
    const fn of(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Ok,
            2 => Self::Full,
            3 => Self::Stale,
            4 => Self::Damaged,
            5 => Self::ReadOnly,
            6 => Self::Malformed,
            _ => return None,
        })
    }
}

/// Where a block is that has no page of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nowhere: it is zeroes.
    Hole,
    /// In the image, at its own place; what lies past the image's end is zeroes.
    Image,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has no page of its own.
    Base(Base),
    /// In this page.
    Page(u32),
    /// To be written to this page, which holds anything; what the block was until now is this.
    Fresh(u32, Base),
}

/// [`Place`] as a word: a page's number, or one of these.
const FRESH: u32 = 1 << 31;
const ON_IMAGE: u32 = 1 << 30;
const HOLE: u32 = ON_IMAGE - 1;
const IMAGE: u32 = ON_IMAGE - 2;

impl Place {
    /// As a word.
    #[must_use]
    pub const fn pack(self) -> u32 {
        match self {
            Self::Base(Base::Hole) => HOLE,
            Self::Base(Base::Image) => IMAGE,
            Self::Page(page) => page,
            Self::Fresh(page, Base::Hole) => page | FRESH,
            Self::Fresh(page, Base::Image) => page | FRESH | ON_IMAGE,
        }
    }

    /// From a word. Whether the page is one of the disk's is for the reader to see.
    #[must_use]
    pub const fn unpack(word: u32) -> Self {
        match word {
            HOLE => Self::Base(Base::Hole),
            IMAGE => Self::Base(Base::Image),
            page if page & FRESH != 0 => {
                let base = if page & ON_IMAGE != 0 {
                    Base::Image
                } else {
                    Base::Hole
                };
                Self::Fresh(page & (ON_IMAGE - 1), base)
            }
            page => Self::Page(page),
        }
    }
}

/// Places of a request's blocks.
pub type Places = [u32; SPAN];

/// A request, as `store` finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked; `None`: no such thing.
    pub op: Option<Op>,
    /// The first block.
    pub first: u32,
    /// Blocks.
    pub count: u32,
    /// Of a commit: the epoch that came with its pages.
    pub epoch: u64,
    /// Of a commit: the pages.
    pub places: Places,
}

impl Request {
    /// One that needs no places.
    #[must_use]
    pub const fn new(op: Op, first: u32, count: u32) -> Self {
        Self {
            op: Some(op),
            first,
            count,
            epoch: 0,
            places: [0; SPAN],
        }
    }
}

/// An answer, as the client finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended. An answer that cannot be read is [`Status::Stale`].
    pub status: Status,
    /// Of a write: what is to come back with the commit.
    pub epoch: u64,
    /// Where the blocks are ([`Place`]).
    pub places: Places,
}

/// A request and its answer.
#[repr(C, align(128))]
struct Slot {
    op: AtomicU32,
    first: AtomicU32,
    count: AtomicU32,
    status: AtomicU32,
    /// The request's number, plus one, that `status` is of.
    answered: AtomicU32,
    _pad: AtomicU32,
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
                _pad: AtomicU32::new(0),
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
        }
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
        DEPTH.saturating_sub(unanswered.max(unseen))
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
        if self.distance() == 0 {
            return None;
        }
        let slot = self.channel.slot(self.tail);
        let op = Op::of(slot.op.load(Ordering::Relaxed));
        let count = slot.count.load(Ordering::Relaxed);
        let places = match op {
            Some(Op::Commit) => slot.places(count),
            _ => [0; SPAN],
        };
        Some(Request {
            op,
            first: slot.first.load(Ordering::Relaxed),
            count,
            epoch: slot.epoch.load(Ordering::Relaxed),
            places,
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
        let head = || self.channel.head.load(Ordering::Acquire);
        announce(&self.channel.store_waits, || head() == self.tail)
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
