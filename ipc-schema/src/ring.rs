//! A byte ring in one shared page, between one producer and one consumer that do not trust each other.
//!
//! Consoles use it: device UART <-> manager <-> driver UART. A page of zeroes is a valid, empty ring.
//!
//! Trust: both sides can write the whole page at any time. Each side therefore uses only a *private* copy of its own
//! index, bounds the peer's index before use and masks every position. A hostile peer can garble or lose bytes of
//! this one link, or cause needless signals; it can never make us leave the page, loop or panic.
//!
//! Restart: a successor resumes from the indices in the page ([`Producer::new`], [`Consumer::new`]). It must signal
//! its peer once when it starts, for its predecessor may have died between publishing and signalling. A server whose state must
//! agree with what it put into a ring, or took out of it, makes its own index part of that state: it writes without publishing,
//! commits state and index together, and publishes then; whoever dies in between is resumed at the index that was committed
//! ([`Producer::resume`], [`Consumer::resume`]).

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

/// Bytes that a ring holds. A power of two, so that free-running 32-bit indices wrap without a seam.
pub const CAPACITY: usize = 2048;
const CAPACITY_U32: u32 = 2048;
const MASK: u32 = CAPACITY_U32 - 1;
const HEADER_BYTES: usize = 128;

/// The layout of the shared page; see the module's documentation.
#[repr(C, align(4096))]
pub struct RingPage {
    /// Bytes ever produced, modulo 2^32. Written by the producer only.
    head: AtomicU32,
    /// Non-zero while the producer sleeps until there is room. Set by the producer, cleared by the consumer.
    producer_waits: AtomicU32,
    /// A word beside the bytes. Written by the producer only.
    note: AtomicU32,
    _producer_line: [AtomicU32; 13],
    /// Bytes ever consumed, modulo 2^32. Written by the consumer only.
    tail: AtomicU32,
    /// Non-zero while the consumer sleeps until there is data. Set by the consumer, cleared by the producer.
    consumer_waits: AtomicU32,
    _consumer_line: [AtomicU32; 14],
    data: [AtomicU8; CAPACITY],
    _unused: [AtomicU8; 4096 - HEADER_BYTES - CAPACITY],
}

const _: () = assert!(size_of::<RingPage>() == 4096);

impl RingPage {
    /// An empty ring; the same as a page of zeroes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            head: AtomicU32::new(0),
            producer_waits: AtomicU32::new(0),
            note: AtomicU32::new(0),
            _producer_line: [const { AtomicU32::new(0) }; 13],
            tail: AtomicU32::new(0),
            consumer_waits: AtomicU32::new(0),
            _consumer_line: [const { AtomicU32::new(0) }; 14],
            data: [const { AtomicU8::new(0) }; CAPACITY],
            _unused: [const { AtomicU8::new(0) }; 4096 - HEADER_BYTES - CAPACITY],
        }
    }

    fn cell(&self, index: u32) -> &AtomicU8 {
        // Masked to CAPACITY - 1, so the lookup is always within `data`.
        &self.data[(index & MASK) as usize]
    }
}

impl Default for RingPage {
    fn default() -> Self {
        Self::new()
    }
}

/// Announces that one is about to sleep and tells whether one may: `false` means that the condition came true.
pub(crate) fn announce(flag: &AtomicU32, must_wait: impl Fn() -> bool) -> bool {
    flag.store(1, Ordering::Relaxed);
    // Orders the announcement before the look at the peer's index. Pairs with the fence in `take_announcement`: at
    // least one side sees the other's store, so no wake-up is lost.
    fence(Ordering::SeqCst);
    if must_wait() {
        return true;
    }
    flag.store(0, Ordering::Relaxed);
    false
}

/// Takes the peer's announcement, if there is one: the caller then owes it a signal.
pub(crate) fn take_announcement(flag: &AtomicU32) -> bool {
    fence(Ordering::SeqCst);
    flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Relaxed) != 0
}

