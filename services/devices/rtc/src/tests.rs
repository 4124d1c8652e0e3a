//! What a driver relies on; then hostile guests.

use super::*;
use proptest::prelude::*;

const HZ: u64 = 1_000_000_000;
/// 2024-12-31 23:59:58 UTC, a Tuesday.
const NEW_YEARS_EVE: i64 = 1_735_689_598;

fn rtc() -> Rtc {
    Rtc::new(Clock {
        unix_seconds: NEW_YEARS_EVE,
        tsc: 5_000,
        hz: HZ,
    })
}

/// A time in the TSC, from seconds since the base.
fn at(seconds: f64) -> u64 {
    5_000 + (seconds * HZ as f64) as u64
}

fn get(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
    rtc.write(PORT_INDEX, index, now);
    rtc.read(PORT_DATA, now)
}

fn set(rtc: &mut Rtc, index: u8, value: u8, now: u64) {
    rtc.write(PORT_INDEX, index, now);
    rtc.write(PORT_DATA, value, now);
}

fn time(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| get(rtc, index, now))
}

#[test]
fn shows_the_time_in_bcd_and_binary() {
    let mut rtc = rtc();
    assert_eq!(
        time(&mut rtc, at(0.5)),
        [0x20, 0x24, 0x12, 0x31, 3, 0x23, 0x59, 0x58]
    );
    assert_eq!(
        time(&mut rtc, at(2.0)),
        [0x20, 0x25, 0x01, 0x01, 4, 0x00, 0x00, 0x00]
    );
    set(&mut rtc, B, 0x06, at(2.0));
    assert_eq!(time(&mut rtc, at(13.0)), [20, 25, 1, 1, 4, 0, 0, 11]);
    set(&mut rtc, B, 0x04, at(14.0));
    assert_eq!(get(&mut rtc, HOURS, at(14.0)), 12, "midnight is 12 AM");
    assert_eq!(get(&mut rtc, HOURS, at(13.5 * 3600.0)), 1 | 0x80);
    set(&mut rtc, B, 0x00, at(14.0 * 3600.0));
    assert_eq!(get(&mut rtc, HOURS, at(36.5 * 3600.0)), 0x12 | 0x80);
}

#[test]
fn ports_and_fixed_registers() {
    let mut rtc = rtc();
    assert_eq!(rtc.read(PORT_INDEX, 0), 0xff);
    assert_eq!(
        get(&mut rtc, 0x80 | D, 0),
        0x80,
        "the NMI bit is no part of the index"
    );
    set(&mut rtc, D, 0, 0);
    set(&mut rtc, C, 0xff, 0);
    assert_eq!((get(&mut rtc, D, 0), get(&mut rtc, C, 0)), (0x80, 0));
    for index in (0x0e..0x80).filter(|&index| index != CENTURY) {
        set(&mut rtc, index, index ^ 0x5a, 0);
    }
    for index in (0x0e..0x80).filter(|&index| index != CENTURY) {
        assert_eq!(get(&mut rtc, index, 0), index ^ 0x5a);
    }
    rtc.set_nvram(0x14, 7);
    rtc.set_nvram(B, 7);
    assert_eq!((get(&mut rtc, 0x14, 0), get(&mut rtc, B, 0)), (7, 2));
    assert_eq!(rtc.read_wide(PORT_INDEX, 2, 0) & 0xff, 0xff);
    rtc.write_wide(PORT_INDEX, 2, 0x3314, 0);
    assert_eq!(get(&mut rtc, 0x14, 0), 0x33);
}

#[test]
fn update_in_progress_just_before_the_second() {
    let mut rtc = rtc();
    assert_eq!(get(&mut rtc, A, at(0.9995)), 0x26);
    assert_eq!(get(&mut rtc, A, at(0.9999)), 0xa6);
    assert_eq!(get(&mut rtc, A, at(1.0001)), 0x26);
    set(&mut rtc, B, 0x82, at(1.5));
    assert_eq!(get(&mut rtc, A, at(1.9999)), 0x26, "not while SET");
}

