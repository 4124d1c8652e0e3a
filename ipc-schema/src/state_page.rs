//! The state page of a device server: the little that must outlive the process, in one shared page.
//!
//! Written by the server; read by its successor, and by the VMM when a routed port access was lost after the server
//! had taken it. Two slots are written in turn, each with a sequence number and a checksum; one word, `current`, says the number
//! of the valid record, so a death at any instruction leaves the old record or the new one, never a mixture.
//!
//! **Scribbles.** A server may have written anything anywhere in the page before it died; what a checksum does not vouch for is not
//! believed. That costs nothing as long as one slot is whole, for two reasons, and neither takes an old record for the newest:
//!
//! * A server that is asked whether it is alive copies its record into the other slot before it [answers](StatePage::answer), and so
//!   does a successor before it goes on. A copy counts while `current` says its very number, so one that was overtaken is none.
//!   Commits pay nothing for it: the next one writes over the copy.
//! * A device may divide its words into *configuration*, which changes rarely and is found nowhere else, and places, which can be found
//!   elsewhere too. A commit that changes configuration is [lasting](StateWriter::commit_lasting): it ends with the same record in both
//!   slots. All other commits leave the configuration as it was, so that at rest **any whole slot has the newest configuration**,
//!   whatever `current` says: [`Found::Configuration`]. On its way a lasting commit marks the other slot as overtaken before `current`
//!   names the new record and so before anybody can see what it did; a slot that is marked counts only with the number in `current`. So
//!   a death between those stores and a scribble after it leave nothing, rather than the older configuration.
//!
//! If neither slot is whole the record is [lost](Found::Lost), and the device must say so to its guest. (A page that was zeroed as a
//! whole reads as a new one: nothing in it tells that it ever was another.)
//!
//! What a lost access did is told by the same word: the server sets *begun* when it takes an access, and the commit
//! that carries the access's effects clears it. An access without side effects need not commit at all: it leaves
//! *begun* set, and the VMM simply tries it again. The record also names the access that it completed, with the stamp that the kernel
//! gave it, which covers the few instructions between the kernel's hand-over and [`StateWriter::begin`]: there an equal access may have
//! been completed before.
//!
//! Beside the records there are *notes*, single words which check themselves and are written by one store ([`Note`]).
//!
//! Cost: `begin` is one store; a commit of four words is about twenty stores and eight multiplications.
//!
//! Trust: none between the parties. A reader bounds every index and verifies the checksum; a scribbled page reads as
//! no record. The checksum finds accidents; it does not authenticate.

mod note;
mod writer;

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::abi::vm::PortAccess;

pub use note::Note;
pub use writer::{Past, StateWriter};

/// Kinds of records: which device wrote it, and in which layout. A number changes with the meaning of the words.
pub mod kind {
    /// `device-uart`.
    pub const UART: u64 = u64::from_le_bytes(*b"16550\0\0\x02");
    /// `device-rtc`.
    pub const RTC: u64 = u64::from_le_bytes(*b"146818\0\x01");
    /// `device-testdev`.
    pub const TESTDEV: u64 = u64::from_le_bytes(*b"testdev\x01");
    /// `device-virtio-rng`.
    pub const VIRTIO_RNG: u64 = u64::from_le_bytes(*b"vio-rng\x02");
    /// `device-virtio-blk`.
    pub const VIRTIO_BLK: u64 = u64::from_le_bytes(*b"vio-blk\x01");
    /// `device-virtio-net`.
    pub const VIRTIO_NET: u64 = u64::from_le_bytes(*b"vio-net\x02");
    /// `device-virtio-console`.
    pub const VIRTIO_CONSOLE: u64 = u64::from_le_bytes(*b"vio-con\x02");
}

/// Most words of state that a record holds.
pub const MAX_WORDS: usize = 213;
/// Notes of a page.
pub const NOTES: usize = 32;
/// The bit of a server's Notification by which root asks it whether it is alive.
pub const ASKED: u64 = 1 << 62;
/// Where in the page the answer is: a word that has changed.
pub const ALIVE_OFFSET: u64 = 8;
const BEGUN: u64 = 1;
const HEADER_WORDS: usize = 8;
const SLOT_WORDS: usize = 252;

