//! `cargo xtask bench`: Coffre beside restic and rustic on one disk, cold cache each, and what the machine allows.
//!
//! The disk is filled from this machine's own /usr, so seconds of two machines do not compare; ratios of one run do.

mod contender;
mod fleet;
mod hold;
mod measure;
mod table;
mod vault;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::command::{self, say};
use crate::machine::{self, need};
use crate::plugins;
use crate::quickstart;
use crate::workspace::Workspace;
use contender::Contender;
use measure::Measured;

/// In the order in which they run.
const PARTS: [&str; 5] = ["limit", "restic", "rustic", "coffre", "reflink"];

/// What one program did.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub name: String,
    pub version: String,
    pub first: Measured,
    /// The same disk a day later.
    pub second: Measured,
    pub restore: Measured,
    pub stored_bytes: u64,
    pub second_stored_bytes: u64,
}

/// One run of the bare pipeline.
#[derive(Debug, Clone, Serialize)]
pub struct Limit {
    pub what: String,
    pub measured: Measured,
    pub stored_bytes: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Results {
    pub machine: String,
    pub disk_bytes: u64,
    pub limits: Vec<Limit>,
    pub outcomes: Vec<Outcome>,
}

pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut parts = Vec::new();
    let mut folder = workspace.made("bench");
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--folder" => folder = PathBuf::from(rest.next().context("--folder wants a folder")?),
            part if PARTS.contains(&part)
                || vault::PARTS.contains(&part)
                || part == hold::PART
                || part == fleet::PART =>
            {
                parts.push(part)
            }
            other => bail!(
                "`bench` does not know {other}; its parts are {}, {}, {}, {}",
                PARTS.join(", "),
                vault::PARTS.join(", "),
                hold::PART,
                fleet::PART
            ),
        }
    }
    let fleet = parts.contains(&fleet::PART);
    if fleet {
        parts.retain(|part| *part != fleet::PART);
        fleet::run(workspace, &folder.join(fleet::PART))?;
    }
    let hold = parts.contains(&hold::PART);
    if hold {
        parts.retain(|part| *part != hold::PART);
        hold::run(workspace)?;
    }
    let (of_vault, parts): (Vec<&str>, Vec<&str>) = parts.into_iter().partition(|part| vault::PARTS.contains(part));
    for part in &of_vault {
        vault::run(workspace, part, &folder.join(part))?;
    }
    if parts.is_empty() && (hold || fleet || !of_vault.is_empty()) {
        return Ok(());
    }
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    if !machine::is_root() {
        bail!(
            "the benchmark mounts its disk and empties the page cache, which needs root\nhint: sudo cargo xtask bench"
        );
    }
    provide()?;
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // Everything is built before the first clock starts.
    let mut contenders = Vec::new();
    if wanted("restic") {
        contenders.push(("restic", Contender::restic()?));
    }
    if wanted("rustic") {
        contenders.push(("rustic", Contender::rustic(workspace)?));
    }
    if wanted("coffre") || wanted("reflink") {
        plugins::build(workspace, plugins::Way::Auto)?;
    }
    if wanted("coffre") {
        contenders.push(("coffre", Contender::coffre(workspace, "image")?));
    }
    let reflink = if wanted("reflink") {
        Some(Contender::coffre(workspace, "reflink")?)
    } else {
        None
    };
    let limit = if wanted("limit") {
        Some(build_limit(workspace)?)
    } else {
        None
    };
    let disk = Disk::get(workspace, &folder)?;

    let mut results = Results {
        machine: about_machine(),
        disk_bytes: used_bytes(&disk.day0)?,
        ..Results::default()
    };
    if let Some(binary) = limit {
        results.limits = limits(&binary, &disk, &folder)?;
    }
    for (name, contender) in contenders {
        results.outcomes.push(scan(name, &contender, &disk, &folder)?);
    }
    if let Some(contender) = reflink {
        results.outcomes.push(tracked(&contender, &disk, &folder)?);
    }
    let file = folder.join("results.json");
    command::write_if_changed(&file, &serde_json::to_vec_pretty(&results)?)?;
    println!("\n{}", table::render(&results));
    say("Results", format!("{} has them as JSON", file.display()));
    Ok(())
}

