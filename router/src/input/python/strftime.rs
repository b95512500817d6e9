//! The time in the notation of C's `strftime`, in UTC and in English.

use std::fmt::Write;
use std::time::SystemTime;

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

struct Time {
    since_epoch_secs: i64,
    year: i64,
    /// From 1.
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    /// From 0, Sunday.
    weekday: i64,
    /// From 0.
    day_of_year: i64,
}

/// Directives that it does not know stay as they are.
pub fn strftime(time: SystemTime, format: &str) -> String {
    let time = Time::new(time);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut flag = None;
        let mut directive = letters.next();
        if let Some(given @ ('-' | '_' | '0' | '^' | '#')) = directive {
            flag = Some(given);
            directive = letters.next();
        }
        match directive {
            Some(directive) => time.write(&mut out, flag, directive),
            None => {
                out.push('%');
                out.extend(flag);
            }
        }
    }
    out
}

impl Time {
    fn new(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH);
        let since_epoch_secs = since_epoch.map_or(0, |since| since.as_secs() as i64);
        let (days, secs) = (since_epoch_secs / 86_400, since_epoch_secs % 86_400);
        let (year, month, day) = date(days);
        Self {
            since_epoch_secs,
            year,
            month,
            day,
            hour: secs / 3600,
            minute: secs / 60 % 60,
            second: secs % 60,
            weekday: (days + 4) % 7,
            day_of_year: days - days_until(year),
        }
    }

    fn write(&self, out: &mut String, flag: Option<char>, directive: char) {
        let hour_12 = (self.hour + 11) % 12 + 1;
        // A number, its width, and what it is filled with.
        let (number, width, fill) = match directive {
            'd' => (self.day, 2, '0'),
            'e' => (self.day, 2, ' '),
            'H' => (self.hour, 2, '0'),
            'k' => (self.hour, 2, ' '),
            'I' => (hour_12, 2, '0'),
            'l' => (hour_12, 2, ' '),
            'j' => (self.day_of_year + 1, 3, '0'),
            'm' => (self.month, 2, '0'),
            'M' => (self.minute, 2, '0'),
            'S' => (self.second, 2, '0'),
            'f' => (0, 6, '0'),
            's' => (self.since_epoch_secs, 1, '0'),
            'u' => ((self.weekday + 6) % 7 + 1, 1, '0'),
            'w' => (self.weekday, 1, '0'),
            'U' => ((self.day_of_year + 7 - self.weekday) / 7, 2, '0'),
            'W' => ((self.day_of_year + 7 - (self.weekday + 6) % 7) / 7, 2, '0'),
            'V' => (self.iso_week().1, 2, '0'),
            'G' => (self.iso_week().0, 4, '0'),
            'g' => (self.iso_week().0 % 100, 2, '0'),
            'y' => (self.year % 100, 2, '0'),
            'Y' => (self.year, 4, '0'),
            'C' => (self.year / 100, 2, '0'),
            _ => return self.write_text(out, flag, directive),
        };
        // Writing to a string cannot fail.
        let _ = match (flag, fill) {
            (Some('-'), _) => write!(out, "{number}"),
            (Some('_'), _) | (None, ' ') => write!(out, "{number:width$}"),
            _ => write!(out, "{number:0width$}"),
        };
    }

    fn write_text(&self, out: &mut String, flag: Option<char>, directive: char) {
        let (day, month) = (DAYS[self.weekday as usize], MONTHS[self.month as usize - 1]);
        let nested = match directive {
            'c' => "%a %b %e %H:%M:%S %Y",
            'D' | 'x' => "%m/%d/%y",
            'F' => "%Y-%m-%d",
            'R' => "%H:%M",
            'r' => "%I:%M:%S %p",
            'T' | 'X' => "%H:%M:%S",
            _ => "",
        };
        let half = if self.hour < 12 { "AM" } else { "PM" };
        let text = match directive {
            'a' => day[..3].to_owned(),
            'A' => day.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'B' => month.to_owned(),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            'z' | 'Z' => String::new(), // Python's time without a zone has none
            _ if !nested.is_empty() => self.nested(nested),
            _ => ['%'].into_iter().chain(flag).chain([directive]).collect(),
        };
        match flag {
            Some('^') => out.push_str(&text.to_uppercase()),
            _ => out.push_str(&text),
        }
    }

    fn nested(&self, format: &str) -> String {
        let secs = u64::try_from(self.since_epoch_secs).unwrap_or(0);
        strftime(
            SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs),
            format,
        )
    }

    /// The year and the week that hold this week's Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let from_monday = (self.weekday + 6) % 7;
        let thursday = self.day_of_year - from_monday + 3;
        let len = days_until(self.year + 1) - days_until(self.year);
        if thursday < 0 {
            let last_year = days_until(self.year) - days_until(self.year - 1);
            (self.year - 1, (thursday + last_year) / 7 + 1)
        } else if thursday >= len {
            (self.year + 1, (thursday - len) / 7 + 1)
        } else {
            (self.year, thursday / 7 + 1)
        }
    }
}

/// Days from the epoch to the first of January.
fn days_until(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past / 4 - past / 100 + past / 400 - 719_162
}

/// Year, month and day of a day after the epoch.
fn date(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days / 366;
    while days_until(year + 1) <= days {
        year += 1;
    }
    let is_leap = days_until(year + 1) - days_until(year) == 366;
    let february = if is_leap { 29 } else { 28 };
    let mut day = days - days_until(year);
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < len {
            break;
        }
        day -= len;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(secs: u64, format: &str) -> String {
        strftime(SystemTime::UNIX_EPOCH + Duration::from_secs(secs), format)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 Thu 001"),
            (951_782_400, "2000-02-29 Tue 060"),
            (1_735_603_200, "2024-12-31 Tue 366"),
            (1_735_689_600, "2025-01-01 Wed 001"),
            (4_107_542_400, "2100-03-01 Mon 060"),
        ];
        for (secs, expected) in cases {
            assert_eq!(at(secs, "%F %a %j"), expected);
        }
    }

    #[test]
    fn weeks_at_the_ends_of_a_year_are_those_of_their_thursday() {
        assert_eq!(at(1_735_603_200, "%G-%V %U %W"), "2025-01 52 53");
        assert_eq!(at(1_609_459_200, "%G-%V %U %W"), "2020-53 00 00");
    }

    #[test]
    fn flags_and_unknown_directives_are_as_in_c() {
        assert_eq!(at(0, "%-d|%_m|%e|%^a|%Q|%"), "1| 1| 1|THU|%Q|%");
    }
}