/// One record: header, then state.
#[repr(C)]
struct Slot {
    sequence: AtomicU64,
    /// Identifies the device and the layout of its words; see [`StateWriter::new`].
    kind: AtomicU64,
    /// Words of state in use.
    length: AtomicU64,
    /// The completed access, [`Access::pack`]ed.
    access: AtomicU64,
    /// What the completed access returned; above that, its stamp.
    value: AtomicU64,
    checksum: AtomicU64,
    /// The number of the record here, if one with another configuration was about to follow it.
    overtaken: AtomicU64,
    words: [AtomicU64; MAX_WORDS],
    /// In both slots the same notes, which are no part of a record.
    notes: [AtomicU64; NOTES],
}

/// The layout of the shared page. A page of zeroes holds no record.
#[repr(C, align(4096))]
pub struct StatePage {
    /// Sequence number of the valid record times two, plus [`BEGUN`].
    current: AtomicU64,
    /// How often the server has answered that it is alive, modulo 2^64.
    alive: AtomicU64,
    _reserved: [AtomicU64; HEADER_WORDS - 2],
    slots: [Slot; 2],
}

const _: () = assert!(core::mem::offset_of!(StatePage, alive) as u64 == ALIVE_OFFSET);
const _: () = assert!(core::mem::offset_of!(StatePage, current) == 0);

/// Where in the page the slot is whose record its first word names: offset and length in bytes.
#[must_use]
pub const fn newest_slot(first_word: u64) -> (u64, u64) {
    let slot = size_of::<Slot>() as u64;
    let first = core::mem::offset_of!(StatePage, slots) as u64;
    (first + (first_word >> 1 & 1) * slot, slot)
}
const _: () = assert!(size_of::<StatePage>() == 4096 && size_of::<Slot>() == 8 * SLOT_WORDS);

/// A port access as the exit route reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The absolute port number.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// True for OUT.
    pub write: bool,
    /// The value written; 0 for IN.
    pub value: u32,
    /// The stamp, the kernel's or the VMM's: tells it from the same access done before.
    pub stamp: u32,
}

impl Access {
    /// A routed access, from what the kernel tells the server and, with `RouteLost`, the VMM: the absolute port, and
    /// the value of an OUT.
    #[must_use]
    pub const fn of(access: PortAccess, value: u32) -> Self {
        let write = !access.input();
        let mask = match access.width() {
            1 => 0xff,
            2 => 0xffff,
            _ => u32::MAX,
        };
        let value = if write { value & mask } else { 0 };
        Self {
            port: access.port(),
            width: access.width(),
            write,
            value,
            stamp: access.stamp(),
        }
    }

    /// Never 0, which stands for "no access yet".
    fn pack(self) -> u64 {
        u64::from(self.value) << 32
            | u64::from(self.port) << 16
            | u64::from(self.width) << 8
            | u64::from(self.write) << 1
            | 1
    }
}

/// What became of an access that was lost after the server had taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its effects are not in the state: do it again when the server is back.
    NotDone,
    /// Its effects are in the state, and it returned this value: do not do it again.
    Done(u32),
}

/// A record as read from the page.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    sequence: u64,
    access: u64,
    value: u64,
    length: usize,
    words: [u64; MAX_WORDS],
}

impl Record {
    /// The state words.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        self.words.get(..self.length).unwrap_or(&[])
    }

    /// The number of commits so far.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// What a predecessor has left.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing: there was none, or it committed nothing.
    Nothing,
    /// The last record.
    Newest(Record),
    /// The last record is damaged; this one, of an earlier commit or not known to be the last, has the same configuration, if all commits
    /// that changed it were [lasting](StateWriter::commit_lasting).
    Configuration(Record),
    /// A record, or something else that is none of ours: all of it is damaged.
    Lost,
}

/// A multiply-mix hash: one multiplication and one rotation a word.
struct Mix(u64);

impl Mix {
    fn new() -> Self {
        Self(0x6a09_e667_f3bc_c908)
    }

