//! What `pre` does to the system is undone: by `post`, by its end, by the end of `pre`, by the guard.

use std::sync::Mutex;
use std::time::Instant;

use coffre_engine::HookFailureKind;
use coffre_engine::freeze::{Freezer, FrozenMounts};
use coffre_guard::{FreezeEnd, FreezeError, Guard, GuardConfig, Owner, Thawed, ThawedMount};

use super::super::undo::Services;
use super::*;

/// A guard of the test's own: `coffre-guard` as it is built beside the tests.
fn guard(folder: &Path) -> Guard {
    let program = std::env::current_exe().unwrap();
    // target/debug/deps/coffre_sandbox-…
    let program = program.ancestors().nth(2).unwrap().join("coffre-guard");
    assert!(
        program.exists(),
        "{} is not there\nhint: `cargo xtask test` builds it, or `cargo build --workspace --bins`",
        program.display()
    );
    Guard::new(GuardConfig {
        program,
        run: folder.join("run"),
        state: folder.join("state"),
    })
}

/// A host with services, whose manager is a stand-in for `systemctl` and `service`.
struct Host {
    scripts: Scripts,
    guard: Guard,
}

impl Host {
    fn new(script: &str, is_systemd: bool) -> Self {
        let mut scripts = Scripts::with(script);
        let folder = scripts.folder.path().display().to_string();
        let stand_in = format!(
            "#!/bin/sh\ncd {folder}; case $1 in is-active) shift 2; set -- \"$1\" status;; start|stop) set -- \"$2\" \"$1\";; esac\n\
             case $2 in status) [ -e $1.runs ];; start) echo \"start $1\" >> done; touch $1.runs\n\
             [ ! -e daemons ] || {{ sleep 300 & echo $! > $1.pid; }} >&- 2>&-;; stop) echo \"stop $1\" >> done; rm $1.runs;; esac\n"
        );
        let tool = scripts.write("manager", &stand_in);
        fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
        scripts.spec.services = Services {
            program: tool,
            is_systemd,
        };
        scripts.spec.granted_services = vec!["app".to_owned(), "web".to_owned()];
        let guard = guard(scripts.folder.path());
        let host = Self { scripts, guard };
        host.runs("app");
        host
    }

    fn runs(&self, service: &str) {
        fs::write(self.scripts.path(&format!("{service}.runs")), "").unwrap();
    }

    fn is_running(&self, service: &str) -> bool {
        self.scripts.path(&format!("{service}.runs")).exists()
    }

    fn done(&self) -> String {
        fs::read_to_string(self.scripts.path("done")).unwrap_or_default()
    }

    fn context(&self) -> HookContext {
        HookContext {
            guard: Some(self.guard.clone()),
            ..context(20_000)
        }
    }
}

#[tokio::test]
async fn services_that_run_are_stopped_and_started_again_in_reverse() {
    for is_systemd in [true, false] {
        let mut host = Host::new(&shipped::shipped("service.rhai"), is_systemd);
        host.scripts.spec.settings = json!({ "services": ["app", "web"] });
        let hook = host.scripts.load().unwrap();
        assert!(hook.pre(&host.context()).await.unwrap().application_consistent);
        assert!(!host.is_running("app"));
        hook.post(&host.context(), None, SnapshotOutcome::Taken).await.unwrap();
        assert_eq!(host.done(), "stop app\nstart app\n");
        host.runs("web");
        hook.pre(&host.context()).await.unwrap();
        hook.post(&host.context(), None, SnapshotOutcome::Taken).await.unwrap();
        assert!(
            host.done().ends_with("stop app\nstop web\nstart web\nstart app\n"),
            "{}",
            host.done()
        );
    }
}

#[tokio::test]
async fn what_post_leaves_and_what_a_failed_pre_has_done_is_undone() {
    let host = Host::new(
        "fn pre(ctx) { service_stop(\"app\"); } fn post(ctx) { log(\"forgot\"); }",
        true,
    );
    let hook = host.scripts.load().unwrap();
    hook.pre(&host.context()).await.unwrap();
    assert!(!host.is_running("app"));
    hook.post(&host.context(), None, SnapshotOutcome::Taken).await.unwrap();
    assert!(host.is_running("app"));

    for wrong in ["fail(\"no\")", "loop {}", "run(\"/bin/nothing\")"] {
        let host = Host::new(&format!("fn pre(ctx) {{ service_stop(\"app\"); {wrong} }}"), true);
        let hook = host.scripts.load().unwrap();
        hook.pre(&host.context()).await.expect_err(wrong);
        assert_eq!(host.done(), "stop app\nstart app\n", "{wrong}");
    }
}

