//! A small vault with everything in it that a vault can hold, and what restoring it must give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffre_vault::map::{LEAF_BYTES, LeafBuilder, MapReader, MapWriter, Place};
use coffre_vault::testing::FaultStore;
use coffre_vault::{
    ChunkId, ChunkKind, Claim, Credential, Encoder, Encryption, InitOptions, MachineNumber, OpenError, OpenOptions,
    Point, PointAttachment, PointDisk, PointDraft, ReadData, SessionNumber, SessionPlan, SessionWriter, Store, Tuning,
    Vault, VerifyPlan, VerifyReport,
};
use tempfile::TempDir;
use zeroize::Zeroizing;

/// Small packs, so that there are many.
const PACK_TARGET_BYTES: usize = 4096;

/// What lies on a disk, by its first byte; everything else is zero.
pub type Runs = BTreeMap<u64, Vec<u8>>;

/// What a point must give back. What could not be read is an error's text.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    pub point: Point,
    pub disks: Vec<Result<Runs, String>>,
    pub attachments: Vec<Result<Vec<u8>, String>>,
}

impl Restored {
    pub fn is_whole(&self) -> bool {
        self.disks.iter().all(Result::is_ok) && self.attachments.iter().all(Result::is_ok)
    }
}

/// By machine and number.
pub type Points = BTreeMap<(String, u32), Restored>;

/// A vault in memory and the folder for the caches of hosts.
pub struct Sample {
    pub store: Arc<FaultStore>,
    pub points: Points,
    pub folder: TempDir,
    caches: std::cell::Cell<u32>,
}

impl Sample {
    pub async fn new() -> Self {
        let store = FaultStore::in_memory();
        init(Store::over(store.clone(), "")).await;
        let folder = scratch();
        let vault = open(Store::over(store.clone(), ""), folder.path())
            .await
            .expect("a new vault");
        fill(&vault, folder.path()).await;
        let points = read_all(&vault).await.expect("a sound vault");
        Self {
            store,
            points,
            folder,
            caches: std::cell::Cell::new(0),
        }
    }

    /// A host that knows nothing of the vault yet.
    pub async fn new_host(&self) -> Result<Vault, OpenError> {
        let number = self.caches.get() + 1;
        self.caches.set(number);
        self.host(&number.to_string()).await
    }

    /// A host that keeps its cache below this name.
    pub async fn host(&self, cache: &str) -> Result<Vault, OpenError> {
        open(Store::over(self.store.clone(), ""), &self.folder.path().join(cache)).await
    }

    /// What a host that comes to this vault sees of it.
    pub async fn look(&self) -> Seen {
        let number = self.caches.get() + 1;
        let seen = self.see(self.new_host().await).await;
        // Or every look would leave some files behind.
        let _ = std::fs::remove_dir_all(self.folder.path().join(number.to_string()));
        seen
    }

    pub async fn see(&self, opened: Result<Vault, OpenError>) -> Seen {
        let vault = match opened {
            Ok(vault) => vault,
            Err(error) => return Seen::refused(&error),
        };
        let verified = verify(&vault).await;
        let points = match read_all(&vault).await {
            Ok(points) => points,
            Err(error) => return Seen::refused(&*error),
        };
        let seen = Seen { verified, points };
        self.assert_nothing_else(&seen);
        seen
    }

    /// Nothing is restored that was not backed up.
    fn assert_nothing_else(&self, seen: &Seen) {
        for (key, found) in &seen.points {
            let wanted = self.points.get(key).unwrap_or_else(|| panic!("{key:?} was never made"));
            // What became of it since is not in its record.
            let mut point = wanted.point.clone();
            (point.fate, point.pin) = (found.point.fate, found.point.pin.clone());
            point.forgotten_since = found.point.forgotten_since;
            assert_eq!(found.point, point, "{key:?}");
            for (found, wanted) in found.disks.iter().zip(&wanted.disks) {
                assert!(found.is_err() || found == wanted, "{key:?}: a disk has other bytes");
            }
            for (found, wanted) in found.attachments.iter().zip(&wanted.attachments) {
                assert!(
                    found.is_err() || found == wanted,
                    "{key:?}: an attachment has other bytes"
                );
            }
        }
    }
}

/// What a host has found.
#[derive(Debug)]
pub struct Seen {
    /// An error where verifying itself was refused.
    pub verified: Result<VerifyReport, String>,
    pub points: Points,
}

impl Seen {
    fn refused(error: &dyn std::error::Error) -> Self {
        Self {
            verified: Err(told(error)),
            points: Points::new(),
        }
    }

    pub fn is_sound(&self) -> bool {
        matches!(&self.verified, Ok(report) if report.is_sound())
    }
}

pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

pub async fn verify(vault: &Vault) -> Result<VerifyReport, String> {
    let plan = VerifyPlan {
        read: ReadData::All,
        ..VerifyPlan::default()
    };
    vault.verify(plan, &|_| {}).await.map_err(|error| told(&error))
}

