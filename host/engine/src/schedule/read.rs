//! A schedule's words.

use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, JobType};
use jiff::civil::{DateTime, Weekday, date};
use jiff::tz::TimeZone;

use super::Schedule;
use super::moments::{Moments, Which};
use crate::config::{parse_duration, shown_duration, suggest};

const DAY_MINUTES: u32 = 24 * 60;
/// A clock that is put back shows this much twice in nearly every zone; what is due that often or more often is due in both
/// passes.
const SHOWN_TWICE_MINUTES: u32 = 60;
/// Less would be a backup that always runs.
const EVERY_LEAST_MINUTES: u32 = 5;

const KINDS: &[&str] = &["never", "hourly", "daily", "weekly", "monthly", "every", "cron"];
const WEEKDAYS: &[(&str, Weekday)] = &[
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

/// What is wrong with a schedule's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("the schedule is empty")]
    Empty,
    #[error("`{0}` is not a kind of schedule")]
    Kind(String),
    #[error("`weekly` needs a day")]
    NoWeekday,
    #[error("`{0}` is not a day of the week")]
    Weekday(String),
    #[error("`monthly` needs a day from 1 to 31")]
    DayOfMonth,
    #[error("`every` needs a duration")]
    NoPeriod,
    #[error("{0}")]
    Duration(String),
    #[error("`every` is at least {least} and at most 24h, in whole minutes, not {found}", least = shown_duration(minutes(EVERY_LEAST_MINUTES)))]
    Period { found: String },
    #[error("`{0}` is not a time of day")]
    Time(String),
    #[error("`{0}` is not a time zone")]
    Zone(String),
    #[error("`{0}` is too much")]
    TooMuch(String),
    #[error("`cron` needs five fields: minute, hour, day of month, month, day of week")]
    CronFields,
    #[error("`{text}` is not what cron understands: {why}")]
    Cron { text: String, why: String },
    #[error("`{0}` never comes")]
    Never(String),
}

impl ScheduleError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kind(found) => suggest(found, KINDS.iter().copied()),
            Self::Weekday(found) => suggest(found, WEEKDAYS.iter().map(|(name, _)| *name)),
            Self::Period { .. } => {
                Some("for less often say \"weekly …\" or \"monthly …\"; for exact days, \"cron …\"".to_owned())
            }
            Self::CronFields | Self::Cron { .. } | Self::Never(_) => {
                Some("as in \"cron 30 2 * * mon-fri Europe/Paris\"".to_owned())
            }
            _ => Some(
                "as in \"never\", \"hourly\", \"every 4h\", \"every 4h 08:00-20:00\", \"daily 02:00 Europe/Paris\", \
                 \"weekly sunday 03:00\", \"monthly 1 04:00\" or \"cron 30 2 * * mon-fri\""
                    .to_owned(),
            ),
        }
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

pub(super) fn schedule(text: &str) -> Result<Schedule, ScheduleError> {
    let mut words = text.split_whitespace().peekable();
    let kind = words.next().ok_or(ScheduleError::Empty)?;
    let mut both = false;
    let moments = match kind {
        "never" => Moments::Never,
        "hourly" => {
            both = true;
            every(60, 0, DAY_MINUTES - 1)
        }
        "every" => {
            let period = period(&mut words)?;
            both = period <= SHOWN_TWICE_MINUTES;
            let (start, length) = window(&mut words)?;
            every(period, start, length)
        }
        "daily" => days(Which::All, time(&mut words)?),
        "weekly" => {
            let word = words.next().ok_or(ScheduleError::NoWeekday)?;
            let found = WEEKDAYS.iter().find(|(name, _)| *name == word);
            let (_, day) = found.ok_or_else(|| ScheduleError::Weekday(word.to_owned()))?;
            days(Which::Weekday(*day), time(&mut words)?)
        }
        "monthly" => {
            let day = words.next().and_then(|word| word.parse().ok());
            let day = day
                .filter(|day| (1..=31).contains(day))
                .ok_or(ScheduleError::DayOfMonth)?;
            days(Which::OfMonth(day), time(&mut words)?)
        }
        "cron" => {
            let cron = cron(&mut words)?;
            both = cron.determine_job_type() == JobType::IntervalWildcard;
            Moments::Cron(Box::new(cron))
        }
        other => return Err(ScheduleError::Kind(other.to_owned())),
    };
    let zone = match words.next() {
        Some(name) if kind != "never" => Some(TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?),
        Some(more) => return Err(ScheduleError::TooMuch(more.to_owned())),
        None => None,
    };
    if let Some(more) = words.next() {
        return Err(ScheduleError::TooMuch(more.to_owned()));
    }
    Ok(Schedule {
        text: text.trim().to_owned(),
        moments,
        zone,
        both,
    })
}

