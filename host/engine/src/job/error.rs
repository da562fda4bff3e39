//! Why a backup made no point, said to whoever has to act on it.

use std::time::Duration;

use coffre_vault::{BeginError, CommitError, ReadError, WriteError};

use crate::config::UnknownName;
use crate::hook::{HookFailure, HookFailureKind};
use crate::journal::JournalError;
use crate::machine::{Consistency, DiskId, Finding};
use crate::provider::{ProviderError, ProviderErrorKind};
use crate::source::SourceError;
use crate::state::StateError;
use crate::transfer::TransferError;

/// Why there is no point.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Unknown(#[from] UnknownName),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the hook {hook} was not loaded")]
    HookNotLoaded { hook: String },
    #[error("hook {hook} does not say where it runs, and provider {provider} runs outside the machine")]
    HookNowhere { hook: String, provider: String },
    #[error("provider {provider} cannot {doing}")]
    Provider {
        provider: String,
        doing: &'static str,
        source: ProviderError,
    },
    #[error("provider {provider} answered what cannot be: {what}")]
    BadAnswer { provider: String, what: String },
    #[error("{}", said(.0))]
    Blocked(Vec<Finding>),
    #[error("disk {disk}, which the config includes by name, is not there")]
    DiskMissing { disk: String, found: Vec<DiskId> },
    #[error("machine {machine} has no disk to back up")]
    NoDisks { machine: String, found: Vec<DiskId> },
    #[error("{step} of hook {hook} failed")]
    Hook {
        hook: String,
        step: &'static str,
        source: Box<HookFailure>,
    },
    #[error("the snapshot is {reached}-consistent, and the policy accepts {accept} at least: {reason}")]
    LessThanAccepted {
        reached: Consistency,
        accept: Consistency,
        reason: String,
    },
    #[error(
        "the guard went away while applications were held, so there was nobody left to let them go if this process had"
    )]
    GuardGone,
    #[error("open disk {disk} of the snapshot")]
    Source { disk: DiskId, source: SourceError },
    #[error("read the machine's earlier points")]
    Read(#[source] ReadError),
    #[error("begin a session in the vault")]
    Begin(#[source] Box<BeginError>),
    #[error("transfer the disks")]
    Transfer(#[source] Box<TransferError>),
    #[error("store the point's attachments")]
    Attachments(#[source] WriteError),
    #[error("commit the point")]
    Commit(#[source] Box<CommitError>),
    #[error("{}", not_committed(.0))]
    FateUnknown(#[source] Box<CommitError>),
    #[error("the transfer took longer than its deadline of {} s", .0.as_secs())]
    DeadlinePassed(Duration),
    #[error("cancelled")]
    Cancelled,
    #[error("its process went away")]
    Died,
    #[error("a fault in Coffre itself: {0}")]
    Panicked(String),
}

/// What a failure means for the one who called; the exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobErrorKind {
    Failed,
    /// The config must be mended.
    Config,
    /// Trying again later may help.
    TryAgain,
    /// A grant is missing.
    Denied,
    Cancelled,
}

impl JobError {
    pub fn kind(&self) -> JobErrorKind {
        match self {
            Self::Unknown(_) | Self::HookNowhere { .. } => JobErrorKind::Config,
            Self::State(error) if error.may_retry() => JobErrorKind::TryAgain,
            Self::Journal(JournalError::State(error)) if error.may_retry() => JobErrorKind::TryAgain,
            Self::Provider { source, .. } => match source.kind {
                ProviderErrorKind::InvalidSettings => JobErrorKind::Config,
                ProviderErrorKind::Denied => JobErrorKind::Denied,
                _ if source.may_retry() => JobErrorKind::TryAgain,
                _ => JobErrorKind::Failed,
            },
            Self::Hook { source, .. } => match source.kind {
                HookFailureKind::Denied => JobErrorKind::Denied,
                HookFailureKind::TryAgain => JobErrorKind::TryAgain,
                _ => JobErrorKind::Failed,
            },
            Self::Cancelled => JobErrorKind::Cancelled,
            Self::FateUnknown(_) | Self::GuardGone => JobErrorKind::TryAgain,
            _ => JobErrorKind::Failed,
        }
    }

    /// The session cannot become a point, and another one upon the same snapshot can.
    pub(super) fn wants_a_new_session(&self) -> bool {
        let anew = |error: &CommitError| matches!(error, CommitError::Fenced { .. } | CommitError::PackMissing { .. });
        matches!(self, Self::Commit(error) if anew(error))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = |text: &str| Some(text.to_owned());
        match self {
            Self::Unknown(error) => error.hint.clone(),
            Self::State(error) | Self::Journal(JournalError::State(error)) => error.hint(),
            Self::Provider { source, .. } => source.hint.clone(),
            Self::Hook { source, .. } => source.hint.clone(),
            Self::HookNowhere { hook, .. } => Some(format!(
                "add `on = \"host\"`, `on = \"agent\"` or `on = \"ssh:NAME\"` to [hook.{hook}]"
            )),
            Self::BadAnswer { provider, .. } => Some(format!(
                "nothing was stored; this is a fault of the plugin {provider}: use another version of it"
            )),
            Self::DiskMissing { found, .. } | Self::NoDisks { found, .. } => Some(format!(
                "the provider finds {}; see `disks` of the machine in the config",
                listed(found)
            )),
            Self::LessThanAccepted { .. } => hint("mend the cause, or set a lower `accept` in the policy"),
            Self::FateUnknown(error) if matches!(**error, CommitError::Full(_)) => {
                hint("all else is in the vault, and the next backup of this machine commits the point first")
            }
            Self::GuardGone => hint("what was held was let go at once; see who ended coffre-guard, then run it again"),
            Self::FateUnknown(_) => hint("the next backup of this machine finds out first, and loses nothing"),
            Self::DeadlinePassed(_) => {
                hint("what has arrived stays in the vault; a longer `deadline` in the policy allows up to 7d")
            }
            Self::Commit(error) if matches!(**error, CommitError::Fenced { .. }) => {
                hint("somebody cleaned up the vault while this ran; run it again")
            }
            Self::Blocked(_) => hint("nothing was disturbed; mend this, then `coffre config check` asks again"),
            Self::Transfer(error) if matches!(**error, TransferError::Source { .. }) => {
                hint("no point was made, and earlier points are untouched; look at the disk, then run it again")
            }
            Self::Panicked(_) => hint("please report it with the job's journal"),
            _ => None,
        }
    }
}

fn not_committed(error: &CommitError) -> &'static str {
    match error {
        CommitError::Full(_) => "the point could not be committed yet",
        _ => "whether the point was committed is not known yet",
    }
}

fn said(findings: &[Finding]) -> String {
    let lines: Vec<String> = findings
        .iter()
        .map(|finding| match &finding.disk {
            Some(disk) => format!("disk {disk}: {}", finding.text),
            None => finding.text.clone(),
        })
        .collect();
    lines.join("; ")
}

fn listed(disks: &[DiskId]) -> String {
    if disks.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<String> = disks.iter().map(ToString::to_string).collect();
    names.join(", ")
}
