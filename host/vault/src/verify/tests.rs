//! Every kind of damage, and what the report says of it.

use std::sync::Arc;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::ids::ChunkId;
use crate::map::{Leaf, LeafBuilder, MapRoot, Node, Place, SLOT_BYTES};
use crate::pack::{ChunkKind, Encoder};
use crate::point::{PointAttachment, PointDisk, PointDraft};
use crate::session::{Claim, SessionPlan, SessionWriter};
use crate::store::Store;
use crate::testing::FaultStore;
use crate::vault::{Encryption, InitOptions, OpenOptions};

const DISK_BYTES: u64 = 1 << 30;

struct Rig {
    store: Arc<FaultStore>,
    folder: TempDir,
}

impl Rig {
    async fn new() -> Self {
        let rig = Self {
            store: FaultStore::in_memory(),
            folder: tempfile::tempdir().unwrap(),
        };
        let options = InitOptions {
            encryption: Encryption::None,
            recovery_key: false,
            host: String::new(),
        };
        Vault::init(Store::over(rig.store.clone(), ""), options).await.unwrap();
        rig
    }

    async fn host(&self, name: &str) -> Vault {
        let cache_folder = self.folder.path().join(name);
        let options = OpenOptions {
            cache_folder,
            expect_id: None,
            allow_unencrypted: true,
        };
        Vault::open(Store::over(self.store.clone(), ""), None, options)
            .await
            .unwrap()
    }

    async fn verify(&self, host: &str, read_data: bool) -> VerifyReport {
        let plan = VerifyPlan {
            machine: None,
            read_data,
        };
        self.host(host).await.verify(plan, &|_| {}).await.unwrap()
    }

    /// A disk of 1 GiB whose leaf `number` holds two slots with these contents, and an attachment.
    async fn back_up(&self, vault: &Vault, slots: [u8; 2]) -> Point {
        let machine = vault.machine_or_create("web01").await.unwrap();
        let deadline = Timestamp::now();
        let plan = SessionPlan {
            machine,
            bases: Vec::new(),
            deadline,
            host: String::new(),
            resumes: None,
        };
        let writer = vault.begin(plan).await.unwrap();
        let (hasher, worker) = (vault.hasher(), writer.clone());
        let draft = tokio::task::spawn_blocking(move || {
            let put = |kind, content: &[u8]| put(&worker, hasher.id(content), kind, content);
            let [first, second] = slots.map(|byte| put(ChunkKind::Data, &vec![byte; SLOT_BYTES as usize]));
            let leaf = put(ChunkKind::Node, &leaf(first, second).encode());
            let mut node = Node::new(1);
            node.set(3, leaf);
            let id = put(ChunkKind::Node, &node.encode());
            let disk = PointDisk {
                id: "vda".to_owned(),
                size_bytes: DISK_BYTES,
                root: Some(MapRoot { level: 1, id }),
                ..PointDisk::default()
            };
            let chunks = worker.put_bytes(b"<domain/>").unwrap();
            let attachment = PointAttachment {
                name: "definition".to_owned(),
                chunks,
                ..PointAttachment::default()
            };
            PointDraft {
                disks: vec![disk],
                attachments: vec![attachment],
                ..PointDraft::default()
            }
        });
        writer
            .commit(draft.await.unwrap(), &self.folder.path().join("commit"))
            .await
            .unwrap()
    }
}

fn put(writer: &SessionWriter, id: ChunkId, kind: ChunkKind, content: &[u8]) -> ChunkId {
    if writer.claim(&id).unwrap() == Claim::New {
        writer.put(kind, id, content, &mut Encoder::new()).unwrap();
    }
    id
}

fn leaf(first: ChunkId, second: ChunkId) -> Leaf {
    let mut builder = LeafBuilder::new();
    let slot = SLOT_BYTES as u32;
    builder.push(
        slot,
        Place::Chunk {
            id: first,
            offset_bytes: 0,
        },
    );
    builder.push(slot, Place::Zero);
    builder.push(
        slot,
        Place::Chunk {
            id: second,
            offset_bytes: 0,
        },
    );
    builder.push(61 * slot, Place::Zero);
    builder.finish()
}

const LEAF_START: u64 = 3 * 8 * 1024 * 1024;

