//! A network link in shared memory: packets between a device model and the switch, both ways.
//!
//! The first page is [`LinkPage`]: of each way how many bytes were ever put in and taken out. Behind it are the two lanes' bytes. A packet
//! is a [`HEADER`] and a frame, and begins on a multiple of [`ALIGN`]; where a lane ends it goes on at its beginning. This module has the
//! indices and says where bytes are; who copies them has the memory ([`Spans`]).
//!
//! Trust: none. Each side keeps its own index for itself and bounds the other's; what is in a lane is an allegation. A hostile side can
//! lose, repeat or garble packets of this one link, as a cable may; it can make the other neither leave the memory nor loop.
//!
//! Restart: a successor goes on from the indices ([`Sender::new`], [`Receiver::new`]). A packet that was taken out and not yet said to be
//! comes again, as on a network it may. Both sides signal each other at their start.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::ring::{announce, take_announcement};

/// Bytes of a lane. A power of two, so that free-running 32-bit indices wrap without a seam.
pub const LANE: u32 = 128 << 10;
/// Bytes of the shared memory.
pub const LINK_BYTES: u64 = 4096 + 2 * LANE as u64;
/// Bytes before a frame: its length, and [`Offload`].
pub const HEADER: u32 = 16;
/// Where packets begin.
pub const ALIGN: u32 = 16;
/// Bytes of an Ethernet header.
pub const MIN_FRAME: u32 = 14;
/// Longest frame: an IP packet of 64 KiB that is yet to be cut into segments, behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME: u32 = 65_535 + 18;
/// Most bytes that a packet takes.
pub const MAX_PACKET: u32 = packet(MAX_FRAME);

/// Bytes that a packet with such a frame takes.
#[must_use]
pub const fn packet(frame: u32) -> u32 {
    (HEADER + frame).next_multiple_of(ALIGN)
}

/// What `switch` is told at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchConfig {
    /// Port n's link is region `link:n`, its device model the Notification `port:n`.
    pub ports: Vec<PortConfig>,
}

/// A port of the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    /// Its device's instance, for the log.
    pub name: String,
    /// Ports of one network reach each other, and no others.
    pub network: u32,
    /// Bytes per second that it may send; 0: no limit.
    pub rate: u64,
}

/// What a device model of a network card is told at its start. Its link is region `link`, the switch the Notification `switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// Packed virtqueues are offered.
    pub packed: bool,
    /// Pairs of queues, at most [`MAX_PAIRS`](crate::virtio::MAX_PAIRS).
    pub pairs: u16,
}

/// What the sender left to be done of a frame: the first words of a virtio network header (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Flags.
    pub flags: u8,
    /// Kind of segmentation.
    pub gso_type: u8,
    /// Bytes of headers.
    pub hdr_len: u16,
    /// Bytes of payload in a segment.
    pub gso_size: u16,
    /// Where the checksum's sum begins.
    pub csum_start: u16,
    /// Where in that the checksum goes.
    pub csum_offset: u16,
}

impl Offload {
    /// From a network header's bytes.
    #[must_use]
    pub fn from_bytes(b: [u8; 10]) -> Self {
        let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        }
    }

    /// As a network header's bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 10] {
        let (h, g) = (self.hdr_len.to_le_bytes(), self.gso_size.to_le_bytes());
        let (s, o) = (
            self.csum_start.to_le_bytes(),
            self.csum_offset.to_le_bytes(),
        );
        [
            self.flags,
            self.gso_type,
            h[0],
            h[1],
            g[0],
            g[1],
            s[0],
            s[1],
            o[0],
            o[1],
        ]
    }
}

/// A packet's header.
#[must_use]
pub const fn header(frame: u32, offload: Offload) -> [u8; HEADER as usize] {
    let [p, q, r, s] = frame.to_le_bytes();
    let [a, b, c, d, e, f, g, h, i, j] = offload.to_bytes();
    [p, q, r, s, a, b, c, d, e, f, g, h, i, j, 0, 0]
}

/// Reads a header. `None`: no frame is so long.
#[must_use]
pub fn parse(header: [u8; HEADER as usize]) -> Option<(u32, Offload)> {
    let (len, rest) = header.split_first_chunk::<4>()?;
    let (offload, _) = rest.split_first_chunk::<10>()?;
    let len = u32::from_le_bytes(*len);
    (MIN_FRAME..=MAX_FRAME)
        .contains(&len)
        .then(|| (len, Offload::from_bytes(*offload)))
}

