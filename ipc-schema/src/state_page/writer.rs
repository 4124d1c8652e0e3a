//! The device server's side.

use core::sync::atomic::{Ordering, fence};

use super::{Access, BEGUN, Found, MAX_WORDS, Note, Record, Slot, StatePage};

/// What is to be said of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// There was nothing.
    Nothing,
    /// All was there. A slot may have been damaged or half written, and was mended from the other.
    Whole {
        /// Its number.
        mended: Option<u8>,
    },
    /// The newest record was damaged, and a slot had the same configuration.
    Configuration {
        /// Its number.
        from: u8,
    },
    /// Neither slot was whole.
    Lost,
}

impl Past {
    /// Whether a server goes on after a predecessor.
    #[must_use]
    pub const fn goes_on(self) -> bool {
        matches!(self, Self::Whole { .. } | Self::Configuration { .. })
    }
}

/// The device server's side: one for a page; a server with several threads keeps it under its lock.
pub struct StateWriter<'a> {
    page: &'a StatePage,
    kind: u64,
    sequence: u64,
    access: u64,
    value: u64,
    /// What became of the last access is not known, until the next one is completed.
    unsure: bool,
    past: Past,
}

impl<'a> StateWriter<'a> {
    /// Takes the page over, and the last record if there is an intact one of the same `kind`. A kind is a constant
    /// of the device model; it changes with the meaning of its words, so that no server takes over a layout that it
    /// does not know.
    #[must_use]
    pub fn new(page: &'a StatePage, kind: u64) -> (Self, Option<Record>) {
        let (mut writer, found) = Self::take_over(page, kind);
        match found {
            Found::Newest(record) => (writer, Some(record)),
            Found::Configuration(_) => {
                (writer.sequence, writer.past) = (page.sequence(), Past::Lost);
                (writer.access, writer.value) = (0, 0);
                (writer, None)
            }
            Found::Nothing | Found::Lost => (writer, None),
        }
    }

    /// As [`StateWriter::new`], for a device whose commits of configuration are [lasting](StateWriter::commit_lasting). Who finds anything
    /// but the newest record or nothing commits lastingly before anything else: until then a successor would find the same.
    #[must_use]
    pub fn take_over(page: &'a StatePage, kind: u64) -> (Self, Found) {
        let (found, slot) = page.find(kind);
        let mut writer = Self {
            page,
            kind,
            // Goes on above whatever the page says, so that a reader never sees a sequence number twice.
            sequence: page.sequence(),
            access: 0,
            value: 0,
            unsure: matches!(found, Found::Configuration(_) | Found::Lost),
            past: Past::Lost,
        };
        match &found {
            Found::Nothing => writer.past = Past::Nothing,
            Found::Newest(record) => {
                (writer.access, writer.value) = (record.access, record.value);
                let damaged = page.slots.iter().position(Slot::is_damaged);
                // One of two.
                let mended = damaged.map(|number| number as u8);
                writer.past = Past::Whole { mended };
                page.copy();
            }
            Found::Configuration(record) => {
                (writer.access, writer.value) = (record.access, record.value);
                // The next commit is to write the other slot, and this record must not be named the newest before.
                let next = record.sequence.wrapping_add(2);
                let same = next & 1 == slot as u64;
                writer.sequence = next.wrapping_sub(u64::from(!same));
                writer.past = Past::Configuration { from: slot as u8 };
            }
            Found::Lost => {}
        }
        (writer, found)
    }

    /// What was found.
    #[must_use]
    pub const fn past(&self) -> Past {
        self.past
    }

    /// One of the page's notes, if there are so many.
    #[must_use]
    pub fn note(&self, number: u16) -> Option<Note<'a>> {
        let [first, second] = &self.page.slots;
        let word = first.notes.get(usize::from(number))?;
        let copy = second.notes.get(usize::from(number))?;
        let salt = self.kind ^ u64::from(number).rotate_right(16);
        Some(Note::new([word, copy], salt))
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
        self.done(access, value);
        self.publish(words, 0);
    }

    /// Publishes the state after something that was no access (input, a timer).
    pub fn save(&mut self, words: &[u64]) {
        let begun = self.begun();
        self.publish(words, begun);
    }

    /// [`StateWriter::commit`] of a record whose configuration is another than the last one's.
    pub fn commit_lasting(&mut self, access: Access, value: u32, words: &[u64]) {
        self.done(access, value);
        self.publish_lasting(words, 0);
    }

    /// [`StateWriter::save`] of a record whose configuration is another than the last one's.
    pub fn save_lasting(&mut self, words: &[u64]) {
        let begun = self.begun();
        self.publish_lasting(words, begun);
    }

    #[inline(always)]
    fn done(&mut self, access: Access, value: u32) {
        self.access = access.pack();
        self.value = u64::from(value) | u64::from(access.stamp) << 32;
        self.unsure = false;
    }

    fn begun(&self) -> u64 {
        if self.unsure {
            return BEGUN;
        }
        self.page.current.load(Ordering::Relaxed) & BEGUN
    }

    /// The next record's number.
    #[inline(always)]
    fn next(&self) -> u64 {
        // 63 bits never run out; masking keeps a scribbled start value harmless, and 0 stands for no record.
        (self.sequence.wrapping_add(1) & (u64::MAX >> 1)).max(1)
    }

    fn publish(&mut self, words: &[u64], begun: u64) {
        debug_assert!(words.len() <= MAX_WORDS);
        let sequence = self.next();
        let access = (self.access, self.value);
        let slot = self.page.slot(sequence);
        slot.write(self.kind, sequence, access, words);
        self.name(sequence, begun);
    }

    #[cold]
    fn publish_lasting(&mut self, words: &[u64], begun: u64) {
        debug_assert!(words.len() <= MAX_WORDS);
        let sequence = self.next();
        let access = (self.access, self.value);
        let (slot, other) = (self.page.slot(sequence), self.page.slot(!sequence));
        slot.write(self.kind, sequence, access, words);
        slot.overtaken.store(0, Ordering::Relaxed);
        let old = other.sequence.load(Ordering::Relaxed);
        other.overtaken.store(old, Ordering::Relaxed);
        self.name(sequence, begun);
        fence(Ordering::Release);
        other.write(self.kind, sequence, access, words);
    }

    #[inline(always)]
    fn name(&mut self, sequence: u64, begun: u64) {
        fence(Ordering::Release);
        self.page
            .current
            .store(sequence << 1 | begun, Ordering::Release);
        self.sequence = sequence;
    }
}
