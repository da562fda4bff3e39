//! Runs one command to its end, or to its deadline, and leaves no process behind.
//!
//! A command has an absolute path and an argument list (no shell sees either), a fixed environment, bytes for its standard
//! input, and as much of its output kept as was asked for; the rest is read and thrown away, so that a chatty command
//! never blocks on a full pipe and never fills our memory. It runs in a session of its own without a terminal, so that
//! nothing can sit and ask for a password, with `/` as its folder.
//!
//! # No process is left
//! When [`run`] returns, by whatever way, everything that the command started is gone: children in sessions of their own
//! and daemons that forked twice as well. What makes this certain is a *keeper* between us and the command: a `/bin/sh`
//! with a fixed three-line script that is the session's leader and, by `PR_SET_CHILD_SUBREAPER`, the one to whom the kernel
//! gives every orphan below it. So each descendant has a chain of parents that ends at the keeper, as long as the keeper
//! lives; and it never leaves by itself: once the command has ended, it stops itself (SIGSTOP) and waits. Only then is what
//! is left below it found in `/proc`, stopped until no new one appears, and killed (by pidfd, so that a reused number is
//! never hit), and the keeper is let go with the command's status. At the deadline the same is done at once.
//!
//! Other ways, and why not: a subreaper attribute of our own would make *us* adopt the orphans of every child the program
//! has, with no way to tell whose they are. A cgroup v2 per command is as strong, but needs one that is delegated to us,
//! which a container, an ssh login or cron does not have: a second way to test. A PID namespace changes what the command
//! sees, and `pg_ctl` or `systemctl` in a hook must see the real process numbers. A pattern of names or a marker in the
//! environment alone is lost by `env -i`.
//!
//! Limits: a command that kills the keeper with SIGKILL breaks the chain. That is seen, and then whatever carries the run's
//! marker (`COFFRE_RUN=…` in its environment) or descends from such a process is killed; what also cleared its environment
//! escapes. A process of another user (setuid) cannot be killed unless we are root, nor one that sleeps in the kernel
//! without a way out; [`ProcessError::LeftBehind`] names those.
//!
//! If Coffre itself is killed, the guard does the same: the tree is owed to it, by the run's marker, before the command is
//! started. It finds the keeper by that marker, which is in the keeper's environment as long as it lives.

mod launch;
mod session;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coffre_guard::{Debt, Guard, GuardError, Outcome, Owed, Owner, tree};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

pub use session::{Session, SessionError};

/// What is kept of each of a command's two outputs unless asked otherwise: enough for any message, and what a recovery
/// point may carry of a hook's output.
pub const KEPT_OUTPUT_BYTES: usize = 64 * 1024;

/// How long a killed process tree may take to disappear before it is reported as left behind. Killing takes microseconds;
/// what is still there after this sleeps in the kernel.
const KILLED_WITHIN: Duration = Duration::from_secs(3);
/// After the deadline and the time to kill, the guard does it, should we be stopped or stuck.
const GUARD_WAITS: Duration = Duration::from_secs(7);

/// How often the keeper is asked whether the command has ended: often at first, since applications wait meanwhile and most
/// commands take milliseconds, then seldom enough to cost nothing.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// A command to run.
#[derive(Clone, Debug)]
pub struct Command {
    /// By absolute path.
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Beside PATH, HOME and LANG, which are fixed; names must start with `COFFRE_`, so that no loader or shell is told
    /// what to load (LD_PRELOAD, BASH_ENV, PYTHONPATH).
    pub environment: Vec<(String, String)>,
    /// Given to its standard input, which is then closed.
    pub input: Vec<u8>,
    /// Its standard input, if it was given anything, stays open until then.
    pub input_open_until: Option<Instant>,
    /// How many bytes of each output are kept.
    pub keep_bytes: usize,
    /// When the whole process tree dies.
    pub deadline: Instant,
    /// Set to end it before that.
    pub cancelled: Option<Arc<AtomicBool>>,
    /// To whom its processes are owed while it runs, and in whose name. None: nobody ends them if we are killed.
    pub guard: Option<(Guard, Owner)>,
    /// What it started goes on when it has ended in time: an init script starts a daemon.
    pub leaves_daemons: bool,
}

