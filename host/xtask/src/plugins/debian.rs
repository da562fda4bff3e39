//! Debian's newer compiler with its library source, unpacked beside everything and installed over nothing.
//!
//! The packages `rustc-web` (the compiler that Debian keeps new for its browsers) and `rust-web-src` belong together;
//! rustup's compiler cannot build that library. Lists and packages go to a folder of our own, so no root is needed and
//! apt's state stays as it is. Versions are asked for, never known beforehand.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::{self, say};

const COMPILER: &str = "rustc-web";
const SOURCE: &str = "rust-web-src";

/// What the packages of the compiler's shared and static libraries begin with; they have its version.
const LIBRARY: &str = "libstd-rust-web";

/// The compiler needs more shared libraries; those that the machine lacks are unpacked beside it. These are there
/// wherever cargo runs, and a second libc would not fit the first.
const ALWAYS_THERE: [&str; 4] = ["libc6", "libgcc-s1", "libcrypt1", "libstdc++6"];

/// Written last, so a folder that has it is complete.
const KEPT: &str = "toolchain.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Toolchain {
    pub version: String,
    /// A small script that starts the compiler with its own libraries.
    pub rustc: PathBuf,
    pub linker: PathBuf,
    pub source: PathBuf,
}

impl Toolchain {
    /// The one that an earlier run left, if it still runs.
    pub fn kept(folder: &Path) -> Option<Self> {
        let kept: Self = serde_json::from_slice(&fs::read(folder.join(KEPT)).ok()?).ok()?;
        let runs = command::output(Command::new(&kept.rustc).arg("--version")).is_ok();
        (runs && kept.linker.is_file() && kept.source.is_dir()).then_some(kept)
    }
}

/// Downloads and unpacks the newest version there is into `folder`.
pub fn fetch(folder: &Path, linker: &Path) -> Result<Toolchain> {
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        command::find(program).with_context(|| format!("{program} is not there, so this is no Debian"))?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("clear {}", folder.display()))?;
    }
    let packages = folder.join("packages");
    fs::create_dir_all(&packages).with_context(|| format!("make {}", packages.display()))?;

    let apt = Apt::with_lists_in(folder)?;
    let version = apt.newest(COMPILER)?;
    let wanted = apt.wanted(&version)?;
    say(
        "Library",
        format!(
            "Debian's {COMPILER} {version}: downloading {} packages, about 140 MB",
            wanted.len()
        ),
    );
    apt.download(&wanted, &packages)?;

    say("Library", "unpacking them");
    let root = folder.join("root");
    for file in list(&packages)? {
        command::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))?;
    }
    fs::remove_dir_all(&packages).with_context(|| format!("remove {}", packages.display()))?;

    let source = find_source(&root)?;
    let expected = root.join("usr/lib/rustlib/src");
    fs::create_dir_all(&expected).with_context(|| format!("make {}", expected.display()))?;
    let link = expected.join("rust");
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
    }
    symlink(&source, &link).with_context(|| format!("link {}", link.display()))?;

    let rustc = write_starter(folder, &root)?;
    let toolchain = Toolchain {
        version,
        rustc,
        linker: linker.to_owned(),
        source,
    };
    command::output(Command::new(&toolchain.rustc).arg("--version")).context("start Debian's compiler")?;
    command::write_if_changed(&folder.join(KEPT), &serde_json::to_vec_pretty(&toolchain)?)?;
    Ok(toolchain)
}

