//! A client: what it has asked and was not answered yet, and what its pages hold.

use alloc::collections::VecDeque;

use ipc_schema::disk::{
    BLOCK, BLOCK_SECTORS, Channel, DRIVER_DEPTH, DriverClient, Op, Place, Places, Provider,
    Request, SECTOR, SPAN, Status,
};

use crate::server::{Device, Job, Region, Ticket, Work};

const DEPTH: usize = DRIVER_DEPTH as usize;
const _: () = assert!(DEPTH.is_power_of_two());
/// Bytes of the pages of one request.
const CHUNK: u64 = SPAN as u64 * BLOCK;

/// Pages of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// They hold nothing.
    Free,
    /// They are given out to be written for these blocks: first, number.
    Given(u32, u32),
    /// The device reads or writes them.
    Busy,
}

/// An answer.
type Reply = (Status, Option<(u64, u32, Places)>);

/// A request that is not answered yet: its answer, if there is one.
struct Taken {
    number: u32,
    reply: Option<Reply>,
    /// Of a read: what is answered when the device has done it.
    places: Option<(u64, u32, Places)>,
}

/// A client.
pub struct Client<'a> {
    channel: Provider<'a>,
    /// First sector of its partition, if it has one that is large enough.
    first: Option<u64>,
    blocks: u32,
    read_only: bool,
    /// Tells pages given out since the last [`Op::Begin`] from those given out before.
    epoch: u64,
    taken: VecDeque<Taken>,
    chunks: [Chunk; DEPTH],
}

/// What is to be done about a request.
enum Plan {
    Answer(Reply),
    Work(Work, u64, u64, u64, usize),
}

impl<'a> Client<'a> {
    /// Goes on at the first request that was not answered. `now` is another for each life of the server.
    #[must_use]
    pub fn new(channel: &'a Channel, config: &DriverClient, first: Option<u64>, now: u64) -> Self {
        Self {
            channel: Provider::new(channel),
            first,
            blocks: config.disk.blocks,
            read_only: config.read_only,
            epoch: now,
            taken: VecDeque::new(),
            chunks: [Chunk::Free; DEPTH],
        }
    }

    /// Takes up what is asked, as far as the device has room.
    pub fn take(&mut self, own: usize, device: &mut impl Device) {
        while self.taken.len() < DEPTH && device.room() {
            // At most DEPTH.
            let ahead = self.taken.len() as u32;
            let request = self.channel.peek_at(ahead);
            let next = self.channel.number();
            if self.taken.front().is_some_and(|t| t.number != next) {
                // The client has garbled its index, and all that it had asked was passed over. What is under way ends by itself.
                self.taken.clear();
                continue;
            }
            let Some(request) = request else {
                return;
            };
            let number = next.wrapping_add(ahead);
            let mut taken = Taken {
                number,
                reply: None,
                places: None,
            };
            match self.plan(number, &request) {
                Plan::Answer(reply) => taken.reply = Some(reply),
                Plan::Work(work, sector, at, len, chunk) => {
                    if work == Work::Read {
                        taken.places = self.places(chunk, request.count);
                    }
                    let ticket = Ticket {
                        client: own as u32,
                        number,
                        chunk: chunk as u32,
                        uses_pages: work.uses_pages(),
                    };
                    let region = Region::Client(own);
                    device.start(
                        ticket,
                        Job {
                            work,
                            sector,
                            region,
                            at,
                            len,
                        },
                    );
                    if let Some(pages) = self.chunks.get_mut(chunk)
                        && work.uses_pages()
                    {
                        *pages = Chunk::Busy;
                    }
                }
            }
            self.taken.push_back(taken);
        }
    }

    fn places(&self, chunk: usize, count: u32) -> Option<(u64, u32, Places)> {
        let mut places = [0; SPAN];
        for (page, place) in (0u32..).zip(&mut places) {
            // Less than DRIVER_PAGES.
            *place = Place::Page((chunk * SPAN) as u32 + page).pack();
        }
        Some((self.epoch, count, places))
    }

