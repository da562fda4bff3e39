//! The exit codes, and the one place that says which error of the lower crates means which of them, with its hints.

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use coffre_engine::book::BookError;
use coffre_engine::config::{ConfigError, UnknownName};
use coffre_engine::job::{JobError, JobErrorKind};
use coffre_engine::journal::JournalError;
use coffre_engine::restore::TargetError;
use coffre_engine::secret::SecretError;
use coffre_engine::state::StateError;
use coffre_engine::{HookFailure, HookFailureKind, ProviderError, ProviderErrorKind};
use coffre_sandbox::PluginError;
use coffre_vault::{
    CleanError, CommitError, FateError, InitError, KeyError, KeysError, OpenError, ReadError, RepairError, StoreError,
};

use crate::output::time;

/// How `coffre` ends. The numbers are promised in docs/cli.md; 64 and above follow sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    /// Of several machines, some failed.
    SomeFailed,
    /// A point exists, but it is worth less than the policy wants.
    Downgraded,
    Usage,
    Config,
    /// Busy, or the store or provider is out of reach: the same call may succeed later.
    TryAgain,
    Denied,
    Cancelled,
    /// `coffre status` has numbers of its own, those of monitoring plugins: something wants looking at,
    Warning,
    /// some machine is not safe,
    NotSafe,
    /// or nobody knows.
    Unknown,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed | Self::Warning => 1,
            Self::NotSafe => 2,
            Self::SomeFailed | Self::Unknown => 3,
            Self::Downgraded => 4,
            Self::Usage => 64,
            Self::Config => 65,
            Self::TryAgain => 75,
            Self::Denied => 77,
            Self::Cancelled => 130,
        }
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
    /// None: what it was attached to decides.
    pub exit: Option<Exit>,
    pub text: String,
    pub hint: Option<String>,
}

impl Complaint {
    pub fn usage(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Some(Exit::Usage),
            text: text.into(),
            hint: Some(hint.into()),
        }
    }

    pub fn config(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Some(Exit::Config),
            text: text.into(),
            hint: Some(hint.into()),
        }
    }

    pub fn failed(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Some(Exit::Failed),
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
    let mut add = |found: Option<Known>| {
        if let Some((code, hint)) = found {
            exit = exit.or(code);
            if let Some(hint) = hint
                && !hints.contains(&hint)
            {
                hints.push(hint);
            }
        }
    };
    // What was attached by `.context` is found through anyhow only, not by walking the chain.
    add(error.downcast_ref::<Complaint>().map(complaint));
    for cause in error.chain() {
        add(known(cause));
    }
    Verdict {
        exit: exit.unwrap_or(Exit::Failed),
        hints,
    }
}

/// What one error means and what to do about it. No exit code: a cause further down says it better.
type Known = (Option<Exit>, Option<String>);

/// Looks the error's type up among those of the lower crates.
fn known(cause: &(dyn Error + 'static)) -> Option<Known> {
    /// Tries one type.
    fn one<E: Error + 'static>(cause: &(dyn Error + 'static), judge: fn(&E) -> Known) -> Option<Known> {
        cause.downcast_ref().map(judge)
    }
    one(cause, complaint)
        .or_else(|| one(cause, |error: &ConfigError| (Some(Exit::Config), error.hint())))
        // What the config does not have is asked for by the command line.
        .or_else(|| one(cause, |error: &UnknownName| (Some(Exit::Usage), error.hint.clone())))
        .or_else(|| one(cause, secret))
        .or_else(|| one(cause, |error: &JobError| (job(error), error.hint())))
        .or_else(|| one(cause, journal))
        .or_else(|| one(cause, state))
        .or_else(|| one(cause, book))
        .or_else(|| one(cause, hook))
        // A job's error holds it so.
        .or_else(|| one::<Box<HookFailure>>(cause, |error| hook(error)))
        .or_else(|| one(cause, init))
        .or_else(|| one(cause, open))
        .or_else(|| one(cause, clean))
        .or_else(|| one(cause, keys))
        .or_else(|| one(cause, store))
        // What many threads of one session are told stands in the chain as it is shared.
        .or_else(|| one(cause, |error: &Arc<StoreError>| store(error)))
        .or_else(|| one(cause, |error: &Arc<io::Error>| system(error)))
        .or_else(|| one(cause, key))
        .or_else(|| one(cause, target))
        .or_else(|| one(cause, read))
        .or_else(|| one(cause, fate))
        .or_else(|| one(cause, repair))
        .or_else(|| one(cause, |error: &PluginError| (Some(plugin(error)), error.hint())))
        .or_else(|| {
            one(cause, |error: &ProviderError| {
                (Some(provider(error)), error.hint.clone())
            })
        })
        .or_else(|| one(cause, system))
}

