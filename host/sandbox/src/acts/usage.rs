//! Whether somebody has a file or device open for writing, and how we know.
//!
//! For a regular file the kernel itself answers: it grants a read lease only where nobody has it open for writing, a
//! mapping or a loop device included. Where others than this host may write (NFS and the like) nothing can be shown.
//! `/proc` is searched only to name the culprit, and for block devices, where there are no leases: those are opened
//! exclusively, which fails while one is mounted or part of a larger device, and then `/proc` shows who has it open.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, fstat, fstatfs, major, minor, open, statx};
use rustix::io::Errno;

use super::ActError;
use super::files::file_system_name;
use super::system::has_writers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UsageState {
    Unused,
    InUse,
    CannotTell,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub state: UsageState,
    /// How it is known, as a clause.
    pub how: String,
}

impl Usage {
    fn new(state: UsageState, how: impl Into<String>) -> Self {
        Self { state, how: how.into() }
    }
}

/// Searching `/proc` takes 10 ms on a quiet host; on a crowded one the name of the culprit is not worth more than this.
const SEARCH_AT_MOST: Duration = Duration::from_secs(2);

/// `file` is a regular file or block device, open for reading only.
pub(crate) fn usage(file: BorrowedFd<'_>) -> Result<Usage, ActError> {
    let found = fstat(file).map_err(ActError::at("look at it"))?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => {
            let wanted = Wanted::File {
                major: major(found.st_dev),
                minor: minor(found.st_dev),
                inode: found.st_ino,
            };
            Ok(file_usage(file, &wanted))
        }
        FileType::BlockDevice => device_usage(file, major(found.st_rdev), minor(found.st_rdev)),
        _ => Ok(Usage::new(
            UsageState::CannotTell,
            "it is neither a file nor a block device",
        )),
    }
}

fn file_usage(file: BorrowedFd<'_>, wanted: &Wanted) -> Usage {
    let system = fstatfs(file).map_or("", |system| file_system_name(system.f_type as u64));
    let elsewhere = matches!(system, "nfs" | "cifs" | "smb3" | "ceph" | "fuse" | "9p");
    match has_writers(file) {
        Ok(true) => Usage::new(UsageState::InUse, writer_of(file, wanted)),
        Ok(false) if elsewhere => Usage::new(
            UsageState::CannotTell,
            format!("it lies on {system}, where others may write to it unseen"),
        ),
        Ok(false) => Usage::new(UsageState::Unused, "nothing has it open for writing"),
        Err(errno) => match search(wanted) {
            Search::Found(who) => Usage::new(UsageState::InUse, format!("{who} has it open for writing")),
            _ => Usage::new(
                UsageState::CannotTell,
                format!("the kernel gives no lease on it ({errno}), so that nobody writes to it cannot be shown"),
            ),
        },
    }
}

fn writer_of(file: BorrowedFd<'_>, wanted: &Wanted) -> String {
    if let Search::Found(who) = search(wanted) {
        return format!("{who} has it open for writing");
    }
    match loop_device(file) {
        Some(device) => format!("the loop device {device} writes to it"),
        None => "something that /proc does not show has it open for writing".to_owned(),
    }
}

fn device_usage(file: BorrowedFd<'_>, major: u32, minor: u32) -> Result<Usage, ActError> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match open(path.as_str(), flags, Mode::empty()) {
        // Closed at once: while it is open, nobody could mount the device.
        Ok(exclusive) => drop(exclusive),
        Err(Errno::BUSY) => {
            let how = match mount_of(major, minor) {
                Some(mount) => format!("it is mounted on {mount}"),
                None => "it is part of another device, or a part of it is mounted".to_owned(),
            };
            return Ok(Usage::new(UsageState::InUse, how));
        }
        Err(errno) => {
            return Err(ActError {
                doing: "open it exclusively",
                errno,
            });
        }
    }
    Ok(match search(&Wanted::Device { major, minor }) {
        Search::Found(who) => Usage::new(UsageState::InUse, format!("{who} has it open for writing")),
        Search::Nobody => Usage::new(
            UsageState::Unused,
            "it is not mounted and no process has it open for writing",
        ),
        Search::Incomplete => Usage::new(
            UsageState::CannotTell,
            "not every process could be looked at, so that nobody writes to it cannot be shown",
        ),
    })
}

enum Wanted {
    File { major: u32, minor: u32, inode: u64 },
    Device { major: u32, minor: u32 },
}

enum Search {
    Found(String),
    Nobody,
    /// Some processes could not be looked at.
    Incomplete,
}

/// Looks through all open descriptors of all processes.
fn search(wanted: &Wanted) -> Search {
    let until = Instant::now() + SEARCH_AT_MOST;
    let mut complete = true;
    let Ok(processes) = fs::read_dir("/proc") else {
        return Search::Incomplete;
    };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        let descriptors = match fs::read_dir(process.path().join("fd")) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                complete &= error.kind() != std::io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        for descriptor in descriptors.flatten() {
            if Instant::now() > until {
                return Search::Incomplete;
            }
            let number = descriptor.file_name();
            if wanted.is(&descriptor.path()) && writes(&process.path().join("fdinfo").join(&number)) {
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                let command: String = command
                    .trim_end()
                    .chars()
                    .filter(|letter| !letter.is_control())
                    .collect();
                return Search::Found(format!("{command} (pid {pid})"));
            }
        }
    }
    if complete { Search::Nobody } else { Search::Incomplete }
}

impl Wanted {
    fn is(&self, descriptor: &Path) -> bool {
        // Without asking a server: another process's file on a hung NFS must not hang us.
        let Ok(found) = statx(
            CWD,
            descriptor,
            AtFlags::STATX_DONT_SYNC,
            StatxFlags::INO | StatxFlags::TYPE,
        ) else {
            return false;
        };
        match self {
            Self::File { major, minor, inode } => {
                found.stx_ino == *inode && found.stx_dev_major == *major && found.stx_dev_minor == *minor
            }
            Self::Device { major, minor } => {
                FileType::from_raw_mode(u32::from(found.stx_mode)) == FileType::BlockDevice
                    && found.stx_rdev_major == *major
                    && found.stx_rdev_minor == *minor
            }
        }
    }
}

/// The access mode in `/proc/PID/fdinfo/N` (octal) is not read-only.
fn writes(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & 0o3 != 0)
}

fn loop_device(file: BorrowedFd<'_>) -> Option<String> {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).ok()?;
    let mut devices = fs::read_dir("/sys/block").ok()?.flatten();
    devices.find_map(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == path)
            .then(|| format!("/dev/{}", device.file_name().to_string_lossy()))
    })
}

fn mount_of(major: u32, minor: u32) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let device = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.nth(2)? == device).then(|| fields.nth(1).map(str::to_owned))?
    })
}
