//! A disk that is an array of bytes, a server, and a client that does with pages what a device model does.

use std::collections::VecDeque;

use ipc_schema::disk::{
    BLOCK, Channel, Client, DRIVER_DEPTH, DRIVER_PAGES, DriverClient, DriverConfig, Geometry, Op,
    Place, Request, SPAN,
};
use proptest::prelude::*;

use crate::gpt::Partition;
use crate::server::{Device, Job, Region, Server, Ticket, Work};

pub use ipc_schema::disk::Status;

pub const BLOCKS: u32 = 40;
/// First sector of the partition; there is as much behind it again.
const FIRST: u64 = 100;
const SECTORS: u64 = FIRST * 2 + BLOCKS as u64 * 8;
const PAGE: usize = BLOCK as usize;

/// The disk. What is under way is done when a test wants it, in its order.
pub struct Disk {
    pub bytes: Vec<u8>,
    pub pages: Vec<u8>,
    under_way: Vec<(Ticket, Job)>,
    ended: VecDeque<(Ticket, bool)>,
    pub fails: bool,
}

impl Disk {
    /// Jobs that are not done.
    pub fn waiting(&self) -> usize {
        self.under_way.len()
    }

    /// Does one of the jobs.
    pub fn work(&mut self, which: usize) {
        if self.under_way.is_empty() {
            return;
        }
        let (ticket, job) = self.under_way.remove(which % self.under_way.len());
        assert_eq!(job.region, Region::Client(0));
        let (on, at) = (job.sector as usize * 512, job.at as usize);
        let len = job.len as usize;
        assert!(job.work != Work::Discard || !ticket.uses_pages);
        if !self.fails {
            match job.work {
                Work::Read => self.pages[at..at + len].copy_from_slice(&self.bytes[on..on + len]),
                Work::Write => self.bytes[on..on + len].copy_from_slice(&self.pages[at..at + len]),
                Work::Flush => {}
                Work::Discard => self.bytes[on..on + len].fill(0xDD),
            }
        }
        self.ended.push_back((ticket, !self.fails));
    }
}

impl Device for Disk {
    fn room(&self) -> bool {
        self.under_way.len() < 20
    }
    fn start(&mut self, ticket: Ticket, job: Job) {
        assert!(self.room());
        self.under_way.push((ticket, job));
    }
    fn push(&mut self) {}
    fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }
    fn ended(&mut self) -> Option<(Ticket, bool)> {
        self.ended.pop_front()
    }
}

/// What the client asked.
#[derive(Clone)]
enum Asked {
    Begin,
    Read(u32, u32),
    Write(u64, Vec<u8>),
    Commit(u64, Vec<u8>),
    Raw,
}

/// All of it.
pub struct World {
    channel: &'static Channel,
    client: Client<'static>,
    /// Knows only how the channel was at first, and has asked something that it has not shown.
    stray: Client<'static>,
    server: Option<Server<'static>>,
    pub device: Disk,
    config: DriverConfig,
    name: &'static str,
    lives: u64,
    /// To be asked, and asked.
    next: VecDeque<Asked>,
    asked: VecDeque<Asked>,
    /// What the partition is to hold.
    wanted: Vec<u8>,
    /// Ends of what was asked last.
    last: Vec<(Status, Vec<u8>)>,
    begins: Vec<u8>,
}

impl World {
    pub fn new(read_only: bool) -> Self {
        Self::with(read_only, "d")
    }

    pub fn with(read_only: bool, name: &'static str) -> Self {
        let bytes: Vec<u8> = (0..SECTORS as usize * 512)
            .map(|i| (i / 512 + i) as u8)
            .collect();
        let channel: &'static Channel = Box::leak(Box::new(Channel::new()));
        let disk = Geometry {
            name: "d".into(),
            blocks: BLOCKS,
            image: 0,
            pages: DRIVER_PAGES,
        };
        let config = DriverConfig {
            clients: vec![DriverClient { disk, read_only }],
            ..DriverConfig::default()
        };
        let from = FIRST as usize * 512;
        let mut stray = Client::new(channel);
        assert!(stray.ask(&Request::new(Op::Read, 0, 1)));
        let mut world = Self {
            channel,
            client: Client::new(channel).with_depth(DRIVER_DEPTH),
            stray,
            server: None,
            device: Disk {
                bytes: bytes.clone(),
                pages: vec![0xee; DRIVER_PAGES as usize * PAGE],
                under_way: Vec::new(),
                ended: VecDeque::new(),
                fails: false,
            },
            config,
            name,
            lives: 0,
            next: VecDeque::from([Asked::Begin]),
            asked: VecDeque::new(),
            wanted: bytes[from..from + BLOCKS as usize * PAGE].to_vec(),
            last: Vec::new(),
            begins: bytes,
        };
        world.kill_server();
        world
    }

