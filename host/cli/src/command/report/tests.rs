//! The page in a real browser, at the width of a phone and of a desk, by day and by night.

use std::path::PathBuf;

use coffre_engine::book::{KnownDisk, LastJob};
use coffre_engine::journal::JobOutcome;
use coffre_engine::status::{GoodPoint, Level, Reason};
use coffre_tests::browser::{Browser, Look};
use coffre_vault::{Consistency, Fate};
use jiff::ToSpan;

use super::*;

const DAY: i64 = 24 * 3600;
/// Where the pictures go that stand in the README: `COFFRE_TEST_PICTURES=docs/pictures cargo xtask test report`.
const PICTURES: &str = "COFFRE_TEST_PICTURES";

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

/// A number that looks random and is the same in every run.
fn noise(seed: u64) -> u64 {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^= state >> 31;
    state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^ (state >> 27)
}

/// A disk that is written at its beginning, in a log that goes round, and here and there.
fn changed_regions(number: u64, seed: u64) -> String {
    let digit = |region: u64| {
        let log = 40 + (number * 3 + seed) % 60;
        match region {
            0..4 => 3,
            _ if (log..log + 5).contains(&region) => 9 + noise(number + region) % 7,
            _ if noise(seed + region * 977 + number * 31).is_multiple_of(17) => 1 + noise(region) % 6,
            _ => 0,
        }
    };
    (0..128).map(|region| format!("{:x}", digit(region))).collect()
}

fn point(machine: &str, seed: u64, number: u64, days_ago: i64) -> KnownPoint {
    let taken_at = now().checked_sub((days_ago * 24 + 8).hours()).unwrap();
    let changed = (60 << 20) + noise(seed + number) % (300 << 20);
    let reached = match noise(seed * 7 + number) % 19 {
        0 => Consistency::Crash,
        1..3 => Consistency::FileSystem,
        _ => Consistency::Application,
    };
    let size_bytes = if days_ago > 120 { 32 << 30 } else { 48 << 30 };
    let disk = |id: &str, label: &str, seed: u64| KnownDisk {
        id: id.to_owned(),
        label: label.to_owned(),
        size_bytes: size_bytes / 2,
        changed_bytes: changed / 2,
        stored_bytes: changed / 3,
        compared: "tracked".to_owned(),
        changed_regions: changed_regions(number, seed),
    };
    KnownPoint {
        vault: "main".to_owned(),
        machine: machine.to_owned(),
        number: number as u32,
        taken_at,
        committed_at: taken_at,
        fate: Fate::Kept,
        forgotten_since: None,
        pinned: false,
        reached,
        wanted: Consistency::Application,
        reason: String::new(),
        held_ms: Some(180 + noise(number * 3 + seed) % 240),
        frozen_ms: Some(40 + noise(number * 5 + seed) % 60),
        size_bytes,
        read_bytes: changed,
        changed_bytes: changed,
        stored_bytes: changed * 2 / 3,
        disks: vec![disk("vda", "root", seed), disk("vdb", "/srv", seed + 5)],
        notes: Vec::new(),
        job: None,
        host: "backup1".to_owned(),
    }
}

fn chapter(machine: &str, seed: u64, level: Level, newest_days_ago: i64, reasons: Vec<Reason>) -> Chapter {
    // As grandfather, father and son keep them.
    let ages = (newest_days_ago..30)
        .chain((30..120).step_by(7))
        .chain((120..330).step_by(30));
    let mut ages: Vec<i64> = ages.collect();
    ages.reverse();
    let mut points: Vec<KnownPoint> = ages
        .iter()
        .enumerate()
        .map(|(number, age)| point(machine, seed, number as u64 + 1, *age))
        .collect();
    let last = points.last_mut().expect("there is one");
    if level == Level::Warning {
        last.reached = Consistency::FileSystem;
    }
    let last = last.clone();
    let status = MachineStatus {
        machine: machine.to_owned(),
        vault: "main".to_owned(),
        policy: Some("daily".to_owned()),
        level,
        reasons,
        last_good: Some(GoodPoint {
            point: last.number,
            taken_at: last.taken_at,
            age_ms: 0,
            consistency: last.reached,
            size_bytes: last.size_bytes,
        }),
        consistency_wanted: Consistency::Application,
        next_due: now().checked_add(16.hours()).ok(),
        turn: None,
        running: None,
        last_job: None::<LastJob>,
        points: points.len() as u64,
        stored_bytes: points.iter().map(|point| point.stored_bytes).sum(),
        points_read_at: None,
    };
    let failed = |days: i64| JobView {
        started_at: Timestamp::from_second(now().as_second() - days * DAY).ok(),
        outcome: Some(JobOutcome::Failed),
        ..serde_json::from_value(serde_json::json!({
            "id": "x", "machine": machine, "running": false, "disks": [], "phases": [], "hooks": [], "notes": [],
            "read_bytes": 0, "changed_bytes": 0, "stored_bytes": 0, "owes": false, "damaged_lines": 0
        }))
        .unwrap()
    };
    Chapter {
        status,
        points,
        jobs: (0..newest_days_ago).map(failed).collect(),
    }
}