impl Command {
    /// A command without arguments and input that may take `timeout` from now on.
    pub fn new(program: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: Vec::new(),
            input_open_until: None,
            keep_bytes: KEPT_OUTPUT_BYTES,
            deadline: Instant::now() + timeout,
            cancelled: None,
            guard: None,
            leaves_daemons: false,
        }
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }
}

/// What a command wrote, as far as it was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The first of it.
    pub bytes: Vec<u8>,
    /// All of it, also what was thrown away.
    pub total_bytes: u64,
}

impl Kept {
    /// Whether some of it was thrown away.
    pub fn is_cut(&self) -> bool {
        self.total_bytes > self.bytes.len() as u64
    }

    /// As text, with a note at the end if some of it was thrown away.
    pub fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if self.is_cut() {
            text.push_str(&format!(
                "\n[{} more bytes not kept]",
                self.total_bytes - self.bytes.len() as u64
            ));
        }
        text
    }

    fn take(&mut self, bytes: &[u8], keep_bytes: usize) {
        let room = keep_bytes.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        self.total_bytes += bytes.len() as u64;
    }
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 128 + n when signal n ended it, as a shell has it.
    pub status: i32,
    pub stdout: Kept,
    pub stderr: Kept,
    pub took: Duration,
}

/// Why a command was not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("{} is not an absolute path", .program.display())]
    NotAbsolute { program: PathBuf },
    #[error("cannot run {}: {source}", .program.display())]
    NotRunnable { program: PathBuf, source: std::io::Error },
    #[error("an argument of {} holds a zero byte", .program.display())]
    ZeroByte { program: PathBuf },
    #[error("{name:?} may not be set for {}: only variables whose names start with COFFRE_ may", .program.display())]
    BadVariable { program: PathBuf, name: String },
    #[error("starting {}: {source}", .program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("{} was not run, since nobody would end it if this process were killed: {source}", .program.display())]
    Guard { program: PathBuf, source: GuardError },
    #[error("watching {}: {source}", .program.display())]
    Watch { program: PathBuf, source: std::io::Error },
    #[error("{} had not ended in time and was killed with all that it had started", .program.display())]
    TimedOut { program: PathBuf, output: Box<Output> },
    #[error("{} was cancelled and killed with all that it had started", .program.display())]
    Cancelled { program: PathBuf, output: Box<Output> },
    #[error("{} left processes behind that cannot be killed: {pids:?}", .program.display())]
    LeftBehind {
        program: PathBuf,
        pids: Vec<i32>,
        output: Box<Output>,
    },
}

impl ProcessError {
    /// What the command wrote before it was ended.
    pub fn output(&self) -> Option<&Output> {
        match self {
            Self::TimedOut { output, .. } | Self::Cancelled { output, .. } | Self::LeftBehind { output, .. } => {
                Some(output)
            }
            _ => None,
        }
    }

    /// Whether trying the same again may help.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::TimedOut { .. } | Self::Start { .. } | Self::Watch { .. } | Self::Guard { .. }
        )
    }
}

/// Runs a command to its end and ends whatever it left behind. Blocks the calling thread, until the deadline at most
/// (and [`KILLED_WITHIN`] more).
pub fn run(command: &Command) -> Result<Output, ProcessError> {
    let started = Instant::now();
    refuse(command)?;
    let marker = tree::Marker::new();
    let stdin = if command.input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    };
    let owed = owe(command, &marker)?;
    let mut child = match launch::start(command, &marker, stdin) {
        Ok(child) => child,
        Err(source) => {
            owed.map(|owed| owed.paid(Outcome::Nothing));
            let program = command.program.clone();
            return Err(ProcessError::Start { program, source });
        }
    };
    let keeper = Pid::from_child(&child);
    let mut pipes = Pipes::of(&mut child, command);
    let end = follow(command, keeper, &mut pipes);

    // From here on nothing may return before the tree is gone.
    let chain_holds = !matches!(end, Ok(End::KeeperGone));
    let left = if command.leaves_daemons && matches!(end, Ok(End::Finished)) {
        tree::Ended::default()
    } else {
        tree::end_below(keeper, chain_holds, &marker, Instant::now() + KILLED_WITHIN)
    };
    let resume = if matches!(end, Ok(End::Finished)) {
        Signal::CONT
    } else {
        Signal::KILL
    };
    // It cannot have been reaped yet, so the number is still its own; that it has ended already is no error.
    let _ = kill_process(keeper, resume);
    let status = let_go(&mut child, keeper);
    pipes.drain();

    let mut output = Output {
        status: status.unwrap_or(-1),
        stdout: pipes.stdout.kept,
        stderr: pipes.stderr.kept,
        took: started.elapsed(),
    };
    let program = command.program.clone();
    let left = left.left;
    if left.is_empty() {
        owed.map(|owed| owed.paid(Outcome::Nothing));
    }
    // What is left behind stays owed: the guard tries again.
    if !left.is_empty() {
        return Err(ProcessError::LeftBehind {
            program,
            pids: left,
            output: Box::new(output),
        });
    }
    match end {
        Ok(End::Finished) => Ok(output),
        Ok(End::KeeperGone) => {
            output.status = 128 + Signal::KILL.as_raw();
            Ok(output)
        }
        Ok(End::DeadlinePassed) => Err(ProcessError::TimedOut {
            program,
            output: Box::new(output),
        }),
        Ok(End::Cancelled) => Err(ProcessError::Cancelled {
            program,
            output: Box::new(output),
        }),
        Err(source) => Err(ProcessError::Watch {
            program,
            source: source.into(),
        }),
    }
}

