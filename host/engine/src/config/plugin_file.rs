//! `plugins.d/NAME.toml`: what installing a plugin wrote down, read with the same care as the configuration.

use std::io;
use std::path::Path;

use super::check::Checker;
use super::error::ConfigError;
use super::find::read_trusted;
use super::model::{Config, PluginConfig};
use super::raw;

impl Config {
    /// What is known of the plugin `name`: the config's table, else the file that its installation wrote, else nothing.
    pub fn plugin(&self, name: &str) -> Result<Option<PluginConfig>, ConfigError> {
        if let Some(plugin) = self.plugins.get(name) {
            return Ok(Some(plugin.clone()));
        }
        let path = self.coffre.plugins.join(format!("{name}.toml"));
        match read_trusted(&path) {
            Ok(content) => parse(&path, &content, name).map(Some),
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every plugin that the config or an installation names.
    pub fn all_plugins(&self) -> Result<Vec<PluginConfig>, ConfigError> {
        let mut found = self.plugins.clone();
        let folder = &self.coffre.plugins;
        let failed = |source| ConfigError::Read {
            path: folder.clone(),
            source,
        };
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found.into_values().collect()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
            if path.extension().is_some_and(|extension| extension == "toml")
                && let Some(name) = stem
                && !found.contains_key(&name)
                && let Some(plugin) = self.plugin(&name)?
            {
                found.insert(name, plugin);
            }
        }
        Ok(found.into_values().collect())
    }
}

fn parse(path: &Path, content: &str, name: &str) -> Result<PluginConfig, ConfigError> {
    let checker = Checker::new(path, content);
    let raw: raw::Plugin = checker.read()?;
    checker.plugin(name.to_owned(), raw)
}
