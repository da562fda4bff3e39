//! Space that forgotten points took comes back, on every kind of vault, and what is kept restores.

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::servers::EVERY_KIND;
use coffre_tests::{Place, VaultKind};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// As somebody cleans who wants the space now.
const NOW: [&str; 5] = ["clean", "main", "--force", "--undelete-for", "0s"];

/// Three points of one disk: all of it new each time, but for what the last two share.
fn place_with_points(kind: VaultKind) -> Place {
    let place = Place::new(kind).with_machine("web01", "image").init();
    let image = place.images().join("root.img");
    let disk = sparse(&image, 16 * MIB);
    for (number, megabytes) in [(0, 12), (1, 12), (2, 6)] {
        write_noise(&disk, 0, megabytes * MIB, number + 1);
        place.backup("web01");
        std::fs::copy(&image, place.path(&format!("taken-{number}.img"))).unwrap();
    }
    place
}

fn bytes(answer: &Value, what: &str) -> u64 {
    answer[what]["bytes"].as_u64().unwrap()
}

#[track_caller]
fn assert_restores(place: &Place, number: u64) {
    let restored = place.restore(&format!("web01@{number}"));
    assert_same(&place.path(&format!("taken-{number}.img")), &restored.join("root.img"));
}

fn forgotten_points_give_their_space_back(kind: VaultKind) {
    let place = place_with_points(kind);
    place.run(&["forget", "web01@0", "web01@1"]).expect(0);

    let dry = place.json(&[&NOW[..], &["--dry-run"]].concat());
    assert_eq!(dry["purged"].as_array().unwrap().len(), 2);
    assert!(bytes(&dry, "condemned") > 12 * MIB);
    assert_restores(&place, 0);

    let first = place.json(&NOW);
    assert_eq!(bytes(&first, "condemned"), bytes(&dry, "condemned"));
    assert_eq!(bytes(&first, "deleted"), 0);
    assert_restores(&place, 2);
    let second = place.json(&NOW);
    assert_eq!(bytes(&second, "deleted"), bytes(&first, "condemned"));
    let third = place.json(&NOW);
    let (before, after) = (bytes(&first, "packs_before"), bytes(&third, "packs_before"));
    assert!(
        before > 29 * MIB && after < 19 * MIB,
        "{before} bytes before, {after} after"
    );

    // On this host, and on one that has seen nothing.
    assert_restores(&place, 2);
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    assert_restores(&place, 2);
    place.run(&["verify", "main", "--read-data"]).expect(0);
    let restored = place.run(&["restore", "web01@0", "--to", place.path("gone").to_str().unwrap()]);
    assert_ne!(restored.code, 0);
    place.backup("web01");
    place.run(&["verify", "main", "--read-data"]).expect(0);
}

#[test]
fn forgotten_points_give_their_space_back_on_every_kind_of_vault() {
    for kind in EVERY_KIND {
        forgotten_points_give_their_space_back(kind);
    }
}

#[test]
fn without_force_nothing_young_goes_and_much_at_once_is_refused() {
    let place = place_with_points(VaultKind::Folder);
    place.run(&["forget", "web01@0", "web01@1"]).expect(0);
    let young = place.json(&["clean", "main", "--undelete-for", "0s"]);
    assert!(bytes(&young, "too_young") > 12 * MIB);
    assert_eq!(bytes(&young, "condemned"), 0);
    place.run(&["clean", "main", "--minimum-age", "0s"]).refused(
        1,
        &["would be condemned at once", "hint: see what would go with --dry-run"],
    );
    assert_restores(&place, 2);
}
