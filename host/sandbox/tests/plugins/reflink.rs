//! The provider `reflink` on a real XFS: clones, what changed, what stays and what goes.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use coffre_engine::{
    Base, Changes, Consistency, DiskId, FindingLevel, ProviderErrorKind, SnapshotId, SnapshotProvider, Source,
};
use coffre_sandbox::WasmProvider;
use serde_json::{Value, json};

use crate::mounted::{Kind, Mounted};
use crate::{load, machine, settings_for, take};

const KIB: u64 = 1024;

fn image(folder: &Path, name: &str, size_bytes: u64) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(folder.join(name))
        .expect("an image");
    file.set_len(size_bytes).expect("a size");
    file
}

fn fill(file: &File, offset: u64, length: u64, byte: u8) {
    file.write_all_at(&vec![byte; length as usize], offset).expect("bytes");
}

fn base(disk: &str, token: &str) -> Base {
    Base {
        disk: DiskId(disk.to_owned()),
        token: token.to_owned(),
    }
}

async fn changed(
    provider: &WasmProvider,
    settings: &Value,
    id: &str,
    disk: &str,
    token: &str,
) -> Option<Vec<(u64, u64)>> {
    let (id, disk) = (SnapshotId(id.to_owned()), DiskId(disk.to_owned()));
    match provider
        .changed(&machine(settings), &id, &disk, token)
        .await
        .expect("an answer")
    {
        Changes::Listed(mut list) => {
            let mut all = Vec::new();
            loop {
                let step = list.next().await.expect("a step");
                if step.is_empty() {
                    return Some(all);
                }
                all.extend(step.iter().map(|extent| (extent.offset_bytes, extent.length_bytes)));
            }
        }
        Changes::CannotTell(_) => None,
        Changes::InNbdContext => panic!("there is no NBD here"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_xfs_a_clone_shows_its_instant_and_the_next_one_what_changed() {
    clones_show_what_changed(Kind::Xfs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_btrfs_a_clone_shows_its_instant_and_the_next_one_what_changed() {
    clones_show_what_changed(Kind::Btrfs).await;
}

async fn clones_show_what_changed(kind: Kind) {
    let xfs = Mounted::new(kind, "400M");
    let root = image(xfs.path(), "root.img", 1024 * KIB);
    fill(&root, 0, 512 * KIB, 1);
    let data = image(xfs.path(), "data.img", 256 * KIB);
    fill(&data, 0, 64 * KIB, 2);
    let settings = settings_for(xfs.path());
    let provider = load("reflink", &settings).await.expect("it loads");
    let machine = machine(&settings);
    let ids: Vec<DiskId> = ["data", "root"].map(|id| DiskId(id.to_owned())).into();
    let found: Vec<_> = provider
        .discover(&machine)
        .await
        .expect("disks")
        .into_iter()
        .map(|disk| disk.id)
        .collect();
    assert_eq!(found, ids);
    assert!(
        provider
            .check(&machine, &ids)
            .await
            .expect("findings")
            .iter()
            .all(|found| found.level == FindingLevel::Note)
    );

    let first = take(&provider, &settings, "job-1", &["root", "data"]).await;
    assert_eq!(
        first.consistency,
        Consistency::Crash,
        "we have it open for writing: {}",
        first.consistency_reason
    );
    fill(&root, 128 * KIB, 8 * KIB, 3);
    for disk in &first.disks {
        let Source::File { file, path } = &disk.source else {
            panic!("no file")
        };
        let mut bytes = Vec::new();
        file.try_clone()
            .expect("a descriptor")
            .read_to_end(&mut bytes)
            .expect("bytes");
        assert_eq!(bytes.len() as u64, disk.size_bytes);
        assert!(!bytes.contains(&3), "the clone shows what was written after it");
        assert_eq!(std::fs::metadata(path).expect("a clone").mode() & 0o777, 0o600);
    }
    assert_eq!(
        provider.held(&machine).await.expect("held"),
        [SnapshotId("job-1".to_owned())]
    );
    provider
        .settle(&machine, &[base("root", "job-1"), base("data", "job-1")])
        .await
        .expect("settled");
    provider
        .release(&machine, &SnapshotId("job-1".to_owned()))
        .await
        .expect("released");
    assert_eq!(provider.held(&machine).await.expect("held"), []);

    // A write into a hole, a hole punched by truncating down and up, and growth.
    fill(&root, 768 * KIB, 4 * KIB, 4);
    root.set_len(1536 * KIB).expect("growth");
    data.set_len(32 * KIB).expect("shrunk");
    drop((root, data));
    let second = take(&provider, &settings, "job-2", &["root", "data"]).await;
    assert_eq!(
        second.consistency,
        Consistency::FileSystem,
        "{}",
        second.consistency_reason
    );
    assert!(second.one_instant);
    assert_eq!(
        changed(&provider, &settings, "job-2", "root", "job-1").await,
        Some(vec![
            (128 * KIB, 8 * KIB),
            (768 * KIB, 4 * KIB),
            (1024 * KIB, 512 * KIB)
        ])
    );
    assert_eq!(
        changed(&provider, &settings, "job-2", "data", "job-1").await,
        Some(vec![])
    );
    assert_eq!(
        changed(&provider, &settings, "job-2", "data", "job-0").await,
        None,
        "an unknown token"
    );
    assert_eq!(
        changed(&provider, &settings, "job-2", "data", "../../x").await,
        None,
        "an odd token"
    );

    // Exactly what is kept stays.
    provider
        .settle(&machine, &[base("root", "job-2"), base("data", "job-1")])
        .await
        .expect("settled");
    provider
        .settle(&machine, &[base("root", "job-2"), base("data", "job-1")])
        .await
        .expect("settled again");
    provider
        .release(&machine, &SnapshotId("job-2".to_owned()))
        .await
        .expect("released");
    provider
        .release(&machine, &SnapshotId("job-2".to_owned()))
        .await
        .expect("released again");
    provider
        .release(&machine, &SnapshotId("never-made".to_owned()))
        .await
        .expect("nothing to release");
    let kept: Vec<_> = walk(&xfs.path().join(".coffre"));
    assert_eq!(kept, ["web01/base/job-1/data", "web01/base/job-2/root"]);
    provider.settle(&machine, &[]).await.expect("settled");
    assert_eq!(walk(&xfs.path().join(".coffre")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_after_take_leaves_what_held_finds() {
    let xfs = Mounted::new(Kind::Xfs, "400M");
    fill(&image(xfs.path(), "root.img", 64 * KIB), 0, 4 * KIB, 1);
    let settings = settings_for(xfs.path());
    take(
        &load("reflink", &settings).await.expect("it loads"),
        &settings,
        "job-1",
        &["root"],
    )
    .await;
    std::fs::create_dir(xfs.path().join(".coffre/web01/held/job-2")).expect("a snapshot half made");
    let provider = load("reflink", &settings).await.expect("it loads");
    let held = provider.held(&machine(&settings)).await.expect("held");
    assert_eq!(held, ["job-1", "job-2"].map(|id| SnapshotId(id.to_owned())));
    for id in held {
        provider.release(&machine(&settings), &id).await.expect("released");
    }
    assert_eq!(walk(&xfs.path().join(".coffre")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_written_to_in_between_are_not_one_instant() {
    let xfs = Mounted::new(Kind::Xfs, "400M");
    let root = image(xfs.path(), "root.img", 64 * KIB);
    let data = image(xfs.path(), "data.img", 64 * KIB);
    fill(&data, 0, 4 * KIB, 1);
    fill(&root, 0, 4 * KIB, 1);
    let settings = settings_for(xfs.path());
    let provider = load("reflink", &settings).await.expect("it loads");
    let stop = AtomicBool::new(false);
    let busy = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fill(&data, 0, 4 * KIB, 2);
            }
        });
        let taken = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(take(&provider, &settings, "job-1", &["root", "data"]))
        });
        stop.store(true, Ordering::Relaxed);
        taken
    });
    let said = &busy.consistency_reason;
    assert!(!busy.one_instant && said.contains("not at one instant"), "{said}");
    std::thread::sleep(std::time::Duration::from_millis(100));
    let quiet = take(&provider, &settings, "job-2", &["root", "data"]).await;
    assert!(quiet.one_instant, "{}", quiet.consistency_reason);
    let one = take(&provider, &settings, "job-3", &["root"]).await;
    assert!(one.one_instant);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_extents_and_file_systems_without_clones_are_found_by_check() {
    let xfs = Mounted::new(Kind::Xfs, "400M");
    let root = image(xfs.path(), "root.img", 1024 * KIB);
    for number in 0..64 {
        fill(&root, number * 16 * KIB, 4 * KIB, 1);
        root.sync_all().expect("synced");
    }
    let settings = json!({ "images": xfs.path(), "max-extents": 10 });
    let provider = load("reflink", &settings).await.expect("it loads");
    let findings = provider
        .check(&machine(&settings), &[DiskId("root".to_owned())])
        .await
        .expect("findings");
    assert!(
        findings
            .iter()
            .any(|found| found.level == FindingLevel::Blocking && found.text.contains("more than 10 pieces")),
        "{findings:?}"
    );
    let error = provider
        .take(&machine(&settings), &crate::request("job-1", &["root"]))
        .await
        .expect_err("refused");
    assert_eq!(error.kind, ProviderErrorKind::Failed, "{}", error.text);

    let elsewhere = tempfile::tempdir().expect("a folder");
    fill(&image(elsewhere.path(), "root.img", 64 * KIB), 0, 4 * KIB, 1);
    let settings = json!({ "images": elsewhere.path(), "snapshots": xfs.path() });
    let provider = load("reflink", &settings).await.expect("it loads");
    let findings = provider
        .check(&machine(&settings), &[DiskId("root".to_owned())])
        .await
        .expect("findings");
    assert!(
        findings.iter().any(|found| found.level == FindingLevel::Blocking),
        "{findings:?}"
    );
    let error = provider
        .take(&machine(&settings), &crate::request("job-1", &["root"]))
        .await
        .expect_err("refused");
    assert_eq!(error.kind, ProviderErrorKind::Unsupported, "{}", error.text);
    let held = provider.held(&machine(&settings)).await.expect("held");
    for id in held {
        provider.release(&machine(&settings), &id).await.expect("released");
    }

    let settings = json!({ "images": [elsewhere.path().join("root.img")] });
    let provider = load("reflink", &settings).await.expect("it loads");
    let error = provider
        .check(&machine(&settings), &[DiskId("root".to_owned())])
        .await
        .expect_err("refused");
    assert!(error.text.contains("snapshots = "), "{}", error.text);
}

/// All files below a folder, by their way from it.
fn walk(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).expect("below").display().to_string());
            }
        }
    }
    found.sort();
    found
}
