//! The book: what is written is read, by several processes, after crashes and damage.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use coffre_vault::{ConsistencyReached, PointDisk, PointDraft, SessionNumber};
use proptest::prelude::*;

use super::*;
use crate::job::JobView;
use crate::journal::{Ended, Event, JobOutcome, Journal};
use crate::machine::Consistency;

const MICROSECOND: i64 = 1_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn turn(attempts: u32) -> Turn {
    Turn {
        due: at(0),
        attempts,
        try_at: Some(at(60)),
        state: TurnState::Waiting,
        error: Some("no way".to_owned()),
    }
}

fn point(number: u32, reached: Consistency) -> coffre_vault::Point {
    coffre_vault::Point {
        machine: "web01".to_owned(),
        number: SessionNumber(number),
        committed_at: at(i64::from(number) + 5),
        content: PointDraft {
            taken_at: Some(at(i64::from(number))),
            consistency: ConsistencyReached {
                reached,
                ..ConsistencyReached::default()
            },
            disks: vec![PointDisk {
                id: "vda".to_owned(),
                size_bytes: 1 << 30,
                changed_bytes: 7,
                ..PointDisk::default()
            }],
            ..PointDraft::default()
        },
        ..coffre_vault::Point::default()
    }
}

fn job(id: &str, second: i64, outcome: Option<JobOutcome>, point: Option<u32>) -> JobView {
    JobView {
        started_at: Some(at(second)),
        outcome,
        point,
        ..JobView::bare(id, "web01")
    }
}

/// A folder with a book.
struct Place {
    _folder: tempfile::TempDir,
    state: State,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = State::new(folder.path());
        Self { _folder: folder, state }
    }

    fn book(&self) -> Book {
        Book::open(&self.state).unwrap()
    }
}

#[test]
fn a_turn_is_read_as_it_was_written() {
    let place = Place::new();
    let book = place.book();
    assert_eq!(book.turn("web01").unwrap(), None);
    book.write_turn("web01", &turn(1)).unwrap();
    let later = Turn {
        state: TurnState::Missed,
        try_at: None,
        error: None,
        ..turn(2)
    };
    book.write_turn("db01", &later).unwrap();
    book.write_turn("web01", &turn(3)).unwrap();
    assert_eq!(place.book().turn("web01").unwrap(), Some(turn(3)));
    let all = BTreeMap::from([("db01".to_owned(), later), ("web01".to_owned(), turn(3))]);
    assert_eq!(book.turns().unwrap(), all);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_turn_comes_back(due in any::<i32>(), attempts: u32, try_at in proptest::option::of(0..i64::from(u32::MAX)),
                             state in 0..5_usize, error in proptest::option::of(".*")) {
        let place = Place::new();
        let states = [TurnState::Waiting, TurnState::Running, TurnState::Done, TurnState::Failed, TurnState::Missed];
        let turn = Turn {
            due: Timestamp::from_second(i64::from(due)).unwrap(),
            attempts,
            try_at: try_at.map(|us| Timestamp::from_microsecond(us * MICROSECOND + 1).unwrap()),
            state: states[state],
            error,
        };
        place.book().write_turn("m", &turn).unwrap();
        prop_assert_eq!(place.book().turn("m").unwrap(), Some(turn));
    }
}

