//! What a command may do to us, and must not.

use std::time::{Duration, Instant};

use super::*;

fn shell(script: &str, timeout_ms: u64) -> Command {
    Command::new("/bin/sh", Duration::from_millis(timeout_ms)).args(["-c", script])
}

/// The process whose number a script wrote into a file.
fn is_alive(pid_file: &Path) -> bool {
    let pid = std::fs::read_to_string(pid_file).expect("the script wrote its number");
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_command_gives_its_status_and_both_outputs() {
    let output = run(&shell("echo out; echo err >&2; exit 7", 5000)).unwrap();
    assert_eq!(
        (
            output.status,
            output.stdout.text().as_str(),
            output.stderr.text().as_str()
        ),
        (7, "out\n", "err\n")
    );
}

#[test]
fn the_environment_is_fixed() {
    let mut command = Command::new("/usr/bin/env", Duration::from_secs(5));
    command.environment = vec![("COFFRE_MACHINE".into(), "web 01".into())];
    let text = run(&command).unwrap().stdout.text();
    let mut names: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["COFFRE_MACHINE", "COFFRE_RUN", "HOME", "LANG", "PATH"]);
    assert!(text.contains("COFFRE_MACHINE=web 01\n"));
}

#[test]
fn a_variable_that_a_loader_reads_is_refused() {
    for name in ["LD_PRELOAD", "PATH", "COFFRE_x", "COFFRE_RUN"] {
        let mut command = shell("true", 5000);
        command.environment = vec![(name.into(), "x".into())];
        assert!(matches!(run(&command), Err(ProcessError::BadVariable { .. })), "{name}");
    }
}

#[test]
fn input_larger_than_a_pipe_arrives_whole_and_may_be_left_unread() {
    let mut command = Command::new("/usr/bin/wc", Duration::from_secs(10)).args(["-c"]);
    command.input = vec![b'x'; 3 << 20];
    assert_eq!(run(&command).unwrap().stdout.text().trim(), (3 << 20).to_string());
    let mut command = shell("exit 3", 5000);
    command.input = vec![b'x'; 3 << 20];
    assert_eq!(run(&command).unwrap().status, 3);
}

#[test]
fn arguments_are_not_read_by_any_shell() {
    let command =
        Command::new("/usr/bin/printf", Duration::from_secs(5)).args(["%s|", "$(id)", "a b", "*", "", "'\"`;"]);
    assert_eq!(run(&command).unwrap().stdout.text(), "$(id)|a b|*||'\"`;|");
}

#[test]
fn what_cannot_be_run_is_said_before_anything_starts() {
    let within = Duration::from_secs(5);
    assert!(matches!(
        run(&Command::new("psql", within)),
        Err(ProcessError::NotAbsolute { .. })
    ));
    assert!(matches!(
        run(&Command::new("/no/such", within)),
        Err(ProcessError::NotRunnable { .. })
    ));
    assert!(matches!(
        run(&Command::new("/etc", within)),
        Err(ProcessError::NotRunnable { .. })
    ));
    assert!(matches!(
        run(&Command::new("/etc/passwd", within)),
        Err(ProcessError::NotRunnable { .. })
    ));
    assert!(matches!(
        run(&Command::new("/bin/true", within).args(["a\0b"])),
        Err(ProcessError::ZeroByte { .. })
    ));
}

#[test]
fn a_gibibyte_of_output_is_drained_and_a_bounded_part_of_it_kept() {
    let output = run(&shell("head -c 1073741824 /dev/zero; echo done >&2", 60_000)).unwrap();
    assert_eq!(output.stdout.bytes.len(), KEPT_OUTPUT_BYTES);
    assert!(output.stdout.is_cut());
    assert_eq!(output.stdout.total_bytes, 1 << 30);
    assert_eq!(output.stderr.text(), "done\n");
}

#[test]
fn a_command_that_closes_its_output_is_still_waited_for() {
    let output = run(&shell("exec >&- 2>&-; sleep 0.2; exit 4", 5000)).unwrap();
    assert_eq!(output.status, 4);
    assert!(output.took >= Duration::from_millis(200));
}

#[test]
fn a_command_that_ignores_every_signal_dies_at_its_deadline() {
    let before = Instant::now();
    let error = run(&shell(
        "trap '' TERM INT HUP; echo here; while :; do sleep 1; done",
        300,
    ))
    .unwrap_err();
    assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
    assert_eq!(error.output().unwrap().stdout.text(), "here\n");
    assert!(before.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_command_can_be_cancelled() {
    let mut command = shell("sleep 60", 60_000);
    let flag = Arc::new(AtomicBool::new(false));
    command.cancelled = Some(flag.clone());
    let runner = std::thread::spawn(move || run(&command));
    std::thread::sleep(Duration::from_millis(100));
    flag.store(true, Ordering::Relaxed);
    assert!(matches!(runner.join().unwrap(), Err(ProcessError::Cancelled { .. })));
}

#[test]
fn a_grandchild_in_its_own_session_is_gone_after_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}; exec sleep 300' & sleep 300",
        file.display()
    );
    assert!(matches!(run(&shell(&script, 500)), Err(ProcessError::TimedOut { .. })));
    assert!(!is_alive(&file));
}

#[test]
fn a_daemon_that_forked_twice_and_cleared_its_environment_is_gone_after_a_good_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!(
        "(setsid env -i /bin/sh -c '(/bin/sh -c \"echo \\$\\$ > {0}; exec /usr/bin/setsid /bin/sleep 300\" &) &' &) \
         >/dev/null 2>&1; while [ ! -s {0} ]; do sleep 0.01; done; sleep 0.1; kill -0 $(cat {0}) && exit 5",
        file.display()
    );
    let output = run(&shell(&script, 10_000)).unwrap();
    assert_eq!(output.status, 5, "the daemon lived while the command did");
    std::thread::sleep(Duration::from_millis(20));
    assert!(!is_alive(&file));
}

#[test]
fn a_command_that_kills_its_keeper_does_not_get_away() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("echo $$ > {}; kill -KILL $PPID; sleep 300", file.display());
    let output = run(&shell(&script, 10_000)).unwrap();
    assert_eq!(output.status, 137);
    assert!(!is_alive(&file));
}

#[test]
fn a_tree_that_keeps_forking_ends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("alive");
    let script = format!(
        "f() {{ while :; do (sleep 0.05; touch {}) & sleep 0.01; done; }}; f & f & f",
        file.display()
    );
    assert!(matches!(run(&shell(&script, 600)), Err(ProcessError::TimedOut { .. })));
    std::fs::remove_file(&file).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!file.exists(), "somebody is still at work");
}

#[test]
fn a_signal_that_ended_the_command_shows_in_its_status() {
    assert_eq!(run(&shell("kill -9 $$", 5000)).unwrap().status, 137);
}

#[tokio::test]
async fn dropping_the_future_ends_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let command = shell(&format!("echo $$ > {}; exec sleep 300", file.display()), 60_000);
    let outcome = tokio::time::timeout(Duration::from_millis(300), run_async(command)).await;
    assert!(outcome.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!is_alive(&file));
}
