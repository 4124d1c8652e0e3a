//! Queues that make no sense, and deaths one by one.

use super::*;

fn first_error(features: u64, spoil: impl FnOnce(&Driver<'_>)) -> Option<Error> {
    let memory = memory();
    let mut driver = Driver::new(&memory, 6, false);
    let part = |len, writable| Part {
        gpa: DATA,
        len,
        writable,
    };
    assert!(driver.offer(0, &[part(16, false), part(32, true)], false));
    spoil(&driver);
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let mut queue = Packed::new(&memory, &place(6), features, note).unwrap();
    match queue.pop() {
        Ok(chain) => chain?.find_map(Result::err),
        Err(error) => Some(error),
    }
}

#[test]
fn each_lie_has_its_name() {
    const READY: u16 = 1 << AVAIL_BIT;
    let indirect = feature::INDIRECT_DESC;
    assert_eq!(first_error(indirect, |_| {}), None);
    let odd = |d: &Driver<'_>| {
        d.descriptor(RING, 0, (TABLES + 1, 16), 0, READY | INDIRECT);
        d.descriptor(TABLES + 1, 0, (DATA, 16), 0, INDIRECT | NEXT);
    };
    assert_eq!(first_error(indirect, odd), None, "a table may be anywhere");
    type Spoil = fn(&Driver<'_>);
    let lies: [(u64, Spoil, Error); 9] = [
        (
            0,
            |d| {
                for i in 0..6 {
                    d.descriptor(RING, i, (DATA, 1), 0, READY | NEXT);
                }
            },
            Error::Length,
        ),
        (
            0,
            |d| d.descriptor(RING, 0, (DATA - 1, 1), 0, READY),
            Error::Memory,
        ),
        (
            0,
            |d| d.descriptor(RING, 0, (u64::MAX, 1), 0, READY | WRITE),
            Error::Memory,
        ),
        (
            0,
            |d| d.descriptor(RING, 1, (DATA + 0xFFFF, 2), 0, WRITE),
            Error::Memory,
        ),
        (
            0,
            |d| {
                d.descriptor(RING, 0, (DATA, 1), 0, READY | NEXT | WRITE);
                d.descriptor(RING, 1, (DATA, 1), 0, 0);
            },
            Error::Order,
        ),
        (
            0,
            |d| {
                d.descriptor(RING, 0, (DATA, u32::MAX), 0, READY | NEXT);
                d.descriptor(RING, 1, (DATA, 1), 0, 0);
            },
            Error::Memory,
        ),
        (
            0,
            |d| d.descriptor(RING, 0, (TABLES, 16), 0, READY | INDIRECT),
            Error::Indirect,
        ),
        (
            indirect,
            |d| d.descriptor(RING, 0, (TABLES, 24), 0, READY | INDIRECT),
            Error::Indirect,
        ),
        (
            indirect,
            |d| d.descriptor(RING, 0, (TABLES, 16), 0, READY | INDIRECT | NEXT),
            Error::Indirect,
        ),
    ];
    for (i, (features, spoil, error)) in lies.into_iter().enumerate() {
        assert_eq!(first_error(features, spoil), Some(error), "lie {i}");
    }
}

/// Descriptors that are in flight are made available once more.
#[test]
fn chains_do_not_overlap() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 4, false);
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let mut queue = Packed::new(&memory, &place(4), features(false), note).unwrap();
    for number in 0..4 {
        assert!(driver.offer(number, &parts(number, 1), false));
        assert!(queue.pop().unwrap().is_some());
    }
    assert!(queue.pop().unwrap().is_none(), "they are the device's");
    driver.descriptor(RING, 0, (DATA, 1), 0, 1 << USED_BIT);
    assert_eq!(queue.pop().err(), Some(Error::Index));
    let mut queue = Packed::restore(&memory, &place(4), features(false), note).unwrap();
    for i in 0..4 {
        driver.descriptor(RING, i, (DATA, 1), 0, 1 << AVAIL_BIT);
    }
    for _ in 0..3 {
        assert!(queue.pop().unwrap().is_some());
    }
    driver.descriptor(RING, 3, (DATA, 1), 0, 1 << AVAIL_BIT | NEXT);
    assert_eq!(queue.pop().err(), Some(Error::Length));
}

