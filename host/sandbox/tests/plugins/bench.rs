//! How long a comparison of fragmented clones takes. Run by hand: `cargo test --release -p coffre-sandbox --test plugins
//! -- --ignored --nocapture fragmented`.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use coffre_engine::{Base, Changes, DiskId, SnapshotId, SnapshotProvider};

use crate::mounted::{Kind, Mounted};
use crate::{CATALOG, machine, settings_for, take};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
async fn a_fragmented_image_is_compared_quickly() {
    let xfs = Mounted::new(Kind::Xfs, "2G");
    let path = xfs.path().join("root.img");
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("an image");
    let megabyte = vec![1; 1024 * 1024];
    for number in 0..1024 {
        file.write_all_at(&megabyte, number * 1024 * 1024).expect("bytes");
    }
    let settings = settings_for(xfs.path());
    let provider = CATALOG
        .load_provider("reflink", &settings, Default::default())
        .await
        .expect("it loads");
    take(&provider, &settings, "job-1", &["root"]).await;
    let keep = [Base {
        disk: DiskId("root".to_owned()),
        token: "job-1".to_owned(),
    }];
    provider.settle(&machine(&settings), &keep).await.expect("settled");
    for number in 0..20_000_u64 {
        file.write_all_at(&[2; 4096], (number * 7919 % 262_144) * 4096)
            .expect("bytes");
    }
    let started = Instant::now();
    take(&provider, &settings, "job-2", &["root"]).await;
    println!("take: {:?}", started.elapsed());
    let started = Instant::now();
    let (id, disk) = (SnapshotId("job-2".to_owned()), DiskId("root".to_owned()));
    let changes = provider
        .changed(&machine(&settings), &id, &disk, "job-1")
        .await
        .expect("an answer");
    let Changes::Listed(mut list) = changes else {
        panic!("no list")
    };
    let (mut count, mut bytes) = (0, 0);
    loop {
        let step = list.next().await.expect("a step");
        if step.is_empty() {
            break;
        }
        count += step.len();
        bytes += step.iter().map(|extent| extent.length_bytes).sum::<u64>();
    }
    println!("changed: {:?} for {count} extents, {bytes} bytes", started.elapsed());
    assert_eq!(bytes, 20_000 * 4096);
}
