//! The protocol under a store that has bad days.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::gclog::{Checkpoint, GcRecord, GcWhat, PackName};
use crate::ids::ChunkId;
use crate::object::PackKey;
use crate::pack::{ChunkKind, Encoder};
use crate::point::PointDraft;
use crate::store::Store;
use crate::testing::{Fault, FaultStore, Request};
use crate::vault::{Encryption, InitOptions, OpenOptions, Vault};
use crate::{Credential, SessionWriter};

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
            encryption: Encryption::Encrypted {
                slots: vec![("main".to_owned(), credential())],
            },
            recovery_key: false,
            host: "test".to_owned(),
        };
        Vault::init(rig.at(), options).await.unwrap();
        rig
    }

    fn at(&self) -> Store {
        Store::over(self.store.clone(), "")
    }

    /// A host of its own, with its own cache.
    async fn host(&self, name: &str) -> Vault {
        let cache_folder = self.folder.path().join(name);
        let options = OpenOptions {
            cache_folder,
            expect_id: None,
            allow_unencrypted: false,
        };
        Vault::open(self.at(), Some(credential()), options).await.unwrap()
    }

    fn commit_file(&self) -> PathBuf {
        self.folder.path().join("commit")
    }
}

fn credential() -> Credential {
    Credential::Secret(Zeroizing::new(vec![7; 32]))
}

async fn begin(vault: &Vault, bases: &[u32], resumes: Option<u32>) -> Result<SessionWriter, BeginError> {
    let machine = vault.machine_or_create("web01").await.unwrap();
    let plan = SessionPlan {
        machine,
        bases: bases.iter().copied().map(SessionNumber).collect(),
        deadline: Timestamp::now() + jiff::SignedDuration::from_hours(24),
        host: "test".to_owned(),
        resumes: resumes.map(SessionNumber),
    };
    vault.begin(plan).await
}

