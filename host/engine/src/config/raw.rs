//! The file's shape as serde reads it: every key optional, with its position, and none unknown.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

/// Tables by name, with the position of each name.
pub(super) type Named<T> = BTreeMap<Spanned<String>, Spanned<T>>;
pub(super) type Word = Option<Spanned<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub coffre: Coffre,
    pub transfer: Option<Transfer>,
    #[serde(default)]
    pub vault: Named<Vault>,
    #[serde(default)]
    pub policy: Named<Policy>,
    #[serde(default)]
    pub machine: Named<Machine>,
    #[serde(default)]
    pub hook: Named<Hook>,
    #[serde(default)]
    pub ssh: Named<Ssh>,
    #[serde(default)]
    pub plugin: Named<Plugin>,
    pub metrics: Option<Spanned<Metrics>>,
    #[serde(default)]
    pub notify: Named<Notify>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Coffre {
    pub state: Word,
    pub run: Word,
    pub cache: Word,
    pub plugins: Word,
    pub plugin_path: Option<Vec<Spanned<String>>>,
    pub scripts: Word,
    pub jobs: Option<Spanned<u32>>,
    pub disks: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    pub bandwidth: Word,
    pub requests: Option<Spanned<u32>>,
    #[serde(default)]
    pub busy: Vec<Spanned<Busy>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Busy {
    pub at: Word,
    pub bandwidth: Word,
    pub requests: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Vault {
    pub url: Word,
    pub key: Option<Spanned<Key>>,
    pub encryption: Word,
    pub undelete_for: Word,
    pub parity: Word,
    pub endpoint: Word,
    pub region: Word,
    pub allow_http: Option<bool>,
    pub ca_file: Word,
    pub account: Word,
    pub emulator: Option<bool>,
    pub access_key_id: Option<Spanned<Source>>,
    pub secret_access_key: Option<Spanned<Source>>,
    pub account_key: Option<Spanned<Source>>,
    pub sas_token: Option<Spanned<Source>>,
}

/// Where a secret comes from: exactly one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub file: Word,
    pub env: Word,
    pub command: Option<Spanned<Vec<String>>>,
}

/// What opens a vault, and where it comes from: exactly one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Key {
    pub file: Word,
    pub env: Word,
    pub command: Option<Spanned<Vec<String>>>,
    pub passphrase_file: Word,
    pub passphrase_env: Word,
    pub passphrase_command: Option<Spanned<Vec<String>>>,
    pub recovery_key_file: Word,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Policy {
    pub schedule: Word,
    pub jitter: Word,
    pub retry_within: Word,
    pub transfer: Option<Spanned<Vec<Spanned<String>>>>,
    pub consistency: Word,
    pub accept: Word,
    pub keep: Option<Spanned<Keep>>,
    pub hold_at_most: Word,
    pub freeze_at_most: Word,
    pub deadline: Word,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keep {
    pub last: Option<u32>,
    pub within: Word,
    pub hourly: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    pub provider: Word,
    pub os: Word,
    pub settings: Option<Spanned<toml::Table>>,
    pub disks: Option<Spanned<Disks>>,
    pub policy: Word,
    pub vault: Word,
    #[serde(default)]
    pub hooks: Vec<Spanned<String>>,
    #[serde(default)]
    pub freeze: Vec<Spanned<String>>,
    pub agent: Word,
    pub tracking: Word,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disks {
    pub include: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub exclude: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Hook {
    pub kind: Word,
    pub file: Word,
    pub args: Option<Spanned<Vec<String>>>,
    pub application: Option<Spanned<bool>>,
    pub on: Word,
    pub timeout: Word,
    pub retries: Option<Spanned<u32>>,
    #[serde(alias = "on_failure")]
    pub on_failure: Word,
    pub settings: Option<Spanned<toml::Table>>,
    pub grant: Option<Spanned<Grants>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Ssh {
    pub address: Word,
    pub port: Option<Spanned<u32>>,
    pub user: Word,
    pub key: Word,
    pub host_key: Word,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub listen: Word,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Notify {
    pub kind: Word,
    pub on: Option<Vec<Spanned<String>>>,
    pub url: Word,
    pub token: Option<Spanned<Source>>,
    pub server: Word,
    pub from: Word,
    pub to: Option<Vec<Spanned<String>>>,
    pub user: Word,
    pub password: Option<Spanned<Source>>,
    pub command: Option<Spanned<Vec<String>>>,
    pub every: Word,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plugin {
    pub file: Word,
    pub sha256: Word,
    pub dev: Option<bool>,
    pub grant: Option<Grants>,
}

pub(super) type Grants = BTreeMap<Spanned<String>, Spanned<toml::Value>>;
