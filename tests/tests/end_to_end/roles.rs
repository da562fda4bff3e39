//! Credentials that may do no more than their role needs, against servers that enforce it: the policies in
//! docs/permissions, as they are written there.

use coffre_tests::Place;
use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::servers::{azure_for_roles, azure_role, s3_for_roles, s3_role};

const MIB: u64 = 1 << 20;
const DENIED: i32 = 77;

fn become_on_s3(place: &Place, role: &str) {
    let role = s3_role(role);
    place.write_secret("role.id", role.id);
    place.write_secret("role.secret", role.secret);
}

fn become_on_azure(place: &Place, role: &str) {
    place.write_secret("role.sas", azure_role(role));
}

/// A machine with one disk, in a vault that `init` with these credentials makes.
fn place(vault: &str, become_init: impl FnOnce(&Place)) -> Place {
    let place = Place::with_vault(vault).with_machine("web01", "image");
    write_noise(&sparse(&place.images().join("a.img"), 4 * MIB), 0, MIB, 1);
    become_init(&place);
    place.init()
}

/// Two backups, the second of which relies on the first, restored byte for byte by whoever may only read.
fn backs_up_and_restores(place: &Place, become_role: impl Fn(&Place, &str)) {
    let image = place.images().join("a.img");
    become_role(place, "backup");
    place.backup("web01");
    std::fs::copy(&image, place.path("first.img")).unwrap();
    let disk = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    write_noise(&disk, MIB / 2, 4096, 2);
    let second = place.backup("web01");
    assert!(second["stored_bytes"].as_u64().unwrap() < MIB / 2, "{second}");

    become_role(place, "restore");
    let restored = place.restore("web01@0");
    assert_same(&place.path("first.img"), &restored.join("a.img"));
    let restored = place.restore("web01");
    assert_same(&image, &restored.join("a.img"));
    let refused = place.run(&["backup", "web01"]);
    refused.refused(DENIED, &["does not let us", "credentials"]);
    assert_eq!(place.points("web01").len(), 2);
}

#[test]
fn on_s3_each_role_can_do_its_own_work_and_no_more() {
    let place = place(&s3_for_roles(false), |place| become_on_s3(place, "init"));
    backs_up_and_restores(&place, become_on_s3);
    become_on_s3(&place, "verify");
    place.run(&["verify", "main", "--read-data"]).expect(0);

    // Keys are the work of those who may write keys, and removing them of those who may delete them.
    become_on_s3(&place, "backup");
    let add = ["key", "add", "main", "--new-key-file", "laptop=laptop.key"];
    place.run(&add).refused(DENIED, &["does not let us create"]);
    become_on_s3(&place, "init");
    place.run(&add).expect(0);
    let remove = ["key", "remove", "main", "laptop"];
    place.run(&remove).refused(DENIED, &["does not let us delete"]);
    become_on_s3(&place, "keys");
    place.run(&remove).expect(0);
    place
        .run(&["key", "rotate", "main", "--recovery-key-file", "again.recovery"])
        .expect(0);
    become_on_s3(&place, "backup");
    place.backup("web01");
}

#[test]
fn a_bucket_with_object_lock_takes_backups_and_gives_them_back() {
    let place = place(&s3_for_roles(true), |place| become_on_s3(place, "init"));
    backs_up_and_restores(&place, become_on_s3);
    become_on_s3(&place, "verify");
    place.run(&["verify", "main", "--read-data"]).expect(0);
}

#[test]
fn on_azure_blob_a_signature_that_creates_backs_up_and_one_that_reads_restores() {
    let role = |name: &str| if name == "restore" { "RESTORE" } else { "BACKUP" };
    let place = place(&azure_for_roles(), |place| become_on_azure(place, role("init")));
    backs_up_and_restores(&place, |place, name| become_on_azure(place, role(name)));
    become_on_azure(&place, "BACKUP");
    place
        .run(&["key", "add", "main", "--new-key-file", "laptop=laptop.key"])
        .expect(0);
    let remove = ["key", "remove", "main", "laptop"];
    place.run(&remove).refused(DENIED, &["does not let us delete"]);
    become_on_azure(&place, "CLEANER");
    place.run(&remove).expect(0);
}
