//! Which file system a path lies on, and what that file system lies on itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::debt::Device;

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub device: Device,
    /// Where it is mounted.
    pub point: PathBuf,
    /// `ext4`, `xfs` …
    pub kind: String,
}

/// Every mount that this process sees, in the order in which they were made.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let id = text(fields.next()?)?.parse().ok()?;
    let device = device(&text(fields.nth(1)?)?)?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    // Optional fields end with a lone hyphen; then comes the type.
    let kind = text(fields.skip_while(|field| *field != b"-").nth(1)?)?;
    Some(Mount {
        id,
        device,
        point,
        kind,
    })
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

fn device(text: &str) -> Option<Device> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(Device {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// The mount that `path` lies on; of a path that is not there yet, that of the nearest folder above it.
pub fn mount_of<'a>(path: &Path, mounts: &'a [Mount]) -> io::Result<Option<&'a Mount>> {
    let mut at = Some(path);
    while let Some(path) = at {
        match statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID) {
            Ok(found) => return Ok(mounts.iter().find(|mount| mount.id == found.stx_mnt_id)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => at = path.parent(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The mount that an open file lies on.
pub(crate) fn mount_of_open(file: impl std::os::fd::AsFd, mounts: &[Mount]) -> io::Result<Option<&Mount>> {
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(mounts.iter().find(|mount| mount.id == found.stx_mnt_id))
}

/// The file systems that must take writes so that this one does: itself, and those that hold the files behind its loop
/// devices, however many devices (partitions, LVM, dm-crypt) lie between.
pub fn stands_on(device: Device, mounts: &[Mount]) -> BTreeSet<Device> {
    let mut all = BTreeSet::new();
    let mut next = vec![device];
    while let Some(device) = next.pop() {
        if !all.insert(device) {
            continue;
        }
        let folder = PathBuf::from(format!("/sys/dev/block/{device}"));
        for backing in ["loop/backing_file", "../loop/backing_file"] {
            if let Ok(file) = fs::read(folder.join(backing)) {
                let path = PathBuf::from(OsString::from_vec(file.trim_ascii_end().to_vec()));
                next.extend(mount_of(&path, mounts).ok().flatten().map(|mount| mount.device));
            }
        }
        let below = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
        next.extend(below.filter_map(|entry| self::device(&fs::read_to_string(entry.path().join("dev")).ok()?)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\040two\134x rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.device), (36, Device { major: 98, minor: 0 }));
        assert_eq!(mount.point, Path::new(r"/mnt two\x"));
        assert_eq!(mount.kind, "ext3");
        let line = b"22 1 0:20 / /proc rw - proc proc rw";
        assert_eq!(parse(line).unwrap().kind, "proc");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 x:y / / rw - ext4 a rw"), None);
    }

    #[test]
    fn a_path_that_is_not_there_lies_where_it_would_be_made() {
        let mounts = mounts().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let here = mount_of(folder.path(), &mounts).unwrap().unwrap();
        assert_eq!(
            mount_of(&folder.path().join("not/there"), &mounts).unwrap().unwrap(),
            here
        );
        assert!(stands_on(here.device, &mounts).contains(&here.device));
    }
}
