//! Reads a script, or looks at a program, that nobody but root and the user who runs this can have written.
//!
//! The path is followed step by step, links too, and each folder on the way is looked at: who may write one of them can
//! put another script in the place of ours. A sticky folder (`/tmp`) that belongs to root may be written by others, who
//! still cannot replace what is not theirs; and everything on the way must be root's or ours.
//!
//! A program is run by its path after that, since one that is run by a descriptor does not find itself (`$0`). Between the
//! look and the start only those can put another in its place whom the look has found to be allowed to.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;

use super::limits::SCRIPT_BYTES;

/// As many links as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;

#[derive(Debug, thiserror::Error)]
pub(super) enum TrustError {
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} can be written by others than its owner (mode {mode:04o})", .path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("{} can be read by others than its owner (mode {mode:04o})", .path.display())]
    Readable { path: PathBuf, mode: u32 },
    #[error("{} cannot be executed (mode {mode:04o})", .path.display())]
    NotExecutable { path: PathBuf, mode: u32 },
    #[error("{} belongs to user {owner}, who is neither root nor the user that runs this", .path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("{} is not a file", .path.display())]
    NotAFile { path: PathBuf },
    #[error("{} has more than {SCRIPT_BYTES} bytes, which is no script", .path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not UTF-8 text", .path.display())]
    NotText { path: PathBuf },
    #[error("{} changed while it was checked", .path.display())]
    Changed { path: PathBuf },
}

impl TrustError {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Writable { path, .. } => Some(format!("chmod go-w {}", path.display())),
            Self::Readable { path, .. } => Some(format!("chmod go-rwx {}", path.display())),
            Self::NotExecutable { path, .. } => Some(format!("chmod u+x {}", path.display())),
            Self::Foreign { path, .. } => Some(format!("chown root {}", path.display())),
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("a relative `file` is looked for below `[coffre] scripts`".to_owned())
            }
            _ => None,
        }
    }
}

/// Who else may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    Any,
    /// Nobody: the file has no rights for group and others.
    OwnerAlone,
}

