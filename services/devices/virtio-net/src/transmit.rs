//! From the guest's transmit queue into the link.

use alloc::vec::Vec;

use ipc_schema::link::{HEADER, MAX_FRAME, MAX_PACKET, MIN_FRAME, Offload, Sender, header};
use virtio::{Chain, Error, Memory, Queue};

use crate::{NET_HEADER, Span, offload};

/// What the transmit side works with.
pub struct Transmitter<'a> {
    memory: &'a Memory,
    link: &'a Memory,
    to: Sender<'a>,
    /// The parts of a frame, kept for the next one's.
    spans: Vec<Span>,
    /// Frames that were sent.
    pub sent: u64,
    /// Frames that made no sense.
    pub dropped: u64,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// The switch is to be signalled.
    pub switch: bool,
    /// The guest is to be interrupted.
    pub guest: bool,
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
            dropped: 0,
        }
    }

    /// Sends what there is, and asks to be told of more: of frames, or of room in the lane.
    pub fn serve(&mut self, queue: &mut Queue<'_>, features: u64) -> Result<Round, Error> {
        let mut round = Round::default();
        loop {
            let full = loop {
                // What is taken from the queue is sent.
                let full = self.to.room() < MAX_PACKET && self.to.prepare_sleep(MAX_PACKET);
                if full {
                    break true;
                }
                let Some(mut chain) = queue.pop()? else {
                    break false;
                };
                round.switch |= self.send(&mut chain, features)?;
                queue.complete(chain.token(), 0)?;
            };
            round.guest |= queue.publish()?;
            if full || !queue.arm()? {
                return Ok(round);
            }
        }
    }

    /// Sends one frame; true if the switch is to be signalled.
    fn send(&mut self, chain: &mut Chain<'_>, features: u64) -> Result<bool, Error> {
        self.spans.clear();
        let mut total = 0u32;
        for part in chain {
            let part = part?;
            if !part.writable {
                total = total.saturating_add(part.len);
                let (gpa, len) = (part.gpa, part.len);
                self.spans.push(Span { gpa, len });
            }
        }
        let frame = total.wrapping_sub(NET_HEADER);
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame) {
            self.dropped += 1;
            return Ok(false);
        }
        let mut net = [0; NET_HEADER as usize];
        self.gather(&mut net)?;
        let (words, _) = net.split_first_chunk::<10>().unwrap_or((&[0; 10], &[]));
        let Some(offload) = offload::sent(Offload::from_bytes(*words), frame, features) else {
            self.dropped += 1;
            return Ok(false);
        };
        let head = header(frame, offload);
        let [(at, first), (after, _)] = self.to.spans(0, HEADER);
        let (one, two) = head.split_at(first as usize);
        self.link.write(at, one)?;
        if !two.is_empty() {
            self.link.write(after, two)?;
        }
        self.copy(frame)?;
        self.sent += 1;
        Ok(self.to.send(frame))
    }

    /// The network header, which may lie in several parts.
    fn gather(&self, to: &mut [u8]) -> Result<(), Error> {
        let mut rest = to;
        for span in &self.spans {
            let len = rest.len().min(span.len as usize);
            let (now, after) = rest.split_at_mut(len);
            self.memory.read(span.gpa, now)?;
            rest = after;
        }
        Ok(())
    }

    /// The frame, behind the header on both sides.
    fn copy(&self, frame: u32) -> Result<(), Error> {
        let mut skip = NET_HEADER;
        let mut done = 0;
        for span in &self.spans {
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
