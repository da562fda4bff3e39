//! Paying one debt. Thawing is in `ioctl` and allocates nothing; what is in here does, and is done after every thaw.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::agent;
use crate::debt::{Debt, Outcome};
use crate::tree::{self, MARKER_NAME, Marker};

/// How long a killed process may take to disappear; what is still there after this sleeps in the kernel.
pub(crate) const KILLED_WITHIN: Duration = Duration::from_secs(3);
/// Tries of a command that fails, and the pause between them: a database that restarts is back by then.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a guest agent is tried: its socket serves one at a time, and whoever had it may just be ending.
const AGENT_WITHIN: Duration = Duration::from_secs(20);
const AGENT_PAUSE: Duration = Duration::from_millis(200);
/// Of a command's output, for the message that says why it failed.
const OUTPUT_KEPT_BYTES: usize = 2 * 1024;
const STEP: Duration = Duration::from_millis(5);

/// As hooks have it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A guard is the last that the OOM killer takes; what it starts is not.
const AS_OTHERS: &str = r#"echo 0 2>/dev/null >/proc/self/oom_score_adj; exec "$@""#;

/// Pays anything but a thaw, and says what it came to, or as a clause why it stays owed.
pub(crate) fn pay(debt: &Debt) -> Result<Outcome, String> {
    match debt {
        Debt::EndTree { marker } => {
            let ended = tree::end_marked(&Marker::from_text(marker), Instant::now() + KILLED_WITHIN);
            if !ended.left.is_empty() {
                return Err(format!("processes {:?} cannot be killed", ended.left));
            }
            Ok(Outcome::Ended {
                processes: ended.processes,
            })
        }
        Debt::Command {
            arguments,
            environment,
            timeout_ms,
        } => {
            let timeout = Duration::from_millis(*timeout_ms);
            let mut attempt = 1;
            loop {
                match command(arguments, environment, timeout) {
                    Ok(()) => return Ok(Outcome::Ran { status: 0 }),
                    Err(error) if attempt == ATTEMPTS => return Err(error),
                    Err(_) => std::thread::sleep(PAUSE),
                }
                attempt += 1;
            }
        }
        Debt::AgentThaw { socket } => {
            let give_up = Instant::now() + AGENT_WITHIN;
            loop {
                match agent::thaw(socket, give_up) {
                    Ok(0) => return Ok(Outcome::NotFrozen),
                    Ok(_) => return Ok(Outcome::Thawed),
                    Err(error) if Instant::now() + AGENT_PAUSE >= give_up => return Err(chain(&error)),
                    Err(_) => std::thread::sleep(AGENT_PAUSE),
                }
            }
        }
        Debt::Thaw { mount, .. } => Err(format!("{} was not opened to be thawed", mount.display())),
    }
}

/// An error and its causes, in a line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// Runs a command once; nothing that it started is left when this returns.
fn command(arguments: &[String], environment: &[(String, String)], timeout: Duration) -> Result<(), String> {
    let give_up = Instant::now() + timeout;
    let marker = Marker::new();
    let (mut reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|error| error.to_string())?;
    let both = writer.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", AS_OTHERS, "coffre-guard"])
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/")
        .env("LANG", "C.UTF-8")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env(MARKER_NAME, marker.text())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(both)
        .process_group(0);
    let spawned = command.spawn();
    // It holds the pipe's other end.
    drop(command);
    let mut child = spawned.map_err(|error| format!("it cannot be started: {error}"))?;
    let mut said = Vec::new();
    let status = loop {
        listen(&mut reader, &mut said);
        match child.try_wait() {
            Ok(None) if Instant::now() < give_up => std::thread::sleep(STEP),
            Ok(status) => break status,
            Err(error) => return Err(format!("it cannot be watched: {error}")),
        }
    };
    tree::end_marked(&marker, Instant::now() + KILLED_WITHIN);
    let _ = child.wait();
    listen(&mut reader, &mut said);
    let said = String::from_utf8_lossy(&said);
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("it ended with {status}: {}", said.trim())),
        None => Err(format!(
            "it had not ended after {} s: {}",
            timeout.as_secs_f64(),
            said.trim()
        )),
    }
}

/// Takes what lies in the pipe, so that the command never waits for us, and keeps the first of it.
fn listen(reader: &mut std::io::PipeReader, said: &mut Vec<u8>) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = reader.read(&mut bytes) {
        let room = OUTPUT_KEPT_BYTES.saturating_sub(said.len()).min(read);
        said.extend_from_slice(&bytes[..room]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout_ms: u64) -> Result<Outcome, String> {
        pay(&Debt::Command {
            arguments: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            environment: vec![("COFFRE_JOB".to_owned(), "j 1".to_owned())],
            timeout_ms,
        })
    }

    #[test]
    fn a_command_runs_in_a_fixed_environment_and_as_killable_as_others() {
        let outcome = run(
            "test \"$COFFRE_JOB\" = 'j 1' && test \"$HOME\" = / && test \"$(cat /proc/self/oom_score_adj)\" = 0",
            5000,
        );
        assert_eq!(outcome, Ok(Outcome::Ran { status: 0 }));
    }

    #[test]
    fn a_command_that_fails_at_first_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tries");
        let script = format!("echo x >> {0}; test $(wc -l < {0}) = 2", file.display());
        assert_eq!(run(&script, 5000), Ok(Outcome::Ran { status: 0 }));
    }

    #[test]
    fn a_command_that_cannot_do_it_stays_owed_and_says_why() {
        let error = run("echo no such id >&2; exit 3", 5000).unwrap_err();
        assert_eq!(error, "it ended with exit status: 3: no such id");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alive");
        let script = format!(
            "setsid sh -c 'while :; do touch {}; sleep 0.05; done' & sleep 60",
            file.display()
        );
        let error = run(&script, 200).unwrap_err();
        assert!(error.starts_with("it had not ended after 0.2 s"), "{error}");
        std::fs::remove_file(&file).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(!file.exists(), "something still runs");
    }
}
