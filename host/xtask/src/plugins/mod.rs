//! `cargo xtask plugins`: every cdylib crate below plugins/ becomes one component with its manifest inside.
//!
//! Plugins that ship go to target/plugins/NAME.wasm; those that only tests load (`[package.metadata.coffre] test =
//! true` in their Cargo.toml) go to target/plugins-test/. Beside them lies `digests.json`: name → sha256. Paths of this
//! machine are mapped away, so the same source and compiler give the same digest in every checkout.

mod component;
mod debian;
mod library;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, say};
use crate::workspace::{self, Metadata, Package, Workspace};
use library::Library;
pub use library::Way;

pub const TARGET: &str = "wasm32-unknown-unknown";

/// Where the components of a build lie.
#[derive(Debug, Clone)]
pub struct Built {
    pub shipped: PathBuf,
    pub for_tests: PathBuf,
}

pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut way = Way::Auto;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--release" => {}
            "--library" => way = rest.next().context("--library wants a WAY")?.parse()?,
            other => bail!("`plugins` does not know {other}"),
        }
    }
    build(workspace, way).map(drop)
}

/// Builds all plugins; they are then where [`Built`] says.
pub fn build(workspace: &Workspace, way: Way) -> Result<Built> {
    let folder = workspace.root.join("plugins");
    if !folder.join("Cargo.toml").is_file() {
        bail!(
            "{} has no Cargo.toml, so there are no plugins to build",
            folder.display()
        );
    }
    let metadata = workspace::metadata(&folder)?;
    let plugins: Vec<&Package> = metadata
        .packages
        .iter()
        .filter(|package| cdylib(package).is_some())
        .collect();

    let library = library::get(workspace, way)?;
    say("Plugins", format!("{} for {TARGET}, with {library}", plugins.len()));
    compile(workspace, &folder, &metadata, &library)?;

    let built = Built {
        shipped: workspace.made("plugins"),
        for_tests: workspace.made("plugins-test"),
    };
    let (tests, shipped): (Vec<&Package>, Vec<&Package>) =
        plugins.into_iter().partition(|package| is_for_tests(package));
    finish(&metadata, &shipped, &built.shipped)?;
    finish(&metadata, &tests, &built.for_tests)?;
    Ok(built)
}

fn compile(workspace: &Workspace, folder: &Path, metadata: &Metadata, library: &Library) -> Result<()> {
    let mut cargo = workspace.cargo(&["build", "--release", "--target", TARGET]);
    cargo.current_dir(folder);
    if folder.join("Cargo.lock").is_file() {
        cargo.arg("--locked");
    }
    // What somebody set for the host does not fit WebAssembly, and would change the digests.
    for name in [
        "RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTC_WRAPPER",
    ] {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_TARGET_DIR", &metadata.target_directory);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", path_flags(workspace, library)?.join("\x1f"));
    library.apply(&mut cargo);
    command::run(&mut cargo).context("build the plugins")
}

/// Maps the paths of this machine, which panic messages carry, to the same names everywhere.
fn path_flags(workspace: &Workspace, library: &Library) -> Result<Vec<String>> {
    let home = |variable: &str, folder: &str| -> Option<PathBuf> {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(folder)))
    };
    let sysroot = PathBuf::from(command::output(Command::new(library.rustc()).args(["--print", "sysroot"]))?.trim());
    let mapped = [
        (Some(workspace.root.clone()), "/coffre"),
        (home("CARGO_HOME", ".cargo"), "/cargo"),
        (Some(sysroot.join("lib/rustlib/src/rust")), "/rust"),
        (library.source(), "/rust"),
    ];
    let mapped = mapped.into_iter().filter_map(|(from, to)| Some((from?, to)));
    Ok(mapped
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect())
}

/// Turns what cargo built into components in `out`, and takes away what no crate stands for any more.
fn finish(metadata: &Metadata, plugins: &[&Package], out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let mut digests = BTreeMap::new();
    for package in plugins {
        let folder = package
            .manifest_path
            .parent()
            .context("a Cargo.toml lies in a folder")?;
        let name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .context("a plugin's folder has a name")?;
        let core = metadata
            .target_directory
            .join(TARGET)
            .join("release")
            .join(core_file(package));
        let made = component::make(name, &core, &folder.join("manifest.toml"))
            .with_context(|| format!("make a component of the plugin {name}"))?;
        let file = out.join(name).with_extension("wasm");
        let changed = command::write_if_changed(&file, &made.bytes)?;
        let digest = component::sha256(&made.bytes);
        let state = if changed { "built" } else { "as before" };
        say(
            "Component",
            format!(
                "{name} {}: {} KiB, {state}, {}",
                made.version,
                made.bytes.len().div_ceil(1024),
                made.world
            ),
        );
        digests.insert(name.to_owned(), digest);
    }
    for entry in std::fs::read_dir(out).with_context(|| format!("list {}", out.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "wasm") && !digests.contains_key(stem) {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let mut text = serde_json::to_string_pretty(&digests)?;
    text.push('\n');
    command::write_if_changed(&out.join("digests.json"), text.as_bytes()).map(drop)
}

fn cdylib(package: &Package) -> Option<&str> {
    let target = package
        .targets
        .iter()
        .find(|target| target.kind.iter().any(|kind| kind == "cdylib"))?;
    Some(&target.name)
}

fn core_file(package: &Package) -> String {
    format!("{}.wasm", cdylib(package).unwrap_or(&package.name).replace('-', "_"))
}

fn is_for_tests(package: &Package) -> bool {
    package
        .metadata
        .pointer("/coffre/test")
        .and_then(serde_json::Value::as_bool)
        .unwrap_or(false)
}
