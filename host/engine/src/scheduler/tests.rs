//! What is started when, by example; a simulated year is in `year`.

mod year;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn plan(machine: &str, schedule: &str) -> Plan {
    Plan {
        machine: machine.to_owned(),
        schedule: Schedule::parse(schedule).unwrap(),
        jitter: Duration::ZERO,
        retry_within: Duration::from_secs(6 * 3600),
        windows: Vec::new(),
    }
}

fn scheduler(plans: Vec<Plan>, now: &str) -> Scheduler {
    Scheduler::new(plans, Places::new(2, 1), &BTreeMap::new(), &BTreeMap::new(), at(now))
}

fn started(actions: &[Action]) -> Vec<&str> {
    let name = |action: &'_ Action| match action {
        Action::Start { machine, .. } => Some(machine.as_str().to_owned()),
        _ => None,
    };
    // Leaked: tests are short, and names of theirs are too.
    actions.iter().filter_map(name).map(|name| &*name.leak()).collect()
}

fn told(actions: &[Action]) -> Vec<(Timestamp, u64, Fate)> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Tell(account) => Some((account.first, account.count, account.fate.clone())),
        _ => None,
    });
    told.collect()
}

fn failed() -> Ended {
    Ended::Failed {
        error: "no answer".to_owned(),
        again: true,
    }
}

#[test]
fn a_new_machine_waits_for_its_first_due_time() {
    let mut scheduler = scheduler(vec![plan("web01", "daily 02:00 UTC")], "2026-01-01T12:00Z");
    assert!(scheduler.tick(at("2026-01-01T12:00Z")).is_empty());
    assert_eq!(
        scheduler.next_wake(at("2026-01-01T12:00Z")),
        Some(at("2026-01-02T02:00Z"))
    );
    assert_eq!(started(&scheduler.tick(at("2026-01-02T02:00Z"))), ["web01"]);
    assert!(scheduler.tick(at("2026-01-02T02:00Z")).is_empty());
}

#[test]
fn what_was_due_while_nothing_ran_is_caught_up_once() {
    let plans = vec![plan("web01", "daily 02:00 UTC")];
    let mut before = scheduler(plans.clone(), "2026-01-01T12:00Z");
    let turns: BTreeMap<_, _> = before.take_changed().into_iter().collect();
    let now = at("2026-01-05T09:00Z");
    let mut after = Scheduler::new(plans, Places::new(1, 1), &turns, &BTreeMap::new(), now);
    let actions = after.tick(now);
    assert_eq!(told(&actions), [(at("2026-01-02T02:00Z"), 3, Fate::Missed)]);
    assert_eq!(started(&actions), ["web01"]);
    assert_eq!(after.turn("web01").unwrap().due, at("2026-01-05T02:00Z"));
    after.ended("web01", Ended::Done, now);
    assert!(after.tick(now).is_empty());
}

#[test]
fn a_lost_book_is_made_up_for_by_the_newest_point() {
    let plans = vec![plan("web01", "daily 02:00 UTC"), plan("web02", "daily 02:00 UTC")];
    let now = at("2026-01-05T09:00Z");
    let seen = [("web01", "2026-01-04T02:00:07Z"), ("web02", "2026-01-05T02:00:07Z")];
    let seen = seen.map(|(name, seen)| (name.to_owned(), at(seen))).into();
    let mut scheduler = Scheduler::new(plans, Places::new(2, 1), &BTreeMap::new(), &seen, now);
    assert_eq!(started(&scheduler.tick(now)), ["web01"]);
}

#[test]
fn what_is_due_while_a_job_runs_is_caught_up_when_it_ends() {
    let mut scheduler = scheduler(vec![plan("web01", "hourly UTC")], "2026-01-01T00:30Z");
    assert_eq!(started(&scheduler.tick(at("2026-01-01T01:00Z"))), ["web01"]);
    assert!(scheduler.tick(at("2026-01-01T03:30Z")).is_empty());
    scheduler.ended("web01", Ended::Done, at("2026-01-01T04:10Z"));
    let actions = scheduler.tick(at("2026-01-01T04:10Z"));
    assert_eq!(told(&actions), [(at("2026-01-01T02:00Z"), 2, Fate::Overtaken)]);
    assert_eq!(started(&actions), ["web01"]);
}

