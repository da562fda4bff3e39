//! Whatever fails, and wherever: there is no point, nothing is held, and the next backup works.

use super::world::{Fault, HOOKS, MACHINE, Manner, POLICY, World};
use crate::job::{JobError, JobErrorKind};
use crate::journal::JobOutcome;

/// Every step that can fail, and whether the backup makes a point all the same.
const STEPS: &[(&str, bool)] = &[
    ("discover", false),
    ("check", false),
    ("hook-check a", false),
    ("pre a", true),
    ("pre b", true),
    ("take", false),
    ("post b", true),
    ("post a", true),
    ("changed one", true),
    ("settle", true),
    ("release", true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_at_any_step_leaves_nothing_behind() {
    for (step, makes_a_point) in STEPS {
        let world = World::new().await;
        world.backup().await.unwrap();
        world.take_log();
        world.fault(step, Fault::Fail);
        let result = world.backup().await;
        assert_eq!(result.is_ok(), *makes_a_point, "{step}: {result:?}");
        assert_eq!(world.points().await.len(), 1 + usize::from(*makes_a_point), "{step}");
        let log = world.take_log();
        assert_started_pres_have_posts(step, &log);
        if *step != "release" {
            world.assert_nothing_is_owed();
        }
        world.backup().await.unwrap_or_else(|error| panic!("{step}: {error}"));
        world.assert_nothing_is_owed();
        world.assert_newest_is_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_at_any_step_leaves_nothing_behind() {
    for (step, _) in STEPS.iter().filter(|(step, _)| !["settle", "release"].contains(step)) {
        let world = World::new().await;
        world.backup().await.unwrap();
        world.take_log();
        world.fault(step, Fault::Panic);
        let error = world.backup().await.unwrap_err();
        assert!(
            matches!(&error, JobError::Panicked(text) if text.contains(step)),
            "{step}: {error}"
        );
        assert_started_pres_have_posts(step, &world.take_log());
        world.assert_nothing_is_owed();
        world.backup().await.unwrap();
        world.assert_newest_is_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_heard_between_any_two_steps() {
    for (step, _) in STEPS
        .iter()
        .filter(|(step, _)| !["settle", "release", "changed one"].contains(step))
    {
        let world = World::new().await;
        let deps = world.deps().await;
        world.fault(step, Fault::Cancel(deps.cancel.clone()));
        let error = crate::job::backup(&deps, "m").await.unwrap_err();
        assert_eq!(error.kind(), JobErrorKind::Cancelled, "{step}: {error}");
        drop(deps);
        assert_started_pres_have_posts(step, &world.take_log());
        world.assert_nothing_is_owed();
        assert!(world.points().await.is_empty());
        world.backup().await.unwrap();
    }
}

/// A post that itself was hit by the fault counts as run.
fn assert_started_pres_have_posts(step: &str, log: &[String]) {
    for hook in ["a", "b"] {
        let count = |what: &str| log.iter().filter(|line| **line == format!("{what} {hook}")).count();
        assert_eq!(count("pre") > 0, count("post") > 0, "{step}: {log:?}");
        if !step.starts_with("post") {
            assert!(count("post") <= 1, "{step}: {log:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_lies_about_sizes_or_disks_is_refused() {
    for manner in [Manner::Size, Manner::DiskLeftOut] {
        let world = World::new().await;
        *world.manner.lock() = manner;
        let error = world.backup().await.unwrap_err();
        assert!(matches!(error, JobError::BadAnswer { .. }), "{manner:?}: {error}");
        assert!(error.hint().is_some());
        assert!(world.points().await.is_empty());
        world.assert_nothing_is_owed();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_changes_that_cannot_be_means_a_scan_and_distrust() {
    let world = World::new().await;
    world.backup().await.unwrap();
    world.disks.lock().get_mut("one").unwrap()[5] ^= 1;
    *world.manner.lock() = Manner::Overlap;
    let report = world.backup().await.unwrap();
    assert_eq!(report.outcome, JobOutcome::Downgraded);
    assert!(
        report.notes.iter().any(|note| note.code == "tracking-lied"),
        "{:?}",
        report.notes
    );
    world.assert_newest_is_now().await;

    // Not believed any more, though it now says the truth.
    *world.manner.lock() = Manner::Honest;
    world.take_log();
    let report = world.backup().await.unwrap();
    assert!(!world.take_log().iter().any(|line| line.starts_with("changed")));
    assert!(
        report.point.disks[0].compared.why.contains("not believed"),
        "{}",
        report.point.disks[0].compared.why
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_machine_is_a_matter_of_the_config() {
    let world = World::new().await;
    let error = crate::job::backup(&world.deps().await, "mm").await.unwrap_err();
    assert_eq!(error.kind(), JobErrorKind::Config);
    assert_eq!(error.hint().as_deref(), Some("did you mean `m`?"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_fails_the_job_with_its_name_and_no_point() {
    let world = World::new().await;
    *world.manner.lock() = Manner::Streams;
    world.fault("read two", Fault::Fail);
    let error = world.backup().await.unwrap_err();
    let text = crate::Chain(&error).to_string();
    assert!(text.contains("two") && text.contains("a fault at read two"), "{text}");
    assert!(world.points().await.is_empty());
    world.assert_nothing_is_owed();
    world.backup().await.unwrap();
    world.assert_newest_is_now().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stops_the_transfer() {
    let world = World::new().await;
    *world.manner.lock() = Manner::Streams;
    let deps = world.deps().await;
    world.fault("read one", Fault::Cancel(deps.cancel.clone()));
    world.fault("read two", Fault::Slow(std::time::Duration::from_millis(300)));
    let error = crate::job::backup(&deps, "m").await.unwrap_err();
    assert_eq!(error.kind(), JobErrorKind::Cancelled, "{error}");
    drop(deps);
    assert!(world.points().await.is_empty());
    world.assert_nothing_is_owed();
    world.backup().await.unwrap();
    world.assert_newest_is_now().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_past_its_deadline_fails_and_lets_the_snapshot_go() {
    let policy = format!("{POLICY}deadline = \"1s\"\n");
    let world = World::with(&format!("{policy}{HOOKS}{MACHINE}")).await;
    *world.manner.lock() = Manner::Streams;
    world.fault("read one", Fault::Slow(std::time::Duration::from_millis(1500)));
    let error = world.backup().await.unwrap_err();
    assert!(matches!(error, JobError::DeadlinePassed(_)), "{error}");
    assert!(world.points().await.is_empty());
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_does_not_say_where_it_runs_is_refused_where_the_provider_is_outside_the_machine() {
    for (on, refused) in [("", true), ("on = \"host\"\n", false), ("on = \"ssh:m\"\n", false)] {
        let kind = if on.contains("ssh") { "exec" } else { "rhai" };
        let hook = format!("[hook.a]\nkind = \"{kind}\"\nfile = \"/a\"\n{on}");
        let machine = MACHINE.replace(", \"b\"", "");
        let ssh = "[ssh.m]\naddress = \"m\"\nuser = \"root\"\nkey = \"k\"\nhost-key = \"ssh-ed25519 AAAA\"\n";
        let world = World::with(&format!("{POLICY}{hook}{ssh}{machine}")).await;
        *world.runs_outside.lock() = true;
        let result = world.backup().await;
        assert_eq!(
            matches!(result, Err(JobError::HookNowhere { .. })),
            refused,
            "{on}: {result:?}"
        );
        if refused {
            let hint = result.unwrap_err().hint().unwrap();
            assert!(
                hint.contains("`on = \"agent\"`") && hint.contains("`on = \"ssh:NAME\"`"),
                "{hint}"
            );
            assert_eq!(world.take_log(), Vec::<String>::new(), "nothing is disturbed");
        }
    }
}
