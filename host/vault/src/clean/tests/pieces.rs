//! The pieces of the index: few whatever the vault's age, and findable by number whatever a listing leaves out.

use super::*;
use crate::index;
use crate::session::CommitError;
use crate::testing::{Fault, Request};
use crate::verify::{ReadData, VerifyPlan};

#[tokio::test]
async fn small_pieces_are_merged_so_that_their_number_does_not_grow() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let mut most = 0;
    for round in 0..30 {
        rig.back_up(&vault, "web01", &[round * 3, round * 3 + 1]).await;
        rig.back_up(&vault, "db01", &[1000 + round * 3]).await;
        rig.clean(&vault).await;
        most = most.max(rig.store.names("index/").await.len());
    }
    assert!(most <= 40, "{most} pieces");
    assert_eq!(rig.assert_restores().await, 60);
    // Hidden or not.
    rig.store.hide("index/");
    assert_eq!(rig.assert_restores().await, 60);
}

#[tokio::test]
async fn pieces_that_no_point_counts_are_taken_over_before_anybody_needs_them() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let seeds: Vec<u32> = (0..20).collect();
    let aborted = rig.begin(&vault, "web01", &[], None).await;
    draft(&vault, &aborted, &seeds).await;
    aborted.abort("test").await.unwrap();
    rig.back_up(&vault, "web01", &seeds).await;
    rig.store.hide("index/");
    assert_eq!(rig.assert_restores().await, 1);
    rig.store.heal();
    rig.clean(&vault).await;
    assert!(rig.store.names("index/00000001/00000000/").await.is_empty());
    rig.store.hide("index/");
    assert_eq!(rig.assert_restores().await, 1);
}

#[tokio::test]
async fn what_a_purged_point_stored_and_others_need_is_found_although_listings_hide_it() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let seeds: Vec<u32> = (0..21).collect();
    let first = rig.back_up(&vault, "web01", &seeds).await;
    rig.back_up(&vault, "db01", &seeds).await;
    rig.forget(&vault, &first).await;
    // Hidden from the clean-up as well.
    rig.store.hide("index/00000001/");
    rig.clean(&vault).await;
    assert_eq!(rig.assert_restores().await, 1);
    rig.store.hide("index/");
    rig.clean(&vault).await;
    rig.clean(&vault).await;
    assert_eq!(rig.assert_restores().await, 1);
}

#[tokio::test]
async fn a_listing_that_hides_pieces_or_packs_deletes_nothing_that_is_needed() {
    for hidden in [
        "index/00000001/00000000",
        "index/00000001/00000001",
        "index/00000002",
        "index",
        "packs/00000001/00000000",
        "packs/00000001/00000001",
        "packs/00000002",
        "packs",
        "gclog",
        "sessions",
        "points",
        "machines",
    ] {
        let rig = Rig::new().await;
        let vault = rig.host().await;
        let first = rig.back_up(&vault, "web01", &(0..21).collect::<Vec<_>>()).await;
        rig.back_up(&vault, "web01", &(20..40).collect::<Vec<_>>()).await;
        rig.back_up(&vault, "db01", &(0..3).collect::<Vec<_>>()).await;
        rig.forget(&vault, &first).await;
        for step in 0..4 {
            if step != 1 {
                rig.store.hide(hidden);
            }
            // A host that has seen nothing, so that the lie is all it has.
            match rig.host().await.clean(&eager(), &|_| {}).await {
                Ok(_) | Err(CleanError::ChunkMissing(_) | CleanError::Gap { .. }) => {}
                Err(CleanError::Read(error)) if error.is_damage() => {}
                Err(other) => panic!("{hidden}: {other:?}"),
            }
            rig.store.heal();
            assert_eq!(rig.assert_restores().await, 2, "{hidden}");
        }
        settle(&rig, &vault).await;
        assert!(rig.store.names("packs/00000001/00000000/").await.is_empty(), "{hidden}");
    }
}

#[tokio::test]
async fn a_piece_that_the_store_refuses_to_delete_keeps_its_packs_and_is_not_written_again() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let first = rig.back_up(&vault, "web01", &(0..30).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &(28..50).collect::<Vec<_>>()).await;
    rig.forget(&vault, &first).await;
    let mut written = 0;
    for _ in 0..4 {
        rig.store
            .inject(Request::Delete, "index/00000001/00000000", Fault::Deny, 100);
        let report = rig.clean(&vault).await;
        assert!(!report.refused.is_empty());
        rig.store.heal();
        written += report.written_pieces;
        rig.assert_restores().await;
    }
    // Once for the purged session's, and once more without what has gone by then.
    assert!(written <= 3, "{written}");
    settle(&rig, &vault).await;
    assert!(rig.store.names("index/00000001/00000000/").await.is_empty());
}

