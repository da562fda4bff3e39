//! Change tracking by extent maps, on the file systems that share extents.

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::mount::Scratch;
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;

fn only_what_changed_is_read_and_stored(kind: &str) {
    let scratch = Scratch::new(kind, 1024 * MIB);
    let place = Place::within(&scratch.path(), VaultKind::Folder)
        .with_machine("db01", "reflink")
        .init();
    let (a, b) = (place.images().join("a.img"), place.images().join("b.img"));
    let first = sparse(&a, 300 * MIB);
    write_noise(&first, 0, 90 * MIB, 1);
    let second = sparse(&b, 50 * MIB);
    write_noise(&second, MIB, 30 * MIB, 2);
    place.backup("db01");
    for page in 0..20 {
        write_noise(&first, 3 * MIB + page * 4 * MIB, 4096, page + 10);
    }
    let point = place.backup("db01");
    for disk in point["disks"].as_array().unwrap() {
        assert_eq!(disk["compared"], "tracked", "{disk}");
    }
    assert_eq!(point["changed_bytes"], 20 * 4096);
    let stored = point["stored_bytes"].as_u64().unwrap();
    assert!(
        stored < 20 * 4096 + 64 * 1024,
        "{stored} bytes stored for 80 KiB changed"
    );
    let restored = place.restore("db01");
    assert_same(&a, &restored.join("a.img"));
    assert_same(&b, &restored.join("b.img"));
    // A scan after a tracked backup finds the same.
    let place = place.with("tracking = \"off\"\n");
    let scanned = place.backup("db01");
    assert_eq!(scanned["disks"][0]["compared"], "scan");
    let restored = place.restore("db01");
    assert_same(&a, &restored.join("a.img"));
}

#[test]
fn on_xfs_only_what_changed_is_read_and_stored() {
    only_what_changed_is_read_and_stored("xfs");
}

#[test]
fn on_btrfs_only_what_changed_is_read_and_stored() {
    only_what_changed_is_read_and_stored("btrfs");
}

#[test]
fn a_file_system_that_shares_nothing_is_refused_before_anything_is_disturbed() {
    let scratch = Scratch::new("ext4", 64 * MIB);
    let place = Place::within(&scratch.path(), VaultKind::Folder)
        .with_machine("db01", "reflink")
        .init();
    sparse(&place.images().join("a.img"), MIB);
    place.run(&["backup", "db01"]).refused(1, &["ext4", "XFS"]);
    assert!(place.points("db01").is_empty());
}
