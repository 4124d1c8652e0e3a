//! Requests under way: cut into what `store` is asked, put together from what it answers.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ipc_schema::disk::{
    Answer, BLOCK, Base, Channel, Client, Op, Place, Places, Request, SECTOR, SPAN, Status,
};
use virtio::{Memory, Token};

use crate::content::{Content, give, take};
use crate::request::{Part, Raw, Work, status};

/// A request with all that is needed to answer it.
#[derive(Clone, Debug)]
pub struct Done {
    /// The queue it came from.
    pub queue: u16,
    /// What to complete it by.
    pub token: Token,
    /// As it stands in the guest's memory.
    pub raw: Raw,
    /// How it ended.
    pub status: u8,
    /// Whether the guest gets data.
    pub reads: bool,
}

/// A request under way.
struct Open {
    request: Done,
    /// What has not been asked yet, the next last.
    parts: Vec<Part>,
    /// What has been asked, or is to be asked again.
    left: u32,
}

/// What one question to `store` is about.
#[derive(Clone, Copy)]
struct Piece {
    /// The request; `None`: nobody waits for the answer.
    owner: Option<usize>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// [`Op::Begin`].
    Begin,
    /// A first question.
    Part(Part),
    /// Pages were given, and are written.
    Commit(Part, u64, Places),
}

/// All requests under way.
pub struct Flight<'a> {
    client: Client<'a>,
    content: Content<'a>,
    open: Vec<Option<Open>>,
    free: Vec<usize>,
    spans: usize,
    /// Requests of which something is still to be asked.
    next: VecDeque<usize>,
    /// What is to be asked before.
    first: VecDeque<Piece>,
    /// What was asked, in that order.
    asked: VecDeque<Piece>,
    /// Answers so far.
    answers: u32,
}

impl<'a> Flight<'a> {
    /// Nothing is under way; what a predecessor was given is taken back. `depth`: questions that may wait for their answers.
    #[must_use]
    pub fn new(channel: &'a Channel, depth: u32, content: Content<'a>) -> Self {
        let mut flight = Self {
            client: Client::new(channel).with_depth(depth),
            content,
            open: Vec::new(),
            free: Vec::new(),
            spans: 0,
            next: VecDeque::new(),
            first: VecDeque::new(),
            asked: VecDeque::new(),
            answers: 0,
        };
        flight.begin_anew();
        flight
    }

    /// The disk's contents.
    #[must_use]
    pub fn into_content(self) -> Content<'a> {
        self.content
    }

    fn begin_anew(&mut self) {
        let what = What::Begin;
        self.first.push_front(Piece { owner: None, what });
    }

    /// How many there are.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.open.len() - self.free.len()
    }

    /// Whether `store` owes an answer, and how many it has given, modulo 2^32.
    #[must_use]
    pub fn waits(&self) -> (bool, u32) {
        (!self.asked.is_empty(), self.answers)
    }

    /// Runs of guest memory that they have.
    #[must_use]
    pub const fn spans(&self) -> usize {
        self.spans
    }

    /// Takes a request up: all of `parts`, of which there is one at least, are to be done.
    pub fn begin(&mut self, mut request: Done, mut parts: Vec<Part>) {
        request.reads = parts.iter().any(|part| part.work == Work::Read);
        parts.reverse();
        self.spans += request.raw.spans();
        let open = Open {
            request,
            parts,
            left: 0,
        };
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.open.push(None);
                self.open.len() - 1
            }
        };
        if let Some(place) = self.open.get_mut(number) {
            *place = Some(open);
        }
        self.next.push_back(number);
    }

    /// Forgets the requests of a queue, or of all. What was given to them is taken back: nobody will write it now.
    pub fn forget(&mut self, queue: Option<u16>) {
        for number in 0..self.open.len() {
            let open = self.open.get(number).and_then(Option::as_ref);
            if open.is_some_and(|o| queue.is_none_or(|queue| queue == o.request.queue)) {
                let _ = self.close(number);
                self.next.retain(|&n| n != number);
                self.first.retain(|piece| piece.owner != Some(number));
                for piece in &mut self.asked {
                    if piece.owner == Some(number) {
                        piece.owner = None;
                    }
                }
            }
        }
        self.first.retain(|piece| piece.owner.is_some());
        self.begin_anew();
    }

    fn close(&mut self, number: usize) -> Option<Done> {
        let open = self.open.get_mut(number)?.take()?;
        self.free.push(number);
        self.spans -= open.request.raw.spans();
        Some(open.request)
    }

    /// The next piece to be asked.
    fn piece(&mut self) -> Option<Piece> {
        if let Some(piece) = self.first.pop_front() {
            return Some(piece);
        }
        let number = *self.next.front()?;
        let open = self.open.get_mut(number)?.as_mut()?;
        let whole = open.parts.last_mut()?;
        let mut part = *whole;
        if matches!(part.work, Work::Read | Work::Write | Work::Clear) {
            part.to = part.to.min((part.from / BLOCK + SPAN as u64) * BLOCK);
        }
        whole.at += part.to - part.from;
        whole.from = part.to;
        if whole.from == whole.to {
            open.parts.pop();
        }
        open.left += 1;
        if open.parts.is_empty() {
            self.next.pop_front();
        }
        let what = What::Part(part);
        Some(Piece {
            owner: Some(number),
            what,
        })
    }

    /// Asks `store` as much as can be asked; true if it is to be signalled.
    #[must_use]
    pub fn ask(&mut self) -> bool {
        while self.client.room() > 0
            && let Some(piece) = self.piece()
        {
            // There is room.
            let _ = self.client.ask(&piece.what.request());
            self.asked.push_back(piece);
        }
        self.client.publish()
    }

    /// True if there is no answer yet: one will come with a signal.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        self.client.prepare_sleep()
    }

    /// Does what the answers say that have come, until a request is done with.
    pub fn answer(&mut self, memory: &Memory) -> Option<Done> {
        while let Some(piece) = self.asked.front() {
            let blocks = piece.what.request().count;
            let answer = self.client.answer(blocks)?;
            let piece = self.asked.pop_front()?;
            self.answers = self.answers.wrapping_add(1);
            if let Some(done) = self.follow(piece, &answer, memory) {
                return Some(done);
            }
        }
        None
    }

    fn follow(&mut self, piece: Piece, answer: &Answer, memory: &Memory) -> Option<Done> {
        let Some(number) = piece.owner else {
            // To be new must be understood.
            if matches!(piece.what, What::Begin) && answer.status == Status::Stale {
                self.first.push_front(piece);
            }
            return None;
        };
        let open = self.open.get_mut(number)?.as_mut()?;
        let raw = &open.request.raw;
        let mut again = |what| {
            let owner = piece.owner;
            self.first.push_back(Piece { owner, what });
        };
        let good = match (answer.status, piece.what) {
            (Status::Stale, What::Part(part) | What::Commit(part, ..)) => {
                again(What::Part(part));
                return None;
            }
            (Status::Ok, What::Part(part)) => match part.work {
                Work::Read => self.content.read(&part, &answer.places, raw, memory),
                Work::Write | Work::Clear => {
                    if self.content.write(&part, &answer.places, raw, memory) {
                        again(What::Commit(part, answer.epoch, answer.places));
                        return None;
                    }
                    false
                }
                Work::Discard | Work::Zero | Work::Flush => true,
            },
            (Status::Ok, _) => true,
            _ => false,
        };
        if !good {
            open.request.status = status::IOERR;
        }
        open.left -= 1;
        if open.left == 0 && open.parts.is_empty() {
            return self.close(number);
        }
        None
    }
}

