//! `cargo xtask bench fleet`: what a thousand machines on one host cost, and that `coffre status` knows of all of them within
//! the time that is promised. It needs neither disks nor root: an example of the engine's own crate makes the book.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{self, say};
use crate::workspace::Workspace;

pub const PART: &str = "fleet";

const MACHINES: &str = "1000";
/// A month of days, as a policy keeps them.
const POINTS: &str = "30";
/// What is promised of `coffre status`, from its start to its end.
const PROMISED: Duration = Duration::from_millis(200);
/// The median of so many says what is usual, also beside other work.
const TIMES: usize = 21;

pub fn run(workspace: &Workspace, folder: &Path) -> Result<()> {
    let profile = if std::env::var_os("COFFRE_BENCH_DEBUG").is_some() {
        "debug"
    } else {
        "release"
    };
    let mut build = vec!["build", "-p", "coffre", "--bins"];
    let mut example = vec!["run", "--quiet", "-p", "coffre-engine", "--example", "fleet"];
    if profile == "release" {
        build.push("--release");
        example.push("--release");
        say("Building", "coffre, in release mode");
        command::run(&mut workspace.cargo(&build))?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut made = workspace.cargo(&example);
    made.arg("--").arg(folder).args([MACHINES, POINTS]);
    command::run(&mut made).context("make a fleet")?;

    let program = workspace.target.join(profile).join("coffre");
    let config = folder.join("coffre.toml");
    let mut slow = false;
    for words in [&["status"][..], &["status", "--json"], &["jobs"], &["config", "show"]] {
        let mut times = Vec::new();
        let mut memory = 0;
        for _ in 0..TIMES {
            let mut command = Command::new(&program);
            command.arg("--config").arg(&config).args(words).stdout(Stdio::null());
            let (took, peak) = run_once(&mut command)?;
            times.push(took);
            memory = memory.max(peak);
        }
        times.sort();
        let (median, worst) = (times[TIMES / 2], times[TIMES - 1]);
        say(
            "Measured",
            format!(
                "coffre {}: median {median:.0?}, worst {worst:.0?}, {memory} KiB at most",
                words.join(" ")
            ),
        );
        slow |= words[0] == "status" && median > PROMISED;
    }
    if slow {
        bail!("`coffre status` takes longer than the {PROMISED:?} that are promised");
    }
    Ok(())
}

/// How long a program ran, and how much memory it held at most, in KiB. Its exit code says how the fleet is, not how it ran.
fn run_once(command: &mut Command) -> Result<(Duration, u64)> {
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("start {}", command::line(command)))?;
    let memory = peak_of(&mut child)?;
    Ok((started.elapsed(), memory))
}

/// Waits for a child and asks the kernel what it used.
fn peak_of(child: &mut std::process::Child) -> Result<u64> {
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        peak = peak.max(now.unwrap_or(0));
        if child.try_wait().context("wait for it")?.is_some() {
            return Ok(peak);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
