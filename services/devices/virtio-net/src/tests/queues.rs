//! The control queue, and several pairs of queues.

use super::{DATA, EACH, SIZE, World, frame, get, out, rings};
use crate::control::Settings;
use crate::feature::{CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VQ, MQ, MRG_RXBUF};
use crate::server::Server;
use ipc_schema::link::Offload;
use ipc_schema::virtio::status;
use proptest::prelude::*;

/// Where commands and answers are.
const COMMAND: u64 = 0x30_0000;
const ANSWER: u64 = COMMAND + 0x1000;
/// All that a driver of two pairs can want.
const ALL: u64 = CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_MAC_ADDR | MQ;
const BROADCAST: [u8; 6] = [0xFF; 6];
const OWN: [u8; 6] = [2, 1, 2, 3, 4, 5];
const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

impl World {
    fn pairs(pairs: u16) -> Self {
        let mut world = Self::new();
        world.config.pairs = pairs;
        world
    }

    /// Offers a command in the control queue, in two parts.
    fn ask(&self, queue: u16, command: &[u8]) {
        self.put(COMMAND, command);
        self.put(ANSWER, &[0xEE]);
        let (one, two) = (1, command.len() as u32 - 1);
        self.descriptor(queue, 0, (COMMAND, one), 1, 1);
        self.descriptor(queue, 1, (COMMAND + 1, two), 1, 2);
        self.descriptor(queue, 2, (ANSWER, 1), 2, 0);
        self.offer(queue, 0);
    }

    /// The answer.
    fn said(&self) -> u8 {
        let mut answer = [0];
        self.ram.read(ANSWER, &mut answer).unwrap();
        answer[0]
    }

    /// A command and its answer.
    fn command(&self, server: &mut Server<'_>, queue: u16, command: &[u8]) -> u8 {
        let before = self.used(queue).len();
        self.ask(queue, command);
        let _ = server.wake();
        let used = self.used(queue);
        assert_eq!((used.len(), used.last()), (before + 1, Some(&(0, 1))));
        self.said()
    }

    /// So many receive buffers in a pair's queue.
    fn buffers_of(&self, pair: u16, count: u16) {
        for n in 0..count {
            let gpa = DATA + EACH * u64::from(8 * pair + n);
            self.descriptor(2 * pair, n, (gpa, 2000), 2, 0);
            self.offer(2 * pair, n);
        }
    }

    /// The guest sends a frame by a pair's queue.
    fn sends(&self, pair: u16, bytes: &[u8]) {
        let at = COMMAND + 0x2000;
        self.put(at, &[0; 12]);
        self.put(at + 12, bytes);
        let len = 12 + bytes.len() as u32;
        self.descriptor(2 * pair + 1, 0, (at, len), 0, 0);
        self.offer(2 * pair + 1, 0);
    }
}

/// A frame to and from these.
fn to(whom: [u8; 6]) -> Vec<u8> {
    let mut bytes = frame(60);
    bytes[..6].copy_from_slice(&whom);
    bytes[12..14].copy_from_slice(&[0x88, 0xB5]);
    bytes
}

/// A frame of UDP from one port of 10.0.0.1 to one of 10.0.0.2, or back.
fn datagram(from: u16, to: u16, back: bool) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
    bytes[23] = 17;
    let (a, b) = if back { (2, 1) } else { (1, 2) };
    bytes[26..30].copy_from_slice(&[10, 0, 0, a]);
    bytes[30..34].copy_from_slice(&[10, 0, 0, b]);
    bytes[34..36].copy_from_slice(&from.to_be_bytes());
    bytes[36..38].copy_from_slice(&to.to_be_bytes());
    bytes
}

/// How many of these frames come in.
fn wanted(world: &World, server: &mut Server<'_>, whom: [u8; 6]) -> usize {
    let before = world.used(0).len();
    world.buffers_of(0, 1);
    world.arrives(&to(whom), Offload::default());
    let _ = server.wake();
    let now = world.used(0).len();
    if now == before {
        // The buffer is still there: another frame has to fill it.
        world.arrives(&to(OWN), Offload::default());
        let _ = server.wake();
    }
    now - before
}

