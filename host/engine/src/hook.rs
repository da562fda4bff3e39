//! The seam to hooks, which bring applications to rest before a snapshot and let them go after it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coffre_guard::Guard;
use serde::{Deserialize, Serialize};

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
    /// How much of that is left as the call begins: what `pre` leaves open ends then, whoever hangs.
    pub hold_left: Duration,
}

impl fmt::Debug for dyn Freezer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Freezer")
    }
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

/// Why a hook did not do its work.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct HookFailure {
    pub kind: HookFailureKind,
    /// For the operator: script, line and column where known, and the cause.
    pub text: String,
    pub hint: Option<String>,
    pub output: String,
}

/// One hook of one machine.
///
/// `check` disturbs nothing. `pre` may be called again after a failed attempt; `post` is called once for every hook whose
/// `pre` was *started*, after its last attempt, in reverse order, and must be safe to call twice. Neither outlives
/// `timeout`: when a call returns, no process that it started is left, but what a good `pre` holds open on purpose. That
/// ends with `post`, or when the hold is over.
#[async_trait]
pub trait HookRunner: Send + Sync {
    /// The hook's name in the config.
    fn name(&self) -> &str;
    /// Its kind, as the config writes it: `rhai`, `wasm`, `exec`, `azure`.
    fn kind(&self) -> &str;
    async fn check(&self, context: &HookContext) -> Result<Vec<Finding>, HookFailure>;
    /// Whether everything that this job's `pre` left open (a session that holds a lock) is still there. Asked once the
    /// snapshot is done and before any `post`: what was lost until then makes the application's rest worth nothing.
    fn still_held(&self, _job: &str) -> Result<(), HookFailure> {
        Ok(())
    }
    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure>;
    async fn post(
        &self,
        context: &HookContext,
        memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure>;
}
