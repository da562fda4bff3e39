//! What credentials by role rest on: which requests each part of a vault's life sends. `docs/permissions.md` is written
//! after these.

use std::collections::BTreeSet;

use super::keys::{fresh, vault_with};
use super::*;
use crate::Point;

/// The kinds of requests seen since the last look, by the first part of the object's name.
fn seen(store: &FaultStore) -> BTreeSet<(String, String)> {
    let kinds = store.seen().into_iter().map(|(request, object)| {
        let object = object.strip_prefix("backups/coffre").unwrap_or(&object);
        let folder = object.trim_start_matches('/').split('/').next().unwrap_or_default();
        (format!("{request:?}"), folder.to_owned())
    });
    let kinds = kinds.collect();
    store.forget_seen();
    kinds
}

fn requests(seen: &BTreeSet<(String, String)>) -> BTreeSet<&str> {
    seen.iter().map(|(request, _)| request.as_str()).collect()
}

/// With a cache that stays.
async fn open_in(folder: &TempDir, store: &Arc<FaultStore>) -> Vault {
    Vault::open(over(store), Some(fresh(1)), options(folder)).await.unwrap()
}

async fn back_up(vault: &Vault, folder: &TempDir, bases: Vec<SessionNumber>, content: &'static [u8]) -> Point {
    let machine = vault.machine_or_create("web01").await.unwrap();
    let plan = SessionPlan {
        machine,
        bases,
        deadline: Timestamp::now() + jiff::SignedDuration::from_hours(24),
        host: "test".to_owned(),
        resumes: None,
    };
    let writer = vault.begin(plan).await.unwrap();
    let worker = writer.clone();
    tokio::task::spawn_blocking(move || worker.put_bytes(content).unwrap())
        .await
        .unwrap();
    writer
        .commit(PointDraft::default(), &folder.path().join("commit"))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_backup_reads_lists_and_puts_if_absent_and_does_nothing_else() {
    let store = vault_with(fresh(1)).await;
    let folder = tempfile::tempdir().unwrap();
    seen(&store);
    let vault = open_in(&folder, &store).await;
    assert!(!requests(&seen(&store)).contains("Put"), "opening writes something");
    let first = back_up(&vault, &folder, Vec::new(), b"first").await;
    back_up(&vault, &folder, vec![first.number], b"second").await;
    // A session that finds the packs of the one before gone, and puts them into quarantine.
    for pack in store.names("backups/coffre/packs/").await {
        store.lose(&pack).await;
    }
    let _ = back_up(&vault, &folder, vec![first.number], b"third").await;
    // And one that goes on with what another left.
    let machine = vault.machine("web01").await.unwrap().unwrap();
    let plan = |resumes| SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: Timestamp::now() + jiff::SignedDuration::from_hours(24),
        host: "test".to_owned(),
        resumes,
    };
    let broken = vault.begin(plan(None)).await.unwrap();
    let resumed = vault.begin(plan(Some(broken.number()))).await.unwrap();
    resumed.abort("done with it").await.unwrap();
    let seen = seen(&store);
    assert_eq!(
        requests(&seen),
        BTreeSet::from(["Get", "Head", "List", "Put"]),
        "{seen:?}"
    );
    let written: BTreeSet<&str> = (seen.iter())
        .filter(|(request, _)| request == "Put")
        .map(|(_, folder)| folder.as_str())
        .collect();
    assert!(
        written.is_subset(&BTreeSet::from([
            "gclog", "index", "machines", "packs", "points", "sessions"
        ])),
        "{written:?}"
    );
}

#[tokio::test]
async fn restoring_and_verifying_read_and_write_nothing() {
    let store = vault_with(fresh(1)).await;
    let folder = tempfile::tempdir().unwrap();
    let vault = open_in(&folder, &store).await;
    let point = back_up(&vault, &folder, Vec::new(), b"first").await;
    seen(&store);
    let vault = open_in(&folder, &store).await;
    vault.points(point.machine_number).await.unwrap();
    vault.chunks().read(&vault.hasher().id(b"first")).await.unwrap();
    assert_eq!(requests(&seen(&store)), BTreeSet::from(["Get", "Head", "List"]));
}

#[tokio::test]
async fn a_vault_is_made_where_nothing_may_be_deleted() {
    let store = FaultStore::in_memory();
    store.inject(Request::Delete, "", Fault::Deny, 1000);
    Vault::init(over(&store), with_secret()).await.unwrap();
    let seen = seen(&store);
    assert_eq!(
        requests(&seen),
        BTreeSet::from(["Delete", "Get", "List", "Put"]),
        "{seen:?}"
    );
    let deleted: Vec<_> = seen.iter().filter(|(request, _)| request == "Delete").collect();
    assert!(deleted.iter().all(|(_, folder)| folder == "probe"), "{deleted:?}");
    // The probes stay, and nobody minds them.
    assert_eq!(store.names("backups/coffre/probe/").await.len(), 2);
    assert!(open(&store, Some(secret(1))).await.is_ok());
}

#[tokio::test]
async fn keys_are_added_and_rotated_without_deleting() {
    let store = vault_with(fresh(1)).await;
    seen(&store);
    let mut keys = super::keys::keys(&store, fresh(1)).await.unwrap();
    keys.add("laptop", &fresh(2)).await.unwrap();
    let rotation = Rotation {
        drop_others: true,
        ..Rotation::default()
    };
    keys.rotate(&rotation).await.unwrap();
    let all = seen(&store);
    assert_eq!(
        requests(&all),
        BTreeSet::from(["Get", "Head", "List", "Put"]),
        "{all:?}"
    );
    keys.add("laptop", &fresh(2)).await.unwrap();
    keys.remove("laptop", false).await.unwrap();
    let all = seen(&store);
    assert!(all.contains(&("Delete".to_owned(), "keys".to_owned())), "{all:?}");
}