#[test]
fn points_are_those_of_the_last_reading_and_what_was_changed_since() {
    let place = Place::new();
    let book = place.book();
    assert_eq!(book.scans().unwrap(), BTreeMap::new());
    let (crash, application) = (Consistency::Crash, Consistency::Application);
    let all = [point(1, application), point(2, application), point(3, crash)];
    book.write_points("main", "web01", &all, at(10)).unwrap();
    book.write_point("main", &point(4, crash)).unwrap();
    let numbers = |book: &Book| {
        let points = book.points("main", "web01").unwrap();
        points.iter().map(|point| point.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&book), [1, 2, 3, 4]);
    let newest: Vec<_> = book
        .newest()
        .unwrap()
        .iter()
        .map(|newest| (newest.reached, newest.number))
        .collect();
    assert_eq!(newest, [(crash, 4), (application, 2)]);

    let forgotten = coffre_vault::Point {
        fate: coffre_vault::Fate::Forgotten,
        ..point(2, application)
    };
    book.write_point("main", &forgotten).unwrap();
    let newest: Vec<_> = book.newest().unwrap().iter().map(|newest| newest.number).collect();
    assert_eq!(newest, [4, 1], "a forgotten point keeps no machine safe");
    assert_eq!(
        book.shelves().unwrap()[&("main".to_owned(), "web01".to_owned())].points,
        4
    );

    // Somebody else has purged one.
    book.write_points("main", "web01", &all[1..], at(20)).unwrap();
    assert_eq!(numbers(&place.book()), [2, 3]);
    assert_eq!(book.scans().unwrap().into_values().collect::<Vec<_>>(), [at(20)]);
    let purged = coffre_vault::Point {
        fate: coffre_vault::Fate::Purged,
        ..point(2, application)
    };
    book.write_point("main", &purged).unwrap();
    assert_eq!(numbers(&book), [3]);
}

#[test]
fn the_last_backup_is_the_newest_that_has_ended() {
    let place = Place::new();
    let book = place.book();
    for job in [
        job("a", 1, Some(JobOutcome::Done), Some(1)),
        job("b", 2, Some(JobOutcome::Failed), None),
        // Neither was to make a point.
        job("c", 3, Some(JobOutcome::Done), None),
        job("d", 4, Some(JobOutcome::Rehearsed), None),
        job("e", 5, None, None),
    ] {
        book.write_job(&job).unwrap();
    }
    assert_eq!(book.last_jobs().unwrap()["web01"].id, "b");
    let ids = |jobs: Vec<JobView>| jobs.into_iter().map(|job| job.id).collect::<String>();
    assert_eq!(ids(book.jobs(None, 3).unwrap()), "edc");
    assert_eq!(ids(book.jobs(Some("web02"), 3).unwrap()), "");
    book.write_job(&job("e", 5, Some(JobOutcome::Downgraded), Some(2)))
        .unwrap();
    assert_eq!(book.last_jobs().unwrap()["web01"].id, "e");
    assert_eq!(book.job("e").unwrap().unwrap().point, Some(2));

    let attempt = Attempt {
        machine: "web01".to_owned(),
        vault: Some("main".to_owned()),
        policy: None,
        started_at: at(6),
        ended_at: at(7),
        outcome: JobOutcome::Failed,
        error: "cannot open vault `main`".to_owned(),
        hint: None,
    };
    let id = book.write_attempt(&attempt).unwrap();
    assert_eq!(book.last_jobs().unwrap()["web01"].error, Some(attempt.error));
    let failures = book.failures_since(at(2)).unwrap();
    assert_eq!(failures["web01"], 2);
    assert_eq!(book.job(&id[..id.len() - 1]).unwrap().unwrap().id, id);
}

#[test]
fn old_jobs_leave_the_book() {
    let place = Place::new();
    let book = place.book();
    for number in 0..crate::journal::JOBS_KEPT as i64 + 2 {
        let id = format!("{number:04}");
        book.write_job(&job(&id, number, Some(JobOutcome::Done), None)).unwrap();
    }
    let left = book.jobs(None, usize::MAX).unwrap();
    assert_eq!(left.len(), crate::journal::JOBS_KEPT);
    assert_eq!(left.last().unwrap().id, "0002");
}

fn damage(path: &Path, offset: u64) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&[0xa5; 64 * 1024]).unwrap();
}

