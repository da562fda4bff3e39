//! Makes what opens a vault: the key file that the configuration names, and the recovery key's file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use coffre_engine::config::{KeyConfig, KeyKind};
use coffre_engine::secret::SecretSource;
use coffre_vault::RecoveryKey;
use zeroize::Zeroizing;

use crate::exit::Complaint;

/// What the vault asks of a secret that it does not stretch.
const KEY_BYTES: usize = 32;

/// What a key is called where nobody gave it a label.
pub fn usual_label(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Secret => "key",
        KeyKind::Passphrase => "passphrase",
        KeyKind::RecoveryKey => "recovery",
    }
}

/// Makes the key file if the configuration names one that is not there yet, and says so. It is on the disk before the
/// vault is made: a vault whose key was lost in a crash would be worth nothing.
pub fn make_file_if_missing(key: &KeyConfig) -> anyhow::Result<Option<PathBuf>> {
    let SecretSource::File(path) = &key.source else {
        return Ok(None);
    };
    if path.exists() {
        return Ok(None);
    }
    match key.kind {
        KeyKind::Secret => {}
        KeyKind::Passphrase => {
            let hint = format!("write a passphrase into {}, then chmod 600 it", path.display());
            return Err(Complaint::config("the passphrase file does not exist", hint).into());
        }
        KeyKind::RecoveryKey => {
            let hint = "a new vault needs a key of its own, such as key = { file = \"/etc/coffre/main.key\" }";
            return Err(Complaint::config("a vault cannot be made with a recovery key", hint).into());
        }
    }
    let mut secret = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(secret.as_mut_slice()).context("cannot get random bytes")?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let doing = || format!("cannot make the key file {}", path.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(doing)?;
    let mut file = new_private_file(path).with_context(doing)?;
    file.write_all(secret.as_slice())
        .and_then(|()| file.sync_all())
        .with_context(doing)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(doing)?;
    Ok(Some(path.clone()))
}

/// The file for a recovery key, made before the vault so that it cannot fail for want of a place.
pub struct RecoveryFile {
    path: PathBuf,
    file: File,
}

impl RecoveryFile {
    pub fn make(path: &Path) -> anyhow::Result<Self> {
        let file = new_private_file(path).map_err(|error| {
            let doing = format!("cannot make the recovery key's file {}", path.display());
            let complaint = if error.kind() == io::ErrorKind::AlreadyExists {
                Complaint::usage(doing, "name a file that does not exist yet; nothing is overwritten")
            } else {
                Complaint::failed(doing, "name a file in a folder that you may write")
            };
            anyhow::Error::new(error).context(complaint)
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&mut self, key: &RecoveryKey) -> io::Result<()> {
        let text = Zeroizing::new(format!("{key}\n"));
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()
    }

    /// Takes the empty file away, where no vault was made.
    pub fn discard(self) {
        // An empty file left behind tells nobody anything.
        let _ = fs::remove_file(&self.path);
    }
}

fn new_private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(kind: KeyKind, path: &Path) -> KeyConfig {
        KeyConfig {
            kind,
            source: SecretSource::File(path.to_owned()),
        }
    }

    #[test]
    fn a_missing_key_file_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/main.key");
        let key = key(KeyKind::Secret, &path);
        assert_eq!(make_file_if_missing(&key).unwrap(), Some(path.clone()));
        let first = fs::read(&path).unwrap();
        assert_eq!(first.len(), KEY_BYTES);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(make_file_if_missing(&key).unwrap(), None);
        assert_eq!(fs::read(&path).unwrap(), first);
    }

    #[test]
    fn what_a_person_must_choose_is_not_made_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        assert!(make_file_if_missing(&key(KeyKind::Passphrase, &path)).is_err());
        assert!(make_file_if_missing(&key(KeyKind::RecoveryKey, &path)).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn a_recovery_key_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recovery");
        fs::write(&path, "precious").unwrap();
        assert!(RecoveryFile::make(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
