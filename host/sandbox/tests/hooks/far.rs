//! What is a hook's own that runs in the machine: how the machine is reached, and what is said when it is not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffre_engine::config::Config;
use coffre_engine::{Finding, FindingLevel, HookContext, HookFailure, HookFailureKind, HookRunner, SnapshotOutcome};

use super::exec::context;
use super::guests::{Agent, make_key};
use super::kinds::{Hook, Kind};
use super::world::{World, is_alive};

/// A hook in the machine whose configuration has this in the place of what `table` gives.
fn load(world: &World, on: &str, more: &str) -> Result<Arc<dyn HookRunner>, HookFailure> {
    let file = world.write("scripts/db", "#!/bin/sh\necho ran; : > \"$0.ran\"\n", 0o755);
    let text = format!(
        "[vault.v]\nurl = \"vault\"\nencryption = \"none\"\n[hook.db]\nkind = \"exec\"\nfile = {file:?}\non = \"{on}\"\n{more}"
    );
    let config = Config::parse(&world.path("coffre.toml"), &text).unwrap_or_else(|error| panic!("{error}\nin\n{text}"));
    coffre_sandbox::hook::load_from_config(&config, config.hook("db").unwrap())
}

fn machine(agent: &std::path::Path) -> String {
    format!("[machine.m]\nprovider = \"p\"\nhooks = [\"db\"]\nagent = {agent:?}\n")
}