    fn add(&mut self, word: u64) {
        // The odd multiplier keeps the step a bijection, so no single changed word goes unnoticed.
        self.0 = (self.0 ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }

    fn header(sequence: u64, kind: u64, length: u64, access: u64, value: u64) -> Self {
        let mut mix = Self::new();
        for word in [sequence, kind.rotate_left(32) ^ length, access, value] {
            mix.add(word);
        }
        mix
    }
}

impl StatePage {
    /// No record; the same as a page of zeroes.
    #[must_use]
    pub const fn new() -> Self {
        const fn slot() -> Slot {
            Slot {
                sequence: AtomicU64::new(0),
                kind: AtomicU64::new(0),
                length: AtomicU64::new(0),
                access: AtomicU64::new(0),
                value: AtomicU64::new(0),
                checksum: AtomicU64::new(0),
                overtaken: AtomicU64::new(0),
                words: [const { AtomicU64::new(0) }; MAX_WORDS],
                notes: [const { AtomicU64::new(0) }; NOTES],
            }
        }
        Self {
            current: AtomicU64::new(0),
            alive: AtomicU64::new(0),
            _reserved: [const { AtomicU64::new(0) }; HEADER_WORDS - 2],
            slots: [slot(), slot()],
        }
    }

    /// Scribbles over the slot of the record that `current` names, or over the other one: for tests.
    #[doc(hidden)]
    pub fn spoil(&self, other: bool) {
        let slot = self.slot(self.sequence() ^ u64::from(other));
        let head = [&slot.sequence, &slot.value, &slot.checksum, &slot.overtaken];
        for (noise, cell) in (1..).zip(head.into_iter().chain(&slot.words).chain(&slot.notes)) {
            cell.fetch_xor(
                0x9e37_79b9_7f4a_7c15u64.wrapping_mul(noise),
                Ordering::Relaxed,
            );
        }
    }

    fn slot(&self, sequence: u64) -> &Slot {
        let [even, odd] = &self.slots;
        if sequence & 1 == 0 { even } else { odd }
    }

    /// The server has been asked ([`ASKED`]) and answers: it waits for its next event. Nothing is being committed, so that its record can
    /// be copied.
    pub fn answer(&self) {
        self.copy();
        self.alive.fetch_add(1, Ordering::Release);
    }

    /// Number of the last commit; 0 if there was none. Not verified.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.current.load(Ordering::Acquire) >> 1
    }

    /// Reads and verifies the record that `current` names, in the slot that was written first or in its copy.
    fn verified(&self, kind: u64, current: u64) -> Option<Record> {
        let sequence = current >> 1;
        let slots = [self.slot(sequence), self.slot(!sequence)];
        let mut whole = slots.into_iter().filter_map(|slot| slot.whole(kind));
        whole.find(|record| record.sequence == sequence)
    }

    /// Makes both slots hold the record that `current` names, if one of them does.
    fn copy(&self) {
        let sequence = self.sequence();
        let slots = [self.slot(sequence), self.slot(!sequence)];
        // Word by word: servers come here on small stacks.
        match slots.map(|slot| slot.number() == Some(sequence)) {
            [true, false] => slots[1].fill(slots[0]),
            [false, true] => slots[0].fill(slots[1]),
            [true, true] => {}
            [false, false] => return,
        }
        // Whatever was about to follow has not.
        for slot in slots {
            slot.overtaken.store(0, Ordering::Release);
        }
    }

    /// What there is of a device of this `kind`, and which slot it is in.
    fn find(&self, kind: u64) -> (Found, usize) {
        if let Some(record) = self.load(kind) {
            let slot = record.sequence & 1;
            return (Found::Newest(record), slot as usize);
        }
        let mut best: Option<(Record, usize)> = None;
        for (number, slot) in self.slots.iter().enumerate() {
            let record = slot.whole(kind);
            let record = record.filter(|r| slot.overtaken.load(Ordering::Relaxed) != r.sequence);
            if let Some(record) = record
                && best
                    .as_ref()
                    .is_none_or(|(b, _)| b.sequence < record.sequence)
            {
                best = Some((record, number));
            }
        }
        let [even, _] = &self.slots;
        match best {
            Some((record, number)) => (Found::Configuration(record), number),
            // The first commit writes the odd slot, and may have been cut short.
            None if self.sequence() == 0 && even.sequence.load(Ordering::Relaxed) == 0 => {
                (Found::Nothing, 0)
            }
            None => (Found::Lost, 0),
        }
    }

