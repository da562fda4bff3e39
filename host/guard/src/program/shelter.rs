//! What a guard does for itself before it is owed anything: it must outlive its host, however that ends.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mm::{MlockAllFlags, mlockall};

use crate::wire::Shelter;

/// Of oom_score_adj (proc_pid_oom_score_adj(5)): never, unless all others are gone.
const LAST_FOR_OOM: &str = "-1000";

/// The groups of the old kind whose members are killed or stopped as one: by systemd, and by whoever has frozen them first.
const OLD_GROUPS: [&str; 2] = ["name=systemd", "freezer"];

/// Leaves the host's session and group, and asks not to be paged out or killed. What cannot be had is told to the host.
pub(super) fn take() -> Shelter {
    // A terminal that goes away, and Ctrl-C, are the host's business. It fails where we lead a session already: systemd's.
    let _ = rustix::process::setsid();
    // No file system is kept from being unmounted, or waited for, by where we stand.
    let _ = rustix::process::chdir("/");
    Shelter {
        last_for_oom: fs::write("/proc/self/oom_score_adj", LAST_FOR_OOM).is_ok(),
        // systemd has given us a unit of our own already.
        own_group: std::env::var_os("INVOCATION_ID").is_some() || leave_groups(),
        // Last, so that all of the above is in memory.
        memory_locked: mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).is_ok(),
    }
}

/// Moves into a group of our own beside the host's, in every hierarchy; whether that worked in all of them. At the root of
/// a hierarchy (or of what a container sees of it) there is no beside, and nobody inside who could kill the whole.
fn leave_groups() -> bool {
    let Ok(own) = fs::read_to_string("/proc/self/cgroup") else {
        return false;
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut left_all = true;
    for group in own.lines().filter_map(|line| Group::parse(line, &mounts)) {
        left_all &= group.leave();
    }
    left_all
}

/// A group that we are in.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    /// Where its hierarchy is mounted.
    hierarchy: PathBuf,
    path: String,
}

impl Group {
    /// A line of `/proc/self/cgroup` (cgroups(7)), with where that hierarchy is mounted; none if it does not count.
    fn parse(line: &str, mounts: &str) -> Option<Self> {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?.to_owned();
        let old = controllers
            .split(',')
            .find(|controller| OLD_GROUPS.contains(controller));
        if !controllers.is_empty() && old.is_none() {
            return None;
        }
        let hierarchy = mounts.lines().find_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut kind = kind.split(' ');
            let wanted = match old {
                None => kind.next()? == "cgroup2",
                Some(old) => kind.next()? == "cgroup" && kind.nth(1)?.split(',').any(|option| option == old),
            };
            wanted.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
        })?;
        Some(Self { hierarchy, path })
    }

    fn leave(&self) -> bool {
        let Some(above) = Path::new(&self.path).parent() else {
            return true;
        };
        let below = above.strip_prefix("/").unwrap_or(above);
        let own = self
            .hierarchy
            .join(below)
            .join(format!("coffre-guard-{}", std::process::id()));
        // Removed by the next guard that starts here, since nobody is left to do it when this one ends.
        sweep(own.parent().unwrap_or(&self.hierarchy));
        if fs::create_dir(&own).is_err() {
            return false;
        }
        let moved = fs::write(own.join("cgroup.procs"), "0").is_ok();
        if !moved {
            let _ = fs::remove_dir(&own);
        }
        moved
    }
}

/// Removes the groups of guards that have ended; one that lives is not empty, and stays.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("coffre-guard-") {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      31 24 0:27 / /sys/fs/cgroup/freezer rw,nosuid shared:9 - cgroup cgroup rw,freezer\n";
        let group = |hierarchy: &str, path: &str| {
            Some(Group {
                hierarchy: hierarchy.into(),
                path: path.to_owned(),
            })
        };
        assert_eq!(
            Group::parse("0::/system.slice/coffre.service", mounts),
            group("/sys/fs/cgroup/unified", "/system.slice/coffre.service")
        );
        assert_eq!(
            Group::parse("6:freezer:/a:b", mounts),
            group("/sys/fs/cgroup/freezer", "/a:b")
        );
        assert_eq!(Group::parse("7:blkio:/a", mounts), None, "nothing kills by it");
        assert_eq!(Group::parse("9:name=systemd:/a", mounts), None, "it is not mounted");
    }
}
