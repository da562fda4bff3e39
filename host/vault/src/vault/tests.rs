//! Making and opening vaults, and every way in which that is refused.

mod keys;
mod refused;
mod roles;
mod rotation;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tempfile::TempDir;
use url::Url;
use zeroize::Zeroizing;

use super::format::{Format, SealKind};
use super::*;
use crate::point::PointDraft;
use crate::store::{StoreConfig, StoreOptions};
use crate::testing::{Creates, Fault, FaultStore, Request};

fn secret(byte: u8) -> Credential {
    Credential::Secret(Zeroizing::new(vec![byte; 32]))
}

fn passphrase(text: &str) -> Credential {
    Credential::Passphrase(Zeroizing::new(text.to_owned()))
}

fn encrypted(slots: Vec<(String, Credential)>) -> InitOptions {
    InitOptions {
        encryption: Encryption::Encrypted { slots },
        recovery_key: false,
        host: "test".to_owned(),
    }
}

fn with_secret() -> InitOptions {
    encrypted(vec![("main".to_owned(), secret(1))])
}

fn over(store: &Arc<FaultStore>) -> Store {
    Store::over(store.clone(), "backups/coffre")
}

fn options(folder: &TempDir) -> OpenOptions {
    OpenOptions {
        cache_folder: folder.path().to_owned(),
        expect_id: None,
        allow_unencrypted: false,
    }
}

async fn open(store: &Arc<FaultStore>, credential: Option<Credential>) -> Result<Vault, OpenError> {
    Vault::open(over(store), credential, options(&tempfile::tempdir().unwrap())).await
}

#[tokio::test]
async fn every_slot_opens_the_vault_and_nothing_else_does() {
    let store = FaultStore::in_memory();
    let slots = vec![
        ("file".to_owned(), secret(1)),
        ("words".to_owned(), passphrase("open sesame")),
    ];
    let made = InitOptions {
        recovery_key: true,
        ..encrypted(slots)
    };
    let made = Vault::init(over(&store), made).await.unwrap();
    let written: crate::RecoveryKey = made.recovery_key.unwrap().to_string().parse().unwrap();
    for credential in [secret(1), passphrase("open sesame"), written.credential()] {
        let vault = open(&store, Some(credential)).await.unwrap();
        assert_eq!(vault.id(), made.id);
        assert!(vault.is_encrypted());
    }
    for credential in [secret(2), passphrase("open")] {
        let error = open(&store, Some(credential)).await.unwrap_err();
        assert!(
            matches!(
                error,
                OpenError::WrongKey {
                    slots: 3,
                    unreadable: 0
                }
            ),
            "{error:?}"
        );
    }
    assert!(matches!(open(&store, None).await, Err(OpenError::KeyNeeded)));
    assert!(matches!(
        open(&store, Some(passphrase(""))).await,
        Err(OpenError::Key { .. })
    ));
}

#[tokio::test]
async fn keys_that_protect_nothing_are_refused() {
    let weak = Credential::Secret(Zeroizing::new(vec![1; 31]));
    let error = Vault::init(over(&FaultStore::in_memory()), encrypted(vec![("a".to_owned(), weak)])).await;
    assert!(matches!(error, Err(InitError::Key { .. })));
    let error = Vault::init(over(&FaultStore::in_memory()), encrypted(Vec::new())).await;
    assert!(matches!(error, Err(InitError::NoKey)));
}

#[tokio::test]
async fn an_unencrypted_vault_opens_only_where_that_is_allowed() {
    let store = FaultStore::in_memory();
    let made = InitOptions {
        encryption: Encryption::None,
        recovery_key: true,
        host: String::new(),
    };
    assert!(Vault::init(over(&store), made).await.unwrap().recovery_key.is_none());
    assert!(matches!(open(&store, None).await, Err(OpenError::Unencrypted)));
    let folder = tempfile::tempdir().unwrap();
    let allowed = OpenOptions {
        allow_unencrypted: true,
        ..options(&folder)
    };
    assert!(!Vault::open(over(&store), None, allowed).await.unwrap().is_encrypted());
}

