//! The calendar of recovery points: a column per week, a cell per day, coloured by the best point of that day.

use std::collections::BTreeMap;

use coffre_engine::book::KnownPoint;
use coffre_engine::job::JobView;
use coffre_engine::journal::JobOutcome;
use coffre_vault::{Consistency, Fate};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use maud::{Markup, html};

/// Half a year, or a year where there are points as old.
const WEEKS_SHORT: i64 = 27;
const WEEKS_LONG: i64 = 53;
/// A cell and the gap beside it, in units of the picture.
const CELL: i64 = 11;
const STEP: i64 = 13;
/// Room for the months' names above.
const TOP: i64 = 12;

#[derive(Default)]
struct Day {
    points: usize,
    best: Option<Consistency>,
    failed: usize,
}

pub fn calendar(points: &[KnownPoint], jobs: &[JobView], now: Timestamp, zone: &TimeZone) -> Markup {
    let today = now.to_zoned(zone.clone()).date();
    let mut days: BTreeMap<Date, Day> = BTreeMap::new();
    let date = |at: Timestamp| at.to_zoned(zone.clone()).date();
    for point in points.iter().filter(|point| point.fate != Fate::Forgotten) {
        let day = days.entry(date(point.taken_at)).or_default();
        day.points += 1;
        day.best = day.best.max(Some(point.reached));
    }
    let failed = |job: &&JobView| matches!(job.outcome, Some(JobOutcome::Failed | JobOutcome::Died));
    for at in jobs.iter().filter(failed).filter_map(|job| job.started_at) {
        days.entry(date(at)).or_default().failed += 1;
    }
    let monday = today.saturating_sub(i64::from(today.weekday().to_monday_zero_offset()).days());
    let long_ago = monday.saturating_sub((WEEKS_SHORT - 1).weeks());
    let weeks = match days.keys().next() {
        Some(first) if *first < long_ago => WEEKS_LONG,
        _ => WEEKS_SHORT,
    };
    let first = monday.saturating_sub((weeks - 1).weeks());
    let (width, height) = (weeks * STEP, TOP + 7 * STEP);
    html! {
        figure.wide {
            figcaption {
                "Recovery points by day "
                span.key {
                    span { i.application {} "application" }
                    span { i.file-system {} "file system" }
                    span { i.crash {} "crash" }
                    span { i.failed {} "only failures" }
                }
            }
            svg.calendar viewBox=(format!("0 0 {width} {height}")) role="img" aria-label="calendar of recovery points" {
                @for week in 0..weeks {
                    @let begins = first.saturating_add(week.weeks());
                    @if begins.day() <= 7 {
                        text x=(week * STEP) y="8" { (begins.strftime("%b")) }
                    }
                    @for weekday in 0..7_i64 {
                        @let date = begins.saturating_add(weekday.days());
                        @if date <= today {
                            (cell(week, weekday, date, days.get(&date)))
                        }
                    }
                }
            }
        }
    }
}

fn cell(week: i64, weekday: i64, date: Date, day: Option<&Day>) -> Markup {
    let class = match day {
        None => "",
        Some(Day { best: None, .. }) => "failed",
        Some(Day { best: Some(best), .. }) => match best {
            Consistency::Crash => "crash",
            Consistency::FileSystem => "file-system",
            Consistency::Application => "application",
        },
    };
    let said = match day {
        None => format!("{date}: nothing"),
        Some(day) => format!("{date}: {} points, {} failures", day.points, day.failed),
    };
    html! {
        rect class=[(!class.is_empty()).then_some(class)] x=(week * STEP) y=(TOP + weekday * STEP) width=(CELL) height=(CELL) rx="2" {
            title { (said) }
        }
    }
}
