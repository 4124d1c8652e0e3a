//! The 8254 against its datasheet, and the way Linux calibrates by it.

use super::*;

/// A TSC that counts as the PIT does, so that `now` is a number of its periods.
fn pit() -> Pit {
    Pit::new(PIT_HZ)
}

impl Pit {
    fn out8(&mut self, port: u16, value: u8, now: u64) {
        self.advance(now);
        if port == 0x61 {
            self.write_port_b(value, now)
        } else {
            self.write(port, value, now)
        }
    }
    fn in8(&mut self, port: u16, now: u64) -> u8 {
        self.advance(now);
        if port == 0x61 {
            self.read_port_b(now)
        } else {
            self.read(port, now)
        }
    }
    fn program(&mut self, counter: u8, mode: u8, count: u16, now: u64) {
        let port = 0x40 + u16::from(counter);
        self.out8(0x43, counter << 6 | 0x30 | mode << 1, now);
        let [low, high] = count.to_le_bytes();
        self.out8(port, low, now);
        self.out8(port, high, now);
    }
    fn latched(&mut self, counter: u8, now: u64) -> u16 {
        self.out8(0x43, counter << 6, now);
        let port = 0x40 + u16::from(counter);
        u16::from_le_bytes([self.in8(port, now), self.in8(port, now)])
    }
    fn status(&mut self, counter: u8, now: u64) -> u8 {
        self.out8(0x43, 0xE0 | 2 << counter, now);
        self.in8(0x40 + u16::from(counter), now)
    }
}

#[test]
fn mode_0_counts_down_and_wraps() {
    let mut pit = pit();
    pit.program(0, 0, 100, 1000);
    // The count is in the counting element one period later.
    assert_eq!(pit.status(0, 1000), 0x40 | 0x30);
    assert_eq!(pit.latched(0, 1001), 100);
    assert_eq!(pit.status(0, 1001), 0x30);
    assert_eq!(pit.latched(0, 1051), 50);
    assert_eq!(pit.deadline(), 1101);
    assert!(!pit.advance(1100));
    assert_eq!(pit.status(0, 1100), 0x30);
    assert!(pit.advance(1101));
    assert_eq!(pit.status(0, 1101), 0xB0);
    assert_eq!(pit.latched(0, 1102), 0xFFFF);
    assert!(!pit.advance(1_000_000));
    assert_eq!(pit.deadline(), NEVER);
}

#[test]
fn mode_0_stops_at_the_first_byte() {
    let mut pit = pit();
    pit.program(0, 0, 10, 0);
    pit.out8(0x40, 20, 5);
    assert!(!pit.advance(500));
    pit.out8(0x40, 0, 500);
    assert_eq!(pit.latched(0, 501), 20);
    assert!(pit.advance(521));
}

