//! What the tests of both kinds of queue share: a driver's side is a [`Side`], which knows the specification and nothing of the device's
//! side; and what must hold whatever both sides do.

use crate::split::Place;
use crate::{Error, Memory, Next, Part, Queue, Token};
use ipc_schema::state_page::{StatePage, StateWriter};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Where a queue's areas are, indirect tables, and data.
pub const RING: u64 = 0x1000;
pub const AREA: u64 = 0x2000;
pub const DEVICE_AREA: u64 = 0x3000;
pub const TABLES: u64 = 0x8000;
pub const DATA: u64 = 1 << 32;

pub fn memory() -> Memory {
    Memory::owned(&[(0, 0x1_0000), (DATA, 0x1_0000)])
}

pub fn place(size: u16) -> Place {
    Place {
        size,
        descriptors: RING,
        driver: AREA,
        device: DEVICE_AREA,
    }
}

/// A driver.
pub trait Side {
    /// Makes a buffer available; false if there is no room.
    fn offer(&mut self, number: u32, parts: &[Part], indirect: bool) -> bool;
    /// What was used: numbers and lengths.
    fn reap(&mut self) -> Vec<(u32, u32)>;
    /// How many are used and not reaped.
    fn told(&self) -> u32;
    /// Whether it would notify of the last offer.
    fn kicks(&self) -> bool;
}

pub fn parts(number: u32, shape: u8) -> Vec<Part> {
    let (read, write) = (u32::from(shape & 3), u32::from(shape >> 2 & 3));
    let count = (read + write).max(1);
    (0..count)
        .map(|i| Part {
            gpa: DATA + u64::from((number * 8 + i) % 0x1000),
            len: number % 97 + i,
            writable: i >= read,
        })
        .collect()
}

/// Writable bytes, and how many of them a device writes.
pub fn room(parts: &[Part]) -> u32 {
    parts.iter().filter(|p| p.writable).map(|p| p.len).sum()
}
pub fn written(number: u32, room: u32) -> u32 {
    room - room.min(number % 4)
}

/// What a queue is made in.
pub struct World<'m> {
    pub memory: &'m Memory,
    pub place: Place,
    pub features: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Offer(u8, bool),
    Pop,
    Complete(u8),
    Publish,
    /// As above, but that the driver is asked later.
    Tell,
    Reap,
    /// How far a publication had come.
    Die(u8),
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(s, i)| Step::Offer(s, i)),
        4 => Just(Step::Pop),
        4 => any::<u8>().prop_map(Step::Complete),
        2 => Just(Step::Publish),
        1 => Just(Step::Tell),
        1 => Just(Step::Reap),
        1 => (0u8..8).prop_map(Step::Die),
    ]
}

/// The next buffer's parts, by either way to take it.
fn next(queue: &mut Queue<'_>, quick: bool) -> Option<(Vec<Part>, Token)> {
    let next = match quick {
        true => queue.take().unwrap(),
        false => Next::Chain(queue.pop().unwrap()?),
    };
    match next {
        Next::Nothing => None,
        Next::One(part, token) => Some((vec![part], token)),
        Next::Chain(mut chain) => {
            let parts = chain.by_ref().map(Result::unwrap).collect();
            Some((parts, chain.token()))
        }
    }
}

/// Whatever happens in whatever order, deaths at any moment included: each buffer comes as it was given, is used once and in order, the
/// driver is interrupted for it whenever it has asked to be, and notifies whenever it is asked to.
pub fn through_deaths(
    world: &World<'_>,
    mut driver: impl Side,
    steps: Vec<Step>,
    die: impl Fn(&mut Queue<'_>, u8),
) -> Result<(), TestCaseError> {
    let page = StatePage::new();
    let (writer, _) = StateWriter::new(&page, 7);
    let note = writer.note(1).unwrap();
    let World {
        memory,
        place,
        features,
    } = world;
    let mut queue = Queue::new(memory, place, *features, note).unwrap();
    let mut given: BTreeMap<u32, Vec<Part>> = BTreeMap::new();
    let mut flying: Vec<(u32, Token, u32)> = Vec::new();
    let mut dead: Vec<Token> = Vec::new();
    // The number of the next to be offered, to be taken, to be told, to be asked for, and to be seen by the driver.
    let (mut number, mut taken, mut told, mut asked, mut seen) = (0u32, 0u32, 0u32, 0u32, 0u32);
    // The last look of the driver came before `told` went on, and no interrupt since.
    let mut interrupted = false;
    // Nothing was there when it was armed.
    let mut asleep = false;
    let end = [Step::Pop, Step::Complete(0), Step::Publish].repeat(70);
    for step in steps.into_iter().chain(end) {
        match step {
            Step::Offer(shape, indirect) => {
                let parts = parts(number, shape);
                if driver.offer(number, &parts, indirect) {
                    given.insert(number, parts);
                    number += 1;
                    prop_assert!(!asleep || driver.kicks(), "it is not woken");
                    asleep = false;
                }
            }
            Step::Pop => match next(&mut queue, taken.is_multiple_of(2)) {
                Some((got, token)) => {
                    prop_assert_eq!(&got, &given[&taken]);
                    flying.push((taken, token, room(&got)));
                    taken += 1;
                    prop_assert_eq!(u32::from(queue.in_flight()), taken - told);
                }
                None => {
                    prop_assert_eq!(taken, number);
                    prop_assert!(!queue.arm().unwrap());
                    asleep = true;
                }
            },
            Step::Complete(which) if !flying.is_empty() => {
                let (number, token, room) = flying.remove(usize::from(which) % flying.len());
                prop_assert_eq!(queue.complete(token, room + 1), Err(Error::Written));
                prop_assert!(queue.holds(token));
                queue.complete(token, written(number, room)).unwrap();
                prop_assert_eq!(queue.complete(token, 0), Err(Error::Token));
                for &token in &dead {
                    prop_assert_eq!(queue.complete(token, 0), Err(Error::Token));
                }
            }
            Step::Complete(_) => {}
            Step::Publish => {
                let wanted = queue.publish().unwrap();
                told = flying.iter().map(|f| f.0).min().unwrap_or(taken);
                prop_assert_eq!(driver.told(), told - seen);
                interrupted |= wanted;
                prop_assert!(told != asked || !wanted);
                asked = told;
                prop_assert!(interrupted || told == seen, "sleeps on");
            }
            Step::Tell => {
                let unasked = queue.tell().unwrap();
                told = flying.iter().map(|f| f.0).min().unwrap_or(taken);
                prop_assert_eq!(driver.told(), told - seen);
                prop_assert_eq!(unasked != 0, told != asked);
            }
            Step::Reap => {
                for (n, len) in driver.reap() {
                    prop_assert_eq!((n, len), (seen, written(n, room(&given[&n]))));
                    seen += 1;
                }
                prop_assert_eq!(seen, told);
                interrupted = false;
            }
            Step::Die(how_far) => {
                die(&mut queue, how_far);
                told = seen + driver.told();
                queue = Queue::restore(memory, place, *features, note).unwrap();
                interrupted |= told != seen;
                dead = flying.drain(..).map(|f| f.1).collect();
                (taken, asked) = (told, told);
                asleep = false;
            }
        }
    }
    for (n, len) in driver.reap() {
        prop_assert_eq!((n, len), (seen, written(n, room(&given[&n]))));
        seen += 1;
    }
    prop_assert_eq!(seen, number, "none is lost");
    Ok(())
}
