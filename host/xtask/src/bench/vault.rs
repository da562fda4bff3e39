//! `cargo xtask bench memory` and `bench sessions`: what the vault costs when it is large, and when it is old. Both are examples
//! of the vault's own crate, made of metadata alone, and need neither a disk nor root.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::{self, say};
use crate::workspace::Workspace;

pub const PARTS: [&str; 2] = ["memory", "sessions"];

/// The largest takes about 12 GB of disk while it runs.
const CHUNKS: [&str; 2] = ["5000000", "50000000"];
/// Whole weeks, so that as much has happened since the last clean-up.
const SESSIONS: [&str; 3] = ["1001", "10003", "100002"];

pub fn run(workspace: &Workspace, part: &str, folder: &Path) -> Result<()> {
    let example = [
        "--release",
        "-p",
        "coffre-vault",
        "--features",
        "testing",
        "--example",
        part,
    ];
    say("Building", format!("the example {part}, in release mode"));
    command::run(workspace.cargo(&["build"]).args(example))?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut measured = workspace.cargo(&["run", "--quiet"]);
    measured.args(example).arg("--").arg(folder);
    measured.args(if part == "memory" { &CHUNKS[..] } else { &SESSIONS[..] });
    command::run(&mut measured)
}