/// The order in which Linux's `mc146818_set_time` writes.
#[test]
fn setting_the_time_as_linux_does() {
    let mut rtc = rtc();
    let now = at(0.3);
    set(&mut rtc, B, 0x82, now);
    set(&mut rtc, A, 0x76, now);
    for (index, value) in [
        (YEAR, 0x31),
        (MONTH, 0x02),
        (DAY, 0x28),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
    ] {
        set(&mut rtc, index, value, now);
        assert_eq!(get(&mut rtc, index, at(7.0)), value, "time stands still");
    }
    set(&mut rtc, WEEKDAY, 6, at(8.0));
    set(&mut rtc, B, 0x02, at(9.0));
    assert_eq!(
        get(&mut rtc, SECONDS, at(10.2)),
        0x59,
        "the divider is still held"
    );
    set(&mut rtc, A, 0x26, at(11.2));
    assert_eq!(get(&mut rtc, SECONDS, at(11.6)), 0x59);
    assert_eq!(
        time(&mut rtc, at(11.8)),
        [0x20, 0x31, 0x03, 0x01, 7, 0, 0, 0],
        "half a second later it goes on"
    );
    assert_eq!(get(&mut rtc, SECONDS, at(12.6)), 0);
    assert_eq!(get(&mut rtc, SECONDS, at(12.8)), 1);
}

#[test]
fn setting_one_field_while_time_runs() {
    let mut rtc = rtc();
    set(&mut rtc, SECONDS, 0x10, at(0.75));
    assert_eq!(
        time(&mut rtc, at(0.9)),
        [0x20, 0x24, 0x12, 0x31, 3, 0x23, 0x59, 0x10]
    );
    assert_eq!(
        get(&mut rtc, SECONDS, at(1.1)),
        0x11,
        "the divider was not touched"
    );
}

#[test]
fn update_interrupt() {
    let mut rtc = rtc();
    assert_eq!(rtc.next_deadline(), None);
    set(&mut rtc, B, 0x12, at(0.2));
    assert_eq!(rtc.next_deadline(), Some(at(1.0)));
    rtc.tick(at(1.0) - 1);
    assert!(!rtc.irq());
    rtc.tick(at(1.0));
    assert!(rtc.irq() && rtc.next_deadline().is_none());
    assert_eq!(get(&mut rtc, C, at(1.4)), 0xd0);
    assert!(!rtc.irq());
    assert_eq!(
        (get(&mut rtc, C, at(1.5)) & 0x90, rtc.next_deadline()),
        (0, Some(at(2.0)))
    );
    set(&mut rtc, B, 0x92, at(1.6));
    assert_eq!(
        (get(&mut rtc, B, at(9.0)), get(&mut rtc, C, at(9.0))),
        (0x82, 0x40),
        "SET clears UIE and stops updates"
    );
}

#[test]
fn flags_rise_without_their_enable_bits() {
    let mut rtc = rtc();
    assert_eq!(get(&mut rtc, C, at(1.1)), 0x50);
    assert!(!rtc.irq());
}

#[test]
fn periodic_interrupt_at_every_rate() {
    for rate in 0..16u8 {
        let mut rtc = rtc();
        set(&mut rtc, A, 0x20 | rate, at(0.0));
        set(&mut rtc, B, 0x42, at(0.0));
        let hz = match rate {
            0 => {
                assert_eq!(rtc.next_deadline(), None);
                continue;
            }
            1 => 256,
            2 => 128,
            rate => 65_536 >> rate,
        };
        let (mut now, mut count) = (at(0.0), 0);
        while now < at(1.0) {
            now = rtc.next_deadline().unwrap();
            rtc.tick(now - 1);
            assert!(!rtc.irq(), "rate {rate}: never early");
            rtc.tick(now);
            assert!(rtc.irq());
            assert_eq!(get(&mut rtc, C, now) & 0xc0, 0xc0);
            count += 1;
        }
        assert_eq!(count, hz, "rate {rate}");
    }
}

