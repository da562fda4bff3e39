//! The process goes away in the middle: the next job pays what is owed, and no point is lost.

use super::store::PutFault;
use super::world::{Fault, World};
use crate::job::jobs;
use crate::journal::JobOutcome;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_killed_job_owed_is_paid_by_the_next() {
    for step in [
        "discover",
        "check",
        "pre a",
        "pre b",
        "take",
        "post b",
        "post a",
        "changed one",
        "settle",
        "release",
    ] {
        let world = World::new().await;
        world.backup().await.unwrap();
        world.disks.lock().get_mut("two").unwrap()[70_000] ^= 1;
        world.take_log();
        world.fault(step, Fault::Hang);
        world.killed().await;

        let before = world.take_log();
        let report = world.backup().await.unwrap_or_else(|error| panic!("{step}: {error}"));
        assert!(
            report.notes.iter().any(|note| note.code == "earlier-job-died"),
            "{step}"
        );
        world.assert_nothing_is_owed();
        world.assert_newest_is_now().await;

        // What was started before and not ended was ended first, the last one first.
        let after = world.take_log();
        let started = |hook: &str| before.contains(&format!("pre {hook}"));
        let ended = |hook: &str| before.contains(&format!("{hook} heard Taken"));
        let owed: Vec<String> = ["b", "a"]
            .iter()
            .filter(|hook| started(hook) && !ended(hook))
            .map(|hook| format!("post {hook}"))
            .collect();
        let until = after.iter().position(|line| line == "discover").unwrap();
        let paid: Vec<String> = after[..until]
            .iter()
            .filter(|line| line.starts_with("post"))
            .cloned()
            .collect();
        assert_eq!(paid, owed, "{step}: {before:?}");

        let seen = jobs(&world.state(), Some("m")).unwrap();
        assert!(seen.iter().any(|job| job.outcome == Some(JobOutcome::Died)), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_survives_a_crash_before_its_ack() {
    let world = World::new().await;
    world.store.break_at("points/", PutFault::HangAfter);
    world.killed().await;
    assert_eq!(world.points().await.len(), 1);

    let report = world.backup().await.unwrap();
    assert!(
        report.notes.iter().any(|note| note.code == "committed-after-all"),
        "{:?}",
        report.notes
    );
    let points = world.points().await;
    assert_eq!(points.len(), 2);
    // The crashed job's point is the base, by its very tokens.
    assert_eq!(points[1].disks[0].base, Some(points[0].number));
    assert_eq!(
        points[1].disks[0].compared.how,
        coffre_vault::ComparedHow::Tracked,
        "{:?}",
        points[1].disks[0].compared
    );
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrived_is_sent_again() {
    let world = World::new().await;
    world.store.break_at("points/", PutFault::HangBefore);
    world.killed().await;
    assert!(world.points().await.is_empty());
    world.backup().await.unwrap();
    assert_eq!(world.points().await.len(), 2);
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_died_in_transfer_is_taken_over() {
    let world = World::new().await;
    world.store.break_at("packs/", PutFault::HangBefore);
    world.killed().await;
    let report = world.backup().await.unwrap();
    assert_eq!(world.points().await.len(), 1);
    let vault = world.vault().await;
    let machine = report.point.machine_number;
    assert!(vault.sessions_undecided(machine).await.unwrap().is_empty());
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_aborted_by_somebody_else_is_begun_anew_upon_the_same_snapshot() {
    let world = World::new().await;
    world.backup().await.unwrap();
    world.disks.lock().get_mut("two").unwrap()[70_000] ^= 1;
    world.take_log();
    world.fault("changed one", Fault::Fence);
    let report = world.backup().await.unwrap();
    assert!(
        report.notes.iter().any(|note| note.code == "session-begun-anew"),
        "{:?}",
        report.notes
    );
    let log = world.take_log();
    assert_eq!(log.iter().filter(|line| *line == "take").count(), 1);
    assert_eq!(report.point.number.0, 2);
    assert_eq!(world.points().await.len(), 2);
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_point_of_unknown_fate_needs_stays_until_its_vault_is_asked() {
    let world = World::new().await;
    world.store.break_at("v/points/", PutFault::HangAfter);
    world.killed().await;
    let held: Vec<String> = world.held.lock().keys().cloned().collect();
    assert_eq!(held.len(), 1);

    // The other vault cannot know what became of it.
    *world.goes_to.lock() = "w";
    world.take_log();
    world.backup().await.unwrap();
    assert!(world.held.lock().contains_key(&held[0]));
    assert!(!world.take_log().contains(&"settle".to_owned()));

    *world.goes_to.lock() = "v";
    let report = world.backup().await.unwrap();
    assert_eq!(report.point.disks[0].compared.how, coffre_vault::ComparedHow::Tracked);
    world.assert_nothing_is_owed();
    world.assert_newest_is_now().await;
}