/// Thousands of small files are faster in memory.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a scratch folder")
}

pub fn key() -> Credential {
    Credential::Secret(Zeroizing::new(bytes(77, 32)))
}

pub async fn init(store: Store) {
    let options = InitOptions {
        encryption: Encryption::Encrypted {
            slots: vec![
                ("main".to_owned(), key()),
                ("spare".to_owned(), Credential::Secret(Zeroizing::new(bytes(78, 32)))),
            ],
        },
        recovery_key: false,
        host: "backup1".to_owned(),
    };
    Vault::init(store, options).await.expect("an empty place");
}

pub async fn open(store: Store, cache: &Path) -> Result<Vault, OpenError> {
    open_with(store, key(), cache).await
}

pub async fn open_with(store: Store, key: Credential, cache: &Path) -> Result<Vault, OpenError> {
    let options = OpenOptions {
        cache_folder: cache.to_owned(),
        expect_id: None,
        allow_unencrypted: false,
    };
    let tuning = Tuning {
        pack_target_bytes: Some(PACK_TARGET_BYTES),
        packs_per_piece: 2,
        ..Tuning::default()
    };
    Vault::open_tuned(store, Some(key), options, tuning).await
}

/// Bytes that do not compress.
pub fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Bytes that do.
fn text(seed: u32, length: usize) -> Vec<u8> {
    bytes(seed, 16).repeat(length / 16)
}

const MIB: u64 = 1 << 20;

/// Sessions of two machines, disks that shrink and grow, attachments, a session that was given up.
pub async fn fill(vault: &Vault, folder: &Path) {
    let root = Runs::from([(0, bytes(1, 512)), (4096, text(2, 2048)), (7 * MIB, bytes(3, 1024))]);
    let data = Runs::from([
        (MIB, bytes(4, 512)),
        (9 * MIB, text(5, 4096)),
        (23 * MIB, bytes(6, 512)),
    ]);
    let definition = b"<domain><name>web01</name></domain>".to_vec();
    let web = vault.machine_or_create("web01").await.expect("a sound vault");
    let disks = [("vda", 8 * MIB, root.clone()), ("vdb", 24 * MIB, data.clone())];
    back_up(vault, folder, web, &disks, std::slice::from_ref(&definition)).await;
    // One run changes, one disk shrinks, the other grows beyond a level of its map.
    let mut changed = root.clone();
    changed.insert(4096, text(7, 2048));
    let small: Runs = data.range(..4 * MIB).map(|(at, run)| (*at, run.clone())).collect();
    let disks = [("vda", 20 * MIB, changed), ("vdb", 4 * MIB, small)];
    back_up(vault, folder, web, &disks, &[definition.clone(), bytes(8, 700)]).await;
    let given_up = begin(vault, web).await;
    put(vault, &given_up, ChunkKind::Data, bytes(9, 512)).await;
    given_up.abort("the snapshot was lost").await.expect("a sound vault");
    let other = vault.machine_or_create("db01").await.expect("a sound vault");
    // What the other machine has as well is stored once.
    let disks = [("sda", 8 * MIB, root), ("empty", MIB, Runs::new())];
    back_up(vault, folder, other, &disks, &[definition]).await;
    let (first, second) = (SessionNumber(0), SessionNumber(1));
    vault
        .forget(web, first, Some("by mistake"))
        .await
        .expect("a sound vault");
    vault.undelete(web, first).await.expect("a sound vault");
    vault
        .pin(web, first, Some("before the upgrade"))
        .await
        .expect("a sound vault");
    vault.unpin(web, first).await.expect("a sound vault");
    vault.forget(web, second, None).await.expect("a sound vault");
    coffre_vault::testing::write_log(vault, web).await;
}

async fn begin(vault: &Vault, machine: MachineNumber) -> SessionWriter {
    let newest = vault
        .points(machine)
        .await
        .expect("a sound vault")
        .last()
        .map(|point| point.number);
    let plan = SessionPlan {
        machine,
        bases: newest.into_iter().collect(),
        deadline: jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24),
        host: "backup1".to_owned(),
        resumes: None,
    };
    vault.begin(plan).await.expect("a sound vault")
}

async fn put(vault: &Vault, writer: &SessionWriter, kind: ChunkKind, content: Vec<u8>) -> ChunkId {
    let (id, writer) = (vault.hasher().id(&content), writer.clone());
    let putting = tokio::task::spawn_blocking(move || {
        if writer.claim(&id).expect("a sound vault") == Claim::New {
            writer
                .put(kind, id, &content, &mut Encoder::new())
                .expect("a sound vault");
        }
    });
    putting.await.expect("no panic");
    id
}

