//! From the file's shape to the model: every word read, every name looked up, every path made absolute.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use url::Url;

use super::error::{ConfigError, Problem, suggest};
use super::model::{
    Config, DiskSelection, Folders, GrantTable, HookConfig, HookKind, HookPlace, Keep, KeyConfig, KeyKind,
    MachineConfig, OnFailure, PluginConfig, PolicyConfig, StoreSettings, Tracking, VaultConfig,
};
use super::raw;
use super::words::{self, HOOK_GRANTS, PLUGIN_GRANTS, Pattern, Wrong};
use crate::machine::{Consistency, OsFamily};
use crate::secret::SecretSource;

const STATE: &str = "/var/lib/coffre/state";
const CACHE: &str = "/var/cache/coffre";
const PLUGINS: &str = "/etc/coffre/plugins.d";
/// How long applications may be held in all; people notice a database that answers nobody for a minute.
const HOLD_AT_MOST: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(24 * 3600);
const HOOK_TIMEOUT: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, ConfigError>;

/// Reads `content`, which stands in `file` (an absolute path).
pub(super) fn config(file: &Path, content: &str) -> Result<Config> {
    let checker = Checker::new(file, content);
    let raw: raw::File = checker.read()?;

    let coffre = checker.folders(raw.coffre)?;
    let vaults = checker.tables(raw.vault, "vault", |name, table, span| checker.vault(name, table, span))?;
    let policies = checker.tables(raw.policy, "policy", |name, table, _| checker.policy(name, table))?;
    let hooks = checker.tables(raw.hook, "hook", |name, table, span| {
        checker.hook(name, table, span, &coffre.scripts)
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
    Ok(Config {
        file: file.to_owned(),
        coffre,
        vaults,
        policies,
        machines,
        hooks,
        plugins,
    })
}

/// What a machine's table may name.
struct References<'a> {
    vaults: &'a BTreeMap<String, VaultConfig>,
    policies: &'a BTreeMap<String, PolicyConfig>,
    hooks: &'a BTreeMap<String, HookConfig>,
}

pub(super) struct Checker<'a> {
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
        let jobs = match raw.jobs {
            None => NonZeroUsize::MIN,
            Some(jobs) => NonZeroUsize::new(*jobs.get_ref() as usize)
                .filter(|jobs| jobs.get() <= 64)
                .ok_or_else(|| self.wrong(jobs.span(), "`jobs` is at least 1 and at most 64", None))?,
        };
        let plugin_path = raw
            .plugin_path
            .map(|paths| paths.iter().map(|path| self.path(path)).collect());
        Ok(Folders {
            state: or(self.optional_path(&raw.state)?, STATE),
            cache: or(self.optional_path(&raw.cache)?, CACHE),
            plugins: or(self.optional_path(&raw.plugins)?, PLUGINS),
            plugin_path: plugin_path.transpose()?,
            scripts: self.optional_path(&raw.scripts)?.unwrap_or_else(|| self.folder.clone()),
            jobs,
        })
    }

    fn vault(&self, name: String, raw: raw::Vault, span: Range<usize>) -> Result<VaultConfig> {
        let url = self.required(raw.url, "url", "\"s3://bucket/prefix\"", span.clone())?;
        let unencrypted = raw.encryption.as_ref();
        let unencrypted = unencrypted.map(|word| self.one_of(word, "an encryption", &[("none", true), ("on", false)]));
        let key = match (raw.key, unencrypted.transpose()?.unwrap_or(false)) {
            (Some(key), false) => Some(self.key(key)?),
            (None, true) => None,
            (Some(key), true) => {
                return Err(self.wrong(key.span(), "a vault with `encryption = \"none\"` has no key", None));
            }
            (None, false) => {
                let hint = "add a line like: key = { file = \"/etc/coffre/main.key\" }; `encryption = \"none\"` does \
                            without, and then everybody who can read the store can read the disks";
                return Err(self.wrong(span, format!("vault `{name}` has no `key`"), Some(hint.to_owned())));
            }
        };
        let text = |word: raw::Word| word.map(Spanned::into_inner);
        let endpoint = raw.endpoint.map(|word| {
            Url::parse(word.get_ref())
                .map_err(|error| self.wrong(word.span(), format!("`{}` is not a URL: {error}", word.get_ref()), None))
        });
        let source = |source: Option<Spanned<raw::Source>>| source.map(|source| self.source(source)).transpose();
        Ok(VaultConfig {
            url: self.vault_url(&url)?,
            key,
            store: StoreSettings {
                endpoint: endpoint.transpose()?,
                region: text(raw.region),
                allow_http: raw.allow_http.unwrap_or(false),
                ca_file: self.optional_path(&raw.ca_file)?,
                account: text(raw.account),
                emulator: raw.emulator.unwrap_or(false),
                access_key_id: source(raw.access_key_id)?,
                secret_access_key: source(raw.secret_access_key)?,
                account_key: source(raw.account_key)?,
            },
            name,
        })
    }

    fn vault_url(&self, word: &Spanned<String>) -> Result<Url> {
        let text = word.get_ref();
        let forms = "as in \"s3://bucket/prefix\", \"az://container/prefix\", \"file:///folder\", or a folder's path";
        let wrong = |why: String| self.wrong(word.span(), why, Some(forms.to_owned()));
        if !text.contains("://") {
            let path = self.path(word)?;
            return Url::from_file_path(&path).map_err(|()| wrong(format!("`{text}` is not a folder's path")));
        }
        let url = Url::parse(text).map_err(|error| wrong(format!("`{text}` is not a URL: {error}")))?;
        match url.scheme() {
            "s3" | "az" if url.host_str().is_none_or(str::is_empty) => {
                Err(wrong(format!("`{text}` names no bucket or container")))
            }
            "file" if url.host_str().is_some() => Err(wrong(format!("`{text}` has two slashes where three are meant"))),
            "s3" | "az" | "file" => {
                if url.password().is_some() || !url.username().is_empty() {
                    let hint = "say `access-key-id = { env = … }` instead".to_owned();
                    return Err(self.wrong(word.span(), "credentials do not belong into a URL", Some(hint)));
                }
                Ok(url)
            }
            other => Err(wrong(format!("`{other}` is not a kind of store"))),
        }
    }

    fn key(&self, key: Spanned<raw::Key>) -> Result<KeyConfig> {
        let span = key.span();
        let key = key.into_inner();
        let secret = [(key.file, key.env, key.command, KeyKind::Secret)];
        let typed = [(
            key.passphrase_file,
            key.passphrase_env,
            key.passphrase_command,
            KeyKind::Passphrase,
        )];
        let recovery = [(key.recovery_key_file, None, None, KeyKind::RecoveryKey)];
        let mut found = Vec::new();
        for (file, env, command, kind) in secret.into_iter().chain(typed).chain(recovery) {
            for source in self.sources(file, env, command)? {
                found.push(KeyConfig { kind, source });
            }
        }
        let hint =
            "exactly one of file, env, command, passphrase-file, passphrase-env, passphrase-command, recovery-key-file";
        self.exactly_one(found, span, "a key", hint)
    }

    fn source(&self, source: Spanned<raw::Source>) -> Result<SecretSource> {
        let span = source.span();
        let source = source.into_inner();
        let found = self.sources(source.file, source.env, source.command)?;
        self.exactly_one(found, span, "a secret", "exactly one of file, env, command")
    }

    fn exactly_one<T>(&self, mut found: Vec<T>, span: Range<usize>, what: &str, hint: &str) -> Result<T> {
        match found.pop() {
            Some(one) if found.is_empty() => Ok(one),
            Some(_) => Err(self.wrong(
                span,
                format!("{what} has one source, here are several"),
                Some(hint.to_owned()),
            )),
            None => Err(self.wrong(span, format!("{what} needs a source"), Some(hint.to_owned()))),
        }
    }

    fn sources(
        &self,
        file: raw::Word,
        env: raw::Word,
        command: Option<Spanned<Vec<String>>>,
    ) -> Result<Vec<SecretSource>> {
        let mut found = Vec::new();
        if let Some(file) = self.optional_path(&file)? {
            found.push(SecretSource::File(file));
        }
        if let Some(env) = env {
            if env.get_ref().is_empty() || env.get_ref().contains(['=', '\0']) {
                return Err(self.wrong(env.span(), "not the name of an environment variable", None));
            }
            found.push(SecretSource::Env(env.into_inner()));
        }
        if let Some(command) = command {
            let absolute = command
                .get_ref()
                .first()
                .is_some_and(|program| Path::new(program).is_absolute());
            if !absolute {
                let hint = "as in command = [\"/usr/bin/pass\", \"show\", \"coffre\"]; there is no shell";
                let message = "a command starts with a program's absolute path";
                return Err(self.wrong(command.span(), message, Some(hint.to_owned())));
            }
            found.push(SecretSource::Command(command.into_inner()));
        }
        Ok(found)
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
        if let Some(schedule) = &raw.schedule {
            self.word(schedule, words::schedule)?;
        }
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
            schedule: raw.schedule.map(Spanned::into_inner),
            consistency,
            accept,
            keep,
            hold_at_most: within(&raw.hold_at_most, "`hold-at-most`", "10m", HOLD_AT_MOST)?,
            deadline: within(&raw.deadline, "`deadline`", "7d", DEADLINE)?,
        })
    }

    fn keep(&self, keep: Spanned<raw::Keep>) -> Result<Keep> {
        let span = keep.span();
        let raw = keep.into_inner();
        let keep = Keep {
            last: raw.last.unwrap_or(0),
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
            hooks.push(hook.into_inner());
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

    fn hook(&self, name: String, raw: raw::Hook, span: Range<usize>, scripts: &Path) -> Result<HookConfig> {
        let kind = self.required(raw.kind, "kind", "\"rhai\"", span.clone())?;
        let kinds = [HookKind::Rhai, HookKind::Wasm, HookKind::Exec, HookKind::Azure].map(|kind| (kind.as_str(), kind));
        let file = self.required(raw.file, "file", "\"postgres.rhai\"", span)?;
        let failures = [
            ("fail", OnFailure::Fail),
            ("downgrade", OnFailure::Downgrade),
            ("warn", OnFailure::Warn),
        ];
        let on = raw.on.map(|on| match on.get_ref().strip_prefix("ssh:") {
            Some(host) if !host.is_empty() => Ok(HookPlace::Ssh(host.to_owned())),
            _ => self
                .one_of(&on, "a place", &[("host", false), ("agent", true), ("ssh:NAME", false)])
                .map(|agent| if agent { HookPlace::Agent } else { HookPlace::Host }),
        });
        let retries = raw.retries.map_or(Ok(0), |retries| match *retries.get_ref() {
            few @ 0..=10 => Ok(few),
            _ => Err(self.wrong(retries.span(), "`retries` is at most 10", None)),
        });
        Ok(HookConfig {
            name,
            kind: self.one_of(&kind, "a kind of hook", &kinds)?,
            file: scripts.join(file.get_ref()),
            on: on.transpose()?,
            timeout: raw.timeout.map_or(Ok(HOOK_TIMEOUT), |word| {
                self.word(&word, |text| words::duration_within(text, "`timeout`", "10ms", "10m"))
            })?,
            retries: retries?,
            on_failure: raw.on_failure.map_or(Ok(OnFailure::Downgrade), |word| {
                self.one_of(&word, "a thing to do on failure", &failures)
            })?,
            settings: settings(raw.settings),
            grant: self.grants(raw.grant.unwrap_or_default(), HOOK_GRANTS, "hook")?,
        })
    }

    pub fn plugin(&self, name: String, raw: raw::Plugin) -> Result<PluginConfig> {
        let sha256 = raw.sha256.map(|digest| {
            let text = digest.get_ref().to_ascii_lowercase();
            if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(text);
            }
            let hint = "64 hex digits, as `coffre plugin inspect FILE` shows them".to_owned();
            Err(self.wrong(digest.span(), "not a sha256", Some(hint)))
        });
        Ok(PluginConfig {
            name,
            file: self.optional_path(&raw.file)?,
            sha256: sha256.transpose()?,
            dev: raw.dev.unwrap_or(false),
            grant: raw
                .grant
                .map(|grant| self.grants(grant, PLUGIN_GRANTS, "plugin"))
                .transpose()?,
        })
    }

    fn grants(&self, raw: raw::Grants, known: &[&str], what: &str) -> Result<GrantTable> {
        let mut grants = BTreeMap::new();
        for (name, value) in raw {
            if !known.contains(&name.get_ref().as_str()) {
                let hint = suggest(name.get_ref(), known.iter().copied());
                return Err(self.wrong(
                    name.span(),
                    format!("`{}` is nothing that a {what} can be granted", name.get_ref()),
                    hint,
                ));
            }
            words::grant_holes(value.get_ref()).map_err(|(message, hint)| self.wrong(value.span(), message, hint))?;
            grants.insert(name.into_inner(), json(value.into_inner()));
        }
        Ok(GrantTable(grants))
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            schedule: None,
            consistency: None,
            accept: Consistency::Crash,
            keep: None,
            hold_at_most: HOLD_AT_MOST,
            deadline: DEADLINE,
        }
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
