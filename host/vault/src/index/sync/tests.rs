//! What the local index keeps and leaves out while pieces and packs come and go.

use std::sync::Arc;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::gclog::{Checkpoint, Condemned, GcRecord, GcWhat, PackName};
use crate::ids::{ChunkId, MachineNumber, SessionNumber};
use crate::object;
use crate::pack::{ChunkKind, Encoder};
use crate::point::PointDraft;
use crate::session::SessionPlan;
use crate::store::Store;
use crate::testing::FaultStore;
use crate::vault::{Encryption, InitOptions, OpenOptions, Vault};

struct Rig {
    store: Arc<FaultStore>,
    folder: TempDir,
    log_end: u32,
}

impl Rig {
    async fn new() -> Self {
        let rig = Self {
            store: FaultStore::in_memory(),
            folder: tempfile::tempdir().unwrap(),
            log_end: 0,
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

    /// A session that stores this chunk whether it is known or not; gives its pack.
    async fn put(&self, vault: &Vault, byte: u8) -> PackKey {
        let machine = vault.machine_or_create("web01").await.unwrap();
        let plan = SessionPlan {
            machine,
            bases: Vec::new(),
            deadline: Timestamp::now(),
            host: String::new(),
            resumes: None,
        };
        let writer = vault.begin(plan).await.unwrap();
        let (worker, id) = (writer.clone(), id(vault, byte));
        tokio::task::spawn_blocking(move || worker.put(ChunkKind::Data, id, &[byte; 500], &mut Encoder::new()))
            .await
            .unwrap()
            .unwrap();
        let file = self.folder.path().join("commit");
        writer.commit(PointDraft::default(), &file).await.unwrap();
        PackKey {
            machine,
            session: writer.number(),
            number: 0,
        }
    }

    async fn append(&mut self, vault: &Vault, what: GcWhat) {
        let records = vault.inner.records();
        let record = GcRecord {
            at: records.now(),
            checkpoint: None,
            what,
        };
        let object = object::gclog(self.log_end);
        records.create(ObjectType::GcLog, &object, &record).await.unwrap();
        self.log_end += 1;
    }

    async fn condemn(&mut self, vault: &Vault, pack: PackKey) {
        let packs = vec![PackName(pack)];
        let reason = "dead".to_owned();
        self.append(vault, GcWhat::Condemn { packs, reason }).await;
    }

    async fn checkpoint(&mut self, vault: &Vault, condemned: &[PackKey]) {
        let group = Condemned {
            since: 0,
            packs: condemned.iter().copied().map(PackName).collect(),
            waits_for: Vec::new(),
        };
        let checkpoint = Checkpoint {
            condemned: vec![group],
            ..Checkpoint::default()
        };
        self.append(vault, GcWhat::Checkpoint(checkpoint)).await;
    }
}

fn id(vault: &Vault, byte: u8) -> ChunkId {
    vault.hasher().id(&[byte; 500])
}

/// The sessions whose packs have the chunk, in the order in which they are tried.
fn places(vault: &Vault, byte: u8) -> Vec<u32> {
    let found = vault.inner.index.candidates(&id(vault, byte)).unwrap();
    found.iter().map(|place| place.pack.session.0).collect()
}

#[tokio::test]
async fn a_piece_that_leaves_the_vault_leaves_its_chunks_behind() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let first = rig.put(&vault, 1).await;
    rig.put(&vault, 2).await;
    rig.store.lose(&first.index_object()).await;
    let again = rig.host("a").await;
    sync(&again.inner).await.unwrap();
    assert_eq!((places(&again, 1), places(&again, 2)), (vec![0], vec![1]));
    assert!(!again.inner.index.knows_piece(&first), "its name need not be kept");
}

#[tokio::test]
async fn copies_in_condemned_packs_come_last_and_gone_ones_not_at_all() {
    let mut rig = Rig::new().await;
    let vault = rig.host("a").await;
    let first = rig.put(&vault, 1).await;
    let only = rig.put(&vault, 2).await;
    rig.put(&vault, 1).await;
    assert_eq!(places(&vault, 1), [0, 2]);
    rig.condemn(&vault, first).await;
    rig.condemn(&vault, only).await;
    let host = rig.host("a").await;
    sync(&host.inner).await.unwrap();
    assert_eq!((places(&host, 1), places(&host, 2)), (vec![2, 0], vec![1]));
    // One of the two goes.
    rig.checkpoint(&vault, &[only]).await;
    let host = rig.host("a").await;
    sync(&host.inner).await.unwrap();
    assert_eq!((places(&host, 1), places(&host, 2)), (vec![2], vec![1]));
    let compact = host.inner.index.compact().unwrap();
    assert_eq!(compact.records(), 2);
    assert!(compact.pack_keys().unwrap().iter().all(|pack| *pack != first));
}

#[tokio::test]
async fn a_host_that_was_away_learns_of_all_that_has_gone_meanwhile() {
    let mut rig = Rig::new().await;
    let away = rig.host("away").await;
    let packs = [
        rig.put(&away, 1).await,
        rig.put(&away, 2).await,
        rig.put(&away, 3).await,
    ];
    drop(away);
    let here = rig.host("here").await;
    for pack in &packs[..2] {
        rig.condemn(&here, *pack).await;
        rig.checkpoint(&here, &[*pack]).await;
        rig.checkpoint(&here, &[]).await;
    }
    let back = rig.host("away").await;
    sync(&back.inner).await.unwrap();
    assert_eq!([1, 2, 3].map(|byte| places(&back, byte)), [vec![], vec![], vec![2]]);
    assert!(back.inner.index.is_condemned(&packs[0]) && !back.inner.index.is_condemned(&packs[2]));
    // And remembers it.
    drop(back);
    let again = rig.host("away").await;
    assert!(again.inner.index.is_condemned(&packs[1]));
    assert!(places(&again, 1).is_empty());
}

#[tokio::test]
async fn a_host_that_was_away_for_too_long_starts_anew() {
    let mut rig = Rig::new().await;
    let away = rig.host("away").await;
    let gone = rig.put(&away, 1).await;
    rig.put(&away, 2).await;
    drop(away);
    let here = rig.host("here").await;
    rig.condemn(&here, gone).await;
    for _ in 0..=FOLLOWED_LIMIT {
        rig.checkpoint(&here, &[]).await;
    }
    rig.store.lose(&gone.index_object()).await;
    let back = rig.host("away").await;
    rig.store.forget_seen();
    sync(&back.inner).await.unwrap();
    assert_eq!([1, 2].map(|byte| places(&back, byte)), [vec![], vec![1]]);
    let of_log = rig
        .store
        .seen()
        .iter()
        .filter(|(_, name)| name.starts_with("gclog"))
        .count();
    assert!(of_log < 40, "{of_log}");
}

#[tokio::test]
async fn a_log_that_has_lost_a_record_is_not_believed() {
    let mut rig = Rig::new().await;
    let vault = rig.host("a").await;
    let pack = rig.put(&vault, 1).await;
    for _ in 0..6 {
        rig.condemn(&vault, pack).await;
    }
    for lost in 0..5 {
        let object = object::gclog(lost);
        let bytes = rig.store.bytes(&object).await;
        rig.store.lose(&object).await;
        let error = gclog::read(vault.inner.records()).await.unwrap_err();
        assert!(
            matches!(&error, ReadError::Damaged { object: missing, .. } if *missing == object),
            "{error:?}"
        );
        rig.store.replace(&object, bytes).await;
    }
    assert!(gclog::read(vault.inner.records()).await.unwrap().is_condemned(&pack));
}

#[tokio::test]
async fn knowledge_of_a_longer_log_is_not_undone_by_a_shorter_one() {
    let mut rig = Rig::new().await;
    let vault = rig.host("a").await;
    let pack = rig.put(&vault, 1).await;
    let short = vault.inner.log().await.unwrap();
    rig.condemn(&vault, pack).await;
    let other = rig.host("a").await;
    sync(&other.inner).await.unwrap();
    // To the short log the pack is not condemned; it must not be taken for gone.
    other.inner.index.follow(&short, []);
    assert_eq!(places(&other, 1), [0]);
    assert!(other.inner.index.is_condemned(&pack));
    let key = PackKey {
        machine: MachineNumber(1),
        session: SessionNumber(0),
        number: 0,
    };
    assert_eq!(pack, key);
}