fn provide() -> Result<()> {
    machine::provide(&[
        need("mkfs.ext4", "e2fsprogs"),
        need("mkfs.xfs", "xfsprogs"),
        need("openssl", "openssl"),
        need("python3", "python3"),
        need("mount", "mount"),
        need("losetup", "mount"),
    ])
}

/// The disk and the same disk a day later.
struct Disk {
    day0: PathBuf,
    day1: PathBuf,
    age: PathBuf,
}

impl Disk {
    /// Made once; delete its folder to have a new one.
    fn get(workspace: &Workspace, folder: &Path) -> Result<Self> {
        let scripts = workspace.root.join("host/xtask/bench");
        let disks = folder.join("disk");
        let disk = Self {
            day0: disks.join("day0.img"),
            day1: disks.join("day1.img"),
            age: scripts.join("age-disk.sh"),
        };
        if !disk.day0.is_file() || !disk.day1.is_file() {
            say(
                "Making",
                format!("the benchmark's disk in {} (about a minute)", disks.display()),
            );
            command::run(Command::new(scripts.join("make-disk.sh")).arg(&disks))?;
        }
        Ok(disk)
    }
}

/// The image is read whole at each backup, as it is wherever nobody says what changed.
fn scan(name: &str, contender: &Contender, disk: &Disk, folder: &Path) -> Result<Outcome> {
    let work = Work::new(folder, name)?;
    let image = work.images.join("disk.img");
    copy(&disk.day0, &image)?;
    contender.init(&work.folder)?;
    say("Measuring", format!("{name}: first backup"));
    let first = measure::cold(&mut contender.backup(&work.folder))?;
    let stored_bytes = measure::stored_bytes(&work.vault)?;
    copy(&disk.day1, &image)?;
    say("Measuring", format!("{name}: second backup"));
    let second = measure::cold(&mut contender.backup(&work.folder))?;
    let second_stored_bytes = measure::stored_bytes(&work.vault)? - stored_bytes;
    let restore = restore(name, contender, &work, &image)?;
    Ok(Outcome {
        name: name.to_owned(),
        version: contender.version()?,
        first,
        second,
        restore,
        stored_bytes,
        second_stored_bytes,
    })
}

/// The image lies on XFS and ages in place, so the provider can say what changed.
fn tracked(contender: &Contender, disk: &Disk, folder: &Path) -> Result<Outcome> {
    let work = Work::new(folder, "reflink")?;
    let xfs = LoopMount::xfs(&work.folder.join("xfs.raw"), &work.images)?;
    let image = work.images.join("disk.img");
    copy(&disk.day0, &image)?;
    contender.init(&work.folder)?;
    say("Measuring", "coffre with reflink: first backup");
    let first = measure::cold(&mut contender.backup(&work.folder))?;
    let stored_bytes = measure::stored_bytes(&work.vault)?;
    command::run(Command::new(&disk.age).arg(&image))?;
    say("Measuring", "coffre with reflink: second backup");
    let second = measure::cold(&mut contender.backup(&work.folder))?;
    let second_stored_bytes = measure::stored_bytes(&work.vault)? - stored_bytes;
    let restore = restore("coffre with reflink", contender, &work, &image)?;
    xfs.unmount()?;
    Ok(Outcome {
        name: "coffre, reflink".to_owned(),
        version: contender.version()?,
        first,
        second,
        restore,
        stored_bytes,
        second_stored_bytes,
    })
}

