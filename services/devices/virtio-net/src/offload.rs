//! What a sender may leave to be done of a frame (virtio 1.2, 5.1.6), and doing it for a receiver that will not.
//!
//! Between two guests nothing need be done: a frame without a checksum, or yet to be cut into segments, is handed on as it is, since no cable is
//! between them that could spoil it.

use alloc::vec::Vec;

use ipc_schema::link::{MIN_FRAME, Offload};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};

use crate::feature;

/// Flag: there is a checksum to be computed (5.1.6.2).
pub const NEEDS_CSUM: u8 = 1;
/// Kinds of segmentation.
pub const TCP_V4: u8 = 1;
/// As above, over IPv6.
pub const TCP_V6: u8 = 4;

/// The feature that a kind of segmentation takes, of two.
const fn segments(kind: u8, (v4, v6): (u64, u64)) -> Option<u64> {
    match kind {
        0 => Some(0),
        TCP_V4 => Some(v4),
        TCP_V6 => Some(v6),
        _ => None,
    }
}

/// What a guest that has accepted these features says of a frame that it sends, with nothing in it but what it may say. `None`: it may not.
#[must_use]
pub fn sent(offload: Offload, frame: u32, features: u64) -> Option<Offload> {
    let cuts = segments(offload.gso_type, (feature::HOST_TSO4, feature::HOST_TSO6))?;
    let sums = offload.flags & NEEDS_CSUM != 0;
    if !sums {
        return (cuts == 0).then(Offload::default);
    }
    let field = u32::from(offload.csum_start) + u32::from(offload.csum_offset);
    let sound = features & feature::CSUM != 0
        && features & cuts == cuts
        && u32::from(offload.csum_start) >= MIN_FRAME
        && field + 2 <= frame
        && (cuts == 0 || offload.gso_size != 0);
    sound.then_some(Offload {
        flags: NEEDS_CSUM,
        gso_size: if cuts == 0 { 0 } else { offload.gso_size },
        hdr_len: if cuts == 0 { 0 } else { offload.hdr_len },
        ..offload
    })
}

/// What is to be done of a frame before a guest takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    None,
    /// [`finish`].
    Some,
    /// No sender may have said this.
    Impossible,
}

/// What is to be done for a guest that has accepted these features.
#[must_use]
pub fn work(offload: Offload, frame: u32, features: u64) -> Work {
    let all = feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6;
    if sent(offload, frame, all) != Some(offload) {
        return Work::Impossible;
    }
    let cuts = segments(offload.gso_type, (feature::GUEST_TSO4, feature::GUEST_TSO6));
    let sums = if offload.flags & NEEDS_CSUM != 0 {
        feature::GUEST_CSUM
    } else {
        0
    };
    let wanted = cuts.unwrap_or(0) | sums;
    if features & wanted == wanted {
        Work::None
    } else {
        Work::Some
    }
}

/// Bytes of a frame at an offset; `None`: they cannot be had.
pub trait Read: Fn(u32, &mut [u8]) -> Option<()> {}

impl<T: Fn(u32, &mut [u8]) -> Option<()>> Read for T {}

/// Longest headers of a segment: Ethernet's, IP's and TCP's.
const MAX_HEADERS: usize = 14 + 60 + 60;

/// Does what was left to be done of a frame of so many bytes. `None`: it is not what is said of it, or would be more than `most` segments.
#[must_use]
pub fn finish(read: &impl Read, frame: u32, offload: Offload, most: usize) -> Option<Vec<Vec<u8>>> {
    if offload.gso_type == 0 {
        let mut bytes = alloc::vec![0; frame as usize];
        read(0, &mut bytes)?;
        checksum(&mut bytes, offload)?;
        return Some(alloc::vec![bytes]);
    }
    cut(read, frame, offload, most)
}