fn chapters() -> Vec<Chapter> {
    let reason = |level, text: &str, hint: &str| Reason {
        level,
        code: "late",
        text: text.to_owned(),
        hint: Some(hint.to_owned()),
    };
    let late = reason(
        Level::NotSafe,
        "the newest good point is 4 days old, and two due times have passed",
        "`coffre jobs --machine db01` shows what was tried",
    );
    let failed = reason(
        Level::Warning,
        "the last backup failed: cannot open vault `main` at s3://backups/coffre: connection refused",
        "check the network and the store; the same call may succeed later",
    );
    let less = reason(
        Level::Warning,
        "the newest good point is file-system-consistent, and application is wanted",
        "`coffre points mail01 -v` says why",
    );
    vec![
        chapter("db01", 3, Level::NotSafe, 4, vec![late, failed]),
        chapter("mail01", 11, Level::Warning, 0, vec![less]),
        chapter("files01", 23, Level::Safe, 0, Vec::new()),
        chapter("web01", 42, Level::Safe, 0, Vec::new()),
    ]
}

/// Everything that a reader of the page may hold against it.
const OVERFLOW: &str = "(() => {
  const wide = document.documentElement.clientWidth;
  const out = [...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > wide + 1 && !one.closest('thead'));
  return JSON.stringify([document.documentElement.scrollWidth - wide, out.slice(0, 5).map(one => one.outerHTML.slice(0, 80))]);
})()";
/// The contrast of the text of each kind with what lies behind it, the least of all (WCAG 2.1).
const CONTRAST: &str = "(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => { const f = [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const behind = one => { for (; one; one = one.parentElement) { const c = parse(getComputedStyle(one).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  let least = 99;
  for (const one of document.querySelectorAll('h1,h2,h3,p,td,li,.level,figcaption,summary,span')) {
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
})()";

#[test]
fn the_page_is_well_read_on_a_phone_and_at_a_desk_by_day_and_by_night() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    write(&file, &page::page("backup1", &chapters(), now(), &TimeZone::UTC)).unwrap();
    let mut browser = Browser::start();
    let mut backgrounds = Vec::new();
    for (name, width, height) in [("phone", 390, 844), ("narrow", 320, 640), ("desk", 1280, 900)] {
        for dark in [false, true] {
            let what = format!("{name}, {}", if dark { "dark" } else { "light" });
            browser.open(&file, Look { width, height, dark });
            assert_eq!(browser.ask(OVERFLOW), "[0,[]]", "{what}");
            assert_eq!(browser.complaints(), [] as [serde_json::Value; 0], "{what}");
            assert_eq!(
                browser.requests(),
                [format!("file://{}", file.display())],
                "{what}: nothing else is fetched"
            );
            let contrast = browser.ask(CONTRAST).as_f64().unwrap();
            assert!(contrast >= 4.5, "{what}: {contrast}");
            backgrounds.push(browser.ask("getComputedStyle(document.body).backgroundColor"));
            if let Ok(pictures) = std::env::var(PICTURES)
                && name != "narrow"
            {
                let name = format!("report-{name}-{}.webp", if dark { "dark" } else { "light" });
                let pictures = PathBuf::from(pictures);
                std::fs::write(pictures.join(name), browser.picture()).unwrap();
                if width > 1000 && !dark {
                    browser.ask("document.querySelector('details').scrollIntoView()");
                    std::fs::write(pictures.join("report-machine-light.webp"), browser.picture()).unwrap();
                }
            }
        }
    }
    backgrounds.dedup();
    assert_eq!(backgrounds.len(), 6, "night is not day: {backgrounds:?}");

    // What is not safe comes first, and the pictures are there.
    let first = browser.ask("document.querySelector('section .card b').textContent");
    assert_eq!(first, "db01");
    let number =
        |browser: &mut Browser, selector: &str| browser.ask(&format!("document.querySelectorAll({selector:?}).length"));
    assert_eq!(number(&mut browser, ".card.bad"), 2);
    assert_eq!(number(&mut browser, "details.card[open] svg.calendar"), 4);
    assert_eq!(number(&mut browser, "svg.regions"), 8);
    assert_eq!(number(&mut browser, "svg.chart"), 12);
    // Four days without a point and with failures only.
    assert_eq!(
        number(&mut browser, "details:first-of-type svg.calendar rect.failed"),
        4
    );
}

#[test]
fn a_text_that_looks_like_html_is_a_text() {
    let mut chapters = chapters();
    chapters[0].status.reasons[0].text = "<script>alert(1)</script>".to_owned();
    chapters[0].points[0].disks[0].id = "\"><img src=x>".to_owned();
    let page = page::page("<b>host", &chapters, now(), &TimeZone::UTC);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("<b>host"));
    assert!(page.contains("&lt;script&gt;alert(1)"));
}

#[test]
fn a_host_without_machines_has_a_page_too() {
    let page = page::page("backup1", &[], now(), &TimeZone::UTC);
    assert!(page.contains("The configuration has no machines."));
}

#[test]
fn a_thousand_machines_make_a_page_that_can_be_opened() {
    let chapters: Vec<Chapter> = (0..1000)
        .map(|seed| chapter(&format!("m{seed:04}"), seed, Level::Safe, 0, Vec::new()))
        .collect();
    let bytes = page::page("backup1", &chapters, now(), &TimeZone::UTC).len();
    assert!(bytes < 100 << 20, "{bytes}");
}
