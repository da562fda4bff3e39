//! What a start and a clean-up cost, in requests and in objects that listings show: it must not grow with the vault's age.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use coffre_vault::testing::synthetic::{self, Past};
use coffre_vault::testing::{FaultStore, Request};
use coffre_vault::{
    ChunkKind, CleanPlan, Encoder, Encryption, InitOptions, OpenOptions, PointDraft, SessionPlan, Store, Vault,
};
use jiff::{SignedDuration, Timestamp};

const MACHINE: &str = "web01";

async fn open(store: &Arc<FaultStore>, cache_folder: &Path) -> Vault {
    let options = OpenOptions {
        cache_folder: cache_folder.to_owned(),
        expect_id: None,
        allow_unencrypted: true,
    };
    Vault::open(Store::over(store.clone(), ""), None, options)
        .await
        .expect("the vault opens")
}

/// A session that stores one small chunk.
async fn back_up(vault: &Vault, byte: u8, folder: &Path) {
    let machine = vault
        .machine(MACHINE)
        .await
        .expect("machines are read")
        .expect("it is there");
    let plan = SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: Timestamp::now() + SignedDuration::from_hours(1),
        host: "host".to_owned(),
        resumes: None,
    };
    let writer = vault.begin(plan).await.expect("a session begins");
    let (worker, content) = (writer.clone(), vec![byte; 4096]);
    let id = vault.hasher().id(&content);
    let put = tokio::task::spawn_blocking(move || worker.put(ChunkKind::Data, id, &content, &mut Encoder::new()));
    put.await.expect("it does not panic").expect("a chunk is taken");
    writer
        .commit(PointDraft::default(), &folder.join("commit"))
        .await
        .expect("the session commits");
}

/// A vault with this many sessions behind it, ten points that live, and one session since the last clean-up.
async fn aged(sessions: u32, folder: &Path) -> Arc<FaultStore> {
    let store = FaultStore::in_memory();
    let options = InitOptions {
        encryption: Encryption::None,
        recovery_key: false,
        host: String::new(),
    };
    Vault::init(Store::over(store.clone(), ""), options)
        .await
        .expect("a vault is made");
    let vault = open(&store, &folder.join("writer")).await;
    let machine = vault.machine_or_create(MACHINE).await.expect("a machine is made");
    let past = Past {
        sessions,
        sessions_per_clean: 10,
    };
    synthetic::write_past(&vault, machine, MACHINE, past).await;
    for byte in 0..10 {
        back_up(&vault, byte, folder).await;
    }
    store
}

/// Requests by kind.
type Requests = BTreeMap<String, usize>;

/// Opens, begins, commits and lists points with a cache folder, and gives the requests of each.
async fn requests(store: &Arc<FaultStore>, cache: &Path, byte: u8) -> Vec<(&'static str, Requests)> {
    let mut all = Vec::new();
    let mut note = |what| {
        let mut requests = Requests::new();
        for (request, _) in store.seen() {
            *requests.entry(format!("{request:?}")).or_default() += 1;
        }
        store.forget_seen();
        all.push((what, requests));
    };
    store.forget_seen();
    let vault = open(store, cache).await;
    note("open");
    back_up(&vault, byte, cache).await;
    note("back up");
    let machine = vault
        .machine(MACHINE)
        .await
        .expect("machines are read")
        .expect("it is there");
    note("find a machine");
    let points = vault.points(machine).await.expect("points are read");
    assert!(points.len() >= 10);
    note("list points");
    all
}

fn total(requests: &[(&'static str, Requests)]) -> usize {
    requests.iter().flat_map(|(_, kinds)| kinds.values()).sum()
}

#[tokio::test]
async fn a_start_costs_the_same_after_200_sessions_and_after_20_000() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut costs = Vec::new();
    for sessions in [200, 20_000] {
        let folder = folder.path().join(sessions.to_string());
        std::fs::create_dir_all(&folder).expect("a folder");
        let store = aged(sessions, &folder).await;
        // A new host, and then the same one again with what it remembers.
        let first = requests(&store, &folder.join("host"), 100).await;
        let again = requests(&store, &folder.join("host"), 101).await;
        costs.push((first, again));
    }
    let (young, old) = (&costs[0], &costs[1]);
    // A new host finds the end of the clean-up log by doubling: seven times the doublings, twice each.
    assert!(total(&old.0) <= total(&young.0) + 14, "{:?}\n{:?}", young.0, old.0);
    assert_eq!(young.1, old.1, "a host that was there before");
    assert!(total(&old.1) < 100, "{:?}", old.1);
}

/// What cleaning up asks for: requests by kind and folder, and objects that were listed.
async fn clean(store: &Arc<FaultStore>, cache: &Path) -> (Requests, usize) {
    let vault = open(store, cache).await;
    store.forget_seen();
    let report = vault.clean(&CleanPlan::default(), &|_| {}).await.expect("it cleans");
    assert!(report.checkpoint.is_some(), "{report:?}");
    let mut requests = Requests::new();
    for (request, name) in store.seen() {
        let folder = name.split('/').next().unwrap_or_default();
        *requests.entry(format!("{request:?} {folder}")).or_default() += 1;
    }
    (requests, store.listed())
}

#[tokio::test]
async fn a_clean_up_costs_the_same_after_200_sessions_and_after_20_000() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut costs = Vec::new();
    for sessions in [200, 20_000] {
        let folder = folder.path().join(sessions.to_string());
        std::fs::create_dir_all(&folder).expect("a folder");
        let store = aged(sessions, &folder).await;
        // A new host, once it has opened the vault, and the next clean-up of the same one.
        let mut first = clean(&store, &folder.join("host")).await;
        let again = clean(&store, &folder.join("host")).await;
        let looks = first.0.remove("Head gclog").unwrap_or_default();
        costs.push((looks, (first, again)));
    }
    let ((young_looks, young), (old_looks, old)) = (&costs[0], &costs[1]);
    assert_eq!(young, old);
    // A new host finds the end of the clean-up log by doubling: seven times the doublings, twice each.
    assert!(*old_looks <= young_looks + 14, "{young_looks} {old_looks}");
    let ((requests, listed), _) = old;
    assert!(requests.values().sum::<usize>() < 300, "{requests:?}");
    assert!(*listed < 200, "{listed}");
}

#[tokio::test]
async fn a_host_that_was_away_for_long_lists_no_log_from_its_beginning() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = aged(50, folder.path()).await;
    let vault = open(&store, &folder.path().join("writer")).await;
    store.forget_seen();
    synthetic::sync_index(&vault).await.expect("the index is read");
    let of_log = store.seen().into_iter().filter(|(_, name)| name.starts_with("gclog"));
    let kinds: Vec<Request> = of_log.map(|(kind, _)| kind).collect();
    assert!(kinds.len() <= 8, "{kinds:?}");
}
