//! What a recovery point says of itself: plain data, sealed as JSON. Every field can be absent, so that later versions
//! add fields and older points stay readable.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{ChunkId, MachineNumber, SessionNumber};

/// What a recovery point is worth, from least to most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after pulling the plug.
    #[default]
    Crash,
    /// File systems at rest.
    FileSystem,
    /// Applications at rest as well.
    Application,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Crash => "crash",
            Self::FileSystem => "file-system",
            Self::Application => "application",
        })
    }
}

/// A committed recovery point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    pub machine: String,
    pub machine_number: MachineNumber,
    pub number: SessionNumber,
    pub committed_at: Timestamp,
    pub written: Written,
    /// Not part of the record, like the next two: read from the point's fates.
    #[serde(skip)]
    pub fate: Fate,
    /// Pinned points are not forgotten.
    #[serde(skip)]
    pub pin: Option<Pin>,
    /// If it is forgotten, the store's time from which the time to undelete is counted.
    #[serde(skip)]
    pub forgotten_since: Option<Timestamp>,
    #[serde(flatten)]
    pub content: PointDraft,
}

impl Default for Point {
    fn default() -> Self {
        Self {
            machine: String::new(),
            machine_number: MachineNumber::MAINTENANCE,
            number: SessionNumber(0),
            committed_at: Timestamp::UNIX_EPOCH,
            written: Written::default(),
            fate: Fate::default(),
            pin: None,
            forgotten_since: None,
            content: PointDraft::default(),
        }
    }
}

impl std::ops::Deref for Point {
    type Target = PointDraft;

    fn deref(&self) -> &PointDraft {
        &self.content
    }
}

/// Whether a point may still be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    #[default]
    Kept,
    /// Marked to go, still restorable, and one record away from being kept again.
    Forgotten,
    /// Its chunks may be gone.
    Purged,
    /// A record of it is damaged or of a newer version. The point can be restored if its chunks are there; nothing builds
    /// upon it and nothing of it is deleted.
    Unknown,
}

/// That somebody wants a point to stay, whatever the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// By the clock of whoever pinned it.
    pub at: Timestamp,
    pub reason: Option<String>,
}

/// What a session has put into the vault for a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    pub packs: u32,
    /// The session's index pieces are numbered from 0 to one less than this.
    pub index_pieces: u32,
    /// Packs and index pieces, as stored.
    pub stored_bytes: u64,
}

/// What the job knows of a point; the vault adds the rest when it commits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PointDraft {
    /// The instant of the snapshot.
    pub taken_at: Option<Timestamp>,
    /// Where the job ran.
    pub host: String,
    /// The version of Coffre that wrote it.
    pub coffre: String,
    pub consistency: ConsistencyReached,
    /// How long applications were held, from the first pre hook to the last post hook.
    pub held_ms: Option<u64>,
    /// What Coffre added to that: from the end of the last pre to the start of the first post, less the provider's
    /// snapshot.
    pub hold_overhead_ms: Option<u64>,
    /// How long file systems were frozen.
    pub frozen_ms: Option<u64>,
    pub policy: Option<String>,
    pub job: Option<String>,
    pub provider: Option<PointProvider>,
    pub disks: Vec<PointDisk>,
    /// In the order in which their pre steps ran.
    pub hooks: Vec<HookOutcome>,
    pub notes: Vec<Note>,
    pub attachments: Vec<PointAttachment>,
    /// Maintenance only: damaged pieces of the index whose packs this session's pieces list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub supersedes: Vec<String>,
}

/// The consistency of a point, what was asked for, and why it became what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsistencyReached {
    pub reached: Consistency,
    pub wanted: Consistency,
    pub reason: String,
}

/// The provider that took the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PointProvider {
    pub name: String,
    pub version: String,
    /// SHA-256 of the component, in hexadecimal digits.
    pub digest: String,
    /// False when it ran with `--dev`, without a pin.
    pub pinned: bool,
}

/// One disk of a point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PointDisk {
    /// Stays the same from run to run.
    pub id: String,
    /// What a person calls it.
    pub label: String,
    pub size_bytes: u64,
    /// Absent for a disk that holds nothing but holes and zeroes.
    pub root: Option<MapRoot>,
    /// The provider's change token, for the next backup.
    pub token: Option<String>,
    pub compared: Compared,
    /// The point whose map this one was made from.
    pub base: Option<SessionNumber>,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    /// Read again although the provider called it unchanged.
    pub sampled_bytes: u64,
    pub stored_bytes: u64,
    /// The sample found a change that the provider had not named.
    pub tracking_lied: bool,
    /// How much of each 128th of the disk changed: a hexadecimal digit each, 0 for nothing, f for all. Empty: not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub changed_regions: String,
}

/// The top node of a disk's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MapRoot {
    /// 0 is a leaf.
    pub level: u8,
    pub id: ChunkId,
}

/// How a disk's changes were found, and why so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compared {
    pub how: ComparedHow,
    pub why: String,
}

/// Ways to find what changed, from dearest to cheapest but one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComparedHow {
    /// No base: everything was read and stored.
    #[default]
    Full,
    /// Everything was read and compared with the kept digests of the base.
    Scan,
    /// Only what the provider named was read.
    Tracked,
    /// Everything was read and compared with the base in the vault.
    Vault,
}

impl std::fmt::Display for ComparedHow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Scan => "scan",
            Self::Tracked => "tracked",
            Self::Vault => "vault",
        })
    }
}

/// What became of one hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HookOutcome {
    pub name: String,
    /// `rhai`, `wasm`, `exec` or `azure`.
    pub kind: String,
    pub pre: Option<StepOutcome>,
    pub post: Option<StepOutcome>,
    /// The hook declared that its application is at rest.
    pub application_consistent: bool,
}

/// What became of one step of a hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepOutcome {
    pub ok: bool,
    pub attempts: u32,
    pub duration_ms: u64,
    pub error: Option<String>,
    /// What kind of failure it was, for programs: `failed`, `try-again`, `timed-out`, `denied`, `limit`, `invalid`, or the
    /// name that the hook's own framework gives it.
    pub code: Option<String>,
    /// What it wrote, cut to 64 KiB, secrets redacted.
    pub output: String,
}

/// Something that a person should know about the point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    pub level: NoteLevel,
    /// For programs, as `disk-vanished`.
    pub code: String,
    pub disk: Option<String>,
    pub text: String,
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteLevel {
    #[default]
    Info,
    Warning,
    Error,
}

/// What a restored machine needs beside its disks, such as its definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PointAttachment {
    pub name: String,
    pub media_type: String,
    pub size_bytes: u64,
    pub chunks: Vec<ChunkId>,
}
