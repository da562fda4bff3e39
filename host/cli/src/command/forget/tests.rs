//! What people read before and after points go, and what is refused.

use std::collections::BTreeSet;
use std::path::Path;

use coffre_vault::{Consistency, Fate, Pin, Point, PointDraft};
use insta::assert_snapshot;

use super::*;
use crate::args::Target;

const CONFIG: &str = r#"
[vault.main]
url = "vault"
encryption = "none"

[policy.daily]
schedule = "daily 02:00 UTC"
consistency = "application"
accept = "file-system"
keep = { daily = 2, weekly = 2 }

[machine.web01]
provider = "image"
policy = "daily"

[machine.db01]
provider = "image"
"#;

fn config() -> Config {
    Config::parse(Path::new("/etc/coffre/coffre.toml"), CONFIG).unwrap()
}

fn args(targets: &[&str]) -> ForgetArgs {
    let target = |text: &&str| match text.split_once('@') {
        Some((machine, point)) => Target {
            machine: machine.to_owned(),
            point: Some(point.parse().unwrap()),
        },
        None => Target {
            machine: (*text).to_owned(),
            point: None,
        },
    };
    ForgetArgs {
        targets: targets.iter().map(target).collect(),
        all: false,
        policy: None,
        retire: false,
        dry_run: false,
        vault: None,
    }
}

fn retire(targets: &[&str]) -> ForgetArgs {
    ForgetArgs {
        retire: true,
        ..args(targets)
    }
}

fn point(number: u32, taken_at: &str, reached: Consistency) -> Point {
    let mut content = PointDraft {
        taken_at: Some(taken_at.parse().unwrap()),
        ..PointDraft::default()
    };
    content.consistency.reached = reached;
    Point {
        machine: "web01".to_owned(),
        number: SessionNumber(number),
        content,
        ..Point::default()
    }
}

fn points() -> Vec<Point> {
    let mut points = vec![
        point(0, "2026-11-01T02:00:00Z", Consistency::Application),
        point(1, "2026-11-19T02:00:00Z", Consistency::Application),
        point(2, "2026-11-20T02:00:00Z", Consistency::Application),
        point(3, "2026-11-21T02:00:00Z", Consistency::FileSystem),
        point(4, "2026-11-22T02:00:00Z", Consistency::Application),
        point(5, "2026-11-23T02:00:00Z", Consistency::Crash),
    ];
    points[0].pin = Some(Pin {
        at: Timestamp::UNIX_EPOCH,
        reason: Some("audit".to_owned()),
    });
    points[1].fate = Fate::Forgotten;
    points
}

fn only(args: &ForgetArgs) -> Choice {
    let mut choices = choice::choose(&config(), args).unwrap();
    assert_eq!(choices.len(), 1);
    choices.remove(0)
}

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

/// What is shown with a dry run, without the times, which are those of whoever looks.
fn shown(args: &ForgetArgs) -> String {
    let choice = only(args);
    let mut rows = choice
        .rows(&points(), &BTreeSet::new(), now())
        .unwrap_or_else(|error| panic!("{error}: {:?}", error.hint));
    for row in &mut rows {
        row.taken_at = None;
    }
    let entry = Entry {
        machine: choice.machine.clone(),
        vault: None,
        policy: None,
        outcome: "done",
        exit_code: 0,
        kept: rows_that(&rows, Chosen::Keep),
        forgotten: rows_that(&rows, Chosen::Forget),
        undelete_until: None,
        points: rows,
        error: None,
    };
    describe(&choice, &entry, true)
}

fn refused(args: &ForgetArgs) -> String {
    let error = match choice::choose(&config(), args) {
        Err(error) => error,
        Ok(choices) => {
            let mut rows = choices
                .iter()
                .map(|choice| choice.rows(&points(), &BTreeSet::new(), now()));
            rows.find_map(Result::err).expect("a refusal").into()
        }
    };
    Report::new(&error).render(false)
}

