//! Tables of partitions, capabilities, and clients against a disk that is an array of bytes and works in any order.

use proptest::prelude::*;

use crate::gpt::{MAX_TABLE, Partition, Table, Why, crc32};
use crate::pci::{Place, places};

mod world;

use ipc_schema::disk::Op;
use world::{BLOCKS, Status, World};

/// A table with these partitions (first, last), on a disk of 4096 sectors.
fn table(partitions: &[(u64, u64, &str)]) -> (Vec<u8>, Vec<u8>) {
    let mut entries = vec![0; 128 * 128];
    for (entry, (first, last, name)) in entries.chunks_mut(128).zip(partitions) {
        entry[..16].fill(7);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (to, letter) in entry[56..].chunks_mut(2).zip(name.encode_utf16()) {
            to.copy_from_slice(&letter.to_le_bytes());
        }
    }
    let mut header = vec![0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    for (at, value) in [(12, 92), (80, 128), (84, 128), (88, crc32(&entries))] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [(24, 1u64), (32, 4095), (40, 34), (48, 4062), (72, 2)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    seal(&mut header);
    (header, entries)
}

fn seal(header: &mut [u8]) {
    header[16..20].fill(0);
    let sum = crc32(&header[..92]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}

fn read(header: &[u8], entries: &[u8]) -> Result<Vec<Partition>, Why> {
    Table::parse(header, 4096)?.partitions(entries)
}

#[test]
fn partitions_by_name() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    let (header, entries) = table(&[
        (2048, 4000, "rööt"),
        (34, 2047, "a-name-of-36-letters-which-is-the-mo"),
    ]);
    let parts = read(&header, &entries).unwrap();
    assert_eq!(
        (parts[0].name.as_str(), parts[0].first, parts[0].sectors),
        ("rööt", 2048, 1953)
    );
    assert_eq!(parts[1].name.len(), 36);
    assert_eq!(read(&[0; 512], &entries), Err(Why::None));
    assert_eq!(read(&header, &entries[..100]), Err(Why::Nonsense));
    let mut bad = entries.clone();
    bad[60] ^= 1;
    assert_eq!(read(&header, &bad), Err(Why::Damaged));
    let mut bad = header.clone();
    bad[40] ^= 1;
    assert_eq!(read(&bad, &entries), Err(Why::Damaged));
    // What cannot be, with its sums right: where the header is, sizes of header, entry and table, usable sectors.
    for (at, value) in [
        (24, 2u64),
        (12, 91),
        (12, 513),
        (84, 127),
        (80, 1 << 20),
        (40, 33),
        (48, 4096),
        (72, 1),
        (72, u64::MAX),
    ] {
        let mut bad = header.clone();
        let len = if matches!(at, 12 | 80 | 84) { 4 } else { 8 };
        bad[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        seal(&mut bad);
        assert_eq!(read(&bad, &entries), Err(Why::Nonsense), "{at} {value}");
    }
    // Partitions over the table, over the end, turned round, over each other.
    for wrong in [
        [(33, 50), (60, 70)],
        [(60, 4063), (50, 51)],
        [(60, 59), (70, 80)],
        [(60, 70), (70, 80)],
    ] {
        let [(a, b), (c, d)] = wrong;
        let (header, entries) = table(&[(a, b, "a"), (c, d, "b")]);
        assert_eq!(read(&header, &entries), Err(Why::Nonsense), "{wrong:?}");
    }
}

/// Configuration space as QEMU's virtio-blk has it, as far as it matters.
fn config() -> Vec<u8> {
    let mut config = vec![0; 256];
    config[6] = 0x10;
    config[0x34] = 0x98;
    let mut capability = |at: usize, next, kind, offset: u32, len: u32| {
        config[at..at + 5].copy_from_slice(&[9, next, 20, kind, 4]);
        config[at + 8..at + 12].copy_from_slice(&offset.to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        config[at + 16] = 4;
    };
    capability(0x40, 0, 1, 0, 0x1000);
    capability(0x54, 0x40, 3, 0x1000, 0x1000);
    capability(0x68, 0x54, 4, 0x2000, 0x1000);
    capability(0x7c, 0x68, 2, 0x3000, 0x1000);
    config[0x98..0x9a].copy_from_slice(&[0x11, 0x7c]);
    config
}

#[test]
fn structures() {
    let found = places(&config()).unwrap();
    let place = |offset| Place {
        bar: 4,
        offset,
        len: 0x1000,
    };
    assert_eq!(
        (found.common, found.notify, found.device),
        (place(0), place(0x3000), place(0x2000))
    );
    assert_eq!(found.multiplier, 4);
    // No list; a list in a circle, with and without all that is needed; a structure too short, crooked, missing.
    for (at, value, there) in [
        (6, 0, false),
        (0x41, 0x98, true),
        (0x69, 0x7c, false),
        (0x4d, 0, false),
        (0x48, 2, false),
        (0x7f, 9, false),
    ] {
        let mut config = config();
        config[at] = value;
        assert_eq!(places(&config).is_some(), there, "{at:#x}");
    }
    assert_eq!(places(&config()[..0x90]), None);
}

proptest! {
    #[test]
    fn any_bytes(noise in proptest::collection::vec(any::<u8>(), 0..600), at in proptest::collection::vec((0usize..256, any::<u8>()), 0..20)) {
        let _ = places(&noise);
        let mut config = config();
        for (at, byte) in at {
            config[at] = byte;
        }
        let _ = places(&config);
        if let Ok(table) = Table::parse(&noise, 4096) {
            let _ = table.partitions(&vec![0; MAX_TABLE]);
        }
    }

    /// A header that is whole, whatever it says.
    #[test]
    fn any_header(fields in proptest::collection::vec((20usize..91, any::<u8>()), 0..6)) {
        let (mut header, entries) = table(&[(2048, 4000, "a")]);
        for (at, byte) in fields {
            header[at] = byte;
        }
        seal(&mut header);
        if let Ok(table) = Table::parse(&header, 4096) {
            prop_assert!(table.sectors() as usize * 512 <= MAX_TABLE);
            for part in table.partitions(&entries).unwrap_or_default() {
                prop_assert!(part.first + part.sectors <= 4096);
            }
        }
    }
}

#[test]
fn reads_writes_and_refusals() {
    let mut w = World::new(false);
    assert_eq!(w.read(0, 16), Ok(w.disk(0, 16)));
    // Sectors 3 to 20 of three blocks: what is around them stays.
    let mut wanted = w.disk(0, 5);
    let data = vec![0xaa; 18 * 512];
    wanted[8 * 512 + 3 * 512..][..data.len()].copy_from_slice(&data);
    assert_eq!(w.write(8 + 3, &data), Status::Ok);
    assert!(w.read(0, 5) == Ok(wanted.clone()) && w.disk(0, 5) == wanted);
    assert_eq!(w.read(BLOCKS - 1, 1), Ok(w.disk(BLOCKS - 1, 1)));
    assert_eq!(w.read(BLOCKS - 1, 2), Err(Status::Malformed));
    assert_eq!(w.read(u32::MAX, 2), Err(Status::Malformed));
    assert_eq!(w.read(0, 17), Err(Status::Malformed));
    assert_eq!(w.flush(), Status::Ok);
    w.device.fails = true;
    assert_eq!(w.read(0, 1), Err(Status::Damaged));
    w.device.fails = false;
    assert_eq!(w.read(0, 1), Ok(w.disk(0, 1)));
    assert!(w.untouched(), "other partitions stay as they are");
}

/// What nobody needs the disk is told, of any number of blocks of the partition; zeroes a client has to write.
#[test]
fn discards() {
    let mut w = World::new(false);
    let before = w.disk(0, BLOCKS);
    assert_eq!(w.raw(Op::Discard, 3, 30), Status::Ok);
    let now = w.disk(0, BLOCKS);
    assert!(now[3 * 4096..33 * 4096].iter().all(|&b| b == 0xDD));
    assert!(now[..3 * 4096] == before[..3 * 4096] && now[33 * 4096..] == before[33 * 4096..]);
    for (op, first, count) in [
        (Op::Discard, BLOCKS - 1, 2),
        (Op::Discard, 2, u32::MAX - 1),
        (Op::Discard, 0, 0),
        (Op::Zero, 0, 1),
    ] {
        assert_eq!(w.raw(op, first, count), Status::Malformed, "{op:?} {count}");
    }
    assert!(w.untouched() && w.disk(0, BLOCKS) == now);
    let mut w = World::new(true);
    assert_eq!(w.raw(Op::Discard, 3, 2), Status::ReadOnly);
    assert!(w.disk(0, BLOCKS) == before);
}

#[test]
fn a_read_only_client_and_one_without_a_partition() {
    let mut w = World::new(true);
    assert_eq!(w.write(0, &[1; 512]), Status::ReadOnly);
    assert_eq!(w.read(3, 2), Ok(w.disk(3, 2)));
    let mut w = World::with(false, "another");
    assert_eq!(
        (w.read(0, 1), w.flush()),
        (Err(Status::Malformed), Status::Malformed)
    );
    assert!(w.untouched());
}

/// A client dies over a commit: what its successor asks gets other pages until the disk is done with those.
#[test]
fn pages_that_the_disk_still_reads() {
    let mut w = World::new(false);
    let data = vec![0xaa; 16 * 4096];
    w.submit(16 * 8, &data);
    for _ in 0..3 {
        w.client().unwrap();
        w.serve();
    }
    assert_eq!(w.device.waiting(), 1, "the commit");
    w.kill_client();
    w.forget();
    for block in 0..15 {
        w.begin_read(block, 1);
    }
    w.client().unwrap();
    w.serve();
    // The last first, so the commit is the very last.
    while w.device.waiting() > 0 {
        w.device.work(w.device.waiting() - 1);
    }
    assert!(w.disk(16, 16) == data);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u32, u32),
    Write(u64, usize, u8),
    Client,
    Device(usize),
    Server,
    KillServer,
    KillClient,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..BLOCKS - 16, 1u32..=16).prop_map(|(b, n)| Step::Read(b, n)),
        8 => (0..u64::from(BLOCKS) * 8 - 130, 1usize..120, any::<u8>()).prop_map(|(s, n, b)| Step::Write(s, n, b)),
        8 => Just(Step::Client),
        8 => (0usize..20).prop_map(Step::Device),
        8 => Just(Step::Server),
        1 => Just(Step::KillServer),
        1 => Just(Step::KillClient),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is asked, in whatever order the disk does it, and whoever dies: what was told is so, and nothing else is touched.
    #[test]
    fn a_disk_through_deaths(steps in proptest::collection::vec(step(), 0..200)) {
        let mut w = World::new(false);
        for step in steps {
            match step {
                Step::Read(block, count) => w.begin_read(block, count),
                Step::Write(sector, sectors, byte) => w.begin_write(sector, sectors, byte),
                Step::Client => w.client()?,
                Step::Device(which) => w.device.work(which),
                Step::Server => w.serve(),
                Step::KillServer => w.kill_server(),
                Step::KillClient => w.kill_client(),
            }
        }
        w.settle()?;
        prop_assert!(w.untouched());
    }

    /// A client that says anything touches its own blocks alone, and costs no panic.
    #[test]
    fn hostile(words in proptest::collection::vec((0u32..9, 0..BLOCKS + 20, 0u32..20, any::<[u8; 4]>(), any::<bool>()), 0..100), jump in 0usize..200) {
        let mut w = World::new(false);
        for (i, word) in words.into_iter().enumerate() {
            w.hostile(word);
            if i % 3 == 0 {
                w.serve();
                w.device.work(i);
            }
            if i == jump {
                w.jump();
            }
        }
        w.serve();
        prop_assert!(w.untouched());
    }
}
