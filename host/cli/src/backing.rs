//! One machine's backup, for whoever starts it: a person, cron, or the scheduler.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use coffre_engine::config::Config;
use coffre_engine::job::{self, BackupReport};
use coffre_engine::pacer::Pacer;
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::{Gate, SystemClock};
use coffre_guard::Guard;
use coffre_sandbox::PluginCatalog;
use tokio::sync::Mutex;

use crate::command::backup_view;
use crate::machine::Parts;
use crate::progress::{Style, Watch};
use crate::wire::{self, NamedVault};
use crate::{plugins, rehearsals, stop};

/// What all backups by one configuration share.
pub struct Backing {
    pub config: Arc<Config>,
    pub guard: Guard,
    pub pacer: Pacer,
    catalog: PluginCatalog,
    style: Style,
    /// Opened once, however many machines go there.
    vaults: Mutex<BTreeMap<String, NamedVault>>,
}

impl Backing {
    pub fn new(config: Arc<Config>, guard: Guard, pacer: Pacer, style: Style) -> anyhow::Result<Self> {
        Ok(Self {
            catalog: plugins::catalog(&config, &guard)?,
            guard,
            pacer,
            style,
            vaults: Mutex::default(),
            config,
        })
    }

    /// The caps of a configuration.
    pub fn pacer(config: &Config) -> Pacer {
        Pacer::new(config.transfer.clone(), Arc::new(SystemClock))
    }

    pub async fn backup(
        &self,
        name: &str,
        progress: Arc<Progress>,
        cancel: Cancel,
        gate: Arc<dyn Gate>,
    ) -> anyhow::Result<BackupReport> {
        let machine = self.config.machine(name)?;
        let ready = async {
            let parts = Parts::load(&self.config, &self.catalog, &self.guard, machine).await?;
            let vault = self.vault(&machine.vault).await?.vault;
            anyhow::Ok((parts, vault))
        };
        // Until here nothing is held, so it can be dropped.
        let (parts, vault) = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(stop::cancelled().into()),
            ready = ready => ready?,
        };
        rehearsals::pay_and_say(&self.config, &self.guard, machine).await;
        let deps = parts.into_deps(self.config.clone(), vault, progress.clone(), cancel, gate);
        let watch = Watch::start(self.style, name, move || backup_view(&progress.snapshot()));
        let result = job::backup(&deps, name).await;
        watch.finish();
        result.with_context(|| format!("cannot back up {name}"))
    }

    pub async fn vault(&self, name: &str) -> anyhow::Result<NamedVault> {
        let mut open = self.vaults.lock().await;
        if let Some(vault) = open.get(name) {
            return Ok(vault.clone());
        }
        let pace = self.config.transfer.caps_requests().then(|| self.pacer.requests());
        let vault = wire::open_vault_paced(&self.config, name, pace).await?;
        open.insert(name.to_owned(), vault.clone());
        Ok(vault)
    }

    /// Vaults are opened anew from here on: by the keys and credentials of then.
    pub async fn close_vaults(&self) {
        self.vaults.lock().await.clear();
    }
}
