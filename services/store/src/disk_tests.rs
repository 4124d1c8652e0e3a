use super::*;
use ipc_schema::disk::Base;
use ipc_schema::disk::map_words as words;
use proptest::prelude::*;
use std::collections::BTreeMap;

const BLOCKS: u32 = 24;
const IMAGE: u32 = 10;
const PAGES: u32 = 9;

fn geometry(pages: u32) -> Geometry {
    let name = "d".into();
    Geometry {
        name,
        blocks: BLOCKS,
        image: IMAGE,
        pages,
    }
}

fn memory() -> Vec<AtomicU64> {
    (0..words(BLOCKS)).map(|_| AtomicU64::new(0)).collect()
}

fn request(op: Op, first: u32, count: u32) -> Request {
    Request::new(op, first, count)
}

/// A client of one disk that writes words: what a device model does with bytes.
struct Writer<'a> {
    disk: Disk<'a>,
    words: &'a [AtomicU64],
    /// What is in the pages.
    pages: [u64; PAGES as usize],
    /// What is to be in the disk's blocks.
    blocks: BTreeMap<u32, u64>,
    /// Written and not committed: request, values.
    open: Vec<(Request, Vec<u64>)>,
    lives: u64,
}

impl<'a> Writer<'a> {
    fn new(words: &'a [AtomicU64]) -> Self {
        Self {
            disk: Disk::new(words, &geometry(PAGES), 1000).unwrap().0,
            words,
            pages: [!0; PAGES as usize],
            blocks: BTreeMap::new(),
            open: Vec::new(),
            lives: 1000,
        }
    }

    fn write(&mut self, first: u32, values: &[u64]) -> Status {
        let mut request = request(Op::Write, first, values.len() as u32);
        let reply = self.disk.handle(&request);
        let Some((epoch, places)) = reply.places else {
            return reply.status;
        };
        for (value, place) in values.iter().zip(places) {
            match Place::unpack(place) {
                Place::Page(page) | Place::Fresh(page, _) => self.pages[page as usize] = *value,
                Place::Base(_) => panic!("nowhere to write"),
            }
        }
        (request.op, request.epoch, request.places) = (Some(Op::Commit), epoch, places);
        self.open.push((request, values.to_vec()));
        Status::Ok
    }

    /// Commits the oldest; what is stale is written again, as what it is: not the disk's yet.
    fn commit(&mut self) -> Option<Status> {
        if self.open.is_empty() {
            return None;
        }
        let (request, values) = self.open.remove(0);
        let status = self.disk.handle(&request).status;
        if status == Status::Ok {
            self.blocks.extend((request.first..).zip(values));
        }
        Some(status)
    }

    fn read(&mut self, block: u32) -> u64 {
        let reply = self.disk.handle(&request(Op::Read, block, 1));
        match Place::unpack(reply.places.unwrap().1[0]) {
            Place::Page(page) => self.pages[page as usize],
            Place::Base(Base::Image) => 100 + u64::from(block),
            Place::Base(Base::Hole) => 0,
            Place::Fresh(..) => panic!("nothing is there"),
        }
    }