#[test]
fn alarms() {
    let mut rtc = rtc();
    for (index, value) in [
        (HOURS_ALARM, 0x06),
        (MINUTES_ALARM, 0x30),
        (SECONDS_ALARM, 0x15),
    ] {
        set(&mut rtc, index, value, at(0.0));
    }
    set(&mut rtc, B, 0x22, at(0.0));
    let due = at(2.0 + 6.0 * 3600.0 + 30.0 * 60.0 + 15.0);
    assert_eq!(rtc.next_deadline(), Some(due));
    assert_eq!(get(&mut rtc, C, due - 1) & 0xa0, 0);
    rtc.tick(due);
    assert!(rtc.irq());
    assert_eq!(
        get(&mut rtc, C, due),
        0xf0,
        "with the update and the rate's flag"
    );
    assert_eq!(rtc.next_deadline(), Some(due + 86_400 * HZ), "once a day");
    // Wild cards: every minute at :15, then every second.
    set(&mut rtc, HOURS_ALARM, 0xff, due);
    set(&mut rtc, MINUTES_ALARM, 0xc0, due);
    assert_eq!(rtc.next_deadline(), Some(due + 60 * HZ));
    set(&mut rtc, SECONDS_ALARM, 0xc0, due);
    assert_eq!(rtc.next_deadline(), Some(due + HZ));
    // An hour that never comes.
    set(&mut rtc, HOURS_ALARM, 0x25, due);
    assert_eq!(rtc.next_deadline(), None);
    // 12-hour mode: 0x86 is 6 in the evening.
    set(&mut rtc, B, 0x20, due);
    set(&mut rtc, HOURS_ALARM, 0x86, due);
    set(&mut rtc, MINUTES_ALARM, 0x30, due);
    set(&mut rtc, SECONDS_ALARM, 0x15, due);
    assert_eq!(rtc.next_deadline(), Some(due + 12 * 3600 * HZ));
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16, u8),
    Write(u16, u8, u32),
    Set(u8, u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0x6eu16..0x74, 0u8..5).prop_map(|(port, width)| Step::Read(port, width)),
        (0x6eu16..0x74, 0u8..5, any::<u32>())
            .prop_map(|(port, width, value)| Step::Write(port, width, value)),
        (0u8..0x10, any::<u8>()).prop_map(|(index, value)| Step::Set(index, value)),
        (0u64..3 * HZ).prop_map(Step::Wait),
        (any::<u64>()).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever a guest does and however long it waits: no panic, and a restart is not seen.
    #[test]
    fn any_history_survives_a_restart(hz in 1u64..10_000_000_000, unix_seconds: i64, steps in proptest::collection::vec(step(), 0..60)) {
        let mut rtc = Rtc::new(Clock { unix_seconds, tsc: 77, hz });
        let mut now = 77u64;
        let mut committed = rtc.clone();
        for step in steps {
            match step {
                Step::Read(port, width) => { rtc.read_wide(port, width, now); }
                Step::Write(port, width, value) => rtc.write_wide(port, width, value, now),
                Step::Set(index, value) => set(&mut rtc, index, value, now),
                Step::Wait(cycles) => now = now.saturating_add(cycles),
            }
            rtc.tick(now);
            if rtc.take_dirty() {
                // The far future cannot be stored; a guest would have to wait for it.
                let Some(restored) = Rtc::restore(&rtc.state()) else {
                    prop_assert!(rtc.seen.unsigned_abs().max(rtc.offset.unsigned_abs()) > 1 << 54);
                    return Ok(());
                };
                prop_assert_eq!(&restored, &rtc);
                committed = restored;
            }
            // A successor that starts from the last commit, now, is in the same state.
            let mut successor = committed.clone();
            successor.tick(now);
            let _ = successor.take_dirty();
            prop_assert_eq!(&successor, &rtc);
        }
    }

    #[test]
    fn deadlines_are_exact(rate in 0u8..16, enable in 0u8..8, hz in 32_768u64..10_000_000_000, wait in 0u64..100_000_000_000) {
        let mut rtc = Rtc::new(Clock { unix_seconds: NEW_YEARS_EVE, tsc: 5_000, hz });
        set(&mut rtc, A, 0x20 | rate, wait);
        set(&mut rtc, B, 0x02 | enable << 4, wait);
        get(&mut rtc, C, wait);
        if let Some(deadline) = rtc.next_deadline() {
            prop_assert!(deadline > wait);
            rtc.tick(deadline - 1);
            prop_assert!(!rtc.irq());
            rtc.tick(deadline);
            prop_assert!(rtc.irq());
        } else {
            prop_assert!(enable & 3 == 0 && (enable == 0 || rate == 0));
        }
    }

    #[test]
    fn noise_is_refused_or_harmless(words in proptest::collection::vec(any::<u64>(), STATE_WORDS), small: bool, now: u64) {
        let mut words = words;
        if small {
            words[3] >>= 9;
            words[4] >>= 9;
            words[5] &= 0x70_037f;
        }
        let restored = Rtc::restore(&words);
        prop_assert!(!small || words[2] == 0 || restored.is_some());
        if let Some(mut rtc) = restored {
            for index in 0..0x40 {
                get(&mut rtc, index, now);
                set(&mut rtc, index, now as u8, now);
            }
            let _ = rtc.next_deadline();
        }
    }
}
