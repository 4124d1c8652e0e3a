//! The whole device against a driver's side and a switch's side, written out by hand.

mod offload;
mod queues;

use crate::feature::MRG_RXBUF;
use crate::offload::NEEDS_CSUM;
use crate::server::{Parts, Server, begin};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::link::{
    HEADER, LINK_BYTES, LinkPage, MAX_FRAME, NetConfig, Offload, Receiver, Sender, Way, header,
    packet, parse,
};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::{NO_VECTOR, status};
use virtio::device::Pages;
use virtio::{Memory, Signals};

const SIZE: u16 = 8;
const DATA: u64 = 0x1_0000;
const EACH: u64 = 0x2_0000;

/// Descriptors, available ring, used ring of a queue.
const fn rings(queue: u16) -> [u64; 3] {
    let base = 0x1000 + 0x3000 * queue as u64;
    [base, base + 0x1000, base + 0x2000]
}

struct World {
    ram: Memory,
    link: Memory,
    page: LinkPage,
    irq: InterruptPage,
    state: StatePage,
    config: NetConfig,
}

impl World {
    fn new() -> Self {
        Self {
            ram: Memory::owned(&[(0, 0x40_0000)]),
            link: Memory::owned(&[(0, LINK_BYTES)]),
            page: LinkPage::new(),
            irq: InterruptPage::new(),
            state: StatePage::new(),
            config: NetConfig {
                mac: [2, 1, 2, 3, 4, 5],
                packed: true,
                pairs: 1,
            },
        }
    }
    fn server(&self) -> (Server<'_>, bool) {
        begin(&Parts {
            config: &self.config,
            pages: Pages {
                memory: &self.ram,
                irq: &self.irq,
                state: &self.state,
            },
            page: &self.page,
            link: &self.link,
        })
    }
    fn started(&self, features: u64) -> Server<'_> {
        let (mut server, was) = self.server();
        assert!(!was);
        start(&mut server, features);
        server
    }
    fn half(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.ram.read(gpa, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write(gpa, bytes).unwrap();
    }
    fn descriptor(&self, queue: u16, index: u16, (gpa, len): (u64, u32), flags: u16, next: u16) {
        let at = rings(queue)[0] + 16 * u64::from(index);
        self.put(at, &gpa.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }
    fn offer(&self, queue: u16, head: u16) {
        let at = rings(queue)[1];
        let index = self.half(at + 2);
        self.put(at + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.put(at + 2, &index.wrapping_add(1).to_le_bytes());
    }
    fn used(&self, queue: u16) -> Vec<(u16, u32)> {
        let at = rings(queue)[2];
        let element = |n: u16| {
            let mut bytes = [0; 8];
            self.ram
                .read(at + 4 + 8 * u64::from(n % SIZE), &mut bytes)
                .unwrap();
            let word = u64::from_le_bytes(bytes);
            (word as u16, (word >> 32) as u32)
        };
        (0..self.half(at + 2)).map(element).collect()
    }
    /// Receive buffers of these lengths.
    fn buffers(&self, lens: &[u32]) {
        for (n, len) in (0u16..).zip(lens) {
            let gpa = DATA + EACH * u64::from(n);
            self.descriptor(0, n, (gpa, *len), 2, 0);
            self.offer(0, n);
        }
    }
    /// The switch sends.
    fn arrives(&self, frame: &[u8], offload: Offload) {
        let mut sender = Sender::new(&self.page, Way::ToDevice);
        let all = [&header(frame.len() as u32, offload), frame].concat();
        let mut at = 0;
        for (place, len) in sender.spans(0, all.len() as u32) {
            self.link.write(place, &all[at..at + len as usize]).unwrap();
            at += len as usize;
        }
        let _ = sender.send(frame.len() as u32);
    }
    /// What the switch finds.
    fn left(&self) -> Vec<(Vec<u8>, Offload)> {
        let mut receiver = Receiver::new(&self.page, Way::FromDevice);
        let mut all = Vec::new();
        let there = receiver.available();
        let mut bytes = vec![0; there as usize];
        let mut at = 0;
        for (place, len) in receiver.spans(0, there) {
            self.link
                .read(place, &mut bytes[at..at + len as usize])
                .unwrap();
            at += len as usize;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (len, offload) = parse(*rest.first_chunk().unwrap()).unwrap();
            let frame = rest[HEADER as usize..(HEADER + len) as usize].to_vec();
            all.push((frame, offload));
            rest = &rest[packet(len) as usize..];
            let _ = receiver.done(len);
        }
        all
    }
}

fn out(server: &mut Server<'_>, offset: u16, width: u8, value: u32) -> Signals {
    let port = PortAccess::new(0xC000 + offset, width, false);
    server.access(port, value).1
}

fn get(server: &mut Server<'_>, offset: u16, width: u8) -> u32 {
    let port = PortAccess::new(0xC000 + offset, width, true);
    server.access(port, 0).0
}

/// As a driver begins (virtio 1.2, 3.1.1).
fn start(server: &mut Server<'_>, features: u64) {
    for (offset, width, value) in [
        (0x14, 1, 0),
        (0x14, 1, 3),
        (0x08, 4, 0),
        (0x0C, 4, features as u32),
        (0x08, 4, 1),
        (0x0C, 4, 1 | (features >> 32) as u32),
        (0x14, 1, 11),
    ] {
        let _ = out(server, offset, width, value);
    }
    assert_eq!(get(server, 0x14, 1), 11, "the features are agreed on");
    let queues = get(server, 0x12, 2) as u16;
    for queue in 0..queues {
        let [descriptors, available, used] = rings(queue);
        for (offset, width, value) in [
            (0x16, 2, queue.into()),
            (0x18, 2, SIZE.into()),
            (0x1A, 2, NO_VECTOR.into()),
            (0x20, 4, descriptors as u32),
            (0x28, 4, available as u32),
            (0x30, 4, used as u32),
            (0x1C, 2, 1),
        ] {
            let _ = out(server, offset, width, value);
        }
    }
    let _ = out(server, 0x14, 1, 15);
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + len) as u8).collect()
}

