//! Who is safe, and what is said of who is not.

use std::path::Path;

use super::*;
use crate::progress::ProgressView;

const CONFIG: &str = r#"
[vault.main]
url = "vault"
encryption = "none"

[policy.daily]
consistency = "application"
accept = "file-system"

[machine.web01]
provider = "image"
policy = "daily"
"#;

fn hour(hours: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + hours * 3600).unwrap()
}

fn now() -> Timestamp {
    hour(0)
}

/// Daily, the last time `hours` ago.
fn daily(hours: i64) -> Due {
    Due {
        last: Some(hour(-hours)),
        before_last: Some(hour(-hours - 24)),
        next: Some(hour(24 - hours)),
    }
}

fn newest(hours: i64, reached: Consistency) -> Newest {
    Newest {
        vault: "main".to_owned(),
        machine: "web01".to_owned(),
        reached,
        number: 7,
        taken_at: hour(hours),
        size_bytes: 1 << 30,
    }
}

fn with(points: Vec<Newest>) -> Known {
    let place = ("main".to_owned(), "web01".to_owned());
    let shelf = Shelf {
        points: points.len() as u64,
        stored_bytes: 10,
    };
    Known {
        newest: points,
        shelves: BTreeMap::from([(place.clone(), shelf)]),
        scans: BTreeMap::from([(place, hour(-1))]),
        ..Known::default()
    }
}

fn last_job(outcome: JobOutcome) -> BTreeMap<String, LastJob> {
    let job = LastJob {
        id: "20260921T120000-0001".to_owned(),
        started_at: Some(hour(-1)),
        ended_at: Some(hour(-1)),
        outcome: Some(outcome),
        error: Some("the store is full".to_owned()),
        hint: Some("make room".to_owned()),
        point: None,
    };
    BTreeMap::from([("web01".to_owned(), job)])
}

fn turn(state: TurnState) -> BTreeMap<String, Turn> {
    let turn = Turn {
        due: hour(-3),
        attempts: 1,
        try_at: None,
        state,
        error: None,
    };
    BTreeMap::from([("web01".to_owned(), turn)])
}

/// The level, and the codes of the reasons.
fn judged(known: &Known, due: Due) -> (Level, Vec<&'static str>) {
    let config = Config::parse(Path::new("/etc/coffre/coffre.toml"), CONFIG).unwrap();
    let machines = judge(&config, known, |_| due, now());
    assert_eq!(machines.len(), 1);
    assert_eq!(worst(&machines), machines[0].level);
    let codes = machines[0].reasons.iter().map(|reason| reason.code).collect();
    (machines[0].level, codes)
}

#[test]
fn a_point_of_the_last_due_time_is_safe() {
    let known = with(vec![newest(-3, Consistency::Application)]);
    assert_eq!(judged(&known, daily(3)), (Level::Safe, vec![]));
}

#[test]
fn a_point_of_the_time_before_is_safe_while_the_run_is_on_its_way() {
    let mut known = with(vec![newest(-27, Consistency::Application)]);
    assert_eq!(judged(&known, daily(3)), (Level::Warning, vec!["late"]));
    let just_due = with(vec![newest(-24, Consistency::Application)]);
    assert_eq!(judged(&just_due, daily(0)).0, Level::Safe, "it has only just come");
    known.turns = turn(TurnState::Waiting);
    assert_eq!(judged(&known, daily(3)).0, Level::Safe, "it waits for its turn");
    known.turns.clear();
    known.running.push(RunningJob {
        machine: "web01".to_owned(),
        job: "j".to_owned(),
        process: 1,
        since: hour(-2),
        at: now(),
        progress: ProgressView::default(),
    });
    assert_eq!(judged(&known, daily(3)).0, Level::Safe, "it runs");
}

#[test]
fn two_due_times_without_a_good_point_are_not_safe_whatever_runs() {
    let mut known = with(vec![newest(-30, Consistency::Application)]);
    known.turns = turn(TurnState::Running);
    assert_eq!(judged(&known, daily(3)), (Level::NotSafe, vec!["late"]));
    // A newer one that is worth less than the policy accepts does not count.
    let known = with(vec![
        newest(-30, Consistency::Application),
        newest(-1, Consistency::Crash),
    ]);
    assert_eq!(judged(&known, daily(3)).0, Level::NotSafe);
}

#[test]
fn what_is_less_than_wanted_failed_or_was_missed_is_a_warning() {
    let known = with(vec![newest(-3, Consistency::FileSystem)]);
    assert_eq!(judged(&known, daily(3)), (Level::Warning, vec!["downgraded"]));

    let mut known = with(vec![newest(-2, Consistency::Application)]);
    known.last_jobs = last_job(JobOutcome::Failed);
    assert_eq!(judged(&known, daily(3)), (Level::Warning, vec!["failed"]));
    known.last_jobs = last_job(JobOutcome::Cancelled);
    assert_eq!(judged(&known, daily(3)).0, Level::Safe);

    known.turns = turn(TurnState::Missed);
    assert_eq!(judged(&known, daily(3)).0, Level::Safe, "a later point makes up for it");
    known.newest = vec![newest(-4, Consistency::Application)];
    assert_eq!(judged(&known, daily(3)), (Level::Warning, vec!["late", "missed"]));
}

#[test]
fn nothing_known_is_unknown_and_nothing_there_is_not_safe() {
    assert_eq!(judged(&Known::default(), daily(3)), (Level::Unknown, vec!["not-known"]));
    assert_eq!(judged(&with(vec![]), daily(3)), (Level::NotSafe, vec!["no-point"]));
    let known = with(vec![newest(-1, Consistency::Crash)]);
    assert_eq!(judged(&known, daily(3)), (Level::NotSafe, vec!["no-good-point"]));
    let known = Known {
        last_jobs: last_job(JobOutcome::Failed),
        ..Known::default()
    };
    assert_eq!(judged(&known, daily(3)), (Level::NotSafe, vec!["no-point", "failed"]));
}

#[test]
fn without_a_schedule_age_decides() {
    let level = |hours: i64| judged(&with(vec![newest(-hours, Consistency::Application)]), Due::default()).0;
    assert_eq!(
        (level(47), level(49), level(169)),
        (Level::Safe, Level::Warning, Level::NotSafe)
    );
    let first = Due {
        next: Some(hour(1)),
        ..Due::default()
    };
    assert_eq!(
        judged(&with(vec![newest(-500, Consistency::Application)]), first).0,
        Level::Safe
    );
}

#[test]
fn the_worst_come_first() {
    let config = format!("{CONFIG}\n[machine.a]\nprovider = \"image\"\n[machine.z]\nprovider = \"image\"\n");
    let config = Config::parse(Path::new("/etc/coffre/coffre.toml"), &config).unwrap();
    let mut known = with(vec![newest(-3, Consistency::Application)]);
    known.scans.insert(("main".to_owned(), "z".to_owned()), now());
    let machines = judge(&config, &known, |_| daily(3), now());
    let order: Vec<_> = machines
        .iter()
        .map(|machine| (machine.machine.as_str(), machine.level))
        .collect();
    assert_eq!(
        order,
        [("z", Level::NotSafe), ("a", Level::Unknown), ("web01", Level::Safe)]
    );
}
