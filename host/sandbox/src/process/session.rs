//! A command that stays open: it is talked to by its standard input and output, and ends when it is told to, by itself, or
//! at its deadline.
//!
//! Everything that [`super::run`] promises holds here too: it lives below a keeper, in a session of its own, with a fixed
//! environment, and when it has ended nothing that it started is left. A thread of its own attends to it, so that its
//! output never fills a pipe while nobody reads, its deadline holds whatever its owner does, and its end is noticed within
//! [`LOOK_EVERY`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffre_guard::{Outcome, Owed, tree};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::{Command, End, KEPT_OUTPUT_BYTES, KILLED_WITHIN, Kept, Output, ended, launch, let_go, owe, refuse};
use crate::process::ProcessError;

/// How often the keeper is asked whether the command still lives. What is said to it or by it wakes the thread at once.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What may wait to be written to a session that does not read: more than any script says at once.
const UNSENT_BYTES: usize = 1 << 20;

/// A command that is open. Dropping the last handle ends it, but does not wait for that; [`Session::end`] does.
pub struct Session {
    shared: Arc<Shared>,
    program: std::path::PathBuf,
}

/// Why a session did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("it has ended: {0}")]
    Ended(String),
    #[error("it did not say {wanted:?} within {waited_ms} ms; it said {said:?}")]
    NotSaid {
        wanted: String,
        waited_ms: u128,
        said: String,
    },
    #[error("it reads nothing, and more than {UNSENT_BYTES} bytes wait for it")]
    ReadsNothing,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Rung when there is something to do before the next look.
    bell: OwnedFd,
    keeper: Pid,
}

#[derive(Default)]
struct State {
    unsent: VecDeque<u8>,
    /// No more will be sent: its input is closed when all is written.
    no_more: bool,
    /// Kill it now.
    kill: bool,
    /// Said and not yet read by its owner.
    unread: Kept,
    stderr: Kept,
    closed: bool,
    ended: Option<Ended>,
}

/// How it ended.
#[derive(Clone, Debug)]
struct Ended {
    status: i32,
    why: String,
    left_behind: Vec<i32>,
    took: Duration,
}

