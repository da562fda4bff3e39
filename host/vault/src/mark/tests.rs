//! What a mark finds live, beside sharing, damage, hidden pieces and purged bases.

use std::collections::HashMap;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::fate;
use crate::gclog;
use crate::ids::{MachineNumber, SessionNumber};
use crate::map::{LeafBuilder, MapRoot, Node, Place, SLOT_BYTES};
use crate::pack::{ChunkKind, Encoder};
use crate::point::{Fate, Point, PointAttachment, PointDisk, PointDraft};
use crate::session::{Claim, SessionPlan, SessionWriter};
use crate::store::Store;
use crate::testing::{FaultStore, Request};
use crate::vault::{Encryption, InitOptions, OpenOptions, Vault};

const MACHINE: MachineNumber = MachineNumber(1);

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
        let options = OpenOptions {
            cache_folder: self.folder.path().join(name),
            expect_id: None,
            allow_unencrypted: true,
        };
        Vault::open(Store::over(self.store.clone(), ""), None, options)
            .await
            .unwrap()
    }

    async fn begin(&self, vault: &Vault, bases: &[u32]) -> SessionWriter {
        vault.machine_or_create("web01").await.unwrap();
        let plan = SessionPlan {
            machine: MACHINE,
            bases: bases.iter().copied().map(SessionNumber).collect(),
            deadline: Timestamp::now(),
            host: String::new(),
            resumes: None,
        };
        vault.begin(plan).await.unwrap()
    }

    /// A point whose one disk holds these contents in its first slots, a leaf each, below a node of level 1.
    async fn back_up(&self, vault: &Vault, slots: &[u8]) -> Point {
        let writer = self.begin(vault, &[]).await;
        let (slots, hasher, worker) = (slots.to_vec(), vault.hasher(), writer.clone());
        let draft = tokio::task::spawn_blocking(move || {
            let mut node = Node::new(1);
            for (at, byte) in slots.into_iter().enumerate() {
                let content = content(byte);
                let chunk = put(&worker, ChunkKind::Data, hasher.id(&content), &content);
                let leaf = leaf(chunk);
                node.set(at, put(&worker, ChunkKind::Node, hasher.id(&leaf), &leaf));
            }
            let bytes = node.encode();
            let id = put(&worker, ChunkKind::Node, hasher.id(&bytes), &bytes);
            let disk = PointDisk {
                size_bytes: 1 << 30,
                root: Some(MapRoot { level: 1, id }),
                ..PointDisk::default()
            };
            let attachment = PointAttachment {
                chunks: worker.put_bytes(b"<domain/>").unwrap(),
                ..PointAttachment::default()
            };
            PointDraft {
                disks: vec![disk],
                attachments: vec![attachment],
                ..PointDraft::default()
            }
        });
        self.commit(writer, draft.await.unwrap()).await
    }

    async fn commit(&self, writer: SessionWriter, draft: PointDraft) -> Point {
        writer.commit(draft, &self.folder.path().join("commit")).await.unwrap()
    }

    async fn purge(&self, vault: &Vault, number: u32) {
        let records = vault.inner.records();
        vault.forget(MACHINE, SessionNumber(number), None).await.unwrap();
        let seen = fate::read(records, MACHINE, SessionNumber(number)).await.unwrap();
        fate::purge(records, MACHINE, SessionNumber(number), &seen)
            .await
            .unwrap();
    }
}

fn put(writer: &SessionWriter, kind: ChunkKind, id: ChunkId, content: &[u8]) -> ChunkId {
    if writer.claim(&id).unwrap() == Claim::New {
        writer.put(kind, id, content, &mut Encoder::new()).unwrap();
    }
    id
}

fn content(byte: u8) -> Vec<u8> {
    vec![byte; SLOT_BYTES as usize]
}

fn leaf(chunk: ChunkId) -> Vec<u8> {
    let mut builder = LeafBuilder::new();
    let place = Place::Chunk {
        id: chunk,
        offset_bytes: 0,
    };
    builder.push(SLOT_BYTES as u32, place);
    builder.push(63 * SLOT_BYTES as u32, Place::Zero);
    builder.finish().encode()
}

async fn surveyed(vault: &Vault) -> Survey {
    let log = gclog::read(vault.inner.records()).await.unwrap();
    survey(&vault.inner, &log).await.unwrap()
}

async fn marked(vault: &Vault) -> Result<Marked, ReadError> {
    mark(&vault.inner, &surveyed(vault).await.roots(), &|_| {}).await
}

