//! Scratch file systems on loop devices, gone again when the test ends, also when it fails.
//!
//! Nothing else may be frozen in a test: [`Scratch::freezable`] is where paths to freeze come from, and it gives no other.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A mounted scratch file system. Needs root.
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// Makes and mounts a file system of this type; the image is sparse.
    pub fn new(kind: &str, size_bytes: u64) -> Self {
        Self::within(&std::env::temp_dir(), kind, size_bytes)
    }

    /// The same with its image below a given folder.
    pub fn within(parent: &Path, kind: &str, size_bytes: u64) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("coffre-scratch-")
            .tempdir_in(parent)
            .unwrap();
        let image = folder.path().join("image");
        crate::disk::sparse(&image, size_bytes);
        std::fs::create_dir(folder.path().join("mnt")).unwrap();
        let scratch = Self { folder };
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
        scratch.mount(&image, "loop");
        scratch
    }

    /// Mounts an image that is there already, where other users can get at it. Of XFS, a copy may be mounted beside its
    /// original.
    pub fn of_image(image: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("coffre-scratch-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(folder.path().join("mnt")).unwrap();
        let scratch = Self { folder };
        let mut magic = [0; 4];
        let opened = std::fs::File::open(image).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&opened, &mut magic, 0).unwrap();
        scratch.mount(image, if &magic == b"XFSB" { "loop,nouuid" } else { "loop" });
        scratch
    }

    fn mount(&self, image: &Path, options: &str) {
        run(Command::new("mount").args(["-o", options]).arg(image).arg(self.path()));
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// The file that the file system lies in.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// The mount point, for whoever is going to freeze it. Panics unless what is mounted there is a loop device upon our own
    /// image: a test never freezes anything else.
    #[track_caller]
    pub fn freezable(&self) -> PathBuf {
        assert!(
            is_own_loop_mount(&self.path(), &self.image()),
            "{} is no scratch mount of this test's",
            self.path().display()
        );
        self.path()
    }

    /// Freezes it as somebody else would.
    #[track_caller]
    pub fn freeze(&self) {
        run(Command::new("fsfreeze").arg("--freeze").arg(self.freezable()));
    }

    /// Thaws it; that it was not frozen is no error.
    pub fn thaw(&self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.path()).output();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.thaw();
        unmount(&self.path());
    }
}

/// Whether the file system at `point` is a loop device's whose file is `image`.
fn is_own_loop_mount(point: &Path, image: &Path) -> bool {
    let Ok(device) = rustix::fs::stat(point).map(|stat| stat.st_dev) else {
        return false;
    };
    let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let backing = std::fs::read_to_string(format!("/sys/dev/block/{numbers}/loop/backing_file"));
    backing.is_ok_and(|backing| Path::new(backing.trim_end()) == image)
}

fn unmount(path: &Path) {
    for _ in 0..50 {
        match Command::new("umount").arg(path).output() {
            Ok(output) if output.status.success() => return,
            _ => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
    // Dropping must not panic; the folder that stays behind tells.
    let _ = writeln!(std::io::stderr(), "{} is still mounted", path.display());
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loop_mount_of_our_own_is_given_out_to_be_frozen() {
        let scratch = Scratch::new("ext4", 16 << 20);
        assert_eq!(scratch.freezable(), scratch.path());
        for other in ["/", "/tmp", "/run", "/proc"] {
            assert!(!is_own_loop_mount(Path::new(other), &scratch.image()), "{other}");
        }
        assert!(!is_own_loop_mount(&scratch.path(), Path::new("/another/image")));
        run(Command::new("umount").arg(scratch.path()));
        assert!(std::panic::catch_unwind(|| scratch.freezable()).is_err());
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(scratch.image())
            .arg(scratch.path()));
    }
}