#[test]
fn a_damaged_book_is_begun_anew_and_has_the_jobs_of_the_journals() {
    // Its first page, and what comes after it: found when it is opened, and when it is read.
    for offset in [0, 4096] {
        let place = Place::new();
        let (id, mut journal) = Journal::create(&place.state, "web01", at(1)).unwrap();
        let ended = Ended {
            outcome: JobOutcome::Failed,
            error: Some("full".to_owned()),
            hint: None,
            read_bytes: 0,
            changed_bytes: 0,
            stored_bytes: 0,
        };
        journal.append(at(2), Event::Ended(ended)).unwrap();
        drop(journal);
        let other = place.book();
        other.write_turn("web01", &turn(1)).unwrap();
        other
            .read("move all into the file", |book| {
                book.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            })
            .unwrap();
        damage(other.path(), offset);

        let book = place.book();
        assert_eq!(book.turns().unwrap(), BTreeMap::new());
        assert_eq!(book.last_jobs().unwrap()["web01"].id, id);
        assert!(place.state.folder().join("book.sqlite.damaged").exists());
        // Who had the damaged one open goes on with the new one.
        book.write_turn("web01", &turn(2)).unwrap();
        assert_eq!(other.turn("web01").unwrap(), Some(turn(2)));
        other.write_turn("web01", &turn(3)).unwrap();
        drop(other);
        assert_eq!(book.turn("web01").unwrap(), Some(turn(3)));
    }
}

#[test]
fn a_document_that_cannot_be_read_is_damage() {
    let place = Place::new();
    let book = place.book();
    book.write_job(&job("a", 1, Some(JobOutcome::Done), Some(1))).unwrap();
    book.write("spoil it", |book| book.execute("UPDATE job SET document = '{'", []))
        .unwrap();
    assert_eq!(book.jobs(None, 9).unwrap(), []);
}

#[test]
fn a_book_that_was_removed_is_made_again() {
    let place = Place::new();
    let book = place.book();
    book.write_turn("web01", &turn(1)).unwrap();
    fs::remove_file(book.path()).unwrap();
    assert_eq!(book.turn("web01").unwrap(), None);
    book.write_turn("web01", &turn(2)).unwrap();
    assert_eq!(place.book().turn("web01").unwrap(), Some(turn(2)));
}

#[test]
fn a_book_of_a_newer_version_is_left_alone() {
    let place = Place::new();
    place
        .book()
        .write("grow old", |book| {
            book.pragma_update(None, "user_version", schema::VERSION + 1)
        })
        .unwrap();
    let error = Book::open(&place.state).unwrap_err();
    assert!(matches!(error, BookError::Newer { .. }), "{error}");
    assert!(error.hint().unwrap().contains("filled again"));
}

#[test]
fn nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.book().write_turn("web01", &turn(1)).unwrap();
    for entry in fs::read_dir(place.state.folder()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
    }
}

/// Names the state folder for [`a_writer`], which is no test but what the others start as a process of its own.
const WRITER: &str = "COFFRE_TEST_BOOK_WRITER";

/// Writes turns and points of its machine in pairs, one change each, and says how far it is.
#[test]
#[ignore = "the process that other tests start"]
#[allow(clippy::print_stdout, reason = "the others read it")]
fn a_writer() {
    let place = std::env::var(WRITER).unwrap();
    let (folder, machine) = place.split_once(' ').unwrap();
    let book = Book::open(&State::new(Path::new(folder))).unwrap();
    for attempts in 1.. {
        let both = |book: &Connection| {
            book.execute(
                "INSERT OR REPLACE INTO turn VALUES (?1, 0, ?2, NULL, 'done', NULL)",
                rusqlite::params![machine, attempts],
            )?;
            book.execute(
                "INSERT OR REPLACE INTO scan VALUES ('main', ?1, ?2)",
                rusqlite::params![machine, attempts],
            )
        };
        book.write("write a pair", both).unwrap();
        println!("written {attempts}");
    }
}

struct Writer {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(state: &State, machine: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "book::tests::a_writer", "--ignored", "--nocapture"])
            .env(WRITER, format!("{} {machine}", state.folder().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    fn next(&mut self) -> i64 {
        loop {
            let mut line = String::new();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "the writer ended");
            if let Some((_, number)) = line.trim().split_once("written ") {
                return number.parse().unwrap();
            }
        }
    }

    /// What it had said it had written when it was killed.
    fn kill(mut self) -> i64 {
        let before = self.next();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        let numbers = rest
            .lines()
            .filter_map(|line| line.strip_prefix("written ")?.parse().ok());
        numbers.max().unwrap_or(before)
    }
}

