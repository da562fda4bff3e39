//! Rotations: whole ones, ones that break off, and two at once.

use super::keys::{fresh, keys, labels, vault_with};
use super::*;
use crate::read::ReadError;
use crate::session::BeginError;

fn with(label: &str, credential: Credential) -> Rotation {
    Rotation {
        keys: vec![(label.to_owned(), credential)],
        ..Rotation::default()
    }
}

fn dropping() -> Rotation {
    Rotation {
        drop_others: true,
        ..Rotation::default()
    }
}

#[tokio::test]
async fn a_rotated_vault_opens_what_came_before_and_finds_its_chunks() {
    let store = vault_with(fresh(1)).await;
    let vault = open(&store, Some(fresh(1))).await.unwrap();
    vault.machine_or_create("web01").await.unwrap();
    let chunk_id = vault.hasher().id(b"x");
    for (round, machine) in (1..=3).zip(["a", "b", "c"]) {
        let mut keys = keys(&store, fresh(1)).await.unwrap();
        let rotated = keys.rotate(&Rotation::default()).await.unwrap();
        assert_eq!(rotated.generation, round);
        assert_eq!(
            (keys.generation(), rotated.carried.as_slice()),
            (round, ["main".to_owned()].as_slice())
        );
        let vault = open(&store, Some(fresh(1))).await.unwrap();
        assert_eq!(vault.hasher().id(b"x"), chunk_id);
        vault.machine_or_create(machine).await.unwrap();
    }
    let vault = open(&store, Some(fresh(1))).await.unwrap();
    let names: Vec<String> = vault
        .machines()
        .await
        .unwrap()
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    assert_eq!(names, ["web01", "a", "b", "c"]);
}

#[tokio::test]
async fn keys_that_are_not_carried_over_are_named_before_anything_happens() {
    let store = vault_with(fresh(1)).await;
    let mut keys = keys(&store, fresh(1)).await.unwrap();
    keys.add("laptop", &fresh(2)).await.unwrap();
    keys.add("old words", &passphrase("correct horse")).await.unwrap();
    let before = store.names("").await;
    let error = keys.rotate(&with("laptop", fresh(3))).await.unwrap_err();
    assert!(
        matches!(&error, KeysError::WouldDrop { labels } if labels == &["old words"]),
        "{error:?}"
    );
    assert_eq!(store.names("").await, before);

    let rotation = Rotation {
        drop_others: true,
        ..with("laptop", fresh(3))
    };
    let rotated = keys.rotate(&rotation).await.unwrap();
    assert_eq!(rotated.carried, ["main", "laptop"]);
    assert_eq!(rotated.dropped, ["old words"]);
    assert!(rotated.added_meanwhile.is_empty());
    assert_eq!(labels(&keys).await, ["laptop", "main"]);
    for credential in [fresh(1), fresh(3)] {
        assert!(open(&store, Some(credential)).await.is_ok());
    }
    for credential in [fresh(2), passphrase("correct horse")] {
        let error = open(&store, Some(credential)).await.unwrap_err();
        assert!(
            matches!(error, OpenError::LeftBehind { opens: 0, newest: 1 }),
            "{error:?}"
        );
    }
    assert!(matches!(
        open(&store, Some(fresh(9))).await,
        Err(OpenError::WrongKey { .. })
    ));
}

#[tokio::test]
async fn one_credential_is_not_given_twice_and_no_label_either() {
    let store = vault_with(fresh(1)).await;
    let mut keys = keys(&store, fresh(1)).await.unwrap();
    let error = keys.rotate(&with("other", fresh(1))).await.unwrap_err();
    assert!(matches!(error, KeysError::OpensAlready { .. }), "{error:?}");
    let error = keys.rotate(&with("main", fresh(2))).await.unwrap_err();
    assert!(matches!(error, KeysError::LabelTaken { .. }), "{error:?}");
    let error = keys.rotate(&with("weak", secret(0))).await.unwrap_err();
    assert!(matches!(error, KeysError::Key { .. }), "{error:?}");
    assert_eq!(keys.generation(), 0);
}

