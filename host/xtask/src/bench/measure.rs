//! One timed command: wall and CPU seconds, and the most memory that it had.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::command;

/// The kernel keeps the peak itself (VmHWM), so this only has to be short enough to see the end.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The kernel's clock tick as /proc tells times: USER_HZ, 100 on every Linux (proc(5), time(7)).
const TICKS_PER_S: f64 = 100.0;

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    pub wall_s: f64,
    pub cpu_s: f64,
    pub peak_mib: f64,
}

/// Runs the command with a cold cache. What it says is shown only when it fails.
pub fn cold(command: &mut Command) -> Result<Measured> {
    drop_caches()?;
    run(command)
}

/// Writes what is dirty and empties the page cache.
pub fn drop_caches() -> Result<()> {
    command::run(&mut Command::new("sync"))?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("empty the page cache (that needs root)")
}

fn run(command: &mut Command) -> Result<Measured> {
    let said = words_file()?;
    let log = fs::File::create(&said).with_context(|| format!("make {}", said.display()))?;
    let both = log
        .try_clone()
        .with_context(|| format!("use {} twice", said.display()))?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(both)
        .spawn()
        .with_context(|| format!("start {}", command::line(command)))?;
    let process = Path::new("/proc").join(child.id().to_string());
    let mut peak_kib = 0;
    let cpu_s = loop {
        if let Some(kib) = peak(&process) {
            peak_kib = peak_kib.max(kib);
        }
        // Once it has ended it stays there until it is waited for, with its last times.
        match times(&process) {
            Some(('Z', seconds)) => break seconds,
            Some(_) => thread::sleep(LOOK_EVERY),
            None => bail!("{} cannot be read", process.display()),
        }
    };
    let wall_s = started.elapsed().as_secs_f64();
    let status = child
        .wait()
        .with_context(|| format!("wait for {}", command::line(command)))?;
    let words = fs::read_to_string(&said).unwrap_or_default();
    fs::remove_file(&said).with_context(|| format!("remove {}", said.display()))?;
    if !status.success() {
        bail!("{} failed ({status})\n{}", command::line(command), words.trim_end());
    }
    Ok(Measured {
        wall_s,
        cpu_s,
        peak_mib: peak_kib as f64 / 1024.0,
    })
}

fn words_file() -> Result<std::path::PathBuf> {
    let folder = std::env::temp_dir();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder.join(format!("coffre-bench-{}.log", std::process::id())))
}

fn peak(process: &Path) -> Option<u64> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// State, and CPU seconds of the process with all its threads and the children that it waited for.
fn times(process: &Path) -> Option<(char, f64)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name stands in parentheses and may hold anything; the state is the field after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let state = fields.first()?.chars().next()?;
    let ticks: u64 = fields
        .get(11..15)?
        .iter()
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Some((state, ticks as f64 / TICKS_PER_S))
}

/// The bytes of all files below a folder.
pub fn stored_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let about = entry
            .metadata()
            .with_context(|| format!("look at {}", entry.path().display()))?;
        bytes += if about.is_dir() {
            stored_bytes(&entry.path())?
        } else {
            about.len()
        };
    }
    Ok(bytes)
}
