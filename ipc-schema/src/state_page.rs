//! The state page of a device server: the little that must outlive the process, in one shared page.
//!
//! Written by the server; read by its successor, and by the VMM when a routed port access was lost after the server
//! had taken it. Two slots are written in turn, each with a sequence number and a checksum; one word, `current`, names
//! the valid one, so a death at any instruction leaves the old record or the new one, never a mixture.
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

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::abi::vm::PortAccess;

pub use note::Note;

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
    pub const VIRTIO_CONSOLE: u64 = u64::from_le_bytes(*b"vio-con\x01");
}

/// Most words of state that a record holds.
pub const MAX_WORDS: usize = 214;
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
    words: [AtomicU64; MAX_WORDS],
    /// In the first slot the notes, which are no part of a record; in the second nothing.
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
    /// The kernel's stamp: tells it from the same access done before. 0 for one that the VMM asks for.
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

    fn slot(&self, sequence: u64) -> &Slot {
        let [even, odd] = &self.slots;
        if sequence & 1 == 0 { even } else { odd }
    }

    /// The server has been asked ([`ASKED`]) and answers: it waits for its next event.
    pub fn answer(&self) {
        self.alive.fetch_add(1, Ordering::Release);
    }

    /// Number of the last commit; 0 if there was none. Not verified.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.current.load(Ordering::Acquire) >> 1
    }

    /// Reads and verifies the record that `current` names.
    fn verified(&self, kind: u64, current: u64) -> Option<Record> {
        let sequence = current >> 1;
        let slot = self.slot(sequence);
        let length = slot.length.load(Ordering::Relaxed);
        let access = slot.access.load(Ordering::Relaxed);
        let value = slot.value.load(Ordering::Relaxed);
        let count = usize::try_from(length)
            .ok()
            .filter(|&count| count <= MAX_WORDS)?;
        if sequence == 0
            || slot.sequence.load(Ordering::Relaxed) != sequence
            || slot.kind.load(Ordering::Relaxed) != kind
        {
            return None;
        }
        let mut mix = Mix::header(sequence, kind, length, access, value);
        let mut words = [0; MAX_WORDS];
        for (into, word) in words.iter_mut().zip(&slot.words).take(count) {
            *into = word.load(Ordering::Relaxed);
            mix.add(*into);
        }
        let intact = slot.checksum.load(Ordering::Relaxed) == mix.0;
        intact.then_some(Record {
            sequence,
            access,
            value,
            length: count,
            words,
        })
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

impl Default for StatePage {
    fn default() -> Self {
        Self::new()
    }
}

/// The device server's side: one for a page; a server with several threads keeps it under its lock.
pub struct StateWriter<'a> {
    page: &'a StatePage,
    kind: u64,
    sequence: u64,
    access: u64,
    value: u64,
}

impl<'a> StateWriter<'a> {
    /// Takes the page over, and the last record if there is an intact one of the same `kind`. A kind is a constant
    /// of the device model; it changes with the meaning of its words, so that no server takes over a layout that it
    /// does not know.
    #[must_use]
    pub fn new(page: &'a StatePage, kind: u64) -> (Self, Option<Record>) {
        let record = page.load(kind);
        let (access, value) = record
            .as_ref()
            .map_or((0, 0), |record| (record.access, record.value));
        // Goes on above whatever the page says, so that a reader never sees a sequence number twice.
        (
            Self {
                page,
                kind,
                sequence: page.sequence(),
                access,
                value,
            },
            record,
        )
    }

    /// One of the page's notes, if there are so many.
    #[must_use]
    pub fn note(&self, number: u16) -> Option<Note<'a>> {
        let [first, _] = &self.page.slots;
        let word = first.notes.get(usize::from(number))?;
        let salt = self.kind ^ u64::from(number).rotate_right(16);
        Some(Note::new(word, salt))
    }

    /// Marks that an access was taken and is not yet done: one store, and the first thing to do with an access.
    pub fn begin(&self) {
        self.page
            .current
            .store(self.sequence << 1 | BEGUN, Ordering::Release);
    }

    /// Publishes the state after `access`, which returned `value`. To be called before the reply. Words beyond
    /// [`MAX_WORDS`] are a mistake of the device's author and are not stored.
    pub fn commit(&mut self, access: Access, value: u32, words: &[u64]) {
        self.access = access.pack();
        self.value = u64::from(value) | u64::from(access.stamp) << 32;
        self.publish(words, 0);
    }

    /// Publishes the state after something that was no access (input, a timer).
    pub fn save(&mut self, words: &[u64]) {
        let begun = self.page.current.load(Ordering::Relaxed) & BEGUN;
        self.publish(words, begun);
    }

    fn publish(&mut self, words: &[u64], begun: u64) {
        debug_assert!(words.len() <= MAX_WORDS);
        // 63 bits never run out; masking keeps a scribbled start value harmless, and 0 stands for no record.
        let sequence = (self.sequence.wrapping_add(1) & (u64::MAX >> 1)).max(1);
        let slot = self.page.slot(sequence);
        let length = words.len().min(MAX_WORDS) as u64;
        let mut mix = Mix::header(sequence, self.kind, length, self.access, self.value);
        slot.sequence.store(sequence, Ordering::Relaxed);
        slot.kind.store(self.kind, Ordering::Relaxed);
        slot.length.store(length, Ordering::Relaxed);
        slot.access.store(self.access, Ordering::Relaxed);
        slot.value.store(self.value, Ordering::Relaxed);
        for (cell, &word) in slot.words.iter().zip(words).take(MAX_WORDS) {
            cell.store(word, Ordering::Relaxed);
            mix.add(word);
        }
        slot.checksum.store(mix.0, Ordering::Relaxed);
        fence(Ordering::Release);
        self.page
            .current
            .store(sequence << 1 | begun, Ordering::Release);
        self.sequence = sequence;
    }
}

#[cfg(test)]
mod tests;
