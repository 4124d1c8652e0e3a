//! Calendar arithmetic on the proleptic Gregorian calendar: days since 1970-01-01 to year, month, day and back.
//!
//! The method is the era/day-of-era decomposition that Howard Hinnant's "chrono-compatible low-level date algorithms"
//! describe: a year that begins in March puts the leap day last.

/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// A date and time of day, in the RTC's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 (Sunday) to 7.
    pub weekday: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

/// Splits seconds since 1970. The input must be within about 10^11 of zero, which the caller ensures by clamping.
pub fn from_seconds(seconds: i64) -> DateTime {
    let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    DateTime {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month: month as u8,
        day: day as u8,
        // 1970-01-01 was a Thursday.
        weekday: ((days + 4).rem_euclid(7) + 1) as u8,
        hour: (time / 3600) as u8,
        minute: (time / 60 % 60) as u8,
        second: (time % 60) as u8,
    }
}

/// Seconds since 1970 of a date. Fields out of range carry over (32 January is 1 February); `weekday` is ignored.
pub fn to_seconds(date: &DateTime) -> i64 {
    let month = i64::from(date.month.clamp(1, 12));
    let year = date.year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + i64::from(date.day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    days * DAY + i64::from(date.hour) * 3600 + i64::from(date.minute) * 60 + i64::from(date.second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_days() {
        let leap = from_seconds(951_782_400); // 2000-02-29, a Tuesday
        assert_eq!(
            (leap.year, leap.month, leap.day, leap.weekday),
            (2000, 2, 29, 3)
        );
        let last = from_seconds(1_735_689_599); // 2024-12-31 23:59:59, a Tuesday
        assert_eq!(
            (last.year, last.month, last.day, last.weekday),
            (2024, 12, 31, 3)
        );
        assert_eq!((last.hour, last.minute, last.second), (23, 59, 59));
        assert_eq!(from_seconds(-1).year, 1969);
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in -62_000_000_000i64..253_000_000_000) {
            let date = from_seconds(seconds);
            prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
            prop_assert_eq!(to_seconds(&date), seconds);
        }

        #[test]
        fn days_follow_each_other(day in -700_000i64..2_900_000) {
            let (a, b) = (from_seconds(day * DAY), from_seconds((day + 1) * DAY));
            prop_assert_eq!(b.weekday, a.weekday % 7 + 1);
            prop_assert!(b.day == a.day + 1 || b.day == 1 && a.day >= 28);
        }
    }
}
