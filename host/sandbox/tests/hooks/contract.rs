//! What every kind of hook keeps to.

use std::time::{Duration, Instant};

use coffre_engine::Consistency;
use coffre_engine::HookFailureKind;
use coffre_engine::job::JobError;

use super::kinds::{Hook, Kind};
use super::world::{Take, World};

#[tokio::test(flavor = "multi_thread")]
async fn hooks_of_all_kinds_run_in_order_and_back_around_one_snapshot() {
    let world = World::new();
    let hooks = [
        Hook::new(&world, Kind::Rhai, "one"),
        Hook::new(&world, Kind::Exec, "two"),
        Hook::new(&world, Kind::Azure, "three"),
        Hook::new(&world, Kind::Wasm, "four"),
        Hook::new(&world, Kind::Agent, "five"),
        Hook::new(&world, Kind::Ssh, "six"),
    ];
    let point = world.point(&hooks).await;
    assert_eq!(
        world.log(),
        [
            "pre one",
            "pre two",
            "pre three",
            "pre four",
            "pre five",
            "pre six",
            "take",
            "post six",
            "post five",
            "post four",
            "post three",
            "post two",
            "post one"
        ]
    );
    assert_eq!(point.consistency.reached, Consistency::Application);
    assert_eq!(
        point.consistency.reason,
        "brought to rest by one, two, three, four, five, six"
    );
    let kinds: Vec<&str> = point.hooks.iter().map(|hook| hook.kind.as_str()).collect();
    assert_eq!(kinds, ["rhai", "exec", "azure", "wasm", "exec", "exec"]);
    for hook in &point.hooks {
        for step in [&hook.pre, &hook.post] {
            let step = step.as_ref().unwrap();
            assert_eq!((step.ok, step.attempts, &step.code), (true, 1, &None), "{hook:?}");
        }
    }
    assert!(point.held_ms.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_runs_the_hook_again() {
    for kind in Kind::ALL {
        let world = World::new();
        let hook = Hook::new(&world, kind, "db")
            .pre(&format!("[ $(grep -c 'pre db' {}) = 3 ]", world.log_file().display()))
            .retries(2);
        let point = world.point(&[hook]).await;
        assert_eq!(
            world.log(),
            ["pre db", "pre db", "pre db", "take", "post db"],
            "{kind:?}"
        );
        let pre = point.hooks[0].pre.as_ref().unwrap();
        assert_eq!((pre.ok, pre.attempts), (true, 3), "{kind:?}");
        assert_eq!(point.consistency.reached, Consistency::Application, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_attempts_than_the_retries_allow() {
    for kind in Kind::ALL {
        let world = World::new();
        let hook = Hook::new(&world, kind, "db").pre("echo broken >&2; exit 9").retries(1);
        let point = world.point(&[hook]).await;
        assert_eq!(world.log(), ["pre db", "pre db", "take", "post db"], "{kind:?}");
        let pre = point.hooks[0].pre.as_ref().unwrap();
        assert_eq!((pre.ok, pre.attempts), (false, 2), "{kind:?}");
        assert_eq!(pre.code.as_deref(), Some(kind.code("pre", "failed")), "{kind:?}");
        let error = pre.error.as_deref().unwrap();
        assert!(error.contains("broken"), "{kind:?}: {error}");
        assert!(pre.output.contains("broken"), "{kind:?}: {}", pre.output);
        assert_eq!(point.consistency.reached, Consistency::Crash, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_75_asks_for_another_try_of_pre_and_of_post() {
    for kind in Kind::ALL {
        let world = World::new();
        let log = world.log_file().display().to_string();
        let hook = Hook::new(&world, kind, "db")
            .pre(&format!("[ $(grep -c 'pre db' {log}) = 2 ] || exit 75"))
            .post(&format!("[ $(grep -c 'post db' {log}) = 2 ] || exit 75"));
        let point = world.point(&[hook]).await;
        assert_eq!(
            world.log(),
            ["pre db", "pre db", "take", "post db", "post db"],
            "{kind:?}"
        );
        assert_eq!(point.consistency.reached, Consistency::Application, "{kind:?}");

        // One that asks for ever gets one more try, and then what its failure means.
        let world = World::new();
        let hook = Hook::new(&world, kind, "db").pre("exit 75");
        let point = world.point(&[hook]).await;
        assert_eq!(world.log(), ["pre db", "pre db", "take", "post db"], "{kind:?}");
        let pre = point.hooks[0].pre.as_ref().unwrap();
        assert_eq!(pre.code.as_deref(), Some(kind.code("pre", "try-again")), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_for_one_attempt() {
    for kind in Kind::ALL {
        let world = World::new();
        let hook = Hook::new(&world, kind, "db")
            .pre(&format!(
                "[ $(grep -c 'pre db' {}) = 2 ] || sleep 60",
                world.log_file().display()
            ))
            .timeout_ms(1500)
            .retries(1);
        let before = Instant::now();
        let point = world.point(&[hook]).await;
        assert!(before.elapsed() < Duration::from_secs(30), "{kind:?}");
        assert_eq!(world.log(), ["pre db", "pre db", "take", "post db"], "{kind:?}");
        let pre = point.hooks[0].pre.as_ref().unwrap();
        assert_eq!((pre.ok, pre.attempts), (true, 2), "{kind:?}: {pre:?}");
        assert!(pre.duration_ms >= 1500, "{kind:?}: {pre:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pre_that_hangs_is_ended_and_its_post_runs() {
    for kind in Kind::ALL {
        let world = World::new();
        let hook = Hook::new(&world, kind, "db").pre("sleep 60").timeout_ms(1000);
        let point = world.point(&[hook]).await;
        assert_eq!(world.log(), ["pre db", "take", "post db"], "{kind:?}");
        let (pre, post) = (
            point.hooks[0].pre.as_ref().unwrap(),
            point.hooks[0].post.as_ref().unwrap(),
        );
        assert_eq!(
            pre.code.as_deref(),
            Some(kind.code("pre", "timed-out")),
            "{kind:?}: {pre:?}"
        );
        assert!(post.ok, "{kind:?}");
        assert_eq!(point.consistency.reached, Consistency::Crash, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_attempts_together_stay_within_the_hold() {
    for kind in Kind::ALL {
        let world = World::new().holding_at_most("2s");
        let hook = Hook::new(&world, kind, "db").pre("sleep 0.5; exit 1").retries(10);
        let other = Hook::new(&world, kind, "late").pre("sleep 60");
        let before = Instant::now();
        let point = world.point(&[hook, other]).await;
        assert!(before.elapsed() < Duration::from_secs(20), "{kind:?}");
        let first = point.hooks[0].pre.as_ref().unwrap();
        assert!((1..=4).contains(&first.attempts), "{kind:?}: {first:?}");
        // The other had what was left of the hold, or nothing; then the snapshot was taken all the same.
        let late = point.hooks[1].pre.as_ref().unwrap();
        assert!(!late.ok, "{kind:?}: {late:?}");
        assert_eq!(
            late.attempts == 0,
            point.hooks[1].post.is_none(),
            "{kind:?}: {:?}",
            point.hooks[1]
        );
        assert!(world.log().contains(&"take".to_owned()), "{kind:?}");
        assert_eq!(point.consistency.reached, Consistency::Crash, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_are_let_go_at_the_end_of_the_hold_without_waiting_for_the_snapshot() {
    for kind in Kind::ALL {
        let world = World::new()
            .holding_at_most("1500ms")
            .taking(Take::After(Duration::from_secs(4)));
        let told = world.path("told");
        let hook = Hook::new(&world, kind, "db").post(&format!("echo \"$COFFRE_OUTCOME\" > {}", told.display()));
        let point = world.point(&[hook]).await;
        assert_eq!(std::fs::read_to_string(told).unwrap(), "failed\n", "{kind:?}");
        assert!(point.held_ms.unwrap() < 3500, "{kind:?}: {:?}", point.held_ms);
        assert_eq!(point.consistency.reached, Consistency::Crash, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_means_what_the_configuration_says() {
    for kind in Kind::ALL {
        let world = World::new();
        let fails = Hook::new(&world, kind, "db").pre("exit 1").on_failure("fail");
        let error = world.backup(&[fails]).await.unwrap_err();
        assert!(
            matches!(&error, JobError::Hook { step: "pre", .. }),
            "{kind:?}: {error:?}"
        );
        assert_eq!(world.log(), ["pre db", "post db"], "{kind:?}: no snapshot is taken");

        let world = World::new();
        let fails = Hook::new(&world, kind, "db").post("exit 1").on_failure("fail");
        let error = world.backup(&[fails]).await.unwrap_err();
        assert!(
            matches!(&error, JobError::Hook { step: "post", .. }),
            "{kind:?}: {error:?}"
        );

        let world = World::new();
        let point = world.point(&[Hook::new(&world, kind, "db").post("exit 1")]).await;
        assert_eq!(point.consistency.reached, Consistency::Crash, "{kind:?}");
        let post = point.hooks[0].post.as_ref().unwrap();
        assert_eq!(post.code.as_deref(), Some(kind.code("post", "failed")), "{kind:?}");

        // Azure's file has no word for it.
        if kind != Kind::Azure {
            let world = World::new();
            let warns = Hook::new(&world, kind, "db").pre("exit 1").on_failure("warn");
            let point = world.point(&[warns, Hook::new(&world, kind, "other")]).await;
            assert_eq!(point.consistency.reached, Consistency::Application, "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_that_were_not_started_have_no_post() {
    for kind in Kind::ALL {
        let world = World::new();
        let hooks = [
            Hook::new(&world, kind, "one"),
            Hook::new(&world, kind, "two").pre("exit 1").on_failure("fail"),
            Hook::new(&world, kind, "three"),
        ];
        assert!(world.backup(&hooks).await.is_err(), "{kind:?}");
        assert_eq!(world.log(), ["pre one", "pre two", "post two", "post one"], "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_told_of_their_call_and_post_of_the_snapshot() {
    for kind in Kind::ALL {
        for (take, wanted) in [(Take::Works, "taken application 40"), (Take::Fails, "failed  ")] {
            let world = World::new().taking(take);
            let (pre, post) = (world.path("told-pre"), world.path("told-post"));
            let about = "$COFFRE_HOOK $COFFRE_PHASE $COFFRE_MACHINE $COFFRE_OS $COFFRE_DISKS $COFFRE_POLICY $COFFRE_WANTED $COFFRE_ATTEMPT $COFFRE_HOLD_AT_MOST_MS";
            let hook = Hook::new(&world, kind, "db")
                .pre(&format!(
                    "echo \"{about} [$COFFRE_OUTCOME$COFFRE_CONSISTENCY$COFFRE_HELD_MS] ${{COFFRE_JOB:+job}}\" > {}",
                    pre.display()
                ))
                .post(&format!(
                    "echo \"{about} $COFFRE_OUTCOME $COFFRE_CONSISTENCY $COFFRE_FROZEN_MS\" > {0}; [ \"$COFFRE_HELD_MS\" -gt 0 ] || echo \"held $COFFRE_HELD_MS\" >> {0}",
                    post.display()
                ));
            let result = world.backup(&[hook]).await;
            assert_eq!(result.is_ok(), matches!(take, Take::Works), "{kind:?}: {result:?}");
            let read = |path| std::fs::read_to_string(path).unwrap();
            assert_eq!(
                read(&pre),
                "db pre m linux vda p application 1 60000 [] job\n",
                "{kind:?}"
            );
            assert_eq!(
                read(&post),
                format!("db post m linux vda p application 1 60000 {wanted}\n"),
                "{kind:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_told_that_the_point_is_worth_less_when_a_pre_failed() {
    for kind in Kind::ALL {
        let world = World::new();
        let told = world.path("told");
        let hooks = [
            Hook::new(&world, kind, "one").post(&format!("echo \"$COFFRE_CONSISTENCY\" > {}", told.display())),
            Hook::new(&world, kind, "two").pre("exit 1"),
        ];
        world.point(&hooks).await;
        assert_eq!(std::fs::read_to_string(told).unwrap(), "crash\n", "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_fixed() {
    // Cargo sets this for the test, so a hook would see it if it saw ours.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    for kind in Kind::ALL {
        let world = World::new();
        let told = world.path("told");
        let hook = Hook::new(&world, kind, "db").pre(&format!(
            "{{ env | cut -d= -f1 | grep -v ^COFFRE_ | sort | tr '\\n' ' '; echo; pwd; echo \"$PATH $LANG\"; if read x; then echo input; fi; tty; }} > {} 2>&1 || true",
            told.display()
        ));
        world.point(&[hook]).await;
        let told = std::fs::read_to_string(told).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        // What a shell itself sets (PWD, and with some shells OLDPWD, SHLVL and _) is the hook's own.
        let own = ["OLDPWD", "PWD", "SHLVL", "_"];
        let names: Vec<&str> = lines[0].split_whitespace().filter(|name| !own.contains(name)).collect();
        assert_eq!(names, ["HOME", "LANG", "PATH"], "{kind:?}: {told}");
        assert_eq!(lines[1], "/", "{kind:?}");
        assert_eq!(
            lines[2], "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin C.UTF-8",
            "{kind:?}"
        );
        assert!(
            !lines.contains(&"input") && lines.contains(&"not a tty"),
            "{kind:?}: {told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_can_write_is_not_run() {
    for kind in Kind::ALL {
        for what in ["file", "folder", "above"] {
            let world = World::new();
            let hook = Hook::new(&world, kind, "db");
            // Written where a folder of this test's own lies above.
            let config = world.config(std::slice::from_ref(&hook));
            let code = match kind {
                Kind::Azure => world.path("scripts/db-pre"),
                _ => world.path(&hook.file()),
            };
            let (path, mode) = match what {
                "file" => (
                    code,
                    if matches!(kind, Kind::Rhai | Kind::Wasm) {
                        0o646
                    } else {
                        0o747
                    },
                ),
                "folder" => (world.path("scripts"), 0o777),
                _ => (world.path(""), 0o707),
            };
            let set = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, set).unwrap();
            let context = super::exec::context();
            let refused = match super::kinds::load(&config, "db").await {
                Ok(hook) => hook.pre(&context).await.unwrap_err(),
                Err(failure) => failure,
            };
            assert_eq!(refused.kind, HookFailureKind::Invalid, "{kind:?} {what}: {refused:?}");
            assert!(refused.text.contains("can be "), "{kind:?} {what}: {refused:?}");
            assert!(world.log().is_empty(), "{kind:?} {what}: nothing ran");
        }
    }
}