    fn judge(&mut self) -> Result<(), TestCaseError> {
        for block in 0..BLOCKS {
            let begins = if block < IMAGE {
                100 + u64::from(block)
            } else {
                0
            };
            let wanted = self.blocks.get(&block).copied().unwrap_or(begins);
            // What is being written in place may be there already.
            let open = self.open.iter().any(|(r, _)| blocks(r).contains(&block));
            let is = self.read(block);
            prop_assert!(
                open || is == wanted,
                "block {}: {} for {}",
                block,
                is,
                wanted
            );
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u32, Vec<u64>),
    Commit,
    Clear(u32, u32),
    NewClient,
    NewStore,
}

fn step() -> impl Strategy<Value = Step> {
    let values = proptest::collection::vec(1000u64..2000, 1..4);
    prop_oneof![
        6 => (0..BLOCKS - 4, values).prop_map(|(b, v)| Step::Write(b, v)),
        6 => Just(Step::Commit),
        2 => (0..BLOCKS - 6, 0u32..6).prop_map(|(b, n)| Step::Clear(b, n)),
        1 => Just(Step::NewClient),
        1 => Just(Step::NewStore),
    ]
}

proptest! {
    /// What was committed is there, whoever dies; what was not is not, unless it was written in place; no page is lost or given to two.
    #[test]
    fn contents_survive(steps in proptest::collection::vec(step(), 0..120)) {
        let words = memory();
        let mut it = Writer::new(&words);
        for step in steps {
            match step {
                Step::Write(first, values) => {
                    let free = it.disk.free();
                    let status = it.write(first, &values);
                    prop_assert!(status == Status::Ok || status == Status::Full && it.disk.free() == free);
                    prop_assert!(status == Status::Ok || (free as usize) < values.len());
                }
                Step::Commit => {
                    let status = it.commit();
                    prop_assert!(matches!(status, None | Some(Status::Ok | Status::Stale)));
                    it.judge()?;
                }
                Step::Clear(first, count) => {
                    // A write that is under way loses the race: it was given pages before, and may be stale after.
                    while it.commit().is_some() {}
                    prop_assert_eq!(it.disk.handle(&request(Op::Discard, first, count)).status, Status::Ok);
                    it.blocks.extend((first..first + count).map(|b| (b, 0)));
                    it.judge()?;
                }
                Step::NewClient => {
                    // Requests are done again by the successor; these are forgotten, but what they did in place.
                    while it.commit().is_some() {}
                    prop_assert_eq!(it.disk.handle(&request(Op::Begin, 0, 0)).status, Status::Ok);
                    it.judge()?;
                }
                Step::NewStore => {
                    it.lives += 1000;
                    let (disk, report) = Disk::new(it.words, &geometry(PAGES), it.lives).unwrap();
                    prop_assert_eq!((report.lost, report.mended, report.new), (0, 0, false));
                    it.disk = disk;
                    // Of what was given out it knows nothing.
                    for (request, _) in it.open.clone() {
                        let status = it.disk.handle(&request).status;
                        prop_assert_eq!(status, Status::Stale);
                    }
                    for (request, values) in core::mem::take(&mut it.open) {
                        prop_assert!(matches!(it.write(request.first, &values), Status::Ok | Status::Full));
                    }
                }
            }
        }
        while it.commit().is_some() {}
        it.judge()?;
        let _ = it.disk.handle(&request(Op::Begin, 0, 0));
        let pages = (0..BLOCKS).filter(|&b| matches!(it.disk.map.get(b), Ok(Place::Page(_)))).count();
        prop_assert_eq!(it.disk.free(), PAGES - pages as u32);
    }

    /// No request, however wrong, gives a page out twice or changes what it may not.
    #[test]
    fn hostile_requests(requests in proptest::collection::vec((0u32..8, 0u32..BLOCKS + 8, any::<u8>(), any::<bool>(), any::<[u8; 4]>()), 0..80)) {
        let words = memory();
        let (mut disk, _) = Disk::new(&words, &geometry(PAGES), 5).unwrap();
        for (op, first, count, epoch, pages) in requests {
            let op = [None, Some(Op::Begin), Some(Op::Read), Some(Op::Write), Some(Op::Commit), Some(Op::Discard), Some(Op::Zero), Some(Op::Flush)][op as usize];
            let mut places = [0; SPAN];
            for (to, page) in places.iter_mut().zip(pages.iter().cycle()) {
                *to = u32::from(*page % 12);
            }
            let count = u32::from(count).wrapping_sub(4);
            let epoch = if epoch { disk.epoch } else { 0 };
            let reply = disk.handle(&Request { op, first, count, epoch, places, skip: (0, 0) });
            let inside = first.checked_add(count).is_some_and(|end| end <= BLOCKS);
            let begin = matches!(op, Some(Op::Begin | Op::Flush));
            prop_assert!(reply.status == Status::Malformed || inside || begin);
            let mut seen = std::collections::BTreeSet::new();
            let given = disk.given.values().copied();
            let mapped = (0..BLOCKS).filter_map(|b| match disk.map.get(b) {
                Ok(Place::Page(page)) => Some(page),
                _ => None,
            });
            for page in given.chain(mapped) {
                prop_assert!(page < PAGES && seen.insert(page));
            }
            prop_assert_eq!(disk.free(), PAGES - seen.len() as u32);
        }
    }
}

#[test]
fn a_read_only_disk_is_read() {
    let words = memory();
    let (mut disk, _) = Disk::new(&words, &geometry(0), 5).unwrap();
    assert_eq!(disk.handle(&request(Op::Read, 0, 16)).status, Status::Ok);
    for op in [Op::Write, Op::Commit, Op::Discard, Op::Zero] {
        assert_eq!(disk.handle(&request(op, 0, 1)).status, Status::ReadOnly);
    }
    assert_eq!(disk.handle(&request(Op::Flush, 0, 0)).status, Status::Ok);
    assert_eq!(
        disk.handle(&request(Op::Read, 9, 16)).status,
        Status::Malformed
    );
    assert_eq!(
        disk.handle(&request(Op::Read, 0, 17)).status,
        Status::Malformed
    );
}

/// Two writes of parts of one block at once: the second finds what the first has filled, and one life's pages are none of another's.
#[test]
fn two_parts_of_one_block() {
    let words = memory();
    let (mut disk, _) = Disk::new(&words, &geometry(PAGES), 5).unwrap();
    let place = |disk: &mut Disk<'_>| {
        let (epoch, places) = disk.handle(&request(Op::Write, 3, 1)).places.unwrap();
        (epoch, Place::unpack(places[0]))
    };
    let (epoch, first) = place(&mut disk);
    assert_eq!(first, Place::Fresh(0, Base::Image));
    assert_eq!(place(&mut disk), (epoch, Place::Page(0)));
    let mut commit = request(Op::Commit, 3, 1);
    (commit.epoch, commit.places[0]) = (epoch, first.pack());
    for _ in 0..2 {
        assert_eq!(disk.handle(&commit).status, Status::Ok);
    }
    // A successor gives the same page to somebody else: the old commit must not take it.
    assert_eq!(disk.handle(&request(Op::Discard, 3, 1)).status, Status::Ok);
    let (mut disk, _) = Disk::new(&words, &geometry(PAGES), 6).unwrap();
    let (before, fresh) = place(&mut disk);
    assert_eq!(fresh, Place::Fresh(0, Base::Hole));
    assert_eq!(disk.handle(&commit).status, Status::Stale);
    assert_eq!(disk.handle(&request(Op::Begin, 0, 0)).status, Status::Ok);
    assert_eq!(
        (disk.free(), disk.handle(&commit).status),
        (PAGES, Status::Stale)
    );
    // Nor is what a client was given that of its successor, though it is the same page for the same block.
    let (epoch, place) = place(&mut disk);
    assert_eq!(place, Place::Fresh(0, Base::Hole));
    commit.epoch = before;
    assert_eq!(disk.handle(&commit).status, Status::Stale);
    commit.epoch = epoch;
    assert_eq!(disk.handle(&commit).status, Status::Ok);
}
