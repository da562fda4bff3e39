//! `cargo xtask quickstart`: the whole way of a backup on two sample disks, without root, in target/quickstart.

mod disks;

pub use disks::same_bytes;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{self, say};
use crate::machine::{self, need};
use crate::plugins;
use crate::workspace::Workspace;

const MACHINE: &str = "shop";
/// Hooks that ship, as the configuration names them.
const SCRIPTS: [&str; 2] = ["sync.rhai", "quickstart.rhai"];

/// What one backup says it did, summed over the disks.
#[derive(Debug)]
struct Point {
    number: u64,
    consistency: String,
    hooks: Vec<String>,
    size_bytes: u64,
    stored_bytes: u64,
}

pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if let Some(unknown) = arguments.first() {
        bail!("`quickstart` does not know {unknown}");
    }
    machine::provide(&[need("mke2fs", "e2fsprogs"), need("debugfs", "e2fsprogs")])?;
    plugins::build(workspace, plugins::Way::Auto)?;
    say("Building", "coffre, in release mode (some minutes the first time)");
    command::run(&mut workspace.cargo(&["build", "--release", "-p", "coffre"])).context("build coffre")?;

    let place = Place::make(workspace)?;
    say("Making", format!("two sample disks in {}", place.images().display()));
    disks::make(&workspace.root, &place.images(), &place.folder.join("content"))?;
    place.write_config(workspace)?;

    place.coffre(&["init", "main", "--recovery-key-file", &place.text("recovery-key.txt")?])?;
    let first = place.backup()?;

    say("Changing", "a few files on both disks, as a day of work would");
    keep_copies(&place.images(), &place.folder.join("day1"))?;
    disks::change(&place.images(), &place.folder.join("content"))?;
    let differ_bytes = disks::difference_bytes(&place.folder.join("day1"), &place.images())?;
    let second = place.backup()?;

    if second.stored_bytes > first.stored_bytes / 10 {
        bail!(
            "the second backup stored {}, the first {}: more than the change travelled",
            mib(second.stored_bytes),
            mib(first.stored_bytes)
        );
    }
    for (point, original) in [(&first, place.folder.join("day1")), (&second, place.images())] {
        let to = place.folder.join(format!("restored-{}", point.number));
        let target = format!("{MACHINE}@{}", point.number);
        place.coffre(&[
            "restore",
            &target,
            "--to",
            to.to_str().context("the checkout's path is not UTF-8")?,
        ])?;
        disks::compare(&original, &to)?;
        say(
            "Compared",
            format!("point {}: every byte of both disks is as it was", point.number),
        );
    }
    place.coffre(&["verify", "main", "--read-data"])?;
    place.summary(&first, &second, differ_bytes);
    Ok(())
}

/// target/quickstart, and the program that works in it.
struct Place {
    folder: PathBuf,
    binary: PathBuf,
}

