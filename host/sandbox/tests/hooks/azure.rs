//! What Azure's framework for pre and post scripts promises: its file as it is, its defaults, its names for what went wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use coffre_engine::job::{BackupReport, JobError};
use coffre_engine::{Consistency, FindingLevel, HookTerms};
use coffre_tests::mount::Scratch;
use serde_json::{Value, json};

use super::kinds::{Hook, Kind};
use super::world::{World, takes_writes};

/// Backs up with the file of a hook changed, and its scripts or their rights.
async fn backup(world: &World, change: impl Fn(&mut Value), then: impl Fn(&World)) -> Result<BackupReport, JobError> {
    let hook = Hook::new(world, Kind::Azure, "db");
    let table = |world: &World| {
        let table = hook.table(world);
        let path = world.path(&hook.file());
        let mut file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut file);
        fs::write(&path, file.to_string()).unwrap();
        then(world);
        table
    };
    world.backup_with(&["db"], &table(world)).await
}

fn script(world: &World, which: &str, text: &str) {
    world.write(&format!("scripts/db-{which}"), &format!("#!/bin/sh\n{text}\n"), 0o700);
}

fn mode(world: &World, name: &str, mode: u32) {
    fs::set_permissions(world.path(name), Permissions::from_mode(mode)).unwrap();
}

/// What went wrong with `pre` and `post`, by the framework's names.
fn codes(report: &BackupReport) -> (Option<&str>, Option<&str>) {
    fn code(step: &Option<coffre_vault::StepOutcome>) -> Option<&str> {
        step.as_ref()?.code.as_deref()
    }
    let hook = &report.point.hooks[0];
    (code(&hook.pre), code(&hook.post))
}

/// What is done to the file, and to the scripts or their rights.
type Change = fn(&mut Value);
type Then = fn(&World);
type Codes = (Option<&'static str>, Option<&'static str>);