#[tokio::test]
async fn at_the_end_of_the_hold_the_guard_starts_what_is_stopped_and_post_says_so() {
    let host = Host::new(
        "fn pre(ctx) { service_stop(\"app\"); } fn post(ctx) { service_start(\"app\"); }",
        true,
    );
    let hook = host.scripts.load().unwrap();
    let context = HookContext {
        hold_left: Duration::from_millis(800),
        ..host.context()
    };
    hook.pre(&context).await.unwrap();
    assert!(!host.is_running("app"));
    let began = Instant::now();
    while !host.is_running("app") {
        assert!(began.elapsed() < Duration::from_secs(10), "nobody has started it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The guard writes down that it has paid before it answers.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let failure = hook
        .post(&host.context(), None, SnapshotOutcome::Taken)
        .await
        .unwrap_err();
    assert!(
        failure
            .text
            .ends_with("the guard had to start app, since the hold was over"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_daemon_that_an_init_script_starts_goes_on_running() {
    let host = Host::new(
        "fn pre(ctx) { service_stop(\"app\"); } fn post(ctx) { service_start(\"app\"); }",
        false,
    );
    host.scripts.write("daemons", "");
    let hook = host.scripts.load().unwrap();
    hook.pre(&host.context()).await.unwrap();
    hook.post(&host.context(), None, SnapshotOutcome::Taken).await.unwrap();
    let file = host.scripts.path("app.pid");
    assert!(is_alive(&file));
    let pid = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_command_that_is_owed_runs_only_if_post_does_not_come_to_its_end() {
    for (after, runs) in [("", false), ("fail(\"no\")", true), ("loop {}", true)] {
        let scripts = Scripts::with("").granted(&[SHELL]);
        let file = scripts.path("ran");
        let script = format!(
            "fn pre(ctx) {{ debt(\"/bin/sh\", [\"-c\", \"touch {}\"]); }} fn post(ctx) {{ {after} }}",
            file.display()
        );
        scripts.write("hook.rhai", &script);
        let hook = scripts.load().unwrap();
        let context = HookContext {
            guard: Some(guard(scripts.folder.path())),
            ..context(2000)
        };
        hook.pre(&context).await.unwrap();
        assert!(!file.exists());
        let _ = hook.post(&context, None, SnapshotOutcome::Taken).await;
        assert_eq!(file.exists(), runs, "{after}");
    }
}

/// Freezes nothing, and writes down what it would.
struct Pretends {
    log: Arc<Mutex<Vec<String>>>,
    end: FreezeEnd,
}

struct Pretended(Vec<PathBuf>, Arc<Mutex<Vec<String>>>, FreezeEnd);

impl Freezer for Pretends {
    fn look(&self, _: &[PathBuf]) -> Result<(), FreezeError> {
        Ok(())
    }

    fn freeze(&self, owner: &Owner, mounts: &[PathBuf], _: Instant) -> Result<Box<dyn FrozenMounts>, FreezeError> {
        assert_eq!(owner.job, "job-7");
        let mut log = self.log.lock().unwrap();
        if let Some(busy) = mounts.iter().find(|mount| mount.ends_with("busy")) {
            return Err(FreezeError::Busy(busy.clone()));
        }
        log.push(format!("freeze {mounts:?}"));
        Ok(Box::new(Pretended(
            mounts.to_owned(),
            self.log.clone(),
            self.end.clone(),
        )))
    }
}

impl FrozenMounts for Pretended {
    fn holds(&self) -> bool {
        self.2 == FreezeEnd::Held
    }

    fn thaw(self: Box<Self>) -> Thawed {
        self.1.lock().unwrap().push(format!("thaw {:?}", self.0));
        let ended = |mount| ThawedMount {
            mount,
            end: self.2.clone(),
        };
        Thawed {
            held: Duration::from_secs(1),
            mounts: self.0.iter().cloned().map(ended).collect(),
        }
    }
}

/// Runs `pre` and, if that is well, `post` with a script that may freeze three mount points.
async fn freezing(script: &str, end: FreezeEnd) -> (Vec<String>, Result<(), HookFailure>) {
    let mut scripts = Scripts::with(script);
    scripts.spec.freezable = ["/srv", "/srv/app", "/srv/busy"].map(str::to_owned).to_vec();
    scripts.spec.settings = json!({ "mounts": ["/srv", "/srv/app"], "skip": ["/srv/app"] });
    let log = Arc::new(Mutex::new(Vec::new()));
    let context = HookContext {
        guard: Some(guard(scripts.folder.path())),
        freezer: Some(Arc::new(Pretends { log: log.clone(), end })),
        ..context(5000)
    };
    let hook = scripts.load().unwrap();
    let ended = match hook.pre(&context).await {
        Ok(_) => hook.post(&context, None, SnapshotOutcome::Taken).await.map(drop),
        Err(failure) => Err(failure),
    };
    let log = std::mem::take(&mut *log.lock().unwrap());
    (log, ended)
}

#[tokio::test]
async fn file_systems_are_frozen_and_thawed_in_reverse() {
    let script = "fn pre(ctx) { freeze(\"/srv/app\"); freeze([\"/srv\"]); } fn post(ctx) { thaw(); log(\"and on\"); }";
    let (log, ended) = freezing(script, FreezeEnd::Held).await;
    let both = [
        "freeze [\"/srv/app\"]",
        "freeze [\"/srv\"]",
        "thaw [\"/srv\"]",
        "thaw [\"/srv/app\"]",
    ];
    assert_eq!(log, both);
    assert!(ended.is_ok());
    let (log, _) = freezing(&shipped::shipped("fsfreeze.rhai"), FreezeEnd::Held).await;
    assert_eq!(log, ["freeze [\"/srv\"]", "thaw [\"/srv\"]"]);
    for (script, fails) in [
        ("fn pre(ctx) { freeze(\"/srv\"); } fn post(ctx) {}", false),
        ("fn pre(ctx) { freeze(\"/srv\"); }", false),
        ("fn pre(ctx) { freeze(\"/srv\"); fail(\"no\"); }", true),
        ("fn pre(ctx) { freeze(\"/srv\"); loop {} }", true),
        ("fn pre(ctx) { freeze(\"/srv\"); freeze(\"/srv/busy\"); }", true),
    ] {
        let (log, ended) = freezing(script, FreezeEnd::Held).await;
        assert_eq!(log, ["freeze [\"/srv\"]", "thaw [\"/srv\"]"], "{script}");
        assert_eq!(ended.is_err(), fails, "{script}");
    }
}

#[tokio::test]
async fn a_freeze_that_did_not_hold_fails_post() {
    for script in [
        "fn pre(ctx) { freeze(\"/srv\"); } fn post(ctx) { thaw(); }",
        "fn pre(ctx) { freeze(\"/srv\"); } fn post(ctx) {}",
        // Nobody who reads the point would learn of it.
        "fn pre(ctx) { freeze(\"/srv\"); } fn post(ctx) { try { thaw(); } catch {} }",
    ] {
        let (_, ended) = freezing(script, FreezeEnd::ByGuard).await;
        let said = ended.unwrap_err().text;
        assert!(
            said.ends_with("/srv: the guard had thawed it, since the hold was over"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn what_is_not_granted_is_neither_frozen_nor_stopped() {
    for script in [
        "fn pre(ctx) { freeze(\"/home\"); }",
        "fn pre(ctx) { freeze([\"/srv\", \"/\"]); }",
        "fn pre(ctx) { freeze(\"/srv/\" + \"../home\"); }",
        "fn pre(ctx) { service_stop(\"sshd\"); }",
        "fn pre(ctx) { service_stop(\"--all\"); }",
        "fn pre(ctx) { debt(\"/bin/rm\", [\"-rf\", \"/srv\"]); }",
    ] {
        let (log, ended) = freezing(script, FreezeEnd::Held).await;
        assert_eq!(ended.unwrap_err().kind, HookFailureKind::Denied, "{script}");
        assert!(log.is_empty(), "{log:?}");
    }
}

#[tokio::test]
async fn without_a_guard_nothing_is_frozen_or_stopped() {
    let mut scripts = Scripts::with("fn pre(ctx) { freeze(\"/srv\"); }");
    scripts.spec.freezable = vec!["/srv".to_owned()];
    let failure = scripts.pre().await.unwrap_err();
    assert!(
        failure.text.ends_with("freeze needs the guard, and there is none here"),
        "{failure}"
    );
}
