//! The driver of the second disk: its partition table, its configuration space, and clients that ask anything of a disk that answers in any
//! order.
#![no_main]

use driver_virtio_blk::gpt::{HEADER_AT, MAX_TABLE, Partition, SECTOR, Table, crc32};
use driver_virtio_blk::pci::places;
use driver_virtio_blk::server::{Device, Job, Region, Server, Ticket, Work};
use fuzz::{Bytes, scribble, target};
use ipc_schema::disk::{
    BLOCK, Channel, Client, DRIVER_DEPTH, DRIVER_PAGES, DriverClient, DriverConfig, Geometry, Op,
    Request, SPAN,
};

target!(run, seeds);

/// What an input is about.
const TABLE: u8 = 0;
const CONFIG: u8 = 1;
const CLIENTS: u8 = 2;
const KINDS: u8 = 3;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.u8() % KINDS {
        TABLE => table(&mut bytes),
        CONFIG => config(&mut bytes),
        _ => clients(&mut bytes),
    }
}

/// Puts the right sum over the first `len` bytes of a header.
fn seal(header: &mut [u8], len: usize) {
    header[16..20].fill(0);
    let sum = crc32(&header[..len]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}

/// A header and entries, with sums that are right if the input wants it: else nothing would get past them.
fn table(bytes: &mut Bytes<'_>) {
    let (capacity, sums) = (u64::from(bytes.u32()), bytes.flag());
    let mut header = bytes.take(SECTOR).to_vec();
    let mut entries = bytes.0.to_vec();
    entries.resize(MAX_TABLE, 0);
    if sums && header.len() >= 92 {
        let long = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i])) as usize;
        let (len, all) = (long(12), long(80).saturating_mul(long(84)));
        if let Some(all) = entries.get(..all) {
            header[88..92].copy_from_slice(&crc32(all).to_le_bytes());
        }
        if (92..=header.len()).contains(&len) {
            seal(&mut header, len);
        }
    }
    let Ok(table) = Table::parse(&header, capacity) else {
        return;
    };
    let end = table.first + table.sectors();
    assert!(table.first > HEADER_AT && table.sectors() <= (MAX_TABLE / SECTOR) as u64);
    let read = table.sectors() as usize * SECTOR;
    let Ok(mut all) = table.partitions(&entries[..read]) else {
        return;
    };
    all.sort_by_key(|p| p.first);
    let mut free = end;
    for partition in all {
        assert!(partition.first >= free && partition.sectors > 0);
        free = partition.first + partition.sectors;
        assert!(free <= capacity);
        assert!(partition.name.chars().count() <= 36);
    }
}

/// Any configuration space: what is found is aligned and long enough for what is read there.
fn config(bytes: &mut Bytes<'_>) {
    if let Some(found) = places(bytes.0) {
        assert!(found.common.len >= 0x38 && found.common.offset % 4 == 0);
        assert!(found.device.len >= 8 && found.device.offset % 4 == 0);
        assert!(found.notify.offset % 2 == 0);
    }
}

/// Blocks of a client's disk, and where the partitions begin.
const BLOCKS: u32 = 40;
const FIRST: [u64; 2] = [100, 1000];
/// Jobs that the disk takes.
const JOBS: usize = 5;

/// A disk that keeps nothing, and judges what it is asked.
#[derive(Default)]
struct Disk {
    under_way: Vec<(Ticket, Job)>,
    ended: Vec<(Ticket, bool)>,
}

impl Device for Disk {
    fn room(&self) -> bool {
        self.under_way.len() < JOBS
    }

    fn start(&mut self, ticket: Ticket, job: Job) {
        assert!(self.room(), "more than fits");
        let client = ticket.client as usize;
        assert!(job.region == Region::Client(client), "another's memory");
        assert!(client == 0 || job.work != Work::Write, "it is read-only");
        if job.work == Work::Flush {
            assert!(job.len == 0 && !ticket.uses_pages);
        } else {
            let sectors = job.len / SECTOR as u64;
            assert!(sectors > 0 && job.len.is_multiple_of(SECTOR as u64));
            assert!(
                job.at + job.len <= u64::from(DRIVER_PAGES) * BLOCK,
                "outside its memory"
            );
            let (first, all) = (FIRST[client], u64::from(BLOCKS) * BLOCK / SECTOR as u64);
            assert!(job.sector >= first && job.sector + sectors <= first + all);
            let apart = |other: &Job| {
                other.region != job.region
                    || job.at + job.len <= other.at
                    || other.at + other.len <= job.at
            };
            assert!(
                self.under_way.iter().all(|(_, other)| apart(other)),
                "pages of another job"
            );
        }
        self.under_way.push((ticket, job));
    }

    fn push(&mut self) {}

    fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    fn ended(&mut self) -> Option<(Ticket, bool)> {
        self.ended.pop()
    }
}

/// Steps.
const ASK: u8 = 0;
const SERVE: u8 = 1;
const END: u8 = 2;
const SCRIBBLE: u8 = 3;
const DIE: u8 = 4;
const STEPS: u8 = 5;

