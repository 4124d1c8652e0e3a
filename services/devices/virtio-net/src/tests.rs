//! The whole device against a driver's side and a switch's side, written out by hand.

use crate::feature::{CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, HOST_TSO6, MRG_RXBUF};
use crate::offload::{NEEDS_CSUM, TCP_V4, TCP_V6, Work, finish, sent, work};
use crate::server::{Parts, Server, Signals};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::link::{
    HEADER, LINK_BYTES, LinkPage, MAX_FRAME, NetConfig, Offload, Receiver, Sender, Way, header,
    packet, parse,
};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::{NO_VECTOR, status};
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, Ipv4Address, Ipv4Packet, Ipv6Address, Ipv6Packet, TcpPacket};
use virtio::Memory;

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
            },
        }
    }
    fn server(&self) -> (Server<'_>, bool) {
        Server::new(&Parts {
            config: &self.config,
            memory: &self.ram,
            irq: &self.irq,
            state: &self.state,
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
        (0x0C, 4, 1),
        (0x14, 1, 11),
    ] {
        let _ = out(server, offset, width, value);
    }
    assert_eq!(get(server, 0x14, 1), 11, "the features are agreed on");
    for queue in 0..2 {
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
    assert!(signals.vmm && !signals.switch, "nobody waited");
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

#[test]
fn what_a_guest_may_leave_to_be_done() {
    let sums = Offload {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::default()
    };
    let cuts = Offload {
        gso_type: TCP_V4,
        gso_size: 1448,
        hdr_len: 54,
        ..sums
    };
    assert_eq!(sent(sums, 52, CSUM), Some(sums));
    assert_eq!(sent(sums, 51, CSUM), None, "past the end");
    assert_eq!(sent(sums, 60, 0), None, "not agreed on");
    let early = Offload {
        csum_start: 13,
        ..sums
    };
    assert_eq!(sent(early, 60, CSUM), None);
    assert_eq!(sent(cuts, 60, CSUM), None);
    assert_eq!(sent(cuts, 60, CSUM | HOST_TSO4), Some(cuts));
    for bad in [
        Offload {
            gso_size: 0,
            ..cuts
        },
        Offload { flags: 0, ..cuts },
        Offload {
            gso_type: TCP_V6,
            ..cuts
        },
        Offload {
            gso_type: TCP_V4 | 0x80,
            ..cuts
        },
        Offload {
            gso_type: 3,
            ..cuts
        },
    ] {
        assert_eq!(sent(bad, 60, CSUM | HOST_TSO4), None, "{bad:?}");
        let all = CSUM | HOST_TSO4 | HOST_TSO6;
        let is = work(bad, 60, u64::MAX);
        assert_eq!(is == Work::Impossible, sent(bad, 60, all).is_none());
    }
    assert_eq!(work(Offload::default(), 60, 0), Work::None);
    assert_eq!(work(sums, 60, 0), Work::Some);
    assert_eq!(work(sums, 60, GUEST_CSUM), Work::None);
    assert_eq!(work(cuts, 60, GUEST_CSUM), Work::Some);
    assert_eq!(work(cuts, 60, GUEST_CSUM | GUEST_TSO4), Work::None);
}

/// A TCP segment that is too large, as a sender hands it on: the pseudo header's sum is in the checksum field.
fn segment(v4: bool, payload: &[u8], fin: bool) -> (Vec<u8>, Offload) {
    let network = if v4 { 20 } else { 40 };
    let start = 14 + network;
    let mut frame = vec![0; start + 20];
    frame.extend(payload);
    frame[12..14].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xDD] });
    if v4 {
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_ident(7);
        ip.set_next_header(smoltcp::wire::IpProtocol::Tcp);
        ip.set_src_addr(Ipv4Address::new(10, 0, 0, 1));
        ip.set_dst_addr(Ipv4Address::new(10, 0, 0, 2));
    } else {
        let mut ip = Ipv6Packet::new_unchecked(&mut frame[14..]);
        ip.set_version(6);
        ip.set_next_header(smoltcp::wire::IpProtocol::Tcp);
        ip.set_src_addr(Ipv6Address::new(1, 2, 3, 4, 5, 6, 7, 8));
        ip.set_dst_addr(Ipv6Address::new(1, 2, 3, 4, 5, 6, 7, 9));
    }
    let len = frame.len() - 14;
    if v4 {
        Ipv4Packet::new_unchecked(&mut frame[14..]).set_total_len(len.min(65_535) as u16);
    } else {
        Ipv6Packet::new_unchecked(&mut frame[14..]).set_payload_len((len - 40).min(65_535) as u16);
    }
    let mut tcp = TcpPacket::new_unchecked(&mut frame[start..]);
    tcp.set_header_len(20);
    tcp.set_seq_number(smoltcp::wire::TcpSeqNumber(-500));
    tcp.set_ack(true);
    tcp.set_psh(true);
    tcp.set_fin(fin);
    let offload = Offload {
        flags: NEEDS_CSUM,
        gso_type: if v4 { TCP_V4 } else { TCP_V6 },
        hdr_len: start as u16 + 20,
        gso_size: 1448,
        csum_start: start as u16,
        csum_offset: 16,
    };
    (frame, offload)
}

