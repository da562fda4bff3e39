//! Credentials that may do no more than their role needs, against servers that enforce it: the policies in
//! docs/permissions, as they are written there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::servers::{azure_for_roles, azure_role, s3_for_roles, s3_role};
use coffre_tests::strike::Operation;
use coffre_tests::{Door, Place, VaultKind};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// As somebody cleans who wants the space now.
const NOW: [&str; 5] = ["clean", "main", "--force", "--undelete-for", "0s"];
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

    // What is kept and what goes is the cleaner's to say, and nobody's whose host may be taken over.
    place
        .run(&["forget", "web01@0"])
        .refused(DENIED, &["does not let us create"]);
    become_on_s3(&place, "cleaner");
    for command in ["forget", "undelete", "pin", "unpin", "forget"] {
        place.run(&[command, "web01@0"]).expect(0);
    }
    become_on_s3(&place, "backup");
    place.run(&NOW).refused(DENIED, &["does not let us create"]);
    become_on_s3(&place, "cleaner");
    for _ in 0..2 {
        place.run(&NOW).expect(0);
    }
    place.run(&["repair", "index", "main"]).expect(0);
    place.run(&add).refused(DENIED, &["does not let us create"]);
    become_on_s3(&place, "verify");
    place.run(&["verify", "main", "--read-data"]).expect(0);
}

/// The parts of a vault on which a policy of docs/permissions allows this.
fn allowed(role: &str, action: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/permissions");
    let policy = std::fs::read(folder.join(format!("s3-{role}.json"))).unwrap();
    let policy: Value = serde_json::from_slice(&policy).unwrap();
    let statements = policy["Statement"].as_array().unwrap();
    let of_action = statements.iter().filter(|statement| statement["Action"] == action);
    let resources = of_action.flat_map(|statement| statement["Resource"].as_array().unwrap());
    let part = |resource: &Value| {
        let part = resource.as_str().unwrap().strip_prefix("arn:aws:s3:::BUCKET/PREFIX/");
        part.expect("every resource lies in the vault")
            .trim_end_matches("/*")
            .to_owned()
    };
    resources.map(part).collect()
}

fn parts(operations: &[Operation], verb: &str) -> BTreeSet<String> {
    let of_verb = operations.iter().filter(|operation| operation.verb == verb);
    of_verb.map(|operation| operation.part().to_owned()).collect()
}

#[test]
fn each_policy_allows_what_its_commands_ask_for_and_nothing_more() {
    let mut place = Place::new(VaultKind::S3).with_machine("web01", "image");
    let Door::Server(door) = place.behind_door() else {
        panic!("a server was asked for");
    };
    let image = sparse(&place.images().join("a.img"), 16 * MIB);
    let run = |commands: &[&str], code: i32| {
        let mut operations = Vec::new();
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            let struck = door.run(place.command(&words), &[]);
            assert_eq!(
                struck.ran.code, code,
                "{command}:\n{}\n{}",
                struck.ran.stdout, struck.ran.stderr
            );
            operations.extend(struck.operations);
        }
        operations
    };
    let mut asked: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
    let init = [
        "init main --recovery-key-file recovery.key",
        "key add main --new-key-file laptop=laptop.key",
        "key rotate main --drop-others --recovery-key-file again.key",
    ];
    asked.insert("init", run(&init, 0));
    let keys = [
        "key add main --new-key-file desk=desk.key",
        "key remove main desk",
        "key rotate main --recovery-key-file third.key",
    ];
    asked.insert("keys", run(&keys, 0));
    for (seed, megabytes) in [(1, 12), (2, 12), (3, 6)] {
        write_noise(&image, 0, megabytes * MIB, seed);
        asked
            .entry("backup")
            .or_default()
            .extend(run(&["backup web01", "points web01"], 0));
    }
    let restore = ["points web01", "restore web01 --to restored", "key list main"];
    asked.insert("restore", run(&restore, 0));
    let clean = "clean main --force --undelete-for 0s";
    let cleaner = [
        "pin web01@0",
        "unpin web01@0",
        "forget web01@0",
        "undelete web01@0",
        "forget web01@0 web01@1",
        clean,
        clean,
        clean,
        "repair index main",
    ];
    asked.insert("cleaner", run(&cleaner, 0));
    asked.insert("verify", run(&["verify main --read-data"], 0));
    door.lose("packs/00000001/00000002/00000000");
    asked.entry("verify").or_default().extend(run(&["verify main"], 1));

    for (role, operations) in asked {
        let verbs: BTreeSet<&str> = operations.iter().map(|operation| operation.verb.as_str()).collect();
        assert!(
            verbs.is_subset(&BTreeSet::from(["GET", "HEAD", "LIST", "PUT", "DELETE"])),
            "{role}: {verbs:?}"
        );
        let mut created = parts(&operations, "PUT");
        let mut deleted = parts(&operations, "DELETE");
        // It tries to take its probes away, and does without where it may not.
        deleted.remove("probe");
        if role == "backup" {
            // Where packs are gone that it relied on: `a_backup_reads_lists_and_puts_if_absent_and_does_nothing_else`.
            created.insert("gclog".to_owned());
        }
        assert_eq!(created, allowed(role, "s3:PutObject"), "{role} creates");
        assert_eq!(deleted, allowed(role, "s3:DeleteObject"), "{role} deletes");
    }
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