/// Which of the contents live, and their leaves with them.
fn live(vault: &Vault, marked: &Marked, bytes: std::ops::Range<u8>) -> Vec<u8> {
    let hasher = vault.hasher();
    let lives = |byte: &u8| {
        let chunk = hasher.id(&content(*byte));
        let data = marked.is_live(&chunk).unwrap();
        assert_eq!(marked.is_live(&hasher.id(&leaf(chunk))).unwrap(), data, "{byte}");
        data
    };
    bytes.filter(lives).collect()
}

#[tokio::test]
async fn what_points_share_and_what_they_do_not_lives_and_the_rest_does_not() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, &[1, 2, 3]).await;
    rig.back_up(&vault, &[2, 3, 4]).await;
    rig.back_up(&vault, &[3, 5]).await;
    assert_eq!(live(&vault, &marked(&vault).await.unwrap(), 1..7), [1, 2, 3, 4, 5]);
    rig.purge(&vault, 0).await;
    let marked = marked(&rig.host("b").await).await.unwrap();
    assert_eq!(live(&vault, &marked, 1..7), [2, 3, 4, 5]);
    assert!(marked.is_live(&vault.hasher().id(b"<domain/>")).unwrap());

    let key = |session| PackKey {
        machine: MACHINE,
        session: SessionNumber(session),
        number: 0,
    };
    let uses = marked.pack_uses(&|_| false).unwrap();
    let of_first: Vec<_> = uses.iter().filter(|(pack, _)| pack.session.0 == 0).collect();
    // Three slots and an attachment in one pack, three leaves and a node in the other; of each the first slot's is dead, and
    // the node.
    assert_eq!(of_first.iter().map(|(_, known)| known.chunks).sum::<u32>(), 8);
    assert_eq!(of_first.iter().map(|(_, known)| known.live_chunks).sum::<u32>(), 5);
    assert!(of_first.iter().all(|(_, known)| known.live_bytes < known.stored_bytes));

    let mut found = HashMap::new();
    let packs = [key(2), PackKey { number: 1, ..key(2) }];
    marked
        .live_in(&packs.into_iter().collect(), &mut |id, places| {
            found.insert(id, places.to_vec());
            Ok(())
        })
        .unwrap();
    assert_eq!(found.len(), 3, "a slot, its leaf, and the node");
    assert!(found.values().flatten().all(|place| place.pack.session.0 == 2));
}

#[tokio::test]
async fn of_two_copies_the_one_that_nothing_forbids_is_the_one_that_counts() {
    let rig = Rig::new().await;
    let (one, two) = (rig.host("a").await, rig.host("b").await);
    // Two hosts that do not see each other's pieces both store the same.
    rig.store.hide("index/");
    rig.back_up(&one, &[1]).await;
    rig.back_up(&two, &[1]).await;
    rig.store.heal();
    let marked = marked(&one).await.unwrap();
    let live_in = |uses: PackUses| -> Vec<u32> {
        let used = uses.iter().filter(|(_, known)| known.live_chunks > 0);
        let mut sessions: Vec<u32> = used.map(|(pack, _)| pack.session.0).collect();
        sessions.dedup();
        sessions
    };
    assert_eq!(live_in(marked.pack_uses(&|_| false).unwrap()), [0]);
    assert_eq!(live_in(marked.pack_uses(&|pack| pack.session.0 == 0).unwrap()), [1]);
    assert_eq!(live_in(marked.pack_uses(&|_| true).unwrap()), [0]);
}

#[tokio::test]
async fn a_piece_that_no_listing_shows_is_found_and_one_that_is_lost_stops_the_mark() {
    let rig = Rig::new().await;
    rig.back_up(&rig.host("a").await, &[1, 2]).await;
    rig.store.hide("index/");
    let vault = rig.host("b").await;
    assert_eq!(live(&vault, &marked(&vault).await.unwrap(), 0..4), [1, 2]);
    for piece in rig.store.names("index/").await {
        rig.store.lose(&piece).await;
    }
    let error = marked(&rig.host("c").await).await.unwrap_err();
    assert!(matches!(error, ReadError::ChunkMissing(_)), "{error:?}");
}

