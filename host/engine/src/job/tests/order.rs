//! What is done when, read from the log that provider and hooks write.

use std::time::Duration;

use super::world::{Fault, HOOKS, MACHINE, POLICY, World};
use crate::job::{JobError, JobErrorKind, jobs};
use crate::journal::JobOutcome;
use crate::machine::Consistency;

/// The log without what was asked before applications were disturbed, and without what `post` heard.
fn disturbing(world: &World) -> Vec<String> {
    let log = world.take_log();
    let quiet = ["discover", "check", "hook-check"];
    log.into_iter()
        .filter(|line| !quiet.iter().any(|quiet| line.starts_with(quiet)) && !line.contains("heard"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn post_hooks_run_in_reverse_right_after_the_snapshot() {
    let world = World::new().await;
    let report = world.backup().await.unwrap();
    assert_eq!(
        disturbing(&world),
        ["pre a", "pre b", "take", "post b", "post a", "settle", "release"]
    );
    assert_eq!(report.outcome, JobOutcome::Done);
    assert_eq!(report.point.consistency.reached, Consistency::Application);
    assert_eq!(report.point.consistency.reason, "brought to rest by a, b");
    assert!(report.point.held_ms.is_some());
    assert_eq!(report.point.hooks.len(), 2);
    assert_eq!(report.point.attachments[0].name, "machine.xml");
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();

    let seen = jobs(&world.state(), Some("m")).unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].outcome, Some(JobOutcome::Done));
    assert_eq!(seen[0].point, Some(report.point.number.0));
    assert!(seen[0].phases.iter().all(|phase| phase.duration_ms.is_some()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_hook_held_and_lost_before_the_snapshot_was_there_marks_the_point_down() {
    let world = World::new().await;
    world.fault("hold a", Fault::Fail);
    let report = world.backup().await.unwrap();
    assert_eq!(
        disturbing(&world),
        ["pre a", "pre b", "take", "post b", "post a", "settle", "release"]
    );
    assert_eq!(report.outcome, JobOutcome::Downgraded);
    assert_eq!(
        report.point.consistency.reason,
        "hook a lost what it held before the snapshot was there; without hooks: a fake"
    );
    assert!(!report.point.hooks[0].application_consistent);
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.text == "hold of hook a failed: its session ended")
    );

    let hooks = HOOKS.replacen("file = \"a\"", "file = \"a\"\non-failure = \"fail\"", 1);
    let world = World::with(&format!("{POLICY}{hooks}{MACHINE}")).await;
    world.fault("hold a", Fault::Fail);
    let error = world.backup().await.unwrap_err();
    assert_eq!(error.to_string(), "hold of hook a failed");
    assert!(world.points().await.is_empty());
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hold_says_what_is_neither_in_hooks_nor_in_the_snapshot() {
    let world = World::new().await;
    world.fault("pre a", Fault::Slow(Duration::from_millis(300)));
    world.fault("take", Fault::Slow(Duration::from_millis(700)));
    world.fault("post b", Fault::Slow(Duration::from_millis(300)));
    let point = world.backup().await.unwrap().point;
    let (held, overhead) = (point.held_ms.unwrap(), point.hold_overhead_ms.unwrap());
    assert!(held >= 1300, "{held}");
    assert!(overhead < 300, "the hooks and the snapshot are not in it: {overhead}");
    assert_eq!(
        jobs(&world.state(), Some("m")).unwrap()[0].hold_overhead_ms,
        Some(overhead)
    );

    let world = World::with(&format!("{POLICY}{}", MACHINE.replace("hooks = [\"a\", \"b\"]", ""))).await;
    assert_eq!(world.backup().await.unwrap().point.hold_overhead_ms, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_pre_downgrades_and_its_post_runs_all_the_same() {
    let world = World::new().await;
    world.fault("pre b", Fault::Fail);
    let report = world.backup().await.unwrap();
    assert_eq!(
        disturbing(&world),
        ["pre a", "pre b", "take", "post b", "post a", "settle", "release"]
    );
    assert_eq!(report.outcome, JobOutcome::Downgraded);
    assert_eq!(report.point.consistency.reached, Consistency::Crash);
    assert_eq!(
        report.point.consistency.reason,
        "pre of hook b failed; without hooks: a fake"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_post_does_not_keep_the_others_from_running() {
    let world = World::new().await;
    world.fault("post b", Fault::Fail);
    let report = world.backup().await.unwrap();
    assert_eq!(
        disturbing(&world),
        ["pre a", "pre b", "take", "post b", "post a", "settle", "release"]
    );
    assert_eq!(report.point.consistency.reached, Consistency::Crash);
    assert!(!report.point.hooks[1].post.as_ref().unwrap().ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_must_not_fail_stops_the_backup_before_the_snapshot() {
    let hooks = HOOKS.replacen("file = \"a\"", "file = \"a\"\non-failure = \"fail\"", 1);
    let world = World::with(&format!("{POLICY}{hooks}{MACHINE}")).await;
    world.fault("pre a", Fault::Fail);
    let error = world.backup().await.unwrap_err();
    assert_eq!(error.to_string(), "pre of hook a failed");
    assert_eq!(world.take_log().split_off(4), ["pre a", "post a", "a heard NotTried"]);
    assert!(world.points().await.is_empty());
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_only_warns_leaves_the_level_alone() {
    let hooks = HOOKS.replacen("file = \"b\"", "file = \"b\"\non-failure = \"warn\"", 1);
    let world = World::with(&format!("{POLICY}{hooks}{MACHINE}")).await;
    world.fault("pre b", Fault::Fail);
    let report = world.backup().await.unwrap();
    assert_eq!(report.point.consistency.reached, Consistency::Application);
    assert!(report.notes.iter().any(|note| note.code == "hook-failed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pre_is_tried_again_as_often_as_the_config_says_and_post_runs_once() {
    let hooks = HOOKS.replacen("file = \"a\"", "file = \"a\"\nretries = 2", 1);
    let world = World::with(&format!("{POLICY}{hooks}{MACHINE}")).await;
    world.fault("pre a", Fault::FailAlways);
    let report = world.backup().await.unwrap();
    let expected = [
        "pre a", "pre a", "pre a", "pre b", "take", "post b", "post a", "settle", "release",
    ];
    assert_eq!(disturbing(&world), expected);
    assert_eq!(report.point.hooks[0].pre.as_ref().unwrap().attempts, 3);

    // A hook that asks for another try gets one though the config grants none.
    world.fault("pre b", Fault::TryAgain);
    let report = world.backup().await.unwrap();
    assert_eq!(report.point.hooks[1].pre.as_ref().unwrap().attempts, 2);
    assert!(report.point.hooks[1].pre.as_ref().unwrap().ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_are_let_go_at_the_end_of_the_hold_though_the_snapshot_is_not_there() {
    let policy = POLICY.replace("5s", "1s");
    let world = World::with(&format!("{policy}{HOOKS}{MACHINE}")).await;
    world.fault("take", Fault::Slow(Duration::from_millis(1500)));
    let report = world.backup().await.unwrap();
    let log = world.take_log();
    assert!(log.contains(&"a heard Failed".to_owned()), "{log:?}");
    assert_eq!(report.point.consistency.reached, Consistency::Crash);
    assert!(
        report
            .point
            .consistency
            .reason
            .starts_with("the snapshot was not there within 1 s")
    );
    assert!(report.point.held_ms.unwrap() < 1400);
    world.assert_newest_is_now().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_whose_turn_comes_too_late_is_never_started() {
    let policy = POLICY.replace("5s", "1s");
    let world = World::with(&format!("{policy}{HOOKS}{MACHINE}")).await;
    world.fault("pre a", Fault::Slow(Duration::from_millis(1100)));
    let report = world.backup().await.unwrap();
    assert_eq!(disturbing(&world), ["pre a", "take", "post a", "settle", "release"]);
    assert_eq!(report.outcome, JobOutcome::Downgraded);
    let late = report.point.hooks[1].pre.as_ref().unwrap();
    assert_eq!((late.ok, late.attempts), (false, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn less_than_the_policy_accepts_makes_no_point() {
    let policy = format!("{POLICY}accept = \"application\"\nconsistency = \"application\"\n");
    let world = World::with(&format!("{policy}{HOOKS}{MACHINE}")).await;
    world.fault("pre a", Fault::Fail);
    let error = world.backup().await.unwrap_err();
    assert!(matches!(error, JobError::LessThanAccepted { .. }), "{error}");
    assert!(error.hint().is_some());
    assert!(world.points().await.is_empty());
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_has_one_job_at_a_time() {
    let world = World::new().await;
    world.fault("take", Fault::Slow(Duration::from_millis(500)));
    let (one, other) = tokio::join!(world.backup(), world.backup());
    let errors: Vec<JobError> = [one, other].into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].kind(), JobErrorKind::TryAgain);
}