#[tokio::test]
async fn a_resumed_job_finds_what_it_has_sent_although_a_clean_up_replaced_its_pieces() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "db01", &[900]).await;
    let seeds: Vec<u32> = (0..35).collect();
    let broken = rig.begin(&vault, "web01", &[], None).await;
    draft(&vault, &broken, &seeds).await;
    broken.abort("broke off").await.unwrap();
    let resumed = rig.begin(&rig.host().await, "web01", &[], Some(0)).await;
    let report = rig.clean(&vault).await;
    assert_eq!(report.condemned.packs, 0, "{report:?}");
    let drafted = draft(&vault, &resumed, &seeds).await;
    let point = rig.commit(&resumed, drafted).await;
    assert!(!matches!(point, Err(CommitError::PackMissing { .. })), "{point:?}");
    point.unwrap();
    rig.store.hide("index/");
    assert_eq!(rig.assert_restores().await, 2);
    rig.store.heal();
    settle(&rig, &vault).await;
}

/// What arrives when all that it lists is gone and forgotten: the piece of a session that was fenced long ago.
#[tokio::test]
async fn a_late_piece_that_lists_what_is_gone_is_no_damage_and_leaves_the_index() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    let seeds: Vec<u32> = (100..110).collect();
    let point = rig.back_up(&vault, "web01", &seeds).await;
    let folder = format!("index/{}/{}", point.machine_number.key(), point.number.key());
    let mut late = Vec::new();
    for piece in rig.store.names(&folder).await {
        late.push((piece.clone(), rig.store.bytes(&piece).await));
    }
    assert!(!late.is_empty());
    rig.forget(&vault, &point).await;
    settle(&rig, &vault).await;
    rig.back_up(&vault, "web01", &seeds).await;
    for (piece, bytes) in &late {
        rig.store.replace(piece, bytes.clone()).await;
    }

    // Everything is somewhere, and nobody misses the rest.
    let plan = VerifyPlan {
        read: ReadData::All,
        ..VerifyPlan::default()
    };
    let report = rig.host().await.verify(plan, &|_| {}).await.unwrap();
    assert_eq!(report.damage, Vec::new());
    rig.clean(&vault).await;
    assert_eq!(rig.store.names(&folder).await, Vec::<String>::new());
    let host = rig.host().await;
    index::sync(&host.inner).await.unwrap();
    let gone = |pack: &PackKey| (pack.machine, pack.session) == (point.machine_number, point.number);
    for seed in seeds {
        let places = host.inner.index.candidates(&host.hasher().id(&content(seed))).unwrap();
        assert!(places.iter().all(|found| !gone(&found.pack)), "{places:?}");
        assert!(!places.is_empty());
    }
    assert_eq!(rig.assert_restores().await, 2);
}

/// The pieces of a point, and a vault that the point, its packs, its pieces and all talk of them have left.
async fn gone_for_good(rig: &Rig, vault: &Vault, seeds: &[u32]) -> (Point, Vec<(String, bytes::Bytes)>) {
    rig.back_up(vault, "web01", &[900]).await;
    let point = rig.back_up(vault, "web01", seeds).await;
    let folder = format!("index/{}/{}", point.machine_number.key(), point.number.key());
    let mut pieces = Vec::new();
    for piece in rig.store.names(&folder).await {
        pieces.push((piece.clone(), rig.store.bytes(&piece).await));
    }
    rig.forget(vault, &point).await;
    settle(rig, vault).await;
    assert_eq!(vault.inner.log().await.unwrap().condemned().count(), 0);
    (point, pieces)
}

/// Whether this host would deduplicate against packs of the point.
async fn knows_packs_of(vault: &Vault, point: &Point, seed: u32) -> bool {
    index::sync(&vault.inner).await.unwrap();
    let places = vault
        .inner
        .index
        .candidates(&vault.hasher().id(&content(seed)))
        .unwrap();
    let of_point = |pack: &PackKey| (pack.machine, pack.session) == (point.machine_number, point.number);
    let relied_on = |pack: &PackKey| of_point(pack) && !vault.inner.index.is_condemned(pack);
    places.iter().any(|found| relied_on(&found.pack))
}

/// Once a piece is read its records stay on the host, also when the piece has left the vault again.
#[tokio::test]
async fn who_has_read_a_piece_that_lists_what_is_gone_learns_so_from_the_log() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let seeds: Vec<u32> = (100..110).collect();
    let (point, late) = gone_for_good(&rig, &vault, &seeds).await;
    for (piece, bytes) in &late {
        rig.store.replace(piece, bytes.clone()).await;
    }
    let reader = rig.host().await;
    assert!(knows_packs_of(&reader, &point, seeds[0]).await);
    // Another host cleans up, and one more time, so that the log's newest checkpoint names nothing.
    rig.clean(&vault).await;
    rig.clean(&vault).await;
    assert_eq!(vault.inner.log().await.unwrap().condemned().count(), 0);
    let reader = rig.beside(&reader).await;
    assert!(!knows_packs_of(&reader, &point, seeds[0]).await);
    rig.back_up(&reader, "db01", &seeds).await;
    assert_eq!(rig.assert_restores().await, 2);
}

