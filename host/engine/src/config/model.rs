//! The configuration as everybody else uses it: checked, complete, with absolute paths.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use coffre_vault::Parity;
use jiff::tz::TimeZone;
use serde::{Serialize, Serializer};
use serde_json::Value;
use url::Url;

use super::error::suggest;
use super::told::{MetricsConfig, NotifyConfig};
use super::transfer::TransferConfig;
use super::words::Pattern;
use crate::machine::{Consistency, Machine, OsFamily};
use crate::schedule::{Schedule, Window};
use crate::secret::SecretSource;

/// Everything that the configuration file says.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Where it was read.
    pub file: PathBuf,
    pub coffre: Folders,
    pub transfer: TransferConfig,
    #[serde(rename = "vault")]
    pub vaults: BTreeMap<String, VaultConfig>,
    #[serde(rename = "policy")]
    pub policies: BTreeMap<String, PolicyConfig>,
    #[serde(rename = "machine")]
    pub machines: BTreeMap<String, MachineConfig>,
    #[serde(rename = "hook")]
    pub hooks: BTreeMap<String, HookConfig>,
    /// Hosts that hooks run on by ssh.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ssh: BTreeMap<String, SshConfig>,
    #[serde(rename = "plugin")]
    pub plugins: BTreeMap<String, PluginConfig>,
    /// None: nobody can fetch metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
    #[serde(rename = "notify", skip_serializing_if = "BTreeMap::is_empty")]
    pub notify: BTreeMap<String, NotifyConfig>,
}

/// Where this host keeps what is its own, and where it finds code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Folders {
    /// Journals, locks, tokens: what may not be lost.
    pub state: PathBuf,
    /// What ends with the kernel, so in memory: the ledgers of freezes and processes, and the guard's socket.
    pub run: PathBuf,
    /// What can be thrown away at any time: indexes, digests, compiled plugins.
    pub cache: PathBuf,
    /// The pins and grants of installed plugins, one file each.
    pub plugins: PathBuf,
    /// Where `.wasm` files are looked for. None: the plugins folder and those beside the binary.
    pub plugin_path: Option<Vec<PathBuf>>,
    /// What relative `file`s of hooks are relative to.
    pub scripts: PathBuf,
    /// How many machines are backed up at once.
    pub jobs: NonZeroUsize,
    /// How many disks of a machine are read at once.
    pub disks: NonZeroUsize,
}

#[derive(Clone, Debug, Serialize)]
pub struct VaultConfig {
    pub name: String,
    #[serde(serialize_with = "write_shown")]
    pub url: Url,
    /// None only where the config says `encryption = "none"`.
    pub key: Option<KeyConfig>,
    /// How long a forgotten point can be brought back at least; after that, a clean-up may purge it.
    #[serde(rename = "undelete-for", serialize_with = "super::words::write_duration")]
    pub undelete_for: Duration,
    #[serde(flatten)]
    pub store: StoreSettings,
}

/// How the store is reached, beside its URL. Absent credentials come from the environment.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StoreSettings {
    #[serde(serialize_with = "write_option")]
    pub endpoint: Option<Url>,
    pub region: Option<String>,
    pub allow_http: bool,
    pub ca_file: Option<PathBuf>,
    pub account: Option<String>,
    pub emulator: bool,
    pub access_key_id: Option<SecretSource>,
    pub secret_access_key: Option<SecretSource>,
    pub account_key: Option<SecretSource>,
    pub sas_token: Option<SecretSource>,
    /// What is written beside each pack of a local vault to mend it.
    #[serde(serialize_with = "write_shown_option")]
    pub parity: Option<Parity>,
}

/// What opens a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeyConfig {
    pub kind: KeyKind,
    pub source: SecretSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// At least 32 random bytes.
    Secret,
    /// Typed by a person, so stretched with Argon2.
    Passphrase,
    /// What `coffre init` showed once.
    RecoveryKey,
}

/// When to back up, how consistent, how long to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyConfig {
    pub name: String,
    pub schedule: Option<Schedule>,
    /// Scheduled jobs begin at most this much after their due time.
    #[serde(serialize_with = "super::words::write_duration")]
    pub jitter: Duration,
    /// A scheduled job that failed is tried again no later than this after its due time.
    #[serde(serialize_with = "super::words::write_duration")]
    pub retry_within: Duration,
    /// When transfers of scheduled jobs may go; none: always.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transfer: Vec<Window>,
    /// Wanted. None: application where the machine has hooks, file-system where it has something to freeze, else crash.
    pub consistency: Option<Consistency>,
    /// Less than this fails the job.
    pub accept: Consistency,
    pub keep: Option<Keep>,
    /// From the first pre to the last post.
    #[serde(serialize_with = "super::words::write_duration")]
    pub hold_at_most: Duration,
    /// How long the machine's file systems may be frozen around the snapshot.
    #[serde(serialize_with = "super::words::write_duration")]
    pub freeze_at_most: Duration,
    /// How long a session in the vault may take.
    #[serde(serialize_with = "super::words::write_duration")]
    pub deadline: Duration,
}

/// How many points of each kind stay; 0 says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Keep {
    pub last: u32,
    /// All that are no older than the newest by this much.
    #[serde(serialize_with = "super::words::write_duration")]
    pub within: Duration,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

