//! From a machine's table in the configuration to the parts that its backup works with.

use std::sync::Arc;

use anyhow::Context;
use coffre_engine::config::{Config, MachineConfig};
use coffre_engine::freeze::GuardedFreezer;
use coffre_engine::job::JobDeps;
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::{Gate, HookRunner, SystemClock};
use coffre_guard::{Guard, Protected};
use coffre_sandbox::{Limits, PluginCatalog, WasmProvider, hook};
use coffre_vault::{Note, NoteLevel, Vault};

use crate::wire;

/// A machine's plugin and hooks, loaded.
pub struct Parts {
    pub provider: Arc<WasmProvider>,
    pub hooks: Vec<Arc<dyn HookRunner>>,
    pub guard: Guard,
    pub freezer: Arc<GuardedFreezer>,
    /// What every point made with these parts must say.
    pub notes: Vec<Note>,
}

impl Parts {
    pub async fn load(
        config: &Config,
        catalog: &PluginCatalog,
        guard: &Guard,
        machine: &MachineConfig,
    ) -> anyhow::Result<Self> {
        let doing = || format!("cannot use provider `{}` for {}", machine.provider, machine.name);
        let provider = catalog
            .load_provider(&machine.provider, &machine.settings, Limits::default())
            .await
            .with_context(doing)?;
        let notes = assumed_grants(catalog, machine).into_iter().collect();
        let hooks = load_hooks(config, machine)?;
        let snapshots = provider.writes_below().into_iter();
        let snapshots = snapshots.map(|path| Protected::new("the place of the snapshots", path));
        let freezer = Arc::new(GuardedFreezer::new(guard.clone(), config, snapshots));
        Ok(Self {
            provider,
            hooks,
            guard: guard.clone(),
            freezer,
            notes,
        })
    }

    pub fn into_deps(
        self,
        config: Arc<Config>,
        vault: Vault,
        progress: Arc<Progress>,
        cancel: Cancel,
        gate: Arc<dyn Gate>,
    ) -> JobDeps {
        JobDeps {
            config,
            provider: self.provider,
            hooks: self.hooks,
            vault,
            guard: Some(self.guard),
            freezer: self.freezer,
            clock: Arc::new(SystemClock),
            progress,
            cancel,
            gate,
            host: wire::host(),
            notes: self.notes,
        }
    }
}

/// A machine's hooks, in the order in which their `pre` runs.
pub fn load_hooks(config: &Config, machine: &MachineConfig) -> anyhow::Result<Vec<Arc<dyn HookRunner>>> {
    let load = |name: &String| {
        hook::load_from_config(config, config.hook(name)?)
            .with_context(|| format!("cannot load hook `{name}` for {}", machine.name))
    };
    machine.hooks.iter().map(load).collect()
}

/// Grants that nobody typed are said in the job and the point.
fn assumed_grants(catalog: &PluginCatalog, machine: &MachineConfig) -> Option<Note> {
    let plugin = catalog
        .inspect(&machine.provider)
        .ok()
        .filter(|plugin| plugin.granted_as_asked)?;
    let grants = plugin
        .granted
        .0
        .iter()
        .flat_map(|(kind, values)| values.iter().map(move |value| format!("{kind} {value}")));
    let grants: Vec<String> = grants.collect();
    if grants.is_empty() {
        return None;
    }
    Some(Note {
        level: NoteLevel::Info,
        code: "grants-as-asked".to_owned(),
        disk: None,
        text: format!(
            "{} ships with Coffre and the configuration grants it nothing in particular, so it may do what it asks for: {}",
            machine.provider,
            grants.join(", ")
        ),
    })
}