/// Two clients, one of which may not write; a disk that does what is under way when the input says so, or refuses it.
fn clients(bytes: &mut Bytes<'_>) {
    let channels = [Box::new(Channel::new()), Box::new(Channel::new())];
    let config = DriverConfig {
        clients: [false, true]
            .map(|read_only| DriverClient {
                disk: Geometry {
                    name: if read_only { "r" } else { "w" }.into(),
                    blocks: BLOCKS,
                    image: 0,
                    pages: DRIVER_PAGES,
                },
                read_only,
            })
            .into(),
        ..DriverConfig::default()
    };
    let partitions = [("w", FIRST[0]), ("r", FIRST[1])].map(|(name, first)| Partition {
        name: name.into(),
        first,
        sectors: u64::from(BLOCKS) * BLOCK / SECTOR as u64 + 3,
    });
    let both: Vec<&Channel> = channels.iter().map(|c| &**c).collect();
    let start = |life| Server::new(&config, &partitions, &both, life);
    let ask = |channel| Client::new(channel).with_depth(DRIVER_DEPTH);
    let (mut life, mut disk) = (0, Disk::default());
    let mut server = start(life);
    let mut ends = [ask(&*channels[0]), ask(&*channels[1])];
    // What was given out last to each.
    let mut given = [None, None];
    while !bytes.is_empty() {
        match bytes.u8() % STEPS {
            ASK => {
                let which = usize::from(bytes.flag());
                let request = request(bytes, given[which]);
                while let Some(answer) = ends[which].answer(SPAN as u32) {
                    given[which] = Some((answer.epoch, answer.places));
                }
                let _ = ends[which].ask(&request);
                let _ = ends[which].publish();
            }
            SERVE => server.serve(&mut disk, |client| assert!(client < 2)),
            END if !disk.under_way.is_empty() => {
                let which = bytes.below(JOBS) % disk.under_way.len();
                let (ticket, _) = disk.under_way.remove(which);
                disk.ended.push((ticket, bytes.flag()));
            }
            SCRIBBLE => {
                let which = usize::from(bytes.flag());
                scribble(both[which], bytes);
            }
            DIE => match bytes.u8() % 3 {
                // The device is reset.
                0 => {
                    life += 1000;
                    disk = Disk::default();
                    server = start(life);
                }
                which => ends[usize::from(which) - 1] = ask(both[usize::from(which) - 1]),
            },
            _ => {}
        }
    }
}

/// A request, with what was given out last as often as not.
fn request(bytes: &mut Bytes<'_>, given: Option<(u64, [u32; SPAN])>) -> Request {
    let op = bytes.pick(&[
        None,
        Some(Op::Begin),
        Some(Op::Read),
        Some(Op::Write),
        Some(Op::Commit),
        Some(Op::Discard),
        Some(Op::Zero),
        Some(Op::Flush),
    ]);
    let (first, count) = (bytes.number() as u32, bytes.u8().into());
    let skip = (bytes.u8(), bytes.u8());
    let (epoch, mut places) = given.unwrap_or_default();
    if bytes.flag() {
        places[bytes.below(SPAN)] = bytes.u32();
    }
    Request {
        op,
        first,
        count,
        epoch,
        places,
        skip,
    }
}

/// A sound table, sound configuration space, and a client that reads, writes and flushes.
fn seeds() -> Vec<Vec<u8>> {
    let mut header = vec![0; SECTOR];
    header[..8].copy_from_slice(b"EFI PART");
    for (at, value) in [(12, 92u32), (80, 4), (84, 128)] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [(24, 1u64), (32, 4095), (40, 34), (48, 4062), (72, 2)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let mut entries = vec![0; 4 * 128];
    for (entry, (first, last)) in entries.chunks_mut(128).zip([(34u64, 99u64), (100, 4062)]) {
        entry[0] = 7;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        entry[56..60].copy_from_slice(&[b'a', 0, 0xF6, 0]);
    }
    let head = [&[TABLE][..], &4096u32.to_le_bytes(), &[1]].concat();
    let mut all = vec![[&head[..], &header, &entries].concat()];

    let mut config = vec![0; 256];
    config[6] = 0x10;
    config[0x34] = 0x7C;
    for (at, next, kind) in [
        (0x40, 0, 1),
        (0x54, 0x40, 3),
        (0x68, 0x54, 4),
        (0x7C, 0x68, 2),
    ] {
        config[at..at + 5].copy_from_slice(&[9, next, 20, kind, 4]);
        config[at + 12..at + 16].copy_from_slice(&0x1000u32.to_le_bytes());
    }
    config.insert(0, CONFIG);
    all.push(config);

    let ask = |op: u8, first: u8, count: u8, skip: u8| [ASK, 0, op, 0, first, count, skip, 0, 0];
    let mut steps = vec![CLIENTS];
    let ended = [SERVE, END, 0, 1, SERVE];
    for request in [
        ask(1, 0, 0, 0),
        ask(2, 3, 2, 0),
        ask(3, 5, 3, 0),
        ask(0, 0, 0, 0),
        ask(4, 5, 3, 1),
        ask(7, 0, 0, 0),
    ] {
        steps.extend(request);
        steps.extend(ended);
    }
    steps.extend([DIE, 0, DIE, 1]);
    steps.extend(ask(2, 0, 16, 0));
    steps.extend(ended);
    all.push(steps);
    all
}