/// Adds up what is to be; the field has what the sender has added up already.
fn checksum(frame: &mut [u8], offload: Offload) -> Option<()> {
    let start = usize::from(offload.csum_start);
    let field = start + usize::from(offload.csum_offset);
    let words = frame.get(start..)?.chunks(2);
    let add = |sum: u32, word: &[u8]| match *word {
        [high, low] => sum + u32::from(u16::from_be_bytes([high, low])),
        [high] => sum + (u32::from(high) << 8),
        _ => sum,
    };
    // At most 32 Ki words of 16 bits.
    let mut sum = words.fold(0, add);
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    // 0 says that there is none (RFC 768); all ones are the same sum.
    let sum = match !(sum as u16) {
        0 => 0xFFFF,
        sum => sum,
    };
    frame
        .get_mut(field..field + 2)?
        .copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Cuts a TCP segment that is too large into those that its sender would have sent. The whole is nowhere beside them: there is memory for
/// one of both.
fn cut(read: &impl Read, frame: u32, offload: Offload, most: usize) -> Option<Vec<Vec<u8>>> {
    let mut begin = [0; MAX_HEADERS];
    let begin = begin.get_mut(..MAX_HEADERS.min(frame as usize))?;
    read(0, begin)?;
    let begin = &*begin;
    let ethernet = EthernetFrame::new_checked(begin).ok()?;
    let four = match (ethernet.ethertype(), offload.gso_type) {
        (EthernetProtocol::Ipv4, TCP_V4) => true,
        (EthernetProtocol::Ipv6, TCP_V6) => false,
        _ => return None,
    };
    let network = EthernetFrame::<&[u8]>::header_len();
    let transport = usize::from(offload.csum_start);
    let tcp = TcpPacket::new_checked(begin.get(transport..)?).ok()?;
    let headers = transport + usize::from(tcp.header_len());
    let (sequence, last) = (tcp.seq_number(), (tcp.fin(), tcp.psh()));
    let head = begin.get(..headers)?;
    let payload = (frame as usize).checked_sub(headers)?;
    let size = usize::from(offload.gso_size.max(1));
    let count = payload.div_ceil(size);
    if count > most {
        return None;
    }
    let mut all = Vec::new();
    for number in 0..count {
        let offset = number * size;
        let len = headers + size.min(payload - offset);
        let mut one = alloc::vec![0; len];
        let (to, piece) = one.split_at_mut(headers);
        to.copy_from_slice(head);
        read((headers + offset) as u32, piece)?;
        let packet = one.get_mut(network..)?;
        let addresses: (IpAddress, IpAddress) = if four {
            // The whole's length, which it still says, is not its own.
            packet.get(..smoltcp::wire::IPV4_HEADER_LEN)?;
            let mut ip = Ipv4Packet::new_unchecked(packet);
            if ip.next_header() != IpProtocol::Tcp
                || network + usize::from(ip.header_len()) != transport
            {
                return None;
            }
            ip.set_total_len(u16::try_from(len - network).ok()?);
            ip.set_ident(ip.ident().wrapping_add(number as u16));
            ip.fill_checksum();
            (ip.src_addr().into(), ip.dst_addr().into())
        } else {
            packet.get(..smoltcp::wire::IPV6_HEADER_LEN)?;
            let mut ip = Ipv6Packet::new_unchecked(packet);
            if ip.next_header() != IpProtocol::Tcp || network + ip.header_len() != transport {
                return None;
            }
            ip.set_payload_len(u16::try_from(len - network - ip.header_len()).ok()?);
            (ip.src_addr().into(), ip.dst_addr().into())
        };
        let mut tcp = TcpPacket::new_checked(one.get_mut(transport..)?).ok()?;
        tcp.set_seq_number(sequence + offset);
        if number + 1 < count {
            tcp.set_fin(false);
            tcp.set_psh(false);
        } else {
            tcp.set_fin(last.0);
            tcp.set_psh(last.1);
        }
        tcp.fill_checksum(&addresses.0, &addresses.1);
        all.push(one);
    }
    Some(all)
}
