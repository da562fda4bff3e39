//! Whether a file or device is in use by a mount, so that nothing is restored over a living file system.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Says what uses `path`: a mount of the device itself, of a partition of it, or of a loop device upon it.
pub(super) fn user_of(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let devices = if metadata.file_type().is_block_device() {
        vec![metadata.rdev()]
    } else {
        loop_devices_upon(path)
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    for device in devices {
        let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        // Fields as in proc(5): the third is the device's major:minor, the fifth the mount point.
        let mounted = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields.get(2) == Some(&numbers.as_str())).then(|| fields.get(4).copied().unwrap_or("?").to_owned())
        });
        if let Some(mount_point) = mounted {
            return Some(format!("mounted on {mount_point}"));
        }
        if !metadata.file_type().is_block_device() {
            return Some(format!("the backing file of loop device {numbers}"));
        }
        let partition = partitions_of(&numbers)
            .into_iter()
            .find(|partition| mounts.lines().any(|line| line.split(' ').nth(2) == Some(partition)));
        if let Some(partition) = partition {
            return Some(format!("a disk whose partition {partition} is mounted"));
        }
    }
    None
}

fn loop_devices_upon(path: &Path) -> Vec<u64> {
    let Ok(path) = path.canonicalize() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            Path::new(backing.trim_end()) == path
        })
        .filter_map(|entry| device_number(&fs::read_to_string(entry.path().join("dev")).ok()?))
        .collect()
}

fn partitions_of(numbers: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/sys/dev/block/{numbers}")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.path().join("partition").exists())
        .filter_map(|entry| Some(fs::read_to_string(entry.path().join("dev")).ok()?.trim().to_owned()))
        .collect()
}

fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}