fn chunk(seed: u32, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Claims and puts as a reader thread does.
async fn put(vault: &Vault, writer: &SessionWriter, content: Vec<u8>) -> (ChunkId, Claim) {
    let (hasher, writer) = (vault.hasher(), writer.clone());
    tokio::task::spawn_blocking(move || {
        let id = hasher.id(&content);
        let claim = writer.claim(&id).unwrap();
        if claim == Claim::New {
            writer.put(ChunkKind::Data, id, &content, &mut Encoder::new()).unwrap();
        }
        (id, claim)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn what_is_committed_is_read_back_on_another_host() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    let contents = [chunk(1, 128 * 1024), vec![3; 128 * 1024], chunk(2, 5), vec![1]];
    let mut ids = Vec::new();
    for content in &contents {
        ids.push(put(&vault, &writer, content.clone()).await.0);
    }
    let content = chunk(9, 300_000);
    let attached = {
        let (writer, content) = (writer.clone(), content.clone());
        tokio::task::spawn_blocking(move || writer.put_bytes(&content).unwrap())
            .await
            .unwrap()
    };
    let point = writer.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    assert_eq!(
        (point.written.packs, point.written.index_pieces, point.machine.as_str()),
        (1, 1, "web01")
    );

    let other = rig.host("b").await;
    let machine = other.machine("web01").await.unwrap().unwrap();
    assert_eq!(other.points(machine).await.unwrap(), vec![point.clone()]);
    assert_eq!(other.point(machine, point.number).await.unwrap(), Some(point));
    assert!(other.sessions_undecided(machine).await.unwrap().is_empty());
    let reader = other.chunks();
    for (id, content) in ids.iter().zip(&contents) {
        assert_eq!(reader.read(id).await.unwrap(), content);
    }
    let mut whole = Vec::new();
    for id in &attached {
        whole.extend_from_slice(&reader.read(id).await.unwrap());
    }
    assert_eq!(whole, content);
}

#[tokio::test]
async fn a_chunk_is_put_once_by_one_writer_and_known_to_the_next() {
    let rig = Rig::new().await;
    let (one, two) = (rig.host("a").await, rig.host("b").await);
    let writer = begin(&one, &[], None).await.unwrap();
    assert_eq!(put(&one, &writer, vec![1; 1000]).await.1, Claim::New);
    assert_eq!(put(&one, &writer, vec![1; 1000]).await.1, Claim::Known);
    // What is not listed in the vault is not known to others, or a crash of the first would take it from them.
    let early = begin(&two, &[], None).await.unwrap();
    assert_eq!(put(&two, &early, vec![1; 1000]).await.1, Claim::New);
    writer.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    let late = begin(&two, &[0], None).await.unwrap();
    assert_eq!(put(&two, &late, vec![1; 1000]).await.1, Claim::Known);
    assert_eq!(late.stats().known_chunks, 1);
    let point = late.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    assert_eq!(point.written.packs, 0);
}

#[tokio::test]
async fn every_answer_to_the_commit_but_its_loss_is_a_committed_point() {
    for fault in [
        Fault::LoseAnswer,
        Fault::AlreadyThere,
        Fault::ConflictWithNothingStored,
        Fault::Refuse,
    ] {
        let rig = Rig::new().await;
        let vault = rig.host("a").await;
        let writer = begin(&vault, &[], None).await.unwrap();
        put(&vault, &writer, chunk(1, 1000)).await;
        for folder in ["points/", "packs/", "index/"] {
            rig.store.inject(Request::Put, folder, fault, 2);
        }
        let point = writer.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
        let again = rig.host("b").await.points(point.machine_number).await.unwrap();
        assert_eq!(again, vec![point], "{fault:?}");
    }
}

#[tokio::test]
async fn a_commit_that_finds_no_room_says_so_and_is_sent_again_when_there_is_some() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    put(&vault, &writer, chunk(1, 1000)).await;
    rig.store.inject(Request::Put, "points/", Fault::Full, 100);
    let file = rig.commit_file();
    let error = writer.commit(PointDraft::default(), &file).await.unwrap_err();
    assert_eq!(error.to_string(), "the point is not in the vault yet");
    assert!(matches!(error, CommitError::Full(_)), "{error:?}");
    rig.store.heal();
    let machine = vault.machine("web01").await.unwrap().unwrap();
    let point = vault.commit_again(machine, writer.number(), &file).await.unwrap();
    assert_eq!(vault.points(machine).await.unwrap(), vec![point]);
}

#[tokio::test]
async fn a_commit_whose_answer_never_comes_is_neither_done_nor_given_up() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    put(&vault, &writer, chunk(1, 1000)).await;
    rig.store.inject(Request::Put, "points/", Fault::Refuse, 100);
    let error = writer
        .commit(PointDraft::default(), &rig.commit_file())
        .await
        .unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    let packs = rig.store.names("packs/").await;
    assert_eq!(packs.len(), 1, "nothing is cleaned up");
    // The next process knows nothing but the file.
    rig.store.heal();
    let later = rig.host("a").await;
    let machine = later.machine("web01").await.unwrap().unwrap();
    assert_eq!(later.sessions_undecided(machine).await.unwrap().len(), 1);
    for _ in 0..2 {
        let point = later
            .commit_again(machine, SessionNumber(0), &rig.commit_file())
            .await
            .unwrap();
        assert_eq!(later.points(machine).await.unwrap(), vec![point]);
    }
}

#[tokio::test]
async fn a_session_that_a_clean_up_has_fenced_does_not_commit() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    put(&vault, &writer, chunk(1, 1000)).await;
    vault
        .abort(writer.machine(), writer.number(), "past its deadline")
        .await
        .unwrap();
    vault.abort(writer.machine(), writer.number(), "again").await.unwrap();
    let error = writer
        .commit(PointDraft::default(), &rig.commit_file())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CommitError::Fenced { reason } if reason == "past its deadline"),
        "{error:?}"
    );
    assert!(vault.points(writer.machine()).await.unwrap().is_empty());
    // A new session on the same snapshot, which uses what is there.
    let again = begin(&vault, &[], Some(0)).await.unwrap();
    assert_eq!(put(&vault, &again, chunk(1, 1000)).await.1, Claim::Known);
    again.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
}

