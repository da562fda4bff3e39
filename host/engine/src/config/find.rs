//! Which file is the configuration, and whether it may be believed.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::check;
use super::error::ConfigError;
use super::model::Config;

/// A configuration is typed by people; anything longer is another file by mistake.
const LIMIT_BYTES: u64 = 4 << 20;

impl Config {
    /// The configuration's path: `named` (from `--config`), `$COFFRE_CONFIG`, `/etc/coffre/coffre.toml`,
    /// `~/.config/coffre/coffre.toml`. Never the current folder: as root that would run what lies there.
    pub fn find(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let variable = std::env::var_os("COFFRE_CONFIG").filter(|value| !value.is_empty());
        search(
            named,
            variable.map(PathBuf::from),
            Path::new("/etc/coffre/coffre.toml"),
            home,
        )
    }

    /// Reads and checks everything that the file alone can say; touches nothing else.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let content = read_trusted(path)?;
        Self::parse(path, &content)
    }

    /// What `content` says, as if it stood in the file `path`.
    pub fn parse(path: &Path, content: &str) -> Result<Self, ConfigError> {
        let absolute = std::path::absolute(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        check::config(&absolute, content)
    }
}

fn search(
    named: Option<&Path>,
    variable: Option<PathBuf>,
    system: &Path,
    home: Option<PathBuf>,
) -> Result<PathBuf, ConfigError> {
    // What somebody named must be there: to go on looking would use a configuration that nobody meant.
    if let Some(path) = named.map(Path::to_owned).or(variable) {
        return Ok(path);
    }
    let mut searched = vec![system.to_owned()];
    searched.extend(
        home.filter(|home| home.is_absolute())
            .map(|home| home.join(".config/coffre/coffre.toml")),
    );
    match searched.iter().find(|path| path.exists()) {
        Some(path) => Ok(path.clone()),
        None => Err(ConfigError::NotFound { searched }),
    }
}

/// Reads a file only if none but its owner can change what it says, and the owner is root or whoever runs this.
/// The check is on the descriptor that is read, and on the folder, where a writer could put another file in its place.
pub(super) fn read_trusted(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    trusted(path, metadata.mode(), metadata.uid())?;
    let folder = path
        .canonicalize()
        .map_err(failed)?
        .parent()
        .map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let about = folder.metadata().map_err(failed)?;
    // In a sticky folder (/tmp) others cannot replace a file that is not theirs.
    let sticky = about.mode() & 0o1000 != 0;
    trusted(&folder, if sticky { 0o755 } else { about.mode() }, about.uid())?;
    if metadata.len() > LIMIT_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            size_bytes: metadata.len(),
            limit_bytes: LIMIT_BYTES,
        });
    }
    let mut bytes = Vec::new();
    file.take(LIMIT_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| ConfigError::NotText {
        path: path.to_owned(),
        at: error.utf8_error().valid_up_to(),
    })
}

fn trusted(path: &Path, mode: u32, owner: u32) -> Result<(), ConfigError> {
    if mode & 0o022 != 0 {
        return Err(ConfigError::Writable {
            path: path.to_owned(),
            mode: mode & 0o7777,
        });
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(ConfigError::Foreign {
            path: path.to_owned(),
            owner,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_named_is_taken_before_every_other_place() {
        let folder = tempfile::tempdir().unwrap();
        let system = folder.path().join("coffre.toml");
        let home = folder.path().join("home");
        fs::create_dir_all(home.join(".config/coffre")).unwrap();
        fs::write(home.join(".config/coffre/coffre.toml"), "").unwrap();
        let variable = folder.path().join("other.toml");
        let at = |named, variable| search(named, variable, &system, Some(home.clone())).unwrap();

        assert_eq!(at(None, None), home.join(".config/coffre/coffre.toml"));
        fs::write(&system, "").unwrap();
        assert_eq!(at(None, None), system);
        assert_eq!(at(None, Some(variable.clone())), variable);
        assert_eq!(at(Some(Path::new("/named")), Some(variable)), Path::new("/named"));
    }

    #[test]
    fn the_current_folder_is_never_searched() {
        let folder = tempfile::tempdir().unwrap();
        let error = search(None, None, &folder.path().join("none"), None).unwrap_err();
        assert!(matches!(error, ConfigError::NotFound { .. }));
        assert!(error.hint().unwrap().contains("coffre config example"));
        let relative_home = search(None, None, &folder.path().join("none"), Some(PathBuf::from(".")));
        assert!(matches!(relative_home, Err(ConfigError::NotFound { searched }) if searched.len() == 1));
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coffre.toml");
        fs::write(&path, "").unwrap();
        for (mode, fine) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_trusted(&path).is_ok(), fine, "{mode:o}");
        }
    }

    #[test]
    fn a_file_in_a_folder_that_others_can_write_is_refused_unless_it_is_sticky() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coffre.toml");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for (mode, fine) in [(0o755, true), (0o777, false), (0o775, false), (0o1777, true)] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_trusted(&path).is_ok(), fine, "{mode:o}");
        }
    }
}
