//! What is a component's own: what it is told and gives back, what it may do, and what happens when it misbehaves.

use std::time::{Duration, Instant};

use coffre_engine::{Consistency, FindingLevel, HookContext, HookFailure, HookFailureKind, SnapshotOutcome, SoFar};

use super::exec::context;
use super::kinds::{Hook, Kind};
use super::world::World;

async fn pre(hook: &Hook, world: &World, timeout_ms: u64) -> Result<coffre_engine::PreReport, HookFailure> {
    let context = HookContext {
        timeout: Duration::from_millis(timeout_ms),
        ..context()
    };
    world.load(hook).await?.pre(&context).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pre_returns_is_memory_for_post_which_attaches_to_the_point() {
    let world = World::new();
    let hook = Hook::new(&world, Kind::Wasm, "db")
        .pre("echo generation 7")
        .behaviour("attach");
    let point = world.point(std::slice::from_ref(&hook)).await;
    let names: Vec<&str> = point
        .attachments
        .iter()
        .map(|attached| attached.name.as_str())
        .collect();
    assert_eq!(names, ["memory", "snapshot"]);
    // As after a crash: an instance that never ran `pre`, with what it left.
    let loaded = world.load(&hook).await.unwrap();
    let told = HookContext {
        so_far: SoFar {
            consistency: Some(Consistency::FileSystem),
            held: Some(Duration::from_millis(310)),
            frozen: None,
        },
        ..context()
    };
    let report = loaded
        .post(&told, Some("generation 7\n"), SnapshotOutcome::Taken)
        .await
        .unwrap();
    let attached: Vec<String> = report
        .attachments
        .iter()
        .map(|attached| String::from_utf8_lossy(&attached.content).into_owned())
        .collect();
    assert_eq!(attached[0], "Some(\"generation 7\\n\")");
    for told in ["Taken", "FileSystem", "Some(310)", "frozen-ms: None"] {
        assert!(attached[1].contains(told), "{told} is not in {}", attached[1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_computes_without_end_or_eats_memory_is_ended() {
    let world = World::new();
    let before = Instant::now();
    let failure = pre(&Hook::new(&world, Kind::Wasm, "db").behaviour("spin"), &world, 500)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::TimedOut, "{failure:?}");
    assert!(before.elapsed() < Duration::from_secs(20));
    let failure = pre(&Hook::new(&world, Kind::Wasm, "db").behaviour("eat"), &world, 60_000)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Limit, "{failure:?}");
    assert!(failure.text.contains("128 MiB"), "{}", failure.text);
    let failure = pre(
        &Hook::new(&world, Kind::Wasm, "db").behaviour("remember-much"),
        &world,
        60_000,
    )
    .await
    .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Limit, "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_a_failure_with_its_message_and_the_next_call_begins_anew() {
    let world = World::new();
    let failure = pre(&Hook::new(&world, Kind::Wasm, "db").behaviour("panic"), &world, 60_000)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Failed, "{failure:?}");
    assert!(failure.text.contains("db.wasm (pre): trapped"), "{}", failure.text);
    let point = world
        .point(&[Hook::new(&world, Kind::Wasm, "db").behaviour("panic")])
        .await;
    assert!(point.hooks[0].post.as_ref().unwrap().ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_is_denied_and_the_message_names_the_hook_s_table() {
    let world = World::new();
    let failure = pre(
        &Hook::new(&world, Kind::Wasm, "db").behaviour("trespass"),
        &world,
        60_000,
    )
    .await
    .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Denied, "{failure:?}");
    assert!(
        failure
            .text
            .contains("the hook `db` may not have process [\"/usr/bin/id\"]"),
        "{}",
        failure.text
    );
    // Asked for by its manifest, and not granted.
    let hook = Hook::new(&world, Kind::Wasm, "db");
    let config = world.config(std::slice::from_ref(&hook));
    let mut spec = coffre_sandbox::hook::HookSpec::from_config(&config, config.hook("db").unwrap()).unwrap();
    spec.grants.clear();
    let loaded = coffre_sandbox::hook::load("db", &spec).unwrap();
    let failure = loaded.pre(&context()).await.unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Denied, "{failure:?}");
    assert!(failure.text.contains("[hook.db.grant] process = "), "{}", failure.text);
    let failure = pre(&Hook::new(&world, Kind::Wasm, "db").behaviour("hold"), &world, 60_000)
        .await
        .unwrap_err();
    assert!(failure.text.contains("sessions that stay open"), "{}", failure.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_given_by_grant_and_shown_nowhere() {
    let world = World::new();
    let report = pre(&Hook::new(&world, Kind::Wasm, "db").behaviour("tell"), &world, 60_000)
        .await
        .unwrap();
    assert!(
        report.output.starts_with("it is [secret password]\n"),
        "{}",
        report.output
    );
    let failure = pre(
        &Hook::new(&world, Kind::Wasm, "db").behaviour("remember-secret"),
        &world,
        60_000,
    )
    .await
    .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Denied, "memory is written to disk");
    for (behaviour, kind) in [
        ("attach-secret", HookFailureKind::Denied),
        ("attach-oddly", HookFailureKind::Failed),
    ] {
        let loaded = world
            .load(&Hook::new(&world, Kind::Wasm, "db").behaviour(behaviour))
            .await
            .unwrap();
        let failure = loaded.post(&context(), None, SnapshotOutcome::Taken).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{behaviour}: {failure:?}");
        assert!(!format!("{failure:?}").contains("hunter2"), "{behaviour}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_findings_cannot_steer_a_terminal() {
    let world = World::new();
    let loaded = world
        .load(&Hook::new(&world, Kind::Wasm, "db").behaviour("warn"))
        .await
        .unwrap();
    let findings = loaded.check(&context()).await.unwrap();
    assert_eq!(findings.len(), 1);
    assert_eq!(
        (findings[0].level, findings[0].text.as_str()),
        (FindingLevel::Warning, "it is \u{FFFD}[31mred")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_hook_is_refused_when_it_is_loaded() {
    let world = World::new();
    let hook = Hook::new(&world, Kind::Wasm, "db");
    let config = world.config(std::slice::from_ref(&hook));
    for (content, said) in [
        (b"".to_vec(), "is not WebAssembly"),
        (b"\0asm\x01\0\0\0".to_vec(), "core WebAssembly module"),
        (std::fs::read(super::kinds::shipped("image")).unwrap(), "wrong world"),
    ] {
        std::fs::write(world.path(&hook.file()), content).unwrap();
        let failure = super::kinds::load(&config, "db").await.err().unwrap();
        assert_eq!(failure.kind, HookFailureKind::Invalid);
        assert!(failure.text.contains(said), "{said}: {}", failure.text);
    }
}
