//! Finds plugins by name, checks that they are the ones that were meant, and starts them.
//!
//! A plugin runs only if its digest is pinned, or built into the binary (the plugins that ship), or the operator waived
//! the pin for development; the last is said in every recovery point. The file is read once: the bytes that were
//! checked are the bytes that run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use coffre_guard::Guard;
use serde::Serialize;
use serde_json::Value;

use crate::compiled::CompileCache;
use crate::component::{Anatomy, ComponentFile};
use crate::engine::SandboxEngine;
use crate::error::PluginError;
use crate::grant::{GrantTable, Permissions};
use crate::limits::Limits;
use crate::manifest::{Ask, Manifest, World, is_plugin_name};
use crate::provider::WasmProvider;

/// What the configuration says of a plugin: its `[plugin.NAME]` table, or the file that installing it wrote.
#[derive(Clone, Debug, Default)]
pub struct InstalledPlugin {
    pub name: String,
    /// None: `NAME.wasm` in the catalog's folders.
    pub file: Option<PathBuf>,
    /// The pin, as lower-case hex.
    pub sha256: Option<String>,
    /// The pin is waived, for development.
    pub dev: bool,
    /// None: not said, which for a plugin that ships means what its manifest asks for, and for others nothing.
    pub grant: Option<BTreeMap<String, Value>>,
}

/// Hands out the secrets of the configuration to plugins that are granted them.
pub trait SecretSource: Send + Sync {
    /// The secret's text; none: there is no such secret. The error is a cause for the operator, without the secret.
    fn get(&self, name: &str) -> Result<Option<String>, String>;
}

/// No secrets at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

impl SecretSource for NoSecrets {
    fn get(&self, _name: &str) -> Result<Option<String>, String> {
        Ok(None)
    }
}

/// What a catalog is made of.
#[derive(Clone)]
pub struct CatalogConfig {
    pub installed: Vec<InstalledPlugin>,
    /// Looked through in this order for `NAME.wasm`.
    pub folders: Vec<PathBuf>,
    /// Name → sha256 of the plugins that ship, as built into the binary.
    pub shipped_digests: BTreeMap<String, String>,
    /// A folder of our own for compiled code; made with mode 0700 if it is not there.
    pub cache: PathBuf,
    pub secrets: Arc<dyn SecretSource>,
    /// To whom the processes of plugins' programs are owed while they run.
    pub guard: Option<Guard>,
}

/// Why a plugin may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Its digest is built into the binary.
    Shipped,
    /// Its digest is in the configuration.
    Pinned,
    /// The operator waived the pin.
    Dev,
    /// It may not run.
    Unknown,
}

/// A plugin looked at from outside.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub name: String,
    pub version: Option<String>,
    pub summary: Option<String>,
    /// By what it exports; none: no world of ours.
    pub world: Option<World>,
    pub contract: Option<String>,
    pub file: PathBuf,
    /// sha256 as lower-case hex.
    pub digest: String,
    pub origin: Origin,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    pub asked: Vec<Ask>,
    /// As configured, or what is asked for where that applies.
    pub granted: GrantTable,
    /// The grants are what the manifest asks for, since the configuration says nothing and the plugin ships.
    pub granted_as_asked: bool,
    pub limits: Limits,
}

/// One line of `coffre plugin list`.
#[derive(Debug)]
pub struct Listed {
    pub name: String,
    pub inspection: Result<Inspection, PluginError>,
}

/// All plugins that this configuration can reach.
pub struct PluginCatalog {
    config: CatalogConfig,
    /// Started with the first plugin that runs: listing needs none.
    engine: OnceLock<Arc<SandboxEngine>>,
}

struct Found {
    component: ComponentFile,
    origin: Origin,
    /// Its digest is one that ships, pinned or not.
    ships: bool,
    installed: InstalledPlugin,
}

impl PluginCatalog {
    pub fn new(config: CatalogConfig) -> Self {
        Self {
            config,
            engine: OnceLock::new(),
        }
    }

    /// Every plugin there is, by name; broken ones with what is wrong with them.
    pub fn list(&self) -> Vec<Listed> {
        let names = self.names();
        names
            .into_iter()
            .map(|name| Listed {
                inspection: self.inspect(&name),
                name,
            })
            .collect()
    }