#[test]
fn a_failed_job_is_tried_again_later_and_later_within_its_window() {
    let mut scheduler = scheduler(vec![plan("web01", "daily 02:00 UTC")], "2026-01-01T12:00Z");
    let mut now = at("2026-01-02T02:00Z");
    let mut tries = Vec::new();
    let end = loop {
        assert_eq!(started(&scheduler.tick(now)), ["web01"]);
        tries.push(now.strftime("%H:%M").to_string());
        if let Some(account) = scheduler.ended("web01", failed(), now) {
            break account;
        }
        now = scheduler.next_wake(now).unwrap();
    };
    assert_eq!(
        tries,
        [
            "02:00", "02:01", "02:03", "02:07", "02:15", "02:31", "03:03", "04:03", "05:03", "06:03", "07:03"
        ]
    );
    assert_eq!((end.attempts, end.fate), (11, Fate::Failed("no answer".to_owned())));
    assert_eq!(scheduler.next_wake(now), Some(at("2026-01-03T02:00Z")));
}

#[test]
fn another_try_that_cannot_help_is_not_made() {
    let mut scheduler = scheduler(vec![plan("web01", "daily 02:00 UTC")], "2026-01-01T12:00Z");
    scheduler.tick(at("2026-01-02T02:00Z"));
    let wrong = Ended::Failed {
        error: "no such disk".to_owned(),
        again: false,
    };
    let account = scheduler.ended("web01", wrong, at("2026-01-02T02:01Z")).unwrap();
    assert_eq!(account.fate, Fate::Failed("no such disk".to_owned()));
    assert!(scheduler.tick(at("2026-01-02T03:00Z")).is_empty());
}

#[test]
fn places_bound_what_goes_on_at_once_and_go_to_who_waits_longest() {
    let plans = ["a", "b", "c", "d"].map(|name| plan(name, "daily 02:00 UTC")).to_vec();
    let mut scheduler = scheduler(plans, "2026-01-01T12:00Z");
    let now = at("2026-01-02T02:00Z");
    assert_eq!(started(&scheduler.tick(now)), ["a", "b"]);
    // With its snapshot, a job gives its place back; one transfers at a time.
    scheduler.snapshot_taken("b");
    let transfer = |machine: &str| Action::Transfer {
        machine: machine.to_owned(),
    };
    let actions = scheduler.tick(now);
    assert_eq!(started(&actions), ["c"]);
    assert!(actions.contains(&transfer("b")));
    scheduler.snapshot_taken("c");
    scheduler.snapshot_taken("a");
    assert_eq!(started(&scheduler.tick(now)), ["d"]);
    scheduler.ended("b", Ended::Done, now);
    assert_eq!(scheduler.tick(now), [transfer("c")]);
    scheduler.ended("c", Ended::Done, now);
    assert_eq!(scheduler.tick(now), [transfer("a")]);
}

#[test]
fn a_transfer_waits_for_its_window_and_lets_others_pass() {
    let night = Plan {
        windows: vec![Window::parse("22:00-06:00 UTC").unwrap()],
        ..plan("a", "daily 12:00 UTC")
    };
    let mut scheduler = scheduler(vec![night, plan("b", "daily 13:00 UTC")], "2026-01-01T09:00Z");
    let noon = at("2026-01-01T12:00Z");
    assert_eq!(started(&scheduler.tick(noon)), ["a"]);
    scheduler.snapshot_taken("a");
    assert!(scheduler.tick(noon).is_empty());
    assert_eq!(scheduler.next_wake(noon), Some(at("2026-01-01T12:01Z")));
    let one = at("2026-01-01T13:00Z");
    scheduler.tick(one);
    scheduler.snapshot_taken("b");
    let transfer = |machine: &str| Action::Transfer {
        machine: machine.to_owned(),
    };
    assert_eq!(scheduler.tick(one), [transfer("b")]);
    scheduler.ended("b", Ended::Done, one);
    assert!(scheduler.tick(at("2026-01-01T21:59Z")).is_empty());
    assert_eq!(scheduler.tick(at("2026-01-01T22:00Z")), [transfer("a")]);
}

#[test]
fn jitter_is_always_the_same_for_a_machine_and_spreads_many() {
    let delay = |machine: &str| retry::jitter(machine, Duration::from_secs(3600));
    assert_eq!(delay("web01"), delay("web01"));
    let delays: BTreeSet<Duration> = (0..1000).map(|number| delay(&format!("web{number:03}"))).collect();
    assert!(delays.len() > 990);
    let quarters = [0, 1, 2, 3].map(|quarter| {
        let within = |delay: &&Duration| delay.as_secs() / 900 == quarter;
        delays.iter().filter(within).count()
    });
    assert!(quarters.iter().all(|count| (200..300).contains(count)), "{quarters:?}");
    assert_eq!(retry::jitter("web01", Duration::ZERO), Duration::ZERO);
}