#[tokio::test]
async fn a_store_that_ignores_put_if_absent_is_refused() {
    for creates in [Creates::Overwrite, Creates::NotAtomic] {
        let store = FaultStore::in_memory();
        store.set_creates(creates);
        let error = Vault::init(over(&store), with_secret()).await.unwrap_err();
        assert!(
            matches!(error, InitError::NoPutIfAbsent { .. }),
            "{creates:?}: {error:?}"
        );
        assert!(store.names("").await.is_empty(), "{creates:?} leaves something behind");
    }
}

#[tokio::test]
async fn a_store_that_loses_answers_is_a_store() {
    for fault in [
        Fault::LoseAnswer,
        Fault::AlreadyThere,
        Fault::ConflictWithNothingStored,
        Fault::Refuse,
    ] {
        for times in [1, 3, 18] {
            let store = FaultStore::in_memory();
            store.inject(Request::Put, "", fault, times);
            let made = Vault::init(over(&store), with_secret()).await;
            let vault = open(&store, Some(secret(1))).await;
            match made {
                Ok(made) => assert_eq!(vault.unwrap().id(), made.id),
                Err(error) => assert!(
                    matches!(error, InitError::Store { .. }) && vault.is_err(),
                    "{fault:?} {times} times: {error:?}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_empty_is_left_alone() {
    let store = FaultStore::in_memory();
    store.replace("backups/coffre/photos/cat.jpg", "meow").await;
    let error = Vault::init(over(&store), with_secret()).await.unwrap_err();
    assert!(
        matches!(&error, InitError::NotEmpty { example } if example.ends_with("cat.jpg")),
        "{error:?}"
    );
    assert!(matches!(
        open(&store, Some(secret(1))).await,
        Err(OpenError::NotAVault { .. })
    ));
    assert_eq!(store.names("").await.len(), 1);

    let store = FaultStore::in_memory();
    store.replace("backups/coffre-old/photos/cat.jpg", "meow").await;
    let made = Vault::init(over(&store), with_secret()).await.unwrap();
    let error = Vault::init(over(&store), with_secret()).await.unwrap_err();
    assert!(
        matches!(error, InitError::AlreadyThere { id } if id == Some(made.id)),
        "{error:?}"
    );
}

#[tokio::test]
async fn of_two_who_make_a_vault_at_once_one_does() {
    let store = FaultStore::in_memory();
    let made = futures::future::join_all((0..4).map(|_| Vault::init(over(&store), with_secret()))).await;
    let winners: Vec<_> = made.iter().flatten().collect();
    assert!(winners.len() <= 1, "{made:?}");
    if let [winner] = winners.as_slice() {
        assert_eq!(open(&store, Some(secret(1))).await.unwrap().id(), winner.id);
    }
}

#[tokio::test]
async fn what_is_no_vault_of_ours_is_told_apart() {
    let store = FaultStore::in_memory();
    assert!(matches!(open(&store, Some(secret(1))).await, Err(OpenError::NotThere)));
    store.replace("backups/coffre/format", "some other program").await;
    assert!(matches!(
        open(&store, Some(secret(1))).await,
        Err(OpenError::NotAVault { .. })
    ));
    store.replace("backups/coffre/format", vec![b'x'; 100_000]).await;
    assert!(matches!(
        open(&store, Some(secret(1))).await,
        Err(OpenError::NotAVault { .. })
    ));
    store
        .replace("backups/coffre/format", "COFFRE-VAULT 9\n{}\nmac 00\n")
        .await;
    let error = open(&store, Some(secret(1))).await.unwrap_err();
    assert!(
        matches!(error, OpenError::NewerFormat { found: 9, known: 1 }),
        "{error:?}"
    );
    store.inject(Request::Get, "backups/coffre/format", Fault::Refuse, 1);
    assert!(matches!(
        open(&store, Some(secret(1))).await,
        Err(OpenError::Store { .. })
    ));
}

#[tokio::test]
async fn a_changed_format_object_and_another_vaults_are_noticed() {
    let store = FaultStore::in_memory();
    let made = Vault::init(over(&store), with_secret()).await.unwrap();
    let text = String::from_utf8(store.bytes("backups/coffre/format").await.to_vec()).unwrap();
    store
        .replace("backups/coffre/format", text.replace("\"test\"", "\"evil\""))
        .await;
    let error = open(&store, Some(secret(1))).await.unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    // Downgraded to no encryption, with a MAC that everybody can make.
    let ring = KeyRing::unencrypted(made.id);
    let downgraded = Format {
        vault: made.id,
        seal: SealKind::None,
        created_at: Timestamp::now(),
        host: String::new(),
        coffre: String::new(),
    };
    store.replace("backups/coffre/format", downgraded.encode(&ring)).await;
    assert!(matches!(
        open(&store, Some(secret(1))).await,
        Err(OpenError::Unencrypted)
    ));
    let folder = tempfile::tempdir().unwrap();
    let pinned = OpenOptions {
        expect_id: Some(VaultId([0; 16])),
        ..options(&folder)
    };
    let error = Vault::open(over(&store), Some(secret(1)), pinned).await.unwrap_err();
    assert!(matches!(error, OpenError::IdChanged { found, .. } if found == made.id));
}

fn config(url: &str) -> StoreConfig {
    StoreConfig {
        url: Url::parse(url).unwrap(),
        options: StoreOptions::default(),
    }
}

#[tokio::test]
async fn a_local_folder_is_a_vault_that_another_process_finds() {
    let folder = tempfile::tempdir().unwrap();
    // A folder that is not there yet, with a name that needs care in an address.
    let url = Url::from_directory_path(folder.path().join("my vault é/100%")).unwrap();
    let config = config(url.as_str());
    let made = Vault::init(Store::connect(&config).unwrap(), with_secret())
        .await
        .unwrap();
    let open = || Vault::open(Store::connect(&config).unwrap(), Some(secret(1)), options(&folder));
    let vault = open().await.unwrap();
    assert_eq!(vault.id(), made.id);
    let machine = vault.machine_or_create("web01").await.unwrap();
    let plan = SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: Timestamp::now(),
        host: String::new(),
        resumes: None,
    };
    let writer = vault.begin(plan).await.unwrap();
    let worker = writer.clone();
    let ids = tokio::task::spawn_blocking(move || worker.put_bytes(b"content").unwrap())
        .await
        .unwrap();
    let point = writer
        .commit(PointDraft::default(), &folder.path().join("commit"))
        .await
        .unwrap();
    let again = open().await.unwrap();
    assert_eq!(again.points(machine).await.unwrap(), vec![point]);
    assert_eq!(again.chunks().read(&ids[0]).await.unwrap(), b"content".as_slice());
    let report = again
        .verify(
            crate::VerifyPlan {
                machine: None,
                read: crate::verify::ReadData::All,
                quarantine: false,
            },
            &|_| {},
        )
        .await
        .unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert!(folder.path().join("my vault é/100%/format").exists());
    let error = Vault::init(Store::connect(&config).unwrap(), with_secret())
        .await
        .unwrap_err();
    assert!(matches!(error, InitError::AlreadyThere { .. }), "{error:?}");
}

#[tokio::test]
async fn a_local_folder_that_is_not_there_is_not_made_by_opening_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unmounted");
    let config = config(Url::from_directory_path(&path).unwrap().as_str());
    let opened = Vault::open(Store::connect(&config).unwrap(), Some(secret(1)), options(&folder)).await;
    assert!(matches!(opened, Err(OpenError::NotThere)), "{opened:?}");
    assert!(!path.exists());
}

#[test]
fn a_wrong_address_says_what_is_wrong() {
    for (url, wanted) in [
        ("ftp://host/x", "none of s3://"),
        ("s3:///x", "a bucket is wanted"),
        ("az:///x", "a container is wanted"),
    ] {
        let error = Store::connect(&config(url)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let mut plain = config("s3://bucket/x");
    plain.options.endpoint = Some("http://127.0.0.1:1".to_owned());
    let error = Store::connect(&plain).unwrap_err().to_string();
    assert!(error.contains("allow-http"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_within_seconds_and_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config("s3://bucket/prefix");
    config.options = StoreOptions {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        allow_http: true,
        access_key_id: Some("a".to_owned().into()),
        secret_access_key: Some("s".to_owned().into()),
        ..StoreOptions::default()
    };
    let started = Instant::now();
    let error = Vault::open(Store::connect(&config).unwrap(), Some(secret(1)), options(&folder))
        .await
        .unwrap_err();
    let OpenError::Unreachable { source } = &error else {
        panic!("{error:?}")
    };
    assert!(source.cause().unwrap().to_string().contains("refused"), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}