    /// A plugin by name, or by the path of its file (anything with a `/` or ending in `.wasm`). Also shows those that
    /// may not run.
    pub fn inspect(&self, name: &str) -> Result<Inspection, PluginError> {
        let found = if name.contains('/') || name.ends_with(".wasm") {
            let component = ComponentFile::read(Path::new(name))?;
            let stem = component
                .file
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default()
                .to_owned();
            let shipped = self
                .config
                .shipped_digests
                .values()
                .any(|digest| *digest == component.digest);
            let pin = self
                .config
                .installed
                .iter()
                .find(|plugin| plugin.sha256.as_ref() == Some(&component.digest));
            let origin = match (shipped, pin) {
                (true, _) => Origin::Shipped,
                (false, Some(_)) => Origin::Pinned,
                (false, None) => Origin::Unknown,
            };
            let installed = pin.cloned().unwrap_or(InstalledPlugin {
                name: stem,
                ..InstalledPlugin::default()
            });
            Found {
                component,
                origin,
                ships: shipped,
                installed,
            }
        } else {
            self.find(name)?
        };
        let anatomy = found.component.anatomy()?;
        let (granted, granted_as_asked) = self.grants(&found, anatomy.manifest.as_ref())?;
        Ok(Inspection::of(&found, anatomy, granted, granted_as_asked))
    }

    /// Loads a provider for one machine, compiled code from the cache if it is there. `settings` is the machine's
    /// settings table, which fills the holes of the grants.
    pub async fn load_provider(
        &self,
        name: &str,
        settings: &Value,
        limits: Limits,
    ) -> Result<Arc<WasmProvider>, PluginError> {
        let found = self.find(name)?;
        self.may_run(&found)?;
        let anatomy = found.component.anatomy()?;
        let manifest = anatomy.fits(World::SnapshotProvider, &found.component.file)?.clone();
        if manifest.name != name {
            let cause = format!("it says that it is `{}`, not `{name}`", manifest.name);
            return Err(PluginError::BadManifest {
                file: found.component.file,
                cause,
            });
        }
        let bad_grant = |(grant, cause)| PluginError::BadGrant {
            name: name.to_owned(),
            grant,
            cause,
        };
        let (granted, as_asked) = self.grants(&found, Some(&manifest))?;
        let asked = GrantTable::from_asks(&manifest.asks).map_err(bad_grant)?;
        // The tables are understood by now, so what does not fit comes from the settings.
        let permissions =
            Permissions::new(name, &asked, &granted, settings).map_err(|(_, cause)| PluginError::BadSettings {
                name: name.to_owned(),
                cause,
            })?;
        let words: Vec<_> = granted
            .0
            .iter()
            .flat_map(|(kind, values)| values.iter().map(move |value| format!("{kind} {value}")))
            .collect();
        tracing::info!(
            plugin = name,
            version = manifest.version,
            digest = found.component.digest,
            origin = ?found.origin,
            grants = words.join(", "),
            as_asked,
            "plugin loaded"
        );
        let engine = self.engine()?;
        let cache = CompileCache::new(self.config.cache.clone());
        let pinned = found.origin != Origin::Dev;
        // Compiling takes some 100 ms, and reading the cache blocks: not on the runtime's threads.
        let (compiling, component) = (engine.clone(), found.component);
        let compiled = tokio::task::spawn_blocking(move || {
            let loaded = cache.load(&compiling, &component)?;
            Ok((loaded, component.digest))
        });
        let (component, digest) = match compiled.await {
            Ok(compiled) => compiled?,
            Err(error) => {
                return Err(PluginError::Engine {
                    cause: error.to_string(),
                });
            }
        };
        let provider = WasmProvider::start(crate::provider::Start {
            engine,
            component,
            manifest,
            digest,
            pinned,
            permissions,
            granted,
            limits,
            secrets: self.config.secrets.clone(),
            guard: self.config.guard.clone(),
        })
        .await?;
        Ok(Arc::new(provider))
    }

    fn engine(&self) -> Result<Arc<SandboxEngine>, PluginError> {
        if let Some(engine) = self.engine.get() {
            return Ok(engine.clone());
        }
        let engine = Arc::new(SandboxEngine::start()?);
        Ok(self.engine.get_or_init(|| engine).clone())
    }