/// The writing end. There must be only one for a page.
pub struct Producer<'a> {
    page: &'a RingPage,
    head: u32,
}

impl<'a> Producer<'a> {
    /// Takes the writing end, going on where a predecessor stopped.
    #[must_use]
    pub fn new(page: &'a RingPage) -> Self {
        Self {
            page,
            head: page.head.load(Ordering::Relaxed),
        }
    }

    /// Takes the writing end, going on where a predecessor has committed that it was ([`Producer::position`]), whether it came to
    /// publishing that or not. From the page alone if that cannot be so: then it is another page.
    #[must_use]
    pub fn resume(page: &'a RingPage, position: u32) -> Self {
        let mut producer = Self::new(page);
        // What was written and not published is at most a whole ring.
        if position.wrapping_sub(producer.head) <= CAPACITY_U32 {
            producer.head = position;
            producer.publish();
        }
        producer
    }

    /// Where it is: behind what was written last, be it published or not.
    #[must_use]
    pub const fn position(&self) -> u32 {
        self.head
    }

    /// Bytes that can be pushed now; none if the consumer's index is nonsense.
    #[must_use]
    pub fn room(&self) -> usize {
        let used = self
            .head
            .wrapping_sub(self.page.tail.load(Ordering::Acquire));
        CAPACITY_U32.saturating_sub(used) as usize
    }

    /// Copies as many of `bytes` as there is room for; returns how many.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let count = self.write(bytes);
        if count != 0 {
            self.publish();
        }
        count
    }

    /// The same, but the consumer does not see them before [`Producer::publish`].
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        for &byte in bytes.iter().take(count) {
            self.page.cell(self.head).store(byte, Ordering::Relaxed);
            self.head = self.head.wrapping_add(1);
        }
        count
    }

    /// Shows the consumer all that has been written.
    pub fn publish(&self) {
        self.page.head.store(self.head, Ordering::Release);
    }

    /// True if the consumer sleeps and must now be signalled. To be asked after `push`; each sleep is reported once.
    #[must_use]
    pub fn needs_signal(&self) -> bool {
        take_announcement(&self.page.consumer_waits)
    }

    /// Leaves a word beside the bytes, which the consumer finds there until there is another; 0 at first. The consumer is to be
    /// signalled.
    pub fn set_note(&self, note: u32) {
        self.page.note.store(note, Ordering::Release);
    }

    /// Announces that the producer is about to sleep for want of room. `false`: there is room, do not sleep.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        announce(&self.page.producer_waits, || self.room() == 0)
    }
}

/// The reading end. There must be only one for a page.
pub struct Consumer<'a> {
    page: &'a RingPage,
    tail: u32,
}

impl<'a> Consumer<'a> {
    /// Takes the reading end, going on where a predecessor stopped.
    #[must_use]
    pub fn new(page: &'a RingPage) -> Self {
        Self {
            page,
            tail: page.tail.load(Ordering::Relaxed),
        }
    }

    /// Takes the reading end, going on where a predecessor has committed that it was ([`Consumer::position`]), whether it came to
    /// giving up the bytes before that or not. From the page alone if that cannot be so: then it is another page.
    #[must_use]
    pub fn resume(page: &'a RingPage, position: u32) -> Self {
        let mut consumer = Self::new(page);
        if position.wrapping_sub(consumer.tail) <= CAPACITY_U32 {
            consumer.tail = position;
            page.tail.store(position, Ordering::Release);
        }
        consumer
    }

    /// Where it is: at the first byte that has not been given up.
    #[must_use]
    pub const fn position(&self) -> u32 {
        self.tail
    }

    /// Bytes that wait; more than [`CAPACITY`] if the producer's index is nonsense.
    fn distance(&self) -> u32 {
        self.page
            .head
            .load(Ordering::Acquire)
            .wrapping_sub(self.tail)
    }