fn complaint(error: &Complaint) -> Known {
    (error.exit, error.hint.clone())
}

fn system(error: &io::Error) -> Known {
    match error.kind() {
        io::ErrorKind::PermissionDenied => (Some(Exit::Denied), None),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            Some(Exit::Failed),
            Some("make room on the file system of that path, then run the same again".to_owned()),
        ),
        _ => (None, None),
    }
}

/// None: what is further down its chain says it better.
pub fn job(error: &JobError) -> Option<Exit> {
    match error.kind() {
        JobErrorKind::Failed => None,
        JobErrorKind::Config => Some(Exit::Config),
        JobErrorKind::TryAgain => Some(Exit::TryAgain),
        JobErrorKind::Denied => Some(Exit::Denied),
        JobErrorKind::Cancelled => Some(Exit::Cancelled),
    }
}

fn journal(error: &JournalError) -> Known {
    match error {
        // Transparent: it does not stand in the chain by itself.
        JournalError::State(error) => state(error),
        JournalError::Io { .. } | JournalError::Encode { .. } => (None, None),
    }
}

fn state(error: &StateError) -> Known {
    (error.may_retry().then_some(Exit::TryAgain), error.hint())
}

fn book(error: &BookError) -> Known {
    (error.may_retry().then_some(Exit::TryAgain), error.hint())
}

fn hook(error: &HookFailure) -> Known {
    let exit = match error.kind {
        HookFailureKind::Invalid => Exit::Config,
        HookFailureKind::Denied => Exit::Denied,
        HookFailureKind::TryAgain => Exit::TryAgain,
        HookFailureKind::Failed | HookFailureKind::TimedOut | HookFailureKind::Limit => Exit::Failed,
    };
    (Some(exit), error.hint.clone())
}

fn store(error: &StoreError) -> Known {
    let (exit, hint) = match error {
        StoreError::Address { .. } => (
            Exit::Config,
            "as in s3://bucket/prefix, az://container/prefix, file:///folder",
        ),
        StoreError::CaFile { .. } => (Exit::Config, "`ca-file` names certificates as PEM"),
        StoreError::Setup { .. } => (
            Exit::Config,
            "check the vault's table in the configuration and the store's variables in the environment",
        ),
        StoreError::Unreachable { .. } => (Exit::TryAgain, REACH),
        StoreError::Full { .. } => (
            Exit::Failed,
            "make room on the vault's file system, then run the same again: earlier points are as they were",
        ),
        StoreError::Denied { .. } => (Exit::Denied, "check the credentials, and what they may do there"),
        StoreError::Failed { source, .. } if no_bucket(&source.to_string()) => (
            Exit::Config,
            "make the bucket or container first, or check the vault's url",
        ),
        StoreError::Taken { .. } | StoreError::TooLarge { .. } | StoreError::Failed { .. } => return (None, None),
    };
    (Some(exit), Some(hint.to_owned()))
}

/// S3's and Azure's words for it.
fn no_bucket(said: &str) -> bool {
    said.contains("NoSuchBucket") || said.contains("ContainerNotFound")
}

fn key(error: &KeyError) -> Known {
    let hint = match error {
        KeyError::Empty => "type a passphrase into its file",
        KeyError::TooShort { .. } => {
            "a random key: head -c 32 /dev/urandom > FILE; something that a person can type is a `passphrase-file`"
        }
        KeyError::EasySecret { .. } => "a random key: head -c 32 /dev/urandom > FILE",
        KeyError::EasyPassphrase { .. } => "several words that nobody would guess, or a key file of random bytes",
        KeyError::RecoveryLength { .. } | KeyError::RecoveryCharacter(_) | KeyError::RecoveryChecksum => {
            "type it again, as `coffre init` showed it"
        }
    };
    (Some(Exit::Config), Some(hint.to_owned()))
}

fn target(error: &TargetError) -> Known {
    let hint = match error {
        TargetError::NotEmpty { .. } => "name another target, or say --overwrite to lose what is there",
        TargetError::InUse { .. } => "unmount it or end what uses it; --overwrite does not help here",
        TargetError::TooSmall { .. } => "a target needs at least the disk's size",
        TargetError::Kind { .. } => "name an image file or a block device",
        TargetError::Io { .. } => return (None, None),
    };
    (Some(Exit::Usage), Some(hint.to_owned()))
}

