//! Damage in a vault: found, named, quarantined, and healed by the next backup; an index that is lost is rebuilt.

use std::fs;
use std::path::{Path, PathBuf};

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::{Place, VaultKind};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The files of a folder vault below one of its folders, the largest last.
fn objects(place: &Place, folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![place.path("vault").join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    found
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn codes(point: &Value) -> Vec<&str> {
    let notes = point["notes"].as_array().unwrap();
    notes.iter().filter_map(|note| note["code"].as_str()).collect()
}

fn verified(place: &Place, arguments: &[&str], code: i32) -> Value {
    let all: Vec<&str> = [&["verify", "main", "--json"], arguments].concat();
    place.run(&all).expect(code).json()
}

#[test]
fn what_verify_finds_damaged_the_next_backup_heals() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    let image = place.images().join("root.img");
    let disk = sparse(&image, 24 * MIB);
    write_noise(&disk, 0, 16 * MIB, 1);
    place.backup("web01");

    let data = objects(&place, "packs").pop().expect("a pack");
    flip(&data);
    let report = verified(&place, &["--read-data", "--no-quarantine"], 1);
    assert_eq!(report["quarantined"], serde_json::json!([]));
    let report = verified(&place, &["--read-data"], 1);
    assert_eq!(report["damage"][0]["touches"][0]["machine"], "web01");
    assert_eq!(report["damage"][0]["touches"][0]["ranges"][0]["length_bytes"], 131_072);
    assert_eq!(report["quarantined"].as_array().unwrap().len(), 1);
    // Known by now, so it is found without reading all.
    verified(&place, &[], 1);

    let point = place.backup("web01");
    assert!(codes(&point).contains(&"healed"), "{point}");
    let report = verified(&place, &["--read-data"], 0);
    assert_eq!(report["sound"], true);
    for target in ["web01@0", "web01"] {
        assert_same(&image, &place.restore(target).join("root.img"));
    }
    let point = place.backup("web01");
    assert!(!codes(&point).contains(&"healed"), "{point}");
}

#[test]
fn a_lost_map_that_nobody_has_noticed_does_not_stop_a_backup() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    let image = place.images().join("root.img");
    let disk = sparse(&image, 24 * MIB);
    write_noise(&disk, 0, 16 * MIB, 1);
    place.backup("web01");
    let map = objects(&place, "packs").into_iter().next().expect("a pack of nodes");
    fs::remove_file(map).unwrap();
    // Without the digests of the first backup, the disk is compared with the map.
    fs::remove_dir_all(place.path("cache")).unwrap();

    let point = place.backup("web01");
    assert!(codes(&point).contains(&"session-begun-anew"), "{point}");
    verified(&place, &["--read-data"], 0);
    for target in ["web01@0", "web01"] {
        assert_same(&image, &place.restore(target).join("root.img"));
    }
}

#[test]
fn with_all_of_the_index_gone_it_is_rebuilt_and_restores_are_identical() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    let image = place.images().join("root.img");
    let disk = sparse(&image, 24 * MIB);
    write_noise(&disk, 0, 16 * MIB, 1);
    place.backup("web01");
    fs::remove_dir_all(place.path("vault").join("index")).unwrap();

    let report = verified(&place, &[], 1);
    assert!(report["damage"].to_string().contains("chunk "), "{report}");
    let repaired = place.run(&["repair", "index", "main", "--json"]).expect(0).json();
    assert_eq!(repaired["packs_listed"], repaired["packs"]);
    assert_eq!(repaired["pieces_written"], 1);
    verified(&place, &["--read-data"], 0);
    assert_same(&image, &place.restore("web01").join("root.img"));
    let again = place.run(&["repair", "index", "main", "--json"]).expect(0).json();
    assert_eq!(again["pieces_written"], 0);
}

#[test]
fn a_local_vault_with_parity_mends_its_packs_where_the_machine_has_other_bytes_by_now() {
    let mut place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    place.change_vault("url =", "parity = \"5%\"\nurl =");
    let image = place.images().join("root.img");
    let disk = sparse(&image, 24 * MIB);
    write_noise(&disk, 0, 16 * MIB, 1);
    place.backup("web01");
    let then = place.restore("web01").join("root.img");
    // Nothing but the vault has the first point's bytes any more.
    write_noise(&disk, 0, 16 * MIB, 2);
    place.backup("web01");

    for pack in objects(&place, "packs") {
        flip(&pack);
    }
    assert_same(&then, &place.restore("web01@0").join("root.img"));
    let report = verified(&place, &["--read-data"], 0);
    let packs = objects(&place, "packs").len();
    assert_eq!(report["mended"].as_array().unwrap().len(), packs, "{report}");
    assert_eq!(report["mended"][0]["blocks"], 1);
    assert_eq!(report["quarantined"], serde_json::json!([]));
    let report = verified(&place, &["--read-data"], 0);
    assert_eq!(report["mended"], serde_json::json!([]));

    // A tenth of a pack is more than its parity mends.
    let pack = objects(&place, "packs").pop().unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let tenth = bytes.len() / 10;
    bytes[tenth..2 * tenth].fill(0);
    fs::write(&pack, bytes).unwrap();
    let report = verified(&place, &["--read-data"], 1);
    assert_eq!(report["mended"], serde_json::json!([]));
    assert_eq!(report["quarantined"].as_array().unwrap().len(), 1);
}
