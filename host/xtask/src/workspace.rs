//! Where things lie: the checkout, its target folder, and what xtask keeps there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command;

/// The checkout that this xtask was built from.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub root: PathBuf,
    /// The host workspace's target folder, also when `CARGO_TARGET_DIR` moves it.
    pub target: PathBuf,
}

/// The part of `cargo metadata` that is read here.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    pub target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub manifest_path: PathBuf,
    pub targets: Vec<Target>,
    #[serde(default)]
    pub metadata: serde_json::Value,
}

#[derive(Debug, Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
}

impl Workspace {
    pub fn find() -> Result<Self> {
        // Cargo sets the variable when it runs xtask; the compiled-in folder serves a binary that is run by hand.
        let own =
            std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = own
            .join("../..")
            .canonicalize()
            .context("find the checkout that xtask belongs to")?;
        let target = metadata(&root)?.target_directory;
        Ok(Self { root, target })
    }

    /// Where xtask keeps a thing that it fetched or made, which can be thrown away at any time.
    pub fn made(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }

    /// `cargo` as the one that runs xtask, in the checkout.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = cargo();
        cargo.current_dir(&self.root).args(arguments);
        cargo
    }
}

/// Reads `cargo metadata` of the workspace in `folder`, without its dependencies.
pub fn metadata(folder: &Path) -> Result<Metadata> {
    let text = command::output(
        cargo()
            .current_dir(folder)
            .args(["metadata", "--no-deps", "--format-version", "1"]),
    )?;
    serde_json::from_str(&text).with_context(|| format!("understand `cargo metadata` of {}", folder.display()))
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
