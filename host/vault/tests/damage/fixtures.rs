//! Vaults kept in `tests/fixtures`: one that must open and restore for ever, and what verifying says of each kind of damage.
//!
//! `vault-v1` was written once by format version 1 and never changes. Below `damaged` lie, by kind of damage, the objects
//! of it that are other than they were, and `lost.txt` names those that are gone. `cargo test -p coffre-vault --test damage
//! -- --ignored make_the_fixtures` made all of it; it is run again only for a new version of the format, beside the old one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffre_vault::testing::FaultStore;
use coffre_vault::{Credential, Encryption, InitOptions, Store, StoreConfig, StoreOptions, Vault};
use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use crate::sample::{Restored, Runs, fill, open_with, read_all, scratch, told, verify};

const PASSPHRASE: &str = "only for the vaults in tests/fixtures";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

fn passphrase() -> Credential {
    Credential::Passphrase(Zeroizing::new(PASSPHRASE.to_owned()))
}

/// What a point must give back.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Expected {
    /// By label: size and BLAKE3 of the whole disk.
    disks: BTreeMap<String, (u64, String)>,
    attachments: Vec<String>,
}

impl Expected {
    fn of(restored: &Restored) -> Self {
        let disks = restored.point.disks.iter().zip(&restored.disks);
        Self {
            disks: disks
                .map(|(disk, runs)| {
                    let runs = runs.as_ref().expect("the disk restores");
                    (disk.label.clone(), (disk.size_bytes, hash(disk.size_bytes, runs)))
                })
                .collect(),
            attachments: (restored.attachments.iter())
                .map(|content| {
                    blake3::hash(content.as_ref().expect("it restores"))
                        .to_hex()
                        .to_string()
                })
                .collect(),
        }
    }
}

fn hash(size_bytes: u64, runs: &Runs) -> String {
    let mut disk = vec![0; size_bytes as usize];
    for (at, run) in runs {
        disk[*at as usize..][..run.len()].copy_from_slice(run);
    }
    blake3::hash(&disk).to_hex().to_string()
}

async fn expected_of(vault: &Vault) -> BTreeMap<String, Expected> {
    let points = read_all(vault).await.expect("the vault reads");
    let named = points.iter().map(|((machine, number), restored)| {
        let name = format!("{machine}@{number}");
        (name, Expected::of(restored))
    });
    named.collect()
}

fn below(folder: &Path, under: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(under).unwrap_or_else(|error| panic!("{}: {error}", under.display())) {
        let path = entry.expect("the folder reads").path();
        if path.is_dir() {
            below(folder, &path, found);
        } else {
            let name = path
                .strip_prefix(folder)
                .expect("it is below")
                .to_string_lossy()
                .into_owned();
            found.insert(name, fs::read(&path).expect("the file reads"));
        }
    }
}

fn objects(name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    below(&folder(name), &folder(name), &mut found);
    found
}

/// The vault in memory, so that no test changes it, with the damage of this name.
async fn load(damage: Option<&str>) -> Arc<FaultStore> {
    let store = FaultStore::in_memory();
    let damage = damage
        .map(|name| objects(&format!("damaged/{name}")))
        .unwrap_or_default();
    for (object, bytes) in objects("vault-v1/objects").into_iter().chain(damage) {
        if object == "lost.txt" {
            for lost in String::from_utf8(bytes).expect("it is text").lines() {
                store.lose(lost).await;
            }
        } else {
            store.replace(&object, bytes).await;
        }
    }
    store
}

#[tokio::test]
async fn a_vault_of_format_version_1_opens_and_restores_for_ever() {
    let store = load(None).await;
    let cache = scratch();
    let vault = open_with(Store::over(store, ""), passphrase(), cache.path())
        .await
        .expect("it opens");
    let expected = fs::read(folder("vault-v1/expected.json")).expect("the file reads");
    let expected: BTreeMap<String, Expected> = serde_json::from_slice(&expected).expect("the file is whole");
    assert_eq!(expected_of(&vault).await, expected);
    let report = verify(&vault).await.expect("it is verified");
    assert!(report.is_sound(), "{report:?}");
    // And goes on: a new session upon the old points.
    let machine = vault.machine("web01").await.expect("it reads").expect("it is there");
    vault
        .unpin(machine, vault.points(machine).await.expect("it reads")[0].number)
        .await
        .expect("it takes records");
}