    /// True if nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.distance() == 0
    }

    /// Copies waiting bytes without consuming them; returns how many. With [`Consumer::advance`] a consumer can make
    /// sure that bytes are handed on before they are gone from the ring.
    #[must_use]
    pub fn peek(&mut self, into: &mut [u8]) -> usize {
        let waiting = self.distance();
        if waiting > CAPACITY_U32 {
            // The producer's index is nonsense: drop everything and meet it where it claims to be.
            self.tail = self.tail.wrapping_add(waiting);
            self.page.tail.store(self.tail, Ordering::Release);
            return 0;
        }
        let count = into.len().min(waiting as usize);
        let mut index = self.tail;
        for byte in into.iter_mut().take(count) {
            *byte = self.page.cell(index).load(Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        count
    }

    /// Consumes `count` bytes, at most those that wait.
    pub fn advance(&mut self, count: usize) {
        let waiting = self.distance();
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(waiting);
        if count != 0 {
            self.tail = self.tail.wrapping_add(count);
            self.page.tail.store(self.tail, Ordering::Release);
        }
    }

    /// Copies and consumes waiting bytes; returns how many.
    #[must_use]
    pub fn pop(&mut self, into: &mut [u8]) -> usize {
        let count = self.peek(into);
        self.advance(count);
        count
    }

    /// The word that the producer has left beside the bytes: anything.
    #[must_use]
    pub fn note(&self) -> u32 {
        self.page.note.load(Ordering::Acquire)
    }

    /// True if the producer sleeps for want of room and must now be signalled. To be asked after consuming.
    #[must_use]
    pub fn needs_signal(&self) -> bool {
        take_announcement(&self.page.producer_waits)
    }

    /// Announces that the consumer is about to sleep. `false`: bytes have come meanwhile, do not sleep.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        announce(&self.page.consumer_waits, || self.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::mpsc;
    use std::time::Duration;
    use std::vec;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<u8>),
        Pop(usize),
        RestartProducer,
        RestartConsumer,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..1500).prop_map(Step::Push),
            4 => (0usize..1500).prop_map(Step::Pop),
            1 => Just(Step::RestartProducer),
            1 => Just(Step::RestartConsumer),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_bounded_queue(start: u32, steps in proptest::collection::vec(step(), 0..60)) {
            let page = RingPage::new();
            page.head.store(start, Ordering::Relaxed);
            page.tail.store(start, Ordering::Relaxed);
            let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
            let mut model = VecDeque::new();
            for step in steps {
                match step {
                    Step::Push(bytes) => {
                        let count = producer.push(&bytes);
                        prop_assert_eq!(count, bytes.len().min(CAPACITY - model.len()));
                        model.extend(&bytes[..count]);
                    }
                    Step::Pop(limit) => {
                        let mut buffer = vec![0; limit];
                        let count = consumer.pop(&mut buffer);
                        let expected: Vec<u8> = model.drain(..limit.min(model.len())).collect();
                        prop_assert_eq!(&buffer[..count], &expected[..]);
                    }
                    Step::RestartProducer => producer = Producer::new(&page),
                    Step::RestartConsumer => consumer = Consumer::new(&page),
                }
                prop_assert_eq!(consumer.is_empty(), model.is_empty());
                prop_assert_eq!(producer.room(), CAPACITY - model.len());
            }
        }

        #[test]
        fn survives_a_scribbled_page(heads: Vec<(u32, u32)>, flags: u32, bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let page = RingPage::new();
            let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
            let mut buffer = [0; 5000];
            for (head, tail) in heads {
                page.head.store(head, Ordering::Relaxed);
                page.tail.store(tail, Ordering::Relaxed);
                page.consumer_waits.store(flags, Ordering::Relaxed);
                prop_assert!(producer.push(&bytes) <= CAPACITY);
                prop_assert!(producer.room() <= CAPACITY);
                page.head.store(head, Ordering::Relaxed);
                prop_assert!(consumer.pop(&mut buffer) <= CAPACITY);
                // However wild the index was, the consumer has caught up with it after two looks.
                let _ = consumer.pop(&mut buffer);
                prop_assert!(consumer.is_empty());
                prop_assert_eq!(producer.needs_signal(), flags != 0);
                prop_assert!(!producer.needs_signal(), "a sleep is reported once");
            }
        }
    }

    #[test]
    fn a_peeked_byte_is_not_gone() {
        let page = RingPage::new();
        let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
        assert_eq!(producer.push(b"abc"), 3);
        let mut buffer = [0; 8];
        assert_eq!(consumer.peek(&mut buffer), 3);
        // The consumer dies before it handed the bytes on; its successor gets them again.
        let mut successor = Consumer::new(&page);
        assert_eq!(successor.peek(&mut buffer), 3);
        successor.advance(2);
        assert_eq!(successor.pop(&mut buffer), 1);
        assert_eq!(buffer[0], b'c');
        successor.advance(9);
        assert!(successor.is_empty(), "advancing too far stops at the end");
    }

    #[test]
    fn a_note_stays_beside_the_bytes() {
        let page = RingPage::new();
        let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
        assert_eq!(consumer.note(), 0);
        producer.set_note(7);
        producer.push(b"x");
        let mut buffer = [0; 8];
        assert_eq!((consumer.pop(&mut buffer), buffer[0]), (1, b'x'));
        assert_eq!((consumer.note(), Consumer::new(&page).note()), (7, 7));
    }

    #[test]
    fn sleeping_is_refused_when_there_is_work() {
        let page = RingPage::new();
        let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
        assert!(!producer.needs_signal(), "nobody sleeps yet");
        assert!(consumer.prepare_sleep());
        producer.push(b"x");
        assert!(producer.needs_signal());
        assert!(!producer.needs_signal());
        assert!(!consumer.prepare_sleep());
        assert!(!producer.needs_signal(), "a refused sleep needs no signal");
        assert!(!producer.prepare_sleep(), "there is room");
        assert_eq!(producer.push(&[1; CAPACITY]), CAPACITY - 1);
        assert!(producer.prepare_sleep());
        assert!(consumer.pop(&mut [0; 1]) == 1 && consumer.needs_signal());
    }

    /// Two real threads that sleep whenever the protocol lets them: a lost wake-up shows as a time-out.
    #[test]
    fn no_byte_and_no_wakeup_is_lost_between_threads() {
        let page = RingPage::new();
        let (data, data_signal) = mpsc::channel();
        let (room, room_signal) = mpsc::channel();
        const TOTAL: usize = 400_000;
        let patience = Duration::from_secs(20);
        std::thread::scope(|scope| {
            let page = &page;
            scope.spawn(move || {
                let mut producer = Producer::new(page);
                let mut sent = 0;
                while sent < TOTAL {
                    let chunk: Vec<u8> = (sent..TOTAL.min(sent + 1 + sent % 700))
                        .map(|i| i as u8)
                        .collect();
                    let count = producer.push(&chunk);
                    sent += count;
                    if producer.needs_signal() {
                        data.send(()).unwrap();
                    }
                    if count == 0 && producer.prepare_sleep() {
                        room_signal
                            .recv_timeout(patience)
                            .expect("the producer was never woken");
                    }
                }
            });
            let mut consumer = Consumer::new(page);
            let mut received = 0;
            let mut buffer = [0; 333];
            while received < TOTAL {
                let count = consumer.pop(&mut buffer);
                for byte in &buffer[..count] {
                    assert_eq!(*byte, received as u8);
                    received += 1;
                }
                if consumer.needs_signal() {
                    let _ = room.send(());
                }
                if received < TOTAL && consumer.prepare_sleep() {
                    data_signal
                        .recv_timeout(patience)
                        .expect("the consumer was never woken");
                }
            }
        });
    }
}