impl PolicyConfig {
    /// Whose days, weeks and months are meant: the schedule's, or this host's where it names none.
    pub fn time_zone(&self) -> TimeZone {
        self.schedule.as_ref().map_or_else(TimeZone::system, Schedule::zone)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineConfig {
    pub name: String,
    pub provider: String,
    pub os: OsFamily,
    pub settings: Value,
    pub disks: DiskSelection,
    pub policy: Option<String>,
    pub vault: String,
    /// In the order in which their `pre` runs.
    pub hooks: Vec<String>,
    /// Mount points on this host, of file systems on the machine's disks, that are frozen around the snapshot.
    pub freeze: Vec<PathBuf>,
    /// The socket on this host of the guest agent that runs in the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<PathBuf>,
    pub tracking: Tracking,
}

impl MachineConfig {
    /// What seams are told about it.
    pub fn machine(&self) -> Machine {
        Machine {
            name: self.name.clone(),
            os: self.os,
            settings: self.settings.clone(),
        }
    }
}

/// Which of a machine's disks are backed up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskSelection {
    /// None: all. A disk named without a wildcard must be there.
    pub include: Option<Vec<Pattern>>,
    pub exclude: Vec<Pattern>,
}

/// Whether a provider's word on what changed is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracking {
    /// Used, until the provider was caught lying.
    #[default]
    Auto,
    /// Never: every backup compares by reading.
    Off,
    /// As `auto`, and an earlier lie is forgiven.
    TrustAgain,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HookConfig {
    pub name: String,
    pub kind: HookKind,
    pub file: PathBuf,
    /// Of an executable: what follows `pre` or `post` on its command line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Of an executable: a `pre` that ends well has brought the application to rest.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub application: bool,
    /// None: not said, which is fine where the provider runs inside the machine.
    pub on: Option<HookPlace>,
    /// For one attempt of one of pre and post.
    #[serde(serialize_with = "super::words::write_duration")]
    pub timeout: Duration,
    /// Attempts beside the first.
    pub retries: u32,
    pub on_failure: OnFailure,
    pub settings: Value,
    pub grant: GrantTable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    Rhai,
    Wasm,
    Exec,
    Azure,
}

impl HookKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rhai => "rhai",
            Self::Wasm => "wasm",
            Self::Exec => "exec",
            Self::Azure => "azure",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookPlace {
    Host,
    Agent,
    Ssh(String),
}

impl Serialize for HookPlace {
    /// As the configuration writes it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Host => serializer.serialize_str("host"),
            Self::Agent => serializer.serialize_str("agent"),
            Self::Ssh(name) => serializer.serialize_str(&format!("ssh:{name}")),
        }
    }
}

/// How a hook reaches the machine that it runs in, by ssh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SshConfig {
    pub name: String,
    /// A name or an address.
    pub address: String,
    pub port: u16,
    pub user: String,
    /// The file of the private key.
    pub key: PathBuf,
    /// The only key that the other side may have: its type and the key, as in known_hosts.
    pub host_key: String,
}

/// What a failed pre or post means for the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// No backup.
    Fail,
    /// The point is not worth `application`.
    Downgrade,
    /// The level stays as it is.
    Warn,
}

/// What the operator allows, by grant. Values are strings, or lists of strings for commands; they may hold
/// `${settings.NAME}`, which is filled in per machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct GrantTable(pub BTreeMap<String, Value>);

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginConfig {
    pub name: String,
    /// None: found by name in the plugin path.
    pub file: Option<PathBuf>,
    /// Lower-case hex.
    pub sha256: Option<String>,
    /// Unpinned, for development; every point made so says it.
    pub dev: bool,
    /// None: not said, which for a plugin that ships means what its manifest asks for.
    pub grant: Option<GrantTable>,
}

/// Somebody asked for a thing that the config does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the config has no {what} `{name}`")]
pub struct UnknownName {
    pub what: &'static str,
    pub name: String,
    pub hint: Option<String>,
}

impl Config {
    pub fn machine(&self, name: &str) -> Result<&MachineConfig, UnknownName> {
        find(&self.machines, "machine", name)
    }

    pub fn vault(&self, name: &str) -> Result<&VaultConfig, UnknownName> {
        find(&self.vaults, "vault", name)
    }

    pub fn hook(&self, name: &str) -> Result<&HookConfig, UnknownName> {
        find(&self.hooks, "hook", name)
    }

    pub fn channel(&self, name: &str) -> Result<&NotifyConfig, UnknownName> {
        find(&self.notify, "channel", name)
    }

    pub fn policy(&self, name: &str) -> Result<&PolicyConfig, UnknownName> {
        find(&self.policies, "policy", name)
    }

    /// The policy that a machine is under; one of defaults if it names none.
    pub fn policy_of(&self, machine: &MachineConfig) -> PolicyConfig {
        let named = machine.policy.as_ref().and_then(|name| self.policies.get(name));
        named.cloned().unwrap_or_default()
    }

    /// What a machine's backup wants to reach.
    pub fn wanted(&self, machine: &MachineConfig) -> Consistency {
        let by_default = match (machine.hooks.is_empty(), machine.freeze.is_empty()) {
            (false, _) => Consistency::Application,
            (true, false) => Consistency::FileSystem,
            (true, true) => Consistency::Crash,
        };
        self.policy_of(machine).consistency.unwrap_or(by_default)
    }
}

fn find<'a, T>(among: &'a BTreeMap<String, T>, what: &'static str, name: &str) -> Result<&'a T, UnknownName> {
    among.get(name).ok_or_else(|| UnknownName {
        what,
        name: name.to_owned(),
        hint: suggest(name, among.keys().map(String::as_str)),
    })
}

pub(super) fn write_shown<S: Serializer>(value: &Url, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.as_str())
}

fn write_shown_option<S: Serializer>(value: &Option<Parity>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|parity| parity.to_string()).serialize(serializer)
}

fn write_option<S: Serializer>(value: &Option<Url>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(Url::as_str).serialize(serializer)
}
