//! The same backups and restores against every kind of vault.

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::servers::EVERY_KIND;
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;

/// First backup; then a disk grew, one shrank, one vanished, one is new, one is still empty; both points restore.
fn first_and_second_backup_restore(kind: VaultKind) {
    let place = Place::new(kind).with_machine("web01", "image").init();
    let images = place.images();
    let image = |name: &str| images.join(name);
    let root = sparse(&image("root.img"), 40 * MIB);
    write_noise(&root, 3 * MIB, 9 * MIB, 1);
    let shrinks = sparse(&image("shrinks.img"), 20 * MIB);
    write_noise(&shrinks, 0, 20 * MIB, 2);
    write_noise(&sparse(&image("vanishes.img"), 5 * MIB), 0, MIB, 3);
    sparse(&image("empty.img"), 64 * MIB);
    let first = place.backup("web01");
    let kept = place.path("kept");
    std::fs::create_dir(&kept).unwrap();
    for name in ["root.img", "shrinks.img", "vanishes.img", "empty.img"] {
        std::fs::copy(image(name), kept.join(name)).unwrap();
    }

    root.set_len(100 * MIB + 512).unwrap();
    write_noise(&root, 90 * MIB, 4096, 4);
    write_noise(&root, 5 * MIB, 4096, 5);
    shrinks.set_len(7 * MIB + 1536).unwrap();
    std::fs::remove_file(image("vanishes.img")).unwrap();
    write_noise(&sparse(&image("new.img"), MIB), 0, 4096, 6);
    let second = place.backup("web01");
    assert_eq!(second["disks"].as_array().unwrap().len(), 4);
    let stored = second["stored_bytes"].as_u64().unwrap();
    assert!(stored < MIB, "{stored} bytes were stored for 12 KiB of change");
    let notes = second["notes"].to_string();
    for word in ["grew", "shrank", "vanish", "new"] {
        assert!(notes.contains(word), "no word of `{word}` in {notes}");
    }

    let number = |point: &serde_json::Value| point["point"].as_u64().unwrap();
    let restored = place.restore(&format!("web01@{}", number(&first)));
    for name in ["root.img", "shrinks.img", "vanishes.img", "empty.img"] {
        assert_same(&kept.join(name), &restored.join(name));
    }
    let restored = place.restore(&format!("web01@{}", number(&second)));
    for name in ["root.img", "shrinks.img", "empty.img", "new.img"] {
        assert_same(&image(name), &restored.join(name));
    }
    assert!(!restored.join("vanishes.img").exists());
    place.run(&["verify", "main", "--read-data"]).expect(0);
}

#[test]
fn backups_restore_byte_for_byte_from_a_folder() {
    first_and_second_backup_restore(VaultKind::Folder);
}

#[test]
fn backups_restore_byte_for_byte_from_s3() {
    first_and_second_backup_restore(VaultKind::S3);
}

#[test]
fn backups_restore_byte_for_byte_from_s3_over_tls() {
    first_and_second_backup_restore(VaultKind::S3Tls);
}

#[test]
fn backups_restore_byte_for_byte_from_azure_blob() {
    first_and_second_backup_restore(VaultKind::Azure);
}

#[test]
fn another_host_with_the_key_restores() {
    for kind in EVERY_KIND {
        let place = Place::new(kind).with_machine("web01", "image").init();
        write_noise(&sparse(&place.images().join("root.img"), 10 * MIB), MIB, 3 * MIB, 8);
        place.backup("web01");
        // All that a new host has: the configuration and the key.
        std::fs::remove_dir_all(place.path("state")).unwrap();
        std::fs::remove_dir_all(place.path("cache")).unwrap();
        let restored = place.restore("web01");
        assert_same(&place.images().join("root.img"), &restored.join("root.img"));
        // And its first backup there compares with the vault, and stores nothing.
        let point = place.backup("web01");
        assert_eq!(point["disks"][0]["compared"], "vault");
        assert_eq!(point["changed_bytes"], 0);
    }
}
