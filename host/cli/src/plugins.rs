//! The plugin catalog: what the configuration says of plugins, where their files are, and which ship with this binary.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use coffre_engine::config::{Config, ConfigError, PluginConfig};
use coffre_guard::Guard;
use coffre_sandbox::{CatalogConfig, InstalledPlugin, NoSecrets, PluginCatalog};

use crate::args::Global;
use crate::wire;

/// Name and sha256 of the plugins that ship, put here by build.rs.
const SHIPPED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/first_party.rs"));

/// Compiled plugins, below the cache folder.
const COMPILED: &str = "plugins";

pub fn catalog(config: &Config, guard: &Guard) -> Result<PluginCatalog, ConfigError> {
    let folders = match &config.coffre.plugin_path {
        Some(folders) => folders.clone(),
        None => [config.coffre.plugins.clone()]
            .into_iter()
            .chain(beside_the_binary())
            .collect(),
    };
    Ok(PluginCatalog::new(CatalogConfig {
        installed: config.all_plugins()?.into_iter().map(installed).collect(),
        folders,
        shipped_digests: shipped(),
        cache: config.coffre.cache.join(COMPILED),
        secrets: Arc::new(NoSecrets),
        guard: Some(guard.clone()),
    }))
}

/// For looking at plugins: works without a configuration too, unless one was named.
pub fn catalog_to_look_at(global: &Global) -> anyhow::Result<PluginCatalog> {
    let path = match Config::find(global.config.as_deref()) {
        Ok(path) => path,
        Err(ConfigError::NotFound { .. }) => {
            return Ok(PluginCatalog::new(CatalogConfig {
                installed: Vec::new(),
                folders: beside_the_binary(),
                shipped_digests: shipped(),
                // Looking compiles nothing, so nothing is cached.
                cache: PathBuf::new(),
                secrets: Arc::new(NoSecrets),
                guard: None,
            }));
        }
        Err(error) => return Err(error.into()),
    };
    let config = Config::load(&path)?;
    Ok(catalog(&config, &wire::guard(&config))?)
}

/// `PREFIX/share/coffre/plugins` where it is installed, `target/plugins` in a checkout.
fn beside_the_binary() -> Vec<PathBuf> {
    let Ok(binary) = std::env::current_exe() else {
        return Vec::new();
    };
    let above = binary.parent().and_then(|folder| folder.parent());
    above
        .map(|above| vec![above.join("share/coffre/plugins"), above.join("plugins")])
        .unwrap_or_default()
}

fn shipped() -> BTreeMap<String, String> {
    SHIPPED
        .iter()
        .map(|(name, digest)| (name.to_string(), digest.to_string()))
        .collect()
}

fn installed(plugin: PluginConfig) -> InstalledPlugin {
    InstalledPlugin {
        name: plugin.name,
        file: plugin.file,
        sha256: plugin.sha256,
        dev: plugin.dev,
        grant: plugin.grant.map(|table| table.0),
    }
}