#[repr(C, align(64))]
struct Index {
    value: AtomicU32,
    /// Its owner sleeps until the other's moves.
    waits: AtomicU32,
    _line: [AtomicU32; 14],
}

impl Index {
    const fn new() -> Self {
        Self {
            value: AtomicU32::new(0),
            waits: AtomicU32::new(0),
            _line: [const { AtomicU32::new(0) }; 14],
        }
    }
}

#[repr(C)]
struct Lane {
    head: Index,
    tail: Index,
}

impl Lane {
    const fn new() -> Self {
        Self {
            head: Index::new(),
            tail: Index::new(),
        }
    }
}

/// The first page. Zeroes are two empty lanes.
#[repr(C, align(4096))]
pub struct LinkPage {
    from_device: Lane,
    to_device: Lane,
}

const _: () = assert!(size_of::<LinkPage>() == 4096);

impl LinkPage {
    /// Two empty lanes; the same as zeroes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            from_device: Lane::new(),
            to_device: Lane::new(),
        }
    }

    fn lane(&self, way: Way) -> (&Lane, u64) {
        match way {
            Way::FromDevice => (&self.from_device, 4096),
            Way::ToDevice => (&self.to_device, 4096 + u64::from(LANE)),
        }
    }
}

impl Default for LinkPage {
    fn default() -> Self {
        Self::new()
    }
}

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The device model sends.
    FromDevice,
    /// The switch sends.
    ToDevice,
}

/// Where bytes of a packet are in the shared memory: offsets and lengths, the second part empty unless the lane ends between.
pub type Spans = [(u64, u32); 2];

const fn at(base: u64, index: u32) -> u64 {
    base + (index & (LANE - 1)) as u64
}

fn spans(base: u64, index: u32, len: u32) -> Spans {
    let at = index & (LANE - 1);
    let first = len.min(LANE - at);
    [(base + u64::from(at), first), (base, len - first)]
}

/// The sending end. There must be only one of a lane.
pub struct Sender<'a> {
    lane: &'a Lane,
    base: u64,
    head: u32,
}

impl<'a> Sender<'a> {
    /// Takes the sending end, going on where a predecessor stopped.
    #[must_use]
    pub fn new(page: &'a LinkPage, way: Way) -> Self {
        let (lane, base) = page.lane(way);
        // Packets begin aligned, whatever the page says.
        let head = lane.head.value.load(Ordering::Relaxed) & !(ALIGN - 1);
        Self { lane, base, head }
    }

    /// Bytes that there is room for.
    #[must_use]
    pub fn room(&self) -> u32 {
        let tail = self.lane.tail.value.load(Ordering::Acquire);
        // A receiver that says more than can be has a full lane.
        LANE.saturating_sub(self.head.wrapping_sub(tail))
    }

    /// Where the [`ALIGN`] bytes at `offset`, a multiple of it, of the next packet go: they never go over the lane's end.
    #[must_use]
    pub const fn at(&self, offset: u32) -> u64 {
        at(self.base, self.head.wrapping_add(offset))
    }

    /// Where `len` bytes at `offset` of the next packet go.
    #[must_use]
    pub fn spans(&self, offset: u32, len: u32) -> Spans {
        spans(self.base, self.head.wrapping_add(offset), len)
    }

    /// The packet with such a frame is written, and there was room for it. True: the receiver is to be signalled.
    #[must_use]
    pub fn send(&mut self, frame: u32) -> bool {
        self.head = self.head.wrapping_add(packet(frame));
        self.lane.head.value.store(self.head, Ordering::Release);
        take_announcement(&self.lane.tail.waits)
    }

    /// Announces that room for `len` bytes is waited for; false: it is there.
    #[must_use]
    pub fn prepare_sleep(&self, len: u32) -> bool {
        announce(&self.lane.head.waits, || self.room() < len)
    }
}

/// The receiving end. There must be only one of a lane.
pub struct Receiver<'a> {
    lane: &'a Lane,
    base: u64,
    tail: u32,
}

impl<'a> Receiver<'a> {
    /// Takes the receiving end, going on where a predecessor stopped.
    #[must_use]
    pub fn new(page: &'a LinkPage, way: Way) -> Self {
        let (lane, base) = page.lane(way);
        let tail = lane.tail.value.load(Ordering::Relaxed) & !(ALIGN - 1);
        Self { lane, base, tail }
    }