#[test]
fn the_control_queue_is_behind_the_others() {
    let world = World::pairs(2);
    let mut server = world.started(CTRL_VQ | MQ);
    assert_eq!(get(&mut server, 0xC8, 2), 2, "two pairs");
    assert_eq!(get(&mut server, 0x12, 2), 5, "and one more queue");
    assert_eq!(world.command(&mut server, 4, &[4, 0, 2, 0]), 0);
    for bad in [[4, 0, 0, 0], [4, 0, 3, 0], [4, 1, 1, 0], [7, 0, 1, 0]] {
        assert_eq!(world.command(&mut server, 4, &bad), 1, "{bad:?}");
    }
    assert_eq!(world.command(&mut server, 4, &[4, 0, 1]), 1, "too short");
    // A driver that knows of one pair finds it where it is then.
    let world = World::pairs(2);
    let mut server = world.started(CTRL_VQ | CTRL_MAC_ADDR);
    let command = [&[1, 1][..], &OTHER].concat();
    assert_eq!(world.command(&mut server, 2, &command), 0);
    assert_eq!(
        world.command(&mut server, 2, &[4, 0, 1, 0]),
        1,
        "not agreed"
    );
    // One that knows of none is not answered.
    let world = World::pairs(1);
    let mut server = world.started(0);
    world.ask(2, &command);
    let _ = server.wake();
    assert_eq!((world.said(), get(&mut server, 0x14, 1)), (0xEE, 15));
}

/// With the event index a driver rings only where it was asked to (2.7.10): behind the last command, each time, and a successor's too.
#[test]
fn the_next_command_is_asked_for() {
    let world = World::new();
    let mut server = world.started(CTRL_VQ | CTRL_RX | 1 << 29);
    let asked = |n| assert_eq!(world.half(rings(2)[2] + 4 + 8 * u64::from(SIZE)), n);
    asked(0);
    for n in 1..4 {
        assert_eq!(world.command(&mut server, 2, &[0, 0, 0]), 0);
        asked(n);
        world.put(rings(2)[2] + 4 + 8 * u64::from(SIZE), &[0, 0]);
        (server, _) = world.server();
        let _ = server.wake();
        asked(n);
    }
}

#[test]
fn an_address_is_set_until_the_next_reset() {
    let world = World::new();
    let mut server = world.started(CTRL_VQ | CTRL_MAC_ADDR);
    let mac = |server: &mut Server<'_>| [0, 1, 2, 3, 4, 5].map(|n| get(server, 0xC0 + n, 1) as u8);
    let set = |mac: [u8; 6]| [&[1, 1][..], &mac].concat();
    assert_eq!(world.command(&mut server, 2, &set(OTHER)), 0);
    assert_eq!(mac(&mut server), OTHER);
    assert_eq!(world.command(&mut server, 2, &set(GROUP)), 1);
    let (mut server, was) = world.server();
    assert!(was);
    assert_eq!(mac(&mut server), OTHER, "a successor's too");
    let _ = out(&mut server, 0x14, 1, 0);
    assert_eq!(mac(&mut server), OWN);
    assert_eq!(world.server().0.model().settings(), &Settings::new(OWN));
}

