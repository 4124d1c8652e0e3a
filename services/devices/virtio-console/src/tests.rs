//! The whole device against a driver's side and a manager's.

mod world;

use std::vec;
use std::vec::Vec;

use ipc_schema::interrupt_page::InterruptReader;
use ipc_schema::ring::CAPACITY;
use ipc_schema::state_page::{Past, StateWriter, kind};
use ipc_schema::virtio::status;
use proptest::prelude::*;

use crate::control::{Message, event::*};
pub(crate) use world::step;
use world::{PACKED, QUEUES, ROOM, Shared, World};

const MULTIPORT: u64 = 3;
const EVENT_IDX: u64 = 1 << 29;

/// A driver of several ports, set up as far as Linux goes, both open.
fn set_up(w: &mut World<'_>, features: u64) -> Vec<(Message, Vec<u8>)> {
    w.start(features);
    for _ in 0..8 {
        w.give(2, &[], 64, 8);
    }
    w.says(u32::MAX, DEVICE_READY, 1);
    let mut heard = w.hears();
    for port in [0, 1] {
        w.says(port, PORT_READY, 1);
        w.says(port, PORT_OPEN, 1);
        heard.extend(w.hears());
    }
    heard
}

fn features(event_idx: bool, packed: bool) -> u64 {
    let event_idx = if event_idx { EVENT_IDX } else { 0 };
    MULTIPORT | event_idx | if packed { PACKED } else { 0 }
}

fn message(port: u32, event: u16, value: u16) -> Message {
    Message { port, event, value }
}

#[test]
fn a_driver_is_told_of_its_ports() {
    for packed in [false, true] {
        let shared = Shared::new();
        let rings = shared.rings();
        let mut w = World::new(&shared, &rings, vec![]);
        let heard = set_up(&mut w, features(false, packed));
        let (hvc, data) = (b"hvc0".to_vec(), b"data".to_vec());
        assert_eq!(
            heard,
            [
                (message(0, DEVICE_ADD, 0), vec![]),
                (message(1, DEVICE_ADD, 0), vec![]),
                (message(0, CONSOLE_PORT, 1), vec![]),
                (message(0, PORT_NAME, 0), hvc),
                (message(0, PORT_OPEN, 1), vec![]),
                (message(1, PORT_NAME, 0), data),
                (message(1, PORT_OPEN, 1), vec![]),
            ]
        );
        assert_eq!((w.get(0xC4, 4), w.get(0x12, 2)), (2, QUEUES.into()));
        // Nobody has told a size so far.
        assert_eq!(w.get(0xC0, 4), 0);
        w.sizes(132, 43);
        let told = (message(0, RESIZE, 0), vec![132, 0, 43, 0]);
        assert_eq!(w.hears(), std::slice::from_ref(&told));
        assert_eq!((w.get(0xC0, 2), w.get(0xC2, 2)), (132, 43));
        w.wake();
        assert_eq!(w.hears(), [], "told once");
        // A driver that begins anew is told again.
        let heard = set_up(&mut w, features(false, packed));
        assert_eq!(heard[5], told);
        assert_eq!(heard.len(), 8);
        // Nonsense is ignored.
        for (port, event, value) in [(2, PORT_READY, 1), (u32::MAX, PORT_OPEN, 1), (0, 99, 1)] {
            w.says(port, event, value);
        }
        w.says(0, DEVICE_READY, 0);
        w.says(1, PORT_READY, 0);
        assert_eq!(w.hears(), []);
    }
}

#[test]
fn an_older_linux_takes_rows_first() {
    let shared = Shared::new();
    let rings = shared.rings();
    let mut w = World::new(&shared, &rings, vec![]);
    w.rows_first = true;
    w.die();
    set_up(&mut w, MULTIPORT);
    w.sizes(132, 43);
    assert_eq!(w.hears(), [(message(0, RESIZE, 0), vec![43, 0, 132, 0])]);
    assert_eq!((w.get(0xC0, 2), w.get(0xC2, 2)), (132, 43), "not there");
}