/// [`run`] for async callers, on the blocking pool. Dropping the future ends the command, but does not wait for that.
pub async fn run_async(mut command: Command) -> Result<Output, ProcessError> {
    struct CancelOnDrop(Arc<AtomicBool>);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let cancelled = command.cancelled.get_or_insert_with(Default::default).clone();
    let program = command.program.clone();
    let _guard = CancelOnDrop(cancelled);
    tokio::task::spawn_blocking(move || run(&command))
        .await
        .unwrap_or_else(|gone| {
            Err(ProcessError::Watch {
                program,
                source: std::io::Error::other(gone),
            })
        })
}

/// Why we stopped following a command.
enum End {
    /// The keeper has stopped itself, as it does when the command has ended.
    Finished,
    /// The keeper was killed: descendants may have lost their chain to it.
    KeeperGone,
    DeadlinePassed,
    Cancelled,
}

/// Owes the tree to the guard, before there is one.
fn owe(command: &Command, marker: &tree::Marker) -> Result<Option<Owed>, ProcessError> {
    let Some((guard, owner)) = &command.guard else {
        return Ok(None);
    };
    let debt = Debt::EndTree {
        marker: marker.text().to_owned(),
    };
    let owed = guard.owe(owner, &debt, command.deadline + KILLED_WITHIN + GUARD_WAITS);
    owed.map(Some).map_err(|source| ProcessError::Guard {
        program: command.program.clone(),
        source,
    })
}

fn refuse(command: &Command) -> Result<(), ProcessError> {
    let program = || command.program.clone();
    if !command.program.is_absolute() {
        return Err(ProcessError::NotAbsolute { program: program() });
    }
    if command
        .arguments
        .iter()
        .any(|argument| argument.as_encoded_bytes().contains(&0))
    {
        return Err(ProcessError::ZeroByte { program: program() });
    }
    for (name, value) in &command.environment {
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        if !name.starts_with("COFFRE_") || !plain || name == tree::MARKER_NAME || value.contains('\0') {
            return Err(ProcessError::BadVariable {
                program: program(),
                name: name.clone(),
            });
        }
    }
    runnable(&command.program).map_err(|source| ProcessError::NotRunnable {
        program: program(),
        source,
    })
}

/// Asked before the keeper runs it, which could only say 126 or 127, as a command itself may.
fn runnable(program: &Path) -> std::io::Result<()> {
    if !std::fs::metadata(program)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    Ok(rustix::fs::access(program, rustix::fs::Access::EXEC_OK)?)
}

/// Whether the command has ended by itself, asked of its keeper without taking the answer away.
fn ended(keeper: Pid) -> rustix::io::Result<Option<End>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(keeper), options) {
        Ok(Some(state)) if state.stopped() => Ok(Some(End::Finished)),
        Ok(Some(_)) => Ok(Some(End::KeeperGone)),
        Ok(None) | Err(rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Feeds and reads the command until it has ended or may not go on.
fn follow(command: &Command, keeper: Pid, pipes: &mut Pipes<'_>) -> rustix::io::Result<End> {
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(end) = ended(keeper)? {
            return Ok(end);
        }
        if command
            .cancelled
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
        {
            return Ok(End::Cancelled);
        }
        let left = command.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(End::DeadlinePassed);
        }
        let busy = pipes.serve(pause.min(left))?;
        pause = if busy {
            FIRST_PAUSE
        } else {
            (pause * 2).min(LONGEST_PAUSE)
        };
    }
}

