//! What an attacker with write access or a bad disk does to `format` and slots: refused before any work.

use super::keys::{fresh, vault_with};
use super::*;

async fn slots(store: &Arc<FaultStore>) -> Vec<String> {
    store.names("backups/coffre/keys/").await
}

/// Nothing but `format`, the registers of keys and listings was asked for, and nothing was written.
fn assert_no_work(store: &FaultStore) {
    for (request, object) in store.seen() {
        let is_about_keys = object.contains("/keys") || object.contains("/generations") || object.ends_with("/format");
        assert!(
            matches!(request, Request::Get | Request::Head | Request::List) && is_about_keys,
            "{request:?} {object}"
        );
    }
}

async fn refused(store: &Arc<FaultStore>, credential: Credential) -> OpenError {
    store.forget_seen();
    let error = open(store, Some(credential)).await.unwrap_err();
    assert_no_work(store);
    error
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let store = vault_with(fresh(1)).await;
    for wrong in [
        fresh(2),
        passphrase("correct horse"),
        crate::RecoveryKey::generate().credential(),
    ] {
        let error = refused(&store, wrong).await;
        assert!(matches!(error, OpenError::WrongKey { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_slot_cut_short_anywhere_is_refused() {
    let store = vault_with(fresh(1)).await;
    let slot = slots(&store).await[0].clone();
    let whole = store.bytes(&slot).await;
    for bytes in 0..whole.len() {
        store.replace(&slot, whole.slice(..bytes)).await;
        let error = refused(&store, fresh(1)).await;
        assert!(
            matches!(&error, OpenError::Damaged { what } if what.contains("key slot")),
            "{bytes} bytes: {error:?}"
        );
    }
    // Beside a slot that opens it is no obstacle, and else it is counted.
    store.replace(&format!("{slot}0"), whole.slice(..40)).await;
    store.replace(&slot, whole).await;
    assert!(open(&store, Some(fresh(1))).await.is_ok());
    let error = refused(&store, fresh(2)).await;
    assert!(
        matches!(
            error,
            OpenError::WrongKey {
                slots: 2,
                unreadable: 1
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_slot_that_is_far_too_large_is_not_read() {
    let store = vault_with(fresh(1)).await;
    let slot = slots(&store).await[0].clone();
    store.replace(&slot, vec![b'x'; 1 << 20]).await;
    let error = refused(&store, fresh(1)).await;
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}

#[tokio::test]
async fn absurd_argon2_parameters_are_refused_before_they_cost_anything() {
    let store = vault_with(passphrase("correct horse")).await;
    let slot = slots(&store).await[0].clone();
    let text = String::from_utf8(store.bytes(&slot).await.to_vec()).unwrap();
    for (from, to) in [
        ("\"memory_kib\":65536", "\"memory_kib\":4294967295"),
        ("\"memory_kib\":65536", "\"memory_kib\":65537"),
        ("\"memory_kib\":65536", "\"memory_kib\":0"),
        ("\"passes\":3", "\"passes\":4294967295"),
        ("\"passes\":3", "\"passes\":0"),
        ("\"lanes\":1", "\"lanes\":16777215"),
    ] {
        assert!(text.contains(from), "{text}");
        store.replace(&slot, text.replace(from, to)).await;
        let started = Instant::now();
        let error = refused(&store, passphrase("correct horse")).await;
        assert!(
            matches!(&error, OpenError::Damaged { what } if what.contains("Argon2id")),
            "{to}: {error:?}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{to}: {:?}",
            started.elapsed()
        );
    }
}

#[tokio::test]
async fn a_slot_from_another_place_is_refused() {
    // Under another name, in another generation, and from another vault with the same key.
    let store = vault_with(fresh(1)).await;
    let slot = slots(&store).await[0].clone();
    let whole = store.bytes(&slot).await;
    store.lose(&slot).await;
    store
        .replace("backups/coffre/keys/00000000/0123456789abcdef", whole.clone())
        .await;
    let error = refused(&store, fresh(1)).await;
    assert!(matches!(error, OpenError::WrongKey { .. }), "{error:?}");

    let other = vault_with(fresh(1)).await;
    let theirs = slots(&other).await[0].clone();
    other.replace(&theirs, whole.clone()).await;
    assert!(open(&other, Some(fresh(1))).await.is_err());
    other.lose(&theirs).await;
    other.replace(&slot, whole.clone()).await;
    let error = refused(&other, fresh(1)).await;
    assert!(matches!(error, OpenError::WrongKey { .. }), "{error:?}");

    let store = vault_with(fresh(1)).await;
    let mut keys = super::keys::keys(&store, fresh(1)).await.unwrap();
    let old = slots(&store).await[0].clone();
    keys.rotate(&Rotation::default()).await.unwrap();
    let new = slots(&store).await.into_iter().find(|name| *name != old).unwrap();
    let moved = store.bytes(&old).await;
    store.replace(&new, moved).await;
    let error = refused(&store, fresh(1)).await;
    assert!(matches!(error, OpenError::LeftBehind { .. }), "{error:?}");
}

#[tokio::test]
async fn two_slots_that_were_swapped_are_refused() {
    let store = vault_with(fresh(1)).await;
    super::keys::keys(&store, fresh(1))
        .await
        .unwrap()
        .add("b", &fresh(2))
        .await
        .unwrap();
    let [a, b] = <[String; 2]>::try_from(slots(&store).await).unwrap();
    let (in_a, in_b) = (store.bytes(&a).await, store.bytes(&b).await);
    store.replace(&a, in_b).await;
    store.replace(&b, in_a).await;
    for credential in [fresh(1), fresh(2)] {
        let error = refused(&store, credential).await;
        assert!(matches!(error, OpenError::WrongKey { slots: 2, .. }), "{error:?}");
    }
}

/// Every host that was told of a key refuses, whether it has the vault's id or not.
#[tokio::test]
async fn a_format_swapped_for_an_unencrypted_one_is_refused() {
    let store = FaultStore::in_memory();
    let made = Vault::init(over(&store), with_secret()).await.unwrap();
    for (id, expected) in [(made.id, "same id"), (VaultId([9; 16]), "another id")] {
        let swapped = Format {
            vault: id,
            seal: SealKind::None,
            created_at: Timestamp::now(),
            host: String::new(),
            coffre: String::new(),
        };
        let proven_to_all = swapped.encode(&KeyRing::unencrypted(id));
        store.replace("backups/coffre/format", proven_to_all).await;
        let error = refused(&store, secret(1)).await;
        assert!(matches!(error, OpenError::Unencrypted), "{expected}: {error:?}");
        let keys = super::keys::keys(&store, secret(1)).await.unwrap_err();
        assert!(matches!(keys, OpenError::Unencrypted), "{expected}: {keys:?}");
        let folder = tempfile::tempdir().unwrap();
        let pinned = OpenOptions {
            expect_id: Some(made.id),
            ..options(&folder)
        };
        let error = Vault::open(over(&store), Some(secret(1)), pinned).await.unwrap_err();
        match id == made.id {
            true => assert!(matches!(error, OpenError::Unencrypted), "{error:?}"),
            false => assert!(matches!(error, OpenError::IdChanged { .. }), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn keys_that_open_nothing_are_refused_before_the_store_is_asked() {
    let store = vault_with(fresh(1)).await;
    let short = Credential::Secret(Zeroizing::new(vec![1; 31]));
    for useless in [short, passphrase("")] {
        let error = refused(&store, useless).await;
        assert!(matches!(error, OpenError::Key { .. }), "{error:?}");
        assert!(store.seen().is_empty());
    }
}