#[tokio::test]
async fn a_session_whose_place_is_taken_and_then_empty_does_not_count_as_aborted() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    writer.abort("test").await.unwrap();
    // The create reads what is there, and whoever wants to know whose it is reads again.
    let place = object::point(MachineNumber(1), writer.number());
    rig.store.inject_after(Request::Get, &place, 1, Fault::NotFound, 1);
    let error = vault
        .abort(MachineNumber(1), writer.number(), "again")
        .await
        .unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    vault.abort(MachineNumber(1), writer.number(), "again").await.unwrap();
}

#[tokio::test]
async fn a_committed_session_is_not_aborted_and_not_resumed() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    writer.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    let error = vault.abort(writer.machine(), writer.number(), "no").await.unwrap_err();
    assert!(matches!(error, CommitError::IsCommitted(SessionNumber(0))));
    assert!(matches!(
        begin(&vault, &[], Some(0)).await,
        Err(BeginError::ResumedIsCommitted(_))
    ));
}

#[tokio::test]
async fn a_lost_pack_is_noticed_before_the_point_is_made() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let first = begin(&vault, &[], None).await.unwrap();
    put(&vault, &first, chunk(1, 1000)).await;
    first.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    let second = begin(&vault, &[0], None).await.unwrap();
    assert_eq!(put(&vault, &second, chunk(1, 1000)).await.1, Claim::Known);
    rig.store.lose(&rig.store.names("packs/").await[0]).await;
    let error = second
        .commit(PointDraft::default(), &rig.commit_file())
        .await
        .unwrap_err();
    assert!(matches!(error, CommitError::PackMissing { .. }), "{error:?}");
    assert_eq!(vault.points(second.machine()).await.unwrap().len(), 1);
    // It is quarantined, so that the next session heals what it can, on any host.
    for host in ["a", "b"] {
        let again = rig.host(host).await;
        let third = begin(&again, &[0], None).await.unwrap();
        let (id, claim) = put(&again, &third, chunk(1, 1000)).await;
        assert_eq!(claim, if host == "a" { Claim::New } else { Claim::Known });
        third.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
        assert_eq!(again.chunks().read(&id).await.unwrap(), chunk(1, 1000));
    }
}

#[tokio::test]
async fn packs_whose_index_has_left_the_vault_are_not_relied_upon() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let first = begin(&vault, &[], None).await.unwrap();
    put(&vault, &first, chunk(1, 1000)).await;
    first.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    // As a clean-up leaves it, long after: what it condemned is deleted, and a later checkpoint names it no more.
    let pack = PackKey {
        machine: first.machine(),
        session: first.number(),
        number: 0,
    };
    let condemn = GcWhat::Condemn {
        packs: vec![PackName(pack)],
        reason: "dead".to_owned(),
    };
    for (number, what) in [condemn, GcWhat::Checkpoint(Checkpoint::default())]
        .into_iter()
        .enumerate()
    {
        let records = vault.inner.records();
        let record = GcRecord {
            at: records.now(),
            checkpoint: None,
            what,
        };
        let object = object::gclog(number as u32);
        records.create(ObjectType::GcLog, &object, &record).await.unwrap();
    }
    rig.store.lose(&rig.store.names("index/").await[0]).await;
    rig.store.lose(&rig.store.names("packs/").await[0]).await;
    for host in [vault, rig.host("a").await] {
        let writer = begin(&host, &[], None).await.unwrap();
        assert_eq!(put(&host, &writer, chunk(1, 1000)).await.1, Claim::New);
    }
}

