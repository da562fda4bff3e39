//! Looking at files and folders, and making, cloning, linking and removing them below an open folder.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, fstat, fstatfs, fsync, ioctl_ficlone, linkat, mkdirat, openat,
    seek, statat, unlinkat,
};
use rustix::io::Errno;

use super::ActError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    RegularFile,
    BlockDevice,
    Folder,
    Other,
}

impl From<FileType> for Kind {
    fn from(found: FileType) -> Self {
        match found {
            FileType::RegularFile => Self::RegularFile,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Directory => Self::Folder,
            _ => Self::Other,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub kind: Kind,
    pub size_bytes: u64,
    pub modified_ns: u64,
    /// As mount(8) names it; empty where unknown.
    pub file_system: &'static str,
    pub file_system_id: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub name: String,
    pub kind: Kind,
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

pub(crate) fn kind_of(file: BorrowedFd<'_>) -> Result<Kind, ActError> {
    let found = fstat(file).map_err(ActError::at("look at it"))?;
    Ok(FileType::from_raw_mode(found.st_mode).into())
}

/// Of a block device the capacity is measured by lseek, so `file` must be open for reading; for others O_PATH is enough.
pub(crate) fn status(file: BorrowedFd<'_>) -> Result<Status, ActError> {
    let failed = ActError::at("look at it");
    let found = fstat(file).map_err(&failed)?;
    let kind = Kind::from(FileType::from_raw_mode(found.st_mode));
    let size_bytes = match kind {
        Kind::BlockDevice => seek(file, SeekFrom::End(0)).map_err(ActError::at("measure the device"))?,
        _ => u64::try_from(found.st_size).unwrap_or(0),
    };
    let file_system = fstatfs(file).map_or("", |system| file_system_name(system.f_type as u64));
    Ok(Status {
        kind,
        size_bytes,
        modified_ns: modified_ns(&found),
        file_system,
        file_system_id: found.st_dev,
    })
}

fn modified_ns(found: &Stat) -> u64 {
    let seconds = u64::try_from(found.st_mtime).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(found.st_mtime_nsec)
}

/// From linux/magic.h, and for those that are not there from their own sources (XFS, ZFS, bcachefs, Ceph, SMB).
pub(super) fn file_system_name(magic: u64) -> &'static str {
    match magic & 0xFFFF_FFFF {
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0xEF53 => "ext4",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlay",
        0xF2F5_2010 => "f2fs",
        0x2FC1_2FC1 => "zfs",
        0xCA45_1A4E => "bcachefs",
        0x6969 => "nfs",
        0xFF53_4D42 => "cifs",
        0xFE53_4D42 => "smb3",
        0x00C3_6400 => "ceph",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        _ => "",
    }
}

/// The entries of a folder that is open for reading, sorted. Names that are no UTF-8 cannot be named by a plugin and are
/// left out.
pub(crate) fn list_folder(folder: BorrowedFd<'_>, at_most: usize) -> Result<Vec<Entry>, ActError> {
    let failed = ActError::at("list the folder");
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        if found.len() == at_most {
            return Err(failed(Errno::FBIG));
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => FileType::from_raw_mode(found.st_mode).into(),
                // Gone in between.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(failed(errno)),
            },
            known => known.into(),
        };
        found.push(Entry {
            name: name.to_owned(),
            kind,
        });
    }
    found.sort();
    Ok(found)
}

/// Mode 0700. Being there already, as a folder, is success.
pub(crate) fn create_folder(parent: BorrowedFd<'_>, name: &str) -> Result<(), ActError> {
    let failed = ActError::at("create the folder");
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
            let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if is_folder { Ok(()) } else { Err(failed(Errno::NOTDIR)) }
        }
        Err(errno) => Err(failed(errno)),
    }
}

/// FICLONE into a new file of mode 0600, which is gone again after a failure.
pub(crate) fn clone_file(source: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &str) -> Result<(), ActError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target =
        openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(ActError::at("create the clone's file"))?;
    let cloned = ioctl_ficlone(&target, source).map_err(ActError::at("clone the file"));
    if cloned.is_err() {
        // What matters is the first error; a file that stays is found by its name.
        let _ = unlinkat(parent, name, AtFlags::empty());
    }
    cloned
}

/// The file's bytes and its name, on the medium.
pub(crate) fn sync(file: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> Result<(), ActError> {
    fsync(file).map_err(ActError::at("write the file to the medium"))?;
    let folder: OwnedFd = openat(
        parent,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(ActError::at("open its folder"))?;
    fsync(folder.as_fd()).map_err(ActError::at("write its folder to the medium"))
}

/// A second name for a regular file. The same file under the target's name already is success.
pub(crate) fn link(from: BorrowedFd<'_>, source: &str, to: BorrowedFd<'_>, target: &str) -> Result<(), ActError> {
    let failed = ActError::at("link the file");
    let found = statat(from, source, AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(failed(Errno::INVAL));
    }
    match linkat(from, source, to, target, AtFlags::empty()) {
        Err(Errno::EXIST) => {
            let there = statat(to, target, AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
            let same = there.st_dev == found.st_dev && there.st_ino == found.st_ino;
            if same { Ok(()) } else { Err(failed(Errno::EXIST)) }
        }
        linked => linked.map_err(failed),
    }
}

/// A file or an empty folder. Being gone already is success.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &str) -> Result<(), ActError> {
    let removed = match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(parent, name, AtFlags::REMOVEDIR),
        other => other,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(ActError {
            doing: "remove it",
            errno,
        }),
    }
}
