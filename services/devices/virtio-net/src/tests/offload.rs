//! What senders leave to be done: what is taken, and what is done of it.

use super::{World, frame};
use crate::feature::{CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, HOST_TSO6};
use crate::offload::{NEEDS_CSUM, TCP_V4, TCP_V6, Work, sent, work};
use ipc_schema::link::Offload;
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, Ipv4Address, Ipv4Packet, Ipv6Address, Ipv6Packet, TcpPacket};

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

fn finish(whole: Vec<u8>, offload: Offload, most: usize) -> Option<Vec<Vec<u8>>> {
    let read = |offset: u32, to: &mut [u8]| {
        let from = whole.get(offset as usize..)?.get(..to.len())?;
        to.copy_from_slice(from);
        Some(())
    };
    crate::offload::finish(&read, whole.len() as u32, offload, most)
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
