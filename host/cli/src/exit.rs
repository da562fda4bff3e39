//! The exit codes, and the one place that says which error of the lower crates means which of them, with its hints.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use coffre_engine::config::{ConfigError, UnknownName};
use coffre_engine::restore::TargetError;
use coffre_engine::secret::SecretError;
use coffre_engine::{ProviderError, ProviderErrorKind};
use coffre_sandbox::PluginError;
use coffre_vault::{InitError, OpenError, ReadError};

/// How `coffre` ends. The numbers are promised in docs/cli.md; 64 and above follow sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    /// Of several machines, some failed.
    SomeFailed = 3,
    /// A point exists, but it is worth less than the policy wants.
    Downgraded = 4,
    Usage = 64,
    Config = 65,
    /// Busy, or the store or provider is out of reach: the same call may succeed later.
    TryAgain = 75,
    Denied = 77,
    Cancelled = 130,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Something the command line itself found wrong.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Complaint {
    pub exit: Exit,
    pub text: String,
    pub hint: Option<String>,
}

impl Complaint {
    pub fn usage(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }

    pub fn config(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Exit::Config,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }

    pub fn failed(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }
}

/// What an error means to whoever called `coffre`.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub exit: Exit,
    pub hints: Vec<String>,
}

/// Judges an error by the outermost cause in its chain that is known here; hints come from all that are.
pub fn judge(error: &anyhow::Error) -> Verdict {
    let mut exit = None;
    let mut hints: Vec<String> = Vec::new();
    let mut add = |found: Option<(Exit, Option<String>)>| {
        if let Some((code, hint)) = found {
            exit.get_or_insert(code);
            if let Some(hint) = hint
                && !hints.contains(&hint)
            {
                hints.push(hint);
            }
        }
    };
    // What was attached by `.context` is found through anyhow only, not by walking the chain.
    add(error
        .downcast_ref::<Complaint>()
        .map(|found| (found.exit, found.hint.clone())));
    for cause in error.chain() {
        add(known(cause));
    }
    Verdict {
        exit: exit.unwrap_or(Exit::Failed),
        hints,
    }
}

/// The exit code and hint of one error, if its type is known here.
fn known(cause: &(dyn Error + 'static)) -> Option<(Exit, Option<String>)> {
    if let Some(found) = cause.downcast_ref::<Complaint>() {
        return Some((found.exit, found.hint.clone()));
    }
    if let Some(found) = cause.downcast_ref::<ConfigError>() {
        return Some((Exit::Config, found.hint()));
    }
    // What the config does not have is asked for by the command line.
    if let Some(found) = cause.downcast_ref::<UnknownName>() {
        return Some((Exit::Usage, found.hint.clone()));
    }
    if let Some(found) = cause.downcast_ref::<SecretError>() {
        return Some((secret(found), found.hint()));
    }
    if let Some(found) = cause.downcast_ref::<InitError>() {
        return Some(init(found));
    }
    if let Some(found) = cause.downcast_ref::<OpenError>() {
        return Some(open(found));
    }
    if let Some(found) = cause.downcast_ref::<TargetError>() {
        return Some(target(found));
    }
    if let Some(found) = cause.downcast_ref::<ReadError>() {
        return Some(read(found));
    }
    if let Some(found) = cause.downcast_ref::<PluginError>() {
        return Some((plugin(found), found.hint()));
    }
    if let Some(found) = cause.downcast_ref::<ProviderError>() {
        return Some((provider(found), found.hint.clone()));
    }
    if cause
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    {
        return Some((Exit::Denied, None));
    }
    None
}

fn target(error: &TargetError) -> (Exit, Option<String>) {
    let hint = match error {
        TargetError::NotEmpty { .. } => "name another target, or say --overwrite to lose what is there",
        TargetError::InUse { .. } => "unmount it or end what uses it; --overwrite does not help here",
        TargetError::TooSmall { .. } => "a target needs at least the disk's size",
        TargetError::Kind { .. } => "name an image file or a block device",
        TargetError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            return (Exit::Denied, None);
        }
        TargetError::Io { .. } => return (Exit::Failed, None),
    };
    (Exit::Usage, Some(hint.to_owned()))
}

