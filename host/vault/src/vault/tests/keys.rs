//! Keys that are listed, added and removed.

use super::*;
use crate::key::SlotKind;

/// A secret that could have been random.
pub(super) fn fresh(seed: u8) -> Credential {
    let mut bytes = vec![0; 32];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    Credential::Secret(Zeroizing::new(bytes))
}

pub(super) async fn keys(store: &Arc<FaultStore>, credential: Credential) -> Result<VaultKeys, OpenError> {
    VaultKeys::open(over(store), credential, None).await
}

/// A vault with the key `main`.
pub(super) async fn vault_with(credential: Credential) -> Arc<FaultStore> {
    let store = FaultStore::in_memory();
    Vault::init(over(&store), encrypted(vec![("main".to_owned(), credential)]))
        .await
        .unwrap();
    store
}

pub(super) async fn labels(keys: &VaultKeys) -> Vec<String> {
    let mut labels: Vec<String> = keys
        .list()
        .await
        .unwrap()
        .iter()
        .filter_map(KeySlot::label)
        .map(str::to_owned)
        .collect();
    labels.sort();
    labels
}

#[tokio::test]
async fn every_kind_of_key_can_be_added_and_opens_the_vault() {
    let store = vault_with(secret(1)).await;
    let keys = keys(&store, secret(1)).await.unwrap();
    let recovery = crate::RecoveryKey::generate();
    for (label, credential, kind) in [
        ("laptop", fresh(2), SlotKind::Key),
        ("words", passphrase("correct horse"), SlotKind::Passphrase),
        ("paper", recovery.credential(), SlotKind::RecoveryKey),
    ] {
        let added = keys.add(label, &credential).await.unwrap();
        assert!(
            matches!(&added.state, SlotState::Valid { label: made, kind: found, .. } if made == label && *found == kind),
            "{added:?}"
        );
        assert!(!added.in_use);
        assert!(open(&store, Some(credential)).await.is_ok());
    }
    assert_eq!(labels(&keys).await, ["laptop", "main", "paper", "words"]);
    let used: Vec<_> = keys
        .list()
        .await
        .unwrap()
        .into_iter()
        .filter(|slot| slot.in_use)
        .collect();
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].label(), Some("main"));
}

#[tokio::test]
async fn a_key_that_protects_nothing_or_is_there_already_is_not_added() {
    let store = vault_with(fresh(1)).await;
    let keys = keys(&store, fresh(1)).await.unwrap();
    keys.add("words", &passphrase("correct horse")).await.unwrap();
    let before = store.names("").await;
    let short = Credential::Secret(Zeroizing::new(vec![1; 31]));
    for weak in [short, secret(0), passphrase("1234567"), passphrase("")] {
        let error = keys.add("weak", &weak).await.unwrap_err();
        assert!(matches!(error, KeysError::Key { .. }), "{error:?}");
    }
    for label in ["", " a", "a\nb", "0123456789abcdef", &"x".repeat(65)] {
        let error = keys.add(label, &fresh(2)).await.unwrap_err();
        assert!(matches!(error, KeysError::Label { .. }), "{error:?}");
    }
    let error = keys.add("words", &fresh(2)).await.unwrap_err();
    assert!(matches!(error, KeysError::LabelTaken { .. }), "{error:?}");
    for (credential, known) in [(fresh(1), "main"), (passphrase("correct horse"), "words")] {
        let error = keys.add("again", &credential).await.unwrap_err();
        assert!(
            matches!(&error, KeysError::OpensAlready { label } if label == known),
            "{error:?}"
        );
    }
    assert_eq!(store.names("").await, before);
}

#[tokio::test]
async fn no_more_slots_are_made_than_are_tried() {
    let store = vault_with(fresh(1)).await;
    let keys = keys(&store, fresh(1)).await.unwrap();
    for number in 1..64 {
        keys.add(&format!("key {number}"), &fresh(number + 1)).await.unwrap();
    }
    let error = keys.add("one more", &fresh(100)).await.unwrap_err();
    assert!(matches!(error, KeysError::Full), "{error:?}");
    assert!(open(&store, Some(fresh(64))).await.is_ok());
}