#[tokio::test]
async fn sessions_that_fill_all_buffers_at_once_do_not_wait_for_each_other_for_ever() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(begin(&vault, &[], None).await.unwrap());
    }
    let threads: Vec<_> = (0..6)
        .map(|thread: u32| {
            let (writer, hasher) = (sessions[thread as usize % 3].clone(), vault.hasher());
            tokio::task::spawn_blocking(move || {
                let mut encoder = Encoder::new();
                for number in 0..40 {
                    let content = chunk(thread * 1000 + number, 1024 * 1024);
                    let kind = if number % 2 == 0 {
                        ChunkKind::Data
                    } else {
                        ChunkKind::Node
                    };
                    writer.put(kind, hasher.id(&content), &content, &mut encoder).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    let file = rig.commit_file();
    sessions[0].abort("given up").await.unwrap();
    for session in &sessions[1..] {
        session.commit(PointDraft::default(), &file).await.unwrap();
    }
    assert_eq!(vault.points(sessions[0].machine()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_session_exists_before_the_clean_up_log_is_read() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.store.forget_seen();
    begin(&vault, &[], None).await.unwrap();
    let seen = rig.store.seen();
    let session = seen
        .iter()
        .position(|(r, o)| *r == Request::Put && o.starts_with("sessions/"))
        .unwrap();
    // It may have been looked at before, for where sessions are; what counts is what is read afterwards.
    let log = seen
        .iter()
        .rposition(|(r, o)| *r == Request::Get && o.starts_with("gclog"))
        .unwrap();
    let index = seen
        .iter()
        .position(|(r, o)| *r == Request::List && o.starts_with("index"))
        .unwrap();
    assert!(session < log && log < index, "{seen:?}");
}

#[tokio::test]
async fn nothing_is_deduplicated_against_a_condemned_pack() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let first = begin(&vault, &[], None).await.unwrap();
    put(&vault, &first, chunk(1, 1000)).await;
    first.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    let pack = rig.store.names("packs/").await[0]
        .trim_start_matches("packs/")
        .to_owned();
    let record = serde_json::json!({ "at": "2026-01-01T00:00:00Z", "kind": "condemn", "packs": [pack] });
    vault
        .inner
        .records()
        .create(ObjectType::GcLog, &object::gclog(0), &record)
        .await
        .unwrap();
    let second = begin(&vault, &[], None).await.unwrap();
    assert_eq!(put(&vault, &second, chunk(1, 1000)).await.1, Claim::New);
}

#[tokio::test]
async fn a_purged_point_is_no_base() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let first = begin(&vault, &[], None).await.unwrap();
    first.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    let purge = serde_json::json!({ "fate": "purge", "at": "2026-01-01T00:00:00Z" });
    let name = object::fate(first.machine(), first.number(), 0);
    vault
        .inner
        .records()
        .create(ObjectType::Fate, &name, &purge)
        .await
        .unwrap();
    assert!(matches!(
        begin(&vault, &[0], None).await,
        Err(BeginError::Base(SessionNumber(0), _))
    ));
    assert_eq!(vault.points(first.machine()).await.unwrap()[0].fate, Fate::Purged);
}

#[tokio::test]
async fn a_failing_store_fails_the_session_with_its_cause() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    put(&vault, &writer, chunk(1, 1000)).await;
    rig.store.inject(Request::Put, "packs/", Fault::Refuse, 100);
    let error = writer
        .commit(PointDraft::default(), &rig.commit_file())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CommitError::Write(WriteError::Pack { .. })),
        "{error:?}"
    );
    assert!(matches!(writer.claim(&ChunkId([0; 20])), Err(WriteError::Pack { .. })));
    assert!(vault.points(writer.machine()).await.unwrap().is_empty());
}

#[tokio::test]
async fn chunks_are_found_although_no_listing_shows_their_index() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    let (id, _) = put(&vault, &writer, chunk(1, 1000)).await;
    writer.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    rig.store.hide("index/");
    let reader = rig.host("b").await.chunks();
    assert_eq!(reader.read(&id).await.unwrap(), chunk(1, 1000));
    assert!(matches!(
        reader.read(&ChunkId([9; 20])).await,
        Err(ReadError::ChunkMissing(_))
    ));
}