/// Restores the newest point and compares it with the image as it is now. A wrong byte ends the benchmark.
fn restore(name: &str, contender: &Contender, work: &Work, image: &Path) -> Result<Measured> {
    say("Measuring", format!("{name}: restore"));
    let to = work.folder.join("restored");
    let (mut command, restored) = contender.restore(&work.folder, &to);
    let measured = measure::cold(&mut command)?;
    quickstart::same_bytes(image, &restored).with_context(|| format!("{name} did not restore what it backed up"))?;
    fs::remove_dir_all(&to).with_context(|| format!("remove {}", to.display()))?;
    Ok(measured)
}

fn build_limit(workspace: &Workspace) -> Result<PathBuf> {
    say("Building", "the bare pipeline");
    command::run(&mut workspace.cargo(&["build", "--release", "-p", "coffre-vault", "--example", "limit"]))?;
    Ok(workspace.target.join("release/examples/limit"))
}

fn limits(binary: &Path, disk: &Disk, folder: &Path) -> Result<Vec<Limit>> {
    let mut limits = Vec::new();
    for (what, mode) in [
        ("read, keyed BLAKE3", "hash"),
        ("the same, zstd -1, AES-256-GCM, packs", "full"),
    ] {
        let work = Work::new(folder, "limit")?;
        say("Measuring", format!("the machine's limit: {what}"));
        fs::create_dir(&work.vault).with_context(|| format!("make {}", work.vault.display()))?;
        let measured = measure::cold(Command::new(binary).arg(&disk.day0).arg(&work.vault).arg(mode))?;
        let stored_bytes = measure::stored_bytes(&work.vault)?;
        limits.push(Limit {
            what: what.to_owned(),
            measured,
            stored_bytes,
        });
    }
    Ok(limits)
}

/// A folder that one contender works in; it goes when the contender is through.
struct Work {
    folder: PathBuf,
    images: PathBuf,
    vault: PathBuf,
}

impl Work {
    fn new(parent: &Path, name: &str) -> Result<Self> {
        let folder = parent.join("work").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        let folder = {
            fs::create_dir_all(folder.join("images")).with_context(|| format!("make {}", folder.display()))?;
            folder
                .canonicalize()
                .with_context(|| format!("find {}", folder.display()))?
        };
        Ok(Self {
            images: folder.join("images"),
            vault: folder.join("vault"),
            folder,
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Best effort: the next run begins by removing it, and then says what is wrong.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A file system in a file, mounted; unmounted when dropped.
struct LoopMount {
    at: PathBuf,
    mounted: bool,
}

impl LoopMount {
    fn xfs(file: &Path, at: &Path) -> Result<Self> {
        let raw = fs::File::create(file).with_context(|| format!("make {}", file.display()))?;
        raw.set_len(20 << 30)
            .with_context(|| format!("size {}", file.display()))?;
        let mkfs = command::find("mkfs.xfs").context("mkfs.xfs is not there")?;
        command::run(Command::new(mkfs).args(["-q", "-m", "reflink=1"]).arg(file))?;
        command::run(Command::new("mount").args(["-o", "loop"]).arg(file).arg(at))?;
        Ok(Self {
            at: at.to_owned(),
            mounted: true,
        })
    }

    fn unmount(mut self) -> Result<()> {
        self.mounted = false;
        command::run(Command::new("umount").arg(&self.at))
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg(&self.at).status();
        }
    }
}

/// Into the same file, so that its path and its place in every tool's records stay.
fn copy(from: &Path, to: &Path) -> Result<()> {
    command::run(
        Command::new("cp")
            .args(["--sparse=always", "--reflink=never"])
            .arg(from)
            .arg(to),
    )
}

fn used_bytes(image: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let about = fs::metadata(image).with_context(|| format!("look at {}", image.display()))?;
    // st_blocks counts 512 bytes whatever the file system's block (stat(2)).
    Ok(about.blocks() * 512)
}

fn about_machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    format!("{cores} cores, {}", model.unwrap_or("an unnamed processor"))
}
