//! Scratch file systems on loop devices, gone again when the test ends, also when it fails.

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
        let folder = tempfile::Builder::new().prefix("coffre-scratch-").tempdir().unwrap();
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
        scratch.mount(image, "loop,nouuid");
        scratch
    }

    fn mount(&self, image: &Path, options: &str) {
        run(Command::new("mount").args(["-o", options]).arg(image).arg(self.path()));
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unmount(&self.path());
    }
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
