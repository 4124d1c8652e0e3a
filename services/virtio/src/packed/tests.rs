//! A packed queue against a driver's side of its own.

mod lies;

use super::*;
use crate::tests::{
    AREA, DATA, DEVICE_AREA, RING, Side, TABLES, World, memory, parts, place, step, through_deaths,
};
use crate::{Part, Queue};
use ipc_schema::state_page::{StatePage, StateWriter};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

/// Flags as the specification numbers them (2.8.1, 2.8.6, 2.8.7, 2.8.10).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL_BIT: u16 = 7;
const USED_BIT: u16 = 15;
const QUIET: u16 = 1;
const AT_ONE: u16 = 2;

/// Where a side is, and in which round.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Spot {
    index: u16,
    wrap: bool,
}

const BEGIN: Spot = Spot {
    index: 0,
    wrap: true,
};

impl Spot {
    fn after(mut self, count: u16, size: u16) -> Self {
        for _ in 0..count {
            self.index += 1;
            if self.index == size {
                (self.index, self.wrap) = (0, !self.wrap);
            }
        }
        self
    }
}

/// The driver.
struct Driver<'m> {
    memory: &'m Memory,
    size: u16,
    event_idx: bool,
    ids: Vec<u16>,
    room: u16,
    next: Spot,
    used: Spot,
    /// The last offer: where it began, and its descriptors.
    last: (Spot, u16),
    /// By ID: number, descriptors.
    out: BTreeMap<u16, (u32, u16)>,
    order: VecDeque<u32>,
}