fn touched(point: u32, start: u64, length: u64) -> Touched {
    Touched {
        machine: "web01".to_owned(),
        point: SessionNumber(point),
        disk: Some("vda".to_owned()),
        ranges: std::iter::once(start..start + length).collect(),
    }
}

#[tokio::test]
async fn a_sound_vault_is_said_to_be_sound() {
    let rig = Rig::new().await;
    assert!(rig.verify("a", true).await.is_sound());
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    rig.back_up(&vault, [1, 3]).await;
    for read_data in [false, true] {
        let report = rig.verify("b", read_data).await;
        assert!(report.is_sound(), "{report:?}");
        assert_eq!((report.points, report.packs), (2, 4));
        assert_eq!(report.read_bytes > 0, read_data);
    }
}

#[tokio::test]
async fn a_flipped_bit_is_found_by_reading_and_mapped_to_the_points_that_it_touches() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    rig.back_up(&vault, [1, 3]).await;
    // The first session's data: slot 1, slot 2, the attachment. The first chunk is in both points.
    rig.store.flip("packs/00000001/00000000/00000001", 60).await;
    assert!(rig.verify("b", false).await.is_sound());
    let report = rig.verify("b", true).await;
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert_eq!(report.damage[0].object, "packs/00000001/00000000/00000001");
    assert!(
        report.damage[0].what.starts_with("1 of 3 chunks is damaged"),
        "{}",
        report.damage[0].what
    );
    assert_eq!(
        report.damage[0].touches,
        [touched(0, LEAF_START, SLOT_BYTES), touched(1, LEAF_START, SLOT_BYTES)]
    );
}

#[tokio::test]
async fn a_lost_pack_is_found_without_reading() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    rig.back_up(&vault, [1, 3]).await;
    rig.store.lose("packs/00000001/00000001/00000001").await;
    let report = rig.verify("b", false).await;
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert_eq!(report.damage[0].what, "it is not there");
    assert_eq!(
        report.damage[0].touches,
        [touched(1, LEAF_START + 2 * SLOT_BYTES, SLOT_BYTES)]
    );
}

#[tokio::test]
async fn a_pack_that_was_cut_short_is_found_without_reading() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    let object = "packs/00000001/00000000/00000001";
    let bytes = rig.store.bytes(object).await;
    rig.store.replace(object, bytes.slice(..bytes.len() - 1)).await;
    // What is cut off is the trailer: every chunk still opens by what the index says.
    let report = rig.verify("b", false).await;
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!(report.damage[0].touches.is_empty(), "{report:?}");
    rig.store.replace(object, bytes.slice(..100)).await;
    let report = rig.verify("b", true).await;
    assert_eq!(
        report.damage[0].touches.len(),
        2,
        "the disk and the attachment: {report:?}"
    );
}

#[tokio::test]
async fn a_damaged_map_touches_all_that_it_says() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    // The nodes' pack: the leaf, then the root.
    rig.store.flip("packs/00000001/00000000/00000000", 60).await;
    let report = rig.verify("b", false).await;
    assert_eq!(report.damage[0].touches, [touched(0, LEAF_START, 8 << 20)]);
}

#[tokio::test]
async fn damaged_records_are_findings_and_the_others_go_on() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    rig.back_up(&vault, [3, 4]).await;
    rig.store.flip("points/00000001/00000000", 70).await;
    rig.store.flip("index/00000001/00000001/00000000", 70).await;
    let report = rig.verify("b", true).await;
    let objects: Vec<_> = report.damage.iter().map(|damage| damage.object.as_str()).collect();
    assert_eq!(report.points, 1);
    assert!(objects.contains(&"points/00000001/00000000"), "{objects:?}");
    assert!(objects.contains(&"index/00000001/00000001/00000000"), "{objects:?}");
    assert!(objects.iter().any(|object| object.starts_with("chunk ")), "{objects:?}");
}

#[tokio::test]
async fn one_machine_is_verified_alone() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    let other = vault.machine_or_create("db01").await.unwrap();
    let plan = VerifyPlan {
        machine: Some(other),
        read_data: true,
    };
    let report = vault.verify(plan, &|_| {}).await.unwrap();
    assert_eq!((report.points, report.packs), (0, 0));
}