fn days(which: Which, time: TimeOfDay) -> Moments {
    Moments::Days {
        which,
        minutes: vec![time.minutes()],
    }
}

/// Every day anew from `start`, for as long as `length`, that included.
fn every(period: u32, start: u32, length: u32) -> Moments {
    let minutes = (0..=length).step_by(period as usize).map(|offset| start + offset);
    Moments::Days {
        which: Which::All,
        minutes: minutes.collect(),
    }
}

fn period(words: &mut Words<'_>) -> Result<u32, ScheduleError> {
    let word = words.next().ok_or(ScheduleError::NoPeriod)?;
    let found = parse_duration(word).map_err(ScheduleError::Duration)?;
    let whole = (found.as_millis() % 60_000 == 0).then_some(found.as_secs() / 60);
    let whole = whole.and_then(|minutes| u32::try_from(minutes).ok());
    whole
        .filter(|minutes| (EVERY_LEAST_MINUTES..=DAY_MINUTES).contains(minutes))
        .ok_or_else(|| ScheduleError::Period { found: word.to_owned() })
}

/// A time of day, where the next word looks like one; else midnight.
fn time(words: &mut Words<'_>) -> Result<TimeOfDay, ScheduleError> {
    match words.next_if(|word| word.starts_with(|first: char| first.is_ascii_digit())) {
        Some(word) => TimeOfDay::parse(word).ok_or_else(|| ScheduleError::Time(word.to_owned())),
        None => Ok(TimeOfDay::default()),
    }
}

/// From when, and for how long, in minutes: what the next word says, where it looks like a window; else the whole day.
fn window(words: &mut Words<'_>) -> Result<(u32, u32), ScheduleError> {
    let Some(word) = words.next_if(|word| word.starts_with(|first: char| first.is_ascii_digit())) else {
        return Ok((0, DAY_MINUTES - 1));
    };
    let (from, to) = TimeOfDay::parse_window(word).ok_or_else(|| ScheduleError::Time(word.to_owned()))?;
    Ok((from.minutes(), from.minutes_until(to)))
}

fn cron(words: &mut Words<'_>) -> Result<Cron, ScheduleError> {
    let fields: Vec<&str> = words.by_ref().take(5).collect();
    if fields.len() < 5 {
        return Err(ScheduleError::CronFields);
    }
    let text = fields.join(" ");
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed);
    let cron = parser.build().parse(&text).map_err(|error| ScheduleError::Cron {
        why: error.to_string(),
        text: text.clone(),
    })?;
    // Any instant will do: what comes in no century does not come.
    let from: DateTime = date(2024, 1, 1).at(0, 0, 0, 0);
    match cron.find_next_occurrence(&from, true) {
        Ok(_) => Ok(cron),
        Err(_) => Err(ScheduleError::Never(text)),
    }
}

const fn minutes(count: u32) -> std::time::Duration {
    std::time::Duration::from_secs(count as u64 * 60)
}

/// `HH:MM` on a wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimeOfDay {
    minutes: u32,
}

impl TimeOfDay {
    pub fn parse(text: &str) -> Option<Self> {
        let (hours, minutes) = text.split_once(':')?;
        let two = |text: &str, below: u32| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|found| digits && *found < below)
        };
        Some(Self {
            minutes: two(hours, 24)? * 60 + two(minutes, 60)?,
        })
    }

    /// `HH:MM-HH:MM`, also over midnight and up to 24:00; not an empty one.
    pub fn parse_window(text: &str) -> Option<(Self, Self)> {
        let (from, to) = text.split_once('-')?;
        let to = match to {
            "24:00" => Some(Self { minutes: DAY_MINUTES }),
            to => Self::parse(to),
        };
        let (from, to) = (Self::parse(from)?, to?);
        (from != to).then_some((from, to))
    }

    /// Since midnight.
    pub fn minutes(self) -> u32 {
        self.minutes
    }

    /// How long it is until a clock shows `later`, perhaps on the next day.
    pub fn minutes_until(self, later: Self) -> u32 {
        match later.minutes.checked_sub(self.minutes) {
            // What is due at midnight already is not due at the next one as well.
            Some(minutes) => minutes.min(DAY_MINUTES - 1),
            None => later.minutes + DAY_MINUTES - self.minutes,
        }
    }
}
