//! What a plugin says of itself before it runs: the custom section `coffre:manifest`, JSON within the component, so that
//! one digest covers code and asks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The custom section's name.
pub const MANIFEST_SECTION: &str = "coffre:manifest";

/// The version of `wit/` that this sandbox speaks.
pub const CONTRACT_VERSION: &str = "0.1.0";

/// What a component exports, and so what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    SnapshotProvider,
    ApplicationHook,
}

impl World {
    /// The interface whose export makes a component one of this world, without version.
    pub fn export(self) -> &'static str {
        match self {
            Self::SnapshotProvider => "coffre:plugin/provider",
            Self::ApplicationHook => "coffre:plugin/hook",
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::SnapshotProvider => "snapshot-provider",
            Self::ApplicationHook => "application-hook",
        })
    }
}

/// What a plugin would like to touch, and why, for the operator who decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The grant's name: `disk-read`, `process` …
    pub kind: String,
    /// As in a grant: a text, or a list of texts for a command.
    pub value: serde_json::Value,
    pub why: String,
}

/// The manifest. Unknown fields are passed over: a newer plugin may say more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub world: World,
    /// The version of the contract it was built against.
    pub contract: String,
    /// One sentence: what it does.
    #[serde(default)]
    pub summary: String,
    #[serde(default)]
    pub asks: Vec<Ask>,
}

impl Manifest {
    /// Reads the section's bytes. The error is a clause for a message.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > crate::limits::MANIFEST_BYTES {
            return Err(format!(
                "it has {} bytes; {} are allowed",
                bytes.len(),
                crate::limits::MANIFEST_BYTES
            ));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let plain = |text: &str| !text.is_empty() && text.len() <= 128 && !text.chars().any(char::is_control);
        if !is_plugin_name(&manifest.name) {
            return Err(format!(
                "`{}` is no plugin's name: lower-case letters, digits and '-'",
                manifest.name.escape_debug()
            ));
        }
        if !plain(&manifest.version) || !plain(&manifest.contract) {
            return Err("version and contract must be short texts".to_owned());
        }
        let texts = manifest
            .asks
            .iter()
            .flat_map(|ask| [&ask.kind, &ask.why])
            .chain([&manifest.summary]);
        for text in texts {
            if text.len() > crate::limits::TEXT_BYTES || text.chars().any(char::is_control) {
                return Err("a text is too long or holds control characters".to_owned());
            }
        }
        Ok(manifest)
    }
}

/// Names stand in paths and on the command line.
pub(crate) fn is_plugin_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
