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
use crate::testing::{Fault, FaultStore, Request};
use crate::vault::{Encryption, InitOptions, OpenOptions};

const DISK_BYTES: u64 = 1 << 30;

pub(crate) struct Rig {
    pub(crate) store: Arc<FaultStore>,
    folder: TempDir,
}

impl Rig {
    pub(crate) async fn new() -> Self {
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

    pub(crate) async fn host(&self, name: &str) -> Vault {
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

    pub(crate) async fn verify(&self, host: &str, read_data: bool) -> VerifyReport {
        let read = if read_data { ReadData::All } else { ReadData::No };
        self.verify_as(host, read, false).await
    }

    pub(crate) async fn verify_as(&self, host: &str, read: ReadData, quarantine: bool) -> VerifyReport {
        let plan = VerifyPlan {
            machine: None,
            read,
            quarantine,
        };
        self.host(host).await.verify(plan, &|_| {}).await.unwrap()
    }

    /// A disk of 1 GiB whose leaf `number` holds two slots with these contents, and an attachment.
    pub(crate) async fn back_up(&self, vault: &Vault, slots: [u8; 2]) -> Point {
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
        read: ReadData::All,
        quarantine: false,
    };
    let report = vault.verify(plan, &|_| {}).await.unwrap();
    assert_eq!((report.points, report.packs), (0, 0));
}

pub(crate) const DATA_PACK: &str = "packs/00000001/00000000/00000001";
const NODE_PACK: &str = "packs/00000001/00000000/00000000";

#[tokio::test]
async fn whatever_is_wrong_with_a_pack_it_is_quarantined_and_the_points_are_named() {
    let kinds = [
        "data chunk",
        "node chunk",
        "header",
        "directory",
        "trailer",
        "cut short",
        "missing",
        "swapped",
    ];
    for kind in kinds {
        let rig = Rig::new().await;
        let vault = rig.host("a").await;
        rig.back_up(&vault, [1, 2]).await;
        let bytes = rig.store.bytes(DATA_PACK).await;
        let pack = if matches!(kind, "node chunk") {
            NODE_PACK
        } else {
            DATA_PACK
        };
        match kind {
            "data chunk" | "node chunk" => rig.store.flip(pack, 60).await,
            "header" => rig.store.flip(pack, 20).await,
            "directory" => rig.store.flip(pack, bytes.len() - 40).await,
            "trailer" => rig.store.flip(pack, bytes.len() - 1).await,
            "cut short" => rig.store.replace(pack, bytes.slice(..100)).await,
            "missing" => rig.store.lose(pack).await,
            _ => {
                let node = rig.store.bytes(NODE_PACK).await;
                rig.store.replace(NODE_PACK, bytes).await;
                rig.store.replace(DATA_PACK, node).await;
            }
        }
        let report = rig.verify_as("b", ReadData::All, true).await;
        assert!(!report.is_sound(), "{kind}");
        assert!(report.quarantined.contains(&pack.to_owned()), "{kind}: {report:?}");
        assert_eq!(report.not_quarantined, None, "{kind}");
        // A flip in header or directory leaves the chunks readable by what the index says.
        if !matches!(kind, "header" | "directory" | "trailer") {
            assert!(
                report.damage.iter().any(|damage| !damage.touches.is_empty()),
                "{kind}: {report:?}"
            );
        }
        let again = rig.verify_as("c", ReadData::All, true).await;
        assert_eq!(again.quarantined, Vec::<String>::new(), "{kind}: it is known by now");
        assert_eq!(again.damage, report.damage, "{kind}");
    }
}

#[tokio::test]
async fn a_pack_that_is_known_to_be_damaged_is_read_whatever_is_asked() {
    let rig = Rig::new().await;
    rig.back_up(&rig.host("a").await, [1, 2]).await;
    rig.store.flip(DATA_PACK, 60).await;
    assert!(rig.verify_as("b", ReadData::No, true).await.is_sound());
    assert!(!rig.verify_as("b", ReadData::All, true).await.is_sound());
    let report = rig.verify_as("b", ReadData::No, true).await;
    assert_eq!(report.packs_read, 1);
    assert_eq!(report.damage[0].touches, [touched(0, LEAF_START, SLOT_BYTES)]);
}

#[tokio::test]
async fn what_lost_only_some_chunks_is_recorded_so() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    rig.store.flip(DATA_PACK, 60).await;
    rig.store.lose(NODE_PACK).await;
    rig.verify_as("b", ReadData::All, true).await;
    let record = rig.store.bytes("gclog/00000000").await;
    let record: serde_json::Value = vault
        .inner
        .records()
        .open_json(object::ObjectType::GcLog, "gclog/00000000", &record)
        .unwrap();
    // The map is gone; the attachment says that the pack of data is needed.
    assert_eq!(
        record["packs"],
        serde_json::json!(["00000001/00000000/00000000", "00000001/00000000/00000001"])
    );
    assert_eq!(record["partly"], serde_json::json!(["00000001/00000000/00000001"]));
}

#[tokio::test]
async fn damage_is_reported_where_it_cannot_be_recorded() {
    let rig = Rig::new().await;
    rig.back_up(&rig.host("a").await, [1, 2]).await;
    rig.store.flip(DATA_PACK, 60).await;
    rig.store.inject(Request::Put, "", Fault::Refuse, usize::MAX);
    let report = rig.verify_as("b", ReadData::All, true).await;
    assert_eq!(report.damage.len(), 1);
    assert!(report.not_quarantined.is_some());
    rig.store.heal();
    assert!(rig.store.names("gclog").await.is_empty());
}

#[tokio::test]
async fn a_counted_piece_whose_chunks_other_pieces_list_was_merged_and_is_no_damage() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    let piece = "index/00000001/00000000/00000000";
    let records = vault.inner.records();
    let body = records
        .open(object::ObjectType::Index, piece, &rig.store.bytes(piece).await)
        .unwrap();
    let merged = "index/00000000/00000000/00000000";
    rig.store
        .replace(merged, records.seal(object::ObjectType::Index, merged, &body))
        .await;
    rig.store.lose(piece).await;
    assert!(rig.verify("b", true).await.is_sound());
    // The same piece gone without another that lists its packs. This host has it in its cache, which does not count.
    rig.store.lose(merged).await;
    let report = rig.verify("a", true).await;
    assert!(report.damage.iter().any(|damage| damage.object == piece), "{report:?}");
}

#[tokio::test]
async fn sampled_runs_read_every_pack_in_turn() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    for byte in 0..8 {
        rig.back_up(&vault, [byte, byte + 100]).await;
    }
    let percentage: Percentage = "25%".parse().unwrap();
    let mut read = 0;
    for _ in 0..percentage.runs_for_all() {
        let report = rig.verify_as("b", ReadData::Part(percentage), true).await;
        assert_eq!(report.packs, 16);
        assert!(report.packs_read < 16, "{}", report.packs_read);
        read += report.packs_read;
    }
    assert_eq!(read, 16);
}

#[tokio::test]
async fn many_lost_chunks_are_told_as_few_findings() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    for byte in 0..3 {
        rig.back_up(&vault, [byte, byte + 100]).await;
    }
    for piece in rig.store.names("index").await {
        rig.store.lose(&piece).await;
    }
    let report = rig.verify_as("b", ReadData::All, true).await;
    assert_eq!(report.quarantined, Vec::<String>::new());
    assert!(report.damage.len() < 12, "{report:?}");
    assert!(gclog::read(vault.inner.records()).await.unwrap().says_chunks_are_lost());
}