    /// The sender's index; packets begin aligned, whatever it says.
    fn head(&self) -> u32 {
        self.lane.head.value.load(Ordering::Acquire) & !(ALIGN - 1)
    }

    /// Bytes that are there: 0, or a header's at least.
    #[must_use]
    pub fn available(&mut self) -> u32 {
        let head = self.head();
        let there = head.wrapping_sub(self.tail);
        if there > LANE {
            // No sender of ours: what is there is lost.
            self.skip(head);
            return 0;
        }
        there
    }

    fn skip(&mut self, to: u32) {
        self.tail = to;
        self.lane.tail.value.store(to, Ordering::Release);
    }

    /// Where the [`ALIGN`] bytes at `offset`, a multiple of it, of the first packet are: they never go over the lane's end.
    #[must_use]
    pub const fn at(&self, offset: u32) -> u64 {
        at(self.base, self.tail.wrapping_add(offset))
    }

    /// Where `len` bytes at `offset` of the first packet are.
    #[must_use]
    pub fn spans(&self, offset: u32, len: u32) -> Spans {
        spans(self.base, self.tail.wrapping_add(offset), len)
    }

    /// The first packet, with such a frame, is done with. True: the sender is to be signalled.
    #[must_use]
    pub fn done(&mut self, frame: u32) -> bool {
        self.skip(self.tail.wrapping_add(packet(frame)));
        take_announcement(&self.lane.head.waits)
    }

    /// What is there makes no sense: all of it is dropped. True: the sender is to be signalled.
    #[must_use]
    pub fn drop_all(&mut self) -> bool {
        let there = self.available();
        self.skip(self.tail.wrapping_add(there));
        take_announcement(&self.lane.head.waits)
    }

    /// Announces that packets are waited for; false: there are some.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        announce(&self.lane.tail.waits, || self.head() == self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_goes_over_the_edge() {
        let page = LinkPage::new();
        let mut to = Sender::new(&page, Way::FromDevice);
        let mut from = Receiver::new(&page, Way::FromDevice);
        assert!(from.prepare_sleep());
        assert_eq!((to.room(), from.available()), (LANE, 0));
        assert!(to.send(MAX_FRAME), "it slept");
        assert!(!to.send(60_000));
        assert!(to.room() < MAX_PACKET && to.prepare_sleep(MAX_PACKET));
        assert!(from.available() == packet(MAX_FRAME) + packet(60_000));
        assert!(from.done(MAX_FRAME), "it waited for room");
        assert!(!from.done(60_000));
        let at = packet(MAX_FRAME) + packet(60_000);
        let spans = to.spans(HEADER, 60_000);
        let first = LANE - at - HEADER;
        assert_eq!(
            spans,
            [
                (4096 + u64::from(at + HEADER), first),
                (4096, 60_000 - first)
            ]
        );
        assert_eq!(from.spans(HEADER, 60_000), spans);
        assert!(!to.send(60_000) && !from.prepare_sleep());
        // Successors go on there.
        assert_eq!(
            Receiver::new(&page, Way::FromDevice).spans(0, 16),
            from.spans(0, 16)
        );
        assert_eq!(Sender::new(&page, Way::FromDevice).head, to.head);
        assert_eq!(Receiver::new(&page, Way::ToDevice).available(), 0);
    }

    #[test]
    fn whatever_the_other_says() {
        for head in [1, 15, LANE + 16, u32::MAX, 1 << 31] {
            let page = LinkPage::new();
            let mut from = Receiver::new(&page, Way::ToDevice);
            page.to_device.head.value.store(head, Ordering::Relaxed);
            assert_eq!(from.available(), 0, "{head}");
            assert!(from.tail.is_multiple_of(ALIGN) && from.prepare_sleep());
            let to = Sender::new(&page, Way::ToDevice);
            assert!(to.room() <= LANE && to.head.is_multiple_of(ALIGN));
            page.to_device
                .tail
                .value
                .store(head ^ 77, Ordering::Relaxed);
            assert!(to.room() <= LANE);
        }
    }

    #[test]
    fn headers() {
        let offload = Offload::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(offload.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(parse(header(1514, offload)), Some((1514, offload)));
        for bad in [0, 13, MAX_FRAME + 1, u32::MAX] {
            assert_eq!(parse(header(bad, offload)), None);
        }
    }
}
