//! One call of a program that is a hook: checked, told, run to its end, and what came of it.
//!
//! The kinds `exec` and `azure` share this. A program is no sandbox: it may do what the user who runs Coffre may. What is
//! kept from doing harm is whoever else might have written it, and the program's own carelessness: it ends at the deadline
//! with everything that it started, its output is drained and bounded, its environment is fixed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use coffre_engine::{HookFailure, HookFailureKind, PostReport};
use coffre_guard::{Guard, Owner};

use super::call::{Phase, timed_out};
use super::failure;
use super::transcript::{Transcript, log_line};
use super::trust::{self, Readers, TrustError};
use crate::process::{self, Command, Kept, ProcessError};

/// EX_TEMPFAIL of sysexits(3): try again.
const TRY_AGAIN: i32 = 75;
/// What a shell answers when it could not run a program, or not find it.
const NOT_RUN: [i32; 2] = [126, 127];

/// How much of a failed program's last words is quoted in its message: a line of a terminal or two.
const QUOTED_BYTES: usize = 200;

/// What is to be run.
pub(super) struct Program {
    pub hook: String,
    pub phase: Phase,
    pub file: PathBuf,
    pub readers: Readers,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub deadline: Instant,
    pub timeout: Duration,
    /// Set when nobody waits for the outcome any more.
    pub cancelled: Arc<AtomicBool>,
    /// To whom its processes are owed while it runs.
    pub guard: Option<(Guard, Owner)>,
}

/// Why a program did not do its work.
pub(super) enum Unsuccessful {
    /// It was not even started.
    Untrusted(TrustError),
    NotStarted(ProcessError),
    Ended(HookFailure),
}

impl Program {
    /// Blocks until it has ended with everything that it started.
    pub(super) fn run(self, transcript: &mut Transcript) -> Result<(), Unsuccessful> {
        trust::program(&self.file, self.readers).map_err(Unsuccessful::Untrusted)?;
        let command = Command {
            environment: self.environment.clone(),
            deadline: self.deadline,
            cancelled: Some(self.cancelled.clone()),
            guard: self.guard.clone(),
            ..Command::new(&self.file, self.timeout).args(self.arguments.clone())
        };
        let ended = process::run(&command);
        if let Some(output) = ended.as_ref().map_or_else(ProcessError::output, Some) {
            for kept in [&output.stdout, &output.stderr] {
                transcript.command_output(&kept.bytes, kept.is_cut());
            }
        }
        match ended {
            Ok(output) if output.status == 0 => Ok(()),
            Ok(output) => Err(Unsuccessful::Ended(said_no(
                &self.file,
                output.status,
                [&output.stderr, &output.stdout],
                transcript,
            ))),
            Err(ProcessError::TimedOut { .. }) => {
                let (text, hint) = timed_out(&self.hook, self.phase, self.timeout);
                Err(Unsuccessful::Ended(HookFailure {
                    hint: Some(hint),
                    ..self.failure(HookFailureKind::TimedOut, &text)
                }))
            }
            Err(
                error @ (ProcessError::Cancelled { .. } | ProcessError::LeftBehind { .. } | ProcessError::Watch { .. }),
            ) => Err(Unsuccessful::Ended(HookFailure::new(
                HookFailureKind::Failed,
                error.to_string(),
            ))),
            Err(error) => Err(Unsuccessful::NotStarted(error)),
        }
    }

    fn failure(&self, kind: HookFailureKind, what: &str) -> HookFailure {
        failed(&self.file, kind, what)
    }
}

/// A program ended with a status that is not 0; the last words of the first of its outputs that has any are quoted.
pub(super) fn said_no(file: &Path, status: i32, outputs: [&Kept; 2], transcript: &Transcript) -> HookFailure {
    let words = outputs
        .into_iter()
        .find_map(|kept| last_line(&kept.bytes))
        .map(|line| transcript.redact(&line));
    let words = words.map(|line| format!(": {line}")).unwrap_or_default();
    if status == TRY_AGAIN {
        let what = format!("asks to be tried again (status {TRY_AGAIN}){words}");
        return failed(file, HookFailureKind::TryAgain, &what);
    }
    let hint = NOT_RUN
        .contains(&status)
        .then(|| "a shell says 126 or 127 of what it could not run: look at its first line, and at the programs that it calls".to_owned());
    HookFailure {
        hint,
        ..failed(
            file,
            HookFailureKind::Failed,
            &format!("ended with status {status}{words}"),
        )
    }
}

/// What went wrong with a program, by its name.
pub(super) fn failed(file: &Path, kind: HookFailureKind, what: &str) -> HookFailure {
    HookFailure::new(kind, format!("{}: {what}", file.display()))
}

impl Unsuccessful {
    /// As a failure of a hook; whether the program ran is then no longer told apart.
    pub(super) fn into_failure(self, file: &Path) -> HookFailure {
        match self {
            Self::Ended(failure) => failure,
            Self::Untrusted(error) => failure::invalid(error.to_string(), error.hint()),
            Self::NotStarted(error) => {
                let text = match error {
                    ProcessError::NotRunnable { source, .. } => format!("cannot run {}: {source}", file.display()),
                    error => error.to_string(),
                };
                HookFailure::new(HookFailureKind::Invalid, text)
            }
        }
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?.trim();
    let line = &line[..line.floor_char_boundary(QUOTED_BYTES)];
    Some(log_line(line).to_owned())
}

/// Whether a hook's `pre` has started its program in this job: `post` never runs for one that was not. After a crash
/// another process runs `post`, and cannot know.
#[derive(Debug, Default)]
pub(super) struct Started(AtomicU8);

const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

impl Started {
    /// `pre` begins its first attempt.
    pub(super) fn not_yet(&self) {
        self.0.store(NO, Ordering::Relaxed);
    }

    /// Said before it is so: the job may be dropped in the middle. Returns what to say if it was not started after all.
    pub(super) fn starting(&self) -> u8 {
        self.0.swap(YES, Ordering::Relaxed)
    }

    pub(super) fn was_not(&self, before: u8) {
        self.0.store(before, Ordering::Relaxed);
    }

    /// Whether `post` has nothing to undo. The next job begins anew.
    pub(super) fn take_nothing_to_undo(&self) -> bool {
        self.0.swap(UNKNOWN, Ordering::Relaxed) == NO
    }
}

/// Runs something that blocks. Should nobody wait for it any more, `cancelled` is set.
pub(super) async fn on_a_thread<T: Send + 'static>(
    cancelled: &Arc<AtomicBool>,
    work: impl FnOnce() -> Result<T, HookFailure> + Send + 'static,
) -> Result<T, HookFailure> {
    struct CancelOnDrop(Arc<AtomicBool>);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let _guard = CancelOnDrop(cancelled.clone());
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|gone| {
        let text = format!("the thread that runs the hook ended: {gone}");
        Err(HookFailure::new(HookFailureKind::Failed, text))
    })
}

/// What `post` of a hook says whose `pre` was refused before anything ran.
pub(super) fn nothing_to_undo() -> PostReport {
    PostReport {
        output: "not run: its `pre` was not started\n".to_owned(),
        ..PostReport::default()
    }
}