#[test]
fn frames_that_are_wanted() {
    let world = World::new();
    let mut server = world.started(ALL & !MQ);
    let all = [OWN, OTHER, GROUP, BROADCAST];
    let got = |world: &World, server: &mut Server<'_>| all.map(|whom| wanted(world, server, whom));
    assert_eq!(
        got(&world, &mut server),
        [1, 1, 1, 1],
        "everything at first"
    );
    let mut set = |command: &[u8], answer: u8| {
        assert_eq!(
            world.command(&mut server, 2, command),
            answer,
            "{command:?}"
        );
    };
    set(&[0, 0, 2], 1);
    set(&[0, 6, 0], 1);
    set(&[0, 0, 0], 0);
    assert_eq!(got(&world, &mut server), [1, 0, 0, 1]);
    let table = |one: &[[u8; 6]], many: &[[u8; 6]]| {
        let part =
            |macs: &[[u8; 6]]| [&(macs.len() as u32).to_le_bytes()[..], &macs.concat()].concat();
        [&[1, 0][..], &part(one), &part(many)].concat()
    };
    let mut steps = vec![
        (table(&[OTHER], &[]), [1, 1, 0, 1]),
        (table(&[], &[GROUP]), [1, 0, 1, 1]),
        (table(&[], &[]), [1, 0, 0, 1]),
        // More than are kept: all of that kind.
        (table(&[[2; 6]; 17], &[]), [1, 1, 0, 1]),
        (table(&[], &[[3; 6]; 17]), [1, 0, 1, 1]),
        (table(&[], &[]), [1, 0, 0, 1]),
    ];
    for (mode, got) in [
        ([0, 1, 1], [1, 0, 1, 1]),
        ([0, 2, 1], [1, 1, 1, 1]),
        ([0, 3, 1], [1, 1, 0, 1]),
        ([0, 5, 1], [1, 1, 0, 0]),
        ([0, 4, 1], [0, 0, 0, 0]),
        ([0, 0, 1], [1, 1, 1, 1]),
    ] {
        steps.push((mode.to_vec(), got));
    }
    for (command, want) in steps {
        assert_eq!(world.command(&mut server, 2, &command), 0, "{command:?}");
        if want[0] == 0 {
            // None to itself either, by which `wanted` ends.
            world.arrives(&to(OWN), Offload::default());
            let before = world.used(0).len();
            let _ = server.wake();
            assert_eq!(world.used(0).len(), before);
            continue;
        }
        assert_eq!(got(&world, &mut server), want, "{command:?}");
        (server, _) = world.server();
        assert_eq!(
            got(&world, &mut server),
            want,
            "{command:?}, of a successor"
        );
    }
    let mut short = table(&[OTHER], &[GROUP]);
    short.pop();
    assert_eq!(world.command(&mut server, 2, &short), 1);
    let mut long = table(&[OTHER], &[GROUP]);
    long.push(0);
    assert_eq!(world.command(&mut server, 2, &long), 1);
    assert_eq!(
        world.command(&mut server, 2, &[1, 0, 255, 255, 255, 255, 0, 0]),
        1
    );
}

/// What is sent by a pair is answered by it; a successor goes on with as many pairs.
#[test]
fn each_flow_has_its_pair() {
    let world = World::pairs(2);
    let mut server = world.started(ALL | MRG_RXBUF);
    for pair in 0..2 {
        world.buffers_of(pair, 4);
    }
    let counts = || [world.used(0).len(), world.used(2).len()];
    let ports = [(5000, 1), (5001, 0), (5002, 1), (5003, 0)];
    // One pair is in use.
    world.sends(1, &datagram(5000, 9, false));
    let _ = server.wake();
    world.arrives(&datagram(9, 5000, true), Offload::default());
    let _ = server.wake();
    assert_eq!((counts(), world.left().len()), ([1, 0], 1));
    assert_eq!(world.command(&mut server, 4, &[4, 0, 2, 0]), 0);
    for turn in 0..2 {
        let mut want = counts();
        for (port, pair) in ports {
            world.sends(pair, &datagram(port, 9, false));
            let _ = server.wake();
            assert_eq!(world.left().len(), 1);
            world.arrives(&datagram(9, port, true), Offload::default());
            let _ = server.wake();
            want[usize::from(pair)] += 1;
            // Ports whose flows are one number are their last one's.
            assert_eq!(counts(), want, "{turn} {port}");
            world.buffers_of(pair, 1);
        }
        let (next, was) = world.server();
        assert!(was);
        server = next;
        let _ = server.wake();
    }
    // Less pairs again: all by the first.
    assert_eq!(world.command(&mut server, 4, &[4, 0, 1, 0]), 0);
    world.arrives(&datagram(9, 5000, true), Offload::default());
    let mut want = counts();
    let _ = server.wake();
    want[0] += 1;
    assert_eq!(counts(), want);
}