/// A host that is new reads the newest checkpoint and what follows, and every piece that there is.
#[tokio::test]
async fn a_checkpoint_names_what_is_gone_as_long_as_a_piece_lists_it() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let seeds: Vec<u32> = (100..110).collect();
    let (point, late) = gone_for_good(&rig, &vault, &seeds).await;
    for (piece, bytes) in &late {
        rig.store.replace(piece, bytes.clone()).await;
    }
    rig.store.inject(Request::Delete, &late[0].0, Fault::Deny, usize::MAX);
    rig.clean(&vault).await;
    let report = rig.clean(&vault).await;
    assert!(rig.store.names("index/").await.contains(&late[0].0));
    assert_eq!(report.waiting.len(), 0, "{report:?}");
    let fresh = rig.host().await;
    assert!(!knows_packs_of(&fresh, &point, seeds[0]).await);
    rig.back_up(&fresh, "db01", &seeds).await;
    // Then it need not be said any more.
    rig.store.heal();
    settle(&rig, &vault).await;
    assert_eq!(vault.inner.log().await.unwrap().condemned().count(), 0);
    assert!(!rig.store.names("index/").await.contains(&late[0].0));
    assert_eq!(rig.assert_restores().await, 2);
}

/// The session of such a piece is not over: nobody replaces it, and what it lists may be others' packs that are gone.
#[tokio::test]
async fn a_checkpoint_names_what_is_gone_as_long_as_a_piece_of_a_running_session_lists_it() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let seeds: Vec<u32> = (100..110).collect();
    let aborted = rig.begin(&vault, "web01", &[], None).await;
    let drafted = draft(&vault, &aborted, &seeds).await;
    drop(drafted);
    rig.commit(&aborted, PointDraft::default()).await.unwrap();
    drop(aborted);
    let machine = vault.machine("web01").await.unwrap().unwrap();
    let point = vault.points(machine).await.unwrap().remove(0);
    let running = rig.begin(&vault, "db01", &[], None).await;
    let mut listings = Vec::new();
    for piece in 0..point.written.index_pieces {
        let key = PackKey {
            machine,
            session: point.number,
            number: piece,
        };
        listings.extend(index::read_piece(&vault.inner, key).await.unwrap().unwrap());
    }
    running.relist(listings).await.unwrap();
    for pack in rig
        .store
        .names(&format!("packs/{}/{}", machine.key(), point.number.key()))
        .await
    {
        rig.store.lose(&pack).await;
    }
    rig.forget(&vault, &point).await;
    rig.clean(&vault).await;
    rig.clean(&vault).await;
    let fresh = rig.host().await;
    assert!(!knows_packs_of(&fresh, &point, seeds[0]).await);
    running.abort("test").await.unwrap();
    settle(&rig, &vault).await;
    assert_eq!(vault.inner.log().await.unwrap().condemned().count(), 0);
}

/// A stale listing shows the piece that the clean-up before has replaced, and the new piece goes as well.
#[tokio::test]
async fn what_a_piece_lists_that_is_gone_is_listed_out_of_the_one_that_replaced_it() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let all = rig.back_up(&vault, "db01", &(0..28).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &(0..7).collect::<Vec<_>>()).await;
    let second = rig.back_up(&vault, "web02", &(14..21).collect::<Vec<_>>()).await;
    let third = rig.back_up(&vault, "web03", &(21..28).collect::<Vec<_>>()).await;
    rig.forget(&vault, &all).await;
    rig.clean(&vault).await;
    rig.forget(&vault, &second).await;
    assert!(rig.clean(&vault).await.deleted.packs > 0);
    let replaced = rig.store.names("index/00000000/").await;
    let mut bytes = Vec::new();
    for piece in &replaced {
        bytes.push(rig.store.bytes(piece).await);
    }
    rig.forget(&vault, &third).await;
    assert!(rig.clean(&vault).await.deleted.packs > 0);

    for (piece, bytes) in replaced.iter().zip(bytes) {
        assert!(!rig.store.names("index/").await.contains(piece));
        rig.store.replace(piece, bytes).await;
        rig.store.inject(Request::Get, piece, Fault::NotFound, usize::MAX);
    }
    assert!(rig.clean(&vault).await.deleted.packs > 0);
    rig.store.heal();
    assert_eq!(rig.store.names(&replaced[0]).await, Vec::<String>::new());
    assert_eq!(rig.assert_restores().await, 1);
}
