//! Running other programs: every failure names the command line, and nothing waits for ever.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Says what is being done, in a column that lines up with cargo's own words.
pub fn say(word: &str, text: impl AsRef<str>) {
    eprintln!("{word:>12} {}", text.as_ref());
}

/// Runs a command whose output the person may see; not ending well is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a command and returns what it wrote to its standard output. What it wrote to the other comes with the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({})\n{}", line(command), output.status, said.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {}", line(command)))
}

/// Runs a command silently for `limit` at most, and kills it then. Its words come with the error.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", line(command)))?;
    let said = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = std::io::Read::read_to_end(&mut pipe, &mut text);
            String::from_utf8_lossy(&text).trim_end().to_owned()
        })
    });
    let started = Instant::now();
    loop {
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("wait for {}", line(command)))?
        {
            if status.success() {
                return Ok(());
            }
            let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
            bail!("{} failed ({status})\n{said}", line(command));
        }
        if started.elapsed() > limit {
            child.kill().with_context(|| format!("stop {}", line(command)))?;
            child.wait().with_context(|| format!("wait for {}", line(command)))?;
            bail!("{} took longer than {} s", line(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Finds a program in `PATH` and where Debian keeps an administrator's programs, which a user's `PATH` leaves out.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The command line as a person would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    format!("`{}`", words.join(" "))
}

/// Writes a file only when its content would change, so that nothing which depends on it is built again for nothing.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let new = path.with_added_extension("new");
    std::fs::write(&new, content).with_context(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("put {} in place", path.display()))?;
    Ok(true)
}
