//! From a granted place to a descriptor. Only the operator's own part of a path is opened with links followed; below it
//! the kernel resolves and follows none (openat2(2), RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS).

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open as open_path, openat2};
use rustix::io::Errno;

use crate::grant::Place;

const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Opens what is granted. With `OFlags::PATH` nothing happens to a device or pipe; [`again`] opens it for real once it is
/// known what it is.
pub(super) fn open(place: &Place, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    if place.device_link {
        let opened = open_path(place.path(), flags, Mode::empty())?;
        let is_device = FileType::from_raw_mode(fstat(&opened)?.st_mode) == FileType::BlockDevice;
        return if is_device {
            Ok(opened)
        } else {
            within(place, &place.below, flags)
        };
    }
    within(place, &place.below, flags)
}

fn within(place: &Place, below: &[String], flags: OFlags) -> Result<OwnedFd, Errno> {
    let root = open_path(
        &place.root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let way = if below.is_empty() {
        ".".to_owned()
    } else {
        below.join("/")
    };
    loop {
        match openat2(&root, way.as_str(), flags, Mode::empty(), WITHIN) {
            // A rename elsewhere raced with the resolution; the kernel asks to try again.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

/// The folder that a granted thing lies in, open as a path, and its name there. The folder may lie above the granted
/// place only for the operator's own folder itself.
pub(super) fn parent(place: &Place) -> Result<(OwnedFd, String), Errno> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match place.below.split_last() {
        Some((name, above)) => Ok((within(place, above, folder)?, name.clone())),
        None => {
            let name = place
                .root
                .file_name()
                .and_then(|name| name.to_str())
                .ok_or(Errno::PERM)?;
            let above = place.root.parent().ok_or(Errno::PERM)?;
            Ok((open_path(above, folder, Mode::empty())?, name.to_owned()))
        }
    }
}

/// Opens what an O_PATH descriptor stands for: the same file, whatever its name means by now.
pub(super) fn again(there: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", there.as_raw_fd());
    rustix::fs::openat(CWD, path.as_str(), flags | OFlags::CLOEXEC, Mode::empty())
}