async fn back_up(
    vault: &Vault,
    folder: &Path,
    machine: MachineNumber,
    disks: &[(&str, u64, Runs)],
    attachments: &[Vec<u8>],
) {
    let writer = begin(vault, machine).await;
    let mut draft = PointDraft {
        host: "backup1".to_owned(),
        ..PointDraft::default()
    };
    for (id, size_bytes, runs) in disks {
        let mut leaves: BTreeMap<u64, LeafBuilder> = BTreeMap::new();
        for (at, run) in runs {
            let chunk = put(vault, &writer, ChunkKind::Data, run.clone()).await;
            let leaf = leaves.entry(at / LEAF_BYTES).or_default();
            leaf.push((at % LEAF_BYTES) as u32 - leaf.end_bytes(), Place::Zero);
            let place = Place::Chunk {
                id: chunk,
                offset_bytes: 0,
            };
            leaf.push(run.len() as u32, place);
        }
        let mut nodes = Vec::new();
        let hasher = vault.hasher();
        let mut map = MapWriter::new(*size_bytes, |node: Vec<u8>| {
            let id = hasher.id(&node);
            nodes.push(node);
            Ok::<_, coffre_vault::map::MapError>(id)
        });
        for (number, leaf) in leaves {
            let id = put(vault, &writer, ChunkKind::Node, leaf.finish().encode()).await;
            map.push_leaf(number, Some(id)).expect("nodes are kept in memory");
        }
        let root = map.finish().expect("nodes are kept in memory");
        for node in nodes {
            put(vault, &writer, ChunkKind::Node, node).await;
        }
        draft.disks.push(PointDisk {
            id: (*id).to_owned(),
            label: (*id).to_owned(),
            size_bytes: *size_bytes,
            root,
            ..PointDisk::default()
        });
    }
    for (number, content) in attachments.iter().enumerate() {
        let (worker, bytes) = (writer.clone(), content.clone());
        let chunks = tokio::task::spawn_blocking(move || worker.put_bytes(&bytes).expect("a sound vault"));
        draft.attachments.push(PointAttachment {
            name: format!("attachment {number}"),
            media_type: "text/plain".to_owned(),
            size_bytes: content.len() as u64,
            chunks: chunks.await.expect("no panic"),
        });
    }
    let commit_file: PathBuf = folder.join("commit");
    writer.commit(draft, &commit_file).await.expect("a sound vault");
}

/// Restores every point that the vault lists, as far as that goes.
pub async fn read_all(vault: &Vault) -> Result<Points, Box<coffre_vault::ReadError>> {
    let mut all = Points::new();
    for (machine, name) in vault.machines().await? {
        for point in vault.points(machine).await? {
            let mut disks = Vec::new();
            for disk in &point.disks {
                disks.push(read_disk(vault, disk).await);
            }
            let mut attachments = Vec::new();
            for attachment in &point.attachments {
                attachments.push(read_attachment(vault, &attachment.chunks).await);
            }
            let restored = Restored {
                point: point.clone(),
                disks,
                attachments,
            };
            all.insert((name.clone(), point.number.0), restored);
        }
    }
    Ok(all)
}

async fn read_disk(vault: &Vault, disk: &PointDisk) -> Result<Runs, String> {
    let chunks = vault.chunks();
    let mut map = MapReader::new(chunks.clone(), disk.root).map_err(|error| told(&error))?;
    let mut runs = Runs::new();
    let mut from = 0;
    while let Some((number, id)) = map.next_leaf(from).await.map_err(|error| told(&error))? {
        let leaf = map.leaf_of(id).await.map_err(|error| told(&error))?;
        for extent in leaf.extents() {
            if let Place::Chunk { id, offset_bytes } = extent.place {
                let chunk = chunks.read(&id).await.map_err(|error| told(&error))?;
                let part = offset_bytes as usize..(offset_bytes + extent.length_bytes) as usize;
                let part = chunk.get(part).ok_or("the map reaches beyond a chunk")?;
                runs.insert(number * LEAF_BYTES + u64::from(extent.start_bytes), part.to_vec());
            }
        }
        from = number + 1;
    }
    Ok(runs)
}

async fn read_attachment(vault: &Vault, ids: &[ChunkId]) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    for id in ids {
        let chunk = vault.chunks().read(id).await.map_err(|error| told(&error))?;
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

#[tokio::test]
async fn the_sample_is_sound_and_restores() {
    let sample = Sample::new().await;
    let seen = sample.look().await;
    assert!(seen.is_sound(), "{:?}", seen.verified);
    assert_eq!(seen.points, sample.points);
    assert!(seen.points.values().all(Restored::is_whole));
    assert_eq!(seen.points.len(), 3);
    let runs = seen.points[&("web01".to_owned(), 1)].disks[0]
        .as_ref()
        .expect("it is whole");
    assert_eq!(runs[&(7 * MIB)], bytes(3, 1024));
}