#[tokio::test]
async fn a_damaged_chunk_is_never_returned_and_another_copy_is() {
    let rig = Rig::new().await;
    let (one, two) = (rig.host("a").await, rig.host("b").await);
    let (first, second) = (
        begin(&one, &[], None).await.unwrap(),
        begin(&two, &[], None).await.unwrap(),
    );
    let (id, _) = put(&one, &first, chunk(1, 1000)).await;
    put(&two, &second, chunk(1, 1000)).await;
    first.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    let packs = rig.store.names("packs/").await;
    rig.store.flip(&packs[0], 100).await;
    let error = rig.host("c").await.chunks().read(&id).await.unwrap_err();
    assert!(matches!(error, ReadError::ChunkDamaged { .. }), "{error:?}");
    second.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    let reader = rig.host("d").await.chunks();
    assert_eq!(reader.read(&id).await.unwrap(), chunk(1, 1000));
    rig.store.lose(&packs[0]).await;
    assert_eq!(rig.host("e").await.chunks().read(&id).await.unwrap(), chunk(1, 1000));
}

#[tokio::test]
async fn many_packs_go_through_few_buffers_and_pieces() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let writer = begin(&vault, &[], None).await.unwrap();
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            let (writer, hasher) = (writer.clone(), vault.hasher());
            tokio::task::spawn_blocking(move || {
                let mut encoder = Encoder::new();
                let kinds = [ChunkKind::Data, ChunkKind::Node];
                for number in 0..180 {
                    let content = chunk(thread * 1000 + number, 1024 * 1024);
                    let id = hasher.id(&content);
                    assert_eq!(writer.claim(&id).unwrap(), Claim::New);
                    writer
                        .put(kinds[(number % 5 == 0) as usize], id, &content, &mut encoder)
                        .unwrap();
                    assert_eq!(writer.claim(&id).unwrap(), Claim::Known);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    let point = writer.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    assert!((12..=16).contains(&point.written.packs), "{:?}", point.written);
    assert_eq!(point.written.index_pieces, 2);
    let sizes: usize = rig.store.names("packs/").await.len();
    assert_eq!(sizes, point.written.packs as usize);
    let reader = rig.host("b").await.chunks();
    for number in [0, 1, 179, 1000, 1179] {
        let content = chunk(number, 1024 * 1024);
        assert_eq!(reader.read(&vault.hasher().id(&content)).await.unwrap(), content);
    }
}

#[tokio::test]
async fn what_a_session_sent_before_it_broke_off_is_not_sent_twice() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let first = begin(&vault, &[], None).await.unwrap();
    // More than a pack, so that one is sent while the other is open; no piece of the index is written yet.
    for number in 0..40 {
        put(&vault, &first, chunk(number, 1024 * 1024)).await;
    }
    while rig.store.names("packs/").await.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    drop(first);
    assert!(rig.store.names("index/").await.is_empty());

    let later = rig.host("b").await;
    let second = begin(&later, &[], Some(0)).await.unwrap();
    let mut known = 0;
    for number in 0..40 {
        known += u32::from(put(&later, &second, chunk(number, 1024 * 1024)).await.1 == Claim::Known);
    }
    assert_eq!(known, 31);
    let point = second.commit(PointDraft::default(), &rig.commit_file()).await.unwrap();
    assert_eq!((point.written.packs, point.written.index_pieces), (1, 1));
    let reader = rig.host("c").await.chunks();
    for number in 0..40 {
        let content = chunk(number, 1024 * 1024);
        assert_eq!(reader.read(&vault.hasher().id(&content)).await.unwrap(), content);
    }
}
