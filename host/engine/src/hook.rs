//! The seam to hooks, which bring applications to rest before a snapshot and let them go after it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coffre_guard::Guard;
use serde::{Deserialize, Serialize};

use crate::config::OnFailure;
use crate::freeze::Freezer;
use crate::machine::{Attachment, Consistency, DiskId, Finding, Machine};

/// What a hook is told. Everything in it may be shown to the hook's script.
#[derive(Clone, Debug)]
pub struct HookContext {
    pub machine: Machine,
    pub disks: Vec<DiskId>,
    pub job: String,
    pub policy: Option<String>,
    pub wanted: Consistency,
    /// 1 for the first try.
    pub attempt: u32,
    /// How long this one attempt may take. The runner itself ends it then, with its whole process tree.
    pub timeout: Duration,
    /// How long applications may be held in all.
    pub hold_at_most: Duration,
    /// To whom the processes that the hook starts, and what else it may leave behind, are owed while it runs. None: a hook
    /// that is looked at alone.
    pub guard: Option<Guard>,
    /// What freezes file systems for the hook; None as above.
    pub freezer: Option<Arc<dyn Freezer>>,
    /// How much of the hold is left as the call begins: what `pre` leaves open ends then, whoever hangs.
    pub hold_left: Duration,
    /// In `post`, what is known of the snapshot by then. The point's number is not: a point gets its number when it is
    /// committed, long after applications were let go.
    pub so_far: SoFar,
}

impl fmt::Debug for dyn Freezer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Freezer")
    }
}

/// What the job knows when it lets applications go. After a crash, when another process runs `post`, it knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoFar {
    /// What the point will be worth if this `post` and those that come after it succeed. None: there is no snapshot.
    pub consistency: Option<Consistency>,
    /// How long applications have been held, from the start of the first `pre`.
    pub held: Option<Duration>,
    /// How long file systems were frozen for the snapshot.
    pub frozen: Option<Duration>,
}

/// What became of the snapshot, as `post` is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotOutcome {
    Taken,
    Failed,
    NotTried,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreReport {
    /// The application is at rest: this hook declares application consistency.
    pub application_consistent: bool,
    /// Kept for `post`, which may run in another process after a crash. At most 64 KiB.
    pub memory: Option<String>,
    /// What the script and its commands said: at most 64 KiB, secrets redacted.
    pub output: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostReport {
    pub attachments: Vec<Attachment>,
    pub output: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookFailureKind {
    /// The script said no, or a command it ran did.
    Failed,
    /// Try again (exit code 75, EX_TEMPFAIL).
    TryAgain,
    TimedOut,
    Denied,
    /// A limit of the sandbox.
    Limit,
    /// The script cannot be loaded: missing, unsafe permissions, a syntax error.
    Invalid,
}

impl HookFailureKind {
    /// For programs: a failure's code, unless its hook has names of its own.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::TryAgain => "try-again",
            Self::TimedOut => "timed-out",
            Self::Denied => "denied",
            Self::Limit => "limit",
            Self::Invalid => "invalid",
        }
    }
}

/// Why a hook did not do its work.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct HookFailure {
    pub kind: HookFailureKind,
    /// The name that a framework gives to this failure, where the hook is written for one; else the kind's.
    pub code: Option<&'static str>,
    /// For the operator: script, line and column where known, and the cause.
    pub text: String,
    pub hint: Option<String>,
    pub output: String,
}

impl HookFailure {
    /// A failure without hint and output.
    pub fn new(kind: HookFailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            code: None,
            text: text.into(),
            hint: None,
            output: String::new(),
        }
    }

    /// For programs.
    pub fn code(&self) -> &'static str {
        self.code.unwrap_or(self.kind.as_str())
    }
}

/// What a hook's own file says of how it is run. None: what the configuration says counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookTerms {
    pub timeout: Option<Duration>,
    /// Attempts of `pre` beside the first.
    pub retries: Option<u32>,
    /// Attempts of `post` beside the first.
    pub post_retries: u32,
    pub on_failure: Option<OnFailure>,
    /// Whether what the machine's config names under `freeze` is frozen after the last `pre`, until the snapshot is there.
    /// None: it says nothing of that, and the config alone counts.
    pub wants_freeze: Option<bool>,
}

/// A file system that a hook has frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFreeze {
    pub mount: PathBuf,
    pub since: Instant,
}

/// One hook of one machine.
///
/// `check` disturbs nothing. `pre` may be called again after a failed attempt; `post` is called once for every hook whose
/// `pre` was *started*, after its last attempt, in reverse order, and must be safe to call twice: it is called again where
/// it asks for that, or its terms have retries, while the hold lasts. Neither outlives `timeout`: when a call returns, no
/// process that it started is left, but what a good `pre` holds open on purpose. That ends with `post`, or when the hold is
/// over.
#[async_trait]
pub trait HookRunner: Send + Sync {
    /// The hook's name in the config.
    fn name(&self) -> &str;
    /// Its kind, as the config writes it: `rhai`, `wasm`, `exec`, `azure`.
    fn kind(&self) -> &str;
    /// What its file says of how it is run.
    fn terms(&self) -> HookTerms {
        HookTerms::default()
    }
    async fn check(&self, context: &HookContext) -> Result<Vec<Finding>, HookFailure>;
    /// Whether everything that this job's `pre` left open (a session that holds a lock) is still there. Asked once the
    /// snapshot is done and before any `post`: what was lost until then makes the application's rest worth nothing.
    fn still_held(&self, _job: &str) -> Result<(), HookFailure> {
        Ok(())
    }
    /// The file systems that this job's `pre` has frozen and that are frozen still, as far as is known. Asked after the last
    /// `pre` (the job does not freeze those itself), and again once the snapshot is done. A `post` that finds that one was
    /// thawed too early fails.
    fn frozen(&self, _job: &str) -> Vec<HookFreeze> {
        Vec::new()
    }
    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure>;
    async fn post(
        &self,
        context: &HookContext,
        memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure>;
}
