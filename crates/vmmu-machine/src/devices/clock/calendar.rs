//! Dates of the proleptic Gregorian calendar, and seconds since 1970.

const DAY: i64 = 86_400;
/// Days in 400 years.
const ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const TO_1970: i64 = 719_468;

/// A date and a time of day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// From 1.
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

impl Date {
    /// Makes the date of a moment, in seconds since 1970-01-01 00:00. Years begin in March here, so that a leap day is a
    /// year's last.
    pub(super) const fn from_seconds(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let days = days + TO_1970;
        let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let leaps = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leaps) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March on have 153 days in five.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + (month <= 2) as i64,
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// Returns the moment. A day that the month doesn't have is one of the next month.
    pub(super) const fn seconds(&self) -> i64 {
        let year = self.year - (self.month <= 2) as i64;
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month_from_march = (self.month + 9).rem_euclid(12);
        let day_of_year = (153 * month_from_march + 2) / 5 + self.day - 1;
        let days = era * ERA + 365 * year_of_era + year_of_era / 4 - year_of_era / 100
            + day_of_year
            - TO_1970;
        days * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// Returns the day of the week, 1 for Sunday.
    pub(super) const fn weekday(&self) -> i64 {
        // 1970-01-01 was a Thursday.
        (self.seconds().div_euclid(DAY) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod dates {
    use super::Date;

    #[test]
    fn of_known_moments() {
        for (seconds, year, month, day, weekday) in [
            (0, 1970, 1, 1, 5),
            (951_782_400, 2000, 2, 29, 3),
            (1_709_164_800, 2024, 2, 29, 5),
            (4_107_542_400, 2100, 3, 1, 2),
            (-1, 1969, 12, 31, 4),
        ] {
            let date = Date::from_seconds(seconds);
            assert_eq!((date.year, date.month, date.day), (year, month, day));
            assert_eq!(date.weekday(), weekday);
        }
        let date = Date::from_seconds(1_700_000_000);
        assert_eq!((date.hour, date.minute, date.second), (22, 13, 20));
    }

    #[test]
    fn and_moments_agree() {
        let mut last = Date::from_seconds(-86_400);
        for day in 0..80_000 {
            let date = Date::from_seconds(day * 86_400 + 3661);
            assert_eq!(date.seconds(), day * 86_400 + 3661);
            let next_day = date.day == last.day + 1 && date.month == last.month;
            assert!(next_day || date.day == 1 && last.day >= 28);
            last = date;
        }
    }
}