    fn plan(&mut self, number: u32, request: &Request) -> Plan {
        let chunk = number as usize % DEPTH;
        let answer = |status| Plan::Answer((status, None));
        let end = request.first.checked_add(request.count);
        let there = request.count > 0 && end.is_some_and(|end| end <= self.blocks);
        let inside = there && request.count <= SPAN as u32;
        let (Some(op), Some(first)) = (request.op, self.first) else {
            return answer(Status::Malformed);
        };
        let sectors = u64::from(request.count) * u64::from(BLOCK_SECTORS);
        // Within a partition, whose end fits.
        let sector = first + u64::from(request.first) * u64::from(BLOCK_SECTORS);
        let at = chunk as u64 * CHUNK;
        match op {
            Op::Begin => {
                for chunk in &mut self.chunks {
                    if matches!(chunk, Chunk::Given(..)) {
                        *chunk = Chunk::Free;
                    }
                }
                self.epoch = self.epoch.wrapping_add(1);
                answer(Status::Ok)
            }
            Op::Flush => Plan::Work(Work::Flush, 0, 0, 0, chunk),
            Op::Read | Op::Write | Op::Commit if !inside => answer(Status::Malformed),
            Op::Discard if !there => answer(Status::Malformed),
            Op::Write | Op::Commit | Op::Discard if self.read_only => answer(Status::ReadOnly),
            // These pages are still those of a write: there will be others.
            Op::Read | Op::Write if self.chunks.get(chunk) != Some(&Chunk::Free) => {
                answer(Status::Stale)
            }
            Op::Read => Plan::Work(Work::Read, sector, at, sectors * SECTOR, chunk),
            Op::Write => {
                if let Some(pages) = self.chunks.get_mut(chunk) {
                    *pages = Chunk::Given(request.first, request.count);
                }
                Plan::Answer((Status::Ok, self.places(chunk, request.count)))
            }
            Op::Commit => self.commit(request, sector, sectors),
            Op::Discard => Plan::Work(Work::Discard, sector, 0, sectors * SECTOR, chunk),
            Op::Zero => answer(Status::Malformed),
        }
    }

    fn commit(&mut self, request: &Request, sector: u64, sectors: u64) -> Plan {
        let answer = |status| Plan::Answer((status, None));
        let (before, behind) = (u64::from(request.skip.0), u64::from(request.skip.1));
        let block = u64::from(BLOCK_SECTORS);
        if before >= block || behind >= block || before + behind >= sectors {
            return answer(Status::Malformed);
        }
        let [page, ..] = request.places;
        let chunk = page as usize / SPAN;
        let given = Chunk::Given(request.first, request.count);
        let expected = self.places(chunk, request.count);
        let same = expected.is_some_and(|(epoch, count, places)| {
            let count = count as usize;
            epoch == request.epoch && places.get(..count) == request.places.get(..count)
        });
        if !same || self.chunks.get(chunk) != Some(&given) {
            return answer(Status::Stale);
        }
        let at = chunk as u64 * CHUNK + before * SECTOR;
        let len = (sectors - before - behind) * SECTOR;
        Plan::Work(Work::Write, sector + before, at, len, chunk)
    }

    /// The device has done, or refused, what was under way.
    pub fn ended(&mut self, ticket: Ticket, good: bool) {
        let mut all = self.taken.iter_mut();
        if let Some(taken) = all.find(|taken| taken.number == ticket.number) {
            let places = taken.places.take().filter(|_| good);
            let status = if good { Status::Ok } else { Status::Damaged };
            taken.reply = Some((status, places));
        }
        if let Some(chunk) = self.chunks.get_mut(ticket.chunk as usize)
            && *chunk == Chunk::Busy
            && ticket.uses_pages
        {
            *chunk = Chunk::Free;
        }
    }

    /// Answers what can be answered, in its order. True if the client sleeps and is to be signalled.
    #[must_use]
    pub fn answer(&mut self) -> bool {
        let mut answered = false;
        while let Some((status, places)) = self.taken.front_mut().and_then(|t| t.reply.take()) {
            self.taken.pop_front();
            let places = places.as_ref();
            let places = places.and_then(|(e, n, p)| Some((*e, p.get(..*n as usize)?)));
            self.channel.answer(status, places);
            answered = true;
        }
        answered && self.channel.needs_signal()
    }

    /// True if there is nothing to be taken up: a signal will come with more.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        // At most DEPTH.
        let taken = self.taken.len() as u32;
        taken >= DRIVER_DEPTH || self.channel.prepare_sleep_behind(taken)
    }

    /// Whether it has a partition.
    #[must_use]
    pub const fn has_disk(&self) -> bool {
        self.first.is_some()
    }
}