#[tokio::test]
async fn every_kind_of_damage_is_told_as_it_always_was() {
    for (name, _) in DAMAGES {
        let store = load(Some(name)).await;
        let cache = scratch();
        let told = match open_with(Store::over(store, ""), passphrase(), cache.path()).await {
            Err(error) => format!("does not open: {}", told(&error)),
            Ok(vault) => match verify(&vault).await {
                Err(error) => format!("cannot be verified: {error}"),
                Ok(report) => {
                    assert!(!report.is_sound(), "{name}");
                    // Whatever is damaged, all else is looked at.
                    let unread = match *name {
                        "swapped-points" => 2,
                        "damaged-point" | "missing-point" | "gap-in-sessions" => 1,
                        _ => 0,
                    };
                    assert_eq!(report.points, POINTS - unread, "{name}");
                    let mut told: Vec<String> = report.damage.iter().map(tell).collect();
                    // Not in the order of ids.
                    told.sort();
                    told.join("\n")
                }
            },
        };
        insta::assert_snapshot!(*name, told);
    }
}

fn tell(damage: &coffre_vault::Damage) -> String {
    let mut lines = vec![format!("{}: {}", damage.object, damage.what)];
    for touched in &damage.touches {
        let disk = touched.disk.as_deref().unwrap_or("as a whole");
        let ranges: Vec<String> = touched.ranges.iter().map(|range| format!("{range:?}")).collect();
        lines.push(
            format!("  {}@{} {disk} {}", touched.machine, touched.point, ranges.join(" "))
                .trim_end()
                .to_owned(),
        );
    }
    without_ids(&lines.join("\n"))
}