#[test]
fn configuration() {
    let world = World::new();
    let mut server = world.started(0);
    let byte = |server: &mut Server<'_>, n: u16| get(server, 0xC0 + n, 1);
    let mac: Vec<u32> = (0..6).map(|n| byte(&mut server, n)).collect();
    assert_eq!(mac, [2, 1, 2, 3, 4, 5]);
    assert_eq!(get(&mut server, 0xC6, 2), 1, "link up");
    assert_eq!(get(&mut server, 0xC8, 2), 1, "a pair of queues");
}

/// Frames that are put off leave with the next reason to look, and the driver notifies nobody meanwhile.
#[test]
fn frames_that_wait() {
    let world = World::new();
    assert!(!world.server().0.hold(1), "it does not run");
    let mut server = world.started(0);
    let reader = ipc_schema::interrupt_page::InterruptReader::function(&world.irq);
    let flags = |queue| world.half(rings(queue)[2]);
    let send = |n: u16| {
        world.descriptor(1, n, (DATA, 12 + 60), 0, 0);
        world.offer(1, n);
    };
    let _ = server.wake();
    assert_eq!(flags(1), 0, "it is to be told");
    send(0);
    assert!(server.hold(1));
    assert_eq!((flags(1), reader.take_held()), (1, 0b10));
    send(1);
    assert!(!server.hold(1), "not twice");
    assert_eq!(world.left().len(), 0);
    let _ = server.wake();
    assert_eq!((world.left().len(), world.used(1).len()), (2, 2));
    assert_eq!(flags(1), 0);
    // Whoever is looked at needs no ring; nor is there a queue 2.
    assert!(server.hold(1));
    let _ = server.wake();
    assert_eq!(reader.take_held(), 0);
    assert!(!server.hold(2));
}

#[test]
fn frames_leave_wherever_their_parts_are() {
    let world = World::new();
    let mut server = world.started(0);
    let sent = frame(1514);
    // The header over two parts, the frame over four, one of them empty.
    let all = [&[0; 12][..], &sent].concat();
    let mut at = 0;
    let cuts = [5, 30, 0, 700, all.len() - 735];
    for (n, len) in (0u16..).zip(cuts) {
        let gpa = DATA + EACH * u64::from(n);
        world.put(gpa, &all[at..at + len]);
        let next = u16::from(n < 4);
        world.descriptor(1, n, (gpa, len as u32), next, n + 1);
        at += len;
    }
    world.offer(1, 0);
    let signals = out(&mut server, 0x82, 2, 1);
    assert!(signals.vmm && !signals.peer, "nobody waited");
    assert_eq!(world.left(), [(sent, Offload::default())]);
    assert_eq!(world.used(1), [(0, 0)]);
}