#[test]
fn mode_2_is_periodic_and_coalesces() {
    let mut pit = pit();
    pit.program(0, 2, 1000, 0);
    assert_eq!(pit.latched(0, 1), 1000);
    assert_eq!(pit.latched(0, 1000), 1);
    assert_eq!(pit.status(0, 1000), 0x34);
    assert!(!pit.advance(1000));
    assert!(pit.advance(1001));
    assert_eq!(pit.latched(0, 1001), 1000);
    assert_eq!(pit.status(0, 1001), 0xB4);
    assert_eq!(pit.deadline(), 2001);
    // The guest was away for many periods: one interrupt, and the phase is kept.
    assert!(pit.advance(50_500));
    assert!(!pit.advance(50_500));
    assert_eq!(pit.deadline(), 51_001);
    assert_eq!(pit.latched(0, 50_501), 500);
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_period() {
    let mut pit = pit();
    pit.program(0, 2, 1000, 0);
    pit.out8(0x40, 0xF4, 2501);
    pit.out8(0x40, 0x01, 2501); // 500
    assert_eq!(pit.status(0, 2501), 0x80 | 0x40 | 0x34);
    assert_eq!(pit.latched(0, 2501), 500);
    assert!(!pit.advance(3000));
    assert!(pit.advance(3001));
    assert_eq!(pit.status(0, 3001), 0xB4);
    assert_eq!(pit.deadline(), 3501);
    assert!(pit.advance(3501));
}

#[test]
fn mode_3_is_square_for_even_and_odd_counts() {
    let mut pit = pit();
    for (count, expected) in [
        (
            6u16,
            [(6, 1), (4, 1), (2, 1), (6, 0), (4, 0), (2, 0)].as_slice(),
        ),
        (5, &[(4, 1), (2, 1), (0, 1), (4, 0), (2, 0)]),
    ] {
        pit.program(2, 3, count, 0);
        pit.out8(0x61, 1, 0);
        for (t, &(value, out)) in (1..).zip(expected.iter().chain(expected)) {
            assert_eq!(pit.latched(2, t), value, "count {count} period {t}");
            assert_eq!(pit.in8(0x61, t) >> 5 & 1, out, "count {count} period {t}");
        }
        pit.out8(0x61, 0, 20);
    }
}

#[test]
fn mode_4_strobes_once() {
    let mut pit = pit();
    pit.program(0, 4, 10, 0);
    assert_eq!(pit.status(0, 10) & 0x80, 0x80);
    assert_eq!(pit.status(0, 11) & 0x80, 0);
    assert_eq!(pit.status(0, 12) & 0x80, 0x80);
    assert!(
        !pit.advance(100_000),
        "the edge was seen while the status was read"
    );
    assert_eq!(pit.deadline(), NEVER);
}

#[test]
fn one_shot_by_the_gate() {
    let mut pit = pit();
    pit.program(2, 1, 100, 0);
    assert_eq!(pit.in8(0x61, 50) & 0x20, 0x20);
    pit.out8(0x61, 1, 1000);
    assert_eq!(pit.in8(0x61, 1001) & 0x20, 0);
    assert_eq!(pit.in8(0x61, 1100) & 0x20, 0);
    assert_eq!(pit.in8(0x61, 1101) & 0x20, 0x20);
    // The gate's fall does nothing; its rise starts again.
    pit.out8(0x61, 0, 1200);
    pit.out8(0x61, 1, 1300);
    assert_eq!(pit.in8(0x61, 1350) & 0x20, 0);
}

#[test]
fn the_gate_pauses_mode_0_and_restarts_mode_2() {
    let mut pit = pit();
    pit.out8(0x61, 1, 0);
    pit.program(2, 0, 1000, 0);
    pit.out8(0x61, 0, 401);
    assert_eq!(pit.latched(2, 9000), 600);
    pit.out8(0x61, 1, 9000);
    assert_eq!(pit.latched(2, 9100), 500);
    // A count written while the gate is low waits there.
    pit.out8(0x61, 0, 9200);
    pit.program(2, 0, 700, 9200);
    assert_eq!(pit.latched(2, 9900), 700);
    pit.out8(0x61, 1, 9900);
    assert_eq!(pit.latched(2, 9950), 650);
    pit.program(2, 2, 1000, 10_000);
    pit.out8(0x61, 0, 10_401);
    assert_eq!(pit.latched(2, 12_000), 600);
    assert_eq!(pit.in8(0x61, 12_000) & 0x20, 0x20);
    pit.out8(0x61, 1, 12_000);
    assert_eq!(pit.latched(2, 12_001), 1000);
}

#[test]
fn latches_hold_and_status_comes_first() {
    let mut pit = pit();
    pit.program(0, 2, 0x1234, 0);
    pit.out8(0x43, 0xC2, 1); // count and status of counter 0
    pit.out8(0x43, 0x00, 500);
    pit.out8(0x43, 0xC2, 600);
    assert_eq!(pit.in8(0x40, 700), 0xB4);
    assert_eq!((pit.in8(0x40, 700), pit.in8(0x40, 700)), (0x34, 0x12));
    // Unlatched, it is live again.
    assert_eq!((pit.in8(0x40, 0x1235), pit.in8(0x40, 0x1235)), (0x34, 0x12));
}

#[test]
fn access_modes_and_bcd() {
    let mut pit = pit();
    pit.out8(0x43, 0x15, 0); // counter 0: low byte only, mode 2, BCD
    pit.out8(0x40, 0x50, 0);
    pit.out8(0x43, 0x00, 1);
    assert_eq!(pit.in8(0x40, 1), 0x50);
    assert_eq!(pit.in8(0x40, 12), 0x39);
    pit.out8(0x43, 0x25, 100); // high byte only
    pit.out8(0x40, 0x12, 100);
    assert_eq!(pit.in8(0x40, 102), 0x11); // 1199
    pit.out8(0x43, 0x31, 200); // mode 0, BCD, count 0 is 10000
    pit.out8(0x40, 0, 200);
    pit.out8(0x40, 0, 200);
    assert_eq!(pit.latched(0, 202), 0x9999);
    assert!(!pit.advance(10_200));
    assert!(pit.advance(10_201));
    pit.out8(0x43, 0x31, 20_000);
    pit.out8(0x40, 0xFF, 20_000); // no BCD digits: any value, no harm
    pit.out8(0x40, 0xFF, 20_000);
    pit.latched(0, 20_100);
}

#[test]
fn port_b() {
    let mut pit = pit();
    assert_eq!(pit.in8(0x61, 0) & 0x0F, 0);
    pit.out8(0x61, 0xFF, 0);
    assert_eq!(pit.in8(0x61, 0) & 0xCF, 0x0F);
    let toggles: Vec<u8> = (0..5).map(|n| pit.in8(0x61, n * 18) >> 4 & 1).collect();
    assert_eq!(toggles, [0, 1, 0, 1, 0]);
}

#[test]
fn a_fast_period_wakes_the_host_at_most_ten_thousand_times_a_second() {
    let mut pit = pit();
    pit.program(0, 2, 2, 0);
    let (mut now, mut edges) = (0, 0);
    while now < PIT_HZ {
        now = pit.deadline();
        assert!(pit.advance(now));
        edges += 1;
    }
    assert!(edges <= 10_100, "{edges}");
}

/// `quick_pit_calibrate` in spirit: mode 0 on counter 2, the high byte goes down by one each 256 periods.
#[test]
fn calibration_by_the_high_byte() {
    let tsc_hz = 2_400_000_000;
    let mut pit = Pit::new(tsc_hz);
    pit.out8(0x61, 1, 0);
    pit.out8(0x43, 0xB0, 0);
    pit.out8(0x42, 0xFF, 0);
    pit.out8(0x42, 0xFF, 0);
    let mut changes = Vec::new();
    let mut last = None;
    for now in (3000..20_000_000).step_by(3000) {
        pit.in8(0x42, now);
        let high = pit.in8(0x42, now);
        if last.is_some_and(|last| last != high) {
            assert_eq!(last, Some(high + 1));
            changes.push(now);
        }
        last = Some(high);
    }
    let cycles = changes[changes.len() - 1] - changes[0];
    let measured = cycles * PIT_HZ / (256 * (changes.len() as u64 - 1));
    assert!(measured.abs_diff(tsc_hz) < tsc_hz / 1000, "{measured}");
}

/// `pit_calibrate_tsc` in spirit: mode 0 on counter 2, and OUT at port B tells the end of 50 ms.
#[test]
fn calibration_by_the_output() {
    let tsc_hz = 2_400_000_000;
    let mut pit = Pit::new(tsc_hz);
    let begin = 123_456_789;
    let port_b = pit.in8(0x61, begin);
    pit.out8(0x61, port_b & !2 | 1, begin);
    let latch = (PIT_HZ / 20) as u16;
    pit.program(2, 0, latch, begin);
    let mut now = begin;
    while pit.in8(0x61, now) & 0x20 == 0 {
        now += 1000;
    }
    assert!((now - begin).abs_diff(tsc_hz / 20) < tsc_hz / 20 / 1000);
}
