//! From the link into the guest's receive queues.
//!
//! Frames come in the order in which they are in the link. One whose queue has no buffers waits, and what is behind it with it: nothing is
//! lost or overtaken here; what is too much the switch drops.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ipc_schema::link::{ALIGN, HEADER, MIN_FRAME, Offload, Receiver, packet, parse};
use virtio::{Device, Error, Memory, Next, Part, Queue, Token};

use crate::control::{Mac, Settings};
use crate::flow::{Flows, LOOK};
use crate::offload::{self, Work};
use crate::server::receive;
use crate::{NET_HEADER, Span, feature};

/// Most segments that are kept for a guest that has no buffers for them.
const MAX_WAITING: usize = 64;

/// Most lists that are kept, and longest of them.
const MAX_SPARE: usize = 4;

/// A receive buffer that was taken and not filled.
struct Buffer {
    token: Token,
    spans: Vec<Span>,
    room: u32,
}

/// What was taken from a queue.
#[derive(Default)]
struct Buffers {
    all: VecDeque<Buffer>,
    /// Lists of parts that are no longer needed, kept for the next.
    spare: Vec<Vec<Span>>,
    /// Bytes that they have room for.
    room: u64,
}

impl Buffers {
    /// Takes buffers until there are enough for so many bytes; false if there are not.
    fn take(&mut self, queue: &mut Queue<'_>, need: u32, merged: bool) -> Result<bool, Error> {
        while self.room < u64::from(need) && (merged || self.all.is_empty()) {
            if !self.add(queue.take()?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Keeps a buffer, if there is one.
    fn add(&mut self, buffer: Next<'_>) -> Result<bool, Error> {
        let (mut spans, mut room) = (self.spare.pop().unwrap_or_default(), 0);
        let mut add = |part: Part| {
            if part.writable {
                spans.push(Span::of(part));
                room += part.len;
            }
        };
        let token = match buffer {
            Next::Nothing => return Ok(false),
            Next::One(part, token) => {
                add(part);
                token
            }
            Next::Chain(mut chain) => {
                for part in chain.by_ref() {
                    add(part?);
                }
                chain.token()
            }
        };
        // Into the first at least the header must go (5.1.6.3.1).
        if room < NET_HEADER {
            return Err(Error::Length);
        }
        self.room += u64::from(room);
        self.all.push_back(Buffer { token, spans, room });
        Ok(true)
    }

    fn pop(&mut self) -> Option<Buffer> {
        let buffer = self.all.pop_front()?;
        self.room -= u64::from(buffer.room);
        Some(buffer)
    }

    fn keep(&mut self, mut spans: Vec<Span>) {
        if self.spare.len() < MAX_SPARE && spans.capacity() <= MAX_SPARE {
            spans.clear();
            self.spare.push(spans);
        }
    }
}

/// What the receive side works with.
pub struct Inlet<'a> {
    memory: &'a Memory,
    link: &'a Memory,
    from: Receiver<'a>,
    /// Each pair's.
    buffers: Vec<Buffers>,
    /// Frames that were made here out of one, for a guest that does not do it itself, and their pair.
    made: VecDeque<(u16, Vec<u8>)>,
    /// Frames that were put into buffers.
    pub delivered: u64,
    /// Frames that made no sense, or were larger than the guest takes.
    pub dropped: u64,
}

/// What is to be delivered.
enum Frame<'f> {
    /// So many bytes of the link's first packet.
    Link(u32, Offload),
    /// These.
    Made(&'f [u8]),
}

impl<'a> Inlet<'a> {
    /// Receives by this lane, into the queues of at most so many pairs.
    #[must_use]
    pub fn new(memory: &'a Memory, link: &'a Memory, from: Receiver<'a>, pairs: u16) -> Self {
        Self {
            memory,
            link,
            from,
            buffers: (0..pairs).map(|_| Buffers::default()).collect(),
            made: VecDeque::new(),
            delivered: 0,
            dropped: 0,
        }
    }

    /// A pair's queue, or all, is no more: its buffers are the driver's again.
    pub fn forget(&mut self, pair: Option<u16>) {
        for (number, buffers) in (0..).zip(&mut self.buffers) {
            if pair.is_none_or(|pair| pair == number) {
                *buffers = Buffers::default();
            }
        }
        self.made
            .retain(|(number, _)| pair.is_some_and(|pair| pair != *number));
    }

    /// Delivers what there is, and asks to be told of more: of frames, or of buffers.
    pub fn serve(
        &mut self,
        device: &mut Device<'_>,
        settings: &Settings,
        flows: &Flows,
    ) -> Result<(), Error> {
        if device.queue(receive(0)).is_none() {
            return Ok(());
        }
        loop {
            let starved = self.pass_on(device, settings, flows)?;
            for pair in 0..settings.pairs {
                device.publish(receive(pair))?;
            }
            // Without buffers the frames wait; the switch drops what comes after them.
            let more = match starved {
                Some(pair) => match device.queue(receive(pair)) {
                    Some(queue) => queue.arm()?,
                    None => return Ok(()),
                },
                None => {
                    for pair in 0..settings.pairs {
                        if let Some(queue) = device.queue(receive(pair)) {
                            queue.disarm()?;
                        }
                    }
                    !self.from.prepare_sleep()
                }
            };
            if !more {
                return Ok(());
            }
        }
    }

    /// Puts frames into queues until there are no more, or none has buffers: that pair.
    fn pass_on(
        &mut self,
        device: &mut Device<'_>,
        settings: &Settings,
        flows: &Flows,
    ) -> Result<Option<u16>, Error> {
        loop {
            if let Some((pair, frame)) = self.made.pop_front() {
                if !self.deliver(device, pair, &Frame::Made(&frame))? {
                    self.made.push_front((pair, frame));
                    return Ok(Some(pair));
                }
                continue;
            }
            let there = self.from.available();
            if there == 0 {
                return Ok(None);
            }
            let Some((frame, offload, to)) = self.first(there) else {
                self.dropped += 1;
                device.signal_peer(self.from.drop_all());
                continue;
            };
            if settings.wants(to) {
                let pair = match settings.pairs {
                    1 => 0,
                    pairs => self.pair(device, frame, pairs, flows)?,
                };
                match offload::work(offload, frame, device.features()) {
                    Work::None => {
                        if !self.deliver(device, pair, &Frame::Link(frame, offload))? {
                            return Ok(Some(pair));
                        }
                    }
                    Work::Some => self.make(pair, frame, offload),
                    Work::Impossible => self.dropped += 1,
                }
            }
            device.signal_peer(self.from.done(frame));
        }
    }

    /// The pair by whose queue the first packet's frame goes: its flow's, if that queue is on.
    fn pair(
        &self,
        device: &mut Device<'_>,
        frame: u32,
        pairs: u16,
        flows: &Flows,
    ) -> Result<u16, Error> {
        let mut begin = [0; LOOK];
        let begin = begin.get_mut(..LOOK.min(frame as usize));
        let begin = begin.unwrap_or_default();
        self.read(HEADER, begin).ok_or(Error::Memory)?;
        let pair = flows.of(begin, pairs);
        Ok(match device.queue(receive(pair)) {
            Some(_) => pair,
            None => 0,
        })
    }

    /// The first packet's header, and whom its frame is for. `None`: what is there is no packet.
    fn first(&self, there: u32) -> Option<(u32, Offload, Mac)> {
        let (mut head, mut begin) = ([0; HEADER as usize], [0; ALIGN as usize]);
        if there < HEADER + MIN_FRAME {
            return None;
        }
        // Neither goes over the lane's end.
        self.link.read(self.from.at(0), &mut head).ok()?;
        self.link.read(self.from.at(HEADER), &mut begin).ok()?;
        let (frame, offload) = parse(head)?;
        (packet(frame) <= there).then_some((frame, offload, *begin.first_chunk()?))
    }

    fn read(&self, offset: u32, to: &mut [u8]) -> Option<()> {
        let [(at, first), (after, _)] = self.from.spans(offset, to.len() as u32);
        let (one, two) = to.split_at_mut_checked(first as usize)?;
        self.link.read(at, one).ok()?;
        if two.is_empty() {
            return Some(());
        }
        self.link.read(after, two).ok()
    }

    /// Does what the guest leaves to others.
    fn make(&mut self, pair: u16, frame: u32, offload: Offload) {
        let read = |offset, to: &mut [u8]| self.read(HEADER + offset, to);
        match offload::finish(&read, frame, offload, MAX_WAITING) {
            Some(frames) => self.made.extend(frames.into_iter().map(|f| (pair, f))),
            None => self.dropped += 1,
        }
    }

    /// Puts a frame into a pair's buffers; false if there are too few.
    fn deliver(
        &mut self,
        device: &mut Device<'_>,
        pair: u16,
        frame: &Frame<'_>,
    ) -> Result<bool, Error> {
        let (len, offload) = match *frame {
            Frame::Link(len, offload) => (len, offload),
            Frame::Made(bytes) => (bytes.len() as u32, Offload::default()),
        };
        let need = NET_HEADER + len;
        let merged = device.features() & feature::MRG_RXBUF != 0;
        let queue = device.queue(receive(pair));
        let (Some(queue), Some(buffers)) = (queue, self.buffers.get_mut(usize::from(pair))) else {
            return Ok(false);
        };
        // Most are of one part, into which all goes.
        if let (Frame::Link(..), true) = (frame, buffers.all.is_empty()) {
            match queue.take()? {
                Next::One(part, token) if part.writable && part.len >= need => {
                    self.memory.write(part.gpa, &net(offload, 1))?;
                    self.copy(0, part.gpa + u64::from(NET_HEADER), len)?;
                    queue.complete(token, need)?;
                    self.delivered += 1;
                    return Ok(true);
                }
                other => {
                    if !buffers.add(other)? {
                        return Ok(false);
                    }
                }
            }
        }
        if !buffers.take(queue, need, merged)? {
            return Ok(false);
        }
        // Only one that does not merge can have too little room.
        if buffers.room < u64::from(need) {
            self.dropped += 1;
            return Ok(true);
        }
        let mut count = 0u16;
        let mut left = need;
        for buffer in &buffers.all {
            count += 1;
            left -= left.min(buffer.room);
            if left == 0 {
                break;
            }
        }
        let net = net(offload, count);
        let mut done = 0;
        while done < need {
            let buffers = self.buffers.get_mut(usize::from(pair));
            let buffer = buffers.and_then(Buffers::pop).ok_or(Error::Length)?;
            let begin = done;
            for span in &buffer.spans {
                let end = done + span.len.min(need - done);
                self.fill(span.gpa, done, end, &net, frame)?;
                done = end;
            }
            queue.complete(buffer.token, done - begin)?;
            if let Some(buffers) = self.buffers.get_mut(usize::from(pair)) {
                buffers.keep(buffer.spans);
            }
        }
        self.delivered += 1;
        Ok(true)
    }

    /// Writes bytes `from..to` of header and frame at `gpa`.
    fn fill(
        &self,
        mut gpa: u64,
        mut from: u32,
        to: u32,
        net: &[u8],
        frame: &Frame<'_>,
    ) -> Result<(), Error> {
        if from < NET_HEADER {
            let end = to.min(NET_HEADER);
            let part = net.get(from as usize..end as usize).unwrap_or_default();
            self.memory.write(gpa, part)?;
            gpa += u64::from(end - from);
            from = end;
        }
        if from >= to {
            return Ok(());
        }
        let (at, len) = (from - NET_HEADER, to - from);
        match frame {
            Frame::Made(bytes) => {
                let part = bytes.get(at as usize..(at + len) as usize);
                self.memory.write(gpa, part.ok_or(Error::Length)?)
            }
            Frame::Link(..) => self.copy(at, gpa, len),
        }
    }

    /// Copies what is so far in the first packet's frame to `gpa`.
    fn copy(&self, at: u32, gpa: u64, len: u32) -> Result<(), Error> {
        let [(one, first), (two, second)] = self.from.spans(HEADER + at, len);
        self.link.transfer(one, self.memory, gpa, first)?;
        if second == 0 {
            return Ok(());
        }
        let gpa = gpa + u64::from(first);
        self.link.transfer(two, self.memory, gpa, second)
    }
}

/// The header before a frame that fills so many buffers (5.1.6).
const fn net(offload: Offload, buffers: u16) -> [u8; NET_HEADER as usize] {
    let ([a, b, c, d, e, f, g, h, i, j], [k, l]) = (offload.to_bytes(), buffers.to_le_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l]
}