/// apt with lists and a cache of its own where that works, else with the machine's.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn with_lists_in(folder: &Path) -> Result<Self> {
        let (lists, cache) = (folder.join("apt/lists"), folder.join("apt/cache"));
        for needed in [lists.join("partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&needed).with_context(|| format!("make {}", needed.display()))?;
        }
        let own = Self {
            options: vec![
                format!("Dir::State::Lists={}", lists.display()),
                format!("Dir::Cache={}", cache.display()),
                // As root apt would change to a user that may not reach this folder.
                "APT::Sandbox::User=".into(),
            ],
        };
        say("Library", "asking Debian's servers for newer packages");
        let updated = own
            .command("apt-get")
            .args(["-q", "update"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if updated.is_ok_and(|status| status.success()) || own.newest(COMPILER).is_ok() {
            return Ok(own);
        }
        let machine = Self { options: Vec::new() };
        machine.newest(COMPILER).with_context(|| {
            "apt-get update fails here, and the machine's own lists are empty\nhint: run `apt-get update` as root once"
        })?;
        Ok(machine)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// The newest version, whatever the pinning: `madison` lists them from the newest down.
    fn newest(&self, package: &str) -> Result<String> {
        let text = command::output(self.command("apt-cache").args(["madison", package]))?;
        let version = text
            .lines()
            .next()
            .and_then(|line| line.split('|').nth(1))
            .map(str::trim);
        version
            .map(str::to_owned)
            .with_context(|| format!("Debian's lists have no package {package}"))
    }

    /// Everything to unpack, as `name=version` or `name`: the compiler, its library source, and the shared libraries
    /// that this machine lacks.
    fn wanted(&self, version: &str) -> Result<Vec<String>> {
        let compiler = format!("{COMPILER}={version}");
        let needed = self.needed(&compiler, false)?;
        let library = needed.iter().find(|name| name.starts_with(LIBRARY));
        let library = format!(
            "{}={version}",
            library.with_context(|| format!("{compiler} needs no {LIBRARY}"))?
        );
        let mut wanted = vec![compiler, format!("{SOURCE}={version}")];
        for name in self.needed(&library, true)? {
            if name.starts_with(LIBRARY) {
                wanted.push(format!("{name}={version}"));
            } else if !ALWAYS_THERE.contains(&name.as_str()) && !self.is_installed(&name) {
                wanted.push(name);
            }
        }
        Ok(wanted)
    }

    /// The packages that one needs, itself among them when `recurse` is said.
    fn needed(&self, package: &str, recurse: bool) -> Result<BTreeSet<String>> {
        let mut ask = self.command("apt-cache");
        ask.arg("depends");
        if recurse {
            ask.arg("--recurse");
        }
        for left_out in ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"] {
            ask.arg(format!("--no-{left_out}"));
        }
        let text = command::output(ask.arg(package))?;
        let names = text.lines().filter_map(|line| match line.split_once("Depends: ") {
            Some((_, name)) => Some(name.trim()),
            None => (recurse && !line.starts_with(' ')).then(|| line.trim()),
        });
        // Virtual packages stand in angle brackets.
        Ok(names.filter(|name| !name.starts_with('<')).map(str::to_owned).collect())
    }

    fn is_installed(&self, package: &str) -> bool {
        let state = command::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}\n", package]));
        state.is_ok_and(|text| text.lines().any(|line| line == "installed"))
    }

    fn download(&self, packages: &[String], into: &Path) -> Result<()> {
        let mut get = self.command("apt-get");
        command::output(get.current_dir(into).args(["-q", "download"]).args(packages))?;
        if list(into)?.len() < packages.len() {
            bail!("{} left packages out", command::line(&get));
        }
        Ok(())
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(|| format!("list {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// `usr/src/rustc-VERSION`, whatever the version.
fn find_source(root: &Path) -> Result<PathBuf> {
    let candidates = list(&root.join("usr/src"))?;
    let source = candidates
        .into_iter()
        .find(|path| path.join("library/std/Cargo.toml").is_file());
    source.with_context(|| format!("{SOURCE} holds no library source where it used to"))
}

/// The folders below `usr/lib` that hold shared libraries, then a script that starts the compiler with them.
fn write_starter(folder: &Path, root: &Path) -> Result<PathBuf> {
    let lib = root.join("usr/lib");
    let mut folders = vec![lib.clone()];
    folders.extend(
        list(&lib)?
            .into_iter()
            .filter(|path| path.is_dir() && has_shared_library(path)),
    );
    let also = root.join("lib");
    if also.is_dir() {
        folders.extend(
            list(&also)?
                .into_iter()
                .filter(|path| path.is_dir() && has_shared_library(path)),
        );
    }
    let folders: Vec<_> = folders.iter().map(|path| path.display().to_string()).collect();
    let compiler = root.join("usr/bin/rustc");
    let text = format!(
        "#!/bin/sh\n# Starts Debian's compiler with the libraries that came with it.\n\
         LD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        folders.join(":"),
        compiler.display()
    );
    let starter = folder.join("rustc");
    fs::write(&starter, text).with_context(|| format!("write {}", starter.display()))?;
    fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", starter.display()))?;
    Ok(starter)
}

fn has_shared_library(folder: &Path) -> bool {
    list(folder).is_ok_and(|paths| paths.iter().any(|path| path.to_string_lossy().contains(".so")))
}
