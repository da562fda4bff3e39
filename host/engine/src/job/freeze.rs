//! Freezing the machine's file systems around the snapshot, for consistency without hooks.
//!
//! The journal is written before the freeze and after the thaw, never between: a line costs milliseconds in which
//! everybody who writes waits.

use std::path::PathBuf;
use std::time::Duration;

use coffre_guard::{FreezeEnd, FreezeError, Owner, Thawed};
use coffre_vault::NoteLevel;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};

use super::run::Run;
use super::snapshot::LoadedHook;
use crate::consistency::FreezeFact;
use crate::error_chain::Chain;
use crate::freeze::{FrozenMounts, refused_by};
use crate::hook::HookFreeze;
use crate::journal::Event;

/// We thaw so much before the guard does, so that it is one of us that does it.
const BEFORE_THE_GUARD: Duration = Duration::from_millis(250);
/// How long writing back what is dirty is waited for before applications are disturbed; the freeze writes the rest.
const SYNC_AT_MOST: Duration = Duration::from_secs(30);

/// What became of a freeze.
#[derive(Clone, Debug, Default)]
pub(super) enum FreezeRun {
    #[default]
    NotAsked,
    /// From before the snapshot until it was there.
    Held { what: Vec<PathBuf>, frozen: Duration },
    /// Not all the while, or not at all.
    Not { why: String, frozen: Option<Duration> },
}

impl FreezeRun {
    /// Together with what hooks have frozen until now: everything that the machine names was frozen until the snapshot was
    /// there, or it is said why not. `fails`: the hook's `post`, which thaws, has failed.
    pub fn with(self, by_hooks: &[ByHook], fails: impl Fn(&str) -> bool) -> Self {
        let broke = by_hooks.iter().find(|by| by.broke || fails(&by.hook));
        let longest = by_hooks.iter().map(|by| by.freeze.since.elapsed()).max();
        let Some(longest) = longest else { return self };
        if let (Some(broke), Self::NotAsked | Self::Held { .. }) = (broke, &self) {
            return Self::Not {
                why: format!(
                    "hook {} did not keep {} frozen until the snapshot was there",
                    broke.hook,
                    broke.freeze.mount.display()
                ),
                frozen: Some(longest),
            };
        }
        let mut all: Vec<PathBuf> = by_hooks.iter().map(|by| by.freeze.mount.clone()).collect();
        match self {
            Self::NotAsked => Self::Held {
                what: all,
                frozen: longest,
            },
            Self::Held { what, frozen } => {
                all.extend(what);
                Self::Held {
                    what: all,
                    frozen: longest.max(frozen),
                }
            }
            not => not,
        }
    }

    pub fn fact(&self) -> FreezeFact<'_> {
        match self {
            Self::NotAsked => FreezeFact::NotAsked,
            Self::Held { what, .. } => FreezeFact::Held(what),
            Self::Not { why, .. } => FreezeFact::Not(why),
        }
    }

    pub fn frozen(&self) -> Option<Duration> {
        match self {
            Self::NotAsked => None,
            Self::Held { frozen, .. } => Some(*frozen),
            Self::Not { frozen, .. } => *frozen,
        }
    }
}

/// A file system that the machine names and a hook has frozen.
pub(super) struct ByHook {
    pub hook: String,
    pub freeze: HookFreeze,
    /// It was not frozen until the snapshot was there.
    pub broke: bool,
}

/// Which of these hooks have frozen.
pub(super) fn by_hooks(run: &Run<'_>, hooks: &[LoadedHook], mounts: &[PathBuf]) -> Vec<ByHook> {
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let named: Vec<PathBuf> = mounts.iter().map(real).collect();
    let mut found = Vec::new();
    for hook in hooks {
        let frozen = hook.runner.frozen(&run.id).into_iter();
        found.extend(frozen.filter_map(|freeze| {
            let at = named.iter().position(|mount| *mount == real(&freeze.mount))?;
            Some(ByHook {
                hook: hook.config.name.clone(),
                // As the machine names it.
                freeze: HookFreeze {
                    mount: mounts[at].clone(),
                    ..freeze
                },
                broke: false,
            })
        }));
    }
    found
}

/// A freeze in force.
pub(super) struct InForce {
    frozen: Box<dyn FrozenMounts>,
    /// When we thaw, whether or not the snapshot is there.
    pub ends: Instant,
}

type Freezing = JoinHandle<Result<Box<dyn FrozenMounts>, FreezeError>>;
type Begun = Result<Result<Box<dyn FrozenMounts>, FreezeError>, JoinError>;

/// What is to be frozen.
pub(super) enum Asked {
    Nothing,
    These(Vec<PathBuf>),
    /// Something is named, and a hook's own file says that it is not to be frozen.
    Refused(FreezeRun),
}

