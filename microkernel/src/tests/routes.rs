//! Exit routes: which access goes where.

use super::*;
use crate::object::GuestSpace;
use crate::object::guest_space::Way;
use crate::virt::Plain;

#[test]
fn only_plain_accesses_wholly_inside_one_range_are_routed() {
    let m = Machine::new();
    let g = GuestSpace::create(m.pool).unwrap();
    let target = |badge| Cap {
        badge,
        ..Cap::new(g.get().header())
    };
    let add = |first, count, badge| {
        g.get()
            .add_route(first, count, Way::Endpoint, target(badge), 1)
    };
    assert_eq!(add(0x3f8, 8, 1), Ok(()));
    assert_eq!(add(0x400, 4, 2), Ok(()));
    assert_eq!(add(0x3ff, 1, 3), Err(Status::Overlap));
    assert_eq!(add(0xfffe, 3, 3), Err(Status::OutOfRange));
    assert_eq!(add(0, 0, 3), Err(Status::OutOfRange));
    assert_eq!(add(0, 1025, 3), Err(Status::OutOfRange));
    assert_eq!(add(0x0fff, 2, 7), Ok(()), "over the edge of a page");
    assert_eq!(add(0xfffe, 2, 4), Ok(()));
    assert_eq!(add(0xff, 2, 5), Ok(()), "over the edge of 256");
    let find = |port, width| {
        g.get()
            .route(Plain {
                port,
                width,
                input: true,
                next: 0,
            })
            .map(|f| f.target.badge)
    };
    for (port, width, expect) in [
        (0x3f8, 1, Some(1)),
        (0x3fc, 4, Some(1)),
        (0x3fd, 4, None),
        (0x3ff, 1, Some(1)),
        (0x3ff, 2, None),
        (0x400, 4, Some(2)),
        (0x404, 1, None),
        (0xffff, 1, Some(4)),
        (0xffff, 2, None),
        (0xff, 2, Some(5)),
        (0x0fff, 2, Some(7)),
        (0x1000, 1, Some(7)),
        (0x1001, 1, None),
        (0x101, 1, None),
    ] {
        assert_eq!(find(port, width), expect, "{port:#x} {width}");
    }
    assert_eq!(g.get().remove_route(0x3f9), Err(Status::InvalidArg));
    assert_eq!(g.get().remove_route(0x3f8), Ok(()));
    assert_eq!(find(0x3f8, 1), None);
    assert_eq!(add(0x3f8, 8, 6), Ok(()));
    assert_eq!(find(0x3f8, 1), Some(6));
}

#[test]
fn the_table_is_bounded() {
    let m = Machine::new();
    let g = GuestSpace::create(m.pool).unwrap();
    let cap = Cap::new(g.get().header());
    let add = |first| g.get().add_route(first, 1, Way::Doorbell(None), cap, 0);
    for i in 0..48 {
        assert_eq!(add(i * 2), Ok(()));
    }
    assert_eq!(add(99), Err(Status::NoMemory));
    for i in 0..48 {
        assert_eq!(g.get().remove_route(i * 2), Ok(()));
    }
    for far in 0..16 {
        assert_eq!(add(far << 12), Ok(()), "{far}");
    }
}
