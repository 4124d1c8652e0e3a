use super::*;
use crate::ops::OPS;

fn mind(seed: u64) -> Mind {
    let mut m = Mind::new(Rng::part(seed, 0));
    for (i, kind) in (1..=14).enumerate() {
        m.kinds[i + 1] = kind;
    }
    m
}

#[test]
fn the_same_seed_makes_the_same_calls() {
    let calls = |seed| {
        let mut m = mind(seed);
        (0..500).map(|i| m.next(i)).collect::<Vec<_>>()
    };
    assert_eq!(calls(1), calls(1));
    assert_ne!(calls(1), calls(2));
}

#[test]
fn all_operations_come_and_most_capabilities_fit() {
    let mut m = mind(3);
    let (mut rows, mut fit, mut asked) = ([0_u32; OPS.len()], 0, 0);
    for i in 0..50_000 {
        let c = m.next(i);
        rows[c.row] += 1;
        let kind = OPS[c.row].kind;
        if kind != 0 {
            asked += 1;
            fit += u32::from(m.kinds.get(c.slot as usize) == Some(&kind));
        }
    }
    assert!(rows.iter().all(|n| *n > 20), "{rows:?}");
    assert!(fit * 10 > asked * 8 && fit < asked, "{fit} of {asked}");
}

#[test]
fn deadlines_are_mostly_near() {
    let mut m = mind(4);
    let now = 1_000_000;
    let near = (0..10_000)
        .filter(|_| m.next(now).deadline < now + 20_000)
        .count();
    assert!((9_500..9_995).contains(&near), "{near}");
}

#[test]
fn what_succeeded_is_known() {
    let mut m = mind(5);
    let c = Call {
        fills: (40, Kind::Endpoint as u8),
        ..Call::default()
    };
    m.learn(&c, false);
    assert_eq!(m.kinds[40], 0);
    m.learn(&c, true);
    assert_eq!(m.kinds[40], Kind::Endpoint as u8);
    let c = Call {
        empties: 40,
        ..Call::default()
    };
    m.learn(&c, true);
    assert_eq!(m.kinds[40], 0);
    let vcpu = Call {
        words: [0, 0, 0, VCPU_PAGES + 2 * PAGE],
        fills: (41, Kind::Vcpu as u8),
        ..Call::default()
    };
    m.learn(&vcpu, true);
    assert_eq!(m.pages, 4);
    m.learn(
        &Call {
            fills: (1 << 40, 3),
            ..vcpu
        },
        true,
    );
}
