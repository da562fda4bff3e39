//! The folder that a call of a program shares with it: what it is told beside its environment, what `pre` leaves for
//! `post`, and what `post` attaches to the point. Gone when the call has ended.
//!
//! Nobody else can look into it. Where there is a file system in memory it lies there; with secrets it lies nowhere else.
//! One whose process was killed is removed by [`remove_left_behind`], at the next start: a lock on a file in it says whether
//! its process lives.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coffre_engine::{Attachment, HookFailure, HookFailureKind};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde_json::Value;
use tempfile::TempDir;

use super::call::Phase;
use super::limits::{ATTACHMENT_BYTES, ATTACHMENT_NAME_BYTES, ATTACHMENTS, MEMORY_BYTES};
use super::transcript::Transcript;

/// The types of file systems in memory (statfs(2)).
const TMPFS: u32 = 0x0102_1994;
const RAMFS: u32 = 0x8584_58f6;

/// How the folders' names begin.
const PREFIX: &str = "coffre-hook-";
/// The file in each that its process holds locked. It has this name only once it is locked.
const LOCK: &str = "lock";

pub(super) struct Exchange {
    folder: TempDir,
    _lock: File,
    phase: Phase,
    has_secrets: bool,
}

impl Exchange {
    /// Lays everything out. `memory` is what `pre` left.
    pub(super) fn open(
        phase: Phase,
        facts: &Value,
        memory: Option<&str>,
        secrets: &[(String, String)],
    ) -> Result<Self, HookFailure> {
        let failed = |error: io::Error| {
            let text = format!("the folder for what the hook is told cannot be made: {error}");
            HookFailure::new(HookFailureKind::Failed, text)
        };
        let (folder, in_memory) = folder().map_err(failed)?;
        let lock = lock(folder.path()).map_err(failed)?;
        if !secrets.is_empty() && !in_memory {
            let text = "there is no file system in memory for the secrets that the hook is granted";
            return Err(HookFailure {
                hint: Some("mount a tmpfs on /dev/shm, or let the program get the secret itself".to_owned()),
                ..HookFailure::new(HookFailureKind::Failed, text)
            });
        }
        let exchange = Self {
            folder,
            _lock: lock,
            phase,
            has_secrets: !secrets.is_empty(),
        };
        let lay_out = || {
            write(&exchange.path("context.json"), facts.to_string().as_bytes())?;
            write(&exchange.path("memory"), memory.unwrap_or_default().as_bytes())?;
            if phase == Phase::Post {
                make_folder(&exchange.path("attachments"))?;
            }
            if exchange.has_secrets {
                make_folder(&exchange.path("secrets"))?;
            }
            secrets
                .iter()
                .try_for_each(|(name, value)| write(&exchange.path("secrets").join(name), value.as_bytes()))
        };
        lay_out().map_err(failed)?;
        Ok(exchange)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the program finds everything.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let variable = |name: &str, file: &str| (name.to_owned(), self.path(file).display().to_string());
        let mut all = vec![
            variable("COFFRE_CONTEXT", "context.json"),
            variable("COFFRE_MEMORY", "memory"),
        ];
        if self.phase == Phase::Post {
            all.push(variable("COFFRE_ATTACHMENTS", "attachments"));
        }
        if self.has_secrets {
            all.push(variable("COFFRE_SECRETS", "secrets"));
        }
        all
    }

    /// What `pre` left; nothing where the file is empty or gone.
    pub(super) fn memory(&self) -> Result<Option<String>, HookFailure> {
        match read(&self.path("memory"), MEMORY_BYTES) {
            Ok(bytes) => memory_of(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(of_memory(HookFailureKind::Failed, &error.to_string())),
        }
    }

    /// What `post` left to be attached, by name.
    pub(super) fn attachments(&self) -> Result<Vec<Attachment>, HookFailure> {
        let read_failed = |error: io::Error| of_attachments(HookFailureKind::Failed, &error.to_string());
        let folder = match fs::read_dir(self.path("attachments")) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(read_failed(error)),
        };
        let mut found = Vec::new();
        for entry in folder {
            let name = entry.map_err(read_failed)?.file_name();
            // One more than there may be is enough to refuse them.
            if found.len() > ATTACHMENTS {
                break;
            }
            let content = read(&self.path("attachments").join(&name), ATTACHMENT_BYTES)
                .map_err(|error| of_attachments(HookFailureKind::Failed, &format!("{}: {error}", name.display())))?;
            found.push((name.into_encoded_bytes(), content));
        }
        attachments_of(found)
    }
}

/// What `pre` left, of which no more than a byte too many was read; nothing where that is empty.
pub(super) fn memory_of(bytes: Vec<u8>) -> Result<Option<String>, HookFailure> {
    if bytes.len() > MEMORY_BYTES {
        let cause = format!("`pre` left more than {MEMORY_BYTES} bytes for `post`");
        return Err(of_memory(HookFailureKind::Limit, &cause));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| of_memory(HookFailureKind::Failed, "what `pre` left is not UTF-8 text"))?;
    Ok((!text.is_empty()).then_some(text))
}

