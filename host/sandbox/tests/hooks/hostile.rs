//! Programs that do not end, do not stop, or do not behave, in hooks of every kind.

use std::time::{Duration, Instant};

use super::kinds::{Hook, Kind};
use super::world::{World, is_alive};

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_hangs_leaves_no_process_not_even_one_in_a_session_of_its_own() {
    for kind in Kind::ALL {
        let world = World::new();
        let pids = [world.path("child"), world.path("grandchild"), world.path("cleared")];
        let pre = format!(
            "setsid sh -c 'echo $$ > {0}; setsid sh -c \"echo \\$\\$ > {1}; sleep 300\" & sleep 300' &\n\
             env -i setsid /bin/sh -c 'echo $$ > {2}; trap \"\" TERM HUP INT; while :; do /bin/sleep 1; done' &\n\
             while [ ! -s {1} ] || [ ! -s {2} ]; do sleep 0.05; done\nsleep 300",
            pids[0].display(),
            pids[1].display(),
            pids[2].display()
        );
        let hook = Hook::new(&world, kind, "db").pre(&pre).timeout_ms(4000);
        let point = world.point(&[hook]).await;
        let code = point.hooks[0].pre.as_ref().unwrap().code.clone();
        assert_eq!(code.as_deref(), Some(kind.code("pre", "timed-out")), "{kind:?}");
        for pid in &pids {
            assert!(!is_alive(pid), "{kind:?}: {}", pid.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_ends_leaves_no_process_either() {
    for kind in Kind::ALL {
        let world = World::new();
        let pid = world.path("pid");
        let hook = Hook::new(&world, kind, "db").pre(&format!(
            "setsid sh -c 'echo $$ > {0}; exec sleep 300' & while [ ! -s {0} ]; do sleep 0.05; done",
            pid.display()
        ));
        let point = world.point(&[hook]).await;
        assert!(point.hooks[0].pre.as_ref().unwrap().ok, "{kind:?}");
        assert!(!is_alive(&pid), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_of_output_neither_blocks_nor_fills_anything() {
    for kind in Kind::ALL {
        let world = World::new();
        let hook = Hook::new(&world, kind, "db")
            .pre("echo first; head -c 1073741824 /dev/zero | tr '\\0' x; echo >&2; echo last >&2")
            .timeout_ms(120_000);
        let world = world.holding_at_most("5m");
        let point = world.point(&[hook]).await;
        let pre = point.hooks[0].pre.as_ref().unwrap();
        if kind == Kind::Wasm {
            // A component says how much it wants, and more is a failure.
            let error = pre.error.as_deref().unwrap();
            assert!(error.contains("wrote more than the"), "{kind:?}: {error}");
            continue;
        }
        assert!(pre.ok, "{kind:?}: {:?}", pre.error);
        assert!(pre.output.len() <= 64 * 1024, "{kind:?}: {}", pre.output.len());
        assert!(pre.output.contains("first\n"), "{kind:?}: the beginning is kept");
        assert!(pre.output.ends_with("more bytes not kept]\n"), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_closes_its_output_is_waited_for_and_ended_all_the_same() {
    for kind in Kind::ALL {
        let world = World::new();
        let done = world.path("done");
        let hook = Hook::new(&world, kind, "db")
            .pre(&format!("exec 0<&- 1>&- 2>&-; sleep 0.5; : > {}", done.display()))
            .post("exec 0<&- 1>&- 2>&-; sleep 300")
            .timeout_ms(2000);
        let before = Instant::now();
        let point = world.point(&[hook]).await;
        assert!(before.elapsed() < Duration::from_secs(30), "{kind:?}");
        assert!(
            point.hooks[0].pre.as_ref().unwrap().ok && done.exists(),
            "{kind:?}: {point:?}"
        );
        let post = point.hooks[0].post.as_ref().unwrap();
        assert_eq!(post.code.as_deref(), Some(kind.code("post", "timed-out")), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_ignores_every_signal_it_can_is_ended() {
    for kind in Kind::ALL {
        let world = World::new();
        let pid = world.path("pid");
        let hook = Hook::new(&world, kind, "db")
            .pre(&format!(
                "trap '' HUP INT QUIT TERM USR1 USR2 ALRM; echo $$ > {}; while :; do sleep 1; done",
                pid.display()
            ))
            .timeout_ms(1500);
        let before = Instant::now();
        let point = world.point(&[hook]).await;
        assert!(before.elapsed() < Duration::from_secs(30), "{kind:?}");
        assert!(!is_alive(&pid), "{kind:?}");
        assert!(point.hooks[0].post.as_ref().unwrap().ok, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_given_up_ends_its_hook() {
    for kind in Kind::ALL {
        let world = World::new();
        let pid = world.path("pid");
        let hook = Hook::new(&world, kind, "db").pre(&format!("echo $$ > {}; exec sleep 300", pid.display()));
        let loaded = world.load(&hook).await.unwrap();
        let context = super::exec::context();
        let started = async {
            while !std::fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n')) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            ended = loaded.pre(&context) => panic!("{kind:?}: {ended:?}"),
            () = started => {}
        }
        let ends_by = Instant::now() + Duration::from_secs(10);
        while is_alive(&pid) {
            assert!(Instant::now() < ends_by, "{kind:?} still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
