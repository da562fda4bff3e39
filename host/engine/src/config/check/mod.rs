//! From the file's shape to the model: every word read, every name looked up, every path made absolute.

mod code;
mod reach;
mod told;
mod transfer;
mod vault;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::config::error::{ConfigError, Problem, suggest};
use crate::config::model::{
    Config, DiskSelection, Folders, HookConfig, HookPlace, Keep, MachineConfig, PolicyConfig, Tracking, VaultConfig,
};
use crate::config::raw;
use crate::config::words::{self, Pattern, Wrong};
use crate::machine::{Consistency, OsFamily};
use crate::transfer::DISKS_AT_ONCE;

const STATE: &str = "/var/lib/coffre/state";
const CACHE: &str = "/var/cache/coffre";
const RUN: &str = "/run/coffre";
const PLUGINS: &str = "/etc/coffre/plugins.d";
/// How long file systems may be frozen: whoever writes waits meanwhile, and a snapshot of one instant takes milliseconds.
const FREEZE_AT_MOST: Duration = Duration::from_secs(10);
/// How long applications may be held in all; people notice a database that answers nobody for a minute.
const HOLD_AT_MOST: Duration = Duration::from_secs(60);
/// An outage of an evening is ridden out; after it, the next due time is near.
const RETRY_WITHIN: Duration = Duration::from_secs(6 * 3600);
const DEADLINE: Duration = Duration::from_secs(24 * 3600);

type Result<T> = std::result::Result<T, ConfigError>;

/// Reads `content`, which stands in `file` (an absolute path).
pub(in crate::config) fn config(file: &Path, content: &str) -> Result<Config> {
    let checker = Checker::new(file, content);
    let raw: raw::File = checker.read()?;

    let coffre = checker.folders(raw.coffre)?;
    let transfer = checker.transfer(raw.transfer)?;
    let vaults = checker.tables(raw.vault, "vault", |name, table, span| checker.vault(name, table, span))?;
    let policies = checker.tables(raw.policy, "policy", |name, table, _| checker.policy(name, table))?;
    let ssh = checker.tables(raw.ssh, "host", |name, table, span| checker.ssh(name, table, span))?;
    let hooks = checker.tables(raw.hook, "hook", |name, table, span| {
        checker.hook(name, table, span, &coffre.scripts, &ssh)
    })?;
    let plugins = checker.tables(raw.plugin, "plugin", |name, table, _| checker.plugin(name, table))?;
    let machines = checker.tables(raw.machine, "machine", |name, table, span| {
        let known = References {
            vaults: &vaults,
            policies: &policies,
            hooks: &hooks,
        };
        checker.machine(name, table, span, &known)
    })?;
    let metrics = raw.metrics.map(|metrics| checker.metrics(metrics)).transpose()?;
    let notify = checker.tables(raw.notify, "channel", |name, table, span| {
        checker.notify(name, table, span)
    })?;
    Ok(Config {
        file: file.to_owned(),
        coffre,
        transfer,
        vaults,
        policies,
        machines,
        hooks,
        ssh,
        plugins,
        metrics,
        notify,
    })
}

/// What a machine's table may name.
struct References<'a> {
    vaults: &'a BTreeMap<String, VaultConfig>,
    policies: &'a BTreeMap<String, PolicyConfig>,
    hooks: &'a BTreeMap<String, HookConfig>,
}

pub(in crate::config) struct Checker<'a> {
    file: &'a Path,
    folder: PathBuf,
    content: &'a str,
}

impl<'a> Checker<'a> {
    pub fn new(file: &'a Path, content: &'a str) -> Self {
        let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
        Self { file, folder, content }
    }

