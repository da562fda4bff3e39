//! A small file system that makes clones, in a file, mounted for a test.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Xfs,
    Btrfs,
}

pub struct Mounted {
    mount: PathBuf,
    _folder: TempDir,
}

impl Mounted {
    /// mkfs.xfs makes nothing smaller than 300 MB; the file is sparse.
    pub fn new(kind: Kind, size: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "mounting a file system needs root: run the tests as root"
        );
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let (image, mount) = (folder.path().join("xfs.image"), folder.path().join("mnt"));
        std::fs::create_dir(&mount).expect("a folder");
        run(Command::new("truncate").args(["-s", size]).arg(&image), "coreutils");
        match kind {
            Kind::Xfs => run(
                Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image),
                "xfsprogs",
            ),
            Kind::Btrfs => run(Command::new("mkfs.btrfs").arg("-q").arg(&image), "btrfs-progs"),
        }
        run(
            Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount),
            "mount",
        );
        Self { mount, _folder: folder }
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

fn run(command: &mut Command, package: &str) {
    let done = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; apt-get install {package}"));
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
