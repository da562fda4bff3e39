//! Parity beside the packs of a local vault: what the disk damages up to its budget is mended, beyond it is damage as ever, and a
//! parity that is missing, damaged or left over is never worse than none.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coffre_vault::map::{LeafBuilder, MapReader, Place};
use coffre_vault::{
    ChunkKind, Claim, CleanPlan, Credential, Encoder, Encryption, InitOptions, MapRoot, OpenOptions, Parity, PointDisk,
    PointDraft, ReadData, ReadError, SessionPlan, Store, StoreConfig, StoreOptions, Tuning, Vault, VerifyPlan,
    VerifyReport,
};
use jiff::{SignedDuration, Timestamp};

const MACHINE: &str = "web01";
const SLOT: u32 = 128 * 1024;
const SLOTS: u32 = 20;
const LEAF: u32 = 8 * 1024 * 1024;
const BLOCK: u64 = 4096;
/// Packs have about 250 blocks, so 10 % are 25 or 26 of them.
const PACK_BYTES: usize = 1024 * 1024;
const MENDED: usize = 20;
const NOT_MENDED: usize = 40;

fn credential() -> Credential {
    Credential::Secret((0..32).collect::<Vec<u8>>().into())
}

struct Rig {
    folder: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir_all(place.vault_folder()).unwrap();
        let options = InitOptions {
            encryption: Encryption::Encrypted {
                slots: vec![("main".to_owned(), credential())],
            },
            recovery_key: false,
            host: "test".to_owned(),
        };
        Vault::init(place.store(None), options).await.unwrap();
        place
    }

    fn vault_folder(&self) -> PathBuf {
        self.folder.path().join("vault")
    }

    fn store(&self, percent: Option<u8>) -> Store {
        let url = url::Url::from_file_path(self.vault_folder()).unwrap();
        let options = StoreOptions {
            parity: percent.and_then(Parity::of_percent),
            ..StoreOptions::default()
        };
        Store::connect(&StoreConfig { url, options }).unwrap()
    }

    /// Whoever only reads needs no setting.
    async fn open(&self, percent: Option<u8>) -> Vault {
        let options = OpenOptions {
            cache_folder: self.folder.path().join("cache"),
            expect_id: None,
            allow_unencrypted: false,
        };
        let tuning = Tuning {
            pack_target_bytes: Some(PACK_BYTES),
            ..Tuning::default()
        };
        Vault::open_tuned(self.store(percent), Some(credential()), options, tuning)
            .await
            .unwrap()
    }

    /// Files below a folder of the vault, sorted.
    fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.vault_folder().join(below)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    fn parity_of(&self, pack: &Path) -> PathBuf {
        let name = pack.strip_prefix(self.vault_folder().join("packs")).unwrap();
        self.vault_folder().join("parity").join(name)
    }
}