/// A pair without buffers holds up what comes after, and loses nothing; one whose queue is off has its frames go by the first.
#[test]
fn a_pair_without_buffers() {
    let world = World::pairs(2);
    let mut server = world.started(ALL | 1 << 40);
    assert_eq!(world.command(&mut server, 4, &[4, 0, 2, 0]), 0);
    world.buffers_of(0, 4);
    for (pair, port) in [(1, 5000), (0, 5001)] {
        world.sends(pair, &datagram(port, 9, false));
        let _ = server.wake();
    }
    world.arrives(&datagram(9, 5000, true), Offload::default());
    world.arrives(&datagram(9, 5001, true), Offload::default());
    let _ = server.wake();
    assert_eq!((world.used(0).len(), world.used(2).len()), (0, 0));
    world.buffers_of(1, 1);
    let _ = server.wake();
    assert_eq!((world.used(0).len(), world.used(2).len()), (1, 1));
    world.arrives(&datagram(9, 5000, true), Offload::default());
    let _ = server.wake();
    assert_eq!((world.used(0).len(), world.used(2).len()), (1, 1));
    // The driver resets that queue (2.6.1).
    let _ = out(&mut server, 0x16, 2, 2);
    let _ = out(&mut server, 0x3A, 2, 1);
    let _ = server.wake();
    assert_eq!(world.used(0).len(), 2);
}

/// One that dies before its answer is told: the successor carries the command out again.
#[test]
fn a_command_is_carried_out_by_a_successor() {
    let world = World::pairs(2);
    let mut server = world.started(ALL);
    world.ask(4, &[4, 0, 2, 0]);
    let (mut next, _) = world.server();
    let _ = next.wake();
    assert_eq!((world.said(), world.used(4).len()), (0, 1));
    assert_eq!(next.model().settings().pairs, 2);
    // The old one's doings are no more than what anybody may find in a page.
    let _ = server.wake();
}

#[test]
fn a_command_that_cannot_be_answered() {
    let world = World::pairs(2);
    let mut server = world.started(ALL);
    world.put(COMMAND, &[4, 0, 2, 0]);
    world.descriptor(4, 0, (COMMAND, 4), 0, 0);
    world.offer(4, 0);
    let _ = server.wake();
    let lost = get(&mut server, 0x14, 1) as u8 & status::NEEDS_RESET;
    assert_eq!(lost, status::NEEDS_RESET);
}

proptest! {
    /// Whatever a command is: the answer tells whether it was one, what is set is what a successor finds, and one that was none has
    /// changed nothing. Twice is as good as once.
    #[test]
    fn any_commands(
        commands in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 2..40),
                (0u8..7, 0u8..2).prop_map(|(n, on)| vec![0, n, on]),
                (0u16..4).prop_map(|pairs| [&[4, 0][..], &pairs.to_le_bytes()].concat()),
                any::<[u8; 6]>().prop_map(|mac| [&[1, 1][..], &mac].concat()),
                (0u8..20, 0u8..20, any::<[u8; 6]>(), -1i32..2).prop_map(|(one, many, mac, off)| {
                    let part = |n: u8| [&[n, 0, 0, 0][..], &mac.repeat(n.into())].concat();
                    let mut all = [&[1, 0][..], &part(one), &part(many)].concat();
                    let len = (all.len() as i32 + off) as usize;
                    all.resize(len, 7);
                    all
                }),
            ],
            1..12,
        ),
        features in prop_oneof![Just(ALL), Just(ALL & !CTRL_RX_EXTRA), Just(CTRL_VQ | MQ)],
    ) {
        let world = World::pairs(2);
        let mut server = world.started(features);
        for command in commands {
            let before = server.model().settings().clone();
            let answer = world.command(&mut server, 4, &command);
            let after = server.model().settings().clone();
            prop_assert!(answer == 0 || answer == 1 && after == before);
            prop_assert!((1..=2).contains(&after.pairs));
            let next = world.server().0;
            prop_assert_eq!(next.model().settings(), &after);
            prop_assert_eq!(world.command(&mut server, 4, &command), answer);
            prop_assert_eq!(server.model().settings(), &after);
        }
    }

    /// Words that nobody has saved are none, or what they say.
    #[test]
    fn any_words(words in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..0x2_0000], 0..40)) {
        if let Some(settings) = Settings::from_words(&words, 2) {
            prop_assert_eq!(settings.words(), words);
        }
    }
}
