//! Jobs that only try hooks around a pretended snapshot: where they are written down, what they work with, and how what a
//! killed one has left is undone at the next start of other work.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coffre_engine::config::{Config, MachineConfig};
use coffre_engine::freeze::GuardedFreezer;
use coffre_engine::job::{self, JobDeps};
use coffre_engine::journal::JobRecord;
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::rehearsal::PretendedProvider;
use coffre_engine::state::{MachineLock, State};
use coffre_engine::{DiskId, SystemClock};
use coffre_guard::Guard;
use coffre_vault::{Encryption, InitOptions, Note, OpenOptions, Store, StoreConfig, StoreOptions, Vault};

use crate::machine::load_hooks;
use crate::{screen, wire};

/// Below the state folder: journals of jobs that pretend.
const FOLDER: &str = "rehearsals";

/// Where such jobs are written down.
pub fn state(config: &Config) -> State {
    State::new(&config.coffre.state.join(FOLDER))
}

/// What such a job works with. The machine is locked all the while, so that it has one job at a time.
pub struct Pretended {
    /// With the journal's folder and the hooks that are tried.
    config: Arc<Config>,
    vault: Vault,
    _lock: MachineLock,
    _cache: tempfile::TempDir,
}

impl Pretended {
    /// `doing` is what others are told that want the machine.
    pub async fn new(config: &Config, machine: &str, hooks: &[String], doing: &str) -> anyhow::Result<Self> {
        let lock = State::new(&config.coffre.state).lock(machine, doing)?;
        let cache = tempfile::tempdir().context("make a folder")?;
        let mut config = config.clone();
        if let Some(machine) = config.machines.get_mut(machine) {
            machine.hooks = hooks.to_vec();
        }
        config.coffre.state = config.coffre.state.join(FOLDER);
        Ok(Self {
            config: Arc::new(config),
            vault: nowhere(cache.path()).await?,
            _lock: lock,
            _cache: cache,
        })
    }

    pub fn deps(&self, machine: &MachineConfig, guard: &Guard, takes: Duration) -> anyhow::Result<JobDeps> {
        let config = &self.config;
        Ok(JobDeps {
            config: config.clone(),
            provider: Arc::new(provider(machine, takes)),
            hooks: load_hooks(config, config.machine(&machine.name)?)?,
            vault: self.vault.clone(),
            guard: Some(guard.clone()),
            freezer: Arc::new(GuardedFreezer::new(guard.clone(), config, [])),
            clock: Arc::new(SystemClock),
            progress: Progress::new(),
            cancel: Cancel::new(),
            gate: Arc::new(coffre_engine::OpenGate::default()),
            host: wire::host(),
            notes: Vec::new(),
        })
    }
}

/// Undoes what tries of hooks that were killed have left of a machine; none if there is nothing.
pub async fn pay(config: &Config, guard: &Guard, machine: &MachineConfig) -> anyhow::Result<Option<Vec<Note>>> {
    let state = state(config);
    if !job::owes(&state, &machine.name)? {
        return Ok(None);
    }
    let jobs = JobRecord::all(&state, &machine.name)?;
    let owed = jobs.iter().flat_map(|job| job.owed().hooks).map(|hook| hook.name);
    let hooks: BTreeSet<String> = owed.filter(|name| config.hooks.contains_key(name)).collect();
    let hooks: Vec<String> = hooks.into_iter().collect();
    let pretended = Pretended::new(config, &machine.name, &hooks, "hooks are let go").await?;
    let deps = pretended.deps(machine, guard, Duration::ZERO)?;
    Ok(Some(job::pay(&deps, &machine.name).await?))
}

/// The same at the start of other work, which goes on whatever comes of it.
pub async fn pay_and_say(config: &Config, guard: &Guard, machine: &MachineConfig) {
    match pay(config, guard, machine).await {
        Ok(notes) => {
            for note in notes.unwrap_or_default() {
                screen::note(&format!("left behind: {}: {}", machine.name, note.text));
            }
        }
        Err(error) => screen::note(&format!(
            "STILL OWED: what a try of the hooks of {} has left: {error:#}",
            machine.name
        )),
    }
}

/// With the disks that the configuration names, if it does.
fn provider(machine: &MachineConfig, takes: Duration) -> PretendedProvider {
    let named = machine.disks.include.as_deref().unwrap_or_default();
    let named = named.iter().filter(|pattern| pattern.is_plain());
    let mut disks: Vec<DiskId> = named.map(|pattern| DiskId(pattern.to_string())).collect();
    if disks.is_empty() {
        disks.push(DiskId("disk".to_owned()));
    }
    PretendedProvider { disks, takes }
}

/// A vault that takes nothing, for a job that sends nothing.
async fn nowhere(cache: &Path) -> anyhow::Result<Vault> {
    let store = Store::connect(&StoreConfig {
        url: "memory:///".parse().context("the address of nowhere")?,
        options: StoreOptions::default(),
    })?;
    let init = InitOptions {
        encryption: Encryption::None,
        recovery_key: false,
        host: wire::host(),
    };
    Vault::init(store.clone(), init).await?;
    let options = OpenOptions {
        cache_folder: cache.to_owned(),
        expect_id: None,
        allow_unencrypted: true,
    };
    Ok(Vault::open(store, None, options).await?)
}
