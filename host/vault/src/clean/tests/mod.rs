//! The clean-up beside writers, other clean-ups, crashes and stores that lie. Whatever happens, every point that is not purged
//! restores.

mod beside;
mod crash;
mod guarded;
mod pieces;
mod repack;
mod steps;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::map::{LeafBuilder, MapReader, MapRoot, Place};
use crate::pack::{ChunkKind, Encoder};
use crate::point::{Point, PointDisk};
use crate::session::{Claim, SessionPlan, SessionWriter};
use crate::store::Store;
use crate::testing::FaultStore;
use crate::vault::{Encryption, InitOptions, OpenOptions, Tuning, Vault};

const LEAF: u32 = 8 * 1024 * 1024;
/// Random bytes, so a pack of the rig's holds seven.
const CHUNK: u32 = 4096;
const PACK_BYTES: usize = 32 * 1024;
const DAY: Duration = Duration::from_hours(24);

/// A clock that is set by hand.
#[derive(Debug, Default)]
struct SetClock(Mutex<SignedDuration>);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp::now() + *self.0.lock()
    }
}

struct Rig {
    store: Arc<FaultStore>,
    folder: TempDir,
    clock: Arc<SetClock>,
    hosts: AtomicUsize,
}

impl Rig {
    async fn new() -> Self {
        let rig = Self {
            store: FaultStore::in_memory(),
            folder: tempfile::tempdir().unwrap(),
            clock: Arc::default(),
            hosts: AtomicUsize::new(0),
        };
        let options = InitOptions {
            encryption: Encryption::None,
            recovery_key: false,
            host: String::new(),
        };
        Vault::init(Store::over(rig.store.clone(), ""), options).await.unwrap();
        rig
    }

    /// A host that has seen nothing of the vault.
    async fn host(&self) -> Vault {
        self.host_with(self.clock.clone()).await
    }

    async fn host_with(&self, clock: Arc<dyn Clock>) -> Vault {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed);
        self.open(clock, self.folder.path().join(number.to_string())).await
    }

    /// Another program on the host of `vault`.
    async fn beside(&self, vault: &Vault) -> Vault {
        let cache = vault.cache_folder().parent().unwrap();
        self.open(self.clock.clone(), cache.to_owned()).await
    }

    async fn open(&self, clock: Arc<dyn Clock>, cache_folder: PathBuf) -> Vault {
        let options = OpenOptions {
            cache_folder,
            expect_id: None,
            allow_unencrypted: true,
        };
        let tuning = Tuning {
            clock,
            pack_target_bytes: Some(PACK_BYTES),
            packs_per_piece: 2,
            ..Tuning::default()
        };
        Vault::open_tuned(Store::over(self.store.clone(), ""), None, options, tuning)
            .await
            .unwrap()
    }

    /// Time passes everywhere.
    fn pass(&self, time: Duration) {
        self.store.pass_time(time);
        *self.clock.0.lock() += SignedDuration::try_from(time).unwrap();
    }

    async fn begin(&self, vault: &Vault, machine: &str, bases: &[u32], resumes: Option<u32>) -> SessionWriter {
        let plan = SessionPlan {
            machine: vault.machine_or_create(machine).await.unwrap(),
            bases: bases.iter().copied().map(SessionNumber).collect(),
            deadline: vault.inner.records().now() + SignedDuration::from_hours(24),
            host: "test".to_owned(),
            resumes: resumes.map(SessionNumber),
        };
        vault.begin(plan).await.unwrap()
    }

    fn commit_file(&self) -> PathBuf {
        self.folder
            .path()
            .join(format!("commit-{}", self.hosts.fetch_add(1, Ordering::Relaxed)))
    }

    async fn commit(&self, writer: &SessionWriter, draft: PointDraft) -> Result<Point, CommitError> {
        writer.commit(draft, &self.commit_file()).await
    }

    /// A point of one disk, whose first leaf holds these chunks.
    async fn back_up(&self, vault: &Vault, machine: &str, seeds: &[u32]) -> Point {
        let writer = self.begin(vault, machine, &[], None).await;
        let draft = draft(vault, &writer, seeds).await;
        self.commit(&writer, draft).await.unwrap()
    }

    async fn forget(&self, vault: &Vault, point: &Point) {
        vault.forget(point.machine_number, point.number, None).await.unwrap();
    }

    /// As somebody who wants the space now.
    async fn clean(&self, vault: &Vault) -> CleanReport {
        vault.clean(&eager(), &|_| {}).await.unwrap()
    }

    /// Every point that is not purged restores on a host that has seen nothing yet. Gives how many there are.
    async fn assert_restores(&self) -> usize {
        let vault = self.host().await;
        let mut restored = 0;
        for (machine, _) in vault.machines().await.unwrap() {
            for point in vault.points(machine).await.unwrap() {
                if point.fate != Fate::Purged {
                    read_all(&vault, &point).await;
                    restored += 1;
                }
            }
        }
        restored
    }

    async fn packs(&self) -> usize {
        self.store.names("packs/").await.len()
    }
}