fn read(error: &ReadError) -> Known {
    match error {
        ReadError::Newer { .. } => (Some(Exit::Failed), Some("use a newer version of Coffre".to_owned())),
        // What failed below says more.
        ReadError::Store(_) | ReadError::Cache { .. } => (None, None),
        ReadError::KeyRotated { .. } => {
            let hint = "run it again: it will open the vault with the new key";
            (Some(Exit::TryAgain), Some(hint.to_owned()))
        }
        ReadError::Damaged { object, .. } if object.starts_with("gclog/") => {
            let hint = "restore the object from the store's own versions if it keeps them; else `coffre repair log VAULT` \
                        writes down anew what the log says without it. Restores go on meanwhile";
            (Some(Exit::Failed), Some(hint.to_owned()))
        }
        ReadError::Damaged { object, .. } if object.starts_with("machines/") => {
            let hint = "restore the object from the store's own versions if it keeps them; else run `coffre clean VAULT`, which \
                        gives the machine another name, then try again";
            (Some(Exit::Failed), Some(hint.to_owned()))
        }
        _ => {
            let hint = "`coffre verify VAULT --read-data` names every point, disk and range that is damaged";
            (Some(Exit::Failed), Some(hint.to_owned()))
        }
    }
}

fn fate(error: &FateError) -> Known {
    let (exit, hint) = match error {
        FateError::NoPoint(_) | FateError::Aborted(_) => {
            (Exit::Usage, "`coffre points` lists the points that there are")
        }
        FateError::Purged(_) => (
            Exit::Failed,
            "`coffre points` lists the points that can still be restored",
        ),
        FateError::Pinned { .. } => (Exit::Usage, "`coffre unpin MACHINE@POINT` lets it go"),
        FateError::Forgotten(_) => (Exit::Usage, "`coffre undelete MACHINE@POINT` keeps it again"),
        FateError::ReasonTooLong { .. } => (Exit::Usage, "say it in a line"),
        FateError::Busy(_) => (
            Exit::TryAgain,
            "somebody else is at it; look at `coffre points`, then try again",
        ),
        FateError::Read(_) | FateError::Write(_) => return (None, None),
    };
    (Some(exit), Some(hint.to_owned()))
}

fn clean(error: &CleanError) -> Known {
    let (exit, hint) = match error {
        CleanError::Clocks { .. } => (Exit::Failed, "set the clock that is wrong; nothing was deleted"),
        CleanError::Idle { .. } => (
            Exit::Failed,
            "if that is the right time and nobody makes backups any more, say --force; nothing was deleted",
        ),
        CleanError::Future { .. } => (
            Exit::Failed,
            "look which clock is wrong; if none is any more, say --force; nothing was deleted",
        ),
        CleanError::Gap { .. } | CleanError::PointVanished { .. } | CleanError::MachineVanished { .. } => (
            Exit::Failed,
            "restore the object from the store's own versions if it keeps them, and see that the url names the vault itself and no older copy of it; nothing was deleted",
        ),
        CleanError::UnreadablePoint {
            machine,
            point,
            purged_from: None,
            ..
        } => {
            let hint = format!(
                "restore the object from the store's own versions if it keeps them; else let the point go: \
                 `coffre forget {machine}@{point}`. Clean-up goes on once it is purged; nothing was deleted"
            );
            return (Some(Exit::Failed), Some(hint));
        }
        CleanError::UnreadablePoint {
            purged_from: Some(from),
            ..
        } => {
            let hint = format!(
                "the point is forgotten: a clean-up purges it from {} on, and goes on; nothing was deleted",
                time(*from)
            );
            return (Some(Exit::Failed), Some(hint));
        }
        CleanError::UnreadableSession { fenced_from, .. } => {
            let hint = format!(
                "restore the object from the store's own versions if it keeps them; else a clean-up ends the session from \
                 {} on, and goes on; nothing was deleted",
                time(*fenced_from)
            );
            return (Some(Exit::Failed), Some(hint));
        }
        CleanError::ChunkMissing(_) => (
            Exit::Failed,
            "`coffre verify VAULT` names the points that need it; forget those, or bring its pack back; nothing was deleted",
        ),
        CleanError::TooMuch { .. } => (
            Exit::Failed,
            "see what would go with --dry-run --force; if that is right, say --force; nothing was deleted",
        ),
        CleanError::Overtaken { .. } | CleanError::Busy => (Exit::TryAgain, "run it again when the other one is over"),
        _ => return (None, None),
    };
    (Some(exit), Some(hint.to_owned()))
}

