//! Packs of which little is needed are emptied; what is damaged stays, and is named.

use super::*;
use crate::gclog::quarantine;
use crate::testing::{Fault, Request};

/// Of 42 chunks in six packs, the kept point needs one of each pack's seven.
async fn sparse(rig: &Rig, vault: &Vault) -> (Point, Point) {
    let first = rig.back_up(vault, "web01", &(0..42).collect::<Vec<_>>()).await;
    let kept = rig.back_up(vault, "web01", &[0, 7, 14, 21, 28, 35]).await;
    rig.forget(vault, &first).await;
    (first, kept)
}

#[tokio::test]
async fn packs_of_which_little_is_needed_are_emptied_and_go() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let (first, _) = sparse(&rig, &vault).await;
    rig.clean(&vault).await;
    let report = rig.clean(&vault).await;
    assert_eq!(report.repacked_chunks, 6, "{report:?}");
    assert_eq!(report.deleted.packs, u64::from(first.written.packs));
    assert!(rig.store.names("packs/00000001/00000000/").await.is_empty());
    assert_eq!(rig.store.names("packs/00000000/").await.len(), 1);
    assert_eq!(rig.assert_restores().await, 1);
    settle(&rig, &vault).await;
}

#[tokio::test]
async fn what_was_moved_is_found_although_listings_hide_it() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    sparse(&rig, &vault).await;
    rig.clean(&vault).await;
    rig.clean(&vault).await;
    rig.store.hide("index/00000000/");
    assert_eq!(rig.assert_restores().await, 1);
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 1);
}

#[tokio::test]
async fn a_host_that_knew_the_old_packs_reads_and_writes_on() {
    let rig = Rig::new().await;
    let (vault, old) = (rig.host().await, rig.host().await);
    let (_, kept) = sparse(&rig, &vault).await;
    read_all(&old, &kept).await;
    rig.clean(&vault).await;
    rig.clean(&vault).await;
    read_all(&old, &kept).await;
    rig.back_up(&old, "db01", &(0..42).collect::<Vec<_>>()).await;
    assert_eq!(rig.assert_restores().await, 2);
    settle(&rig, &vault).await;
}

#[tokio::test]
async fn a_damaged_chunk_is_left_where_it_is_with_its_pack_and_named() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    sparse(&rig, &vault).await;
    rig.clean(&vault).await;
    let damaged = "packs/00000001/00000000/00000000";
    rig.store.flip(damaged, 60).await;
    for _ in 0..3 {
        let report = vault.clean(&eager(), &|_| {}).await.unwrap();
        let packs: Vec<&str> = report.damaged.iter().map(|damaged| damaged.pack.as_str()).collect();
        assert_eq!(packs, ["00000001/00000000/00000000"], "{report:?}");
        assert!(
            rig.store
                .names("packs/00000001/00000000/")
                .await
                .contains(&damaged.to_owned())
        );
    }
    // Everything else has gone its way.
    assert_eq!(rig.store.names("packs/00000001/00000000/").await.len(), 1);
    // The bytes come back: so does the point.
    rig.store.flip(damaged, 60).await;
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 1);
    assert!(rig.store.names("packs/00000001/00000000/").await.is_empty());
}

#[tokio::test]
async fn a_quarantined_pack_of_which_all_has_copies_goes() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let seeds: Vec<u32> = (0..7).collect();
    let point = rig.back_up(&vault, "web01", &seeds).await;
    let packs: Vec<PackKey> = (0..point.written.packs)
        .map(|number| PackKey {
            machine: point.machine_number,
            session: point.number,
            number,
        })
        .collect();
    quarantine(vault.inner.records(), &packs, "test").await.unwrap();
    // With nothing else to be had, it stays.
    rig.clean(&vault).await;
    rig.clean(&vault).await;
    assert_eq!(rig.assert_restores().await, 1);
    // The next backup stores it again.
    rig.back_up(&vault, "web01", &seeds).await;
    settle(&rig, &vault).await;
    assert!(rig.store.names("packs/00000001/00000000/").await.is_empty());
    assert_eq!(rig.assert_restores().await, 2);
}

#[tokio::test]
async fn a_copy_that_is_condemned_or_gone_by_then_lets_nothing_go() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    // Two machines that could not see each other have stored the same.
    let (one, two) = (
        rig.begin(&vault, "web01", &[], None).await,
        rig.begin(&rig.host().await, "db01", &[], None).await,
    );
    let seeds: Vec<u32> = (0..7).collect();
    let other_host = rig.host().await;
    let drafts = [
        draft(&vault, &one, &seeds).await,
        draft(&other_host, &two, &seeds).await,
    ];
    let [first, second] = drafts;
    rig.commit(&one, first).await.unwrap();
    rig.commit(&two, second).await.unwrap();
    let doubles = rig.packs().await;
    let report = rig.clean(&vault).await;
    assert_eq!(report.condemned.packs as usize, doubles / 2, "{report:?}");
    // Before the doubles go, what is left of the first is quarantined.
    let left = PackKey {
        machine: MachineNumber(1),
        session: SessionNumber(0),
        number: 0,
    };
    quarantine(vault.inner.records(), &[left], "test").await.unwrap();
    let report = rig.clean(&vault).await;
    assert!(report.repacked_chunks > 0, "{report:?}");
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 2);
}

#[tokio::test]
async fn the_commit_of_what_was_moved_may_lose_its_answer() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    sparse(&rig, &vault).await;
    rig.clean(&vault).await;
    rig.store.inject(Request::Put, "points/00000000/", Fault::LoseAnswer, 1);
    assert_eq!(rig.clean(&vault).await.repacked_chunks, 6);
    settle(&rig, &vault).await;
}