#[test]
fn sizes_wait_for_buffers_and_for_the_driver() {
    let shared = Shared::new();
    let rings = shared.rings();
    let mut w = World::new(&shared, &rings, vec![]);
    w.sizes(80, 25);
    w.start(MULTIPORT);
    w.says(0, DEVICE_READY, 1);
    w.says(0, PORT_READY, 1);
    w.sizes(100, 30);
    w.die();
    w.sizes(132, 43);
    for _ in 0..8 {
        w.give(2, &[], 64, 0);
    }
    let events: Vec<_> = w
        .hears()
        .into_iter()
        .map(|(m, rest)| (m.event, rest))
        .collect();
    let sizes: Vec<_> = events.iter().filter(|e| e.0 == RESIZE).collect();
    assert_eq!(sizes, [&(RESIZE, vec![132, 0, 43, 0])]);
    assert_eq!(events.len(), 6);
}

#[test]
fn a_driver_of_one_port_reads_the_configuration() {
    let shared = Shared::new();
    let rings = shared.rings();
    let vmm = InterruptReader::function(&shared.irq);
    let mut w = World::new(&shared, &rings, vec![]);
    w.start(1);
    let _ = vmm.look();
    w.sizes(132, 43);
    assert_eq!(vmm.look().rises, 1, "the configuration has changed");
    assert_eq!((w.get(0xC0, 2), w.get(0xC2, 2)), (132, 43));
    // It need not say that it has opened its port.
    w.give(0, &[], 32, 5);
    assert_eq!(w.writes(0, b"hello"), 5);
    assert_eq!(w.take(0), [b"hello"]);
    assert_eq!(vmm.look().rises, 2);
    w.give(1, b"world", 0, 2);
    assert_eq!(w.reads(0, 99), b"world");
    assert_eq!((w.take(1).len(), vmm.look().rises), (1, 4));
    // Without F_SIZE nobody asked for it.
    w.start(0);
    let _ = vmm.look();
    w.sizes(1, 1);
    assert_eq!(vmm.look().rises, 0);
}

#[test]
fn only_an_open_port_receives() {
    for packed in [false, true] {
        let shared = Shared::new();
        let rings = shared.rings();
        let mut w = World::new(&shared, &rings, vec![]);
        set_up(&mut w, features(false, packed));
        w.says(1, PORT_OPEN, 0);
        w.give(4, &[], 64, 1);
        assert_eq!(w.writes(1, b"waits"), 5);
        w.wake();
        assert_eq!(w.take(4), [b""; 0]);
        w.die();
        w.says(1, PORT_OPEN, 1);
        assert_eq!(w.take(4), [b"waits"]);
        // The console meanwhile.
        w.give(0, &[], 64, 1);
        assert_eq!(w.writes(0, b"x"), 1);
        assert_eq!(w.take(0), [b"x"]);
    }
}

#[test]
fn a_long_buffer_leaves_as_there_is_room() {
    for packed in [false, true] {
        let shared = Shared::new();
        let rings = shared.rings();
        let mut w = World::new(&shared, &rings, vec![]);
        set_up(&mut w, features(false, packed));
        let text: Vec<u8> = (0..ROOM).map(|i| (i % 251) as u8).collect();
        w.give(5, &text, 0, 1000);
        assert_eq!(w.take(5).len(), 0, "it is not done with");
        let mut seen = w.reads(1, 100);
        w.die();
        seen.extend(w.reads(1, CAPACITY));
        assert_eq!(seen.len(), 100 + CAPACITY);
        seen.extend(w.reads(1, CAPACITY));
        assert_eq!(seen, text);
        assert_eq!(w.take(5), [b""]);
        // A port that nobody reads holds up no other.
        for _ in 0..3 {
            w.give(5, &text, 0, 0);
        }
        w.give(1, b"console", 0, 0);
        assert_eq!(w.reads(0, 99), b"console");
    }
}