#[test]
fn a_clock_that_was_ahead_does_not_stop_backups() {
    let plans = vec![plan("web01", "daily 02:00 UTC")];
    let ahead = Turn {
        due: at("2031-01-01T02:00Z"),
        attempts: 1,
        try_at: None,
        state: TurnState::Done,
        error: None,
    };
    let now = at("2026-01-01T12:00Z");
    let turns = [("web01".to_owned(), ahead)].into();
    let mut scheduler = Scheduler::new(plans, Places::new(1, 1), &turns, &BTreeMap::new(), now);
    assert!(scheduler.tick(now).is_empty());
    assert_eq!(started(&scheduler.tick(at("2026-01-02T02:00Z"))), ["web01"]);
    // Put back by seconds right after the start: not due again.
    scheduler.ended("web01", Ended::Done, at("2026-01-02T02:00:01Z"));
    assert!(scheduler.tick(at("2026-01-02T01:59:58Z")).is_empty());
    assert!(scheduler.tick(at("2026-01-02T02:00:05Z")).is_empty());
}

#[test]
fn a_job_that_died_is_tried_at_once_and_one_that_always_dies_is_not() {
    let plans = vec![plan("web01", "daily 02:00 UTC")];
    let mut turns = BTreeMap::new();
    let mut now = at("2026-01-02T02:00Z");
    let mut starts = Vec::new();
    for _ in 0..4 {
        let mut scheduler = Scheduler::new(plans.clone(), Places::new(1, 1), &turns, &BTreeMap::new(), now);
        if turns.is_empty() {
            now = at("2026-01-03T02:00Z");
        }
        while started(&scheduler.tick(now)).is_empty() {
            now = scheduler.next_wake(now).unwrap();
        }
        starts.push(now.strftime("%H:%M:%S").to_string());
        turns = scheduler.take_changed().into_iter().collect();
        // It is killed two seconds later.
        now += SignedDuration::from_secs(2);
    }
    assert_eq!(starts, ["02:00:00", "02:00:02", "02:01:04", "02:03:06"]);
}

#[test]
fn a_stopped_job_is_no_attempt_and_goes_on_at_the_next_start() {
    let plans = vec![plan("web01", "daily 02:00 UTC")];
    let mut scheduler = scheduler(plans.clone(), "2026-01-01T12:00Z");
    let now = at("2026-01-02T02:00Z");
    scheduler.tick(now);
    assert_eq!(scheduler.ended("web01", Ended::Stopped, now), None);
    let turns: BTreeMap<_, _> = scheduler.take_changed().into_iter().collect();
    let later = at("2026-01-02T02:05Z");
    let mut again = Scheduler::new(plans, Places::new(1, 1), &turns, &BTreeMap::new(), later);
    let start = Action::Start {
        machine: "web01".to_owned(),
        due: now,
        attempt: 1,
    };
    assert_eq!(again.tick(later), [start]);
}

#[test]
fn a_new_schedule_begins_with_its_own_next_due_time() {
    let mut scheduler = scheduler(
        vec![plan("web01", "daily 02:00 UTC"), plan("old", "hourly UTC")],
        "2026-01-01T12:00Z",
    );
    let now = at("2026-01-01T12:30Z");
    let told = scheduler.reload(
        vec![plan("web01", "daily 12:00 UTC"), plan("new", "hourly UTC")],
        Places::new(1, 1),
        now,
    );
    assert!(told.is_empty());
    assert!(scheduler.tick(now).is_empty());
    assert_eq!(started(&scheduler.tick(at("2026-01-01T13:00Z"))), ["new"]);
    scheduler.ended("new", Ended::Done, at("2026-01-01T13:01Z"));
    assert!(scheduler.turn("old").is_none());
    // By its schedule until then, it would have been due at 02:00.
    assert_eq!(started(&scheduler.tick(at("2026-01-02T02:00Z"))), ["new"]);
    scheduler.ended("new", Ended::Done, at("2026-01-02T02:01Z"));
    let actions = scheduler.tick(at("2026-01-02T12:00Z"));
    assert!(started(&actions).contains(&"new") || started(&actions).contains(&"web01"));
}

#[test]
fn a_machine_that_is_gone_ends_its_job_first() {
    let mut scheduler = scheduler(vec![plan("web01", "hourly UTC")], "2026-01-01T12:00Z");
    let now = at("2026-01-01T13:00Z");
    scheduler.tick(now);
    scheduler.reload(Vec::new(), Places::new(1, 1), now);
    assert_eq!(scheduler.running().collect::<Vec<_>>(), ["web01"]);
    scheduler.ended("web01", Ended::Done, now);
    assert_eq!(scheduler.running().count(), 0);
    assert_eq!(scheduler.next_wake(now), None);
}