/// What `check` finds, and how `pre` fails. Nothing of it ran, here or there.
async fn refused(world: &World, hook: &Arc<dyn HookRunner>) -> (Vec<Finding>, HookFailure) {
    let context = HookContext {
        timeout: Duration::from_secs(3),
        ..context()
    };
    let findings = hook.check(&context).await.unwrap();
    let failure = hook.pre(&context).await.unwrap_err();
    assert!(!world.path("scripts/db.ran").exists(), "{failure:?}");
    (findings, failure)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_well_is_looked_at_and_nothing_is_run() {
    for kind in [Kind::Agent, Kind::Ssh] {
        let world = World::new();
        let hook = world.load(&Hook::new(&world, kind, "db")).await.unwrap();
        assert_eq!(hook.check(&context()).await.unwrap(), [], "{kind:?}");
        assert!(world.log().is_empty());
        world.write("scripts/db", "#!/bin/sh\n", 0o757);
        let found = hook.check(&context()).await.unwrap();
        assert_eq!(found[0].level, FindingLevel::Blocking, "{kind:?}");
        assert!(
            found[0].text.contains("can be written by others"),
            "{kind:?}: {found:?}"
        );
        // A pre that was not started has no post.
        assert_eq!(
            hook.pre(&context()).await.unwrap_err().kind,
            HookFailureKind::Invalid,
            "{kind:?}"
        );
        let report = hook.post(&context(), None, SnapshotOutcome::NotTried).await.unwrap();
        assert_eq!(report.output, "not run: its `pre` was not started\n", "{kind:?}");
        assert!(world.log().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_the_way_to_the_program_is_looked_at_there_links_too() {
    for kind in [Kind::Agent, Kind::Ssh] {
        let world = World::new();
        let hook = Hook::new(&world, kind, "db");
        fs::create_dir(world.path("real")).unwrap();
        fs::create_dir(world.path("way")).unwrap();
        std::os::unix::fs::symlink("way/on", world.path("scripts")).unwrap();
        std::os::unix::fs::symlink("../real", world.path("way/on")).unwrap();
        let hook = world.load(&hook).await.unwrap();
        assert!(hook.pre(&context()).await.is_ok(), "{kind:?}");
        fs::set_permissions(world.path("way"), Permissions::from_mode(0o777)).unwrap();
        let failure = hook.pre(&context()).await.unwrap_err();
        assert!(
            failure.text.contains("/way can be written by others"),
            "{kind:?}: {failure:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_may_not_run_commands_is_said_before_anything_is_disturbed() {
    let world = World::new();
    let agent = Agent::start_without(world.path("").as_path(), ",guest-exec");
    let hook = load(&world, "agent", &machine(&agent.socket)).unwrap();
    let (findings, failure) = refused(&world, &hook).await;
    assert_eq!(findings[0].level, FindingLevel::Blocking);
    assert!(findings[0].text.contains("guest-exec is blocked there"), "{findings:?}");
    assert!(findings[0].text.contains("/etc/sysconfig/qemu-ga"), "{findings:?}");
    assert_eq!(failure.kind, HookFailureKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_answer_fails_the_hook_and_never_runs_it_here() {
    let world = World::new();
    let hook = load(&world, "agent", &machine(&world.path("no.sock"))).unwrap();
    let (findings, failure) = refused(&world, &hook).await;
    // What that means for the backup is said by `on-failure`.
    assert_eq!(findings[0].level, FindingLevel::Warning, "{findings:?}");
    assert_eq!(failure.kind, HookFailureKind::Failed);

    // A socket that QEMU listens on, and no agent behind it.
    let _listens = std::os::unix::net::UnixListener::bind(world.path("deaf.sock")).unwrap();
    let hook = load(&world, "agent", &machine(&world.path("deaf.sock"))).unwrap();
    let began = Instant::now();
    let (findings, failure) = refused(&world, &hook).await;
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(findings[0].level, FindingLevel::Warning, "{findings:?}");
    assert_eq!(failure.kind, HookFailureKind::TimedOut);

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    make_key(&world.path("key"));
    let table = format!(
        "[ssh.m]\naddress = \"127.0.0.1\"\nport = {port}\nuser = \"root\"\nkey = \"key\"\nhost-key = {:?}\n",
        make_key(&world.path("host")).trim()
    );
    let hook = load(&world, "ssh:m", &table).unwrap();
    let (findings, failure) = refused(&world, &hook).await;
    assert_eq!(findings[0].level, FindingLevel::Warning, "{findings:?}");
    assert!(failure.text.contains("Connection refused"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_key_than_the_pinned_one_is_refused() {
    let world = World::new();
    let pinned = make_key(&world.path("pinned"));
    let hook = load(&world, "ssh:m", &world.sshd().table_with("m", &pinned)).unwrap();
    let (findings, failure) = refused(&world, &hook).await;
    assert_eq!(findings[0].level, FindingLevel::Blocking);
    assert_eq!(failure.kind, HookFailureKind::Denied);
    assert!(
        failure.text.ends_with("does not have the pinned host key"),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_opens_nothing_or_that_others_can_read_is_refused() {
    let world = World::new();
    let table = world.sshd().table("m");
    let path = world.sshd().key.clone();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let hook = load(&world, "ssh:m", &table).unwrap();
    let (findings, failure) = refused(&world, &hook).await;
    assert_eq!(findings[0].level, FindingLevel::Blocking);
    assert!(failure.text.contains("can be read by others"), "{failure:?}");

    fs::remove_file(&path).unwrap();
    fs::remove_file(path.with_extension("pub")).unwrap();
    make_key(&path);
    let (findings, failure) = refused(&world, &hook).await;
    assert_eq!(findings[0].level, FindingLevel::Blocking);
    assert_eq!(failure.kind, HookFailureKind::Denied);
    assert!(failure.text.contains("lets nobody in with this key"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_whose_ssh_client_is_killed_ends_there_long_before_its_time_is_over() {
    let world = World::new();
    let (pid, told) = (world.path("pid"), world.path("told"));
    let hook = Hook::new(&world, Kind::Ssh, "db").pre(&format!(
        "dirname \"$COFFRE_CONTEXT\" > {1}\n\
         setsid sh -c 'echo $$ > {0}; sleep 300' & while [ ! -s {0} ]; do sleep 0.05; done; sleep 300",
        pid.display(),
        told.display()
    ));
    let hook = world.load(&hook).await.unwrap();
    let key = world.sshd().key.display().to_string();
    let killed = async {
        while !pid.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        kill_client(&key);
    };
    let context = context();
    let (ended, ()) = tokio::join!(hook.pre(&context), killed);
    assert_eq!(ended.unwrap_err().kind, HookFailureKind::Failed);
    let ends_by = Instant::now() + Duration::from_secs(10);
    // Secrets may lie there.
    let folder = fs::read_to_string(told).unwrap();
    let is_left = || std::path::Path::new(folder.trim()).exists();
    while is_alive(&pid) || is_left() {
        assert!(Instant::now() < ends_by, "{} {}", is_alive(&pid), is_left());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Kills the ssh client that uses this key, which no other test has.
fn kill_client(key: &str) {
    let is_it = |folder: &std::path::Path| {
        let words = fs::read(folder.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.starts_with("/usr/bin/ssh\0") && words.contains(&format!("IdentityFile={key}\0"))
    };
    let found = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let found = found.filter(|folder| is_it(folder)).last().expect("the client runs");
    let pid = found.file_name().unwrap().to_str().unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}
