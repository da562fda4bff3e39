//! The provider `image`: images as they lie, and whether the machine is off.

use std::io::Read;
use std::process::Command;

use coffre_engine::{
    Changes, Consistency, DiskId, FindingLevel, ProviderErrorKind, SnapshotId, SnapshotProvider, Source,
};
use coffre_sandbox::PluginError;
use serde_json::json;

use crate::{load, machine, settings_for, take};

#[tokio::test]
async fn a_folders_images_are_disks_and_off_means_file_system() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("root.img"), b"root").expect("an image");
    std::fs::write(folder.path().join("data.raw"), b"").expect("an image");
    std::fs::write(folder.path().join("notes.txt"), b"no disk").expect("a file");
    std::fs::write(folder.path().join(".hidden.img"), b"no disk").expect("a file");
    let settings = settings_for(folder.path());
    let provider = load("image", &settings).await.expect("it loads");
    let disks = provider.discover(&machine(&settings)).await.expect("disks");
    let found: Vec<_> = disks.iter().map(|disk| (disk.id.0.as_str(), disk.size_bytes)).collect();
    assert_eq!(found, [("data", 0), ("root", 4)]);

    let ids: Vec<DiskId> = disks.iter().map(|disk| disk.id.clone()).collect();
    assert_eq!(provider.check(&machine(&settings), &ids).await.expect("findings"), []);
    let taken = take(&provider, &settings, "job-1", &["root", "data"]).await;
    assert_eq!(taken.consistency, Consistency::FileSystem);
    assert!(
        taken.one_instant && taken.consistency_reason.contains("the machine is off"),
        "{taken:?}"
    );
    for disk in taken.disks {
        let Source::File { mut file, .. } = disk.source else {
            panic!("no file")
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("bytes");
        assert_eq!(bytes, if disk.id.0 == "root" { &b"root"[..] } else { b"" });
    }
    let id = SnapshotId("job-1".to_owned());
    let changes = provider
        .changed(&machine(&settings), &id, &ids[0], "x")
        .await
        .expect("an answer");
    assert!(matches!(changes, Changes::CannotTell(_)));
    provider.settle(&machine(&settings), &[]).await.expect("nothing to do");
    provider.release(&machine(&settings), &id).await.expect("nothing to do");
    assert_eq!(provider.held(&machine(&settings)).await.expect("an answer"), []);
}

#[tokio::test]
async fn in_use_means_crash_and_says_who() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("root.img");
    std::fs::write(&path, b"root").expect("an image");
    let settings = json!({ "disks": { "system": path } });
    let provider = load("image", &settings).await.expect("it loads");
    let writer = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
    let findings = provider
        .check(&machine(&settings), &[DiskId("system".to_owned())])
        .await
        .expect("findings");
    assert_eq!(findings[0].level, FindingLevel::Warning);
    let taken = take(&provider, &settings, "job-1", &["system"]).await;
    assert_eq!((taken.consistency, taken.one_instant), (Consistency::Crash, false));
    let me = format!("pid {}", std::process::id());
    assert!(taken.consistency_reason.contains(&me), "{}", taken.consistency_reason);
    drop(writer);
}

#[tokio::test]
async fn wrong_settings_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    for (settings, kind) in [
        (json!({}), ProviderErrorKind::InvalidSettings),
        (json!({ "imags": folder.path() }), ProviderErrorKind::InvalidSettings),
        (json!({ "images": folder.path() }), ProviderErrorKind::NotFound),
        (json!({ "images": "/nowhere/at/all" }), ProviderErrorKind::NotFound),
        (
            json!({ "disks": { "a": "/nowhere/a.img" } }),
            ProviderErrorKind::NotFound,
        ),
    ] {
        let provider = load("image", &settings).await.expect("it loads");
        let error = provider.discover(&machine(&settings)).await.expect_err("refused");
        assert_eq!(error.kind, kind, "{settings}: {}", error.text);
    }
    // What would become part of a grant is refused before anything runs.
    for settings in [
        json!({ "images": 7 }),
        json!({ "images": "relative" }),
        json!({ "images": "/vm/../etc" }),
    ] {
        let error = load("image", &settings).await.err().expect("refused");
        assert!(matches!(error, PluginError::BadSettings { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_smallest_plugin_of_the_examples_works() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), b"bytes").expect("bytes");
    let settings = json!({ "file": file.path() });
    let provider = load("plugin-smallest-rust", &settings).await.expect("it loads");
    assert_eq!(
        provider.discover(&machine(&settings)).await.expect("disks")[0].size_bytes,
        5
    );
    let taken = take(&provider, &settings, "job-1", &["disk"]).await;
    assert!(matches!(taken.disks[0].source, Source::File { .. }));
}

#[tokio::test]
async fn two_images_of_one_name_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.img"), b"").expect("an image");
    std::fs::write(folder.path().join("a.raw"), b"").expect("an image");
    let settings = settings_for(folder.path());
    let provider = load("image", &settings).await.expect("it loads");
    let error = provider.discover(&machine(&settings)).await.expect_err("refused");
    assert!(error.text.contains("would both be the disk `a`"), "{}", error.text);
}

/// A file as a block device, given back when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn of(file: &std::path::Path) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "loop devices need root: run the tests as root"
        );
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .expect("losetup, of the package mount");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(String::from_utf8_lossy(&made.stdout).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_device_is_measured_and_its_mount_is_seen() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (file, mount) = (folder.path().join("disk"), folder.path().join("mnt"));
    std::fs::File::create(&file)
        .and_then(|made| made.set_len(128 << 20))
        .expect("a file");
    std::fs::create_dir(&mount).expect("a folder");
    let made = Command::new("mkfs.btrfs")
        .arg("-q")
        .arg(&file)
        .status()
        .expect("mkfs.btrfs, of the package btrfs-progs");
    assert!(made.success());
    let device = LoopDevice::of(&file);
    let settings = json!({ "disks": { "root": device.0 } });
    let provider = load("image", &settings).await.expect("it loads");
    let taken = take(&provider, &settings, "job-1", &["root"]).await;
    assert_eq!(
        (taken.consistency, taken.disks[0].size_bytes),
        (Consistency::FileSystem, 128 << 20),
        "{taken:?}"
    );

    assert!(
        Command::new("mount")
            .arg(&device.0)
            .arg(&mount)
            .status()
            .expect("mount")
            .success()
    );
    let taken = take(&provider, &settings, "job-2", &["root"]).await;
    assert!(Command::new("umount").arg(&mount).status().expect("umount").success());
    assert_eq!(taken.consistency, Consistency::Crash, "{}", taken.consistency_reason);
    assert!(
        taken.consistency_reason.contains("mounted"),
        "{}",
        taken.consistency_reason
    );

    let writer = std::fs::OpenOptions::new().write(true).open(&device.0).expect("open");
    let taken = take(&provider, &settings, "job-3", &["root"]).await;
    assert!(
        taken
            .consistency_reason
            .contains(&format!("pid {}", std::process::id())),
        "{}",
        taken.consistency_reason
    );
    drop(writer);
}
