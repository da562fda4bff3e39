//! The seam to freezing: a machine's file systems come to rest for the instant of its snapshot.
//!
//! Every freeze is owed to the guard before it happens (see `coffre_guard`); what fills this seam for real is
//! [`GuardedFreezer`], tests fill it with one that freezes nothing.

use std::path::PathBuf;
use std::time::Instant;

use coffre_guard::{FreezeError, Frozen, Guard, Owner, Protected, Thawed};

use crate::config::{Config, MachineConfig};
use crate::error_chain::Chain;
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
    fn thaw(self: Box<Self>) -> Thawed;
}

impl FrozenMounts for Frozen {
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

/// What stands in the way of freezing what a machine's configuration says, before anything is disturbed.
pub fn check(freezer: &dyn Freezer, machine: &MachineConfig) -> Vec<Finding> {
    let blocking = |text: String| Finding {
        level: FindingLevel::Blocking,
        disk: None,
        text,
    };
    if machine.freeze.is_empty() {
        return Vec::new();
    }
    let looked = freezer.look(&machine.freeze).err().map(|error| {
        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        blocking(format!("{}{hint}", Chain(&error)))
    });
    looked.into_iter().collect()
}

/// What stands in the way of having a guard for a machine that needs one: one with hooks or with something to freeze.
pub fn check_guard(guard: Option<&Guard>, machine: &MachineConfig) -> Vec<Finding> {
    let Some(guard) = guard.filter(|_| !machine.freeze.is_empty() || !machine.hooks.is_empty()) else {
        return Vec::new();
    };
    let finding = |level, text| {
        vec![Finding {
            level,
            disk: None,
            text,
        }]
    };
    match guard.start() {
        Ok(shelter) if shelter.last_for_oom && shelter.memory_locked => Vec::new(),
        Ok(_) => finding(
            FindingLevel::Note,
            "the guard may be paged out, or be chosen when memory runs out: only root can keep it from that".to_owned(),
        ),
        Err(error) => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            finding(FindingLevel::Blocking, format!("{}{hint}", Chain(&error)))
        }
    }
}
