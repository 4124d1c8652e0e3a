//! From the link into the guest's receive queue.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ipc_schema::link::{HEADER, MIN_FRAME, Offload, Receiver, packet, parse};
use virtio::{Error, Memory, Queue, Token};

use crate::offload::{self, Work};
use crate::transmit::Round;
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

/// What the receive side works with.
pub struct Inlet<'a> {
    memory: &'a Memory,
    link: &'a Memory,
    from: Receiver<'a>,
    buffers: VecDeque<Buffer>,
    /// Lists of parts that are no longer needed, kept for the next buffers.
    spare: Vec<Vec<Span>>,
    /// Bytes that the buffers have room for.
    room: u64,
    /// Frames that were made here out of one, for a guest that does not do it itself.
    made: VecDeque<Vec<u8>>,
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
    /// Receives by this lane.
    #[must_use]
    pub fn new(memory: &'a Memory, link: &'a Memory, from: Receiver<'a>) -> Self {
        let (buffers, made) = (VecDeque::new(), VecDeque::new());
        Self {
            memory,
            link,
            from,
            buffers,
            spare: Vec::new(),
            room: 0,
            made,
            dropped: 0,
        }
    }

    /// The queue is no more: its buffers are the driver's again.
    pub fn forget(&mut self) {
        self.buffers.clear();
        self.made.clear();
        self.room = 0;
    }

    /// Delivers what there is, and asks to be told of more: of frames, or of buffers.
    pub fn serve(&mut self, queue: &mut Queue<'_>, features: u64) -> Result<Round, Error> {
        let mut round = Round::default();
        loop {
            let mut starved = false;
            loop {
                if let Some(frame) = self.made.pop_front() {
                    if !self.deliver(queue, features, &Frame::Made(&frame))? {
                        self.made.push_front(frame);
                        starved = true;
                        break;
                    }
                    continue;
                }
                let there = self.from.available();
                if there == 0 {
                    break;
                }
                let Some((frame, offload)) = self.first(there) else {
                    self.dropped += 1;
                    round.switch |= self.from.drop_all();
                    continue;
                };
                match offload::work(offload, frame, features) {
                    Work::None => {
                        if !self.deliver(queue, features, &Frame::Link(frame, offload))? {
                            starved = true;
                            break;
                        }
                    }
                    Work::Some => self.make(frame, offload)?,
                    Work::Impossible => self.dropped += 1,
                }
                round.switch |= self.from.done(frame);
            }
            round.guest |= queue.publish()?;
            // Without buffers the frames wait; the switch drops what comes after them.
            let more = if starved {
                queue.arm()?
            } else {
                queue.disarm()?;
                !self.from.prepare_sleep()
            };
            if !more {
                return Ok(round);
            }
        }
    }

    /// The first packet's header. `None`: what is there is no packet.
    fn first(&self, there: u32) -> Option<(u32, Offload)> {
        let mut head = [0; HEADER as usize];
        if there < HEADER + MIN_FRAME {
            return None;
        }
        self.read(0, &mut head)?;
        parse(head).filter(|(frame, _)| packet(*frame) <= there)
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
    fn make(&mut self, frame: u32, offload: Offload) -> Result<(), Error> {
        let mut bytes = alloc::vec![0; frame as usize];
        self.read(HEADER, &mut bytes).ok_or(Error::Memory)?;
        match offload::finish(bytes, offload, MAX_WAITING) {
            Some(frames) => self.made.extend(frames),
            None => self.dropped += 1,
        }
        Ok(())
    }

    /// Takes buffers until there are enough for so many bytes; false if there are not.
    fn take(&mut self, queue: &mut Queue<'_>, need: u32, merged: bool) -> Result<bool, Error> {
        while self.room < u64::from(need) && (merged || self.buffers.is_empty()) {
            let Some(mut chain) = queue.pop()? else {
                return Ok(false);
            };
            let (mut spans, mut room) = (self.spare.pop().unwrap_or_default(), 0);
            for part in chain.by_ref() {
                let part = part?;
                if part.writable {
                    let (gpa, len) = (part.gpa, part.len);
                    spans.push(Span { gpa, len });
                    room += len;
                }
            }
            // Into the first at least the header must go (5.1.6.3.1).
            if room < NET_HEADER {
                return Err(Error::Length);
            }
            self.room += u64::from(room);
            self.buffers.push_back(Buffer {
                token: chain.token(),
                spans,
                room,
            });
        }
        Ok(true)
    }

    /// Puts a frame into the guest's buffers; false if there are too few.
    fn deliver(
        &mut self,
        queue: &mut Queue<'_>,
        features: u64,
        frame: &Frame<'_>,
    ) -> Result<bool, Error> {
        let (len, offload) = match *frame {
            Frame::Link(len, offload) => (len, offload),
            Frame::Made(bytes) => (bytes.len() as u32, Offload::default()),
        };
        let need = NET_HEADER + len;
        let merged = features & feature::MRG_RXBUF != 0;
        if !self.take(queue, need, merged)? {
            return Ok(false);
        }
        // Only one that does not merge can have too little room.
        if self.room < u64::from(need) {
            self.dropped += 1;
            return Ok(true);
        }
        let mut count = 0u16;
        let mut left = need;
        for buffer in &self.buffers {
            count += 1;
            left -= left.min(buffer.room);
            if left == 0 {
                break;
            }
        }
        let ([a, b, c, d, e, f, g, h, i, j], [k, l]) = (offload.to_bytes(), count.to_le_bytes());
        let net = [a, b, c, d, e, f, g, h, i, j, k, l];
        let mut done = 0;
        while done < need {
            let Some(buffer) = self.buffers.pop_front() else {
                return Err(Error::Length);
            };
            self.room -= u64::from(buffer.room);
            let begin = done;
            for span in &buffer.spans {
                let end = done + span.len.min(need - done);
                self.fill(span.gpa, done, end, &net, frame)?;
                done = end;
            }
            queue.complete(buffer.token, done - begin)?;
            self.keep(buffer.spans);
        }
        Ok(true)
    }

    fn keep(&mut self, mut spans: Vec<Span>) {
        if self.spare.len() < MAX_SPARE && spans.capacity() <= MAX_SPARE {
            spans.clear();
            self.spare.push(spans);
        }
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
            Frame::Link(..) => {
                let [(one, first), (two, second)] = self.from.spans(HEADER + at, len);
                self.link.transfer(one, self.memory, gpa, first)?;
                let gpa = gpa + u64::from(first);
                if second == 0 {
                    return Ok(());
                }
                self.link.transfer(two, self.memory, gpa, second)
            }
        }
    }
}