    /// The last committed record of a device of this `kind`; `None` if there is none or it is damaged.
    #[must_use]
    pub fn load(&self, kind: u64) -> Option<Record> {
        // A live server may commit twice while we read; the checksum notices and the second look meets quieter days.
        (0..4).find_map(|_| self.verified(kind, self.current.load(Ordering::Acquire)))
    }

    /// For the VMM, once the server is dead or its late reply is sure to be dropped: what became of `access`.
    #[must_use]
    pub fn outcome(&self, kind: u64, access: Access) -> Outcome {
        let current = self.current.load(Ordering::Acquire);
        match self.verified(kind, current) {
            Some(record)
                if current & BEGUN == 0
                    && record.access == access.pack()
                    && record.value >> 32 == u64::from(access.stamp) =>
            {
                Outcome::Done(record.value as u32)
            }
            _ => Outcome::NotDone,
        }
    }
}

/// What is before a record's words.
struct Head {
    sequence: u64,
    kind: u64,
    length: usize,
    access: u64,
    value: u64,
}

impl Slot {
    /// The record here, if it is of this `kind` and what was written.
    fn whole(&self, kind: u64) -> Option<Record> {
        let mut words = [0; MAX_WORDS];
        let mut into = words.iter_mut();
        let head = self.verified(|word| {
            if let Some(into) = into.next() {
                *into = word;
            }
        })?;
        (head.kind == kind).then_some(Record {
            sequence: head.sequence,
            access: head.access,
            value: head.value,
            length: head.length,
            words,
        })
    }

    /// The number of the record here, whatever it is of, if it is what was written.
    fn number(&self) -> Option<u64> {
        self.verified(|_| ()).map(|head| head.sequence)
    }

    /// Reads what is here, every word of it once, and gives the record's words and then its head; `None`: it is none, and the words are
    /// nobody's.
    #[inline(always)]
    fn verified(&self, mut each: impl FnMut(u64)) -> Option<Head> {
        let cells = [
            &self.sequence,
            &self.kind,
            &self.length,
            &self.access,
            &self.value,
        ];
        let [sequence, kind, words, access, value] = cells.map(|cell| cell.load(Ordering::Relaxed));
        let length = usize::try_from(words)
            .ok()
            .filter(|&length| length <= MAX_WORDS && sequence != 0)?;
        let mut mix = Mix::header(sequence, kind, words, access, value);
        for word in self.words.iter().take(length) {
            let word = word.load(Ordering::Relaxed);
            each(word);
            mix.add(word);
        }
        let intact = self.checksum.load(Ordering::Relaxed) == mix.0;
        intact.then_some(Head {
            sequence,
            kind,
            length,
            access,
            value,
        })
    }

    /// Whether something was written here that is no record: by a scribble, or by half a commit.
    fn is_damaged(&self) -> bool {
        self.checksum.load(Ordering::Relaxed) != 0 && self.number().is_none()
    }

    /// Writes a record.
    #[inline(always)]
    fn write(&self, kind: u64, sequence: u64, (access, value): (u64, u64), words: &[u64]) {
        let length = words.len().min(MAX_WORDS) as u64;
        let mut mix = Mix::header(sequence, kind, length, access, value);
        self.sequence.store(sequence, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.length.store(length, Ordering::Relaxed);
        self.access.store(access, Ordering::Relaxed);
        self.value.store(value, Ordering::Relaxed);
        for (cell, &word) in self.words.iter().zip(words).take(MAX_WORDS) {
            cell.store(word, Ordering::Relaxed);
            mix.add(word);
        }
        self.checksum.store(mix.0, Ordering::Relaxed);
    }

    /// Makes this a copy of another's record.
    fn fill(&self, from: &Self) {
        // Who sees a word of it sees `current`, too: until then this slot's record was the valid one.
        fence(Ordering::Release);
        let cells = self.cells().zip(from.cells());
        for (to, from) in cells {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// All of a record, the checksum last.
    fn cells(&self) -> impl Iterator<Item = &AtomicU64> {
        let head = [
            &self.sequence,
            &self.kind,
            &self.length,
            &self.access,
            &self.value,
        ];
        head.into_iter().chain(&self.words).chain([&self.checksum])
    }
}

impl Default for StatePage {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
