//! Where secrets come from, and how they are held: in memory that is wiped, never in a message.
//!
//! What has to be true before a secret is used: a file belongs to root or to whoever runs this, and no other user can
//! read it; a command is named by its absolute path, gets no input, ends within [`COMMAND_TIMEOUT`], and says no more than
//! [`LIMIT_BYTES`].

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use zeroize::{Zeroize, Zeroizing};

/// A secret is a key or a passphrase; anything longer is another file by mistake.
const LIMIT_BYTES: u64 = 64 << 10;
/// A password manager that waits for somebody must not hold a nightly backup until morning.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a secret is to be had. Showing this is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    File(PathBuf),
    Env(String),
    /// Program and arguments; standard output is the secret.
    Command(Vec<String>),
}

/// Bytes that are wiped when they go, and never shown.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why a secret could not be had. None of these texts holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("read the secret in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the secret in {} can be read by others than its owner (mode {mode:04o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the secret in {} belongs to user {owner}, who is neither root nor the user that runs this", path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("the environment variable {0}, which should hold a secret, is not set")]
    NotSet(String),
    #[error("start {program}, which should say a secret")]
    Start { program: String, source: io::Error },
    #[error("{program}, which should say a secret, failed ({status})")]
    Failed { program: String, status: String },
    #[error("{program}, which should say a secret, did not end within {} s", COMMAND_TIMEOUT.as_secs())]
    TimedOut { program: String },
    #[error("the secret from {0} is longer than {LIMIT_BYTES} bytes")]
    TooLong(String),
    #[error("the secret from {0} is empty")]
    Empty(String),
    #[error("the secret from {0} is not UTF-8 text")]
    NotText(String),
}

impl SecretError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exposed { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::Foreign { path, .. } => Some(format!("chown root {}", path.display())),
            Self::NotSet(name) => Some(format!("export {name}=…, or name another source in the config")),
            Self::Failed { program, .. } => Some(format!("run {program} by hand to see what it says")),
            Self::TimedOut { .. } => Some("it must not wait for somebody to type".to_owned()),
            _ => None,
        }
    }
}

impl SecretSource {
    /// Fetches it. Blocks, for at most as long as a command may take.
    ///
    /// The line break that editors and commands put behind text is not part of a secret; binary content stays as it is.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        let mut bytes = match self {
            Self::File(path) => read_file(path)?,
            Self::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| SecretError::NotSet(name.clone()))?;
                Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value))
            }
            Self::Command(words) => run(words)?,
        };
        if bytes.is_ascii() {
            while bytes.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
                bytes.pop();
            }
        }
        if bytes.is_empty() {
            return Err(SecretError::Empty(self.to_string()));
        }
        Ok(Secret(bytes))
    }

    /// Fetches what must be text.
    pub fn resolve_text(&self) -> Result<Zeroizing<String>, SecretError> {
        let secret = self.resolve()?;
        match std::str::from_utf8(secret.bytes()) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(SecretError::NotText(self.to_string())),
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(out, "{}", path.display()),
            Self::Env(name) => write!(out, "${name}"),
            Self::Command(words) => out.write_str(words.first().map_or("an empty command", String::as_str)),
        }
    }
}

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("[secret]")
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let failed = |source| SecretError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(SecretError::Exposed {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(SecretError::Foreign {
            path: path.to_owned(),
            owner,
        });
    }
    read_bounded(file, &path.display().to_string(), failed)
}

fn read_bounded(
    from: impl Read,
    what: &str,
    failed: impl FnOnce(io::Error) -> SecretError,
) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    // Reserved whole, so that growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT_BYTES as usize + 1));
    from.take(LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        bytes.zeroize();
        return Err(SecretError::TooLong(what.to_owned()));
    }
    Ok(bytes)
}

fn run(words: &[String]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let program = words.first().cloned().unwrap_or_default();
    let start = |source| SecretError::Start {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .args(words.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let output = child
        .stdout
        .take()
        .ok_or_else(|| start(io::Error::other("it has no output")))?;
    let (said, hear) = std::sync::mpsc::sync_channel(1);
    let name = program.clone();
    std::thread::spawn(move || {
        let failed = |source| SecretError::Start {
            program: name.clone(),
            source,
        };
        // Nobody listens any more where the command took too long.
        let _ = said.send(read_bounded(output, &name, failed));
    });
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    let bytes = match hear.recv_timeout(COMMAND_TIMEOUT) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            end(&mut child);
            return Err(error);
        }
        Err(_) => {
            end(&mut child);
            return Err(SecretError::TimedOut { program });
        }
    };
    loop {
        match child.try_wait().map_err(start)? {
            Some(status) if status.success() => return Ok(bytes),
            Some(status) => {
                return Err(SecretError::Failed {
                    program,
                    status: status.to_string(),
                });
            }
            None if Instant::now() > deadline => {
                end(&mut child);
                return Err(SecretError::TimedOut { program });
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Ends the command with its children, which may hold the pipe open.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn command(script: &str) -> SecretSource {
        SecretSource::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec())
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "open sesame\n").unwrap();
        let source = SecretSource::File(path.clone());
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(source.resolve().is_ok(), fine, "{mode:o}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(source.resolve_text().unwrap().as_str(), "open sesame");
    }

    #[test]
    fn binary_content_keeps_its_last_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, [200, 1, b'\n']).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(SecretSource::File(path).resolve().unwrap().bytes(), [200, 1, b'\n']);
    }

    #[test]
    fn a_command_says_the_secret() {
        assert_eq!(command("echo sesame").resolve_text().unwrap().as_str(), "sesame");
        assert!(matches!(
            command("echo no; exit 3").resolve(),
            Err(SecretError::Failed { .. })
        ));
        assert!(matches!(command("true").resolve(), Err(SecretError::Empty(_))));
        assert!(matches!(
            command("head -c 100000 /dev/zero").resolve(),
            Err(SecretError::TooLong(_))
        ));
        let missing = SecretSource::Command(vec!["/no/such/program".to_owned()]);
        assert!(matches!(missing.resolve(), Err(SecretError::Start { .. })));
    }

    #[test]
    fn nothing_shows_a_secret() {
        let secret = command("echo sesame").resolve().unwrap();
        assert_eq!(format!("{secret:?}"), "[secret]");
        let missing = SecretSource::Env("COFFRE_TEST_NOT_SET".to_owned());
        assert_eq!(
            missing.resolve().unwrap_err().to_string(),
            "the environment variable COFFRE_TEST_NOT_SET, which should hold a secret, is not set"
        );
    }
}
