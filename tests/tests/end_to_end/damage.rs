//! What an operator meets in a damaged vault, and the way out of it.

use std::fs;
use std::path::{Path, PathBuf};

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::{Place, VaultKind};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const FAILED: i32 = 1;
const DENIED: i32 = 77;

fn place() -> Place {
    let policy = "[policy.daily]\nschedule = \"daily 02:00 UTC\"\nconsistency = \"crash\"\nkeep = { last = 1 }\n";
    let place = Place::new(VaultKind::Folder)
        .with(policy)
        .with_machine("web01", "image")
        .with("policy = \"daily\"\n")
        .init();
    write_noise(&sparse(&image(&place), 24 * MIB), 0, 16 * MIB, 1);
    place
}

fn image(place: &Place) -> PathBuf {
    place.images().join("root.img")
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The names below a folder of the vault, sorted.
fn names(place: &Place, folder: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = (fs::read_dir(place.path("vault").join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

/// The pack of a session that holds its data: the largest.
fn data_pack(place: &Place, session: &str) -> PathBuf {
    let mut packs = names(place, &format!("packs/00000001/{session}"));
    packs.sort_by_key(|pack| fs::metadata(pack).unwrap().len());
    packs.pop().expect("a pack")
}

#[test]
fn what_is_whole_of_a_damaged_point_restores_and_the_rest_is_named() {
    let place = place();
    place.backup("web01");
    let pack = data_pack(&place, "00000000");
    let middle = fs::metadata(&pack).unwrap().len() as usize / 2;
    flip(&pack, middle);

    let target = place.path("restored").display().to_string();
    let arguments = ["restore", "web01", "--to", &target];
    place.run(&arguments).refused(FAILED, &["--skip-damaged"]);
    let skipping = [&arguments[..], &["--overwrite", "--skip-damaged"]].concat();
    let ran = place.run(&skipping).expect(FAILED);
    assert!(
        ran.stdout.contains("NOT WHOLE: 1 part left out, 128 KiB"),
        "{}",
        ran.stdout
    );
    let report = place.run(&[&skipping[..], &["--json"]].concat()).expect(FAILED).json();
    let damaged = report["damaged"].as_array().unwrap();
    assert_eq!(damaged.len(), 1, "{report}");
    assert_eq!(damaged[0]["length_bytes"], 131_072);
    let start = damaged[0]["offset_bytes"].as_u64().unwrap() as usize;
    let mut wanted = fs::read(image(&place)).unwrap();
    assert!(wanted[start..start + 131_072].iter().any(|byte| *byte != 0));
    wanted[start..start + 131_072].fill(0);
    assert!(fs::read(place.path("restored/root.img")).unwrap() == wanted);

    // Without its map, and without anything at all.
    for pack in names(&place, "packs/00000001/00000000") {
        fs::remove_file(pack).unwrap();
    }
    let report = place.run(&[&skipping[..], &["--json"]].concat()).expect(FAILED).json();
    assert_eq!(report["damaged"][0]["length_bytes"], 24 * MIB, "{report}");
    assert!(
        fs::read(place.path("restored/root.img"))
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn a_point_whose_record_is_damaged_is_named_and_let_go() {
    let place = place();
    place.backup("web01");
    write_noise(&sparse(&image(&place), 24 * MIB), 0, MIB, 2);
    place.backup("web01");
    flip(&place.path("vault/points/00000001/00000000"), 70);

    let told = place.run(&["verify", "main"]).expect(FAILED).stdout;
    for part in [
        "points/00000001/00000000",
        "web01@0",
        "hint: a point whose record is damaged",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    place
        .run(&["restore", "web01@0", "--to", "out"])
        .refused(FAILED, &["points/00000001/00000000", "damaged"]);
    let clean = ["clean", "main", "--undelete-for", "0s", "--force"];
    place
        .run(&clean)
        .refused(FAILED, &["point 0 of web01", "coffre forget web01@0"]);
    place.run(&["forget", "web01@0"]).expect(0);
    place
        .run(&["clean", "main"])
        .refused(FAILED, &["point 0 of web01", "a clean-up purges it from"]);
    place.run(&clean).expect(0);
    place.run(&clean).expect(0);
    place.run(&["verify", "main", "--read-data"]).expect(0);
    assert_same(&image(&place), &place.restore("web01").join("root.img"));
}

#[test]
fn a_damaged_clean_up_log_stops_backups_until_it_is_repaired_and_no_restore() {
    let place = place();
    place.backup("web01");
    place.run(&["clean", "main"]).expect(0);
    let last = names(&place, "gclog").pop().expect("a record");
    flip(&last, 70);

    place
        .run(&["backup", "web01"])
        .refused(FAILED, &["gclog/", "coffre repair log"]);
    place
        .run(&["clean", "main"])
        .refused(FAILED, &["gclog/", "coffre repair log"]);
    let told = place.run(&["verify", "main"]).expect(FAILED).stdout;
    assert!(
        told.contains("damaged: gclog/") && told.contains("coffre repair log main"),
        "{told}"
    );
    assert_same(&image(&place), &place.restore("web01").join("root.img"));

    let repaired = place.json(&["repair", "log", "main"]);
    assert_eq!(repaired["damaged"].as_array().unwrap().len(), 1);
    assert_eq!(place.json(&["repair", "log", "main"])["checkpoint"], Value::Null);
    place.backup("web01");
    place.run(&["clean", "main"]).expect(0);
    place.run(&["verify", "main"]).expect(0);
}

#[test]
fn the_newest_good_point_is_not_one_that_verify_found_damaged() {
    let place = place();
    place.backup("web01");
    write_noise(&sparse(&image(&place), 24 * MIB), 0, MIB, 2);
    place.backup("web01");
    flip(&data_pack(&place, "00000001"), 100);
    place.run(&["verify", "main", "--read-data"]).expect(FAILED);

    let report = place.json(&["forget", "web01", "--dry-run"]);
    let codes = |number: usize| -> Vec<&str> {
        let reasons = report["machines"][0]["points"][number]["reasons"].as_array().unwrap();
        reasons.iter().map(|reason| reason["code"].as_str().unwrap()).collect()
    };
    assert!(codes(0).contains(&"newest-good"), "{report}");
    assert!(
        codes(1).contains(&"damaged") && codes(1).contains(&"newest"),
        "{report}"
    );
    place.run(&["forget", "web01@0"]).refused(64, &["newest good"]);
}

#[test]
fn a_vault_that_is_taken_back_behind_a_rotation_is_refused() {
    let place = place();
    place.backup("web01");
    let (vault, older) = (place.path("vault"), place.path("older"));
    copy(&vault, &older);
    place
        .run(&["key", "rotate", "main", "--drop-others", "--no-recovery-key"])
        .expect(0);
    assert_eq!(place.points("web01").len(), 1);
    fs::rename(&vault, place.path("newer")).unwrap();
    fs::rename(&older, &vault).unwrap();
    for arguments in [&["points", "web01"][..], &["backup", "web01"], &["key", "list", "main"]] {
        place
            .run(arguments)
            .refused(DENIED, &["of generation 0", "has seen generation 1", "older copy"]);
    }
    fs::rename(&vault, &older).unwrap();
    fs::rename(place.path("newer"), &vault).unwrap();
    assert_eq!(place.points("web01").len(), 1);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
