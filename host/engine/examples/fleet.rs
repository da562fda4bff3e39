//! A host with a thousand machines, made of a configuration and a book: `fleet FOLDER MACHINES POINTS`. Says what it costs to read
//! the configuration, to look at all machines, and to see what is new. `cargo xtask bench fleet` runs it.

#![allow(clippy::print_stdout, reason = "it is for whoever started it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use coffre_engine::book::{Attempt, Book, Turn, TurnState};
use coffre_engine::config::Config;
use coffre_engine::journal::JobOutcome;
use coffre_engine::news::{Told, Topic, news};
use coffre_engine::state::State;
use coffre_engine::status::{Due, Known, judge};
use coffre_vault::{Consistency, ConsistencyReached, Point, PointDisk, PointDraft, SessionNumber};
use jiff::{Timestamp, ToSpan};

/// The median of so many.
const TIMES: usize = 21;

fn main() {
    let mut words = std::env::args().skip(1);
    let mut next = || words.next().expect("usage: fleet FOLDER MACHINES POINTS");
    let (folder, machines, points) = (next(), next(), next());
    let folder = Path::new(&folder);
    let (machines, points): (usize, i64) = (machines.parse().expect("a number"), points.parse().expect("a number"));

    let file = folder.join("coffre.toml");
    fs::write(&file, configuration(folder, machines)).expect("the configuration is written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is made private");
    let config = Config::load(&file).expect("the configuration is right");
    let state = State::new(&config.coffre.state);
    let book = Book::open(&state).expect("the book opens");
    let now = Timestamp::now();
    for (number, name) in config.machines.keys().enumerate() {
        fill(&book, name, number, points, now);
    }

    tell("read the configuration", median(|| drop(Config::load(&file))));
    tell("open the book", median(|| drop(Book::open(&state))));
    let look = || {
        let known = Known::read(&book, Vec::new()).expect("the book is read");
        judge(&config, &known, |policy| Due::of(policy, now), now)
    };
    tell("look at all machines", median(|| drop(look())));
    let machines = look();
    tell(
        "see what is new",
        median(|| drop(news(&machines, &Told::new(), &Topic::ALL))),
    );
    println!("{:>12} {} KiB at most", "Memory", peak());
}

fn configuration(folder: &Path, machines: usize) -> String {
    let mut text = format!(
        "[coffre]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\ncache = \"{0}/cache\"\n[vault.main]\nurl = \"{0}/vault\"\n\
         encryption = \"none\"\n",
        folder.display()
    );
    for hour in 0..24 {
        text.push_str(&format!(
            "[policy.at-{hour:02}]\nschedule = \"daily {hour:02}:15 Europe/Paris\"\nkeep = {{ daily = 30 }}\n"
        ));
    }
    for number in 0..machines {
        text.push_str(&format!(
            "[machine.m{number:04}]\nprovider = \"image\"\npolicy = \"at-{:02}\"\nsettings = {{ images = \"/srv/m{number:04}\" }}\n",
            number % 24
        ));
    }
    text
}

/// Thirty days of points; now and then something went wrong.
fn fill(book: &Book, machine: &str, number: usize, points: i64, now: Timestamp) {
    let late = if number.is_multiple_of(97) { 3 * 24 } else { 0 };
    let point = |age: i64| Point {
        machine: machine.to_owned(),
        number: SessionNumber((points - age) as u32),
        committed_at: now,
        content: PointDraft {
            taken_at: now.checked_sub((age * 24 + late + 1).hours()).ok(),
            consistency: ConsistencyReached {
                reached: Consistency::Crash,
                ..ConsistencyReached::default()
            },
            disks: vec![PointDisk {
                id: "vda".to_owned(),
                size_bytes: 32 << 30,
                changed_bytes: 80 << 20,
                changed_regions: "0123456789abcdef".repeat(8),
                ..PointDisk::default()
            }],
            ..PointDraft::default()
        },
        ..Point::default()
    };
    let all: Vec<Point> = (0..points).rev().map(point).collect();
    book.write_points("main", machine, &all, now)
        .expect("points are written");
    let turn = Turn {
        due: now,
        attempts: 1,
        try_at: None,
        state: TurnState::Done,
        error: None,
    };
    book.write_turn(machine, &turn).expect("a turn is written");
    if number.is_multiple_of(50) {
        let attempt = Attempt {
            machine: machine.to_owned(),
            vault: Some("main".to_owned()),
            policy: None,
            started_at: now,
            ended_at: now,
            outcome: JobOutcome::Failed,
            error: "cannot open vault `main`: connection refused".to_owned(),
            hint: None,
        };
        book.write_attempt(&attempt).expect("an attempt is written");
    }
}

fn median(mut act: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let started = Instant::now();
            act();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[TIMES / 2]
}

fn tell(what: &str, took: Duration) {
    println!("{:>12} {what}: {took:.1?}", "Measured");
}

/// What this process held at most, in KiB.
fn peak() -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or("unknown");
    line.trim().trim_end_matches(" kB").to_owned()
}
