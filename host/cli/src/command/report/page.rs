//! The page itself: what is not safe first, then every machine with its pictures.

use coffre_engine::book::KnownPoint;
use coffre_engine::status::{Level, MachineStatus, ago};
use coffre_vault::Fate;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Chapter;
use super::calendar::calendar;
use super::chart::{Sample, bars, line};
use super::regions::regions;
use crate::output::{count, size, span};

/// Of the columns of the overview.
const FIRST_NUMBER: usize = 5;
const STYLE: &str = include_str!("style.css");
/// So that a name that looks like HTML can do nothing even if it got through.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
/// So many machines lie open; more are opened by whoever wants to see them.
const OPEN_AT_MOST: usize = 6;

pub fn page(host: &str, chapters: &[Chapter], now: Timestamp, zone: &TimeZone) -> String {
    let bad: Vec<&MachineStatus> = chapters
        .iter()
        .map(|chapter| &chapter.status)
        .filter(|status| status.level != Level::Safe)
        .collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Coffre on " (host) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        h1 { "Coffre on " (host) }
                        p.soft { "As this host knew it at " (moment(now, zone)) }
                        (counts(chapters))
                    }
                    @if !bad.is_empty() {
                        section {
                            h2 { "What is not safe, and what wants looking at" }
                            @for status in bad { (trouble(status, now)) }
                        }
                    } @else if !chapters.is_empty() {
                        p.card { "Every machine is safe: each has a recovery point as new as its schedule wants, and nothing has gone wrong since." }
                    }
                    section {
                        h2 { "Machines" }
                        @if chapters.is_empty() {
                            p { "The configuration has no machines." }
                        } @else {
                            (overview(chapters, now, zone))
                            @for (number, chapter) in chapters.iter().enumerate() {
                                (machine(chapter, number < OPEN_AT_MOST, now, zone))
                            }
                        }
                    }
                    footer.soft {
                        p { "Made by coffre " (env!("CARGO_PKG_VERSION")) ". Times are those of " (zone_name(zone)) "." }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn zone_name(zone: &TimeZone) -> &str {
    zone.iana_name().unwrap_or("this host's time zone")
}

fn moment(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string()
}

fn class(level: Level) -> &'static str {
    match level {
        Level::Safe => "safe",
        Level::Warning => "warning",
        Level::Unknown => "unknown",
        Level::NotSafe => "not-safe",
    }
}

fn badge(level: Level) -> Markup {
    html! { span class={ "level " (class(level)) } { (level.as_str()) } }
}

fn counts(chapters: &[Chapter]) -> Markup {
    let number = |level| chapters.iter().filter(|chapter| chapter.status.level == level).count();
    html! {
        ul.counts {
            @for level in Level::ALL.into_iter().rev() {
                @if number(level) > 0 {
                    li { span class={ "level " (class(level)) } { (number(level)) " " (level.as_str()) } }
                }
            }
        }
    }
}

fn trouble(status: &MachineStatus, now: Timestamp) -> Markup {
    html! {
        div class={ "card bad is-" (class(status.level)) } {
            (badge(status.level)) " " b { (status.machine) }
            " " span.soft { (newest_in_words(status, now)) }
            ul {
                @for reason in &status.reasons {
                    li {
                        (reason.text)
                        @if let Some(hint) = &reason.hint { p.soft { "Hint: " (hint) } }
                    }
                }
            }
        }
    }
}

fn newest_in_words(status: &MachineStatus, now: Timestamp) -> String {
    match &status.last_good {
        None => "no good recovery point".to_owned(),
        Some(good) => format!(
            "newest good point @{}, {} old",
            good.point,
            ago(now.duration_since(good.taken_at))
        ),
    }
}

fn overview(chapters: &[Chapter], now: Timestamp, zone: &TimeZone) -> Markup {
    let columns = [
        "Machine",
        "State",
        "Last good",
        "Consistency",
        "Next",
        "Points",
        "Size",
        "Stored",
    ];
    let cell = |column: usize, text: String| html! { td data-label=(columns[column]) { (text) } };
    let number = |column: usize, text: String| html! { td.number data-label=(columns[column]) { (text) } };
    html! {
        table {
            thead { tr { @for (number, column) in columns.iter().enumerate() { th.number[number >= FIRST_NUMBER] { (column) } } } }
            tbody {
                @for Chapter { status, .. } in chapters {
                    @let good = status.last_good.as_ref();
                    tr {
                        (cell(0, status.machine.clone()))
                        td data-label=(columns[1]) { (badge(status.level)) }
                        (cell(2, good.map_or_else(|| "none".to_owned(), |good| format!("@{}, {} ago", good.point, ago(now.duration_since(good.taken_at))))))
                        (cell(3, good.map_or_else(String::new, |good| good.consistency.to_string())))
                        (cell(4, status.next_due.map_or_else(|| "no schedule".to_owned(), |due| moment(due, zone))))
                        (number(5, status.points.to_string()))
                        (number(6, good.map_or_else(String::new, |good| size(good.size_bytes))))
                        (number(7, size(status.stored_bytes)))
                    }
                }
            }
        }
    }
}