    fn names(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.config.installed.iter().map(|plugin| plugin.name.clone()).collect();
        for folder in &self.config.folders {
            // A folder that is not there has no plugins; one that cannot be read shows when its plugin is asked for.
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let stem = path
                    .file_stem()
                    .and_then(|stem| stem.to_str())
                    .filter(|stem| is_plugin_name(stem));
                if let (Some("wasm"), Some(stem)) = (path.extension().and_then(|end| end.to_str()), stem) {
                    names.insert(stem.to_owned());
                }
            }
        }
        names
    }

    fn find(&self, name: &str) -> Result<Found, PluginError> {
        let missing = || {
            let near = self
                .names()
                .into_iter()
                .map(|other| (strsim::damerau_levenshtein(&other, name), other))
                .min();
            PluginError::Missing {
                name: name.to_owned(),
                looked_in: self.config.folders.clone(),
                near: near
                    .filter(|(distance, other)| *distance <= 2 && other != name)
                    .map(|(_, other)| other),
            }
        };
        let installed = self.config.installed.iter().find(|plugin| plugin.name == name).cloned();
        let installed = installed.unwrap_or(InstalledPlugin {
            name: name.to_owned(),
            ..InstalledPlugin::default()
        });
        let file = match &installed.file {
            Some(file) => file.clone(),
            None if !is_plugin_name(name) => return Err(missing()),
            None => {
                let files = self
                    .config
                    .folders
                    .iter()
                    .map(|folder| folder.join(format!("{name}.wasm")));
                files.into_iter().find(|file| file.exists()).ok_or_else(missing)?
            }
        };
        let component = ComponentFile::read(&file)?;
        let shipped = self.config.shipped_digests.get(name) == Some(&component.digest);
        let origin = match &installed.sha256 {
            Some(pin) if pin.eq_ignore_ascii_case(&component.digest) => Origin::Pinned,
            _ if installed.dev => Origin::Dev,
            // A pin that does not fit is never overruled, not even for a plugin that ships.
            Some(_) => Origin::Unknown,
            None if shipped => Origin::Shipped,
            None => Origin::Unknown,
        };
        Ok(Found {
            component,
            origin,
            ships: shipped,
            installed,
        })
    }

    fn may_run(&self, found: &Found) -> Result<(), PluginError> {
        if found.origin != Origin::Unknown {
            return Ok(());
        }
        let (name, file) = (found.installed.name.clone(), found.component.file.clone());
        let digest = found.component.digest.clone();
        let built_in = self
            .config
            .shipped_digests
            .get(&name)
            .filter(|_| found.installed.file.is_none());
        Err(match found.installed.sha256.as_ref().or(built_in) {
            Some(pinned) => PluginError::WrongPin {
                name,
                file,
                pinned: pinned.clone(),
                found: digest,
            },
            None => PluginError::NotPinned {
                name,
                file,
                found: digest,
            },
        })
    }

    /// The grants in force, and whether they are the manifest's asks.
    fn grants(&self, found: &Found, manifest: Option<&Manifest>) -> Result<(GrantTable, bool), PluginError> {
        let name = &found.installed.name;
        let bad = |(grant, cause)| PluginError::BadGrant {
            name: name.clone(),
            grant,
            cause,
        };
        match (&found.installed.grant, manifest) {
            (Some(table), _) => Ok((GrantTable::from_config(table).map_err(bad)?, false)),
            (None, Some(manifest)) if found.ships => Ok((GrantTable::from_asks(&manifest.asks).map_err(bad)?, true)),
            (None, _) => Ok((GrantTable::default(), false)),
        }
    }
}

impl Inspection {
    fn of(found: &Found, anatomy: Anatomy, granted: GrantTable, granted_as_asked: bool) -> Self {
        let world = anatomy.world();
        let manifest = anatomy.manifest;
        Self {
            name: manifest
                .as_ref()
                .map_or_else(|| found.installed.name.clone(), |manifest| manifest.name.clone()),
            version: manifest.as_ref().map(|manifest| manifest.version.clone()),
            summary: manifest.as_ref().map(|manifest| manifest.summary.clone()),
            world,
            contract: manifest.as_ref().map(|manifest| manifest.contract.clone()),
            file: found.component.file.clone(),
            digest: found.component.digest.clone(),
            origin: found.origin,
            imports: anatomy.imports,
            exports: anatomy.exports,
            asked: manifest.map(|manifest| manifest.asks).unwrap_or_default(),
            granted,
            granted_as_asked,
            limits: Limits::default(),
        }
    }
}