#[test]
fn rings_must_be_where_they_may_be() {
    let memory = memory();
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let new = |place| Packed::new(&memory, &place, 0, note).err();
    for size in [1, 3, 8, 1024] {
        assert_eq!(new(place(size)), None);
    }
    for size in [0, 1025, 0x8000] {
        assert_eq!(new(place(size)), Some(Error::Ring));
    }
    let p = place(7);
    for (descriptors, driver, device, error) in [
        (8, AREA, DEVICE_AREA, Some(Error::Ring)),
        (RING, 2, DEVICE_AREA, Some(Error::Ring)),
        (RING, AREA, 2, Some(Error::Ring)),
        // The last byte of each counts.
        (0x1_0000 - 112, AREA, DEVICE_AREA, None),
        (0x1_0000 - 96, AREA, DEVICE_AREA, Some(Error::Memory)),
        (RING, 0x1_0000 - 4, 0x1_0000 - 4, None),
        (RING, 0x1_0000, DEVICE_AREA, Some(Error::Memory)),
        (RING, AREA, u64::MAX - 3, Some(Error::Memory)),
    ] {
        let place = Place {
            descriptors,
            driver,
            device,
            ..p
        };
        assert_eq!(new(place), error, "{place:?}");
    }
}

#[test]
fn a_note_that_makes_no_sense() {
    let memory = memory();
    let page = StatePage::new();
    let note = StateWriter::new(&page, 7).0.note(0).unwrap();
    let restore = || Packed::restore(&memory, &place(5), 0, note).err();
    assert_eq!(restore(), Some(Error::Place), "there is none");
    for (from, to, error) in [
        (0, 4, None),
        (4, 5, Some(Error::Place)),
        (5, 0, Some(Error::Place)),
        (0x8004, 0, None),
        (0x8005, 0, Some(Error::Place)),
    ] {
        note.set(from | to << 16);
        assert_eq!(restore(), error);
    }
}

/// Every size, every place to begin, every number of buffers and every instruction between two publications: what was published is not
/// done again, and what was not is found.
#[test]
fn a_death_at_each_step() {
    for (size, begin, count) in
        (1..5u16).flat_map(|s| (0..2 * s).flat_map(move |b| (1..=s).map(move |c| (s, b, c))))
    {
        for how_far in 0..=2 * count as u8 {
            let memory = memory();
            let mut driver = Driver::new(&memory, size, false);
            let page = StatePage::new();
            let note = StateWriter::new(&page, 7).0.note(0).unwrap();
            let features = features(false);
            let new = Queue::new(&memory, &place(size), features, note);
            let mut queue = new.unwrap();
            let serve = |queue: &mut Queue<'_>| {
                while let Some(chain) = queue.pop().unwrap() {
                    queue.complete(chain.token(), 0).unwrap();
                }
            };
            for number in 0..u32::from(begin) {
                assert!(driver.offer(number, &parts(0, 1), false));
                serve(&mut queue);
                assert_eq!(queue.publish(), Ok(true));
                assert_eq!(driver.reap(), [(number, 0)]);
            }
            for number in 0..count.into() {
                assert!(driver.offer(number, &parts(0, 1), false));
            }
            serve(&mut queue);
            die(&mut queue, how_far);
            let shown = u32::from(how_far / 2);
            assert_eq!(driver.told(), shown);
            // The driver may go on before the successor looks, as far as it can.
            assert_eq!(driver.reap().len() as u32, shown);
            for number in 0..shown {
                let number = u32::from(count) + number;
                assert!(driver.offer(number, &parts(0, 1), false));
            }
            let again = Queue::restore(&memory, &place(size), features, note);
            let mut queue = again.unwrap();
            serve(&mut queue);
            assert_eq!(u32::from(queue.in_flight()), u32::from(count));
            assert_eq!(queue.publish(), Ok(true));
            let numbers: Vec<u32> = driver.reap().iter().map(|used| used.0).collect();
            let all: Vec<u32> = (shown..shown + u32::from(count)).collect();
            assert_eq!(numbers, all);
        }
    }
}