    /// A successor of the server: the device is reset, and may have done any of what was under way.
    pub fn kill_server(&mut self) {
        self.lives += 1000;
        self.device.work(0);
        self.device.under_way.clear();
        self.device.ended.clear();
        let partitions = [Partition {
            name: self.name.into(),
            first: FIRST,
            sectors: u64::from(BLOCKS) * 8,
        }];
        self.server = Some(Server::new(
            &self.config,
            &partitions,
            &[self.channel],
            self.lives,
        ));
    }

    /// A successor of the client, which does everything again that was not told.
    pub fn kill_client(&mut self) {
        self.client = Client::new(self.channel).with_depth(DRIVER_DEPTH);
        let open = self.asked.drain(..).chain(self.next.drain(..));
        let again = open.filter_map(|asked| match asked {
            Asked::Begin | Asked::Raw => None,
            Asked::Commit(sector, data) => Some(Asked::Write(sector, data)),
            other => Some(other),
        });
        self.next = core::iter::once(Asked::Begin).chain(again).collect();
    }

    pub fn serve(&mut self) {
        let (server, device) = (self.server.as_mut().unwrap(), &mut self.device);
        server.serve(device, |_| ());
    }

    /// A clash with what is under way: the order of such is nobody's to say.
    fn clashes(&self, from: u64, to: u64) -> bool {
        self.asked.iter().chain(&self.next).any(|asked| {
            let (first, end) = match asked {
                Asked::Read(block, count) => (u64::from(*block) * 8, u64::from(block + count) * 8),
                Asked::Write(sector, data) | Asked::Commit(sector, data) => {
                    (*sector, *sector + data.len() as u64 / 512)
                }
                Asked::Begin | Asked::Raw => return false,
            };
            from < end && first < to
        })
    }

    pub fn begin_read(&mut self, block: u32, count: u32) {
        let (from, to) = (u64::from(block) * 8, u64::from(block + count) * 8);
        if !self.clashes(from, to) {
            self.next.push_back(Asked::Read(block, count));
        }
    }

    pub fn begin_write(&mut self, sector: u64, sectors: usize, byte: u8) {
        let data: Vec<u8> = (0..sectors * 512)
            .map(|i| byte.wrapping_add((i / 512 * 3 + i) as u8))
            .collect();
        if !self.clashes(sector, sector + sectors as u64) {
            self.next.push_back(Asked::Write(sector, data));
        }
    }

    fn request(asked: &Asked) -> (Request, (u8, u8)) {
        match asked {
            Asked::Read(block, count) => (Request::new(Op::Read, *block, *count), (0, 0)),
            Asked::Write(sector, data) | Asked::Commit(sector, data) => {
                let end = sector + data.len() as u64 / 512;
                let (first, last) = (sector / 8, end.div_ceil(8));
                let skip = ((sector % 8) as u8, (last * 8 - end) as u8);
                (
                    Request::new(Op::Write, first as u32, (last - first) as u32),
                    skip,
                )
            }
            _ => (Request::new(Op::Begin, 0, 0), (0, 0)),
        }
    }

    /// Takes answers, and asks as much as it can.
    pub fn client(&mut self) -> Result<(), TestCaseError> {
        while let Some(asked) = self.asked.front().cloned() {
            let (request, skip) = Self::request(&asked);
            let Some(answer) = self.client.answer(request.count) else {
                break;
            };
            self.asked.pop_front();
            if answer.status == Status::Stale {
                let again = match asked {
                    Asked::Commit(sector, data) => Asked::Write(sector, data),
                    other => other,
                };
                self.next.push_back(again);
                continue;
            }
            let page = |i: usize| match Place::unpack(answer.places[i]) {
                Place::Page(page) => page as usize * PAGE,
                _ => panic!("no page"),
            };
            match asked {
                Asked::Read(block, count) => {
                    let mut bytes = Vec::new();
                    if answer.status == Status::Ok {
                        for i in 0..count as usize {
                            bytes.extend_from_slice(&self.device.pages[page(i)..][..PAGE]);
                        }
                        if self.name == "d" {
                            let from = block as usize * PAGE;
                            prop_assert!(
                                bytes == self.wanted[from..from + bytes.len()],
                                "read of {block}"
                            );
                        }
                    }
                    self.last.push((answer.status, bytes));
                }
                Asked::Write(sector, data) if answer.status == Status::Ok => {
                    let mut at = usize::from(skip.0) * 512;
                    let mut rest = &data[..];
                    for i in 0..request.count as usize {
                        let here = rest.len().min(PAGE - at);
                        let start = page(i);
                        // Of what is skipped the pages hold anything.
                        self.device.pages[start..start + PAGE].fill(0x55);
                        self.device.pages[start + at..][..here].copy_from_slice(&rest[..here]);
                        (rest, at) = (&rest[here..], 0);
                    }
                    let commit = Request {
                        op: Some(Op::Commit),
                        epoch: answer.epoch,
                        places: answer.places,
                        skip,
                        ..request
                    };
                    // At once, if there is room, as a device model does.
                    if self.client.ask(&commit) {
                        self.asked.push_back(Asked::Commit(sector, data));
                    } else {
                        self.next.push_front(Asked::Write(sector, data));
                    }
                }
                Asked::Commit(sector, data) if answer.status == Status::Ok => {
                    self.wanted[sector as usize * 512..][..data.len()].copy_from_slice(&data);
                    self.last.push((Status::Ok, Vec::new()));
                }
                Asked::Begin => prop_assert!(answer.status == Status::Ok || self.name != "d"),
                _ => self.last.push((answer.status, Vec::new())),
            }
        }
        while self.client.room() > 0
            && let Some(asked) = self.next.pop_front()
        {
            assert!(self.client.ask(&Self::request(&asked).0));
            self.asked.push_back(asked);
        }
        let _ = self.client.publish();
        Ok(())
    }

