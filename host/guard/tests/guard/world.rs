//! What these tests share: folders for ledgers, hosts to kill, and whether a file system takes writes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use coffre_guard::{Found, Guard, GuardConfig, Proof, prove, settle};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

/// How long a write to a scratch file system may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(5);
/// After which a write that has not ended is taken for one that waits.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// Ledgers of one test.
pub struct World {
    folder: TempDir,
}

impl World {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> GuardConfig {
        GuardConfig {
            program: program("guard"),
            run: self.path("run"),
            state: self.path("state"),
        }
    }

    pub fn guard(&self) -> Guard {
        Guard::new(self.config())
    }

    pub fn settle(&self) -> Found {
        settle(&self.config())
    }

    /// All ledgers there are.
    pub fn ledgers(&self) -> Vec<PathBuf> {
        ["run/guard", "state/guard"]
            .iter()
            .flat_map(|folder| std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .collect()
    }

    /// Starts a host and waits until it has a guard.
    pub fn host(&self, mode: &[&str]) -> Host {
        self.host_in(None, mode)
    }

    /// The same, in a control group.
    pub fn host_in(&self, group: Option<&Path>, mode: &[&str]) -> Host {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"[ -z "$0" ] || echo $$ > "$0/cgroup.procs"; exec "$@""#]);
        command.arg(group.unwrap_or(Path::new("")));
        let mut child = command
            .arg(program("host"))
            .arg(self.path("run"))
            .arg(self.path("state"))
            .args(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        let mut words = first.split_whitespace().skip(1);
        let guard = words.next().expect("the host says its guard's number").parse().unwrap();
        let own_group = words.next() == Some("true");
        Host {
            child,
            stdin,
            lines,
            guard: Pid::from_raw(guard).unwrap(),
            own_group,
        }
    }
}

/// `target/debug/examples/NAME`, which cargo builds with the tests.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    target.join("examples").join(name)
}

pub struct Host {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
    pub guard: Pid,
    /// As the guard says of itself.
    pub own_group: bool,
}

impl Host {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it says next.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    #[track_caller]
    pub fn expect(&mut self, line: &str) {
        assert_eq!(self.line(), line);
    }

    /// Tells it to go on.
    pub fn go_on(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    pub fn send(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn send_group(&self, signal: Signal) {
        kill_process_group(self.pid(), signal).unwrap();
    }

    pub fn send_guard(&self, signal: Signal) {
        kill_process(self.guard, signal).unwrap();
    }

    /// Both at once: the host cannot notice that the guard is gone.
    pub fn kill_both(&mut self) {
        self.send(Signal::STOP);
        self.send_guard(Signal::KILL);
        self.send(Signal::KILL);
        self.child.wait().unwrap();
        until(|| is_gone(self.guard));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether no process of that number works any more; a zombie does not.
pub fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
}

#[track_caller]
pub fn until(mut what: impl FnMut() -> bool) {
    let give_up = Instant::now() + SOON;
    while !what() {
        assert!(Instant::now() < give_up, "it did not come to be within {SOON:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a write ends within that time.
pub fn takes_writes(folder: &Path, within: Duration) -> bool {
    match prove(&program("guard"), folder, within) {
        Proof::Writes { .. } => true,
        Proof::Blocked { .. } => false,
        other => panic!("{other:?}"),
    }
}