    /// Parses the whole text into a table's shape.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(self.content).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            let (message, hint) = said_by_serde(error.message());
            self.wrong(span, message, hint)
        })
    }

    fn wrong(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) -> ConfigError {
        ConfigError::Invalid(Box::new(Problem::at(
            self.file,
            self.content,
            span,
            message.into(),
            hint,
        )))
    }

    /// Reads one word in one of the small languages.
    fn word<T>(&self, word: &Spanned<String>, read: impl FnOnce(&str) -> std::result::Result<T, Wrong>) -> Result<T> {
        read(word.get_ref()).map_err(|(message, hint)| self.wrong(word.span(), message, hint))
    }

    fn required(&self, word: raw::Word, key: &str, example: &str, span: Range<usize>) -> Result<Spanned<String>> {
        word.ok_or_else(|| {
            let hint = Some(format!("add a line like: {key} = {example}"));
            self.wrong(span, format!("`{key}` is missing here"), hint)
        })
    }

    fn one_of<T: Copy>(&self, word: &Spanned<String>, what: &str, known: &[(&str, T)]) -> Result<T> {
        let found = known.iter().find(|(name, _)| name == word.get_ref());
        found.map(|(_, value)| *value).ok_or_else(|| {
            let hint = suggest(word.get_ref(), known.iter().map(|(name, _)| *name));
            self.wrong(word.span(), format!("`{}` is not {what}", word.get_ref()), hint)
        })
    }

    fn path(&self, word: &Spanned<String>) -> Result<PathBuf> {
        if word.get_ref().is_empty() {
            return Err(self.wrong(word.span(), "an empty path", None));
        }
        Ok(self.folder.join(word.get_ref()))
    }

    fn optional_path(&self, word: &raw::Word) -> Result<Option<PathBuf>> {
        word.as_ref().map(|word| self.path(word)).transpose()
    }

    fn tables<T, M>(
        &self,
        named: raw::Named<T>,
        what: &str,
        mut check: impl FnMut(String, T, Range<usize>) -> Result<M>,
    ) -> Result<BTreeMap<String, M>> {
        let mut checked = BTreeMap::new();
        for (name, table) in named {
            self.name(&name, what)?;
            let span = name.span();
            let name = name.into_inner();
            checked.insert(name.clone(), check(name, table.into_inner(), span)?);
        }
        Ok(checked)
    }

    /// Names become parts of paths, object names and command lines.
    fn name(&self, name: &Spanned<String>, what: &str) -> Result<()> {
        let text = name.get_ref();
        let plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        let right = (1..=64).contains(&text.len())
            && text.chars().all(plain)
            && text.starts_with(|first: char| first.is_ascii_alphanumeric());
        if right {
            return Ok(());
        }
        let hint = "letters, digits, `-`, `_` and `.`, at most 64, a letter or digit first";
        Err(self.wrong(
            name.span(),
            format!("`{text}` cannot be the name of a {what}"),
            Some(hint.to_owned()),
        ))
    }

    fn folders(&self, raw: raw::Coffre) -> Result<Folders> {
        let or = |path: Option<PathBuf>, default: &str| path.unwrap_or_else(|| PathBuf::from(default));
        let at_once = |count: &Option<Spanned<u32>>, what: &str, most: usize, default: usize| {
            let Some(count) = count else {
                return Ok(NonZeroUsize::new(default).unwrap_or(NonZeroUsize::MIN));
            };
            NonZeroUsize::new(*count.get_ref() as usize)
                .filter(|count| count.get() <= most)
                .ok_or_else(|| self.wrong(count.span(), format!("`{what}` is at least 1 and at most {most}"), None))
        };
        let plugin_path = raw
            .plugin_path
            .map(|paths| paths.iter().map(|path| self.path(path)).collect());
        Ok(Folders {
            state: or(self.optional_path(&raw.state)?, STATE),
            run: self.optional_path(&raw.run)?.unwrap_or_else(default_run),
            cache: or(self.optional_path(&raw.cache)?, CACHE),
            plugins: or(self.optional_path(&raw.plugins)?, PLUGINS),
            plugin_path: plugin_path.transpose()?,
            scripts: self.optional_path(&raw.scripts)?.unwrap_or_else(|| self.folder.clone()),
            jobs: at_once(&raw.jobs, "jobs", 64, 1)?,
            disks: at_once(&raw.disks, "disks", DISKS_AT_ONCE, DISKS_AT_ONCE)?,
        })
    }

    fn policy(&self, name: String, raw: raw::Policy) -> Result<PolicyConfig> {
        let levels = [
            ("application", Consistency::Application),
            ("file-system", Consistency::FileSystem),
            ("crash", Consistency::Crash),
        ];
        let level = |word: &raw::Word| {
            word.as_ref()
                .map(|word| self.one_of(word, "a consistency", &levels))
                .transpose()
        };
        let within = |word: &raw::Word, what: &str, most: &str, default| match word {
            Some(word) => self.word(word, |text| words::duration_within(text, what, "1s", most)),
            None => Ok(default),
        };
        let schedule = raw.schedule.map(|word| self.word(&word, words::schedule)).transpose()?;
        let consistency = level(&raw.consistency)?;
        let accept = level(&raw.accept)?.unwrap_or(Consistency::Crash);
        if let (Some(wanted), Some(word)) = (consistency, &raw.accept)
            && accept > wanted
        {
            let message = "`accept` asks for more than `consistency` wants";
            return Err(self.wrong(word.span(), message, None));
        }
        let keep = raw.keep.map(|keep| self.keep(keep)).transpose()?;
        Ok(PolicyConfig {
            name,
            schedule,
            jitter: match &raw.jitter {
                Some(word) => self.word(word, |text| words::duration_within(text, "`jitter`", "0s", "12h"))?,
                None => Duration::ZERO,
            },
            retry_within: match &raw.retry_within {
                Some(word) => self.word(word, |text| words::duration_within(text, "`retry-within`", "0s", "7d"))?,
                None => RETRY_WITHIN,
            },
            transfer: self.windows(raw.transfer)?,
            consistency,
            accept,
            keep,
            hold_at_most: within(&raw.hold_at_most, "`hold-at-most`", "10m", HOLD_AT_MOST)?,
            freeze_at_most: within(&raw.freeze_at_most, "`freeze-at-most`", "60s", FREEZE_AT_MOST)?,
            deadline: within(&raw.deadline, "`deadline`", "7d", DEADLINE)?,
        })
    }

    fn keep(&self, keep: Spanned<raw::Keep>) -> Result<Keep> {
        let span = keep.span();
        let raw = keep.into_inner();
        let keep = Keep {
            last: raw.last.unwrap_or(0),
            within: match &raw.within {
                Some(word) => self.word(word, |text| words::duration_within(text, "`within`", "1h", "36500d"))?,
                None => Duration::ZERO,
            },
            hourly: raw.hourly.unwrap_or(0),
            daily: raw.daily.unwrap_or(0),
            weekly: raw.weekly.unwrap_or(0),
            monthly: raw.monthly.unwrap_or(0),
            yearly: raw.yearly.unwrap_or(0),
        };
        if keep == Keep::default() {
            let hint = "leave `keep` out to keep every point".to_owned();
            return Err(self.wrong(span, "`keep` that keeps nothing", Some(hint)));
        }
        Ok(keep)
    }

    fn machine(
        &self,
        name: String,
        raw: raw::Machine,
        span: Range<usize>,
        known: &References<'_>,
    ) -> Result<MachineConfig> {
        let provider = self.required(raw.provider, "provider", "\"reflink\"", span.clone())?;
        self.name(&provider, "provider")?;
        let families = [
            ("linux", OsFamily::Linux),
            ("windows", OsFamily::Windows),
            ("other", OsFamily::Other),
        ];
        let trackings = [
            ("auto", Tracking::Auto),
            ("off", Tracking::Off),
            ("trust-again", Tracking::TrustAgain),
        ];
        if let Some(policy) = &raw.policy {
            self.refers(policy, "policy", known.policies)?;
        }
        let vault = match raw.vault {
            Some(vault) => {
                self.refers(&vault, "vault", known.vaults)?;
                vault.into_inner()
            }
            None if known.vaults.len() == 1 => known.vaults.keys().next().cloned().unwrap_or_default(),
            None => {
                let hint = suggest("", known.vaults.keys().map(String::as_str))
                    .unwrap_or_else(|| "the config has no vault yet: add a [vault.main] table".to_owned());
                return Err(self.wrong(span, format!("machine `{name}` does not say which `vault`"), Some(hint)));
            }
        };
        let mut hooks: Vec<String> = Vec::new();
        for hook in raw.hooks {
            self.refers(&hook, "hook", known.hooks)?;
            if hooks.contains(hook.get_ref()) {
                return Err(self.wrong(hook.span(), format!("hook `{}` twice", hook.get_ref()), None));
            }
            let on_agent = known
                .hooks
                .get(hook.get_ref())
                .is_some_and(|hook| hook.on == Some(HookPlace::Agent));
            if on_agent && raw.agent.is_none() {
                let message = format!(
                    "hook `{}` runs by the guest agent, and `{name}` names none",
                    hook.get_ref()
                );
                let hint = "add a line like: agent = \"/run/qemu/web01.qga\", the agent's socket on this host";
                return Err(self.wrong(hook.span(), message, Some(hint.to_owned())));
            }
            hooks.push(hook.into_inner());
        }
        let mut freeze: Vec<PathBuf> = Vec::new();
        for mount in raw.freeze {
            let path = PathBuf::from(mount.get_ref());
            if !path.is_absolute() || freeze.contains(&path) {
                let message = format!(
                    "`{}` is not the path of a mount point, or stands here twice",
                    mount.get_ref()
                );
                let hint = "name mount points of this host, as `findmnt` lists them, as in freeze = [\"/srv/app\"]";
                return Err(self.wrong(mount.span(), message, Some(hint.to_owned())));
            }
            freeze.push(path);
        }
        let disks = raw.disks.map(Spanned::into_inner);
        let patterns = |list: Vec<Spanned<String>>| -> Vec<Pattern> {
            list.iter().map(|pattern| Pattern::new(pattern.get_ref())).collect()
        };
        Ok(MachineConfig {
            name,
            provider: provider.into_inner(),
            os: raw.os.map_or(Ok(OsFamily::Linux), |os| {
                self.one_of(&os, "a family of systems", &families)
            })?,
            settings: settings(raw.settings),
            disks: disks.map_or_else(DiskSelection::default, |disks| DiskSelection {
                include: disks.include.map(patterns),
                exclude: patterns(disks.exclude),
            }),
            policy: raw.policy.map(Spanned::into_inner),
            vault,
            hooks,
            freeze,
            agent: self.optional_path(&raw.agent)?,
            tracking: raw
                .tracking
                .map_or(Ok(Tracking::Auto), |word| self.one_of(&word, "a tracking", &trackings))?,
        })
    }

    fn refers<T>(&self, word: &Spanned<String>, what: &str, known: &BTreeMap<String, T>) -> Result<()> {
        if known.contains_key(word.get_ref()) {
            return Ok(());
        }
        let hint = suggest(word.get_ref(), known.keys().map(String::as_str)).unwrap_or_else(|| {
            format!(
                "the config has no {what} at all: add a [{what}.{}] table",
                word.get_ref()
            )
        });
        Err(self.wrong(
            word.span(),
            format!("there is no {what} `{}`", word.get_ref()),
            Some(hint),
        ))
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            schedule: None,
            jitter: Duration::ZERO,
            retry_within: RETRY_WITHIN,
            transfer: Vec::new(),
            consistency: None,
            accept: Consistency::Crash,
            keep: None,
            hold_at_most: HOLD_AT_MOST,
            freeze_at_most: FREEZE_AT_MOST,
            deadline: DEADLINE,
        }
    }
}