    /// Until nothing is under way: then the disk holds what was written, to the byte.
    pub fn settle(&mut self) -> Result<(), TestCaseError> {
        for round in 0.. {
            self.client()?;
            self.serve();
            if self.asked.is_empty() && self.next.is_empty() {
                break;
            }
            self.device.work(round);
            self.serve();
            prop_assert!(round < 5000, "it does not come to an end");
        }
        prop_assert!(self.name != "d" || self.disk(0, BLOCKS) == self.wanted);
        Ok(())
    }

    /// Blocks as they are on the disk.
    pub fn disk(&self, block: u32, count: u32) -> Vec<u8> {
        let from = FIRST as usize * 512 + block as usize * PAGE;
        self.device.bytes[from..from + count as usize * PAGE].to_vec()
    }

    /// Whether all around the partition is as it was; with another's name, all of it.
    pub fn untouched(&self) -> bool {
        let (from, to) = match self.name {
            "d" => (
                FIRST as usize * 512,
                (FIRST as usize + BLOCKS as usize * 8) * 512,
            ),
            _ => (0, 0),
        };
        let (is, was) = (&self.device.bytes, &self.begins);
        is[..from] == was[..from] && is[to..] == was[to..]
    }

    /// A write, not waited for.
    pub fn submit(&mut self, sector: u64, data: &[u8]) {
        self.next.push_back(Asked::Write(sector, data.to_vec()));
    }

    /// Nobody wants what was not told.
    pub fn forget(&mut self) {
        self.next.truncate(1);
    }

    fn one(&mut self, asked: Asked) -> (Status, Vec<u8>) {
        self.last.clear();
        self.next.push_back(asked);
        self.settle().unwrap();
        self.last.pop().unwrap()
    }

    pub fn read(&mut self, block: u32, count: u32) -> Result<Vec<u8>, Status> {
        match self.one(Asked::Read(block, count)) {
            (Status::Ok, bytes) => Ok(bytes),
            (status, _) => Err(status),
        }
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> Status {
        self.one(Asked::Write(sector, data.to_vec())).0
    }

    pub fn flush(&mut self) -> Status {
        self.raw(Op::Flush, 0, 0)
    }

    /// What has no data.
    pub fn raw(&mut self, op: Op, first: u32, count: u32) -> Status {
        self.settle().unwrap();
        let there = first.checked_add(count).is_some_and(|end| end <= BLOCKS);
        let writes = self.config.clients.iter().all(|c| !c.read_only);
        if op == Op::Discard && there && writes {
            let bytes = first as usize * PAGE..(first + count) as usize * PAGE;
            self.wanted[bytes].fill(0xDD);
        }
        assert!(self.client.ask(&Request::new(op, first, count)));
        self.asked.push_back(Asked::Raw);
        self.last.clear();
        self.settle().unwrap();
        self.last.pop().unwrap().0
    }

    /// Asks anything; looks at no answer.
    pub fn hostile(&mut self, (op, first, count, bytes, epoch): (u32, u32, u32, [u8; 4], bool)) {
        let ops = [
            None,
            Some(Op::Begin),
            Some(Op::Read),
            Some(Op::Write),
            Some(Op::Commit),
            Some(Op::Discard),
            Some(Op::Zero),
            Some(Op::Flush),
            Some(Op::Commit),
        ];
        let mut places = [u32::from(bytes[0]) % (DRIVER_PAGES + 4); SPAN];
        if op == 8 {
            // As if they had been given.
            let chunk = u32::from(bytes[0]) % DRIVER_DEPTH * SPAN as u32;
            for (place, page) in places.iter_mut().zip(chunk..) {
                *place = page;
            }
        }
        let request = Request {
            op: ops[op as usize],
            first,
            count,
            epoch: if epoch { self.lives } else { self.lives + 1 },
            places,
            skip: (bytes[1] % 10, bytes[2] % 10),
        };
        while self.client.answer(0).is_some() {}
        let _ = self.client.ask(&request);
        let _ = self.client.publish();
    }

    /// The index jumps back.
    pub fn jump(&mut self) {
        let _ = self.stray.publish();
    }
}