impl Place {
    /// A new one: what an earlier quickstart left goes.
    fn make(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.made("quickstart");
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("remove what an earlier run left in {}", folder.display()))?;
        }
        // Key and recovery key lie here, so nobody else gets in.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make {}", folder.display()))?;
        fs::create_dir(folder.join("images")).context("make the images' folder")?;
        Ok(Self {
            folder,
            binary: workspace.target.join("release/coffre"),
        })
    }

    fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("coffre.toml")
    }

    fn text(&self, name: &str) -> Result<String> {
        self.folder
            .join(name)
            .to_str()
            .map(str::to_owned)
            .context("the checkout's path is not UTF-8")
    }

    fn write_config(&self, workspace: &Workspace) -> Result<()> {
        // The scripts' folder has to be one that only its owner can write, so they are copied.
        let scripts = self.folder.join("scripts");
        fs::create_dir(&scripts).context("make the scripts' folder")?;
        for name in SCRIPTS {
            let script = scripts.join(name);
            fs::copy(workspace.root.join("scripts").join(name), &script).with_context(|| format!("copy {name}"))?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o600)).context("make the script private")?;
        }
        let text = format!(
            include_str!("coffre.toml"),
            machine = MACHINE,
            images = toml::Value::String(self.text("images")?),
        );
        let config = self.config();
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).context("make the configuration private")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    /// Runs coffre as a person would.
    fn coffre(&self, arguments: &[&str]) -> Result<()> {
        say("Running", format!("coffre {}", arguments.join(" ")));
        command::run(&mut self.command(arguments))
    }

    /// Backs up, then asks for the point that came of it.
    fn backup(&self) -> Result<Point> {
        self.coffre(&["backup", MACHINE])?;
        let mut list = self.command(&["points", MACHINE, "--json"]);
        let output = list
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start {}", command::line(&list)))?;
        if !output.status.success() {
            bail!("{} failed ({})", command::line(&list), output.status);
        }
        let document: Value = serde_json::from_slice(&output.stdout).context("understand `coffre points --json`")?;
        let points = document
            .pointer("/points")
            .and_then(Value::as_array)
            .context("`coffre points --json` lists points")?;
        let newest = points
            .iter()
            .max_by_key(|point| point["point"].as_u64())
            .context("the backup made no point")?;
        let number = |key: &str| newest[key].as_u64().with_context(|| format!("the point says no {key}"));
        Ok(Point {
            number: number("point")?,
            consistency: newest["consistency"].as_str().unwrap_or("unknown").to_owned(),
            hooks: newest["hooks"]
                .as_array()
                .into_iter()
                .flatten()
                .map(told_hook)
                .collect(),
            size_bytes: number("size_bytes")?,
            stored_bytes: number("stored_bytes")?,
        })
    }

    fn summary(&self, first: &Point, second: &Point, differ_bytes: u64) {
        let hooks = if second.hooks.is_empty() {
            "none".to_owned()
        } else {
            second.hooks.join(", ")
        };
        println!();
        println!("What was done, all below {}:", self.folder.display());
        println!("  two disks with ext4 in them, {} together", mib(first.size_bytes));
        println!(
            "  point {}: {} stored, {}-consistent",
            first.number,
            mib(first.stored_bytes),
            first.consistency
        );
        println!("  then {} of the disks changed", mib(differ_bytes));
        println!(
            "  point {}: {} stored, {}-consistent",
            second.number,
            mib(second.stored_bytes),
            second.consistency
        );
        println!("  hooks: {hooks}");
        println!("  both points restored and compared byte for byte, every chunk in the vault read and verified");
        println!();
        println!("To go on:");
        println!("  export COFFRE_CONFIG={}", self.config().display());
        println!(
            "  export PATH=\"{}:$PATH\"",
            self.binary.parent().unwrap_or(Path::new(".")).display()
        );
        println!("  coffre points                          # what can be restored");
        println!("  coffre jobs                            # what the jobs did, hooks and all");
        println!("  coffre plugin inspect image            # what the provider asks for, and what it was granted");
        println!("  coffre backup {MACHINE}                     # again: nothing changed, so nothing travels");
        println!(
            "  coffre restore {MACHINE}@{} --disk system --to /tmp/system.img",
            first.number
        );
        println!("  coffre config example                  # a configuration of your own");
    }
}

fn told_hook(hook: &Value) -> String {
    let step = |name: &str| match hook[name]["ok"].as_bool() {
        Some(true) => format!(
            "{name} in {} ms",
            hook[name]["duration_ms"].as_u64().unwrap_or_default()
        ),
        Some(false) => format!("{name} failed"),
        None => format!("no {name}"),
    };
    format!(
        "{} ({}, {})",
        hook["name"].as_str().unwrap_or("?"),
        step("pre"),
        step("post")
    )
}

/// Keeps the images of the first day, to compare what is restored with.
fn keep_copies(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("make {}", to.display()))?;
    for name in disks::NAMES {
        let (from, to) = (from.join(name), to.join(name));
        command::run(
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(from)
                .arg(to),
        )?;
    }
    Ok(())
}

/// Bytes as a person reads them.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