fn addresses(v4: bool, frame: &[u8]) -> (IpAddress, IpAddress) {
    if v4 {
        let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert!(ip.verify_checksum());
        (ip.src_addr().into(), ip.dst_addr().into())
    } else {
        let ip = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        (ip.src_addr().into(), ip.dst_addr().into())
    }
}

proptest! {
    /// What is cut is what was sent, in segments that are right by themselves.
    #[test]
    fn cut_segments_make_up_the_whole(v4: bool, fin: bool, len in 1usize..60_000) {
        let payload = frame(len);
        let (large, offload) = segment(v4, &payload, fin);
        let start = usize::from(offload.csum_start);
        let pieces = finish(large, offload, 64).unwrap();
        prop_assert_eq!(pieces.len(), len.div_ceil(1448));
        let mut got: Vec<u8> = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            let (from, to) = addresses(v4, piece);
            let tcp = TcpPacket::new_checked(&piece[start..]).unwrap();
            prop_assert!(tcp.verify_checksum(&from, &to));
            prop_assert_eq!(tcp.seq_number().0, -500 + got.len() as i32);
            let last = n + 1 == pieces.len();
            prop_assert_eq!((tcp.fin(), tcp.psh()), (fin && last, last));
            prop_assert!(tcp.payload().len() <= 1448);
            got.extend(tcp.payload());
        }
        prop_assert_eq!(got, payload);
    }

    /// A checksum that is left to be computed; the pseudo header's sum stands in its place.
    #[test]
    fn checksums(v4: bool, len in 0usize..3000) {
        let (mut frame, offload) = segment(v4, &frame(len), false);
        if v4 {
            Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
        }
        let start = usize::from(offload.csum_start);
        let (from, to) = addresses(v4, &frame);
        // What the segment would have, less what it sums up itself.
        let mut right = frame.clone();
        TcpPacket::new_unchecked(&mut right[start..]).fill_checksum(&from, &to);
        let sum = |bytes: &[u8]| {
            let halves = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)));
            halves.fold(0u32, |s, h| { let s = s + h; (s & 0xFFFF) + (s >> 16) })
        };
        let own = sum(&frame[start..]);
        let whole = !u32::from(TcpPacket::new_unchecked(&right[start..]).checksum()) & 0xFFFF;
        let pseudo = ((whole + 0xFFFF - own) % 0xFFFF) as u16;
        frame[start + 16..start + 18].copy_from_slice(&pseudo.to_be_bytes());
        let done = finish(frame, Offload { gso_type: 0, gso_size: 0, hdr_len: 0, ..offload }, 1).unwrap();
        let tcp = TcpPacket::new_unchecked(&done[0][start..]);
        prop_assert!(tcp.verify_checksum(&from, &to));
    }

    /// Whatever a sender says of whatever bytes.
    #[test]
    fn any_offload(bytes in prop::collection::vec(any::<u8>(), 14..200), words: [u8; 10], start in 0u16..80, v4: bool) {
        let kind = if v4 { TCP_V4 } else { TCP_V6 };
        for gso_type in [0, kind, words[1]] {
            let offload = Offload { gso_type, csum_start: start, ..Offload::from_bytes(words) };
            let _ = finish(bytes.clone(), offload, 8);
        }
    }
}

/// A guest that takes neither gets segments and sums.
#[test]
fn a_guest_that_does_nothing_itself() {
    let world = World::new();
    let mut server = world.started(0);
    world.buffers(&[1600, 1600, 1600]);
    let (large, offload) = segment(true, &frame(3000), false);
    world.arrives(&large, offload);
    let _ = server.wake();
    let lens: Vec<u32> = world.used(0).iter().map(|u| u.1).collect();
    assert_eq!(lens, [66 + 1448, 66 + 1448, 66 + 104]);
}
