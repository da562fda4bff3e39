//! Where a disk is restored to: a sparse file or a block device, refused where it would destroy something.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::mounted::user_of;
use crate::digest::is_zero;
use crate::machine::DiskId;

/// What is looked at to tell whether a device holds something: a boot sector, a partition table or a super block lies here.
const LOOKED_AT_BYTES: u64 = 1 << 20;

/// Whether what a target holds may be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    Refuse,
    Allow,
}

/// Why a target cannot be written, or is not to be.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{} is {used}", path.display())]
    InUse { path: PathBuf, used: String },
    #[error("{} has {target_bytes} bytes, and the disk has {disk_bytes}", path.display())]
    TooSmall {
        path: PathBuf,
        target_bytes: u64,
        disk_bytes: u64,
    },
    #[error("{} is neither a regular file nor a block device", path.display())]
    Kind { path: PathBuf },
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// An open target, checked, of at least the disk's size.
#[derive(Debug)]
pub struct Target {
    file: File,
    path: PathBuf,
    /// A new file is zero wherever nothing is written.
    is_zero: bool,
}

impl Target {
    /// Opens or creates `path` for a disk of `disk_bytes`. Nothing that is there is touched before all checks are passed.
    pub fn open(path: &Path, disk_bytes: u64, overwrite: Overwrite) -> Result<Self, TargetError> {
        let failed = |action| {
            move |source| TargetError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let file = match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
        {
            Ok(file) => {
                file.set_len(disk_bytes).map_err(failed("size"))?;
                return Ok(Self {
                    file,
                    path: path.to_owned(),
                    is_zero: true,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map_err(failed("open"))?,
            Err(error) => return Err(failed("create")(error)),
        };
        if let Some(used) = user_of(path) {
            return Err(TargetError::InUse {
                path: path.to_owned(),
                used,
            });
        }
        let metadata = file.metadata().map_err(failed("examine"))?;
        let target = Self {
            file,
            path: path.to_owned(),
            is_zero: false,
        };
        if metadata.file_type().is_block_device() {
            target.check_device(disk_bytes, overwrite)?;
            Ok(target)
        } else if metadata.is_file() {
            if metadata.len() > 0 && overwrite == Overwrite::Refuse {
                return Err(TargetError::NotEmpty { path: path.to_owned() });
            }
            target
                .file
                .set_len(0)
                .and_then(|()| target.file.set_len(disk_bytes))
                .map_err(failed("size"))?;
            Ok(Self {
                is_zero: true,
                ..target
            })
        } else {
            Err(TargetError::Kind { path: path.to_owned() })
        }
    }

    fn check_device(&self, disk_bytes: u64, overwrite: Overwrite) -> Result<(), TargetError> {
        let failed = |action| {
            move |source| TargetError::Io {
                action,
                path: self.path.clone(),
                source,
            }
        };
        let target_bytes = seek(&self.file, SeekFrom::End(0)).map_err(|error| failed("measure")(error.into()))?;
        if target_bytes < disk_bytes {
            return Err(TargetError::TooSmall {
                path: self.path.clone(),
                target_bytes,
                disk_bytes,
            });
        }
        if overwrite == Overwrite::Refuse {
            let mut head = vec![0; LOOKED_AT_BYTES.min(target_bytes) as usize];
            self.file.read_exact_at(&mut head, 0).map_err(failed("read"))?;
            if !is_zero(&head) {
                return Err(TargetError::NotEmpty {
                    path: self.path.clone(),
                });
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), TargetError> {
        self.file
            .write_all_at(bytes, offset_bytes)
            .map_err(|source| TargetError::Io {
                action: "write",
                path: self.path.clone(),
                source,
            })
    }

    /// Makes a range zero; costs nothing on a new file.
    pub(super) fn write_zeroes(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), TargetError> {
        if self.is_zero || length_bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, flags, offset_bytes, length_bytes).is_ok() {
            return Ok(());
        }
        // Not every device can; then the zeroes are written.
        let zeroes = vec![0; (1 << 20).min(length_bytes) as usize];
        let mut done = 0;
        while done < length_bytes {
            let count = (length_bytes - done).min(zeroes.len() as u64);
            self.write(&zeroes[..count as usize], offset_bytes + done)?;
            done += count;
        }
        Ok(())
    }

    /// Until this returns, a power cut can undo the restore.
    pub(super) fn sync(&self) -> Result<(), TargetError> {
        self.file.sync_all().map_err(|source| TargetError::Io {
            action: "sync",
            path: self.path.clone(),
            source,
        })
    }
}

/// The file that a disk is restored to when a whole machine goes into a folder: its id, with anything that a file name
/// cannot or should not hold replaced by `_`, and `.img`.
pub fn target_file_name(disk: &DiskId) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
    let plain: String = disk
        .0
        .chars()
        .map(|letter| if is_plain(letter) { letter } else { '_' })
        .collect();
    let plain = plain.trim_start_matches('.');
    let stem = plain
        .strip_suffix(".img")
        .or(plain.strip_suffix(".raw"))
        .unwrap_or(plain);
    format!("{}.img", if stem.is_empty() { "disk" } else { stem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_content_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, b"mine").unwrap();
        assert!(matches!(
            Target::open(&path, 8192, Overwrite::Refuse),
            Err(TargetError::NotEmpty { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        Target::open(&path, 8192, Overwrite::Allow).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 8192]);
    }

    #[test]
    fn a_folder_is_no_target() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Target::open(folder.path(), 8192, Overwrite::Allow).is_err());
    }

    #[test]
    fn disk_ids_become_plain_file_names() {
        for (id, name) in [
            ("sda", "sda.img"),
            ("/dev/vg/root", "_dev_vg_root.img"),
            ("..", "disk.img"),
            ("a.raw", "a.img"),
        ] {
            assert_eq!(target_file_name(&DiskId(id.into())), name);
        }
    }
}