/// What the machine's config and the files of its hooks say.
pub(super) fn asked(run: &Run<'_>, hooks: &[LoadedHook]) -> Asked {
    if run.config.freeze.is_empty() {
        return Asked::Nothing;
    }
    match refused_by(hooks.iter().map(|hook| &*hook.runner)) {
        None => Asked::These(run.config.freeze.clone()),
        Some(hook) => Asked::Refused(FreezeRun::Not {
            why: format!("nothing was frozen, as the file of hook {hook} says"),
            frozen: None,
        }),
    }
}

/// Writes back what is dirty, so that the freeze has little to wait for. Nobody is held meanwhile.
pub(super) async fn sync(mounts: Vec<PathBuf>) {
    if mounts.is_empty() {
        return;
    }
    let syncing = spawn_blocking(move || {
        for mount in mounts {
            let synced = std::fs::File::open(&mount).and_then(|file| Ok(rustix::fs::syncfs(file)?));
            if let Err(error) = synced {
                tracing::debug!(mount = %mount.display(), %error, "not written back before the freeze");
            }
        }
    });
    let _ = timeout(SYNC_AT_MOST, syncing).await;
}

/// Begins to freeze, until `ends` at most. The guard thaws then, whatever we do.
pub(super) fn begin(run: &mut Run<'_>, mounts: Vec<PathBuf>, ends: Instant) -> Freezing {
    run.record_quietly(Event::Freezing { mounts: mounts.clone() });
    let owner = Owner {
        machine: run.machine.name.clone(),
        job: run.id.clone(),
    };
    let freezer = run.deps.freezer.clone();
    spawn_blocking(move || freezer.freeze(&owner, &mounts, ends.into_std()))
}

/// What the freeze came to: it is in force, or it is said why not, and the snapshot is taken without it.
pub(super) fn begun(run: &mut Run<'_>, freezing: Begun, ends: Instant) -> Result<InForce, FreezeRun> {
    let why = match freezing {
        Ok(Ok(frozen)) => {
            let ends = ends.checked_sub(BEFORE_THE_GUARD).unwrap_or(ends);
            return Ok(InForce { frozen, ends });
        }
        Ok(Err(error)) => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            format!("nothing was frozen: {}{hint}", Chain(&error))
        }
        Err(panic) => format!("nothing is frozen any more: {panic}"),
    };
    run.say_quietly(NoteLevel::Warning, "not-frozen", why.clone());
    Err(FreezeRun::Not { why, frozen: None })
}

/// Thaws. `in_time`: the snapshot is there.
pub(super) async fn thaw(run: &mut Run<'_>, in_force: InForce, in_time: bool) -> FreezeRun {
    let thawed = spawn_blocking(move || in_force.frozen.thaw()).await;
    let Ok(thawed) = thawed else {
        let why = "whether the file systems were frozen all the while is not known".to_owned();
        run.say_quietly(NoteLevel::Error, "not-thawed", why.clone());
        return FreezeRun::Not { why, frozen: None };
    };
    let held = in_time && thawed.held_all_the_while();
    run.record_quietly(Event::Thawed {
        frozen_ms: thawed.held.as_millis() as u64,
        held,
    });
    say(run, &thawed);
    let frozen = thawed.held;
    if held {
        let what = thawed.mounts.into_iter().map(|mount| mount.mount).collect();
        return FreezeRun::Held { what, frozen };
    }
    let why = if in_time {
        "not every file system was frozen until the snapshot was there".to_owned()
    } else {
        format!(
            "the snapshot was not there after a freeze of {:.1} s",
            frozen.as_secs_f64()
        )
    };
    let frozen = Some(frozen);
    FreezeRun::Not { why, frozen }
}

/// Says of every file system that was not thawed by us how that was.
fn say(run: &mut Run<'_>, thawed: &Thawed) {
    for mount in &thawed.mounts {
        let name = mount.mount.display();
        let (level, text) = match &mount.end {
            FreezeEnd::Held => continue,
            FreezeEnd::ByGuard => (
                NoteLevel::Warning,
                format!("{name} was thawed by the guard, since the deadline had passed"),
            ),
            FreezeEnd::GuardGone => (
                NoteLevel::Warning,
                format!("{name} was thawed at once, since the guard was gone"),
            ),
            FreezeEnd::ByOthers => (NoteLevel::Warning, format!("{name} was thawed by somebody else")),
            FreezeEnd::NotThawed(error) => (
                NoteLevel::Error,
                format!(
                    "{name} IS STILL FROZEN: it cannot be thawed: {error}; the guard goes on trying; by hand: fsfreeze \
                     --unfreeze {name}"
                ),
            ),
        };
        let code = if level == NoteLevel::Error {
            "not-thawed"
        } else {
            "thawed-early"
        };
        run.say_quietly(level, code, text);
    }
}
