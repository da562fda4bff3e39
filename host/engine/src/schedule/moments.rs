//! The times on a wall clock that a schedule means, in their order, without regard to any time zone.

use croner::Cron;
use jiff::civil::{Date, DateTime, Weekday};
use jiff::{Span, ToSpan};

/// Days are searched for so far: every month has a day that is meant, every week too.
const SEARCH_DAYS: u32 = 64;

#[derive(Clone, Debug)]
pub(super) enum Moments {
    Never,
    /// Of every day that is meant, the same.
    Days {
        which: Which,
        /// Minutes after the day's midnight, ascending; beyond 24 hours where a window reaches into the next day, and less
        /// than 24 hours from the first to the last.
        minutes: Vec<u32>,
    },
    Cron(Box<Cron>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    Weekday(Weekday),
    /// The last day of months that are shorter.
    OfMonth(i8),
}

impl Which {
    fn has(self, date: Date) -> bool {
        match self {
            Self::All => true,
            Self::Weekday(day) => date.weekday() == day,
            Self::OfMonth(day) => date.day() == day.min(date.days_in_month()),
        }
    }
}

impl Moments {
    /// The first one after `moment`.
    pub fn after(&self, moment: DateTime) -> Option<DateTime> {
        match self {
            Self::Never => None,
            Self::Cron(cron) => cron.find_next_occurrence(&moment, false).ok(),
            Self::Days { which, minutes } => {
                // The day before may reach into this one.
                let days = walk(moment.date().yesterday().ok()?, 1.day()).filter(|day| which.has(*day));
                let mut moments = days.flat_map(|day| minutes.iter().filter_map(move |minutes| at(day, *minutes)));
                moments.find(|found| *found > moment)
            }
        }
    }

    /// The last one that is not after `moment`.
    pub fn until(&self, moment: DateTime) -> Option<DateTime> {
        match self {
            Self::Never => None,
            Self::Cron(cron) => cron.find_previous_occurrence(&moment, true).ok(),
            Self::Days { which, minutes } => {
                let days = walk(moment.date(), -1.day()).filter(|day| which.has(*day));
                let mut moments =
                    days.flat_map(|day| minutes.iter().rev().filter_map(move |minutes| at(day, *minutes)));
                moments.find(|found| *found <= moment)
            }
        }
    }

    /// The last one before `moment`.
    pub fn before(&self, moment: DateTime) -> Option<DateTime> {
        self.until(moment.checked_sub(1.nanosecond()).ok()?)
    }
}

fn walk(from: Date, step: Span) -> impl Iterator<Item = Date> {
    (0..SEARCH_DAYS).map_while(move |count| from.checked_add(step * i64::from(count)).ok())
}

fn at(day: Date, minutes: u32) -> Option<DateTime> {
    day.at(0, 0, 0, 0).checked_add(i64::from(minutes).minutes()).ok()
}
