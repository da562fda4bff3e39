//! Hooks tried without a backup.

use std::sync::Arc;

use super::world::{Fault as WorldFault, HOOKS, MACHINE, POLICY, World};
use crate::job::{JobDeps, jobs, rehearse};
use crate::journal::JobOutcome;
use crate::machine::Consistency;
use crate::rehearsal::{Fault, FaultyHook, FaultyProvider, SpanStep};

async fn with_fault(world: &Arc<World>, fault: Fault) -> JobDeps {
    let mut deps = world.deps().await;
    let hooks = deps.hooks.into_iter();
    deps.hooks = hooks
        .map(|hook| match hook.name() {
            "a" => Arc::new(FaultyHook { hook, fault }) as _,
            _ => hook,
        })
        .collect();
    deps
}

fn steps(world: &World) -> Vec<String> {
    let log = world.take_log();
    let quiet = ["discover", "check", "hook-check"];
    log.into_iter()
        .filter(|line| !quiet.iter().any(|quiet| line.starts_with(quiet)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_holds_takes_lets_go_and_makes_no_point() {
    let world = World::new().await;
    world.backup().await.unwrap();
    world.take_log();
    let rehearsal = rehearse(&world.deps().await, "m").await.unwrap();
    assert_eq!(
        steps(&world),
        [
            "pre a",
            "pre b",
            "take",
            "post b",
            "b heard Taken",
            "post a",
            "a heard Taken",
            "release"
        ]
    );
    assert_eq!(rehearsal.result.unwrap().reached, Consistency::Application);
    assert!(rehearsal.all_let_go && !rehearsal.timeline.is_held());
    let order: Vec<_> = rehearsal
        .timeline
        .spans
        .iter()
        .map(|span| (span.step, span.hook.as_deref()))
        .collect();
    assert_eq!(
        order,
        [
            (SpanStep::Pre, Some("a")),
            (SpanStep::Pre, Some("b")),
            (SpanStep::Snapshot, None),
            (SpanStep::Post, Some("b")),
            (SpanStep::Post, Some("a")),
        ]
    );
    assert_eq!(world.points().await.len(), 1);
    world.assert_nothing_is_owed();
    let seen = jobs(&world.state(), Some("m")).unwrap();
    assert_eq!(seen[1].outcome, Some(JobOutcome::Rehearsed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_fault_on_purpose_everybody_is_let_go() {
    let hooks = HOOKS.replace("file = \"a\"", "file = \"a\"\ntimeout = \"500ms\"");
    for fault in [Fault::Timeout, Fault::FailPre, Fault::FailPost] {
        let world = World::with(&format!("{POLICY}{hooks}{MACHINE}")).await;
        let rehearsal = rehearse(&with_fault(&world, fault).await, "m").await.unwrap();
        let steps = steps(&world);
        for post in ["post a", "post b"] {
            assert!(steps.iter().any(|step| step == post), "{fault:?}: {steps:?}");
        }
        assert_ne!(rehearsal.result.unwrap().reached, Consistency::Application, "{fault:?}");
        let failed = rehearsal
            .timeline
            .spans
            .iter()
            .filter(|span| span.error.is_some())
            .count();
        assert_eq!(failed, 1, "{fault:?}: {:?}", rehearsal.timeline);
        assert!(rehearsal.all_let_go && !rehearsal.timeline.is_held());
        world.assert_nothing_is_owed();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_fails_on_purpose_lets_everybody_go() {
    let world = World::new().await;
    let mut deps = world.deps().await;
    deps.provider = Arc::new(FaultyProvider {
        provider: deps.provider,
        in_take: Box::new(|| Err("on purpose".to_owned())),
    });
    let rehearsal = rehearse(&deps, "m").await.unwrap();
    let steps = steps(&world);
    assert!(!steps.contains(&"take".to_owned()), "{steps:?}");
    assert!(steps.contains(&"a heard Failed".to_owned()), "{steps:?}");
    assert!(rehearsal.result.unwrap_err().to_string().contains("take a snapshot"));
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_leaves_what_a_killed_backup_may_resume() {
    let world = World::new().await;
    world.backup().await.unwrap();
    world.fault("changed one", WorldFault::Hang);
    world.killed().await;
    let undecided = |world: Arc<World>| async move {
        let vault = world.vault().await;
        let machine = vault.machine("m").await.unwrap().unwrap();
        vault.sessions_undecided(machine).await.unwrap().len()
    };
    assert_eq!(undecided(world.clone()).await, 1);
    rehearse(&world.deps().await, "m").await.unwrap().result.unwrap();
    assert_eq!(undecided(world.clone()).await, 1, "the next backup resumes it");
    let report = world.backup().await.unwrap();
    assert_eq!(undecided(world.clone()).await, 0);
    assert_eq!(world.points().await.len(), 2, "{:?}", report.point.number);
    world.assert_nothing_is_owed();
}
