//! Times of day, on all days of the week or some of them, in a time zone.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use serde::{Serialize, Serializer};

use super::read::{ScheduleError, TimeOfDay};
use crate::config::suggest;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// `22:00-06:00`, `mon-fri 08:00-18:00 Europe/Paris`, `sat,sun 00:00-24:00`. One that goes over midnight belongs to the day on
/// which it begins.
#[derive(Clone)]
pub struct Window {
    text: String,
    /// From Monday.
    days: [bool; 7],
    from: TimeOfDay,
    to: TimeOfDay,
    /// None: this host's.
    zone: Option<TimeZone>,
}

/// What is wrong with a window's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    #[error("`{0}` is not a window of time")]
    Times(String),
    #[error("`{0}` is not a day of the week")]
    Day(String),
    #[error(transparent)]
    Rest(ScheduleError),
}

impl WindowError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Day(found) => suggest(found, DAYS.iter().copied()),
            _ => Some(
                "as in \"22:00-06:00\", \"mon-fri 08:00-18:00 Europe/Paris\" or \"sat,sun 00:00-24:00\"".to_owned(),
            ),
        }
    }
}

impl Window {
    pub fn parse(text: &str) -> Result<Self, WindowError> {
        let mut words = text.split_whitespace().peekable();
        let days = match words.next_if(|word| word.starts_with(|first: char| first.is_ascii_alphabetic())) {
            Some(word) => days(word)?,
            None => [true; 7],
        };
        let times = words.next().unwrap_or_default();
        let (from, to) = TimeOfDay::parse_window(times).ok_or_else(|| WindowError::Times(times.to_owned()))?;
        let zone =
            |name: &str| TimeZone::get(name).map_err(|_| WindowError::Rest(ScheduleError::Zone(name.to_owned())));
        let zone = words.next().map(zone).transpose()?;
        if let Some(more) = words.next() {
            return Err(WindowError::Rest(ScheduleError::TooMuch(more.to_owned())));
        }
        Ok(Self {
            text: text.trim().to_owned(),
            days,
            from,
            to,
            zone,
        })
    }

    /// Whether it is open, by what clocks on walls show.
    pub fn contains(&self, at: Timestamp) -> bool {
        let zone = self.zone.clone().unwrap_or_else(TimeZone::system);
        let shown = zone.to_datetime(at);
        let minutes = shown.hour() as u32 * 60 + shown.minute() as u32;
        let on = |day: Weekday| self.days[day.to_monday_zero_offset() as usize];
        let (from, to) = (self.from.minutes(), self.to.minutes());
        let today = on(shown.date().weekday()) && minutes >= from;
        if from < to {
            return today && minutes < to;
        }
        today || (on(shown.date().weekday().previous()) && minutes < to)
    }
}

/// `mon`, `mon-fri`, `sat,sun`, `fri-mon`.
fn days(word: &str) -> Result<[bool; 7], WindowError> {
    let day = |name: &str| {
        let found = DAYS.iter().position(|day| *day == name);
        found.ok_or_else(|| WindowError::Day(name.to_owned()))
    };
    let mut days = [false; 7];
    for part in word.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        days[at] = true;
        while at != last {
            at = (at + 1) % 7;
            days[at] = true;
        }
    }
    Ok(days)
}

impl PartialEq for Window {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Window {}

impl fmt::Debug for Window {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Window({})", self.text)
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str, at: &str) -> bool {
        let window = Window::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        window.contains(at.parse().unwrap())
    }

    #[test]
    fn a_window_is_open_from_its_first_minute_to_before_its_last() {
        // 2026-11-25 is a Wednesday.
        assert!(!open("08:00-18:00 UTC", "2026-11-25T07:59:59Z"));
        assert!(open("08:00-18:00 UTC", "2026-11-25T08:00:00Z"));
        assert!(open("08:00-18:00 UTC", "2026-11-25T17:59:59Z"));
        assert!(!open("08:00-18:00 UTC", "2026-11-25T18:00:00Z"));
        assert!(open("08:00-18:00 Europe/Paris", "2026-11-25T07:00:00Z"));
        assert!(open("00:00-24:00 UTC", "2026-11-25T00:00:00Z"));
    }

    #[test]
    fn over_midnight_it_belongs_to_the_day_on_which_it_begins() {
        assert!(open("wed 22:00-06:00 UTC", "2026-11-25T23:00:00Z"));
        assert!(open("wed 22:00-06:00 UTC", "2026-11-26T05:00:00Z"));
        assert!(!open("wed 22:00-06:00 UTC", "2026-11-25T05:00:00Z"));
        assert!(!open("wed 22:00-06:00 UTC", "2026-11-26T06:00:00Z"));
    }

    #[test]
    fn days_are_names_and_ranges() {
        for (text, wanted) in [
            ("mon-fri 00:00-24:00 UTC", true),
            ("sat,sun 00:00-24:00 UTC", false),
            ("sat,wed 00:00-24:00 UTC", true),
            ("fri-mon 00:00-24:00 UTC", false),
            ("sun-thu 00:00-24:00 UTC", true),
        ] {
            assert_eq!(open(text, "2026-11-25T12:00:00Z"), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for wrong in [
            "",
            "08:00",
            "8-18",
            "08:00-08:00",
            "24:00-08:00",
            "noday 08:00-18:00",
            "mon- 08:00-18:00",
            "08:00-18:00 Mars/Olympus",
            "08:00-18:00 UTC now",
        ] {
            assert!(Window::parse(wrong).is_err(), "{wrong}");
        }
    }
}
