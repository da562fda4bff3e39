//! The way by ssh: the system's own client, with nothing but what the configuration says.
//!
//! Its standard input stays open until the hook's time is over. When it closes, also because this process or the client was
//! killed or the connection is gone, the far side ends what runs there.

use std::io::Write;
use std::time::Instant;

use coffre_engine::config::SshConfig;
use tempfile::NamedTempFile;

use super::{Errand, FarError, Heard, REPORT_WITHIN};
use crate::hook::limits::{ATTACHMENT_BYTES, ATTACHMENTS};
use crate::hook::trust::{self, Readers};
use crate::process::{self, Command, KEPT_OUTPUT_BYTES, ProcessError};

const PROGRAM: &str = "/usr/bin/ssh";
/// What stands for the host in its file of known hosts, so that no other name or address can be meant.
const ALIAS: &str = "pinned";
/// What ssh(1) ends with when it was ssh that failed.
const SSH_FAILED: i32 = 255;
/// A whole report, in base64: attachments, memory and two outputs.
const REPORT_BYTES: usize = (ATTACHMENTS + 1) * ATTACHMENT_BYTES * 3 / 2 + 4 * KEPT_OUTPUT_BYTES;
/// What runs the script whatever the user's own shell is.
const FAR_SHELL: &str = "exec /bin/sh -s";

pub(super) fn send(host: &SshConfig, errand: &Errand<'_>) -> Result<Heard, FarError> {
    trust::read(&host.key, Readers::OwnerAlone)?;
    let mut known = NamedTempFile::new().map_err(FarError::Pin)?;
    writeln!(known, "{ALIAS} {}", host.host_key).map_err(FarError::Pin)?;
    let left = errand.deadline.saturating_duration_since(Instant::now());
    let command = Command {
        input: errand.script.clone().into_bytes(),
        input_open_until: Some(errand.deadline),
        keep_bytes: REPORT_BYTES,
        cancelled: Some(errand.cancelled.clone()),
        guard: errand.guard.clone(),
        ..Command::new(PROGRAM, left + REPORT_WITHIN).args(words(host, &known, left.as_secs().max(1)))
    };
    let to = || format!("{}@{}:{}", host.user, host.address, host.port);
    let output = match process::run(&command) {
        Ok(output) => output,
        Err(ProcessError::TimedOut { .. }) => return Err(FarError::NoReport),
        Err(ProcessError::Cancelled { .. }) => return Err(FarError::Cancelled),
        Err(error) => return Err(error.into()),
    };
    let aside = output.stderr.text();
    if output.status == SSH_FAILED {
        let said = aside.lines().rev().find(|line| !line.trim().is_empty());
        let said = said.unwrap_or("it says nothing").trim().to_owned();
        return Err(match &said {
            _ if aside.contains("Host key verification failed") => FarError::WrongHost { to: to() },
            said if said.contains("Permission denied") => FarError::NotLetIn {
                to: to(),
                said: said.clone(),
            },
            _ => FarError::Ssh { to: to(), said },
        });
    }
    Ok(Heard {
        stdout: output.stdout.bytes,
        aside,
    })
}

/// No file of the user's or the system's is read, nothing is asked, nothing is forwarded.
fn words(host: &SshConfig, known: &NamedTempFile, connect_within_s: u64) -> Vec<String> {
    let options = [
        ("BatchMode", "yes".to_owned()),
        ("StrictHostKeyChecking", "yes".to_owned()),
        ("UserKnownHostsFile", known.path().display().to_string()),
        ("GlobalKnownHostsFile", "/dev/null".to_owned()),
        ("HostKeyAlias", ALIAS.to_owned()),
        ("CheckHostIP", "no".to_owned()),
        ("UpdateHostKeys", "no".to_owned()),
        ("VerifyHostKeyDNS", "no".to_owned()),
        ("IdentityFile", host.key.display().to_string()),
        ("IdentitiesOnly", "yes".to_owned()),
        ("IdentityAgent", "none".to_owned()),
        ("PreferredAuthentications", "publickey".to_owned()),
        ("ClearAllForwardings", "yes".to_owned()),
        ("ControlPath", "none".to_owned()),
        ("LogLevel", "ERROR".to_owned()),
        ("ConnectTimeout", connect_within_s.to_string()),
        // A connection that is gone without a word is noticed within these seconds.
        ("ServerAliveInterval", "5".to_owned()),
        ("ServerAliveCountMax", "2".to_owned()),
    ];
    let mut words: Vec<String> = ["-F", "none", "-T", "-p"].map(str::to_owned).into();
    words.extend([host.port.to_string(), "-l".to_owned(), host.user.clone()]);
    for (name, value) in options {
        words.extend(["-o".to_owned(), format!("{name}={value}")]);
    }
    words.extend(["--".to_owned(), host.address.clone(), FAR_SHELL.to_owned()]);
    words
}
