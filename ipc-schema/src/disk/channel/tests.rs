use super::*;
use crate::disk::{
    Back, Base, BlkConfig, DriverClient, DriverConfig, Geometry, MAX_BLOCKS, Place, StoreConfig,
};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::VecDeque;
use std::vec;

fn read(first: u32) -> Request {
    Request::new(Op::Read, first, 1)
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u32),
    Publish,
    Serve,
    Answer,
    NewClient,
    NewStore,
    /// `store` dies between the answer and its index.
    HalfAnswer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u32..1000).prop_map(Step::Ask),
        4 => Just(Step::Publish),
        6 => Just(Step::Serve),
        6 => Just(Step::Answer),
        1 => Just(Step::NewClient),
        1 => Just(Step::NewStore),
        1 => Just(Step::HalfAnswer),
    ]
}

proptest! {
    /// Whatever dies when: the answers that a client sees are those to its own requests, in their order, none twice and none left out.
    #[test]
    fn answers_come_in_order(begin: u32, steps in proptest::collection::vec(step(), 0..300)) {
        let channel = Box::new(Channel::new());
        channel.head.store(begin, Ordering::Relaxed);
        channel.tail.store(begin, Ordering::Relaxed);
        let (mut client, mut store) = (Client::new(&channel), Provider::new(&channel));
        let mut asked = VecDeque::new();
        for step in steps {
            match step {
                Step::Ask(n) => {
                    let room = client.room();
                    prop_assert!(room <= DEPTH);
                    prop_assert_eq!(client.ask(&read(n)), room > 0);
                    if room > 0 {
                        asked.push_back(n);
                    }
                }
                Step::Publish => {
                    let _ = client.publish();
                }
                Step::Serve => {
                    if let Some(request) = store.peek() {
                        store.answer(Status::Ok, Some((7, &[request.first])));
                    }
                }
                Step::Answer => {
                    if let Some(answer) = client.answer(1) {
                        prop_assert_eq!(answer.status, Status::Ok);
                        prop_assert_eq!((Some(answer.places[0]), answer.epoch), (asked.pop_front(), 7));
                    }
                }
                Step::NewClient => {
                    client = Client::new(&channel);
                    asked.clear();
                }
                Step::NewStore => store = Provider::new(&channel),
                Step::HalfAnswer => {
                    let tail = channel.tail.load(Ordering::Relaxed);
                    if store.peek().is_some() {
                        store.answer(Status::Full, Some((9, &[!0])));
                        channel.tail.store(tail, Ordering::Relaxed);
                        store = Provider::new(&channel);
                    }
                }
            }
        }
        // All that is left comes.
        let _ = client.publish();
        while let Some(request) = store.peek() {
            store.answer(Status::Ok, Some((7, &[request.first])));
        }
        while let Some(answer) = client.answer(1) {
            prop_assert_eq!(Some(answer.places[0]), asked.pop_front());
        }
        prop_assert!(asked.is_empty());
        prop_assert_eq!(client.room(), DEPTH);
    }

    /// A scribbled channel costs answers, nothing else: what is passed over is stale, and all goes on.
    #[test]
    fn survives_a_scribbled_channel(ends: Vec<(u32, u32)>, words: [u32; 4]) {
        let channel = Box::new(Channel::new());
        let (mut client, mut store) = (Client::new(&channel), Provider::new(&channel));
        for (head, tail) in ends {
            prop_assert!(client.room() <= DEPTH);
            let _ = client.ask(&read(1));
            channel.head.store(head, Ordering::Relaxed);
            channel.tail.store(tail, Ordering::Relaxed);
            for slot in &channel.slots {
                slot.op.store(words[0], Ordering::Relaxed);
                slot.status.store(words[1], Ordering::Relaxed);
                slot.answered.store(words[2], Ordering::Relaxed);
                slot.count.store(words[3], Ordering::Relaxed);
            }
            let mut served = 0;
            while store.peek().is_some() {
                store.answer(Status::Ok, None);
                served += 1;
            }
            prop_assert!(served <= DEPTH);
            for _ in 0..=DEPTH {
                let _ = client.answer(u32::MAX);
            }
            prop_assert!(client.answer(1).is_none());
        }
        let mut client = Client::new(&channel);
        let _ = store.peek();
        prop_assert_eq!(client.room(), DEPTH);
        prop_assert!(client.ask(&read(5)));
        let _ = client.publish();
        prop_assert_eq!(store.peek(), Some(read(5)));
        store.answer(Status::Ok, None);
        prop_assert_eq!(client.answer(0).map(|a| a.status), Some(Status::Ok));
    }
}

#[test]
fn places() {
    for place in [
        Place::Base(Base::Hole),
        Place::Base(Base::Image),
        Place::Page(0),
        Place::Page(MAX_BLOCKS as u32 - 1),
        Place::Fresh(0, Base::Hole),
        Place::Fresh(MAX_BLOCKS as u32 - 1, Base::Image),
    ] {
        assert_eq!(Place::unpack(place.pack()), place);
    }
}