impl<'m> Driver<'m> {
    fn new(memory: &'m Memory, size: u16, event_idx: bool) -> Self {
        Self {
            memory,
            size,
            event_idx,
            ids: (0..size).collect(),
            room: size,
            next: BEGIN,
            used: BEGIN,
            last: (BEGIN, 0),
            out: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    fn half(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(gpa, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn put(&self, gpa: u64, value: u16) {
        self.memory.write(gpa, &value.to_le_bytes()).unwrap();
    }

    fn descriptor(&self, table: u64, index: u16, (gpa, len): (u64, u32), id: u16, flags: u16) {
        let at = table + 16 * u64::from(index);
        self.memory.write(at, &gpa.to_le_bytes()).unwrap();
        self.memory.write(at + 8, &len.to_le_bytes()).unwrap();
        self.put(at + 12, id);
        self.put(at + 14, flags);
    }

    /// The used descriptor there, if it is one: ID and length.
    fn used_at(&self, spot: Spot) -> Option<(u16, u32)> {
        let at = RING + 16 * u64::from(spot.index);
        let flags = self.half(at + 14);
        let bits = [AVAIL_BIT, USED_BIT].map(|bit| flags >> bit & 1 != 0);
        let mut len = [0; 4];
        self.memory.read(at + 8, &mut len).unwrap();
        let len = u32::from_le_bytes(len);
        // Without the flag there is no length (2.8.5).
        assert!(bits != [spot.wrap; 2] || len == 0 || flags & WRITE != 0);
        (bits == [spot.wrap; 2]).then(|| (self.half(at + 12), len))
    }
}

impl Side for Driver<'_> {
    fn offer(&mut self, number: u32, parts: &[Part], indirect: bool) -> bool {
        let need = if indirect { 1 } else { parts.len() as u16 };
        if self.room < need {
            return false;
        }
        let id = self.ids.remove(number as usize % self.ids.len());
        let inner = TABLES + 0x100 * u64::from(id);
        let of = |part: &Part| if part.writable { WRITE } else { 0 };
        let mut all = Vec::new();
        if indirect {
            for (i, part) in parts.iter().enumerate() {
                // All but one flag say nothing there, and no ID.
                let noise = number as u16 & (NEXT | INDIRECT);
                let descriptor = (part.gpa, part.len);
                self.descriptor(inner, i as u16, descriptor, 0xFFFF, of(part) | noise);
            }
            all.push(((inner, 16 * parts.len() as u32), INDIRECT));
        } else {
            all.extend(parts.iter().map(|part| ((part.gpa, part.len), of(part))));
        }
        let first = self.next;
        // The first one last (2.8.21).
        for (i, (descriptor, flags)) in all.iter().enumerate().rev() {
            let spot = first.after(i as u16, self.size);
            let last = i + 1 == all.len();
            let whose = u16::from(spot.wrap) << AVAIL_BIT | u16::from(!spot.wrap) << USED_BIT;
            let flags = flags | whose | if last { 0 } else { NEXT };
            self.descriptor(
                RING,
                spot.index,
                *descriptor,
                if last { id } else { 0xFFFF },
                flags,
            );
        }
        self.last = (first, need);
        self.next = first.after(need, self.size);
        self.room -= need;
        self.out.insert(id, (number, need));
        self.order.push_back(number);
        true
    }

    fn reap(&mut self) -> Vec<(u32, u32)> {
        let mut all = Vec::new();
        while self.room < self.size
            && let Some((id, len)) = self.used_at(self.used)
        {
            let (number, count) = self.out.remove(&id).expect("a buffer of ours");
            assert_eq!(self.order.pop_front(), Some(number), "in order");
            self.ids.push(id);
            self.room += count;
            self.used = self.used.after(count, self.size);
            all.push((number, len));
        }
        if self.event_idx {
            self.put(AREA, self.used.index | u16::from(self.used.wrap) << 15);
            self.put(AREA + 2, AT_ONE);
        }
        all
    }

    fn told(&self) -> u32 {
        let (mut spot, mut count) = (self.used, 0);
        while (count as usize) < self.out.len()
            && let Some((id, _)) = self.used_at(spot)
        {
            spot = spot.after(self.out[&id].1, self.size);
            count += 1;
        }
        count
    }

    fn kicks(&self) -> bool {
        match self.half(DEVICE_AREA + 2) {
            0 => true,
            QUIET => false,
            _ => {
                let event = self.half(DEVICE_AREA);
                let event = Spot {
                    index: event & 0x7FFF,
                    wrap: event >> 15 != 0,
                };
                let (first, count) = self.last;
                (0..count).any(|i| first.after(i, self.size) == event)
            }
        }
    }
}

/// Publishes half as many buffers as that, and of the next one only the note if it is odd.
fn die(queue: &mut Queue<'_>, how_far: u8) {
    let Queue::Packed(queue) = queue else {
        panic!("it is packed");
    };
    for _ in 0..how_far / 2 {
        if let Some(turn) = queue.turn() {
            let noted = queue.note(turn);
            queue.show(noted).unwrap();
        }
    }
    if let Some(turn) = queue.turn().filter(|_| !how_far.is_multiple_of(2)) {
        let _ = queue.note(turn);
    }
}

fn features(event_idx: bool) -> u64 {
    let all = feature::INDIRECT_DESC | feature::RING_PACKED;
    all | if event_idx { feature::EVENT_IDX } else { 0 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_buffer_is_used_once(
        size in 1u16..34, event_idx: bool, steps in prop::collection::vec(step(), 0..400)
    ) {
        let memory = memory();
        let world = World { memory: &memory, place: place(size), features: features(event_idx) };
        let driver = Driver::new(&memory, size, event_idx);
        through_deaths(&world, driver, steps, die)?;
    }

    /// Who commits the place before each buffer is published, and dies anywhere: nothing is used twice, or with another length.
    #[test]
    fn what_was_committed_is_not_done_again(
        size in 1u16..6, steps in prop::collection::vec((1u16..4, 0u32..99, 0u8..4, any::<bool>()), 1..60)
    ) {
        let memory = memory();
        let mut driver = Driver::new(&memory, size, false);
        let page = StatePage::new();
        let note = StateWriter::new(&page, 7).0.note(0).unwrap();
        let mut queue = Packed::new(&memory, &place(size), features(false), note).unwrap();
        let mut committed = queue.position();
        for (number, (count, len, death, late)) in (0u32..).zip(steps) {
            let count = count.min(size);
            let parts = vec![Part { gpa: DATA, len: 100, writable: true }; count.into()];
            prop_assert!(driver.offer(number, &parts, false));
            let mut chain = queue.pop().unwrap().unwrap();
            prop_assert_eq!(chain.by_ref().count(), usize::from(count));
            if death == 1 {
                // Nothing of it was committed.
                queue.complete(chain.token(), 7).unwrap();
                prop_assert!(queue.must_publish());
                queue = Packed::resume(&memory, &place(size), features(false), note, committed).unwrap();
                prop_assert_eq!(queue.position(), committed);
                chain = queue.pop().unwrap().unwrap();
                prop_assert_eq!(chain.by_ref().count(), usize::from(count));
            }
            prop_assert!(!queue.must_publish());
            queue.complete(chain.token(), len).unwrap();
            committed = queue.position();
            if death == 2 {
                queue = Packed::resume(&memory, &place(size), features(false), note, committed).unwrap();
                prop_assert_eq!(queue.publish(), Ok(false), "it is already");
            } else {
                prop_assert_eq!(queue.publish(), Ok(true));
            }
            prop_assert_eq!((queue.position(), queue.must_publish()), (committed, false));
            if death == 3 && !late {
                queue = Packed::resume(&memory, &place(size), features(false), note, committed).unwrap();
            }
            prop_assert_eq!(driver.reap(), [(number, len)]);
            if death == 3 && late {
                // The driver has its buffer back, and may give the next one while nobody is there.
                queue = Packed::resume(&memory, &place(size), features(false), note, committed).unwrap();
            }
            prop_assert!(queue.pop().unwrap().is_none());
        }
    }

    /// Memory full of anything: every buffer ends, and what it gives is inside.
    #[test]
    fn whatever_is_in_memory(
        size in 1u16..130, features in 0u64..4, seed in prop::collection::vec(any::<u64>(), 64),
        small in prop::collection::vec(0u16..16, 256), note: u32, position: u64
    ) {
        let memory = memory();
        for at in 0..0x2000u64 {
            let word = seed[(at as usize * 7) % 64].rotate_left(at as u32) ^ (at << 17);
            memory.write(at * 8, &word.to_le_bytes()).unwrap();
        }
        // Most descriptors lead somewhere, and are available.
        for (i, pair) in small.chunks_exact(2).enumerate() {
            let at = RING + 16 * i as u64;
            memory.write(at, &(u64::from(pair[0]) * 0x1010).to_le_bytes()).unwrap();
            memory.write(at + 8, &(u32::from(pair[1]) * 16).to_le_bytes()).unwrap();
            let whose = if pair[1] == 15 { 0 } else { 1 << AVAIL_BIT };
            memory.write(at + 14, &((pair[0] % 8) | whose).to_le_bytes()).unwrap();
        }
        let features = feature::RING_PACKED | features << 28;
        let page = StatePage::new();
        let (writer, _) = StateWriter::new(&page, 7);
        let own = writer.note(0).unwrap();
        let mut queues = vec![Packed::new(&memory, &place(size), features, own).unwrap()];
        own.set(note);
        queues.extend(Packed::restore(&memory, &place(size), features, own).ok());
        queues.extend(Packed::resume(&memory, &place(size), features, own, position).ok());
        for mut queue in queues {
            while let Ok(Some(chain)) = queue.pop() {
                let mut count = 0;
                let mut written = false;
                for part in chain.clone() {
                    count += 1;
                    prop_assert!(count <= 1024 + 256, "it ends");
                    let Ok(part) = part else { continue };
                    prop_assert!(memory.check(part.gpa, part.len.into()).is_ok());
                    prop_assert!(part.writable || !written);
                    written = part.writable;
                }
                prop_assert!(queue.open <= size);
                if count % 3 != 0 {
                    prop_assert!(queue.complete(chain.token(), 0).is_ok());
                }
                let _ = queue.publish().unwrap();
                // What it overwrites is not available once more.
                if queue.taken > 500 {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_driver_that_asks_for_quiet_has_it() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 5, false);
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let mut queue = Packed::new(&memory, &place(5), features(false), note).unwrap();
    for (flags, wanted) in [(0, true), (QUIET, false), (0, true)] {
        driver.put(AREA + 2, flags);
        assert!(driver.offer(0, &parts(0, 1), false));
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.token(), 0).unwrap();
        assert_eq!(queue.publish(), Ok(wanted));
        assert_eq!(queue.publish(), Ok(false), "nothing new");
        assert_eq!(driver.reap().len(), 1);
    }
    queue.disarm().unwrap();
    assert_eq!(driver.half(DEVICE_AREA + 2), QUIET);
    assert_eq!((queue.arm(), driver.half(DEVICE_AREA + 2)), (Ok(false), 0));
    assert!(driver.offer(1, &parts(1, 1), false));
    assert_eq!(queue.arm(), Ok(true), "it came before it was asked for");
}

/// Scribbles over one slot after the other, while nothing happens in the queue.
#[test]
fn a_queue_at_rest_is_found_after_scribbles() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 5, false);
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let mut queue = Packed::new(&memory, &place(5), features(false), note).unwrap();
    assert!(driver.offer(0, &parts(0, 1), false));
    let chain = queue.pop().unwrap().unwrap();
    queue.complete(chain.token(), 0).unwrap();
    assert_eq!(queue.publish(), Ok(true));
    for other in [false, true, false] {
        page.spoil(other);
        queue = Packed::restore(&memory, &place(5), features(false), note).unwrap();
    }
    assert_eq!(driver.reap().len(), 1);
    assert!(driver.offer(1, &parts(1, 1), false));
    assert!(queue.pop().unwrap().is_some());
    for other in [false, true] {
        page.spoil(other);
    }
    let lost = Packed::restore(&memory, &place(5), features(false), note);
    assert_eq!(lost.err(), Some(Error::Place));
}

#[test]
fn an_event_is_waited_for() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 5, true);
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let mut queue = Packed::new(&memory, &place(5), features(true), note).unwrap();
    // One by one, told of the seventh.
    driver.put(AREA, 1);
    driver.put(AREA + 2, AT_ONE);
    for number in 0..10 {
        assert!(driver.offer(number, &parts(0, 1), false));
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.token(), 0).unwrap();
        assert_eq!(queue.publish(), Ok(number == 6), "{number}");
        let event = [driver.half(AREA), driver.half(AREA + 2)];
        assert_eq!(driver.reap().len(), 1);
        driver.put(AREA, event[0]);
        driver.put(AREA + 2, event[1]);
    }
}

/// The one descriptor of a ring is given again at once: its flags are of the next round.
#[test]
fn what_was_given_again_meanwhile_stays() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 1, false);
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let mut queue = Packed::new(&memory, &place(1), features(false), note).unwrap();
    for number in 0..5 {
        assert!(driver.offer(number, &parts(0, 1), false));
        if number != 0 {
            let position = queue.position();
            queue = Packed::resume(&memory, &place(1), features(false), note, position).unwrap();
            assert_eq!(driver.reap(), []);
        }
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.token(), 0).unwrap();
        assert_eq!(queue.publish(), Ok(true));
        assert_eq!(driver.reap(), [(number, 0)]);
    }
    for wrong in [1, 1 << 16] {
        let lost = Packed::resume(&memory, &place(1), features(false), note, wrong);
        assert_eq!(lost.err(), Some(Error::Place));
    }
}

/// The event may be at any descriptor of a buffer, in this round or the next one.
#[test]
fn events_are_passed_once() {
    for size in 1..7 {
        for begin in 0..2 * size {
            let spot = |n: u16| BEGIN.after(n, size);
            let at = |spot: Spot| At(spot.index | u16::from(spot.wrap) << 15);
            for count in 1..=size {
                for event in begin..begin + 2 * size {
                    let passes = passed(at(spot(event)), at(spot(begin)), count.into(), size);
                    assert_eq!(passes, event < begin + count);
                }
            }
        }
    }
}
