//! The configuration: one strict TOML file, where every mistake is shown at its line with the nearest right word.
//!
//! Reading goes in four steps, each a file: `find` says which file, and refuses one that others can write; `raw` is its
//! shape as serde reads it, with positions; `check` turns that into the `model` that everybody else uses, looking up every
//! name that refers to another table; `words` reads durations, schedules and grants.

mod check;
mod error;
mod find;
mod model;
mod plugin_file;
mod raw;
mod told;
mod transfer;
mod words;

#[cfg(test)]
mod tests;

pub(crate) use error::suggest;
pub use error::{ConfigError, Problem};
pub use model::{
    Config, DiskSelection, Folders, GrantTable, HookConfig, HookKind, HookPlace, Keep, KeyConfig, KeyKind,
    MachineConfig, OnFailure, PluginConfig, PolicyConfig, SshConfig, StoreSettings, Tracking, UnknownName, VaultConfig,
};
pub use told::{MetricsConfig, NotifyConfig, NotifyWay};
pub use transfer::{Busy, TransferConfig};
pub use words::{HOOK_GRANTS, PLUGIN_GRANTS, Pattern, parse_duration, shown_duration};

/// A commented configuration in which every key stands; `coffre config example` prints it.
pub const EXAMPLE: &str = include_str!("example.toml");