#[tokio::test(flavor = "multi_thread")]
async fn every_outcome_has_the_frameworks_name() {
    let nothing: Change = |_| {};
    let table: Vec<(&str, Change, Then, Codes, &[&str])> = vec![
        ("working", nothing, |_| {}, (None, None), &["pre db", "take", "post db"]),
        (
            "a failing pre",
            nothing,
            |world| script(world, "pre", "exit 2"),
            (Some("FailedPrepostPreScriptFailed"), None),
            &["take", "post db"],
        ),
        (
            "a failing post",
            nothing,
            |world| script(world, "post", "exit 1"),
            (None, Some("FailedPrepostPostScriptFailed")),
            &["pre db", "take"],
        ),
        (
            "a hanging pre",
            |file| file["timeoutInSeconds"] = json!(1),
            |world| script(world, "pre", "sleep 60"),
            (Some("FailedPrepostPreScriptTimeout"), None),
            &["take", "post db"],
        ),
        (
            "a hanging post",
            |file| file["timeoutInSeconds"] = json!(1),
            |world| script(world, "post", "sleep 60"),
            (None, Some("FailedPrepostPostScriptTimeout")),
            &["pre db", "take"],
        ),
        (
            "a missing pre",
            nothing,
            |world| fs::remove_file(world.path("scripts/db-pre")).unwrap(),
            (Some("FailedPrepostPreScriptNotFound"), None),
            &["take"],
        ),
        (
            "no pre named",
            |file| file["preScriptLocation"] = json!(""),
            |_| {},
            (Some("FailedPrepostPreScriptNotFound"), None),
            &["take"],
        ),
        (
            // Nothing is held that could not be let go.
            "a missing post",
            nothing,
            |world| fs::remove_file(world.path("scripts/db-post")).unwrap(),
            (Some("FailedPrepostPostScriptNotFound"), None),
            &["take"],
        ),
        (
            "a pre that others can read",
            nothing,
            |world| mode(world, "scripts/db-pre", 0o744),
            (Some("FailedPrepostPreScriptPermissionError"), None),
            &["take"],
        ),
        (
            "a post that the group can write",
            nothing,
            |world| mode(world, "scripts/db-post", 0o720),
            (Some("FailedPrepostPostScriptPermissionError"), None),
            &["take"],
        ),
        (
            "a pre that cannot be executed",
            nothing,
            |world| mode(world, "scripts/db-pre", 0o600),
            (Some("FailedPrepostPreScriptPermissionError"), None),
            &["take"],
        ),
        (
            "a file that others can read",
            nothing,
            |world| mode(world, "scripts/db.json", 0o640),
            (Some("FailedPrepostPluginConfigPermissionError"), None),
            &["take"],
        ),
        (
            "a file that is no JSON",
            nothing,
            |world| drop(world.write("scripts/db.json", "{ \"pluginName\": ", 0o600)),
            (Some("FailedPrepostPluginConfigParsing"), None),
            &["take"],
        ),
        (
            "no file",
            nothing,
            |world| fs::remove_file(world.path("scripts/db.json")).unwrap(),
            (Some("FailedPrepostPluginConfigNotFound"), None),
            &["take"],
        ),
    ];
    for (what, change, then, wanted, log) in table {
        let world = World::new();
        let report = backup(&world, change, then)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(codes(&report), wanted, "{what}");
        assert_eq!(world.log(), log, "{what}");
        let reached = if wanted == (None, None) {
            Consistency::Application
        } else {
            Consistency::Crash
        };
        assert_eq!(report.point.consistency.reached, reached, "{what}");
        if let Some(code) = wanted.0 {
            let error = report.point.hooks[0].pre.as_ref().unwrap().error.clone().unwrap();
            assert!(error.contains(code), "{what}: people search for the name: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_does_not_belong_to_root_is_not_run() {
    assert!(is_root(), "this test gives files to another user\nhint: run it as root");
    for (name, wanted) in [
        ("scripts/db-pre", "FailedPrepostPreScriptPermissionError"),
        ("scripts/db-post", "FailedPrepostPostScriptPermissionError"),
        ("scripts/db.json", "FailedPrepostPluginConfigPermissionError"),
    ] {
        let world = World::new();
        let given_away = |world: &World| chown(world.path(name), Some(65534), Some(65534)).unwrap();
        let report = backup(&world, |_| {}, given_away).await.unwrap();
        assert_eq!(codes(&report), (Some(wanted), None));
        assert_eq!(world.log(), ["take"]);
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retries_of_both_scripts_run_them_again() {
    let world = World::new();
    let log = world.log_file().display().to_string();
    let counts = |which: &str, times: u32| format!("echo {which} >> {log}; [ $(grep -c {which} {log}) = {times} ]");
    let report = backup(
        &world,
        |file| {
            file["preScriptNoOfRetries"] = json!(2);
            file["postScriptNoOfRetries"] = json!(3);
        },
        |world| {
            script(world, "pre", &counts("pre", 3));
            script(world, "post", &counts("post", 4));
        },
    )
    .await
    .unwrap();
    assert_eq!(
        world.log(),
        ["pre", "pre", "pre", "take", "post", "post", "post", "post"]
    );
    assert_eq!(codes(&report), (None, None));
    let hook = &report.point.hooks[0];
    assert_eq!(hook.pre.as_ref().unwrap().attempts, 3);
    assert_eq!(hook.post.as_ref().unwrap().attempts, 4);
    assert_eq!(report.point.consistency.reached, Consistency::Application);
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_failed_script_ends_the_backup_is_the_files_to_say() {
    for (goes_on, freeze, ends) in [
        (Some(true), Some(true), false),
        (None, None, false),
        (Some(false), Some(true), true),
        (Some(true), Some(false), true),
        (None, Some(false), true),
    ] {
        for which in ["pre", "post"] {
            let world = World::new();
            let result = backup(
                &world,
                |file| {
                    let table = file.as_object_mut().unwrap();
                    table.remove("continueBackupOnFailure");
                    goes_on.map(|goes_on| table.insert("continueBackupOnFailure".to_owned(), json!(goes_on)));
                    freeze.map(|freeze| table.insert("fsFreezeEnabled".to_owned(), json!(freeze)));
                },
                |world| script(world, which, "exit 1"),
            )
            .await;
            assert_eq!(result.is_err(), ends, "{goes_on:?} {freeze:?} {which}: {result:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_arrive_as_they_are_the_empty_ones_too() {
    let world = World::new();
    let told = world.path("told").display().to_string();
    backup(
        &world,
        |file| {
            file["preScriptParams"] = json!(["", "a b", "", "$(reboot)", 3]);
            file["postScriptParams"] = json!(["", ""]);
        },
        |world| {
            for which in ["pre", "post"] {
                script(world, which, &format!("printf '[%s]' {which} \"$@\" >> {told}"));
            }
        },
    )
    .await
    .unwrap();
    assert_eq!(
        fs::read_to_string(&told).unwrap(),
        "[pre][][a b][][$(reboot)][3][post][][]"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_says_how_it_is_run_and_a_check_what_is_wrong_with_it() {
    let world = World::new();
    let hook = Hook::new(&world, Kind::Azure, "db").timeout_ms(45_000).retries(1);
    let loaded = world.load(&hook).await.unwrap();
    assert_eq!(
        loaded.terms(),
        HookTerms {
            timeout: Some(std::time::Duration::from_secs(45)),
            retries: Some(1),
            post_retries: 0,
            on_failure: Some(coffre_engine::config::OnFailure::Downgrade),
            wants_freeze: Some(true),
        }
    );
    assert_eq!(loaded.check(&super::exec::context()).await.unwrap(), []);

    mode(&world, "scripts/db-post", 0o755);
    let findings = loaded.check(&super::exec::context()).await.unwrap();
    assert_eq!(findings[0].level, FindingLevel::Warning);
    assert!(
        findings[0].text.ends_with("(FailedPrepostPostScriptPermissionError)"),
        "{findings:?}"
    );
    let strict = world.load(&hook.on_failure("fail")).await.unwrap();
    mode(&world, "scripts/db-post", 0o755);
    let findings = strict.check(&super::exec::context()).await.unwrap();
    assert_eq!(findings[0].level, FindingLevel::Blocking);
}

#[tokio::test(flavor = "multi_thread")]
async fn file_systems_are_frozen_between_the_scripts_unless_the_file_says_not() {
    for (freeze, about, reached) in [
        (None, "is frozen", Consistency::FileSystem),
        (Some(true), "is frozen", Consistency::FileSystem),
        (Some(false), "takes writes", Consistency::Crash),
    ] {
        let scratch = Scratch::new("ext4", 64 << 20);
        let world = World::new().freezing(&scratch);
        let write = |which: &str| {
            let path = scratch.path().join(which).display().to_string();
            format!(
                "echo {which} db >> {}; echo {which} > {path}",
                world.log_file().display()
            )
        };
        let report = backup(
            &world,
            |file| {
                if let Some(freeze) = freeze {
                    file["fsFreezeEnabled"] = json!(freeze);
                }
            },
            |world| {
                // Both can write there: it is frozen after the one and thawed before the other.
                script(world, "pre", &write("pre"));
                script(world, "post", &write("post"));
            },
        )
        .await
        .unwrap();
        assert_eq!(world.log(), ["pre db", "take", about, "post db"], "{freeze:?}");
        assert_eq!(codes(&report), (None, None));
        assert!(takes_writes(&scratch.path()));
        assert_eq!(report.point.consistency.reached, Consistency::Application);
        assert_eq!(
            report.point.frozen_ms.is_some_and(|frozen_ms| frozen_ms >= 1000),
            reached == Consistency::FileSystem,
            "frozen for as long as the snapshot took: {:?}",
            report.point.frozen_ms
        );

        // As the framework has it: without its scripts the point is still worth what the freeze gives.
        let fails = |file: &mut Value| file["fsFreezeEnabled"] = json!(freeze.unwrap_or(true));
        let result = backup(&world, fails, |world| script(world, "pre", "exit 1")).await;
        match freeze {
            Some(false) => assert!(result.is_err(), "a failed script fails the backup: {result:?}"),
            _ => assert_eq!(result.unwrap().point.consistency.reached, reached),
        }
    }
}
