//! From the guest's transmit queue into the link.

use alloc::vec::Vec;

use ipc_schema::link::{HEADER, MAX_FRAME, MAX_PACKET, MIN_FRAME, Offload, Sender, header};
use virtio::{Chain, Device, Error, Memory, Part};

use crate::flow::{Flows, LOOK};
use crate::restraint::Restraint;
use crate::server::{MAX_SIZE, transmit};
use crate::{NET_HEADER, Span, gather, offload};

/// Frames of a queue before the next one's turn comes.
const BATCH: u16 = MAX_SIZE;

/// Of so many descriptors the driver is asked at once: it may have no others left.
const MANY: u16 = MAX_SIZE / 4;

/// What the transmit side works with.
pub struct Transmitter<'a> {
    memory: &'a Memory,
    link: &'a Memory,
    to: Sender<'a>,
    /// The parts of a frame, kept for the next one's.
    spans: Vec<Span>,
    /// Frames that were sent.
    pub sent: u64,
    /// The pair whose turn is next.
    next: u16,
    /// Frames that made no sense.
    pub dropped: u64,
    /// When the driver is asked whether it wants an interrupt.
    pub restraint: Restraint,
    /// What time it is.
    pub now: u64,
}

const NOTHING: Span = Span { gpa: 0, len: 0 };

const fn span(Part { gpa, len, .. }: Part) -> Span {
    Span { gpa, len }
}

/// How a queue's turn ended.
enum End {
    /// Nothing is left in it: there will be a notification.
    Empty,
    /// There is more.
    More,
    /// The lane is full: the switch will signal.
    Full,
}

impl<'a> Transmitter<'a> {
    /// Sends by this lane.
    #[must_use]
    pub const fn new(memory: &'a Memory, link: &'a Memory, to: Sender<'a>) -> Self {
        let spans = Vec::new();
        Self {
            memory,
            link,
            to,
            spans,
            sent: 0,
            next: 0,
            dropped: 0,
            restraint: Restraint::new(0),
            now: 0,
        }
    }

    /// Sends what there is in these pairs' queues, in turns, and asks to be told of more: of frames, or of room in the lane. If several are
    /// in use it is noted by which a flow goes.
    pub fn serve(
        &mut self,
        device: &mut Device<'_>,
        pairs: u16,
        flows: Option<&mut Flows>,
    ) -> Result<(), Error> {
        let mut flows = flows;
        self.ask(device, pairs)?;
        loop {
            let mut more = false;
            for _ in 0..pairs {
                let pair = self.next;
                match self.turn(device, pair, flows.as_deref_mut())? {
                    End::Empty => {}
                    End::More => more = true,
                    // It goes on here.
                    End::Full => return Ok(()),
                }
                self.next = if pair + 1 < pairs { pair + 1 } else { 0 };
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// A queue's turn.
    fn turn(
        &mut self,
        device: &mut Device<'_>,
        pair: u16,
        mut flows: Option<&mut Flows>,
    ) -> Result<End, Error> {
        let (features, number) = (device.features(), transmit(pair));
        let Some(queue) = device.queue(number) else {
            return Ok(End::Empty);
        };
        let (mut signal, mut count) = (false, 0);
        let mut end = loop {
            // What is taken from the queue is sent.
            if self.to.room() < MAX_PACKET && self.to.prepare_sleep(MAX_PACKET) {
                break End::Full;
            }
            if count == BATCH {
                break End::More;
            }
            let Some(mut chain) = queue.pop()? else {
                break End::Empty;
            };
            let flows = flows.as_deref_mut().map(|flows| (flows, pair));
            signal |= self.send(&mut chain, features, flows)?;
            queue.complete(chain.token(), 0)?;
            count += 1;
        };
        if matches!(end, End::Empty) && queue.arm()? {
            end = End::More;
        }
        device.signal_peer(signal);
        if count > 0 {
            self.publish(device, number)?;
        }
        Ok(end)
    }

    /// Tells the driver of what was sent, and asks whether it wants an interrupt, or will ask later.
    fn publish(&mut self, device: &mut Device<'_>, number: u16) -> Result<(), Error> {
        // If it still waits for what was sent before, it is not put off again.
        let mut raised = device.ask(number)?;
        let unasked = device.tell(number)?;
        if unasked >= MANY || !self.restraint.waits(self.now) {
            raised |= device.ask(number)?;
        }
        if raised {
            self.restraint.interrupted(self.now, false);
        }
        Ok(())
    }

    /// Asks what was put off, if it is time.
    fn ask(&mut self, device: &mut Device<'_>, pairs: u16) -> Result<(), Error> {
        if self.restraint.is_over(self.now) {
            for pair in 0..pairs {
                if device.ask(transmit(pair))? {
                    self.restraint.interrupted(self.now, true);
                }
            }
        }
        Ok(())
    }

    /// Sends one frame; true if the switch is to be signalled.
    fn send(
        &mut self,
        chain: &mut Chain<'_>,
        features: u64,
        flows: Option<(&mut Flows, u16)>,
    ) -> Result<bool, Error> {
        self.spans.clear();
        let first = chain.next().transpose()?;
        // Most frames are in one part.
        let one = [first.map_or(NOTHING, span)];
        let mut total = one[0].len;
        let is_one = chain.is_over() && first.is_some_and(|part| !part.writable);
        if !is_one {
            total = 0;
            for part in first.into_iter().map(Ok).chain(chain) {
                let part = part?;
                if !part.writable {
                    total = total.saturating_add(part.len);
                    self.spans.push(span(part));
                }
            }
        }
        let spans = if is_one { &one } else { &*self.spans };
        let frame = total.wrapping_sub(NET_HEADER);
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame) {
            self.dropped += 1;
            return Ok(false);
        }
        let mut net = [0; NET_HEADER as usize];
        match spans.first() {
            Some(first) if first.len >= NET_HEADER => self.memory.read(first.gpa, &mut net)?,
            _ => gather(self.memory, spans, 0, &mut net)?,
        }
        if let Some((flows, pair)) = flows {
            let mut begin = [0; LOOK];
            let begin = begin.get_mut(..LOOK.min(frame as usize));
            let begin = begin.unwrap_or_default();
            gather(self.memory, spans, NET_HEADER.into(), begin)?;
            flows.sent(begin, pair);
        }
        let (words, _) = net.split_first_chunk::<10>().unwrap_or((&[0; 10], &[]));
        let Some(offload) = offload::sent(Offload::from_bytes(*words), frame, features) else {
            self.dropped += 1;
            return Ok(false);
        };
        let head = header(frame, offload);
        self.link.write(self.to.at(0), &head)?;
        self.copy(spans, frame)?;
        self.sent += 1;
        Ok(self.to.send(frame))
    }

    /// The frame, behind the header on both sides.
    fn copy(&self, spans: &[Span], frame: u32) -> Result<(), Error> {
        let mut skip = NET_HEADER;
        let mut done = 0;
        for span in spans {
            let mut at = skip.min(span.len);
            skip -= at;
            while at < span.len {
                let [(to, room), _] = self.to.spans(HEADER + done, frame - done);
                let len = room.min(span.len - at);
                if len == 0 {
                    return Ok(());
                }
                self.memory
                    .transfer(span.gpa + u64::from(at), self.link, to, len)?;
                (at, done) = (at + len, done + len);
            }
        }
        Ok(())
    }
}
