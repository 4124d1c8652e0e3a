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
//! **Drivers** of real disks answer the same requests, to a client that asks at most [`DRIVER_DEPTH`] at a time. Request number n has its
//! own [`SPAN`] pages, from page n modulo that depth times `SPAN` on: a read is answered with those, once the disk has filled them, and
//! so is a write; a commit is answered when the disk has taken what it says ([`Request::skip`]). Until then the pages of a write are not given out
//! again: what would need them is [`Status::Stale`]. The pages say nothing that outlives an answer.
//!
//! Trust: none. Each side keeps its own index for itself, bounds the other's, and decodes each word as an allegation. A hostile side can
//! garble this one link.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::proto::PciFunction;

mod channel;

pub use channel::{CHANNEL_BYTES, Channel, Client, Provider};

/// Bytes of a block, and of a page that holds one.
pub const BLOCK: u64 = 4096;
/// Bytes of a sector, the unit of virtio (1.2, 5.2) and of most disks.
pub const SECTOR: u64 = 512;
/// Requests that are under way at a time.
pub const DEPTH: u32 = 64;
/// The same, when a driver answers.
pub const DRIVER_DEPTH: u32 = 16;
/// Pages of a client that a driver answers.
pub const DRIVER_PAGES: u32 = DRIVER_DEPTH * SPAN as u32;
/// Sectors of a block.
pub const BLOCK_SECTORS: u32 = (BLOCK / SECTOR) as u32;
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
    /// Packed ones are offered.
    pub packed: bool,
    /// Who answers.
    pub back: Back,
}

/// Who answers what a device model asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Back {
    /// `store`: the pages are the disk's contents, and the disk is read-only if it has none.
    Store,
    /// The driver of a real disk: the pages are those of requests under way.
    Driver {
        /// The disk cannot be written.
        read_only: bool,
    },
}

impl BlkConfig {
    /// Whether the disk can be written.
    #[must_use]
    pub const fn writable(&self) -> bool {
        match self.back {
            Back::Store => self.disk.pages != 0,
            Back::Driver { read_only } => !read_only,
        }
    }

    /// Whether [`Op::Zero`] is understood; [`Op::Discard`] is, of a disk that can be written.
    #[must_use]
    pub const fn zeroes(&self) -> bool {
        matches!(self.back, Back::Store)
    }

    /// Requests that may be under way at a time.
    #[must_use]
    pub const fn depth(&self) -> u32 {
        match self.back {
            Back::Store => DEPTH,
            Back::Driver { .. } => DRIVER_DEPTH,
        }
    }
}

/// A client of a driver's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverClient {
    /// Its disk: the partition of this name, which may be larger. `pages` is [`DRIVER_PAGES`], and there is no image.
    pub disk: Geometry,
    /// It may not be written.
    pub read_only: bool,
}

/// What the driver of a disk is told at its start. Client n's channel is region `channel:n`, its pages are region `pages:n`, and its
/// Notification is `client:n`; region `dma` is the driver's own, and `bar:n` the function's memory of that number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverConfig {
    /// Its clients.
    pub clients: Vec<DriverClient>,
    /// The disk's PCI function.
    pub function: PciFunction,
    /// Physical addresses of regions `dma` and `pages:n`, by name.
    pub physical: Vec<(String, u64)>,
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
    /// Nobody needs these blocks any more: they read as zeroes, and their pages are free. On a driver's disk they read as anything.
    Discard = 5,
    /// These blocks read as zeroes from now on. Drivers do not understand it.
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
    /// Of a commit: sectors of its first block before what was written, and of its last one behind it. Of what is skipped the pages hold
    /// anything, if a driver gave them.
    pub skip: (u8, u8),
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
            skip: (0, 0),
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