#[test]
fn an_emergency_needs_no_driver_and_comes_once() {
    let shared = Shared::new();
    let rings = shared.rings();
    for life in 0..6 {
        let mut w = World::new(&shared, &rings, vec![life]);
        w.out(0xC8, 4, u32::from_le_bytes([b'!', 1, 2, 3]));
        w.immortal();
        w.out(0xC8, 1, b'?'.into());
        assert_eq!(w.reads(0, 99), b"!?", "{life}");
    }
    let mut w = World::new(&shared, &rings, vec![]);
    for _ in 0..CAPACITY + 9 {
        w.out(0xC8, 2, b'x'.into());
    }
    assert_eq!(w.reads(0, CAPACITY).len(), CAPACITY, "the rest is dropped");
    assert_eq!((w.get(0xC8, 4), w.reads(0, 9)), (0, vec![]));
}

#[test]
fn what_makes_no_sense_needs_a_reset() {
    type Spoil = fn(&mut World<'_>);
    let ways: [Spoil; 5] = [
        // No room for a message.
        |w| {
            w.give(2, &[], 4, 0);
            w.give(3, &[0, 0, 0, 0, 0, 0, 1, 0], 0, 0);
        },
        |w| {
            let entry = (0x1000 * 2 + 8, 0xFFFF_FFFFu32);
            w.give(1, b"sound", 0, 1);
            assert_eq!(w.reads(0, 9), b"sound");
            w.shared
                .memory
                .write(entry.0, &entry.1.to_le_bytes())
                .unwrap();
            w.shared
                .memory
                .write(0x2000 + 0x404, &[0, 0, 0, 0])
                .unwrap();
            w.shared.memory.write(0x2000 + 0x402, &[2, 0]).unwrap();
            w.wake();
        },
        |w| {
            w.give(3, &[0, 0, 0, 0, 0, 0, 1, 0], 0, 0);
            w.shared.memory.write(0x3000 + 0x402, &[200, 0]).unwrap();
            w.wake();
        },
        |w| {
            w.shared.memory.write(0x4000 + 0x404, &[99, 0]).unwrap();
            w.shared.memory.write(0x4000 + 0x402, &[1, 0]).unwrap();
            w.wake();
        },
        // A buffer of the first port is done with before the second's queue is looked at.
        |w| {
            w.shared.memory.write(0x6000 + 0x402, &[200, 0]).unwrap();
            w.give(1, b"y", 0, 0);
        },
    ];
    for (way, spoil) in ways.into_iter().enumerate() {
        let shared = Shared::new();
        let rings = shared.rings();
        let mut w = World::new(&shared, &rings, vec![]);
        w.start(MULTIPORT);
        spoil(&mut w);
        let lost = status::NEEDS_RESET;
        assert_eq!(w.get(0x14, 1) as u8 & lost, lost, "{way}");
        let used = w.half(0x2000 + 0x602);
        let _ = w.reads(0, 9);
        w.die();
        assert_eq!(w.get(0x14, 1) as u8 & lost, lost, "{way}: it was known");
        w.give(1, b"x", 0, 0);
        assert_eq!((w.half(0x2000 + 0x602), w.reads(0, 9)), (used, vec![]));
        set_up(&mut w, MULTIPORT);
        w.give(1, b"again", 0, 0);
        assert_eq!(w.reads(0, 9), b"again");
    }
}

/// What the streams of a port have been, at both ends.
#[derive(Default)]
struct Streams {
    typed: Vec<u8>,
    read: Vec<u8>,
    sent: Vec<u8>,
    seen: Vec<u8>,
}

proptest! {
    /// Whenever the server dies: each port's bytes come out once and in order, both ways, and nobody waits for a signal that never comes.
    #[test]
    fn streams_survive_deaths(
        steps in proptest::collection::vec((0u8..6, any::<bool>(), any::<u8>()), 0..120),
        lives in proptest::collection::vec(0usize..80, 0..30),
        event_idx: bool,
        packed: bool,
    ) {
        let shared = Shared::new();
        let rings = shared.rings();
        let mut w = World::new(&shared, &rings, lives);
        set_up(&mut w, features(event_idx, packed));
        let mut streams = [Streams::default(), Streams::default()];
        let mut count = 0u32;
        let mut some = |len: usize| -> Vec<u8> {
            count += 1;
            (0..len as u32).map(|i| (count * 31 + i) as u8).collect()
        };
        for (step, second, byte) in steps {
            let port = usize::from(second);
            let [to, from] = [[0, 1], [4, 5]][port];
            let s = &mut streams[port];
            match step {
                0 if w.free(from) => {
                    let bytes = some(usize::from(byte) * 16);
                    w.give(from, &bytes, 0, usize::from(byte) * 3);
                    s.sent.extend(bytes);
                }
                1 => s.seen.extend(w.reads(port, usize::from(byte) * 8)),
                2 => {
                    let bytes = some(usize::from(byte) * 4);
                    let count = w.writes(port, &bytes);
                    s.typed.extend(&bytes[..count]);
                }
                3 if w.free(to) => w.give(to, &[], usize::from(byte) * 2 + 1, usize::from(byte)),
                4 => w.take(to).iter().for_each(|b| s.read.extend(b)),
                5 if byte & 7 == 0 => w.die(),
                _ => { w.take(from); }
            }
        }
        for (port, s) in streams.iter_mut().enumerate() {
            let [to, from] = [[0, 1], [4, 5]][port];
            // Only who has been asked for a signal gives one.
            loop {
                let seen = w.reads(port, CAPACITY);
                if seen.is_empty() {
                    break;
                }
                s.seen.extend(seen);
                w.take(from);
            }
            loop {
                let before = s.read.len();
                w.take(to).iter().for_each(|b| s.read.extend(b));
                if w.free(to) {
                    w.give(to, &[], ROOM, 9);
                }
                w.take(to).iter().for_each(|b| s.read.extend(b));
                if s.read.len() == before {
                    break;
                }
            }
            prop_assert_eq!(&s.seen, &s.sent, "out {}", port);
            prop_assert_eq!(&s.read, &s.typed, "in {}", port);
        }
        prop_assert_eq!(w.get(0x14, 1), 15);
    }

    /// A server that scribbled over one slot while bytes were under way both ways: some of them may be lost, or come twice, and all that
    /// comes after that is as ever.
    #[test]
    fn a_scribbled_slot_costs_no_new_byte(
        before in proptest::collection::vec((any::<bool>(), 1usize..9), 0..20), seen: bool, packed: bool
    ) {
        let shared = Shared::new();
        let rings = shared.rings();
        let mut w = World::new(&shared, &rings, vec![]);
        set_up(&mut w, features(false, packed));
        for (out, count) in before {
            match out {
                true if w.free(1) => w.give(1, &[b'a'; 8][..count], 0, 0),
                false => { w.writes(0, &[b'b'; 8][..count]); }
                true => { w.take(1); }
            }
            if seen {
                w.reads(0, CAPACITY);
                w.take(0);
                if w.free(0) {
                    w.give(0, &[], ROOM, 9);
                }
            }
        }
        shared.state.spoil(false);
        w.die();
        // If nothing has moved since it was set up, it is in both slots.
        let kept = matches!(w.server.past(), Past::Configuration { .. } | Past::Whole { mended: Some(_) });
        prop_assert!(kept);
        prop_assert_eq!(w.get(0x14, 1), 15);
        // What is left of before.
        loop {
            let read = w.reads(0, CAPACITY).len() + w.take(1).len() + w.take(0).len();
            let room = w.free(0);
            if room {
                w.give(0, &[], ROOM, 9);
            }
            if read == 0 && !room {
                break;
            }
        }
        w.give(1, b"new", 0, 0);
        prop_assert_eq!(w.reads(0, CAPACITY), b"new");
        prop_assert_eq!(w.writes(0, b"typed"), 5);
        prop_assert_eq!(w.take(0).concat(), b"typed");
    }

    #[test]
    fn a_scribbled_state_is_survived(words in proptest::collection::vec(any::<u64>(), 0..60), small: bool) {
        let shared = Shared::new();
        let rings = shared.rings();
        let mask = if small { 0x0000_0003_0000_0003 } else { u64::MAX };
        let words: Vec<u64> = words.into_iter().map(|w| w & mask).collect();
        StateWriter::new(&shared.state, kind::VIRTIO_CONSOLE).0.save(&words);
        let mut w = World::new(&shared, &rings, vec![]);
        set_up(&mut w, MULTIPORT);
        w.give(1, b"again", 0, 0);
        prop_assert_eq!(w.reads(0, 9), b"again");
    }
}
