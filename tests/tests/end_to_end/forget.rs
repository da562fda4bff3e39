//! Points that are forgotten, brought back and pinned.

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::{Place, VaultKind};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A machine with as many points, each with a disk of its own content, which lies beside as `taken-N.img`.
fn machine_with_points(count: u64, keep: &str) -> Place {
    let place = Place::new(VaultKind::Folder)
        .with_machine("web01", "image")
        .with(&format!("policy = \"p\"\n[policy.p]\nkeep = {keep}\n"))
        .init();
    let image = place.images().join("a.img");
    let disk = sparse(&image, 4 * MIB);
    for number in 0..count {
        write_noise(&disk, number * MIB / 2, MIB, number + 1);
        place.backup("web01");
        std::fs::copy(&image, place.path(&format!("taken-{number}.img"))).unwrap();
    }
    place
}

fn fates(place: &Place) -> Vec<String> {
    let points = place.points("web01");
    points
        .iter()
        .map(|point| point["fate"].as_str().unwrap().to_owned())
        .collect()
}

#[track_caller]
fn assert_restores(place: &Place, number: u64) {
    let restored = place.restore(&format!("web01@{number}"));
    assert_same(&place.path(&format!("taken-{number}.img")), &restored.join("a.img"));
}

fn decisions(answer: &Value) -> Vec<(u64, String)> {
    let points = answer["machines"][0]["points"].as_array().unwrap();
    let decision = |point: &Value| {
        (
            point["point"].as_u64().unwrap(),
            point["decision"].as_str().unwrap().to_owned(),
        )
    };
    points.iter().map(decision).collect()
}

#[test]
fn what_a_policy_forgets_restores_and_comes_back() {
    let place = machine_with_points(4, "{ last = 2 }");
    let wanted = [(0, "forget"), (1, "forget"), (2, "keep"), (3, "keep")];
    let wanted: Vec<(u64, String)> = wanted.map(|(number, what)| (number, what.to_owned())).into();

    let dry = place.json(&["forget", "web01", "--dry-run"]);
    assert_eq!(decisions(&dry), wanted);
    assert_eq!(fates(&place), ["kept"; 4]);
    let said = place.run(&["forget", "web01", "--dry-run"]).expect(0).stdout;
    assert!(said.contains("2 points would be forgotten; 2 kept"), "{said}");

    let done = place.json(&["forget", "web01"]);
    assert_eq!(decisions(&done), wanted);
    assert_eq!(done["machines"][0]["policy"], "p");
    assert_eq!(fates(&place), ["forgotten", "forgotten", "kept", "kept"]);
    // Once more changes nothing.
    let again = place.json(&["forget", "--all"]);
    assert_eq!(again["machines"][0]["forgotten"], 0);

    let first = &place.points("web01")[0];
    let until: jiff::Timestamp = first["undelete_until"].as_str().unwrap().parse().unwrap();
    let days = until.duration_since(jiff::Timestamp::now()).as_hours() / 24;
    assert!((13..=14).contains(&days), "{until}");
    let said = place.run(&["points"]).expect(0).stdout;
    assert!(said.contains("forgotten, undelete until"), "{said}");

    for number in 0..4 {
        assert_restores(&place, number);
    }
    place
        .run(&["pin", "web01@0"])
        .refused(64, &["forgotten", "coffre undelete"]);
    place.run(&["undelete", "web01@0"]).expect(0);
    let pinned = place.json(&["pin", "web01@0", "--reason", "before the move"]);
    assert_eq!((&pinned["changed"], &pinned["fate"]), (&true.into(), &"kept".into()));
    assert_eq!(pinned["pinned"]["reason"], "before the move");
    place.run(&["forget", "web01"]).expect(0);
    assert_eq!(fates(&place), ["kept", "forgotten", "kept", "kept"]);

    // The next backup goes on as if nothing had happened, and everything verifies.
    place.backup("web01");
    place.run(&["verify", "main", "--read-data"]).expect(0);
}

#[test]
fn a_machine_is_not_left_without_a_good_point_unless_it_is_retired() {
    let place = machine_with_points(3, "{ daily = 7 }");
    place
        .run(&["forget", "web01@1", "web01@2"])
        .refused(64, &["web01@2 is the newest good", "--retire"]);
    assert_eq!(fates(&place), ["kept"; 3]);
    place.run(&["forget", "web01@1"]).expect(0);
    place.run(&["forget", "web01@1"]).expect(0);
    place
        .run(&["forget", "web01@9"])
        .refused(64, &["no recovery point 9", "coffre points web01"]);

    place.run(&["pin", "web01@0", "--reason", "audit"]).expect(0);
    place
        .run(&["forget", "web01", "--retire"])
        .refused(64, &["web01@0 is pinned: audit", "coffre unpin web01@0"]);
    place.run(&["unpin", "web01@0"]).expect(0);
    place.run(&["forget", "web01", "--retire", "--dry-run"]).expect(0);
    assert_eq!(fates(&place), ["kept", "forgotten", "kept"]);
    place.run(&["forget", "web01", "--retire"]).expect(0);
    assert_eq!(fates(&place), ["forgotten"; 3]);

    place
        .run(&["restore", "web01", "--to", "nowhere"])
        .refused(64, &["no recovery point"]);
    assert_restores(&place, 2);
    place.run(&["undelete", "web01@2"]).expect(0);
    place.restore("web01");
    // And without any configuration of the machine.
    let text = std::fs::read_to_string(place.config_file()).unwrap();
    let without = text[..text.find("[machine.web01]").unwrap()].to_owned();
    std::fs::write(place.config_file(), without).unwrap();
    place
        .run(&["forget", "web01"])
        .refused(64, &["no machine `web01`", "--retire"]);
    place.run(&["forget", "web01", "--retire"]).expect(0);
    assert_eq!(fates(&place), ["forgotten"; 3]);
}

#[test]
fn a_point_whose_record_is_damaged_can_be_forgotten() {
    let place = machine_with_points(3, "{ daily = 7 }");
    let record = place.path("vault/points/00000001/00000001");
    let mut bytes = std::fs::read(&record).unwrap();
    bytes[80] ^= 1;
    std::fs::write(&record, bytes).unwrap();
    let said = place.run(&["forget", "web01@1"]).expect(0).stdout;
    assert!(said.contains("its record is damaged"), "{said}");
    assert_restores(&place, 0);
    assert_restores(&place, 2);
}