fn repair(error: &RepairError) -> Known {
    match error {
        RepairError::LogUnknown { .. } => {
            let hint = "restore one of them from the store's own versions. Restores go on meanwhile, and a new vault takes \
                        backups: a clean-up or backup here could lose what they took away or kept";
            (Some(Exit::Failed), Some(hint.to_owned()))
        }
        RepairError::Busy => (
            Some(Exit::TryAgain),
            Some("run it again when the others are over".to_owned()),
        ),
        RepairError::Commit(CommitError::Fenced { .. }) => {
            let hint = "a clean-up began meanwhile; what was written stays: run it again";
            (Some(Exit::TryAgain), Some(hint.to_owned()))
        }
        _ => (None, None),
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

fn secret(error: &SecretError) -> Known {
    let exit = match error {
        SecretError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::Denied,
        SecretError::Read { source, path } if source.kind() == io::ErrorKind::NotFound => {
            let hint = format!(
                "`coffre init VAULT` makes the key of a new vault; if there was one, put it back to {}",
                path.display()
            );
            return (Some(Exit::Config), Some(hint));
        }
        // A password manager that is locked or slow today.
        SecretError::Failed { .. } | SecretError::TimedOut { .. } => Exit::TryAgain,
        _ => Exit::Config,
    };
    (Some(exit), error.hint())
}

fn init(error: &InitError) -> Known {
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
        InitError::Store { .. } | InitError::Key { .. } => return (None, None),
    };
    (Some(exit), Some(hint.to_owned()))
}

fn keys(error: &KeysError) -> Known {
    let (exit, hint) = match error {
        KeysError::Label { .. } => (Exit::Usage, "a word or two, as in --new-key-file laptop=FILE"),
        KeysError::LabelTaken { .. } => (Exit::Usage, "give it another label, as in --new-key-file laptop=FILE"),
        KeysError::OpensAlready { .. } => (Exit::Usage, "each key opens the vault once; leave this one out"),
        KeysError::Full => (
            Exit::Failed,
            "`coffre key list VAULT` shows them, `coffre key remove VAULT LABEL` makes room",
        ),
        KeysError::NotFound { .. } => (Exit::Usage, "`coffre key list VAULT --all` lists labels and slots"),
        KeysError::Ambiguous { .. } => (Exit::Usage, "name the slot, as `coffre key list VAULT` shows it"),
        KeysError::InUse { .. } => (
            Exit::Usage,
            "--force removes it all the same; the configuration needs another `key` then",
        ),
        KeysError::Last { .. } => (
            Exit::Failed,
            "without it nobody would ever read the vault again; first add another: `coffre key add VAULT`",
        ),
        KeysError::WouldDrop { .. } => (
            Exit::Usage,
            "--drop-others leaves them behind; a new key under the same label replaces one, as in --new-key-file laptop=FILE",
        ),
        KeysError::MadeAgain { .. } => (Exit::TryAgain, "`coffre key list VAULT` shows what is there now"),
        KeysError::RotatedMeanwhile => (Exit::TryAgain, "run it again if it is still wanted"),
        KeysError::Unknown { .. } => (
            Exit::TryAgain,
            "`coffre key list VAULT` shows the generation; if it has grown, `coffre key add VAULT --recovery-key` makes a \
             recovery key that you know",
        ),
        KeysError::NotWritten { .. } => (
            Exit::Failed,
            "the store does not keep what it is given; do not trust it",
        ),
        KeysError::Key { .. } | KeysError::Store { .. } => return (None, None),
    };
    (Some(exit), Some(hint.to_owned()))
}

const REACH: &str = "check the vault's url and endpoint, the network, and that the store is running";

fn open(error: &OpenError) -> Known {
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
        OpenError::LeftBehind { .. } => (
            Exit::Denied,
            "use a key that was carried over, or have somebody who has one add yours again: `coffre key add VAULT`",
        ),
        OpenError::KeyNeeded => (
            Exit::Config,
            "give the vault a `key` in the configuration instead of `encryption = \"none\"`",
        ),
        OpenError::Unencrypted => (
            Exit::Denied,
            "if that is what you want, say `encryption = \"none\"` instead of `key`; else somebody put another vault there",
        ),
        OpenError::RolledBack { .. } => (
            Exit::Denied,
            "somebody put an older copy of the vault there, or took the newer keys away; whoever lost access by the rotation \
             could read what is written there",
        ),
        OpenError::NoSlots { .. } => (
            Exit::Failed,
            "run it again, since a listing may leave things out; if it stays so, restore these objects from the store's own \
             versions",
        ),
        // Whoever opens it knows where the pin lies, and says so.
        OpenError::IdChanged { .. } => return (Some(Exit::Denied), None),
        OpenError::Unreachable { .. } => (Exit::TryAgain, REACH),
        OpenError::Damaged { .. } => (
            Exit::Failed,
            "restore the object from the store's own versions if it keeps them",
        ),
        OpenError::Store { .. } | OpenError::Key { .. } => return (None, None),
        OpenError::Cache { .. } => (
            Exit::Failed,
            "`cache` in the configuration names a folder that you may write",
        ),
    };
    (Some(exit), Some(hint.to_owned()))
}

#[cfg(test)]
mod tests;