#[test]
fn by_policy_every_point_has_its_reason() {
    assert_snapshot!(shown(&args(&["web01"])), @r"
    web01 by policy daily:
    POINT  TAKEN  CONSISTENCY  DECISION   WHY
        0         application  keep       pinned: audit
        1         application  forgotten
        2         application  forget     4 is the one for weekly 2026-W47
        3         file-system  keep       daily 2026-11-21
        4         application  keep       daily 2026-11-22, weekly 2026-W47, newest good one
        5         crash        keep       daily 2026-11-23, weekly 2026-W48, newest
    1 point would be forgotten; 4 kept
    ");
}

#[test]
fn a_machine_without_a_policy_keeps_everything() {
    assert_snapshot!(shown(&args(&["db01"])), @r"
    db01, which has no policy:
    POINT  TAKEN  CONSISTENCY  DECISION   WHY
        0         application  keep       pinned: audit, no `keep`: all stay
        1         application  forgotten
        2         application  keep       no `keep`: all stay
        3         file-system  keep       no `keep`: all stay
        4         application  keep       no `keep`: all stay
        5         crash        keep       no `keep`: all stay, newest good one
    0 points would be forgotten; 5 kept
    ");
}

#[test]
fn by_name_only_what_was_named_is_shown() {
    assert_snapshot!(shown(&args(&["web01@1", "web01@3", "web01@5"])), @r"
    web01:
    POINT  TAKEN  CONSISTENCY  DECISION   WHY
        1         application  forgotten
        3         file-system  forget     named
        5         crash        forget     named
    2 points would be forgotten
    ");
}

#[test]
fn a_retired_machine_loses_all_points() {
    let mut all = points();
    all[0].pin = None;
    let choice = only(&retire(&["old01"]));
    let gone = choice.rows(&all, &BTreeSet::new(), now()).unwrap();
    assert_eq!(rows_that(&gone, Chosen::Forget), 5);
    assert_eq!(rows_that(&gone, Chosen::Forgotten), 1);
    assert_eq!(choice.recorded(&gone[0]), "retired");
}

#[test]
fn what_must_not_go_is_refused_with_a_way_out() {
    // Point 5 is newer, but worth less than the policy accepts.
    assert_snapshot!(refused(&args(&["web01@4", "web01@3"])), @r"
    error: web01@4 is the newest good recovery point of web01, so it stays
    hint: nothing was forgotten; after another backup this one can go, and `coffre forget web01 --retire` forgets all points of a machine that is not backed up any more
    ");
    assert_snapshot!(refused(&args(&["web01@0"])), @r"
    error: web01@0 is pinned: audit
    hint: nothing was forgotten; `coffre unpin web01@0` lets it go
    ");
    assert_snapshot!(refused(&retire(&["web01"])), @r"
    error: web01@0 is pinned: audit
    hint: nothing was forgotten; `coffre unpin web01@0` lets it go
    ");
}

#[test]
fn what_is_meant_must_be_clear() {
    assert_snapshot!(refused(&args(&[])), @r"
    error: which machine?
    hint: name machines or points, as in `coffre forget web01 --dry-run`, or say --all or --policy POLICY
    ");
    assert_snapshot!(refused(&args(&["web1"])), @r"
    error: the config has no machine `web1`
    hint: did you mean `web01`? `web1@POINT` and --retire forget points of a machine that the configuration does not have
    ");
    assert_snapshot!(refused(&args(&["web01", "web01@3"])), @r"
    error: web01 and single points of web01 at once
    hint: name the machine to let its policy decide, or its points
    ");
    assert_snapshot!(refused(&retire(&["web01@3"])), @r"
    error: --retire means machines, not points such as web01@3
    hint: `coffre forget web01 --retire` forgets all of its points
    ");
    let weekly = ForgetArgs {
        policy: Some("weekly".to_owned()),
        ..args(&[])
    };
    assert_snapshot!(refused(&weekly), @r"
    error: the config has no policy `weekly`
    hint: known here: `daily`
    ");
}

#[test]
fn all_and_policy_mean_machines_of_the_configuration() {
    let machines = |args: ForgetArgs| -> Vec<String> {
        let choices = choice::choose(&config(), &args).unwrap();
        choices.into_iter().map(|choice| choice.machine).collect()
    };
    let all = ForgetArgs { all: true, ..args(&[]) };
    assert_eq!(machines(all), ["db01", "web01"]);
    let daily = ForgetArgs {
        policy: Some("daily".to_owned()),
        ..args(&[])
    };
    assert_eq!(machines(daily), ["web01"]);
    // A machine that nobody knows any more can be named by its points.
    assert_eq!(machines(args(&["old01@3", "old01@4", "old01@3"])), ["old01"]);
}

#[test]
fn the_newest_good_one_is_one_that_is_not_damaged() {
    let config = config();
    let choice = choice::choose(&config, &args(&["web01"])).unwrap().remove(0);
    let all = points();
    let without: Vec<_> = choice.rows(&all, &BTreeSet::new(), now()).unwrap();
    let newest_good = without
        .iter()
        .find(|row| row.reasons.iter().any(|why| why.code == "newest-good"))
        .expect("one is")
        .point;
    let damaged = BTreeSet::from([SessionNumber(newest_good)]);
    let rows = choice.rows(&all, &damaged, now()).unwrap();
    let other = rows
        .iter()
        .find(|row| row.reasons.iter().any(|why| why.code == "newest-good"))
        .expect("another one is");
    assert!(other.point < newest_good);
    let told = rows.iter().find(|row| row.point == newest_good).unwrap();
    assert!(told.reasons.iter().any(|why| why.code == "damaged"), "{told:?}");
    // And it stays if it is named, since the other one is no good.
    let named = format!("web01@{}", other.point);
    let choice = choice::choose(&config, &args(&[&named])).unwrap().remove(0);
    assert!(choice.rows(&all, &damaged, now()).is_err());
}
