//! Reads a component without running it: digest, manifest, what it imports and exports, and whether that is a world of ours.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmparser::{Encoding, Parser, Payload};

use crate::error::PluginError;
use crate::limits::COMPONENT_BYTES;
use crate::manifest::{CONTRACT_VERSION, MANIFEST_SECTION, Manifest, World};

/// Interfaces of the contract that a component may import; types are imported as well.
const OFFERED: &[&str] = &[
    "types",
    "log",
    "time",
    "process",
    "session",
    "unix-socket",
    "guest-agent",
    "storage",
    "secret",
];

/// A component's bytes, read once: what is checked is what runs.
#[derive(Debug)]
pub(crate) struct ComponentFile {
    pub file: PathBuf,
    pub bytes: Vec<u8>,
    /// sha256 as lower-case hex.
    pub digest: String,
}

impl ComponentFile {
    pub fn read(file: &Path) -> Result<Self, PluginError> {
        let failed = |source| PluginError::Read {
            file: file.to_owned(),
            source,
        };
        let opened = File::open(file).map_err(failed)?;
        let size_bytes = opened.metadata().map_err(failed)?.len();
        let mut bytes = Vec::new();
        opened
            .take(COMPONENT_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > COMPONENT_BYTES {
            return Err(PluginError::TooLarge {
                file: file.to_owned(),
                size_bytes,
                limit_bytes: COMPONENT_BYTES,
            });
        }
        let digest = hex::encode(Sha256::digest(&bytes));
        Ok(Self {
            file: file.to_owned(),
            bytes,
            digest,
        })
    }

    /// What it says and wants. Does not check that its code is valid; compiling does.
    pub fn anatomy(&self) -> Result<Anatomy, PluginError> {
        let garbage = |cause: String| PluginError::Garbage {
            file: self.file.clone(),
            cause,
        };
        if !self.bytes.starts_with(b"\0asm") {
            return Err(garbage("it does not begin as WebAssembly does".to_owned()));
        }
        let mut found = Anatomy {
            manifest: None,
            imports: Vec::new(),
            exports: Vec::new(),
        };
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(&self.bytes) {
            match payload.map_err(|error| garbage(error.message().to_owned()))? {
                Payload::Version {
                    encoding: Encoding::Module,
                    ..
                } if depth == 0 => {
                    return Err(PluginError::NotAComponent {
                        file: self.file.clone(),
                    });
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::CustomSection(section) if depth == 0 && section.name() == MANIFEST_SECTION => {
                    let bad = |cause| PluginError::BadManifest {
                        file: self.file.clone(),
                        cause,
                    };
                    if found.manifest.is_some() {
                        return Err(bad("there are two".to_owned()));
                    }
                    found.manifest = Some(Manifest::parse(section.data()).map_err(bad)?);
                }
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        let import = import.map_err(|error| garbage(error.message().to_owned()))?;
                        found.imports.push(import.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        let export = export.map_err(|error| garbage(error.message().to_owned()))?;
                        found.exports.push(export.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// A component from outside.
#[derive(Debug)]
pub(crate) struct Anatomy {
    pub manifest: Option<Manifest>,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

impl Anatomy {
    /// The world it belongs to by what it exports, if it is one of ours.
    pub fn world(&self) -> Option<World> {
        [World::SnapshotProvider, World::ApplicationHook]
            .into_iter()
            .find(|world| self.exported(*world).is_some())
    }

    /// The version under which it exports the world's interface.
    fn exported(&self, world: World) -> Option<&str> {
        self.exports.iter().find_map(|export| {
            let (interface, version) = export.split_once('@').unwrap_or((export, ""));
            (interface == world.export()).then_some(version)
        })
    }

    /// Refuses everything that would not start, or would start as something else than wanted.
    pub fn fits(&self, wanted: World, file: &Path) -> Result<&Manifest, PluginError> {
        let Some(version) = self.exported(wanted) else {
            let found = match self.world() {
                Some(world) => world.to_string(),
                None if self.exports.is_empty() => "a component that exports nothing".to_owned(),
                None => format!("a component that exports {}", self.exports.join(", ")),
            };
            return Err(PluginError::WrongWorld {
                file: file.to_owned(),
                wanted,
                found,
            });
        };
        let known = format!("coffre:plugin@{CONTRACT_VERSION}");
        if version != CONTRACT_VERSION {
            let found = format!("coffre:plugin@{version}");
            return Err(PluginError::WrongContract {
                file: file.to_owned(),
                found,
                known,
            });
        }
        for import in &self.imports {
            let ours = import
                .strip_prefix("coffre:plugin/")
                .and_then(|rest| rest.split_once('@'));
            match ours {
                Some((interface, CONTRACT_VERSION)) if OFFERED.contains(&interface) => {}
                Some((_, version)) if version != CONTRACT_VERSION => {
                    let found = format!("coffre:plugin@{version}");
                    return Err(PluginError::WrongContract {
                        file: file.to_owned(),
                        found,
                        known,
                    });
                }
                _ => {
                    return Err(PluginError::UnknownImport {
                        file: file.to_owned(),
                        import: import.clone(),
                    });
                }
            }
        }
        let bad = |cause: String| PluginError::BadManifest {
            file: file.to_owned(),
            cause,
        };
        let manifest = self
            .manifest
            .as_ref()
            .ok_or_else(|| bad(format!("it has no section {MANIFEST_SECTION}")))?;
        if manifest.world != wanted {
            return Err(bad(format!(
                "it says {}, but the component is a {wanted}",
                manifest.world
            )));
        }
        if manifest.contract != CONTRACT_VERSION {
            let found = format!("coffre:plugin@{} by its manifest", manifest.contract);
            return Err(PluginError::WrongContract {
                file: file.to_owned(),
                found,
                known,
            });
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests;