fn content(seed: u32) -> Vec<u8> {
    let mut out = vec![0; SLOT as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Backs up a disk of slots that no other seed has.
async fn back_up(vault: &Vault, folder: &Path, seed: u32) {
    let machine = vault.machine_or_create(MACHINE).await.unwrap();
    let plan = SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: Timestamp::now() + SignedDuration::from_hours(1),
        host: "test".to_owned(),
        resumes: None,
    };
    let writer = vault.begin(plan).await.unwrap();
    let (worker, hasher) = (writer.clone(), vault.hasher());
    let draft = tokio::task::spawn_blocking(move || {
        let mut encoder = Encoder::new();
        let mut put = |kind, content: &[u8]| {
            let id = hasher.id(content);
            if worker.claim(&id).unwrap() == Claim::New {
                worker.put(kind, id, content, &mut encoder).unwrap();
            }
            id
        };
        let mut leaf = LeafBuilder::new();
        for slot in 0..SLOTS {
            let id = put(ChunkKind::Data, &content(seed + slot));
            leaf.push(SLOT, Place::Chunk { id, offset_bytes: 0 });
        }
        leaf.push(LEAF - SLOT * SLOTS, Place::Zero);
        let id = put(ChunkKind::Node, &leaf.finish().encode());
        PointDraft {
            disks: vec![PointDisk {
                size_bytes: u64::from(LEAF),
                root: Some(MapRoot { level: 0, id }),
                ..PointDisk::default()
            }],
            ..PointDraft::default()
        }
    });
    writer
        .commit(draft.await.unwrap(), &folder.join("commit"))
        .await
        .unwrap();
}

/// Reads the last point's disk and compares it.
async fn restore(vault: &Vault, seed: u32) -> Result<(), ReadError> {
    let machine = vault.machine(MACHINE).await?.unwrap();
    let point = vault.points(machine).await?.pop().unwrap();
    let mut map = MapReader::new(vault.chunks(), point.disks[0].root).unwrap();
    let leaf = map.leaf(0).await.unwrap().unwrap();
    for (extent, slot) in leaf.extents().iter().zip(0..) {
        if let Place::Chunk { id, .. } = extent.place {
            assert_eq!(vault.chunks().read(&id).await?, content(seed + slot));
        }
    }
    Ok(())
}

async fn verify(vault: &Vault, quarantine: bool) -> VerifyReport {
    let plan = VerifyPlan {
        read: ReadData::All,
        quarantine,
        ..VerifyPlan::default()
    };
    vault.verify(plan, &|_| {}).await.unwrap()
}

/// Loses every `step`th sector of a file, or flips a bit in it.
fn damage(file: &Path, sectors: usize, zeroes: bool) {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let blocks = opened.metadata().unwrap().len().div_ceil(BLOCK);
    let step = (blocks / sectors as u64).max(1);
    for sector in 0..sectors as u64 {
        let at = sector * step * BLOCK;
        if zeroes {
            let end = (at + BLOCK).min(opened.metadata().unwrap().len());
            opened.write_all_at(&vec![0; (end - at) as usize], at).unwrap();
        } else {
            let mut byte = [0];
            opened.read_exact_at(&mut byte, at + 11).unwrap();
            opened.write_all_at(&[byte[0] ^ 4], at + 11).unwrap();
        }
    }
}

/// The packs of data: the largest ones.
fn data_packs(place: &Rig) -> Vec<PathBuf> {
    let mut packs = place.files("packs");
    packs.retain(|pack| std::fs::metadata(pack).unwrap().len() > PACK_BYTES as u64 / 2);
    assert!(packs.len() >= 2, "{packs:?}");
    packs
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_and_lost_sectors_are_mended_up_to_the_budget() {
    for zeroes in [false, true] {
        let place = Rig::new().await;
        let vault = place.open(Some(10)).await;
        back_up(&vault, place.folder.path(), 1).await;
        let packs = place.files("packs");
        assert_eq!(place.files("parity").len(), packs.len());
        let before: Vec<Vec<u8>> = packs.iter().map(|pack| std::fs::read(pack).unwrap()).collect();
        for pack in data_packs(&place) {
            damage(&pack, MENDED, zeroes);
        }
        // The map's own pack is small: one block is its budget.
        let nodes = packs
            .iter()
            .min_by_key(|pack| std::fs::metadata(pack).unwrap().len())
            .unwrap();
        damage(nodes, 1, zeroes);

        let vault = place.open(None).await;
        restore(&vault, 1).await.unwrap();
        assert!(
            packs
                .iter()
                .zip(&before)
                .any(|(pack, before)| std::fs::read(pack).unwrap() != *before)
        );

        // Whoever only looks changes nothing, and says what is wrong.
        let report = verify(&vault, false).await;
        assert!(!report.damage.is_empty());
        assert!(report.mended.is_empty());

        let report = verify(&vault, true).await;
        assert_eq!(report.damage, [], "{zeroes}");
        let wanted: Vec<u64> = data_packs(&place).iter().map(|_| MENDED as u64).collect();
        let mut blocks: Vec<u64> = report.mended.iter().map(|mended| mended.blocks).collect();
        blocks.sort_unstable();
        assert_eq!(blocks[0], 1, "the map's");
        assert_eq!(blocks[1..], wanted);
        assert!(report.quarantined.is_empty());
        for (pack, before) in packs.iter().zip(&before) {
            assert_eq!(std::fs::read(pack).unwrap(), *before, "{}", pack.display());
        }
        let again = verify(&place.open(None).await, true).await;
        assert!(again.is_sound() && again.mended.is_empty(), "{again:?}");
        restore(&place.open(None).await, 1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_cut_short_is_mended_up_to_the_budget() {
    let place = Rig::new().await;
    back_up(&place.open(Some(10)).await, place.folder.path(), 1).await;
    let pack = data_packs(&place).remove(0);
    let before = std::fs::read(&pack).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&pack).unwrap();
    file.set_len(before.len() as u64 - 10 * BLOCK).unwrap();
    let report = verify(&place.open(None).await, true).await;
    assert_eq!(report.damage, []);
    assert_eq!(report.mended.len(), 1);
    assert_eq!(std::fs::read(&pack).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_budget_it_is_damage_as_without_parity() {
    let mut told = Vec::new();
    for percent in [None, Some(10)] {
        let place = Rig::new().await;
        back_up(&place.open(percent).await, place.folder.path(), 1).await;
        damage(&data_packs(&place)[0], NOT_MENDED, true);
        let vault = place.open(None).await;
        let error = restore(&vault, 1).await.unwrap_err();
        assert!(error.is_damage(), "{error}");
        let report = verify(&vault, true).await;
        assert!(report.mended.is_empty());
        assert_eq!(report.damage.len(), 1);
        assert_eq!(report.quarantined.len(), 1);
        told.push((report.damage, report.quarantined));
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parity_that_is_missing_damaged_or_of_another_pack_is_never_worse_than_none() {
    for what in ["missing", "empty", "flipped", "swapped"] {
        let place = Rig::new().await;
        back_up(&place.open(Some(10)).await, place.folder.path(), 1).await;
        let packs = data_packs(&place);
        let (first, second) = (place.parity_of(&packs[0]), place.parity_of(&packs[1]));
        match what {
            "missing" => std::fs::remove_dir_all(place.vault_folder().join("parity")).unwrap(),
            "empty" => std::fs::write(&first, b"").unwrap(),
            "flipped" => {
                let blocks = std::fs::metadata(&first).unwrap().len() / BLOCK;
                damage(&first, blocks as usize, false);
            }
            _ => {
                let parity = std::fs::read(&second).unwrap();
                std::fs::write(&first, parity).unwrap();
            }
        }
        let vault = place.open(Some(10)).await;
        assert!(verify(&vault, true).await.is_sound(), "{what}");
        restore(&vault, 1).await.unwrap();
        let before = std::fs::read(&packs[0]).unwrap();
        damage(&packs[0], 2, false);
        let damaged = std::fs::read(&packs[0]).unwrap();
        let vault = place.open(Some(10)).await;
        let report = verify(&vault, true).await;
        assert_eq!(report.damage.len(), 1, "{what}");
        assert_eq!(report.quarantined.len(), 1, "{what}");
        assert_eq!(std::fs::read(&packs[0]).unwrap(), damaged, "{what}");
        // And the next backup heals it, as it would without.
        std::fs::write(&packs[0], before).unwrap();
        restore(&place.open(None).await, 1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parity_goes_with_its_pack_and_what_belongs_to_no_pack_goes_too() {
    let place = Rig::new().await;
    let vault = place.open(Some(10)).await;
    back_up(&vault, place.folder.path(), 1).await;
    back_up(&vault, place.folder.path(), 1000).await;
    let machine = vault.machine(MACHINE).await.unwrap().unwrap();
    let points = vault.points(machine).await.unwrap();
    vault.forget(machine, points[0].number, None).await.unwrap();
    // What a writer leaves that died between a pack's parity and the pack.
    let stray = place.vault_folder().join("parity/00000001/00000000/000000ff");
    std::fs::write(&stray, b"stray").unwrap();
    let before = place.files("packs").len();
    let plan = CleanPlan {
        force: true,
        undelete_for: Duration::ZERO,
        host: "test".to_owned(),
        ..CleanPlan::default()
    };
    for _ in 0..3 {
        vault.clean(&plan, &|_| {}).await.unwrap();
    }
    assert!(!stray.exists());
    let packs = place.files("packs");
    assert!(packs.len() < before);
    let with_parity: Vec<PathBuf> = packs.iter().map(|pack| place.parity_of(pack)).collect();
    assert_eq!(place.files("parity"), with_parity);
    restore(&vault, 1000).await.unwrap();
    assert!(verify(&vault, true).await.is_sound());
}

#[test]
fn only_folders_have_parity() {
    let options = StoreOptions {
        parity: Parity::of_percent(10),
        ..StoreOptions::default()
    };
    let url = url::Url::parse("s3://bucket/prefix").unwrap();
    let error = Store::connect(&StoreConfig { url, options }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`s3://bucket/prefix` is no address for a vault: parity is for vaults in a local folder"
    );
}