/// A lane that is full holds the guest's frames back; room lets them go, in order.
#[test]
fn a_full_lane_is_waited_for() {
    let world = World::new();
    let mut server = world.started(0);
    let large = frame(60_000);
    world.put(DATA, &[&[0; 12][..], &large].concat());
    world.descriptor(1, 0, (DATA, 60_012), 0, 0);
    for n in 1..=5 {
        world.offer(1, 0);
        let _ = server.wake();
        assert_eq!(world.used(1).len(), n.min(2));
    }
    assert_eq!(world.left().len(), 2);
    let _ = server.wake();
    assert_eq!(world.left().len(), 2);
    let _ = server.wake();
    assert_eq!(world.left(), [(large, Offload::default())]);
}

#[test]
fn frames_arrive_in_merged_buffers() {
    let world = World::new();
    let mut server = world.started(MRG_RXBUF);
    world.buffers(&[100, 13, 2000, 2000]);
    let (one, two) = (frame(1000), frame(60));
    world.arrives(&one, Offload::default());
    assert!(server.wake().vmm);
    world.arrives(&two, Offload::default());
    let _ = server.wake();
    assert_eq!(world.used(0), [(0, 100), (1, 13), (2, 899), (3, 72)]);
    let mut got = Vec::new();
    for (n, len) in world.used(0) {
        let mut bytes = vec![0; len as usize];
        world
            .ram
            .read(DATA + EACH * u64::from(n), &mut bytes)
            .unwrap();
        got.extend(bytes);
    }
    let head = |buffers| [[0; 10].as_slice(), &[buffers, 0]].concat();
    assert_eq!(got, [head(3), one, head(1), two].concat());
}

#[test]
fn without_buffers_frames_wait() {
    let world = World::new();
    let mut server = world.started(0);
    world.arrives(&frame(60), Offload::default());
    let _ = server.wake();
    assert!(world.used(0).is_empty());
    // Too small for it, and no merging: it is lost, the buffer is not.
    world.buffers(&[40]);
    let _ = server.wake();
    assert!(world.used(0).is_empty());
    world.arrives(&frame(20), Offload::default());
    let _ = server.wake();
    assert_eq!(world.used(0), [(0, 32)]);
}

#[test]
fn a_successor_goes_on() {
    let world = World::new();
    let mut server = world.started(MRG_RXBUF);
    world.buffers(&[2000, 2000]);
    world.arrives(&frame(100), Offload::default());
    let _ = server.wake();
    world.arrives(&frame(200), Offload::default());
    let (mut server, was) = world.server();
    assert!(was);
    let _ = server.wake();
    assert_eq!(world.used(0), [(0, 112), (1, 212)]);
}

#[test]
fn what_makes_no_sense_needs_a_reset() {
    type Spoil = fn(&World);
    let ways: [Spoil; 4] = [
        |w| {
            w.descriptor(1, 0, (DATA, 100), 1, 0);
            w.offer(1, 0);
        },
        |w| {
            w.descriptor(1, 0, (u64::MAX, 100), 0, 0);
            w.offer(1, 0);
        },
        |w| w.buffers(&[11]),
        |w| w.offer(0, SIZE),
    ];
    for spoil in ways {
        let world = World::new();
        let mut server = world.started(0);
        spoil(&world);
        world.arrives(&frame(60), Offload::default());
        assert!(server.wake().vmm);
        let lost = get(&mut server, 0x14, 1) as u8 & status::NEEDS_RESET;
        assert_eq!(lost, status::NEEDS_RESET);
        assert!(!server.wake().vmm, "it does nothing more");
        let _ = out(&mut server, 0x14, 1, 0);
        assert_eq!(get(&mut server, 0x14, 1), 0);
    }
}

/// Frames that are none are dropped, and the device goes on.
#[test]
fn a_frame_that_makes_no_sense_is_dropped() {
    let world = World::new();
    let mut server = world.started(0);
    for (len, flags) in [(12, 0), (25, 0), (12 + MAX_FRAME + 1, 0), (100, NEEDS_CSUM)] {
        world.put(DATA, &[flags]);
        world.descriptor(1, 0, (DATA, len), 0, 0);
        world.offer(1, 0);
        let _ = server.wake();
        assert!(world.left().is_empty(), "{len} {flags}");
    }
    assert_eq!(world.used(1).len(), 4);
    assert_eq!(get(&mut server, 0x14, 1), 15);
}
