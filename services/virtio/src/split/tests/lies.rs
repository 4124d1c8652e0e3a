//! Queues that make no sense.

use super::*;

fn first_error(features: u64, spoil: impl FnOnce(&Driver<'_>)) -> Option<Error> {
    let memory = memory();
    let mut driver = Driver::new(&memory, 8, false);
    let part = |len, writable| Part {
        gpa: DATA,
        len,
        writable,
    };
    assert!(driver.offer(0, &[part(16, false), part(32, true)], false));
    spoil(&driver);
    let mut queue = Split::new(&memory, &place(8), features).unwrap();
    match queue.pop() {
        Ok(chain) => chain?.find_map(Result::err),
        Err(error) => Some(error),
    }
}

#[test]
fn each_lie_has_its_name() {
    let indirect = feature::INDIRECT_DESC;
    let odd = |d: &Driver<'_>| {
        d.descriptor(TABLE, 0, (TABLES + 1, 16), 4, 0);
        d.descriptor(TABLES + 1, 0, (DATA, 16), 0, 0);
    };
    assert_eq!(
        first_error(indirect, odd),
        None,
        "an indirect table may be anywhere"
    );
    assert_eq!(first_error(indirect, |_| {}), None);
    type Spoil = fn(&Driver<'_>);
    let lies: [(u64, Spoil, Error); 14] = [
        (0, |d| d.put(AVAILABLE + 2, 9), Error::Index),
        (0, |d| d.put(AVAILABLE + 2, 0xFFFF), Error::Index),
        (0, |d| d.put(AVAILABLE + 4, 8), Error::Descriptor),
        (
            0,
            |d| d.descriptor(TABLE, 0, (DATA, 1), 1, 8),
            Error::Descriptor,
        ),
        (
            0,
            |d| d.descriptor(TABLE, 0, (DATA, 1), 1, 0),
            Error::Overlap,
        ),
        (
            0,
            |d| d.descriptor(TABLE, 0, (DATA, 1), 3, 0),
            Error::Overlap,
        ),
        (
            0,
            |d| d.descriptor(TABLE, 0, (DATA - 1, 1), 0, 0),
            Error::Memory,
        ),
        (
            0,
            |d| d.descriptor(TABLE, 0, (u64::MAX, 1), 2, 0),
            Error::Memory,
        ),
        (
            0,
            |d| d.descriptor(TABLE, 1, (DATA + 0xFFFF, 2), 2, 0),
            Error::Memory,
        ),
        (
            0,
            |d| {
                d.descriptor(TABLE, 0, (DATA, 1), 3, 1);
                d.descriptor(TABLE, 1, (DATA, 1), 0, 0);
            },
            Error::Order,
        ),
        (
            0,
            |d| d.descriptor(TABLE, 0, (TABLES, 16), 4, 0),
            Error::Indirect,
        ),
        (
            indirect,
            |d| d.descriptor(TABLE, 0, (TABLES, 24), 4, 0),
            Error::Indirect,
        ),
        (
            indirect,
            |d| d.descriptor(TABLE, 0, (TABLES, 16), 5, 0),
            Error::Indirect,
        ),
        (
            indirect,
            |d| {
                d.descriptor(TABLE, 0, (TABLES, 16), 4, 0);
                d.descriptor(TABLES, 0, (TABLES, 16), 4, 0);
            },
            Error::Indirect,
        ),
    ];
    for (i, (features, spoil, error)) in lies.into_iter().enumerate() {
        assert_eq!(first_error(features, spoil), Some(error), "lie {i}");
    }
}

/// Descriptors that are in flight are made available once more, as a chain's first or within one; afterwards they may be.
#[test]
fn chains_do_not_overlap() {
    type Spoil = fn(&Driver<'_>);
    let ways: [Spoil; 3] = [
        |d| d.put(AVAILABLE + 4 + 2, d.half(AVAILABLE + 4)),
        |d| d.put(AVAILABLE + 4 + 2, 1),
        |d| d.descriptor(TABLE, 2, (DATA, 1), 1, 1),
    ];
    for (way, spoil) in ways.into_iter().enumerate() {
        for complete in [false, true] {
            let memory = memory();
            let mut driver = Driver::new(&memory, 8, false);
            let part = |writable| Part {
                gpa: DATA,
                len: 16,
                writable,
            };
            for number in 0..2 {
                assert!(driver.offer(number, &[part(false), part(true)], false));
            }
            assert_eq!(
                [4, 6].map(|at| driver.half(AVAILABLE + at)),
                [0, 2],
                "the first has descriptors 0 and 1"
            );
            spoil(&driver);
            let mut queue = Split::new(&memory, &place(8), 0).unwrap();
            let first = queue.pop().unwrap().unwrap();
            if complete {
                queue.complete(first.token(), 0).unwrap();
            }
            let second = queue.pop().map(|chain| chain.is_some());
            let wanted = if complete {
                Ok(true)
            } else {
                Err(Error::Overlap)
            };
            assert_eq!(second, wanted, "{way}");
        }
    }
}

#[test]
fn rings_must_be_where_they_may_be() {
    let memory = memory();
    let new = |place| Split::new(&memory, &place, 0).err();
    assert_eq!(new(place(8)), None);
    for size in [0, 3, 2048, 0x8000] {
        assert_eq!(new(place(size)), Some(Error::Ring));
    }
    let p = place(8);
    assert_eq!(
        new(Place {
            descriptors: 8,
            ..p
        }),
        Some(Error::Ring)
    );
    assert_eq!(new(Place { driver: 1, ..p }), Some(Error::Ring));
    assert_eq!(new(Place { device: 2, ..p }), Some(Error::Ring));
    // The last byte of each counts.
    assert_eq!(
        new(Place {
            descriptors: 0x1_0000 - 128,
            ..p
        }),
        None
    );
    assert_eq!(
        new(Place {
            descriptors: 0x1_0000 - 112,
            ..p
        }),
        Some(Error::Memory)
    );
    assert_eq!(
        new(Place {
            driver: 0x1_0000 - 22,
            ..p
        }),
        None
    );
    assert_eq!(
        new(Place {
            driver: 0x1_0000 - 20,
            ..p
        }),
        Some(Error::Memory)
    );
    assert_eq!(
        new(Place {
            device: 0x1_0000 - 72,
            ..p
        }),
        None
    );
    assert_eq!(
        new(Place {
            device: 0x1_0000 - 68,
            ..p
        }),
        Some(Error::Memory)
    );
    assert_eq!(
        new(Place {
            device: u64::MAX - 3,
            ..p
        }),
        Some(Error::Memory)
    );
}