fn read(error: &ReadError) -> (Exit, Option<String>) {
    match error {
        ReadError::Newer { .. } => (Exit::Failed, Some("use a newer version of Coffre".to_owned())),
        ReadError::Store(_) => (Exit::Failed, None),
        _ => {
            let hint = "`coffre verify VAULT --read-data` names every point, disk and range that is damaged";
            (Exit::Failed, Some(hint.to_owned()))
        }
    }
}

fn plugin(error: &PluginError) -> Exit {
    match error {
        PluginError::WrongPin { .. } | PluginError::NotPinned { .. } => Exit::Denied,
        PluginError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::Denied,
        PluginError::Compile { .. } | PluginError::Start { .. } | PluginError::Engine { .. } => Exit::Failed,
        _ => Exit::Config,
    }
}

fn provider(error: &ProviderError) -> Exit {
    match error.kind {
        ProviderErrorKind::Denied => Exit::Denied,
        ProviderErrorKind::InvalidSettings => Exit::Config,
        _ if error.may_retry() => Exit::TryAgain,
        _ => Exit::Failed,
    }
}

fn secret(error: &SecretError) -> Exit {
    match error {
        SecretError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::Denied,
        // A password manager that is locked or slow today.
        SecretError::Failed { .. } | SecretError::TimedOut { .. } => Exit::TryAgain,
        _ => Exit::Config,
    }
}

fn init(error: &InitError) -> (Exit, Option<String>) {
    let (exit, hint) = match error {
        InitError::AlreadyThere { .. } => (
            Exit::Failed,
            "use it as it is, or give the new vault a prefix of its own",
        ),
        InitError::NotEmpty { .. } => (
            Exit::Failed,
            "a vault needs a place of its own: add a new folder or prefix to its url",
        ),
        InitError::NoPutIfAbsent { .. } => (
            Exit::Failed,
            "Coffre needs a store where creating an object that exists fails (S3's `If-None-Match: *`); upgrade this one or use another",
        ),
        InitError::NoKey => (
            Exit::Config,
            "add a line like: key = { file = \"/etc/coffre/main.key\" }",
        ),
        InitError::Unreachable { .. } => (Exit::TryAgain, REACH),
        InitError::Store { .. } => return (Exit::Failed, None),
    };
    (exit, Some(hint.to_owned()))
}

const REACH: &str = "check the vault's url and endpoint, the network, and that the store is running";

fn open(error: &OpenError) -> (Exit, Option<String>) {
    let (exit, hint) = match error {
        OpenError::NotThere => (
            Exit::Config,
            "`coffre init VAULT` makes a vault; if there should be one, check its url",
        ),
        OpenError::NotAVault { .. } => (Exit::Config, "check the vault's url"),
        OpenError::NewerFormat { .. } => (Exit::Failed, "use a newer version of Coffre"),
        OpenError::WrongKey { .. } => (
            Exit::Denied,
            "check which key the vault's `key` names; the recovery key opens it too: key = { recovery-key-file = \"FILE\" }",
        ),
        OpenError::KeyNeeded => (
            Exit::Config,
            "give the vault a `key` in the configuration instead of `encryption = \"none\"`",
        ),
        OpenError::Unencrypted => (
            Exit::Denied,
            "if that is what you want, say `encryption = \"none\"` instead of `key`; else somebody put another vault there",
        ),
        OpenError::IdChanged { .. } => (
            Exit::Denied,
            "somebody put another vault there, or the url changed; if that was you, remove the pin: STATE/vaults/NAME.id in the state folder",
        ),
        OpenError::Unreachable { .. } => (Exit::TryAgain, REACH),
        OpenError::Damaged { .. } => (
            Exit::Failed,
            "restore the object from the store's own versions if it keeps them",
        ),
        OpenError::Store { .. } => return (Exit::Failed, None),
        OpenError::Cache { .. } => (
            Exit::Failed,
            "`cache` in the configuration names a folder that you may write",
        ),
    };
    (exit, Some(hint.to_owned()))
}