/// First block of a part, and how many it touches.
fn blocks(part: &Part) -> (u32, u32) {
    // A disk has less than 2^28 blocks.
    let first = part.from / BLOCK;
    (first as u32, (part.to.div_ceil(BLOCK) - first) as u32)
}

/// Sectors of the first block before a part, and of the last behind it.
fn skipped(part: &Part) -> (u8, u8) {
    let behind = part.to.next_multiple_of(BLOCK) - part.to;
    // Less than a block.
    let sectors = |bytes: u64| (bytes / SECTOR) as u8;
    (sectors(part.from % BLOCK), sectors(behind))
}

impl What {
    fn request(&self) -> Request {
        let of = |op, part: &Part| {
            let (first, count) = blocks(part);
            Request::new(op, first, count)
        };
        match self {
            Self::Begin => Request::new(Op::Begin, 0, 0),
            Self::Commit(part, epoch, places) => Request {
                epoch: *epoch,
                places: *places,
                skip: skipped(part),
                ..of(Op::Commit, part)
            },
            Self::Part(part) => match part.work {
                Work::Read => of(Op::Read, part),
                Work::Write | Work::Clear => of(Op::Write, part),
                Work::Discard => of(Op::Discard, part),
                Work::Zero => of(Op::Zero, part),
                Work::Flush => Request::new(Op::Flush, 0, 0),
            },
        }
    }
}

/// A block of a part: its number, which of its bytes the part is about, and where these are in the request's data.
fn each_block(part: &Part) -> impl Iterator<Item = (u32, (usize, usize), u64)> {
    let (first, count) = blocks(part);
    let part = *part;
    (first..first + count).map(move |block| {
        let start = u64::from(block) * BLOCK;
        let from = part.from.max(start);
        let to = part.to.min(start + BLOCK);
        // Within a block.
        let inside = ((from - start) as usize, (to - start) as usize);
        (block, inside, part.at + (from - part.from))
    })
}

impl Content<'_> {
    /// Gives the guest what a part reads. False: what `store` said cannot be so.
    fn read(&self, part: &Part, places: &Places, raw: &Raw, memory: &Memory) -> bool {
        each_block(part)
            .zip(places)
            .all(|((block, (from, to), at), &place)| {
                let spans = &raw.input;
                let done = match Place::unpack(place) {
                    Place::Page(page) => self
                        .page(page)
                        .and_then(|bytes| bytes.get(from..to))
                        .map(|bytes| give(memory, spans, at, bytes)),
                    Place::Base(base) => {
                        Some(self.give_base(memory, (block, base), (from, to), spans, at))
                    }
                    Place::Fresh(..) => None,
                };
                done.is_some_and(|done| done.is_ok())
            })
    }

    /// Writes a part to its pages. False: what `store` said cannot be so.
    fn write(&mut self, part: &Part, places: &Places, raw: &Raw, memory: &Memory) -> bool {
        each_block(part)
            .zip(places)
            .all(|((block, (from, to), at), &place)| {
                let page = match Place::unpack(place) {
                    Place::Page(page) => page,
                    Place::Fresh(page, base) => {
                        self.fill(page, (block, base), (from, to));
                        page
                    }
                    Place::Base(Base::Hole | Base::Image) => return false,
                };
                let into = self.page_mut(page).and_then(|p| p.get_mut(from..to));
                match (into, part.work) {
                    (Some(into), Work::Write) => take(memory, &raw.output, at, into).is_ok(),
                    (Some(into), _) => {
                        into.fill(0);
                        true
                    }
                    (None, _) => false,
                }
            })
    }
}
