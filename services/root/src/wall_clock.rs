//! The time of day, from the machine's real-time clock (Motorola MC146818A data sheet; ports 0x70 and 0x71).

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const UPDATING: u8 = 0x80;
const BINARY: u8 = 4;
const HOURS_24: u8 = 2;
const AFTERNOON: u8 = 0x80;
/// How often to look again before giving up: an update takes up to 2 ms, a port access about 1 us.
const PATIENCE: u32 = 20_000;

/// Reads the clock: seconds since 1970-01-01 00:00:00 UTC, taking the clock to show UTC in this century. `register`
/// reads one of its registers. `None` if the clock is not there or shows nonsense.
pub fn read(mut register: impl FnMut(u8) -> Option<u8>) -> Option<u64> {
    let mut before = None;
    for _ in 0..PATIENCE {
        if register(STATUS_A)? & UPDATING != 0 {
            continue;
        }
        let mut fields = [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, STATUS_B];
        for field in &mut fields {
            *field = register(*field)?;
        }
        // Twice the same: no update has come between.
        if before == Some(fields) {
            return decode(fields);
        }
        before = Some(fields);
    }
    None
}

fn decode([second, minute, hour, day, month, year, status]: [u8; 7]) -> Option<u64> {
    let number = |v: u8| {
        let value = if status & BINARY != 0 {
            v
        } else {
            (v >> 4) * 10 + (v & 15)
        };
        let bcd = status & BINARY != 0 || (v & 15 < 10 && v >> 4 < 10);
        bcd.then_some(u64::from(value))
    };
    let mut hours = if status & HOURS_24 != 0 {
        number(hour)?
    } else {
        let half = if hour & AFTERNOON != 0 { 12 } else { 0 };
        number(hour & !AFTERNOON).filter(|h| (1..=12).contains(h))? % 12 + half
    };
    let (second, minute) = (number(second)?, number(minute)?);
    let (day, month, year) = (number(day)?, number(month)?, 2000 + number(year)?);
    if second > 59
        || minute > 59
        || hours > 23
        || !(1..=31).contains(&day)
        || !(1..=12).contains(&month)
    {
        return None;
    }
    hours += days(year, month, day) * 24;
    Some((hours * 60 + minute) * 60 + second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar from 2000 on.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Counted from 1 March, so that the leap day comes last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(fields: [u8; 7]) -> impl FnMut(u8) -> Option<u8> {
        move |r| {
            let at = [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, STATUS_B]
                .iter()
                .position(|f| *f == r);
            Some(at.map_or(0, |i| fields[i]))
        }
    }

    #[test]
    fn known_moments() {
        let epoch_2000 = 946_684_800;
        assert_eq!(read(clock([0, 0, 0, 1, 1, 0, HOURS_24])), Some(epoch_2000));
        // 2024-02-29 23:59:58, BCD and binary, 24 and 12 hours.
        let leap = Some(1_709_251_198);
        assert_eq!(
            read(clock([0x58, 0x59, 0x23, 0x29, 0x02, 0x24, HOURS_24])),
            leap
        );
        assert_eq!(
            read(clock([58, 59, 23, 29, 2, 24, HOURS_24 | BINARY])),
            leap
        );
        assert_eq!(read(clock([0x58, 0x59, 0x91, 0x29, 0x02, 0x24, 0])), leap);
        // 12 a.m. is hour 0, 12 p.m. hour 12.
        assert_eq!(read(clock([0, 0, 0x12, 1, 1, 0, 0])), Some(epoch_2000));
        assert_eq!(
            read(clock([0, 0, 0x92, 1, 1, 0, 0])),
            Some(epoch_2000 + 12 * 3600)
        );
        assert_eq!(
            read(clock([0, 0, 0, 0x22, 0x11, 0x26, HOURS_24])),
            Some(1_795_305_600)
        );
    }

    #[test]
    fn nonsense_and_absence() {
        assert_eq!(read(|_| Some(0xff)), None, "no device: updating for ever");
        assert_eq!(read(|_| None), None);
        for bad in [
            [0x60, 0, 0, 1, 1, 0, 2],
            [0, 0, 0x24, 1, 1, 0, 2],
            [0, 0, 0, 0, 1, 0, 2],
            [0, 0, 0, 1, 0x13, 0, 2],
        ] {
            assert_eq!(read(clock(bad)), None);
        }
        assert_eq!(read(clock([0x0a, 0, 0, 1, 1, 0, 2])), None, "no BCD");
        assert_eq!(read(clock([0, 0, 0x13, 1, 1, 0, 0])), None, "no hour of 12");
    }

    #[test]
    fn a_clock_in_motion_is_read_again() {
        let mut reads = 0;
        let read = read(|r| {
            reads += 1;
            let second = if reads < 5 { 1 } else { 2 };
            Some(match r {
                SECONDS => second,
                DAY | MONTH => 1,
                STATUS_B => HOURS_24,
                _ => 0,
            })
        });
        assert_eq!(read, Some(946_684_802));
    }
}
