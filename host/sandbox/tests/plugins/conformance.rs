//! What the contract promises of every provider, tried with each of them.

use std::path::Path;

use coffre_engine::{Base, Changes, DiskId, SnapshotId, SnapshotProvider, Source, TakenDisk};
use serde_json::{Value, json};

use crate::mounted::{Kind, Mounted};
use crate::{load, machine, request};

/// Goes through a job's calls, also twice where the contract says that this is harmless, each time in a fresh provider,
/// since a crash may lie between any two calls.
async fn conforms(name: &str, settings: &Value) {
    let machine = machine(settings);
    let provider = || async { load(name, settings).await.expect("it loads") };

    let described = provider().await.describe().await.expect("a description");
    assert_eq!(described.name, name);
    let disks = provider().await.discover(&machine).await.expect("disks");
    assert!(!disks.is_empty());
    let again = provider().await.discover(&machine).await.expect("disks");
    assert_eq!(again, disks, "ids stay the same");
    let ids: Vec<DiskId> = disks.iter().map(|disk| disk.id.clone()).collect();
    provider().await.check(&machine, &ids).await.expect("findings");

    let unknown = request("job-0", &["no-such-disk"]);
    provider()
        .await
        .take(&machine, &unknown)
        .await
        .expect_err("an unknown disk");
    provider()
        .await
        .release(&machine, &unknown.id)
        .await
        .expect("a failed snapshot is released");

    let asked: Vec<&str> = ids.iter().map(|id| id.0.as_str()).collect();
    let taken = provider()
        .await
        .take(&machine, &request("job-1", &asked))
        .await
        .expect("a snapshot");
    let id = SnapshotId("job-1".to_owned());
    for disk in &taken.disks {
        let known = disks
            .iter()
            .find(|known| known.id == disk.id)
            .expect("a disk that was discovered");
        assert_eq!(disk.size_bytes, known.size_bytes);
        if let Source::File { file, .. } = &disk.source {
            assert_eq!(file.metadata().expect("a file").len(), disk.size_bytes);
        }
        let asking = provider().await;
        let changes = asking
            .changed(&machine, &id, &disk.id, "a-token-of-nobody")
            .await
            .expect("an answer");
        assert!(matches!(changes, Changes::CannotTell(_)), "an unknown base");
    }
    let held = provider().await.held(&machine).await.expect("held");
    assert!(held.iter().all(|held| *held == id), "{held:?}");

    let token = |disk: &TakenDisk| {
        Some(Base {
            disk: disk.id.clone(),
            token: disk.token.clone()?,
        })
    };
    let keep: Vec<Base> = taken.disks.iter().filter_map(token).collect();
    for _ in 0..2 {
        provider().await.settle(&machine, &keep).await.expect("settled");
        provider().await.release(&machine, &id).await.expect("released");
    }
    assert_eq!(provider().await.held(&machine).await.expect("held"), []);
    provider().await.settle(&machine, &[]).await.expect("settled");
}

fn fill(folder: &Path) {
    for (name, size) in [("root.img", 1 << 20), ("data.img", 1 << 16), ("empty.img", 0)] {
        std::fs::write(folder.join(name), vec![1; size]).expect("an image");
    }
}

#[tokio::test]
async fn image_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    fill(folder.path());
    conforms("image", &json!({ "images": folder.path() })).await;
}

#[tokio::test]
async fn the_smallest_plugin_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    fill(folder.path());
    conforms(
        "plugin-smallest-rust",
        &json!({ "file": folder.path().join("root.img") }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflink_conforms() {
    let disk = Mounted::new(Kind::Xfs, "400M");
    fill(disk.path());
    conforms("reflink", &json!({ "images": disk.path() })).await;
    let (images, snapshots) = (disk.path().join("root.img"), disk.path().join("snapshots"));
    conforms("reflink", &json!({ "images": [images], "snapshots": snapshots })).await;
}