/// Reads the script at an absolute path; its real path and what it says.
pub(super) fn read(path: &Path, readers: Readers) -> Result<(PathBuf, String), TrustError> {
    let (place, seen) = follow(path)?;
    let (file, about) = open_seen(&place, &seen, OFlags::RDONLY | OFlags::NONBLOCK)?;
    private(&place, &about, readers)?;
    let failed = |source| TrustError::Read {
        path: place.clone(),
        source,
    };
    let mut bytes = Vec::new();
    file.take(SCRIPT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > SCRIPT_BYTES {
        return Err(TrustError::TooLarge { path: place });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((place, text)),
        Err(_) => Err(TrustError::NotText { path: place }),
    }
}

/// Looks at the file at an absolute path, which others read.
pub(super) fn look(path: &Path) -> Result<(), TrustError> {
    let (place, seen) = follow(path)?;
    open_seen(&place, &seen, OFlags::PATH).map(drop)
}

/// Looks at the program at an absolute path.
pub(super) fn program(path: &Path, readers: Readers) -> Result<(), TrustError> {
    let (place, seen) = follow(path)?;
    let (_, about) = open_seen(&place, &seen, OFlags::PATH)?;
    private(&place, &about, readers)?;
    if about.mode() & 0o111 == 0 {
        return Err(TrustError::NotExecutable {
            path: place,
            mode: about.mode() & 0o7777,
        });
    }
    Ok(())
}

/// Opens what was found, unless something else is there by now.
fn open_seen(place: &Path, seen: &Metadata, flags: OFlags) -> Result<(File, Metadata), TrustError> {
    let failed = |source| TrustError::Read {
        path: place.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .custom_flags((flags | OFlags::NOFOLLOW).bits() as i32)
        .open(place)
        .map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if (about.dev(), about.ino()) != (seen.dev(), seen.ino()) {
        return Err(TrustError::Changed { path: place.to_owned() });
    }
    trusted(place, &about)?;
    Ok((file, about))
}

fn private(path: &Path, about: &Metadata, readers: Readers) -> Result<(), TrustError> {
    if readers == Readers::OwnerAlone && about.mode() & 0o077 != 0 {
        return Err(TrustError::Readable {
            path: path.to_owned(),
            mode: about.mode() & 0o7777,
        });
    }
    Ok(())
}

/// The real path of a file, every step of the way to it checked.
fn follow(path: &Path) -> Result<(PathBuf, Metadata), TrustError> {
    let mut here = PathBuf::from("/");
    let mut ahead: VecDeque<OsString> = steps(path);
    let mut links = 0;
    loop {
        let about = here.symlink_metadata().map_err(|source| TrustError::Read {
            path: here.clone(),
            source,
        })?;
        if about.is_symlink() {
            links += 1;
            if links > LINKS {
                let source = std::io::Error::other("too many links");
                return Err(TrustError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
            let target = here.read_link().map_err(|source| TrustError::Read {
                path: here.clone(),
                source,
            })?;
            here.pop();
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            for step in steps(&target).into_iter().rev() {
                ahead.push_front(step);
            }
        } else {
            trusted(&here, &about)?;
            if ahead.is_empty() {
                return if about.is_file() {
                    Ok((here, about))
                } else {
                    Err(TrustError::NotAFile { path: here })
                };
            }
        }
        match ahead.pop_front() {
            Some(step) if step == ".." => {
                here.pop();
            }
            Some(step) => here.push(step),
            None => {}
        }
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn trusted(path: &Path, about: &Metadata) -> Result<(), TrustError> {
    let owner = about.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(TrustError::Foreign {
            path: path.to_owned(),
            owner,
        });
    }
    let is_sticky_folder = about.is_dir() && about.mode() & 0o1000 != 0;
    if about.mode() & 0o022 != 0 && !is_sticky_folder {
        return Err(TrustError::Writable {
            path: path.to_owned(),
            mode: about.mode() & 0o7777,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_script_or_any_folder_above_it_that_others_can_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let middle = root.path().join("middle");
        let folder = middle.join("scripts");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("x.rhai");
        fs::write(&file, "fn pre(ctx) {}").unwrap();
        for path in [&middle, &folder] {
            mode(path, 0o755);
        }
        mode(&file, 0o644);
        assert_eq!(read(&file, Readers::Any).unwrap().1, "fn pre(ctx) {}");
        for (path, good) in [(&middle, 0o755), (&folder, 0o755), (&file, 0o644)] {
            for bad in [good | 0o002, good | 0o020] {
                mode(path, bad);
                assert!(
                    matches!(read(&file, Readers::Any), Err(TrustError::Writable { path: found, .. }) if found == *path)
                );
            }
            mode(path, good);
        }
        mode(&middle, 0o1777);
        assert!(read(&file, Readers::Any).is_ok(), "a sticky folder");
    }

    #[test]
    fn the_way_of_a_link_is_checked_too() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        let safe = root.path().join("safe");
        fs::create_dir_all(&open).unwrap();
        fs::create_dir_all(&safe).unwrap();
        let file = safe.join("x.rhai");
        fs::write(&file, "").unwrap();
        mode(&file, 0o644);
        symlink("../safe/x.rhai", open.join("y.rhai")).unwrap();
        symlink("../open/y.rhai", safe.join("z.rhai")).unwrap();
        mode(&open, 0o755);
        assert!(read(&safe.join("z.rhai"), Readers::Any).is_ok());
        mode(&open, 0o777);
        assert!(read(&file, Readers::Any).is_ok());
        assert!(
            matches!(read(&safe.join("z.rhai"), Readers::Any), Err(TrustError::Writable { path, .. }) if path == open)
        );
        symlink("loop", safe.join("loop")).unwrap();
        assert!(matches!(
            read(&safe.join("loop"), Readers::Any),
            Err(TrustError::Read { .. })
        ));
    }

    #[test]
    fn what_is_no_script_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            read(root.path(), Readers::Any),
            Err(TrustError::NotAFile { .. })
        ));
        let file = root.path().join("x.rhai");
        fs::write(&file, [0xff, 0xfe]).unwrap();
        mode(&file, 0o600);
        assert!(matches!(read(&file, Readers::Any), Err(TrustError::NotText { .. })));
        fs::write(&file, vec![b' '; SCRIPT_BYTES as usize + 1]).unwrap();
        assert!(matches!(read(&file, Readers::Any), Err(TrustError::TooLarge { .. })));
    }

    #[test]
    fn a_file_that_was_swapped_after_the_look_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("hook");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        mode(&file, 0o755);
        let (place, seen) = follow(&file).unwrap();
        assert!(open_seen(&place, &seen, OFlags::PATH).is_ok());
        let other = root.path().join("other");
        fs::write(&other, "#!/bin/sh\necho evil\n").unwrap();
        mode(&other, 0o755);
        fs::rename(&other, &file).unwrap();
        assert!(matches!(open_seen(&place, &seen, OFlags::PATH), Err(TrustError::Changed { path }) if path == file));
        // A link that was put there is not followed either.
        fs::remove_file(&file).unwrap();
        symlink("/bin/true", &file).unwrap();
        assert!(open_seen(&place, &seen, OFlags::PATH).is_err());
    }

    #[test]
    fn a_program_must_be_executable_and_may_have_to_be_private() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("hook");
        fs::write(&file, "").unwrap();
        mode(&file, 0o600);
        assert!(matches!(
            program(&file, Readers::Any),
            Err(TrustError::NotExecutable { .. })
        ));
        mode(&file, 0o755);
        assert!(program(&file, Readers::Any).is_ok());
        assert!(matches!(
            program(&file, Readers::OwnerAlone),
            Err(TrustError::Readable { mode: 0o755, .. })
        ));
        mode(&file, 0o700);
        assert!(program(&file, Readers::OwnerAlone).is_ok());
        assert!(read(&file, Readers::OwnerAlone).is_ok());
    }
}
