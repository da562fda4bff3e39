//! When file systems are frozen and thawed, and what the point says of it.

use std::time::Duration;

use coffre_guard::FreezeEnd;
use coffre_vault::NoteLevel;

use super::world::{FREEZES, Fault, HOOKS, MACHINE, POLICY, World};
use crate::job::jobs;
use crate::journal::JobOutcome;
use crate::machine::Consistency;

/// The log of what disturbs.
fn disturbing(world: &World) -> Vec<String> {
    let quiet = ["discover", "check", "hook-check", "settle", "release"];
    let mut log = world.take_log();
    log.retain(|line| !quiet.iter().any(|quiet| line.starts_with(quiet)) && !line.contains("heard"));
    log
}

async fn freezing(hooks: &str) -> std::sync::Arc<World> {
    let policy = POLICY.replace("5s\"", "5s\"\nfreeze-at-most = \"1s\"");
    World::with(&format!("{policy}{HOOKS}{FREEZES}{hooks}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_systems_are_frozen_after_the_last_pre_and_thawed_before_the_first_post() {
    let world = freezing("hooks = [\"a\", \"b\"]\n").await;
    let report = world.backup().await.unwrap();
    assert_eq!(
        disturbing(&world),
        ["pre a", "pre b", "freeze", "take", "thaw", "post b", "post a"]
    );
    assert_eq!(report.point.consistency.reached, Consistency::Application);
    assert!(report.point.frozen_ms.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hooks_a_freeze_that_held_makes_a_point_file_system_consistent() {
    let world = freezing("").await;
    let report = world.backup().await.unwrap();
    assert_eq!(disturbing(&world), ["freeze", "take", "thaw"]);
    let consistency = &report.point.consistency;
    assert_eq!(
        (consistency.wanted, consistency.reached),
        (Consistency::FileSystem, Consistency::FileSystem)
    );
    assert_eq!(consistency.reason, "/srv frozen until the snapshot was there");
    assert_eq!(report.outcome, JobOutcome::Done);
    let seen = jobs(&world.state(), Some("m")).unwrap();
    assert!(seen[0].frozen_ms.is_some(), "the journal tells");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_not_there_by_the_end_of_the_freeze_is_taken_thawed_and_said_to_be() {
    let world = freezing("").await;
    world.fault("take", Fault::Slow(Duration::from_millis(1500)));
    let report = world.backup().await.unwrap();
    assert_eq!(disturbing(&world), ["freeze", "take", "thaw"]);
    assert_eq!(report.outcome, JobOutcome::Downgraded);
    let consistency = &report.point.consistency;
    assert_eq!(consistency.reached, Consistency::Crash);
    assert!(
        consistency
            .reason
            .starts_with("the snapshot was not there after a freeze of 0."),
        "{}",
        consistency.reason
    );
    let frozen_ms = report.point.frozen_ms.unwrap();
    assert!((700..1000).contains(&frozen_ms), "{frozen_ms}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_thawed_or_froze_is_no_consistency_and_is_said() {
    for (end, code, level) in [
        (Some(FreezeEnd::ByGuard), "thawed-early", NoteLevel::Warning),
        (Some(FreezeEnd::ByOthers), "thawed-early", NoteLevel::Warning),
        (
            Some(FreezeEnd::NotThawed("EIO".to_owned())),
            "not-thawed",
            NoteLevel::Error,
        ),
        (None, "not-frozen", NoteLevel::Warning),
    ] {
        let world = freezing("").await;
        *world.freeze_ends.lock() = end.clone();
        let report = world.backup().await.unwrap();
        assert_eq!(report.outcome, JobOutcome::Downgraded, "{end:?}");
        assert_eq!(report.point.consistency.reached, Consistency::Crash, "{end:?}");
        let note = report.point.notes.iter().find(|note| note.code == code);
        let note = note.unwrap_or_else(|| panic!("{end:?}: {:?}", report.point.notes));
        assert_eq!(note.level, level);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_frozen_is_thawed_when_the_snapshot_fails_or_panics() {
    for fault in [Fault::Fail, Fault::Panic] {
        let world = freezing("hooks = [\"a\"]\n").await;
        world.fault("take", fault.clone());
        world.backup().await.unwrap_err();
        let log = disturbing(&world);
        // What a panic leaves is dropped, and dropping thaws: the real one does, the fake one has nothing to.
        if matches!(fault, Fault::Fail) {
            assert_eq!(log, ["pre a", "freeze", "take", "thaw", "post a"]);
        } else {
            assert_eq!(log, ["pre a", "freeze", "take", "post a"]);
        }
        world.assert_nothing_is_owed();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hooks_file_says_whether_what_the_machine_names_is_frozen() {
    for (wants, log) in [
        (Some(true), &["pre a", "freeze", "take", "thaw", "post a"][..]),
        (Some(false), &["pre a", "take", "post a"][..]),
    ] {
        let world = freezing("hooks = [\"a\"]\n").await;
        *world.hooks_want_freeze.lock() = wants;
        // So that what the point is worth without hooks is told.
        world.fault("pre a", Fault::Fail);
        let point = world.backup().await.unwrap().point;
        assert_eq!(disturbing(&world), log);
        let (reached, reason) = (point.consistency.reached, &point.consistency.reason);
        if wants == Some(true) {
            assert_eq!(reached, Consistency::FileSystem);
        } else {
            assert_eq!(reached, Consistency::Crash);
            assert!(
                reason.ends_with("nothing was frozen, as the file of hook a says; a fake"),
                "{reason}"
            );
            let said = point
                .notes
                .iter()
                .find(|note| note.code == "check")
                .map(|note| &*note.text);
            let wanted = "what [machine.m] names under `freeze` is not frozen: the file of hook a says that nothing is";
            assert_eq!(said, Some(wanted));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hooks_file_that_wants_a_freeze_where_nothing_is_named_is_told() {
    let world = World::with(&format!("{POLICY}{HOOKS}{MACHINE}")).await;
    *world.hooks_want_freeze.lock() = Some(true);
    let point = world.backup().await.unwrap().point;
    let said: Vec<&str> = (point.notes.iter().filter(|note| note.code == "check"))
        .map(|note| note.text.as_str())
        .collect();
    assert_eq!(said.len(), 2, "one for each hook: {said:?}");
    assert_eq!(
        said[0],
        "the file of hook a wants file systems to be frozen, and [machine.m] names none under `freeze`: nothing is frozen but \
         by the provider"
    );
    assert!(!disturbing(&world).contains(&"freeze".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_hook_froze_counts_where_all_that_the_machine_names_was_frozen() {
    struct Case {
        names: &'static str,
        hook_freezes: &'static [&'static str],
        thawed_early: bool,
        log: &'static [&'static str],
        reached: Consistency,
        reason: &'static str,
    }
    let both = "\"/srv/app\", \"/srv\"";
    let cases = [
        Case {
            names: "\"/srv\"",
            hook_freezes: &["/srv"],
            thawed_early: false,
            log: &["pre a", "take", "post a"],
            reached: Consistency::FileSystem,
            reason: "/srv frozen until the snapshot was there",
        },
        Case {
            names: both,
            hook_freezes: &["/srv/app", "/else"],
            thawed_early: false,
            log: &["pre a", "freeze", "take", "thaw", "post a"],
            reached: Consistency::FileSystem,
            reason: "/srv/app, /srv frozen until the snapshot was there",
        },
        Case {
            names: both,
            hook_freezes: &["/srv/app"],
            thawed_early: true,
            log: &["pre a", "freeze", "take", "thaw", "post a"],
            reached: Consistency::Crash,
            reason: "hook a did not keep /srv/app frozen until the snapshot was there; a fake",
        },
        Case {
            // Nobody has said that this is all that is written to.
            names: "",
            hook_freezes: &["/srv"],
            thawed_early: false,
            log: &["pre a", "take", "post a"],
            reached: Consistency::Crash,
            reason: "a fake",
        },
    ];
    for case in cases {
        let machine = FREEZES.replace("\"/srv\"", case.names);
        let world = World::with(&format!("{POLICY}{HOOKS}{machine}hooks = [\"a\"]\n")).await;
        *world.hooks_declare.lock() = false;
        *world.hook_freezes.lock() = case.hook_freezes.iter().map(Into::into).collect();
        *world.hook_is_thawed_early.lock() = case.thawed_early;
        let point = world.backup().await.unwrap().point;
        assert_eq!(disturbing(&world), case.log);
        assert_eq!(point.consistency.reached, case.reached, "{}", point.consistency.reason);
        assert_eq!(point.consistency.reason, case.reason);
        assert_eq!(point.frozen_ms.is_some(), !case.names.is_empty());
        let told = point.notes.iter().any(|note| note.code == "thawed-early");
        assert_eq!(told, case.thawed_early);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_whose_post_failed_has_kept_nothing_frozen() {
    let world = freezing("hooks = [\"a\"]\n").await;
    *world.hook_freezes.lock() = vec!["/srv".into()];
    world.fault("post a", Fault::Fail);
    let point = world.backup().await.unwrap().point;
    assert_eq!(point.consistency.reached, Consistency::Crash);
    assert_eq!(
        point.consistency.reason,
        "post of hook a failed; without hooks: hook a did not keep /srv frozen until the snapshot was there; a fake"
    );
}
