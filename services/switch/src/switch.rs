//! Ports, and frames on their way between them; pure.

use alloc::vec::Vec;

use ipc_schema::link::{
    ALIGN, HEADER, LinkPage, MIN_FRAME, Offload, PortConfig, Receiver, Sender, Way, header, packet,
    parse,
};
use virtio::Memory;

use crate::table::{Mac, Table, is_group};

/// Frames of a port that are carried in a turn.
const BURST: u32 = 32;
/// What a port may send at once when it has been silent, in parts of a second.
const BURST_PART: u64 = 20;
/// And at least so many bytes: a packet of any length must fit.
const MIN_BURST: u64 = 128 << 10;

/// What a port may send: bytes, which come in with time.
struct Limit {
    /// Bytes per second; 0: no limit.
    rate: u64,
    /// Bytes that may be sent now.
    left: u64,
    /// When they were counted.
    at: u64,
}

impl Limit {
    fn burst(&self) -> u64 {
        (self.rate / BURST_PART).max(MIN_BURST)
    }

    /// Counts up to `now`; `second` is how long one is.
    fn fill(&mut self, now: u64, second: u64) {
        let passed = u128::from(now.saturating_sub(self.at)) * u128::from(self.rate);
        let bytes = u64::try_from(passed / u128::from(second.max(1))).unwrap_or(u64::MAX);
        if bytes > 0 {
            self.left = self.left.saturating_add(bytes).min(self.burst());
            self.at = now;
        }
    }

    /// Takes a frame's bytes; false: not yet.
    fn take(&mut self, frame: u32) -> bool {
        let left = self.left.checked_sub(frame.into());
        if self.rate != 0 {
            self.left = left.unwrap_or(self.left);
        }
        self.rate == 0 || left.is_some()
    }

    /// When so many bytes may be sent.
    fn when(&self, frame: u32, second: u64) -> u64 {
        let missing = u128::from(u64::from(frame).saturating_sub(self.left));
        let wait = (missing * u128::from(second)).div_ceil(u128::from(self.rate.max(1)));
        self.at
            .saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

/// A port.
struct Port<'a> {
    network: u32,
    memory: &'a Memory,
    from: Receiver<'a>,
    to: Sender<'a>,
    limit: Limit,
    /// It is owed a signal.
    signal: bool,
    counts: Counts,
}

/// What went through a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Frames that it did not take.
    pub dropped: u64,
    /// Times that what it sent made no sense.
    pub garbled: u64,
}

/// The switch.
pub struct Switch<'a> {
    ports: Vec<Port<'a>>,
    table: Table,
    /// The last frame, if it was for one port: where it came in, its addresses, and that port. Each other frame takes its place, so that
    /// nothing has been learnt since.
    flow: Option<(usize, Addresses, usize)>,
    /// How long a second is.
    second: u64,
}

/// Whom a frame is for, and who sends it.
type Addresses = [u8; 12];