/// Ids of chunks follow from the vault's random key.
fn without_ids(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.trim_end_matches([':', '\n']) {
        id if id.len() == 40 && id.bytes().all(|letter| letter.is_ascii_hexdigit()) => word.replace(id, "<id>"),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What happens to one object.
enum What {
    /// The lowest bit of this byte; below zero it counts from the end.
    Flip(i64),
    /// To this share of its length.
    Cut {
        percent: usize,
    },
    Lose,
    /// By another of the same vault.
    Swap(&'static str),
    /// The first of these texts by the second.
    Replace(&'static str, &'static str),
}

/// In the vault that is damaged.
const POINTS: u64 = 3;
const DATA_PACK: &str = "packs/00000001/00000000/00000001";
const NODE_PACK: &str = "packs/00000001/00000000/00000000";
/// Its name is random.
const SLOT: &str = "keys/";

type Damaged = (&'static str, &'static [(&'static str, What)]);

const DAMAGES: &[Damaged] = &[
    ("flipped-bit-in-a-chunk", &[(DATA_PACK, What::Flip(60))]),
    ("flipped-bit-in-a-map-node", &[(NODE_PACK, What::Flip(60))]),
    ("flipped-bit-in-a-directory", &[(DATA_PACK, What::Flip(-40))]),
    ("flipped-bit-in-a-pack-header", &[(DATA_PACK, What::Flip(20))]),
    ("flipped-bit-in-a-trailer", &[(DATA_PACK, What::Flip(-1))]),
    ("missing-pack", &[(DATA_PACK, What::Lose)]),
    ("missing-pack-of-map-nodes", &[(NODE_PACK, What::Lose)]),
    ("truncated-pack", &[(DATA_PACK, What::Cut { percent: 30 })]),
    (
        "swapped-packs",
        &[(DATA_PACK, What::Swap("packs/00000001/00000001/00000001"))],
    ),
    ("missing-index", &[("index/00000001/00000000/00000000", What::Lose)]),
    ("damaged-index", &[("index/00000001/00000001/00000000", What::Flip(70))]),
    ("damaged-point", &[("points/00000001/00000001", What::Flip(70))]),
    (
        "swapped-points",
        &[("points/00000001/00000000", What::Swap("points/00000001/00000001"))],
    ),
    ("missing-point", &[("points/00000001/00000000", What::Lose)]),
    ("damaged-session", &[("sessions/00000001/00000001", What::Flip(50))]),
    ("damaged-machine", &[("machines/00000002", What::Flip(50))]),
    (
        "gap-in-sessions",
        &[
            ("sessions/00000001/00000001", What::Lose),
            ("points/00000001/00000001", What::Lose),
        ],
    ),
    ("gap-in-fates", &[("fates/00000001/00000000/00000001", What::Lose)]),
    ("damaged-fate", &[("fates/00000001/00000001/00000000", What::Flip(-1))]),
    ("missing-machine", &[("machines/00000001", What::Lose)]),
    ("damaged-checkpoint", &[("gclog/00000002", What::Flip(80))]),
    ("missing-checkpoint", &[("gclog/00000002", What::Lose)]),
    ("truncated-slot", &[(SLOT, What::Cut { percent: 60 })]),
    ("missing-slot", &[(SLOT, What::Lose)]),
    (
        "format-of-a-newer-version",
        &[("format", What::Replace("COFFRE-VAULT 1", "COFFRE-VAULT 2"))],
    ),
    ("format-changed", &[("format", What::Replace("backup1", "backup2"))]),
    (
        "format-without-encryption",
        &[("format", What::Replace("aes-256-gcm", "none"))],
    ),
    ("missing-format", &[("format", What::Lose)]),
];

#[tokio::test]
#[ignore = "writes tests/fixtures anew"]
async fn make_the_fixtures() {
    let vault_folder = folder("vault-v1/objects");
    let _ = fs::remove_dir_all(folder("vault-v1"));
    let _ = fs::remove_dir_all(folder("damaged"));
    fs::create_dir_all(&vault_folder).expect("the folder can be made");
    let config = StoreConfig {
        url: Url::from_directory_path(vault_folder.canonicalize().expect("it was made")).expect("it is absolute"),
        options: StoreOptions::default(),
    };
    let options = InitOptions {
        encryption: Encryption::Encrypted {
            slots: vec![("main".to_owned(), passphrase())],
        },
        recovery_key: false,
        host: "backup1".to_owned(),
    };
    Vault::init(Store::connect(&config).expect("a folder"), options)
        .await
        .expect("an empty folder");
    let cache = scratch();
    let vault = open_with(Store::connect(&config).expect("a folder"), passphrase(), cache.path());
    let vault = vault.await.expect("a new vault");
    fill(&vault, cache.path()).await;
    let expected = serde_json::to_string_pretty(&expected_of(&vault).await).expect("plain data");
    fs::write(folder("vault-v1/expected.json"), expected + "\n").expect("it can be written");
    let _ = fs::remove_dir(vault_folder.join("probe"));
    let whole = objects("vault-v1/objects");
    for (name, changes) in DAMAGES {
        damage(&folder(&format!("damaged/{name}")), &whole, changes);
    }
}

fn damage(folder: &Path, whole: &BTreeMap<String, Vec<u8>>, changes: &[(&str, What)]) {
    let write = |object: &str, bytes: &[u8]| {
        let path = folder.join(object);
        fs::create_dir_all(path.parent().expect("it is below")).expect("the folder can be made");
        fs::write(path, bytes).expect("it can be written");
    };
    let mut lost = String::new();
    for (object, what) in changes {
        let (object, bytes) = whole
            .range((*object).to_owned()..)
            .next()
            .filter(|(found, _)| found.starts_with(object))
            .unwrap_or_else(|| panic!("there is no {object}"));
        let mut bytes = bytes.clone();
        match what {
            What::Flip(at) => {
                let at = at.rem_euclid(bytes.len() as i64) as usize;
                bytes[at] ^= 1;
            }
            What::Cut { percent } => bytes.truncate(bytes.len() * percent / 100),
            What::Lose => {
                lost.push_str(&format!("{object}\n"));
                continue;
            }
            What::Swap(other) => {
                write(other, &bytes);
                bytes.clone_from(&whole[*other]);
            }
            What::Replace(from, to) => {
                let text = String::from_utf8(bytes).expect("it is text");
                assert!(text.contains(from), "{text}");
                bytes = text.replace(from, to).into_bytes();
            }
        }
        write(object, &bytes);
    }
    if !lost.is_empty() {
        write("lost.txt", lost.as_bytes());
    }
}