#[test]
fn several_processes_write_and_kill_9_leaves_whole_changes() {
    let place = Place::new();
    let book = place.book();
    for round in 0..8 {
        let names = ["web01", "web02", "web03"];
        let mut writers: Vec<Writer> = names.iter().map(|name| Writer::start(&place.state, name)).collect();
        for writer in &mut writers {
            for _ in 0..20 + round {
                writer.next();
            }
        }
        for (name, writer) in names.iter().zip(writers) {
            let said = writer.kill();
            let turn = book.turn(name).unwrap().unwrap();
            let pair = to_micros(book.scans().unwrap()[&("main".to_owned(), (*name).to_owned())]);
            assert_eq!(i64::from(turn.attempts), pair, "half a change of {name}");
            assert!(pair >= said, "{name} had written {said}, and {pair} is there");
        }
    }
    book.read("check", |book| {
        let word: String = book.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        assert_eq!(word, "ok");
        Ok(())
    })
    .unwrap();
    assert!(!place.state.folder().join("book.sqlite.damaged").exists());
}

#[test]
fn a_thousand_machines_are_read_in_a_moment() {
    let place = Place::new();
    let book = place.book();
    let points: Vec<_> = (1..=30).map(|number| point(number, Consistency::Application)).collect();
    for machine in 0..1000 {
        book.write_points("main", &format!("m{machine:04}"), &points_of(machine, &points), at(0))
            .unwrap();
        book.write_turn(&format!("m{machine:04}"), &turn(1)).unwrap();
    }
    let started = Instant::now();
    let (newest, turns, shelves) = (book.newest().unwrap(), book.turns().unwrap(), book.shelves().unwrap());
    let took = started.elapsed();
    assert_eq!((newest.len(), turns.len(), shelves.len()), (1000, 1000, 1000));
    assert!(took < Duration::from_millis(500), "{took:?}");
}

fn points_of(machine: u32, points: &[coffre_vault::Point]) -> Vec<coffre_vault::Point> {
    let named = |point: &coffre_vault::Point| coffre_vault::Point {
        machine: format!("m{machine:04}"),
        ..point.clone()
    };
    points.iter().map(named).collect()
}

#[test]
fn every_job_is_counted_once() {
    let place = Place::new();
    let book = place.book();
    let done = JobView {
        ended_at: Some(at(3)),
        read_bytes: 5,
        ..job("a", 1, Some(JobOutcome::Done), Some(1))
    };
    book.write_job(&job("a", 1, None, None)).unwrap();
    book.write_job(&done).unwrap();
    book.write_job(&done).unwrap();
    book.write_job(&JobView {
        id: "b".to_owned(),
        ..done
    })
    .unwrap();
    let tally = Tally {
        machine: "web01".to_owned(),
        outcome: "done".to_owned(),
        jobs: 2,
        read_bytes: 10,
        changed_bytes: 0,
        stored_bytes: 0,
        took_ms: 4000,
    };
    assert_eq!(book.tallies().unwrap(), [tally]);
}

#[test]
fn what_a_channel_was_told_is_its_own() {
    let place = Place::new();
    let book = place.book();
    let troubles = std::collections::BTreeSet::from([("failed".to_owned(), "died".to_owned())]);
    let told = crate::news::Told::from([("web01".to_owned(), troubles)]);
    book.write_told("ops", &told).unwrap();
    assert_eq!(book.told("chat").unwrap(), crate::news::Told::new());
    assert_eq!(place.book().told("ops").unwrap(), told);
    book.write_told("ops", &crate::news::Told::new()).unwrap();
    assert_eq!(book.told("ops").unwrap(), crate::news::Told::new());
}