/// Memory that goes with the kernel: root's own, or what the session has; where there is neither, a file system does, since
/// what is written there names the kernel that it is true of.
fn default_run() -> PathBuf {
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match session.filter(|folder| folder.is_absolute()) {
        _ if rustix::process::geteuid().is_root() => PathBuf::from(RUN),
        Some(folder) => folder.join("coffre"),
        None => PathBuf::from(STATE).join("run"),
    }
}

fn settings(table: Option<Spanned<toml::Table>>) -> serde_json::Value {
    let table = table.map(Spanned::into_inner).unwrap_or_default();
    json(toml::Value::Table(table))
}

/// Dates, which JSON lacks, become strings; numbers that JSON cannot say become null.
fn json(value: toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(json).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(key, value)| (key, json(value))).collect(),
    }
}

/// Serde says ``unknown field `x`, expected one of `a`, `b` ``; people are told the one that is near.
fn said_by_serde(message: &str) -> (String, Option<String>) {
    let message = message.trim();
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut quoted = rest.split('`').skip(1).step_by(2);
        let found = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        return (format!("unknown key `{found}`"), suggest(found, known.iter().copied()));
    }
    if let Some((found, wanted)) = message
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        let wanted = match wanted {
            "u32" => "a whole number",
            "a boolean" => "true or false",
            "a sequence" => "a list in brackets",
            "a string" => "a text in quotes",
            "a map" => "a table",
            other if other.starts_with("struct ") => "a table",
            other => other,
        };
        return (format!("{wanted} belongs here, not {found}"), None);
    }
    (message.lines().collect::<Vec<_>>().join(", "), None)
}