#[tokio::test]
async fn a_disk_that_holds_the_bytes_of_a_node_hides_nothing() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    // An attachment that is, byte for byte, the leaf of another point: marked as data, it must still be walked.
    let leaf = leaf(vault.hasher().id(&content(8)));
    let writer = rig.begin(&vault, &[]).await;
    let worker = writer.clone();
    let chunks = tokio::task::spawn_blocking(move || worker.put_bytes(&leaf).unwrap());
    let attachment = PointAttachment {
        chunks: chunks.await.unwrap(),
        ..PointAttachment::default()
    };
    let draft = PointDraft {
        attachments: vec![attachment],
        ..PointDraft::default()
    };
    rig.commit(writer, draft).await;
    rig.back_up(&vault, &[8]).await;
    assert_eq!(live(&vault, &marked(&vault).await.unwrap(), 7..10), [8]);
}

#[tokio::test]
async fn a_purged_base_stays_while_a_session_builds_upon_it_and_need_not_be_whole() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, &[1, 2]).await;
    rig.back_up(&vault, &[2, 3]).await;
    let session = rig.begin(&vault, &[0]).await;
    rig.purge(&vault, 0).await;
    let survey = surveyed(&vault).await;
    assert!(!survey.has_decided(MACHINE, session.number()));
    assert!(survey.has_decided(MACHINE, SessionNumber(1)));
    assert!(!survey.has_decided(MACHINE, SessionNumber(9)));
    assert_eq!(survey.machine(MACHINE).unwrap().decided_below, 2);
    assert_eq!(live(&vault, &marked(&vault).await.unwrap(), 0..5), [1, 2, 3]);

    // What only the purged one needs may be gone; what the other needs may not.
    let data = "packs/00000001/00000000/00000000";
    let bytes = rig.store.bytes(data).await;
    rig.store.lose(data).await;
    rig.store.lose("index/00000001/00000000/00000000").await;
    let fresh = rig.host("b").await;
    assert!(matches!(marked(&fresh).await, Err(ReadError::ChunkMissing(_))));
    rig.purge(&vault, 1).await;
    assert!(live(&vault, &marked(&fresh).await.unwrap(), 0..2).is_empty());
    rig.store.replace(data, bytes).await;

    session.abort("test").await.unwrap();
    assert!(live(&vault, &marked(&vault).await.unwrap(), 0..5).is_empty());
}

#[tokio::test]
async fn a_survey_reads_fates_then_sessions_then_points() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, &[1]).await;
    let session = rig.begin(&vault, &[0]).await;
    rig.store.forget_seen();
    surveyed(&vault).await;
    let seen = rig.store.seen();
    let last = |object: &str| seen.iter().rposition(|(_, name)| name == object).unwrap();
    let nth = |object: &str, n: usize| {
        let all = seen
            .iter()
            .enumerate()
            .filter(|(_, (kind, name))| *kind == Request::Get && name == object);
        all.map(|(at, _)| at).nth(n).unwrap()
    };
    let fate = last("fates/00000001/00000000/00000000");
    let undecided = format!("sessions/00000001/{}", session.number().key());
    let point = format!("points/00000001/{}", session.number().key());
    // The first pass looks at the session as well; what counts is the second, after the fates.
    assert!(fate < nth(&undecided, 1), "{seen:?}");
    assert!(nth(&undecided, 1) < last(&point), "{seen:?}");
}

#[tokio::test]
async fn what_cannot_be_read_is_told_apart_by_what_it_means() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    for number in 0..3 {
        rig.back_up(&vault, &[number]).await;
    }
    let _undecided = rig.begin(&vault, &[]).await;
    vault.forget(MACHINE, SessionNumber(1), None).await.unwrap();
    vault.forget(MACHINE, SessionNumber(2), None).await.unwrap();
    for object in [
        "points/00000001/00000000",
        "points/00000001/00000001",
        "fates/00000001/00000002/00000000",
        "sessions/00000001/00000003",
    ] {
        rig.store.flip(object, 60).await;
    }
    let log = gclog::read(vault.inner.records()).await.unwrap();
    let survey = survey(&vault.inner, &log).await.unwrap();
    let machine = survey.machine(MACHINE).unwrap();
    let unreadable: Vec<_> = machine
        .unreadable
        .iter()
        .map(|point| (point.number.0, point.fate))
        .collect();
    assert_eq!(unreadable, [(0, Fate::Kept), (1, Fate::Forgotten)]);
    assert_eq!(machine.points[0].fate, Fate::Unknown);
    assert_eq!(machine.unreadable_undecided[0].number, SessionNumber(3));
    assert_eq!(machine.decided_below, 3);
    assert!(machine.has_decided(SessionNumber(1)) && !machine.has_decided(SessionNumber(3)));
    let roots = survey.roots();
    assert_eq!(
        (roots.len(), roots[0].point, roots[0].purged),
        (1, SessionNumber(2), true)
    );
}
