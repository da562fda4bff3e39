//! When backups are due: a policy's schedule as instants, whatever clocks on walls do in between.
//!
//! A schedule is a sequence of times on a wall clock (`moments`), and a time zone that says which instant each of them is:
//! - What a clock skips when it is put forward is due the instant it is put forward. So every night has its backup, and none
//!   moves past a later one.
//! - What it shows twice when it is put back is due the first time. Only schedules of an hour or less, which mean "as often as
//!   that", are due both times, so that no gap opens between two backups.

mod moments;
mod read;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use serde::{Serialize, Serializer};

use moments::Moments;
pub use read::ScheduleError;
pub use window::{Window, WindowError};

/// When a policy's machines are backed up. Read once, with the configuration.
#[derive(Clone)]
pub struct Schedule {
    /// As the configuration writes it.
    text: String,
    moments: Moments,
    /// None: this host's.
    zone: Option<TimeZone>,
    /// Due in both passes of an hour that a clock shows twice.
    both: bool,
}

impl Schedule {
    /// Reads the words of the configuration, as in `daily 02:00 Europe/Paris`.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        read::schedule(text)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The one that it names.
    pub fn named_zone(&self) -> Option<&TimeZone> {
        self.zone.as_ref()
    }

    /// Whose days and hours it means: the one that it names, else this host's.
    pub fn zone(&self) -> TimeZone {
        self.zone.clone().unwrap_or_else(TimeZone::system)
    }

    /// The first due time after `at`. None: never.
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        let passes = self.passes().iter();
        passes.filter_map(|pass| self.around(at, *pass).1).min()
    }

    /// The newest due time that is not after `at`. None: there was none.
    pub fn last_until(&self, at: Timestamp) -> Option<Timestamp> {
        let passes = self.passes().iter();
        passes.filter_map(|pass| self.around(at, *pass).0).max()
    }

    fn passes(&self) -> &'static [Pass] {
        if self.both {
            &[Pass::First, Pass::Second]
        } else {
            &[Pass::First]
        }
    }

    /// The newest due time not after `at`, and the first one after it. Later moments are never earlier instants, so it is
    /// enough to look around what the clock shows at `at`; where it shows a time twice, that can be an hour away.
    fn around(&self, at: Timestamp, pass: Pass) -> (Option<Timestamp>, Option<Timestamp>) {
        let zone = self.zone();
        let shown = zone.to_datetime(at);
        let instant = |moment: DateTime| instant(&zone, moment, pass);
        let mut last = self.moments.until(shown);
        while let Some(moment) = last
            && instant(moment).is_some_and(|instant| instant > at)
        {
            last = self.moments.before(moment);
        }
        let mut next = self.moments.after(last.unwrap_or(shown));
        while let Some(moment) = next
            && instant(moment).is_some_and(|instant| instant <= at)
        {
            last = next;
            next = self.moments.after(moment);
        }
        (last.and_then(instant), next.and_then(instant))
    }
}

/// Which of two instants is meant where a clock shows the same time twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    First,
    Second,
}

/// None: outside the years that instants can be in.
fn instant(zone: &TimeZone, moment: DateTime, pass: Pass) -> Option<Timestamp> {
    let at = |offset: Offset| offset.to_timestamp(moment).ok();
    match zone.to_ambiguous_timestamp(moment).offset() {
        AmbiguousOffset::Unambiguous { offset } => at(offset),
        // With the offset that is right from the change on, a moment that is skipped lies right before it.
        AmbiguousOffset::Gap { after, .. } => {
            let mut changes = zone.following(at(after)?).map(|change| change.timestamp());
            changes.find(|change| zone.to_offset(*change) == after)
        }
        AmbiguousOffset::Fold { before, after } => match pass {
            Pass::First => at(before),
            Pass::Second => at(after),
        },
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

impl fmt::Debug for Schedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Schedule({})", self.text)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