impl Session {
    /// Starts a command and leaves it open until `command.deadline`. Its `input` is the first that it is sent.
    pub fn start(command: &Command) -> Result<Self, ProcessError> {
        refuse(command)?;
        let program = command.program.clone();
        let failed = |source: std::io::Error| ProcessError::Start {
            program: program.clone(),
            source,
        };
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        let marker = tree::Marker::new();
        let owed = owe(command, &marker)?;
        let child = match launch::start(command, &marker, Stdio::piped()) {
            Ok(child) => child,
            Err(source) => {
                owed.map(|owed| owed.paid(Outcome::Nothing));
                return Err(failed(source));
            }
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                unsent: command.input.iter().copied().collect(),
                ..State::default()
            }),
            changed: Condvar::new(),
            bell,
            keeper: Pid::from_child(&child),
        });
        let deadline = command.deadline;
        let attended = shared.clone();
        let mut attendant = Attendant::new(child, marker, owed, shared.clone());
        let spawned = std::thread::Builder::new()
            .name("held session".to_owned())
            .spawn(move || attendant.attend(deadline));
        match spawned {
            Ok(_) => Ok(Self {
                shared: attended,
                program,
            }),
            // The attendant was dropped with the closure, and its drop ended the command.
            Err(source) => Err(ProcessError::Start { program, source }),
        }
    }

    /// Whether it has not ended. Asked of its keeper, not of the last look.
    pub fn is_alive(&self) -> bool {
        self.shared.state.lock().ended.is_none() && matches!(ended(self.shared.keeper), Ok(None))
    }

    /// Why it ended, if it has.
    pub fn why_ended(&self) -> Option<String> {
        if self.is_alive() {
            return None;
        }
        self.wait_for_end(Instant::now() + KILLED_WITHIN);
        let state = self.shared.state.lock();
        let why = state.ended.as_ref().map_or("its keeper is gone", |ended| &ended.why);
        Some(why.to_owned())
    }

    /// Says something to it. Does not wait until it has read that.
    pub fn send(&self, bytes: &[u8]) -> Result<(), SessionError> {
        let mut state = self.shared.state.lock();
        if let Some(ended) = &state.ended {
            return Err(SessionError::Ended(ended.why.clone()));
        }
        if state.no_more {
            return Err(SessionError::Ended("it was closed".to_owned()));
        }
        if state.unsent.len() + bytes.len() > UNSENT_BYTES {
            return Err(SessionError::ReadsNothing);
        }
        state.unsent.extend(bytes);
        drop(state);
        self.shared.ring();
        Ok(())
    }

    /// Waits until it has said `wanted` and gives all that it said up to and with that. What comes after stays to be read.
    pub fn read_until(&self, wanted: &str, until: Instant) -> Result<String, SessionError> {
        let began = Instant::now();
        let mut state = self.shared.state.lock();
        loop {
            if let Some(at) = find(&state.unread.bytes, wanted.as_bytes()) {
                let rest = state.unread.bytes.split_off(at + wanted.len());
                let said = std::mem::replace(&mut state.unread.bytes, rest);
                state.unread.total_bytes -= said.len() as u64;
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
            if let Some(ended) = &state.ended {
                return Err(SessionError::Ended(ended.why.clone()));
            }
            if self.shared.changed.wait_until(&mut state, until).timed_out() {
                return Err(SessionError::NotSaid {
                    wanted: wanted.to_owned(),
                    waited_ms: began.elapsed().as_millis(),
                    said: with_stderr(&state.unread.text(), &state.stderr),
                });
            }
        }
    }

    /// Closes its input, waits until `grace_until` for it to end by itself, and then ends it with all that it started.
    /// What it said and nobody has read is in the output.
    pub fn end(&self, grace_until: Instant) -> Result<Output, ProcessError> {
        self.shared.state.lock().no_more = true;
        self.shared.ring();
        let by_itself = self.wait_for_end(grace_until);
        if !by_itself {
            self.shared.state.lock().kill = true;
            self.shared.ring();
            self.wait_for_end(Instant::now() + 2 * KILLED_WITHIN);
        }
        let mut state = self.shared.state.lock();
        let program = self.program.clone();
        state.closed = true;
        let ended = state.ended.clone();
        let output = Output {
            status: ended.as_ref().map_or(-1, |ended| ended.status),
            stdout: std::mem::take(&mut state.unread),
            stderr: std::mem::take(&mut state.stderr),
            took: ended.as_ref().map_or(Duration::ZERO, |ended| ended.took),
        };
        match ended {
            Some(ended) if ended.left_behind.is_empty() && by_itself => Ok(output),
            Some(ended) if ended.left_behind.is_empty() => Err(ProcessError::TimedOut {
                program,
                output: Box::new(output),
            }),
            ended => Err(ProcessError::LeftBehind {
                program,
                pids: ended.map_or_else(
                    || vec![self.shared.keeper.as_raw_nonzero().get()],
                    |ended| ended.left_behind,
                ),
                output: Box::new(output),
            }),
        }
    }

    /// Whether [`Session::end`] has been called.
    pub fn is_closed(&self) -> bool {
        self.shared.state.lock().closed
    }

    fn wait_for_end(&self, until: Instant) -> bool {
        let mut state = self.shared.state.lock();
        while state.ended.is_none() {
            if self.shared.changed.wait_until(&mut state, until).timed_out() {
                return state.ended.is_some();
            }
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.state.lock().kill = true;
        self.shared.ring();
    }
}

impl Shared {
    fn ring(&self) {
        // Full means that it rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// What the session's thread works with. However it goes, the command is ended.
struct Attendant {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    marker: tree::Marker,
    /// Its processes, while they live.
    owed: Option<Owed>,
    shared: Arc<Shared>,
    started: Instant,
    is_over: bool,
}

impl Attendant {
    fn new(mut child: Child, marker: tree::Marker, owed: Option<Owed>, shared: Arc<Shared>) -> Self {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for pipe in [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        {
            // Our own end of a fresh pipe: this cannot fail, and if it did, the deadline would not hold.
            rustix::io::ioctl_fionbio(pipe, true).expect("a pipe can be made non-blocking");
        }
        Self {
            child,
            stdin,
            stdout,
            stderr,
            marker,
            owed,
            shared,
            started: Instant::now(),
            is_over: false,
        }
    }

    fn attend(&mut self, deadline: Instant) {
        let (end, why) = loop {
            match ended(self.shared.keeper) {
                Ok(Some(end)) => break (end, None),
                Ok(None) => {}
                Err(error) => break (End::KeeperGone, Some(format!("it cannot be watched: {error}"))),
            }
            if self.shared.state.lock().kill {
                break (End::Cancelled, None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break (End::DeadlinePassed, None);
            }
            if let Err(error) = self.serve(LOOK_EVERY.min(left)) {
                break (End::KeeperGone, Some(format!("its pipes cannot be watched: {error}")));
            }
        };
        self.finish(&end, why);
    }

    /// Waits up to `pause` for something to do, and does it.
    fn serve(&mut self, pause: Duration) -> rustix::io::Result<()> {
        let timeout = Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        let mut waiting = vec![PollFd::new(&self.shared.bell, PollFlags::IN)];
        if let Some(pipe) = &self.stdin
            && !self.shared.state.lock().unsent.is_empty()
        {
            waiting.push(PollFd::new(pipe, PollFlags::OUT));
        }
        if let Some(pipe) = &self.stdout {
            waiting.push(PollFd::new(pipe, PollFlags::IN));
        }
        if let Some(pipe) = &self.stderr {
            waiting.push(PollFd::new(pipe, PollFlags::IN));
        }
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let mut rung = [0; 8];
        let _ = rustix::io::read(&self.shared.bell, &mut rung);
        let mut state = self.shared.state.lock();
        feed(&mut self.stdin, &mut state);
        let said = read(&mut self.stdout, &mut state.unread) | read(&mut self.stderr, &mut state.stderr);
        drop(state);
        if said {
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Ends what is left below the keeper and the keeper, and tells the owner. Nothing may return before that.
    fn finish(&mut self, end: &End, why: Option<String>) {
        self.is_over = true;
        let keeper = self.shared.keeper;
        let chain_holds = !matches!(end, End::KeeperGone);
        let left = tree::end_below(keeper, chain_holds, &self.marker, Instant::now() + KILLED_WITHIN).left;
        let resume = if matches!(end, End::Finished) {
            Signal::CONT
        } else {
            Signal::KILL
        };
        // It cannot have been reaped yet, so the number is still its own; that it has ended already is no error.
        let _ = kill_process(keeper, resume);
        let status = let_go(&mut self.child, keeper);
        // What is left behind stays owed: the guard tries again.
        if left.is_empty() {
            self.owed.take().map(|owed| owed.paid(Outcome::Nothing));
        }
        let mut state = self.shared.state.lock();
        while read(&mut self.stdout, &mut state.unread) | read(&mut self.stderr, &mut state.stderr) {}
        let status = match end {
            End::Finished => status.unwrap_or(-1),
            _ => 128 + Signal::KILL.as_raw(),
        };
        let why = why.unwrap_or_else(|| match end {
            End::Finished => with_stderr(&format!("status {status}"), &state.stderr),
            End::KeeperGone => with_stderr("somebody killed its keeper", &state.stderr),
            End::DeadlinePassed => "applications may not be held any longer".to_owned(),
            End::Cancelled => "it was closed".to_owned(),
        });
        state.ended = Some(Ended {
            status,
            why,
            left_behind: left,
            took: self.started.elapsed(),
        });
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        if !self.is_over {
            self.finish(&End::Cancelled, Some("its thread went away".to_owned()));
        }
    }
}

fn feed(stdin: &mut Option<ChildStdin>, state: &mut State) {
    let Some(pipe) = stdin else { return };
    while !state.unsent.is_empty() {
        match rustix::io::write(&*pipe, state.unsent.as_slices().0) {
            Ok(written) => drop(state.unsent.drain(..written)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            // It does not want to read the rest, which is its right; that it has ended is seen elsewhere.
            Err(_) => state.unsent.clear(),
        }
    }
    if state.no_more {
        *stdin = None;
    }
}

/// Reads once; whether something was read. Drops the pipe at its end.
fn read(pipe: &mut Option<impl AsFd>, kept: &mut Kept) -> bool {
    let mut scratch = [0; 16 * 1024];
    let Some(open) = pipe else { return false };
    match rustix::io::read(&*open, &mut scratch) {
        Ok(0) => *pipe = None,
        Ok(count) => {
            kept.take(&scratch[..count], KEPT_OUTPUT_BYTES);
            return true;
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
        Err(_) => *pipe = None,
    }
    false
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    text.windows(wanted.len()).position(|part| part == wanted)
}

fn with_stderr(text: &str, stderr: &Kept) -> String {
    let more = stderr.text();
    match more.trim() {
        "" => text.to_owned(),
        more => format!("{text} ({more})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, held_ms: u64) -> Session {
        let command = Command::new("/bin/sh", Duration::from_millis(held_ms)).args(["-c", script]);
        Session::start(&command).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn is_alive(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn a_session_answers_what_it_is_asked_and_ends_when_its_input_is_closed() {
        let session = shell("while read word; do echo \"got $word\"; done; echo bye; exit 3", 20_000);
        session.send(b"one\ntwo\n").unwrap();
        assert_eq!(session.read_until("got one\n", soon()).unwrap(), "got one\n");
        assert_eq!(session.read_until("two", soon()).unwrap(), "got two");
        assert!(session.is_alive());
        let output = session.end(soon()).unwrap();
        assert_eq!((output.status, output.stdout.text().as_str()), (3, "\nbye\n"));
        assert!(session.is_closed() && !session.is_alive());
        assert!(matches!(session.send(b"x"), Err(SessionError::Ended(_))));
    }

    #[test]
    fn one_that_ends_by_itself_is_known_to_have_ended_and_why() {
        let session = shell("echo no server >&2; exit 2", 20_000);
        let error = session.read_until("ready", soon()).unwrap_err();
        assert_eq!(error.to_string(), "it has ended: status 2 (no server)");
        assert!(!session.is_alive());
        assert_eq!(session.why_ended().as_deref(), Some("status 2 (no server)"));
    }

    #[test]
    fn one_that_says_nothing_is_not_waited_for_without_end() {
        let session = shell("echo hm; sleep 60", 20_000);
        let error = session
            .read_until("ready", Instant::now() + Duration::from_millis(300))
            .unwrap_err();
        assert!(
            matches!(&error, SessionError::NotSaid { said, .. } if said == "hm\n"),
            "{error}"
        );
    }

    #[test]
    fn at_the_deadline_it_is_gone_with_all_that_it_started_though_nobody_looks() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!(
            "trap '' TERM HUP; setsid sh -c 'echo $$ > {0}; exec sleep 300' & echo up; sleep 300",
            file.display()
        );
        let session = shell(&script, 1000);
        session.read_until("up", soon()).unwrap();
        while std::fs::read_to_string(&file).map_or(true, |text| text.is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = std::fs::read_to_string(&file).unwrap();
        assert!(is_alive(&pid));
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!is_alive(&pid));
        assert_eq!(
            session.why_ended().as_deref(),
            Some("applications may not be held any longer")
        );
    }

    #[test]
    fn one_that_does_not_end_when_closed_is_ended() {
        let session = shell("trap '' TERM HUP; echo $$; while :; do sleep 1; done", 60_000);
        let pid = session.read_until("\n", soon()).unwrap();
        let error = session.end(Instant::now() + Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
        assert!(!is_alive(&pid));
    }

    #[test]
    fn dropping_it_ends_it() {
        let session = shell("echo $$; sleep 300", 60_000);
        let pid = session.read_until("\n", soon()).unwrap();
        drop(session);
        let began = Instant::now();
        while is_alive(&pid) {
            assert!(began.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn one_that_talks_without_end_is_drained_and_a_bounded_part_kept() {
        let session = shell("head -c 20000000 /dev/zero | tr '\\0' x; echo done >&2; read x", 60_000);
        let began = Instant::now();
        while !session.shared.state.lock().stderr.text().contains("done") {
            assert!(began.elapsed() < Duration::from_secs(30), "it is stuck on a full pipe");
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = session.end(soon()).unwrap();
        assert_eq!(output.stdout.bytes.len(), KEPT_OUTPUT_BYTES);
        assert_eq!(output.stdout.total_bytes, 20_000_000);
    }

    #[test]
    fn one_that_reads_nothing_is_not_fed_without_end() {
        let session = shell("sleep 60", 60_000);
        let much = vec![b'x'; UNSENT_BYTES];
        assert!((0..4).any(|_| matches!(session.send(&much), Err(SessionError::ReadsNothing))));
    }
}