/// The store breaks after the first `done` puts of a rotation, in every way that a store can.
#[tokio::test]
async fn a_rotation_that_breaks_off_anywhere_leaves_a_vault_that_the_key_in_use_opens() {
    for fault in [Fault::Refuse, Fault::LoseAnswer, Fault::Deny] {
        for done in 0..4 {
            let store = vault_with(fresh(1)).await;
            let before = open(&store, Some(fresh(1))).await.unwrap();
            before.machine_or_create("web01").await.unwrap();
            let mut rotating = keys(&store, fresh(1)).await.unwrap();
            let objects = ["backups/coffre/keys/", "backups/coffre/generations/"];
            if done < 2 {
                store.inject_after(Request::Put, objects[0], done, fault, 1000);
            } else {
                store.inject(Request::Put, objects[1], fault, if done == 2 { 1000 } else { 1 });
            }
            // The process dies here, with whatever it had done.
            let outcome = rotating.rotate(&with("laptop", fresh(2))).await;
            store.heal();
            let label = format!("{fault:?} after {done}: {outcome:?}");
            let vault = open(&store, Some(fresh(1))).await.expect(&label);
            assert_eq!(vault.machines().await.unwrap().len(), 1, "{label}");
            if outcome.is_ok() {
                assert!(open(&store, Some(fresh(2))).await.is_ok(), "{label}");
            }
            // And the next one succeeds, whatever lies there.
            let mut again = keys(&store, fresh(1)).await.expect(&label);
            let rotated = again.rotate(&dropping()).await.expect(&label);
            assert_eq!(again.generation(), rotated.generation);
            let vault = open(&store, Some(fresh(1))).await.expect(&label);
            assert_eq!(vault.machines().await.unwrap().len(), 1, "{label}");
        }
    }
}

#[tokio::test]
async fn of_two_rotations_at_once_one_is_the_vaults_and_the_others_slots_open_nothing() {
    for winner in 0..2 {
        let store = vault_with(fresh(1)).await;
        keys(&store, fresh(1)).await.unwrap().add("b", &fresh(2)).await.unwrap();
        let mut first = keys(&store, fresh(1)).await.unwrap();
        let mut second = keys(&store, fresh(2)).await.unwrap();
        // Both have written all their slots when the first of them creates the generation: the other one's create is held
        // up by the store until then.
        let with_third = |seed| Rotation {
            drop_others: true,
            ..with("third", fresh(seed))
        };
        let (won, lost, credential, other) = if winner == 0 {
            (&mut first, &mut second, fresh(1), fresh(2))
        } else {
            (&mut second, &mut first, fresh(2), fresh(1))
        };
        store.inject(Request::Put, "backups/coffre/generations/", Fault::Deny, 1);
        let broken = lost.rotate(&with_third(3)).await.unwrap_err();
        assert!(matches!(broken, KeysError::Unknown { .. }), "{broken:?}");
        won.rotate(&with_third(4)).await.unwrap();
        let late = lost.rotate(&with_third(5)).await.unwrap_err();
        assert!(matches!(late, KeysError::RotatedMeanwhile), "{late:?}");

        let vault = open(&store, Some(credential.clone())).await.unwrap();
        assert_eq!(vault.machine_or_create("web01").await.unwrap(), MachineNumber(1));
        assert!(open(&store, Some(fresh(4))).await.is_ok());
        // The loser's key opened the slots that it had written, and they are nobody's.
        for left in [other, fresh(3)] {
            let error = open(&store, Some(left)).await.unwrap_err();
            assert!(
                matches!(error, OpenError::LeftBehind { .. } | OpenError::WrongKey { .. }),
                "{error:?}"
            );
        }
        let listed = keys(&store, credential).await.unwrap().list().await.unwrap();
        let foreign = listed
            .iter()
            .filter(|slot| matches!(slot.state, SlotState::Foreign { .. }));
        assert_eq!((listed.len(), foreign.count()), (4, 2));
    }
}

#[tokio::test]
async fn a_key_that_opens_only_what_a_beaten_rotation_left_can_be_added() {
    let store = vault_with(fresh(1)).await;
    let mut beaten = keys(&store, fresh(1)).await.unwrap();
    store.inject(Request::Put, "backups/coffre/generations/", Fault::Deny, 1);
    beaten.rotate(&with("laptop", fresh(2))).await.unwrap_err();
    let mut keys = keys(&store, fresh(1)).await.unwrap();
    keys.rotate(&Rotation::default()).await.unwrap();
    keys.add("laptop", &fresh(2)).await.unwrap();
    assert!(open(&store, Some(fresh(2))).await.is_ok());
}

#[tokio::test]
async fn many_rotations_at_once_with_one_key_leave_a_vault_that_it_opens() {
    let store = vault_with(fresh(1)).await;
    let rotations = futures::future::join_all((0..6).map(|_| async {
        let mut keys = keys(&store, fresh(1)).await.unwrap();
        tokio::task::yield_now().await;
        keys.rotate(&Rotation::default()).await
    }));
    let outcomes = rotations.await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(won >= 1, "{outcomes:?}");
    for lost in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(matches!(lost, KeysError::RotatedMeanwhile), "{lost:?}");
    }
    let vault = open(&store, Some(fresh(1))).await.unwrap();
    vault.machine_or_create("web01").await.unwrap();
    let again = keys(&store, fresh(1)).await.unwrap();
    assert_eq!(again.generation() as usize, won);
}