#[tokio::test]
async fn a_key_is_removed_but_not_the_last_and_the_one_in_use_only_by_force() {
    let store = vault_with(fresh(1)).await;
    let mut by_main = keys(&store, fresh(1)).await.unwrap();
    let error = by_main.remove("main", true).await.unwrap_err();
    assert!(matches!(error, KeysError::Last { .. }), "{error:?}");
    by_main.add("laptop", &fresh(2)).await.unwrap();
    let error = by_main.remove("phone", false).await.unwrap_err();
    assert!(matches!(error, KeysError::NotFound { .. }), "{error:?}");
    let error = by_main.remove("main", false).await.unwrap_err();
    assert!(matches!(error, KeysError::InUse { .. }), "{error:?}");
    for credential in [fresh(1), fresh(2)] {
        assert!(open(&store, Some(credential)).await.is_ok());
    }
    let gone = by_main.remove("main", true).await.unwrap();
    assert_eq!(gone.label(), Some("main"));
    assert!(matches!(
        open(&store, Some(fresh(1))).await,
        Err(OpenError::WrongKey { slots: 1, .. })
    ));
    assert!(open(&store, Some(fresh(2))).await.is_ok());
}

#[tokio::test]
async fn a_planted_slot_is_no_key_that_would_be_left() {
    let store = vault_with(fresh(1)).await;
    let mut keys = keys(&store, fresh(1)).await.unwrap();
    let theirs = vault_with(fresh(9)).await;
    let planted = theirs.names("backups/coffre/keys/").await[0].clone();
    store.replace(&planted, theirs.bytes(&planted).await).await;
    let name = planted.rsplit('/').next().unwrap();
    let error = keys.remove("main", true).await.unwrap_err();
    assert!(matches!(error, KeysError::Last { .. }), "{error:?}");
    let listed = keys.list().await.unwrap();
    let found = listed.iter().find(|slot| slot.name == name).unwrap();
    assert!(matches!(found.state, SlotState::Foreign { .. }), "{found:?}");
    keys.remove(name, false).await.unwrap();
    assert_eq!(keys.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn two_who_remove_each_others_key_do_not_lock_everybody_out() {
    let store = vault_with(fresh(1)).await;
    let mut by_main = keys(&store, fresh(1)).await.unwrap();
    let laptop = by_main.add("laptop", &fresh(2)).await.unwrap();
    let main = by_main
        .list()
        .await
        .unwrap()
        .into_iter()
        .find(|slot| slot.in_use)
        .unwrap();
    // The other one has removed `main` between our look at the slots and our delete: it is gone for everybody who looks
    // after the delete, so this loses it as the delete is under way.
    let object = |slot: &KeySlot| format!("backups/coffre/{}", crate::object::slot(0, &slot.name));
    store.inject(Request::Head, &object(&main), Fault::NotFound, 1);
    let error = by_main.remove("laptop", false).await.unwrap_err();
    store.lose(&object(&main)).await;
    assert!(matches!(error, KeysError::MadeAgain { .. }), "{error:?}");
    assert!(!store.names("").await.contains(&object(&laptop)));
    assert!(open(&store, Some(fresh(1))).await.is_ok());
}

#[tokio::test]
async fn credentials_that_may_not_delete_remove_nothing() {
    let store = vault_with(fresh(1)).await;
    let mut keys = keys(&store, fresh(1)).await.unwrap();
    keys.add("laptop", &fresh(2)).await.unwrap();
    store.inject(Request::Delete, "", Fault::Deny, 1);
    let error = keys.remove("laptop", false).await.unwrap_err();
    assert!(
        matches!(
            error,
            KeysError::Store {
                source: crate::StoreError::Denied { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(labels(&keys).await, ["laptop", "main"]);
}

#[tokio::test]
async fn a_key_that_is_added_while_another_host_rotates_is_not_called_added() {
    let store = vault_with(fresh(1)).await;
    let adding = keys(&store, fresh(1)).await.unwrap();
    let mut rotating = keys(&store, fresh(1)).await.unwrap();
    rotating.rotate(&Rotation::default()).await.unwrap();
    let error = adding.add("laptop", &fresh(2)).await.unwrap_err();
    assert!(matches!(error, KeysError::RotatedMeanwhile), "{error:?}");
}
