//! The words that every seam shares: machines, disks, extents, findings.

use std::fmt;

pub use coffre_vault::Consistency;
use serde::{Deserialize, Serialize};

/// The operating system inside a machine; decides which hooks and freezes make sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OsFamily {
    #[default]
    Linux,
    Windows,
    Other,
}

/// What a provider is told about the machine it works for.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    pub name: String,
    pub os: OsFamily,
    /// The machine's `settings` table from the config.
    pub settings: serde_json::Value,
}

/// A disk's name: unique within its machine and the same from run to run. Recovery points are tied to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub String);

impl fmt::Display for DiskId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A disk as `discover` found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    pub id: DiskId,
    pub size_bytes: u64,
    /// What a person would call it.
    pub label: Option<String>,
}

/// A byte range of a disk. Lists of extents are sorted by offset and do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub offset_bytes: u64,
    pub length_bytes: u64,
}

impl Extent {
    /// The first byte past it.
    pub fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.length_bytes
    }
}

/// Something small that belongs to a recovery point (a machine's definition, a database's backup label). At most 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub name: String,
    pub media_type: String,
    pub content: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingLevel {
    Note,
    Warning,
    /// The backup cannot work until this is mended.
    Blocking,
}

/// Something said by a check, before anything is disturbed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub level: FindingLevel,
    pub disk: Option<DiskId>,
    pub text: String,
}
