//! The device with a driver made by hand and `store` itself, against a plain array of bytes.

mod world;

use ipc_schema::disk::Back;
use proptest::prelude::*;
use world::{BLOCKS, IMAGE, QUEUES, REQUESTS, SECTORS, World, image};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// What the disk holds at first.
fn begins() -> Vec<u8> {
    let mut disk = image();
    disk.resize(BLOCKS as usize * 4096, 0);
    disk
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn what_it_says_of_itself() {
    let mut w = World::new(8);
    let config = |w: &mut World, at: u16, width| w.get(0xC0 + at, width);
    assert_eq!(config(&mut w, 0, 4), SECTORS as u32);
    assert_eq!(config(&mut w, 12, 4), 126);
    assert_eq!(config(&mut w, 20, 4), 512);
    assert_eq!((config(&mut w, 24, 1), config(&mut w, 26, 2)), (3, 8));
    assert_eq!(config(&mut w, 34, 2), u32::from(QUEUES));
    assert_eq!((config(&mut w, 36, 4), config(&mut w, 56, 1)), (1 << 15, 1));
    let (status, id) = w.one(GET_ID, 0, &[], 20);
    assert_eq!(
        (status, &id[..]),
        (0, &b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0"[..])
    );
}

#[test]
fn the_image_then_zeroes() {
    let mut w = World::new(8);
    let disk = begins();
    let (status, bytes) = w.one(IN, 0, &[], 7 * 4096);
    assert_eq!(status, 0);
    assert!(bytes == disk[..7 * 4096]);
    let (status, bytes) = w.one(IN, 41, &[], 512);
    assert_eq!((status, &bytes[..]), (0, &disk[41 * 512..42 * 512]));
    assert!(bytes[IMAGE % 512..].iter().all(|&b| b == 0));
}

#[test]
fn a_sector_is_written_and_the_rest_of_its_block_stays() {
    let mut w = World::new(8);
    let mut disk = begins();
    for sector in [3, 42, 43, 100] {
        let data = [sector as u8; 512];
        assert_eq!(w.one(OUT, sector, &data, 0).0, 0);
        disk[sector as usize * 512..][..512].copy_from_slice(&data);
    }
    assert_eq!(w.store.free(0), 5);
    let (_, bytes) = w.one(IN, 0, &[], 20 * 4096);
    assert!(bytes == disk[..20 * 4096]);
    assert_eq!(w.one(FLUSH, 0, &[], 0).0, 0);
}

#[test]
fn what_is_refused() {
    let mut w = World::new(2);
    let sector = [0; 512];
    assert_eq!(w.one(IN, SECTORS, &[], 512).0, 1);
    assert_eq!(w.one(IN, u64::MAX, &[], 512).0, 1);
    assert_eq!(w.one(IN, 0, &[], 500).0, 1, "no whole sector");
    assert_eq!(w.one(OUT, SECTORS - 1, &[0; 1024], 0).0, 1);
    assert_eq!(w.one(99, 0, &[], 512).0, 2);
    assert_eq!(w.one(DISCARD, 0, &segment(0, 8, 1), 0).0, 2);
    assert_eq!(w.one(WRITE_ZEROES, 0, &segment(0, 8, 2), 0).0, 2);
    assert_eq!(w.one(WRITE_ZEROES, 0, &segment(SECTORS, 1, 0), 0).0, 1);
    assert_eq!(w.one(DISCARD, 0, &[0; 15], 0).0, 1);
    // Two pages, and no more.
    assert_eq!(w.one(OUT, 100, &sector, 0).0, 0);
    assert_eq!(w.one(OUT, 200, &sector, 0).0, 0);
    assert_eq!(w.one(OUT, 300, &sector, 0).0, 1, "it is full");
    assert_eq!(w.store.take_full(), Some(0));
    assert_eq!(w.one(OUT, 101, &sector, 0).0, 0, "in place");
    assert_eq!(w.one(DISCARD, 0, &segment(200, 8, 0), 0).0, 0);
    assert_eq!(w.one(OUT, 300, &sector, 0).0, 0);
}

#[test]
fn a_read_only_disk() {
    let mut w = World::new(0);
    assert_eq!(w.one(IN, 0, &[], 512).0, 0);
    assert_eq!(w.one(OUT, 0, &[0; 512], 0).0, 1);
    assert_eq!(w.one(DISCARD, 0, &segment(0, 8, 0), 0).0, 2);
    w.out(0x00, 4, 0);
    assert_eq!(w.get(0x04, 4) & (1 << 5 | 3 << 13), 1 << 5);
}

/// Zeroes that may not give the place up keep it.
#[test]
fn zeroes_with_and_without_a_place() {
    let mut w = World::new(8);
    assert_eq!(w.one(OUT, 80, &[7; 3 * 4096], 0).0, 0);
    assert_eq!(w.store.free(0), 5);
    assert_eq!(w.one(WRITE_ZEROES, 0, &segment(84, 16, 0), 0).0, 0);
    assert_eq!(w.store.free(0), 5);
    let (_, bytes) = w.one(IN, 80, &[], 3 * 4096);
    assert!(bytes[..2048].iter().all(|&b| b == 7) && bytes[10240..].iter().all(|&b| b == 7));
    assert!(bytes[2048..10240].iter().all(|&b| b == 0));
    assert_eq!(w.one(WRITE_ZEROES, 0, &segment(80, 23, 1), 0).0, 0);
    assert_eq!(w.store.free(0), 7);
    let (_, bytes) = w.one(IN, 80, &[], 3 * 4096);
    assert!(bytes[..23 * 512].iter().all(|&b| b == 0) && bytes[23 * 512..].iter().all(|&b| b == 7));
}

/// A driver does not clear blocks: zeroes are written, as many as that is bearable for. What nobody needs it is told.
#[test]
fn zeroes_and_discards_on_a_real_disk() {
    let mut w = World::behind(Back::Driver { read_only: false }, 8, true);
    w.out(0x00, 4, 0);
    assert_eq!(w.get(0x04, 4) & (1 << 5 | 3 << 13), 3 << 13);
    assert_eq!(
        (w.get(0xC0 + 36, 4), w.get(0xC0 + 48, 4)),
        (1 << 15, 1 << 11)
    );
    assert_eq!(w.get(0xC0 + 56, 1), 0, "no place is given up for zeroes");
    assert_eq!(w.one(OUT, 80, &[7; 3 * 4096], 0).0, 0);
    for (sector, unmap) in [(84, 1), (88, 0)] {
        assert_eq!(w.one(WRITE_ZEROES, 0, &segment(sector, 8, unmap), 0).0, 0);
    }
    assert_eq!(w.store.free(0), 5);
    let (_, bytes) = w.one(IN, 80, &[], 3 * 4096);
    assert!(bytes[..2048].iter().all(|&b| b == 7) && bytes[8192..].iter().all(|&b| b == 7));
    assert!(bytes[2048..8192].iter().all(|&b| b == 0));
    assert_eq!(w.one(DISCARD, 0, &segment(84, 16, 0), 0).0, 0);
    assert_eq!(w.store.free(0), 6, "the one whole block");
    assert_eq!(w.one(WRITE_ZEROES, 0, &segment(0, 1 << 12, 0), 0).0, 1);
    let mut w = World::behind(Back::Driver { read_only: true }, 8, true);
    assert_eq!(w.one(DISCARD, 0, &segment(0, 8, 0), 0).0, 2);
    w.out(0x00, 4, 0);
    assert_eq!(w.get(0x04, 4) & (1 << 5 | 3 << 13), 1 << 5);
}

/// A reset forgets what was under way; nothing of it is lost that was told, and the pages come back.
#[test]
fn a_reset_in_the_middle() {
    for answered in [false, true] {
        let mut w = World::new(8);
        w.submit((0, 0), OUT, 80, &[7; 2 * 4096], 0);
        w.submit((1, 1), OUT, 160, &[8; 4096], 0);
        let _ = w.server().wake();
        if answered {
            w.store.serve(|_| ());
        }
        w.drive();
        // Answers to what is forgotten are none to what follows.
        w.submit((0, 0), IN, 0, &[], 3 * 4096);
        w.submit((0, 1), IN, 0, &[], 3 * 4096);
        w.run();
        for _ in 0..2 {
            let (_, status, bytes) = w.done(0, 3 * 4096).unwrap();
            assert!(status == 0 && bytes == begins()[..3 * 4096]);
        }
        assert_eq!((w.done(0, 0), w.done(1, 0)), (None, None));
        assert_eq!(w.store.free(0), 8);
        // The same block, in part, by another: what is not written is what it was.
        assert_eq!(w.one(OUT, 81, &[9; 512], 0).0, 0);
        let (_, bytes) = w.one(IN, 80, &[], 4096);
        assert!(bytes[..512].iter().all(|&b| b == 0) && bytes[1024..].iter().all(|&b| b == 0));
    }
}

/// A request in flight, and what the disk is to be when it is done.
#[derive(Clone)]
struct Open {
    kind: u32,
    from: usize,
    data: Vec<u8>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Submit(u16, u32, u64, usize, u8),
    Server,
    Store,
    KillServer,
    KillStore,
    KillBoth,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![4 => Just(IN), 6 => Just(OUT), 2 => Just(DISCARD), 2 => Just(WRITE_ZEROES), 1 => Just(FLUSH)];
    prop_oneof![
        10 => (0..QUEUES, kind, 0..SECTORS, 1usize..170, any::<u8>())
            .prop_map(|(q, k, s, n, b)| Step::Submit(q, k, s, n, b)),
        6 => Just(Step::Server),
        6 => Just(Step::Store),
        1 => Just(Step::KillServer),
        1 => Just(Step::KillStore),
        1 => Just(Step::KillBoth),
    ]
}

/// A driver that has no two requests for a sector at a time, and knows what the disk is to hold.
struct Judge {
    w: World,
    disk: Vec<u8>,
    open: Vec<Vec<Option<Open>>>,
    /// Requests that were told, and in what order those of a queue were submitted.
    told: usize,
    order: Vec<std::collections::VecDeque<usize>>,
}

impl Judge {
    fn new(packed: bool) -> Self {
        Self {
            w: World::with(BLOCKS, packed),
            disk: begins(),
            open: vec![vec![None; REQUESTS]; QUEUES.into()],
            told: 0,
            order: vec![Default::default(); QUEUES.into()],
        }
    }

    fn submit(&mut self, queue: u16, kind: u32, sector: u64, sectors: usize, byte: u8) {
        let sectors = sectors.min((SECTORS - sector) as usize);
        let (from, len) = (sector as usize * 512, sectors * 512);
        let clash = |o: &Open| o.from < from + len && from < o.from + o.len;
        let slots = &self.open[queue as usize];
        let Some(slot) = slots.iter().position(Option::is_none) else {
            return;
        };
        if self.open.iter().flatten().flatten().any(clash) {
            return;
        }
        let data: Vec<u8> = (0..len)
            .map(|i| byte.wrapping_add((i / 512 + i) as u8))
            .collect();
        let at = (queue, slot);
        match kind {
            IN => self.w.submit(at, kind, sector, &[], len),
            OUT => self.w.submit(at, kind, sector, &data, 0),
            FLUSH => self.w.submit(at, kind, 0, &[], 0),
            _ => {
                let flags = u32::from(kind == WRITE_ZEROES && byte & 1 != 0);
                self.w
                    .submit(at, kind, 0, &segment(sector, sectors as u32, flags), 0);
            }
        }
        self.order[queue as usize].push_back(slot);
        self.open[queue as usize][slot] = Some(Open {
            kind,
            from,
            data,
            len,
        });
    }

    fn look(&mut self) -> Result<(), TestCaseError> {
        for queue in 0..QUEUES {
            while let Some((slot, status, bytes)) = self.w.done(queue, 170 * 512) {
                prop_assert_eq!(self.order[queue as usize].pop_front(), Some(slot));
                let Open {
                    kind,
                    from,
                    data,
                    len,
                } = self.open[queue as usize][slot].take().unwrap();
                prop_assert_eq!(status, 0);
                self.told += 1;
                let (from, to) = match kind {
                    // Whole blocks; the rest stays.
                    DISCARD => (from.next_multiple_of(4096), (from + len) / 4096 * 4096),
                    _ => (from, from + len),
                };
                let range = from..to.max(from);
                match kind {
                    IN => prop_assert!(bytes[..len] == self.disk[range], "read at {}", from),
                    OUT => self.disk[range].copy_from_slice(&data),
                    DISCARD | WRITE_ZEROES => self.disk[range].fill(0),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is asked and whoever dies: no request fails, each is told once and in its turn, and the disk holds what was written.
    #[test]
    fn a_disk_through_deaths(packed: bool, steps in proptest::collection::vec(step(), 0..150)) {
        let mut j = Judge::new(packed);
        let mut submitted = 0;
        for step in steps {
            match step {
                Step::Submit(queue, kind, sector, sectors, byte) => {
                    let before: usize = j.order.iter().map(|o| o.len()).sum();
                    j.submit(queue, kind, sector, sectors, byte);
                    submitted += j.order.iter().map(|o| o.len()).sum::<usize>() - before;
                }
                Step::Server => {
                    let _ = j.w.server().wake();
                }
                Step::Store => j.w.store.serve(|_| ()),
                Step::KillServer => j.w.kill_server(),
                Step::KillStore => j.w.kill_store(),
                Step::KillBoth => {
                    j.w.kill_store();
                    j.w.kill_server();
                }
            }
            j.look()?;
        }
        j.w.run();
        j.look()?;
        prop_assert_eq!(j.told, submitted);
        let (status, bytes) = j.w.one(IN, 0, &[], 30 * 4096);
        prop_assert_eq!(status, 0);
        prop_assert!(bytes == j.disk[..30 * 4096]);
        let (_, bytes) = j.w.one(IN, 80, &[], 30 * 4096);
        prop_assert!(bytes == j.disk[10 * 4096..]);
    }
}
