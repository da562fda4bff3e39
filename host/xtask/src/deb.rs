//! `cargo xtask deb`: a package for Debian and its kin, built by dpkg-deb out of what cargo has built.
//!
//! ```text
//! /usr/bin/coffre, coffre-guard          the two programs, side by side as they look for each other
//! /usr/share/coffre/plugins/*.wasm       the plugins whose digests the program knows
//! /usr/share/coffre/scripts/*.rhai       hooks to copy or to name by their path
//! /usr/lib/systemd/system/…              every unit in examples/systemd; none is enabled
//! /usr/share/{bash-completion,zsh,fish}  completions, and /usr/share/man/man1 the pages, both by the program itself
//! /usr/share/doc/coffre                  README, changelog, docs and examples
//! /etc/coffre                            empty, for root alone: keys lie there
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, say};
use crate::machine::{self, need};
use crate::plugins;
use crate::workspace::Workspace;

const MAINTAINER: &str = "Coffre maintainers <maintainers@coffre.invalid>";
/// What a package says of itself beside what is measured.
const DESCRIPTION: &str = "\
application-consistent, incremental backups of virtual machines and disks
 Coffre backs up the disks of machines into a vault on S3, Azure Blob or in a
 folder: one snapshot of all disks, hooks that bring applications to rest, and
 only what changed travels. Every recovery point restores by itself.";
const POSTINST: &str = include_str!("deb/postinst");
const PRERM: &str = include_str!("deb/prerm");
const POSTRM: &str = include_str!("deb/postrm");

/// `deb [--debug] [--folder DIR]`.
pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut profile = "release";
    let mut folder = workspace.made("deb");
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            // What the tests build anyway.
            "--debug" => profile = "debug",
            "--folder" => folder = rest.next().context("--folder wants a folder")?.into(),
            other => bail!("`deb` does not know {other}; it takes --debug and --folder DIR"),
        }
    }
    machine::provide(&[
        need("dpkg-deb", "dpkg"),
        need("objdump", "binutils"),
        need("strip", "binutils"),
    ])?;
    if profile == "release" {
        plugins::build(workspace, plugins::Way::Auto)?;
        say("Building", "coffre, in release mode");
        command::run(&mut workspace.cargo(&["build", "--release", "-p", "coffre"])).context("build coffre")?;
    }
    // Tests want it soon, users want it small.
    let packing = if profile == "release" { "-Zxz" } else { "-Zgzip" };
    let package = build(workspace, &workspace.target.join(profile), &folder, packing)?;
    say("Package", package.display().to_string());
    Ok(())
}

fn build(workspace: &Workspace, programs: &Path, folder: &Path, packing: &str) -> Result<PathBuf> {
    let tree = folder.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("empty {}", tree.display()))?;
    }
    let tree = Tree { root: tree };
    for program in ["coffre", "coffre-guard"] {
        let to = tree.copy(&programs.join(program), &format!("usr/bin/{program}"), 0o755)?;
        command::output(Command::new("strip").arg(&to))?;
    }
    tree.copy_all(&workspace.made("plugins"), "wasm", "usr/share/coffre/plugins")?;
    tree.copy_all(&workspace.root.join("scripts"), "rhai", "usr/share/coffre/scripts")?;
    for kind in ["service", "socket"] {
        tree.copy_all(&workspace.root.join("examples/systemd"), kind, "usr/lib/systemd/system")?;
    }
    documents(workspace, &tree)?;
    made_by_the_program(&tree)?;
    tree.folder("etc/coffre", 0o700)?;
    let version = version(workspace)?;
    control(&tree, &version)?;
    let package = folder.join(format!("coffre_{version}_{}.deb", architecture()?));
    // Owned by root whoever builds it.
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", packing, "--build"])
        .arg(&tree.root)
        .arg(&package);
    command::output(&mut pack)?;
    Ok(package)
}

fn documents(workspace: &Workspace, tree: &Tree) -> Result<()> {
    const DOC: &str = "usr/share/doc/coffre";
    for name in ["README.md", "CHANGELOG.md"] {
        tree.copy(&workspace.root.join(name), &format!("{DOC}/{name}"), 0o644)?;
    }
    tree.copy(&workspace.root.join("LICENSE"), &format!("{DOC}/copyright"), 0o644)?;
    tree.copy_all(&workspace.root.join("docs"), "md", DOC)?;
    tree.copy_all(&workspace.root.join("examples"), "toml", &format!("{DOC}/examples"))?;
    let example = workspace.root.join("host/engine/src/config/example.toml");
    tree.copy(&example, &format!("{DOC}/examples/coffre.toml"), 0o644)?;
    Ok(())
}

