//! Compiled components, kept in a folder of our own.
//!
//! Compiled code is loaded without being checked again, so the folder must be ours alone: owned by this user, mode 0700,
//! no link. A file's name binds the component's digest and the compiler's version and settings; its content carries a
//! sha256, so that a torn or rotten file is compiled again instead of run. Whoever can write there as this user could
//! replace this program as well. Everything in it can be thrown away at any time.

#![allow(unsafe_code)] // `Component::deserialize`; see `load_trusted`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use crate::component::ComponentFile;
use crate::engine::SandboxEngine;
use crate::error::PluginError;

const MAGIC: &[u8; 8] = b"COFCWAS1";
const HEADER_BYTES: usize = MAGIC.len() + 32;

pub(crate) struct CompileCache {
    folder: PathBuf,
}

impl CompileCache {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Compiled code for the component: from the folder, else compiled now and kept. A folder that cannot be used costs
    /// time, and is only worth a warning.
    pub fn load(&self, engine: &SandboxEngine, component: &ComponentFile) -> Result<Component, PluginError> {
        let path = self.folder.join(name_of(engine, component));
        let usable = self.prepare();
        if let Err(error) = &usable {
            tracing::warn!(folder = %self.folder.display(), %error, "compiled plugins are not kept");
        } else if let Some(loaded) = self.load_kept(engine, &path) {
            return Ok(loaded);
        }
        let failed = |cause: String| PluginError::Compile {
            file: component.file.clone(),
            cause,
        };
        let compiled = Component::from_binary(engine.wasmtime(), &component.bytes)
            .map_err(|error| failed(format!("{error:#}")))?;
        if usable.is_ok()
            && let Err(error) = self.keep(&compiled, &path)
        {
            tracing::warn!(file = %path.display(), %error, "a compiled plugin is not kept");
        }
        Ok(compiled)
    }

    /// Makes the folder, and refuses one that others may have written to.
    fn prepare(&self) -> io::Result<()> {
        if let Some(parent) = self.folder.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = fs::symlink_metadata(&self.folder)?;
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
        if ours {
            Ok(())
        } else {
            Err(io::Error::other("it is not a folder of this user with mode 0700"))
        }
    }

    fn load_kept(&self, engine: &SandboxEngine, path: &std::path::Path) -> Option<Component> {
        let kept = fs::read(path).ok()?;
        let (header, code) = kept.split_at_checked(HEADER_BYTES)?;
        let sound = header.starts_with(MAGIC) && header[MAGIC.len()..] == *Sha256::digest(code);
        let loaded = if sound { load_trusted(engine, code) } else { None };
        if loaded.is_none() {
            tracing::warn!(file = %path.display(), "a compiled plugin is damaged and is compiled again");
        }
        loaded
    }

    fn keep(&self, compiled: &Component, path: &std::path::Path) -> io::Result<()> {
        let code = compiled
            .serialize()
            .map_err(|error| io::Error::other(format!("{error:#}")))?;
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.folder)?;
        file.write_all(MAGIC)?;
        file.write_all(&Sha256::digest(&code))?;
        file.write_all(&code)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Digest, engine version and everything else that compiled code depends on.
fn name_of(engine: &SandboxEngine, component: &ComponentFile) -> String {
    let mut hasher = DefaultHasher::new();
    engine.wasmtime().precompile_compatibility_hash().hash(&mut hasher);
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    format!("{}-{:016x}.cwasm", component.digest, hasher.finish())
}

fn load_trusted(engine: &SandboxEngine, code: &[u8]) -> Option<Component> {
    // SAFETY: `deserialize` trusts that the bytes came from `Component::serialize`. They do: the folder is ours alone
    // (`prepare` has checked owner and mode just now), only `keep` writes there, and the sha256 in the header matches,
    // so nothing was torn or flipped. Version and settings of the engine are in the name, and wasmtime checks them again.
    unsafe { Component::deserialize(engine.wasmtime(), code) }.ok()
}
