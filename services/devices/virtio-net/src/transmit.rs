//! From the guest's transmit queue into the link.

use alloc::vec::Vec;

use ipc_schema::link::{HEADER, MAX_FRAME, MAX_PACKET, MIN_FRAME, Offload, Sender, header};
use virtio::{Chain, Device, Error, Memory, Next};

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
    /// When the driver is asked whether it wants an interrupt; each pair's.
    pub restraints: Vec<Restraint>,
    /// What time it is.
    pub now: u64,
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
    /// Sends by this lane, from the queues of at most so many pairs.
    #[must_use]
    pub fn new(memory: &'a Memory, link: &'a Memory, to: Sender<'a>, pairs: u16) -> Self {
        let spans = Vec::new();
        let restraints = (0..pairs).map(|_| Restraint::new(0)).collect();
        Self {
            memory,
            link,
            to,
            spans,
            sent: 0,
            next: 0,
            dropped: 0,
            restraints,
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
        self.ask(device)?;
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
            let flows = flows.as_deref_mut().map(|flows| (flows, pair));
            let token = match queue.take()? {
                Next::Nothing => break End::Empty,
                Next::One(part, token) => {
                    if !part.writable {
                        signal |= self.send(&[Span::of(part)], part.len, features, flows)?;
                    }
                    token
                }
                Next::Chain(mut chain) => {
                    signal |= self.send_chain(&mut chain, features, flows)?;
                    chain.token()
                }
            };
            queue.complete(token, 0)?;
            count += 1;
        };
        if matches!(end, End::Empty) && queue.arm()? {
            end = End::More;
        }
        device.signal_peer(signal);
        if count > 0 {
            self.publish(device, pair)?;
        }
        Ok(end)
    }

    /// Tells the driver of what was sent, and asks whether it wants an interrupt, or will ask later.
    fn publish(&mut self, device: &mut Device<'_>, pair: u16) -> Result<(), Error> {
        let number = transmit(pair);
        let Some(restraint) = self.restraints.get_mut(usize::from(pair)) else {
            return device.publish(number);
        };
        // If it still waits for what was sent before, it is not put off again.
        let mut raised = device.ask(number)?;
        let unasked = device.tell(number)?;
        if unasked >= MANY || !restraint.waits(self.now) {
            raised |= device.ask(number)?;
        }
        if raised {
            restraint.interrupted(self.now, false);
        }
        Ok(())
    }

    /// Asks what was put off, if it is time.
    fn ask(&mut self, device: &mut Device<'_>) -> Result<(), Error> {
        for (pair, restraint) in (0..).zip(&mut self.restraints) {
            if restraint.is_over(self.now) && device.ask(transmit(pair))? {
                restraint.interrupted(self.now, true);
            }
        }
        Ok(())
    }

    /// Sends one frame that may lie in several parts.
    fn send_chain(
        &mut self,
        chain: &mut Chain<'_>,
        features: u64,
        flows: Option<(&mut Flows, u16)>,
    ) -> Result<bool, Error> {
        let mut spans = core::mem::take(&mut self.spans);
        spans.clear();
        let mut total = 0u32;
        for part in chain {
            let part = part?;
            if !part.writable {
                total = total.saturating_add(part.len);
                spans.push(Span::of(part));
            }
        }
        let signal = self.send(&spans, total, features, flows)?;
        self.spans = spans;
        Ok(signal)
    }

    /// Sends one frame, which is so many bytes there with its header; true if the switch is to be signalled.
    fn send(
        &mut self,
        spans: &[Span],
        total: u32,
        features: u64,
        flows: Option<(&mut Flows, u16)>,
    ) -> Result<bool, Error> {
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
        if let [all] = spans {
            let from = all.gpa + u64::from(NET_HEADER);
            let [(one, first), (two, second)] = self.to.spans(HEADER, frame);
            self.memory.transfer(from, self.link, one, first)?;
            if second == 0 {
                return Ok(());
            }
            let from = from + u64::from(first);
            return self.memory.transfer(from, self.link, two, second);
        }
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
