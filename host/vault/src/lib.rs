//! The vault: format and protocol on any object store. Knows no plugin and no job.

pub mod map;

use serde::{Deserialize, Serialize};

/// What a recovery point is worth, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after pulling the plug.
    Crash,
    /// File systems at rest.
    FileSystem,
    /// Applications at rest as well.
    Application,
}
