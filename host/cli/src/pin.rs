//! Which vault a name has meant on this host: `STATE/vaults/NAME.id`. A vault with another id under the same name (somebody
//! put another one there) is refused, until a person removes the pin.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use coffre_vault::VaultId;

pub fn path(state: &Path, vault: &str) -> PathBuf {
    // Names of vaults are letters, digits, `-`, `_` and `.`, a letter or digit first: always one path component.
    state.join("vaults").join(format!("{vault}.id"))
}

/// None: this host has not seen the vault yet.
pub fn read(state: &Path, vault: &str) -> anyhow::Result<Option<VaultId>> {
    let path = path(state, vault);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read the vault's pin {}", path.display())),
    };
    let id = text
        .trim()
        .parse()
        .with_context(|| format!("the vault's pin {} is damaged", path.display()))?;
    Ok(Some(id))
}

/// Pins a vault that was not pinned; another pin stays and is an error.
pub fn write(state: &Path, vault: &str, id: VaultId) -> anyhow::Result<()> {
    let path = path(state, vault);
    let folder = path.parent().unwrap_or(state);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    // Whole or not at all: the name appears when the content is on the disk.
    let fresh = folder.join(format!(".{vault}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| {
            writeln!(file, "{id}")?;
            file.sync_all()
        })
        .and_then(|()| fs::hard_link(&fresh, &path));
    // Left behind it harms nobody.
    let _ = fs::remove_file(&fresh);
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            anyhow::ensure!(
                read(state, vault)? == Some(id),
                "{} names another vault",
                path.display()
            );
            Ok(())
        }
        other => other.with_context(|| format!("cannot write the vault's pin {}", path.display())),
    }
}

/// Forgets a pin, where a new vault was made on purpose.
pub fn replace(state: &Path, vault: &str, id: VaultId) -> anyhow::Result<()> {
    let path = path(state, vault);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the old pin {}", path.display()))
        }
        _ => write(state, vault, id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_stays_until_it_is_replaced_on_purpose() {
        let state = tempfile::tempdir().unwrap();
        let (one, other) = (VaultId([1; 16]), VaultId([2; 16]));
        assert_eq!(read(state.path(), "main").unwrap(), None);
        write(state.path(), "main", one).unwrap();
        write(state.path(), "main", one).unwrap();
        assert!(write(state.path(), "main", other).is_err());
        assert_eq!(read(state.path(), "main").unwrap(), Some(one));
        replace(state.path(), "main", other).unwrap();
        assert_eq!(read(state.path(), "main").unwrap(), Some(other));
    }
}