/// Files that `post` left, by name, of which no more than a byte too many was read.
pub(super) fn attachments_of(files: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Vec<Attachment>, HookFailure> {
    if files.len() > ATTACHMENTS {
        let cause = format!("a hook may attach at most {ATTACHMENTS} files");
        return Err(of_attachments(HookFailureKind::Limit, &cause));
    }
    let mut found = Vec::with_capacity(files.len());
    for (name, content) in files {
        let plain = std::str::from_utf8(&name).ok().filter(|name| is_attachment_name(name));
        let Some(plain) = plain else {
            let cause = format!(
                "{:?} cannot be the name of an attachment",
                String::from_utf8_lossy(&name)
            );
            return Err(of_attachments(HookFailureKind::Failed, &cause));
        };
        if content.len() > ATTACHMENT_BYTES {
            let cause = format!("{plain} has more than {ATTACHMENT_BYTES} bytes");
            return Err(of_attachments(HookFailureKind::Limit, &cause));
        }
        let media_type = if std::str::from_utf8(&content).is_ok() {
            "text/plain; charset=utf-8"
        } else {
            "application/octet-stream"
        };
        found.push(Attachment {
            name: plain.to_owned(),
            media_type: media_type.to_owned(),
            content,
        });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Refuses what a program left if a secret is in it: both are written to disk.
pub(super) fn without_secrets(
    transcript: &Transcript,
    memory: Option<&str>,
    attachments: &[Attachment],
) -> Result<(), HookFailure> {
    if let Some(secret) = memory.and_then(|text| transcript.secret_in(text)) {
        let text = format!("`pre` left the secret `{secret}` in $COFFRE_MEMORY, which would be written to disk");
        return Err(HookFailure {
            hint: Some("`post` is given it again".to_owned()),
            ..HookFailure::new(HookFailureKind::Denied, text)
        });
    }
    for attachment in attachments {
        if let Some(secret) = transcript.secret_in(&String::from_utf8_lossy(&attachment.content)) {
            let text = format!("the attachment {:?} holds the secret `{secret}`", attachment.name);
            return Err(HookFailure {
                hint: Some("whoever restores the point could read it".to_owned()),
                ..HookFailure::new(HookFailureKind::Denied, text)
            });
        }
    }
    Ok(())
}

fn of_memory(kind: HookFailureKind, cause: &str) -> HookFailure {
    HookFailure::new(kind, format!("$COFFRE_MEMORY: {cause}"))
}

fn of_attachments(kind: HookFailureKind, cause: &str) -> HookFailure {
    HookFailure::new(kind, format!("$COFFRE_ATTACHMENTS: {cause}"))
}

/// A name like that of a file that one sees.
pub(super) fn is_attachment_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= ATTACHMENT_NAME_BYTES
        && !name.starts_with('.')
        && !name.contains(|letter: char| letter == '/' || letter.is_control())
}

/// A fresh folder with mode 0700, and whether it lies in memory.
fn folder() -> io::Result<(TempDir, bool)> {
    let mut make = tempfile::Builder::new();
    make.prefix(PREFIX);
    for place in places() {
        if let Ok(folder) = make.tempdir_in(place)
            && is_in_memory(folder.path())
        {
            return Ok((folder, true));
        }
    }
    Ok((make.tempdir()?, false))
}

/// Where file systems in memory are.
fn places() -> impl Iterator<Item = PathBuf> {
    let places = [
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        Some("/run".into()),
        Some("/dev/shm".into()),
    ];
    places.into_iter().flatten().filter(|place| place.is_absolute())
}

fn lock(folder: &Path) -> io::Result<File> {
    let aside = folder.join("lock.new");
    let file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    fs::rename(aside, folder.join(LOCK))?;
    Ok(file)
}

/// Removes the folders of processes that were killed, which may hold secrets; before anything is held, since it reads whole
/// folders. What cannot be removed belongs to somebody
/// else, or goes with the next restart of the system.
pub fn remove_left_behind() {
    for place in places().chain([std::env::temp_dir()]) {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
                remove_if_left(&entry.path());
            }
        }
    }
}

fn remove_if_left(folder: &Path) {
    let own = rustix::process::geteuid().as_raw();
    if !(folder.symlink_metadata()).is_ok_and(|about| about.is_dir() && about.uid() == own) {
        return;
    }
    let mut options = File::options();
    let options = options
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    // One without it is being made, or somebody else's, and holds nothing yet.
    let Ok(file) = options.open(folder.join(LOCK)) else {
        return;
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && let Err(error) = fs::remove_dir_all(folder)
    {
        tracing::warn!(
            "{}: what a killed run has left cannot be removed: {error}",
            folder.display()
        );
    }
}

fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|about| matches!(about.f_type as u32, TMPFS | RAMFS))
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

/// Reads a regular file, and a byte more than `at_most_bytes` if it has more. What the program put there instead (a link, a
/// pipe that nobody writes to) is no file.
fn read(path: &Path, at_most_bytes: usize) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(at_most_bytes as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_process_that_was_killed_is_removed_and_no_other() {
        let make = || tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        let (left, used, young) = (make(), make(), make());
        let file = lock(left.path()).unwrap();
        fs::write(left.path().join("secret"), "s3cret").unwrap();
        // A process that is killed lets its locks go.
        drop(file);
        let _held = lock(used.path()).unwrap();
        remove_left_behind();
        assert!(!left.path().exists());
        assert!(used.path().join(LOCK).exists());
        assert!(young.path().exists());
    }
}
