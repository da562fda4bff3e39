//! The seam to snapshot providers. The sandbox fills it with Wasm components; tests fill it with fakes that break.

use std::fs::File;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::machine::{Attachment, Consistency, DiskId, DiskInfo, Extent, Finding, Machine};
use crate::nbd::Socket;

/// Which code answers, as it is recorded in every recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderIdentity {
    pub name: String,
    pub version: String,
    /// sha256 of the component, as lower-case hex.
    pub digest: String,
    /// False when the operator waived the pin for development; the point says so.
    pub pinned: bool,
}

/// What a provider says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub name: String,
    pub version: String,
    /// The best that `take` gives without hooks.
    pub best_consistency: Consistency,
    /// All disks of a machine are taken at one instant.
    pub one_instant: bool,
    /// `changed` can answer.
    pub tracks_changes: bool,
    /// The machine is not this host: hooks must say where they run.
    pub runs_outside: bool,
    /// JSON Schema of the machine's `settings`.
    pub settings_schema: String,
}

/// Why a provider's call did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderErrorKind {
    InvalidSettings,
    NotFound,
    /// A grant is missing; the text names the one that would allow it.
    Denied,
    Busy,
    Unavailable,
    TimedOut,
    Unsupported,
    Failed,
    /// The guest trapped (a panic, an out-of-bounds access). Its instance is gone; the next call starts a new one.
    Trapped,
    /// The guest ran past a limit of the sandbox: time, memory, calls, log.
    Limit,
    /// The guest answered something that cannot be true: overlapping extents, a disk nobody asked for, a wrong size.
    BadAnswer,
}

/// A provider's failure, told apart by who must act on it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct ProviderError {
    pub kind: ProviderErrorKind,
    /// For the operator: what was asked of which provider, and the cause.
    pub text: String,
    /// What to do about it, if the sandbox or the provider knows.
    pub hint: Option<String>,
}

impl ProviderError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn may_retry(&self) -> bool {
        matches!(
            self.kind,
            ProviderErrorKind::Busy | ProviderErrorKind::Unavailable | ProviderErrorKind::TimedOut
        )
    }
}

/// A snapshot's name, chosen by the host and journalled before `take`: letters, digits and `-`, at most 64.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub String);

/// A point's change token for one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub disk: DiskId,
    pub token: String,
}

#[derive(Clone, Debug)]
pub struct TakeRequest {
    pub id: SnapshotId,
    pub disks: Vec<DiskId>,
    /// The tokens of the points that this one will be compared with.
    pub bases: Vec<Base>,
    /// Freeze file systems if that is the provider's to do; for at most this long.
    pub freeze_at_most_ms: Option<u32>,
}

/// Where the host reads a disk's bytes. The sandbox has already checked it against the plugin's grants.
#[derive(Debug)]
pub enum Source {
    /// Opened beneath a granted folder; `path` is for messages.
    File { file: File, path: String },
    /// An NBD export, on a fresh connection to an address within the grants; `uri` is for messages.
    Nbd {
        socket: Socket,
        export: String,
        uri: String,
        changed_context: Option<String>,
    },
    /// The plugin hands the bytes out through [`SnapshotProvider::read`].
    Stream,
}

#[derive(Debug)]
pub struct TakenDisk {
    pub id: DiskId,
    /// What the provider says; the engine measures for itself and refuses a difference.
    pub size_bytes: u64,
    pub source: Source,
    pub token: Option<String>,
}

#[derive(Debug)]
pub struct Snapshot {
    pub consistency: Consistency,
    /// How the provider knows that it is worth that, for the point and the operator.
    pub consistency_reason: String,
    /// Whether all disks show the same instant; the point says where they do not.
    pub one_instant: bool,
    pub disks: Vec<TakenDisk>,
    /// How long the provider itself held file systems.
    pub frozen_ms: Option<u32>,
    pub attachments: Vec<Attachment>,
}

/// A running listing of what changed.
#[async_trait]
pub trait ChangeList: Send {
    /// The next extents, at most 65,536, sorted, after all earlier ones; empty ends the listing. Every byte outside all
    /// of them is as it was at the base. An error means that the host reads everything.
    async fn next(&mut self) -> Result<Vec<Extent>, ProviderError>;
}

pub enum Changes {
    Listed(Box<dyn ChangeList>),
    /// The NBD export's `changed_context` says it.
    InNbdContext,
    /// The base is gone or was never tracked; the text says why.
    CannotTell(String),
}

/// Finds a machine's disks, takes and releases snapshots, and may say what changed.
///
/// For one job the engine calls `discover`, `check`, `take`, then per disk `changed` (and `read`), then, once the point's
/// fate is known, `settle` and `release` until they succeed. It may die between any two calls; the next job finds what
/// was left by `held`. Calls for one machine come one after the other, except `read`. Every call has a deadline of the
/// implementation's own and never hangs.
#[async_trait]
pub trait SnapshotProvider: Send + Sync {
    fn identity(&self) -> ProviderIdentity;
    async fn describe(&self) -> Result<Description, ProviderError>;
    async fn discover(&self, machine: &Machine) -> Result<Vec<DiskInfo>, ProviderError>;
    /// Everything that can be known before applications are disturbed.
    async fn check(&self, machine: &Machine, disks: &[DiskId]) -> Result<Vec<Finding>, ProviderError>;
    async fn take(&self, machine: &Machine, request: &TakeRequest) -> Result<Snapshot, ProviderError>;
    /// What changed on `disk` between `base` and the snapshot `id`.
    async fn changed(
        &self,
        machine: &Machine,
        id: &SnapshotId,
        disk: &DiskId,
        base: &str,
    ) -> Result<Changes, ProviderError>;
    /// Only for [`Source::Stream`]; at most 4 MiB.
    async fn read(
        &self,
        machine: &Machine,
        id: &SnapshotId,
        disk: &DiskId,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> Result<Vec<u8>, ProviderError>;
    /// Keep exactly these bases, drop all others of ours. Harmless when repeated.
    async fn settle(&self, machine: &Machine, keep: &[Base]) -> Result<(), ProviderError>;
    /// The snapshot's data may go. Releasing what is gone is success.
    async fn release(&self, machine: &Machine, id: &SnapshotId) -> Result<(), ProviderError>;
    /// The ids of every snapshot still held for the machine.
    async fn held(&self, machine: &Machine) -> Result<Vec<SnapshotId>, ProviderError>;
}