/// No waiting for age, and forgotten is purged.
fn eager() -> CleanPlan {
    CleanPlan {
        force: true,
        undelete_for: Duration::ZERO,
        host: "cleaner".to_owned(),
        ..CleanPlan::default()
    }
}

/// As the default is, but for points that go at once.
fn careful() -> CleanPlan {
    CleanPlan {
        force: false,
        ..eager()
    }
}

async fn read_all(vault: &Vault, point: &Point) {
    for disk in &point.disks {
        let mut map = MapReader::new(vault.chunks(), disk.root).unwrap();
        let leaf = map.leaf(0).await.unwrap().expect("the disk has a leaf");
        for extent in leaf.extents() {
            if let Place::Chunk { id, .. } = extent.place {
                let read = vault.chunks().read(&id).await;
                assert!(read.is_ok(), "point {} of {}: {read:?}", point.number, point.machine);
            }
        }
    }
}

fn content(seed: u32) -> Vec<u8> {
    let mut out = vec![0; CHUNK as usize];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Puts what is new of these chunks and the leaf that names them.
async fn draft(vault: &Vault, writer: &SessionWriter, seeds: &[u32]) -> PointDraft {
    let (seeds, hasher, writer) = (seeds.to_vec(), vault.hasher(), writer.clone());
    let drafted = tokio::task::spawn_blocking(move || {
        let mut encoder = Encoder::new();
        let mut put = |kind, content: &[u8]| {
            let id = hasher.id(content);
            if writer.claim(&id).unwrap() == Claim::New {
                writer.put(kind, id, content, &mut encoder).unwrap();
            }
            id
        };
        let mut leaf = LeafBuilder::new();
        for seed in &seeds {
            let id = put(ChunkKind::Data, &content(*seed));
            leaf.push(CHUNK, Place::Chunk { id, offset_bytes: 0 });
        }
        leaf.push(LEAF - CHUNK * seeds.len() as u32, Place::Zero);
        let id = put(ChunkKind::Node, &leaf.finish().encode());
        let disk = PointDisk {
            size_bytes: u64::from(LEAF),
            root: Some(MapRoot { level: 0, id }),
            ..PointDisk::default()
        };
        PointDraft {
            disks: vec![disk],
            ..PointDraft::default()
        }
    });
    drafted.await.unwrap()
}

/// Runs that change nothing any more.
async fn settle(rig: &Rig, vault: &Vault) {
    for _ in 0..6 {
        let report = rig.clean(vault).await;
        rig.assert_restores().await;
        if report.deleted == Amount::default() && report.condemned == Amount::default() && report.waiting.is_empty() {
            return;
        }
    }
    panic!("the clean-ups go on for ever");
}