/// Completions and manual pages, by the very program that is in the package.
fn made_by_the_program(tree: &Tree) -> Result<()> {
    let program = tree.root.join("usr/bin/coffre");
    let shells = [
        ("bash", "usr/share/bash-completion/completions/coffre"),
        ("zsh", "usr/share/zsh/vendor-completions/_coffre"),
        ("fish", "usr/share/fish/vendor_completions.d/coffre.fish"),
    ];
    for (shell, path) in shells {
        let script = command::output(Command::new(&program).args(["completions", shell]))?;
        tree.write(path, &script, 0o644)?;
    }
    let pages = tree.folder("usr/share/man/man1", 0o755)?;
    command::output(Command::new(&program).arg("man").arg(&pages))?;
    for page in fs::read_dir(&pages).with_context(|| format!("list {}", pages.display()))? {
        let page = page?.path();
        command::output(Command::new("gzip").args(["-9n"]).arg(&page))?;
    }
    Ok(())
}

fn control(tree: &Tree, version: &str) -> Result<()> {
    let programs = ["usr/bin/coffre", "usr/bin/coffre-guard"].map(|path| tree.root.join(path));
    let text = format!(
        "Package: coffre\nVersion: {version}\nSection: admin\nPriority: optional\nArchitecture: {}\n\
         Maintainer: {MAINTAINER}\nDepends: libc6 (>= {}), libgcc-s1\nRecommends: ca-certificates\n\
         Installed-Size: {}\nDescription: {DESCRIPTION}\n",
        architecture()?,
        newest_glibc(&programs)?,
        tree.kibibytes()?,
    );
    tree.write("DEBIAN/control", &text, 0o644)?;
    for (name, script) in [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)] {
        tree.write(&format!("DEBIAN/{name}"), script, 0o755)?;
    }
    Ok(())
}

fn version(workspace: &Workspace) -> Result<String> {
    let text = fs::read_to_string(workspace.root.join("Cargo.toml")).context("read Cargo.toml")?;
    let line = text.lines().find_map(|line| line.strip_prefix("version = \""));
    let version = line.context("Cargo.toml has the version")?;
    Ok(version.trim_end_matches('"').to_owned())
}

fn architecture() -> Result<String> {
    let said = command::output(Command::new("dpkg").arg("--print-architecture"))?;
    Ok(said.trim().to_owned())
}

/// The newest version of the C library that the programs name a symbol of: what they need at least.
fn newest_glibc(programs: &[PathBuf]) -> Result<String> {
    let mut newest: Vec<u32> = Vec::new();
    for program in programs {
        let symbols = command::output(Command::new("objdump").arg("-T").arg(program))?;
        for rest in symbols.split("GLIBC_").skip(1) {
            let digits: String = rest
                .chars()
                .take_while(|at| at.is_ascii_digit() || *at == '.')
                .collect();
            let parts: Vec<u32> = digits.split('.').filter_map(|part| part.parse().ok()).collect();
            newest = newest.max(parts);
        }
    }
    if newest.is_empty() {
        bail!("the programs name no version of the C library");
    }
    let parts: Vec<String> = newest.iter().map(u32::to_string).collect();
    Ok(parts.join("."))
}

/// What will be the package.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn folder(&self, path: &str, mode: u32) -> Result<PathBuf> {
        let folder = self.root.join(path);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        // Whatever the umask of whoever builds.
        let mut above = self.root.clone();
        for part in Path::new(path).components() {
            above.push(part);
            mark(&above, 0o755)?;
        }
        mark(&self.root, 0o755)?;
        mark(&folder, mode)?;
        Ok(folder)
    }

    fn write(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        let file = self.place(path)?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        mark(&file, mode)
    }

    fn copy(&self, from: &Path, path: &str, mode: u32) -> Result<PathBuf> {
        let to = self.place(path)?;
        fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
        mark(&to, mode)?;
        Ok(to)
    }

    /// All files of one kind; none is a mistake.
    fn copy_all(&self, from: &Path, extension: &str, path: &str) -> Result<()> {
        let mut found = 0;
        for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
            let entry = entry?.path();
            if entry.extension().is_some_and(|found| found == extension) {
                let name = entry
                    .file_name()
                    .context("it has a name")?
                    .to_string_lossy()
                    .into_owned();
                self.copy(&entry, &format!("{path}/{name}"), 0o644)?;
                found += 1;
            }
        }
        if found == 0 {
            bail!(
                "{} has no .{extension}\nhint: cargo xtask plugins builds the plugins",
                from.display()
            );
        }
        Ok(())
    }

    fn place(&self, path: &str) -> Result<PathBuf> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder, 0o755)?;
        }
        Ok(self.root.join(path))
    }

    fn kibibytes(&self) -> Result<String> {
        let said = command::output(Command::new("du").args(["-sk", "--exclude=DEBIAN"]).arg(&self.root))?;
        Ok(said.split_whitespace().next().context("du says a number")?.to_owned())
    }
}

fn mark(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("mark {}", path.display()))
}