#[test]
fn what_a_dead_store_passed_over_is_stale() {
    let channel = Box::new(Channel::new());
    let mut client = Client::new(&channel);
    assert!(client.ask(&read(1)) && client.ask(&read(2)));
    assert!(!client.publish(), "nobody sleeps");
    channel.tail.store(4000, Ordering::Relaxed);
    assert_eq!(client.answer(1), None, "more than were asked");
    let mut store = Provider::new(&channel);
    assert_eq!(store.peek(), None);
    let status = |client: &mut Client<'_>| client.answer(1).map(|a| a.status);
    assert_eq!(
        [
            status(&mut client),
            status(&mut client),
            status(&mut client)
        ],
        [Some(Status::Stale), Some(Status::Stale), None]
    );
}

#[test]
fn sleeping_is_refused_when_there_is_work() {
    let channel = Box::new(Channel::new());
    let (mut client, mut store) = (Client::new(&channel), Provider::new(&channel));
    assert!(store.prepare_sleep() && client.prepare_sleep());
    assert!(client.ask(&read(3)));
    assert!(client.publish(), "it sleeps");
    assert!(!store.prepare_sleep(), "there is a request");
    assert_eq!(store.peek(), Some(read(3)));
    store.answer(Status::Ok, None);
    assert!(store.needs_signal() && !store.needs_signal());
    assert!(!client.prepare_sleep(), "there is an answer");
    assert!(client.answer(0).is_some() && client.prepare_sleep());
    assert!(!client.publish(), "nothing new");
}

/// What root hands to `store` and to device models.
#[test]
fn golden_bytes() {
    let disk = Geometry {
        name: "d".into(),
        blocks: 300,
        image: 2,
        pages: 1,
    };
    let store = StoreConfig {
        disks: vec![disk.clone()],
        clients: vec![0, 0],
    };
    let bytes = b"\x01\x01d\xac\x02\x02\x01\x02\x00\x00";
    assert_eq!(postcard::to_allocvec(&store).unwrap(), bytes);
    let blk = BlkConfig {
        disk,
        serial: "s".into(),
        queues: 2,
        packed: true,
        back: Back::Store,
    };
    assert_eq!(
        postcard::to_allocvec(&blk).unwrap(),
        b"\x01d\xac\x02\x02\x01\x01s\x02\x01\x00"
    );
    let back = Back::Driver { read_only: true };
    let blk = BlkConfig { back, ..blk };
    assert_eq!(
        postcard::to_allocvec(&blk).unwrap(),
        b"\x01d\xac\x02\x02\x01\x01s\x02\x01\x01\x01"
    );
    let driver = DriverConfig {
        clients: vec![DriverClient {
            disk: blk.disk,
            read_only: true,
        }],
        physical: vec![("dma".into(), 5)],
        ..DriverConfig::default()
    };
    assert_eq!(
        postcard::to_allocvec(&driver).unwrap(),
        b"\x01\x01d\xac\x02\x02\x01\x01\x00\x00\x00\x01\x03dma\x05"
    );
}

/// What a driver needs: several requests at a time, as many as the client was told, and what of a commit is to be left out.
#[test]
fn a_window_of_requests() {
    let channel = Box::new(Channel::new());
    let mut client = Client::new(&channel).with_depth(3);
    let mut driver = Provider::new(&channel);
    assert_eq!((client.room(), driver.number()), (3, 0));
    for first in 0..2 {
        assert!(client.ask(&read(first)));
    }
    let commit = Request {
        skip: (7, 3),
        ..Request::new(Op::Commit, 9, 1)
    };
    assert!(client.ask(&commit) && !client.ask(&read(5)));
    let _ = client.publish();
    let firsts: Vec<_> = (0..4).map(|n| driver.peek_at(n).map(|r| r.first)).collect();
    assert_eq!(firsts, [Some(0), Some(1), Some(9), None]);
    assert_eq!(driver.peek_at(2), Some(commit));
    driver.answer(Status::Ok, None);
    assert_eq!(client.room(), 0, "the answer was not looked at");
    assert!(client.answer(0).is_some() && client.room() == 1);
    assert_eq!(
        (driver.number(), driver.peek().map(|r| r.first)),
        (1, Some(1))
    );
}

/// A client takes back what it has asked: whoever has looked at that sleeps all the same, and does not look for ever.
#[test]
fn an_index_that_goes_back() {
    let channel = Channel::new();
    let [mut client, mut other] = [Client::new(&channel), Client::new(&channel)];
    let mut provider = Provider::new(&channel);
    for n in 0..3 {
        assert!(client.ask(&Request::new(Op::Read, n, 1)));
        assert!(n == 2 || other.ask(&Request::new(Op::Read, n, 1)));
    }
    let _ = client.publish();
    assert!((0..3).all(|n| provider.peek_at(n).is_some()));
    assert!(!provider.prepare_sleep_behind(2) && provider.prepare_sleep_behind(3));
    let _ = other.publish();
    assert!(provider.peek_at(3).is_none());
    assert!(provider.prepare_sleep_behind(3), "one less");
    for _ in 0..3 {
        provider.answer(Status::Ok, None);
    }
    // Now it is behind what was answered, which is looked at once more.
    assert!(!provider.prepare_sleep());
    assert!(provider.peek().is_none() && provider.prepare_sleep());
}
