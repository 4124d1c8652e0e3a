//! A split queue against a driver's side of its own.

mod lies;

use super::*;
use crate::Part;
use crate::tests::{
    AREA as AVAILABLE, DATA, DEVICE_AREA as USED, RING as TABLE, Side, TABLES, World, memory,
    parts, place, step, through_deaths,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

/// The driver.
struct Driver<'m> {
    memory: &'m Memory,
    size: u16,
    event_idx: bool,
    free: Vec<u16>,
    available: u16,
    used: u16,
    /// By head: number, descriptors that it holds.
    out: BTreeMap<u16, (u32, Vec<u16>)>,
    order: VecDeque<u32>,
}

impl<'m> Driver<'m> {
    fn new(memory: &'m Memory, size: u16, event_idx: bool) -> Self {
        let (free, out, order) = ((0..size).collect(), BTreeMap::new(), VecDeque::new());
        let (available, used) = (0, 0);
        Self {
            memory,
            size,
            event_idx,
            free,
            available,
            used,
            out,
            order,
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

    fn descriptor(&self, table: u64, index: u16, (gpa, len): (u64, u32), flags: u16, next: u16) {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory
            .write(table + 16 * u64::from(index), &bytes)
            .unwrap();
    }
}

impl Side for Driver<'_> {
    fn offer(&mut self, number: u32, parts: &[Part], indirect: bool) -> bool {
        let need = if indirect { 1 } else { parts.len() };
        if self.free.len() < need {
            return false;
        }
        let own: Vec<u16> = self.free.drain(..need).collect();
        let inner = TABLES + 0x100 * u64::from(own[0]);
        for (i, part) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let flags = u16::from(!last) | u16::from(part.writable) << 1;
            let (table, index, next) = if indirect {
                (inner, i as u16, if last { 0 } else { i as u16 + 1 })
            } else {
                let next = own.get(i + 1).copied().unwrap_or(0);
                (TABLE, own[i], next)
            };
            self.descriptor(table, index, (part.gpa, part.len), flags, next);
        }
        if indirect {
            self.descriptor(TABLE, own[0], (inner, 16 * parts.len() as u32), 4, 0);
        }
        let slot = u64::from(self.available % self.size);
        self.put(AVAILABLE + 4 + 2 * slot, own[0]);
        self.available = self.available.wrapping_add(1);
        self.put(AVAILABLE + 2, self.available);
        self.out.insert(own[0], (number, own));
        self.order.push_back(number);
        true
    }

    fn reap(&mut self) -> Vec<(u32, u32)> {
        let mut all = Vec::new();
        while self.half(USED + 2) != self.used {
            let mut bytes = [0; 8];
            let slot = u64::from(self.used % self.size);
            self.memory.read(USED + 4 + 8 * slot, &mut bytes).unwrap();
            let word = u64::from_le_bytes(bytes);
            let (number, own) = self.out.remove(&(word as u16)).expect("a buffer of ours");
            assert_eq!(self.order.pop_front(), Some(number), "in order");
            self.free.extend(own);
            self.used = self.used.wrapping_add(1);
            all.push((number, (word >> 32) as u32));
        }
        if self.event_idx {
            self.put(AVAILABLE + 4 + 2 * u64::from(self.size), self.used);
        }
        all
    }

    fn told(&self) -> u32 {
        self.half(USED + 2).wrapping_sub(self.used).into()
    }

