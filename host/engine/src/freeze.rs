//! The seam to freezing: a machine's file systems come to rest for the instant of its snapshot.
//!
//! Every freeze is owed to the guard before it happens (see `coffre_guard`); what fills this seam for real is
//! [`GuardedFreezer`], tests fill it with one that freezes nothing.

use std::path::PathBuf;
use std::time::Instant;

use coffre_guard::{FreezeError, Frozen, Guard, Owner, Protected, Thawed};

use crate::config::{Config, MachineConfig};
use crate::error_chain::Chain;
use crate::hook::HookRunner;
use crate::machine::{Finding, FindingLevel};

/// Freezes file systems. Its calls block.
///
/// `look` is called before applications are disturbed, and disturbs nothing. `freeze` is called once per job, after the last
/// `pre`; it freezes all or nothing. What it gives is thawed right after the snapshot, or at the deadline by whoever is
/// there; it is safe to drop, and then thawed.
pub trait Freezer: Send + Sync {
    /// Refuses what must not be frozen, or cannot be, as far as that can be known.
    fn look(&self, mounts: &[PathBuf]) -> Result<(), FreezeError>;
    fn freeze(
        &self,
        owner: &Owner,
        mounts: &[PathBuf],
        deadline: Instant,
    ) -> Result<Box<dyn FrozenMounts>, FreezeError>;
}

/// File systems that are frozen.
pub trait FrozenMounts: Send {
    /// Nobody whom we know of has thawed them.
    fn holds(&self) -> bool;
    fn thaw(self: Box<Self>) -> Thawed;
}

impl FrozenMounts for Frozen {
    fn holds(&self) -> bool {
        Self::holds(self)
    }

    fn thaw(self: Box<Self>) -> Thawed {
        Self::thaw(*self)
    }
}

/// Freezes with a guard that thaws whatever happens to us.
pub struct GuardedFreezer {
    guard: Guard,
    protected: Vec<Protected>,
}

impl GuardedFreezer {
    /// `more` is what must go on taking writes beside what the configuration names: the snapshots' place.
    pub fn new(guard: Guard, config: &Config, more: impl IntoIterator<Item = Protected>) -> Self {
        let mut protected = protected(config);
        protected.extend(more);
        Self { guard, protected }
    }
}

impl Freezer for GuardedFreezer {
    fn look(&self, mounts: &[PathBuf]) -> Result<(), FreezeError> {
        coffre_guard::look(mounts, &self.protected).map(drop)
    }

    fn freeze(
        &self,
        owner: &Owner,
        mounts: &[PathBuf],
        deadline: Instant,
    ) -> Result<Box<dyn FrozenMounts>, FreezeError> {
        let frozen = self.guard.freeze(owner, mounts, &self.protected, deadline)?;
        Ok(Box::new(frozen))
    }
}

/// What this host works with while something is frozen.
fn protected(config: &Config) -> Vec<Protected> {
    let folders = &config.coffre;
    let mut all = vec![
        Protected::new("the state folder", &folders.state),
        Protected::new("the folder of what runs right now", &folders.run),
        Protected::new("the cache", &folders.cache),
        Protected::new("the plugins", &folders.plugins),
        Protected::new("the hooks' scripts", &folders.scripts),
        Protected::new("the configuration", &config.file),
    ];
    all.extend(
        folders
            .plugin_path
            .iter()
            .flatten()
            .map(|path| Protected::new("the plugins", path)),
    );
    for vault in config.vaults.values().filter(|vault| vault.url.scheme() == "file") {
        let folder = vault.url.to_file_path().ok();
        all.extend(folder.map(|folder| Protected::new(format!("the vault {}", vault.name), folder)));
    }
    all
}

/// The hook whose own file says that nothing is to be frozen. Where another one's says the opposite, that counts: what is
/// frozen for nothing does no harm, and a promise that is not kept does.
pub fn refused_by<'a>(hooks: impl IntoIterator<Item = &'a dyn HookRunner>) -> Option<&'a str> {
    let mut refused = None;
    for hook in hooks {
        match hook.terms().wants_freeze {
            Some(true) => return None,
            Some(false) => refused = refused.or(Some(hook.name())),
            None => {}
        }
    }
    refused
}

/// What stands in the way of freezing what a machine's configuration and its hooks' files say, before anything is disturbed.
pub fn check(freezer: &dyn Freezer, machine: &MachineConfig, hooks: &[&dyn HookRunner]) -> Vec<Finding> {
    if machine.freeze.is_empty() {
        let wants = hooks.iter().filter(|hook| hook.terms().wants_freeze == Some(true));
        return wants
            .map(|hook| Finding {
                level: FindingLevel::Note,
                disk: None,
                text: format!(
                    "the file of hook {} wants file systems to be frozen, and [machine.{}] names none under `freeze`: nothing \
                     is frozen but by the provider",
                    hook.name(),
                    machine.name
                ),
            })
            .collect();
    }
    if let Some(hook) = refused_by(hooks.iter().copied()) {
        return vec![Finding {
            level: FindingLevel::Warning,
            disk: None,
            text: format!(
                "what [machine.{}] names under `freeze` is not frozen: the file of hook {hook} says that nothing is",
                machine.name
            ),
        }];
    }
    let looked = freezer.look(&machine.freeze).err().map(|error| {
        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        blocking(format!("{}{hint}", Chain(&error)))
    });
    looked.into_iter().collect()
}

/// What stands in the way of having a guard for a machine that needs one: one with hooks or with something to freeze.
pub fn check_guard(guard: Option<&Guard>, machine: &MachineConfig) -> Vec<Finding> {
    let needed = guard.filter(|_| !machine.freeze.is_empty() || !machine.hooks.is_empty());
    let failed = needed.and_then(|guard| guard.start().err()).map(|error| {
        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        blocking(format!("{}{hint}", Chain(&error)))
    });
    failed.into_iter().collect()
}

fn blocking(text: String) -> Finding {
    Finding {
        level: FindingLevel::Blocking,
        disk: None,
        text,
    }
}