/// Waits for the keeper, which was continued or killed, and gives the status that it ended with. Should somebody have
/// stopped it again, it is killed.
fn let_go(child: &mut Child, keeper: Pid) -> Option<i32> {
    let give_up = Instant::now() + KILLED_WITHIN;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.code(),
            Ok(None) if Instant::now() < give_up => std::thread::sleep(Duration::from_micros(200)),
            _ => {
                let _ = kill_process(keeper, Signal::KILL);
                return child.wait().ok()?.code();
            }
        }
    }
}

/// The three pipes to a command. None of them ever blocks us.
struct Pipes<'a> {
    stdin: Option<std::process::ChildStdin>,
    input: &'a [u8],
    input_open_until: Option<Instant>,
    stdout: Reading<std::process::ChildStdout>,
    stderr: Reading<std::process::ChildStderr>,
    keep_bytes: usize,
    scratch: Box<[u8]>,
}

struct Reading<P> {
    pipe: Option<P>,
    kept: Kept,
}

impl<'a> Pipes<'a> {
    fn of(child: &mut Child, command: &'a Command) -> Self {
        let pipes = Self {
            stdin: child.stdin.take(),
            input: &command.input,
            input_open_until: command.input_open_until,
            stdout: Reading {
                pipe: child.stdout.take(),
                kept: Kept::default(),
            },
            stderr: Reading {
                pipe: child.stderr.take(),
                kept: Kept::default(),
            },
            keep_bytes: command.keep_bytes,
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
        };
        for pipe in [
            pipes.stdin.as_ref().map(AsFd::as_fd),
            pipes.stdout.pipe.as_ref().map(AsFd::as_fd),
            pipes.stderr.pipe.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        {
            // Our own end of a fresh pipe: this cannot fail, and if it did, the deadline would not hold.
            rustix::io::ioctl_fionbio(pipe, true).expect("a pipe can be made non-blocking");
        }
        pipes
    }

    /// Waits up to `pause` for a pipe to be ready and serves what is; whether anything moved.
    fn serve(&mut self, pause: Duration) -> rustix::io::Result<bool> {
        let timeout = Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        let mut waiting = Vec::with_capacity(3);
        if let Some(pipe) = &self.stdin
            && !self.input.is_empty()
        {
            waiting.push(PollFd::new(pipe, PollFlags::OUT));
        }
        if let Some(pipe) = &self.stdout.pipe {
            waiting.push(PollFd::new(pipe, PollFlags::IN));
        }
        if let Some(pipe) = &self.stderr.pipe {
            waiting.push(PollFd::new(pipe, PollFlags::IN));
        }
        match poll(&mut waiting, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {
                self.feed();
                return Ok(false);
            }
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        self.feed();
        let read = self.stdout.read(&mut self.scratch, self.keep_bytes);
        Ok(self.stderr.read(&mut self.scratch, self.keep_bytes) || read)
    }

    fn feed(&mut self) {
        let Some(pipe) = &self.stdin else { return };
        if !self.input.is_empty() {
            match rustix::io::write(pipe, self.input) {
                Ok(written) => self.input = &self.input[written..],
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // It does not want to read the rest, which is its right.
                Err(_) => self.input = &[],
            }
        }
        if self.input.is_empty() && self.input_open_until.is_none_or(|until| Instant::now() >= until) {
            self.stdin = None;
        }
    }

    /// Takes what still lies in the pipes, without waiting: somebody else may hold their other ends.
    fn drain(&mut self) {
        while self.stdout.read(&mut self.scratch, self.keep_bytes) {}
        while self.stderr.read(&mut self.scratch, self.keep_bytes) {}
    }
}

impl<P: AsFd> Reading<P> {
    /// Reads once; whether something was read. Drops the pipe at its end.
    fn read(&mut self, scratch: &mut [u8], keep_bytes: usize) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        match rustix::io::read(pipe, &mut *scratch) {
            Ok(0) => self.pipe = None,
            Ok(read) => {
                self.kept.take(&scratch[..read], keep_bytes);
                return true;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.pipe = None,
        }
        false
    }
}

#[cfg(test)]
mod tests;