fn machine(chapter: &Chapter, open: bool, now: Timestamp, zone: &TimeZone) -> Markup {
    let Chapter { status, points, jobs } = chapter;
    let there: Vec<&KnownPoint> = points.iter().filter(|point| point.fate != Fate::Forgotten).collect();
    html! {
        details.card open[open] {
            summary {
                b { (status.machine) } (badge(status.level)) " "
                span.soft { (count(there.len(), "point")) " in " (status.vault) ", " (newest_in_words(status, now)) }
            }
            div.pictures {
                (calendar(points, jobs, now, zone))
                @if !points.is_empty() {
                    (sizes(points, zone))
                    (changes(points, zone))
                    (holds(points, zone))
                }
            }
            @for disk in points.last().map_or(&[][..], |point| &point.disks) {
                @if let Some(picture) = regions(points, &disk.id) {
                    h3 { "Disk " (disk.id) @if !disk.label.is_empty() { " " span.soft { (disk.label) } } }
                    figure {
                        figcaption {
                            "Where it changed: a row per point, the newest on top; from left to right its " (size(disk.size_bytes))
                            ". Darker (in the dark, brighter) is more."
                        }
                        (picture)
                    }
                }
            }
        }
    }
}

fn sizes(points: &[KnownPoint], zone: &TimeZone) -> Markup {
    let samples = samples(points, zone, |point| (point.size_bytes, 0, size(point.size_bytes)));
    let last = points.last().map_or(0, |point| point.size_bytes);
    html! {
        figure {
            figcaption { "Size of the disks: " (size(last)) }
            (line("size of the disks over time", &samples))
        }
    }
}

fn changes(points: &[KnownPoint], zone: &TimeZone) -> Markup {
    let samples = samples(points, zone, |point| {
        let said = format!(
            "changed {}, stored {}",
            size(point.changed_bytes),
            size(point.stored_bytes)
        );
        (point.changed_bytes, point.stored_bytes, said)
    });
    let last = samples.last();
    html! {
        figure {
            figcaption {
                span.key { span { i.one {} "changed" } span { i.two {} "stored with each point" } }
                @if let Some(last) = last { "; at the last point " (size(last.one)) " and " (size(last.two)) }
            }
            (bars("changed and stored bytes per point", &samples))
        }
    }
}

fn holds(points: &[KnownPoint], zone: &TimeZone) -> Markup {
    let ms = |ms: u64| span(std::time::Duration::from_millis(ms));
    let samples = samples(points, zone, |point| {
        let (held, frozen) = (point.held_ms.unwrap_or(0), point.frozen_ms.unwrap_or(0));
        (
            held,
            frozen,
            format!("applications held {}, file systems frozen {}", ms(held), ms(frozen)),
        )
    });
    if samples.iter().all(|sample| sample.one == 0 && sample.two == 0) {
        return html! { figure { figcaption { "Nothing was held or frozen for these points." } } };
    }
    let most = |of: fn(&Sample) -> u64| ms(samples.iter().map(of).max().unwrap_or(0));
    html! {
        figure {
            figcaption {
                span.key { span { i.one {} "applications held" } span { i.two {} "file systems frozen" } }
                "; longest: " (most(|sample| sample.one)) " and " (most(|sample| sample.two))
            }
            (bars("how long applications were held and file systems frozen", &samples))
        }
    }
}

fn samples(points: &[KnownPoint], zone: &TimeZone, of: impl Fn(&KnownPoint) -> (u64, u64, String)) -> Vec<Sample> {
    let sample = |point: &KnownPoint| {
        let (one, two, said) = of(point);
        let said = format!("@{}, {}: {said}", point.number, moment(point.taken_at, zone));
        Sample {
            at: point.taken_at,
            one,
            two,
            said,
        }
    };
    points.iter().map(sample).collect()
}