impl<'a> Switch<'a> {
    /// Takes the links over from a predecessor, or begins. What was known of addresses is learnt again from the next frames.
    #[must_use]
    pub fn new(
        ports: impl Iterator<Item = (&'a PortConfig, &'a LinkPage, &'a Memory)>,
        now: u64,
        second: u64,
    ) -> Self {
        let port = |(config, page, memory): (&PortConfig, &'a LinkPage, &'a Memory)| {
            let mut limit = Limit {
                rate: config.rate,
                left: 0,
                at: now,
            };
            limit.left = limit.burst();
            Port {
                network: config.network,
                memory,
                from: Receiver::new(page, Way::FromDevice),
                to: Sender::new(page, Way::ToDevice),
                limit,
                // The last signals may have been lost.
                signal: true,
                counts: Counts::default(),
            }
        };
        Self {
            ports: ports.map(port).collect(),
            table: Table::default(),
            flow: None,
            second,
        }
    }

    /// What went through a port so far.
    #[must_use]
    pub fn counts(&self, port: usize) -> Option<Counts> {
        self.ports.get(port).map(|p| p.counts)
    }

    /// Carries frames until there are none, or none that may be carried yet; signals the ports that are to be, and answers when there is
    /// something to be done at the latest.
    pub fn serve(&mut self, now: u64, mut signal: impl FnMut(usize)) -> Option<u64> {
        for port in &mut self.ports {
            port.limit.fill(now, self.second);
        }
        loop {
            let mut more = false;
            let mut later = None;
            for number in 0..self.ports.len() {
                match self.turn(number) {
                    Turn::More => more = true,
                    Turn::Later(at) => later = Some(later.map_or(at, |l: u64| l.min(at))),
                    Turn::Empty => {}
                }
            }
            for (number, port) in self.ports.iter_mut().enumerate() {
                if core::mem::take(&mut port.signal) {
                    signal(number);
                }
            }
            if !more {
                return later;
            }
        }
    }

    /// A port's turn.
    fn turn(&mut self, number: usize) -> Turn {
        for _ in 0..BURST {
            let Some(port) = self.ports.get_mut(number) else {
                return Turn::Empty;
            };
            let there = port.from.available();
            if there == 0 {
                return if port.from.prepare_sleep() {
                    Turn::Empty
                } else {
                    Turn::More
                };
            }
            let Some((frame, offload)) = port.first(there) else {
                port.counts.garbled += 1;
                port.signal |= port.from.drop_all();
                continue;
            };
            if !port.limit.take(frame) {
                return Turn::Later(port.limit.when(frame, self.second));
            }
            port.counts.received += 1;
            self.forward(number, frame, offload);
            if let Some(port) = self.ports.get_mut(number) {
                port.signal |= port.from.done(frame);
            }
        }
        Turn::More
    }

    /// Carries a port's first frame to where it belongs.
    fn forward(&mut self, number: usize, frame: u32, offload: Offload) {
        let Some(port) = self.ports.get(number) else {
            return;
        };
        // No packet is shorter, and they do not go over the lane's end.
        let mut begin = [0; ALIGN as usize];
        if port.memory.read(port.from.at(HEADER), &mut begin).is_err() {
            return;
        }
        let Some(&addresses) = begin.first_chunk::<12>() else {
            return;
        };
        let network = port.network;
        if let Some((port, last, one)) = self.flow
            && port == number
            && last == addresses
        {
            return self.carry(number, one, frame, offload);
        }
        let (to, from) = addresses.split_at(6);
        let mac = |bytes: &[u8]| Mac::try_from(bytes).unwrap_or_default();
        let (to, from) = (mac(to), mac(from));
        self.table.learn(network, from, number as u16);
        let one = match is_group(to) {
            true => None,
            false => self.table.find(network, to).map(usize::from),
        };
        self.flow = one.map(|one| (number, addresses, one));
        match one {
            Some(one) => self.carry(number, one, frame, offload),
            None => {
                for other in (0..self.ports.len()).filter(|&other| other != number) {
                    if self.ports.get(other).is_some_and(|p| p.network == network) {
                        self.carry(number, other, frame, offload);
                    }
                }
            }
        }
    }

    fn carry(&mut self, from: usize, to: usize, frame: u32, offload: Offload) {
        // Where it came from it need not be sent.
        let Ok([from, to]) = self.ports.get_disjoint_mut([from, to]) else {
            return;
        };
        if to.to.room() < packet(frame) {
            to.counts.dropped += 1;
            return;
        }
        let head = header(frame, offload);
        let mut done = to.memory.write(to.to.at(0), &head).ok();
        let mut at = 0;
        // Each of both can go over its lane's edge.
        while done.is_some() && at < frame {
            let [(source, first), _] = from.from.spans(HEADER + at, frame - at);
            let [(target, second), _] = to.to.spans(HEADER + at, frame - at);
            let len = first.min(second);
            done = from.memory.transfer(source, to.memory, target, len).ok();
            at += len;
        }
        if done.is_some() {
            to.signal |= to.to.send(frame);
            to.counts.sent += 1;
        }
    }
}

enum Turn {
    More,
    Empty,
    /// Not before this.
    Later(u64),
}

impl Port<'_> {
    /// The first packet's header. `None`: what is there is no packet.
    fn first(&self, there: u32) -> Option<(u32, Offload)> {
        let mut head = [0; HEADER as usize];
        if there < HEADER + MIN_FRAME {
            return None;
        }
        self.memory.read(self.from.at(0), &mut head).ok()?;
        parse(head).filter(|(frame, _)| packet(*frame) <= there)
    }
}

#[cfg(test)]
mod tests;