    fn kicks(&self) -> bool {
        let event = USED + 4 + 8 * u64::from(self.size);
        match self.event_idx {
            true => self.half(event) == self.available.wrapping_sub(1),
            false => self.half(USED) == 0,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_buffer_is_used_once(
        size in 0u32..6, event_idx: bool, steps in prop::collection::vec(step(), 0..400)
    ) {
        let (memory, size) = (memory(), 1u16 << size);
        let features = feature::INDIRECT_DESC | if event_idx { feature::EVENT_IDX } else { 0 };
        let world = World { memory: &memory, place: place(size), features };
        let driver = Driver::new(&memory, size, event_idx);
        through_deaths(&world, driver, steps, |_, _| ())?;
    }

    /// Memory full of anything: every buffer ends, and what it gives is inside.
    #[test]
    fn whatever_is_in_memory(
        size in 0u32..8, indirect: bool, event_idx: bool, seed in prop::collection::vec(any::<u64>(), 64),
        small in prop::collection::vec(0u16..16, 256), index: u16
    ) {
        let memory = memory();
        for at in 0..0x2000u64 {
            let word = seed[(at as usize * 7) % 64].rotate_left(at as u32) ^ (at << 17);
            memory.write(at * 8, &word.to_le_bytes()).unwrap();
        }
        // Most descriptors lead somewhere.
        for (i, pair) in small.chunks_exact(2).enumerate() {
            let at = TABLE + 16 * i as u64;
            memory.write(at, &(u64::from(pair[0]) * 0x1010).to_le_bytes()).unwrap();
            memory.write(at + 8, &(u32::from(pair[1]) * 16).to_le_bytes()).unwrap();
            let flags = [pair[0] % 8, pair[1]];
            memory.write(at + 12, &flags.map(u16::to_le_bytes).concat()).unwrap();
            memory.write(AVAILABLE + 4 + 2 * i as u64, &pair[0].to_le_bytes()).unwrap();
        }
        memory.write(AVAILABLE + 2, &(index % 300).to_le_bytes()).unwrap();
        let features = if indirect { feature::INDIRECT_DESC } else { 0 }
            | if event_idx { feature::EVENT_IDX } else { 0 };
        let mut queue = Split::new(&memory, &place(1 << size), features).unwrap();
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
            prop_assert!(queue.complete(chain.token(), 0).is_ok());
            let _ = queue.publish().unwrap();
        }
    }
}

#[test]
fn a_driver_that_asks_for_quiet_has_it() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 8, false);
    let mut queue = Split::new(&memory, &place(8), 0).unwrap();
    for (flags, wanted) in [(0, true), (1, false), (0, true)] {
        driver.put(AVAILABLE, flags);
        assert!(driver.offer(0, &parts(0, 1), false));
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain.token(), 0).unwrap();
        assert_eq!(queue.publish(), Ok(wanted));
        assert_eq!(queue.publish(), Ok(false), "nothing new");
        assert_eq!(driver.reap().len(), 1);
    }
    queue.disarm().unwrap();
    assert_eq!(driver.half(USED), 1);
    assert_eq!((queue.arm(), driver.half(USED)), (Ok(false), 0));
    assert!(driver.offer(1, &parts(1, 1), false));
    assert_eq!(queue.arm(), Ok(true), "it came before it was asked for");
}

/// What is complete and committed, but not published, is published by the successor; the rest is taken again.
#[test]
fn a_successor_publishes_what_was_committed() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 4, false);
    let mut queue = Split::new(&memory, &place(4), 0).unwrap();
    for number in 0..6 {
        assert!(driver.offer(number, &parts(number, 1), false));
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!(queue.position(), number as u16);
        if number < 5 {
            queue.complete(chain.token(), 0).unwrap();
        }
        if number < 3 {
            assert_eq!(queue.publish(), Ok(true));
            assert_eq!(driver.reap().len(), 1);
        }
    }
    let position = queue.position();
    assert_eq!((position, driver.half(USED + 2)), (5, 3));
    for _ in 0..2 {
        let mut queue = Split::resume(&memory, &place(4), 0, position).unwrap();
        assert_eq!((queue.position(), driver.half(USED + 2)), (5, 5));
        assert!(queue.pop().unwrap().is_some() && queue.pop().unwrap().is_none());
    }
    assert_eq!(driver.reap().len(), 2);
}

#[test]
fn what_a_queue_gave_is_not_completed_in_the_next_one() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 8, false);
    let mut queue = Split::new(&memory, &place(8), 0).unwrap();
    assert!(driver.offer(0, &parts(0, 4), false));
    let mut chain = queue.pop().unwrap().unwrap();
    let early = chain.token();
    assert_eq!(chain.by_ref().count(), 1);
    // Reset, and enabled again at the same place with the same buffer.
    memory.write(USED, &[0; 4]).unwrap();
    let mut again = Split::new(&memory, &place(8), 0).unwrap();
    let same = again.pop().unwrap().unwrap().token();
    assert!(!again.holds(chain.token()) && again.holds(same));
    assert_eq!(again.complete(chain.token(), 0), Err(Error::Token));
    assert_eq!(again.publish(), Ok(false));
    assert_eq!(driver.half(USED + 2), 0);
    assert_eq!(again.complete(same, 0), Ok(()));
    // Nothing was handed out to be written when the first token was asked for.
    assert!(parts(1, 4)[0].len > 0 && driver.offer(1, &parts(1, 4), false));
    let mut chain = again.pop().unwrap().unwrap();
    assert_eq!(again.complete(chain.token(), 1), Err(Error::Written));
    assert!(chain.next().is_some());
    assert_eq!(again.complete(chain.token(), 1), Ok(()));
    assert_eq!(early.room, 0);
}