#[tokio::test]
async fn a_key_that_was_added_while_the_rotation_ran_is_named() {
    let store = vault_with(fresh(1)).await;
    let mut rotating = keys(&store, fresh(1)).await.unwrap();
    keys(&store, fresh(1))
        .await
        .unwrap()
        .add("late", &fresh(2))
        .await
        .unwrap();
    // The rotation's first listing does not show it yet, the second does.
    let late = late_slot(&store).await;
    store.hide_once(&late);
    let rotated = rotating.rotate(&Rotation::default()).await.unwrap();
    assert_eq!(rotated.added_meanwhile, ["late"]);
    assert_eq!(rotated.dropped, ["late"]);
}

async fn late_slot(store: &Arc<FaultStore>) -> String {
    let keys = keys(store, fresh(1)).await.unwrap();
    let listed = keys.list().await.unwrap();
    let late = listed.iter().find(|slot| slot.label() == Some("late")).unwrap();
    format!("backups/coffre/{}", crate::object::slot(0, &late.name))
}

#[tokio::test]
async fn a_host_that_has_the_vault_open_goes_on_and_says_what_it_cannot_read() {
    let store = vault_with(fresh(1)).await;
    let before = open(&store, Some(fresh(1))).await.unwrap();
    keys(&store, fresh(1))
        .await
        .unwrap()
        .rotate(&Rotation::default())
        .await
        .unwrap();
    assert_eq!(before.machine_or_create("web01").await.unwrap(), MachineNumber(1));
    let after = open(&store, Some(fresh(1))).await.unwrap();
    // What the old key sealed is read with the new one, and not the other way round.
    assert_eq!(after.machine_or_create("db01").await.unwrap(), MachineNumber(2));
    let error = before.machines().await.unwrap_err();
    assert!(matches!(error, ReadError::KeyRotated { .. }), "{error:?}");
    assert!(error.may_help_to_try_again() && !error.is_damage());
    assert_eq!(after.machines().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_header_with_an_impossible_generation_is_damage_and_no_rotation() {
    let store = vault_with(fresh(1)).await;
    let vault = open(&store, Some(fresh(1))).await.unwrap();
    vault.machine_or_create("web01").await.unwrap();
    // The header's key generation stands at byte 12.
    store.flip("backups/coffre/machines/00000001", 12).await;
    let error = vault.machine_or_create("db01").await.unwrap_err();
    assert!(
        matches!(&error, BeginError::Read(read) if read.is_damage()),
        "{error:?}"
    );
}

#[tokio::test]
async fn damaged_records_of_generations_lose_no_key() {
    let store = vault_with(fresh(1)).await;
    open(&store, Some(fresh(1)))
        .await
        .unwrap()
        .machine_or_create("web01")
        .await
        .unwrap();
    for _ in 0..2 {
        let mut keys = keys(&store, fresh(1)).await.unwrap();
        keys.rotate(&Rotation::default()).await.unwrap();
    }
    for object in store.names("backups/coffre/generations/").await {
        let whole = store.bytes(&object).await;
        for at in [0, 30, whole.len() / 2, whole.len() - 10] {
            store.flip(&object, at).await;
            let vault = open(&store, Some(fresh(1))).await.unwrap_or_else(|error| {
                panic!("{object} flipped at {at}: {error:?}");
            });
            assert_eq!(vault.machines().await.unwrap().len(), 1, "{object} flipped at {at}");
            store.replace(&object, whole.clone()).await;
        }
    }
}

#[tokio::test]
async fn a_planted_generation_is_told_from_a_rotation() {
    let store = vault_with(fresh(1)).await;
    // Whoever can write, and has a vault and key of their own, rotates theirs and copies what that made.
    let theirs = vault_with(fresh(9)).await;
    keys(&theirs, fresh(9))
        .await
        .unwrap()
        .rotate(&Rotation::default())
        .await
        .unwrap();
    for object in theirs.names("backups/coffre/generations/").await {
        store.replace(&object, theirs.bytes(&object).await).await;
    }
    for object in theirs.names("backups/coffre/keys/00000001/").await {
        store.replace(&object, theirs.bytes(&object).await).await;
    }
    for credential in [fresh(1), fresh(9)] {
        let error = open(&store, Some(credential)).await.unwrap_err();
        assert!(
            matches!(error, OpenError::Damaged { .. } | OpenError::WrongKey { .. }),
            "{error:?}"
        );
    }
}
