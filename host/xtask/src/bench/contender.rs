//! The programs that are measured, and the command lines that make each do the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, say};
use crate::machine::{self, need};
use crate::workspace::Workspace;

/// Pinned, so that figures of different days can be laid side by side.
const RUSTIC: &str = "0.11.4";
const MACHINE: &str = "bench";

/// A program that backs up `disk.img` in `folder/images` into `folder/vault`.
#[derive(Debug, Clone)]
pub enum Contender {
    /// With the provider that finds the disk.
    Coffre {
        binary: PathBuf,
        provider: &'static str,
    },
    Restic {
        binary: PathBuf,
    },
    Rustic {
        binary: PathBuf,
    },
}

impl Contender {
    /// Builds Coffre, in release mode.
    pub fn coffre(workspace: &Workspace, provider: &'static str) -> Result<Self> {
        say("Building", "coffre, in release mode");
        command::run(&mut workspace.cargo(&["build", "--release", "-p", "coffre"]))?;
        Ok(Self::Coffre {
            binary: workspace.target.join("release/coffre"),
            provider,
        })
    }

    pub fn restic() -> Result<Self> {
        machine::provide(&[need("restic", "restic")])?;
        Ok(Self::Restic {
            binary: command::find("restic").context("restic is not there")?,
        })
    }

    /// Takes several minutes the first time.
    pub fn rustic(workspace: &Workspace) -> Result<Self> {
        let root = workspace.made("tools").join("rustic");
        let binary = root.join("bin/rustic");
        if !binary.is_file() {
            say("Building", format!("rustic {RUSTIC} (some minutes, once)"));
            let mut install = workspace.cargo(&[
                "install",
                "--quiet",
                "--locked",
                "rustic-rs",
                "--version",
                RUSTIC,
                "--root",
            ]);
            command::run(install.arg(&root)).context("build rustic")?;
        }
        Ok(Self::Rustic { binary })
    }

    pub fn version(&self) -> Result<String> {
        let (binary, word) = match self {
            Self::Coffre { binary, .. } | Self::Rustic { binary } => (binary, "--version"),
            Self::Restic { binary } => (binary, "version"),
        };
        let text = command::output(Command::new(binary).arg(word))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// Makes the vault, not timed.
    pub fn init(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Coffre { provider, .. } => {
                let config = folder.join("coffre.toml");
                let text = format!(
                    "[coffre]\nstate = \"state\"\ncache = \"cache\"\nplugins = \"plugins.d\"\n\n\
                     [vault.main]\nurl = \"vault\"\nkey = {{ file = \"main.key\" }}\n\n\
                     [machine.{MACHINE}]\nprovider = \"{provider}\"\nsettings = {{ images = {} }}\n",
                    toml::Value::String(
                        folder
                            .join("images")
                            .to_str()
                            .context("a path that is UTF-8")?
                            .to_owned()
                    )
                );
                fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
                fs::set_permissions(&config, fs::Permissions::from_mode(0o600))
                    .context("make the configuration private")?;
                command::output(
                    self.command(folder)
                        .args(["init", "main", "--recovery-key-file", "recovery-key.txt"]),
                )
            }
            Self::Restic { .. } | Self::Rustic { .. } => command::output(self.command(folder).arg("init")),
        }
        .map(drop)
    }

    pub fn backup(&self, folder: &Path) -> Command {
        let mut command = self.command(folder);
        match self {
            Self::Coffre { .. } => command.args(["backup", MACHINE]),
            Self::Restic { .. } | Self::Rustic { .. } => command.args(["backup", "images/disk.img"]),
        };
        command
    }

    /// Restores the newest point; returns where the disk will lie.
    pub fn restore(&self, folder: &Path, to: &Path) -> (Command, PathBuf) {
        let mut command = self.command(folder);
        match self {
            Self::Coffre { .. } => {
                command.args(["restore", MACHINE, "--to"]).arg(to);
                (command, to.join("disk.img"))
            }
            Self::Restic { .. } => {
                command.args(["restore", "latest", "--target"]).arg(to);
                (command, to.join("images/disk.img"))
            }
            Self::Rustic { .. } => {
                command.args(["restore", "latest"]).arg(to);
                (command, to.join("images/disk.img"))
            }
        }
    }

    /// With all that it keeps below `folder`.
    fn command(&self, folder: &Path) -> Command {
        let (Self::Coffre { binary, .. } | Self::Restic { binary } | Self::Rustic { binary }) = self;
        let mut command = Command::new(binary);
        command.current_dir(folder);
        match self {
            Self::Coffre { .. } => command.arg("--config").arg(folder.join("coffre.toml")),
            Self::Restic { .. } => command
                .env("RESTIC_REPOSITORY", folder.join("vault"))
                .env("RESTIC_PASSWORD", "bench")
                .env("RESTIC_CACHE_DIR", folder.join("cache")),
            Self::Rustic { .. } => command
                .env("RUSTIC_REPOSITORY", folder.join("vault"))
                .env("RUSTIC_PASSWORD", "bench")
                .env("RUSTIC_CACHE_DIR", folder.join("cache")),
        };
        command
    }
}
