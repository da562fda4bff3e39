//! From forgotten to gone, one step at a time.

use super::*;

#[tokio::test]
async fn what_is_forgotten_is_purged_condemned_and_gone_and_what_is_kept_restores_after_each_step() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let first = rig.back_up(&vault, "web01", &(0..30).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &(100..130).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "db01", &(200..210).collect::<Vec<_>>()).await;
    let before = rig.packs().await;
    rig.forget(&vault, &first).await;
    assert_eq!(rig.assert_restores().await, 3);

    let report = rig.clean(&vault).await;
    assert_eq!(report.purged.len(), 1);
    assert_eq!(
        (report.purged[0].machine.as_str(), report.purged[0].point),
        ("web01", first.number)
    );
    assert_eq!(report.condemned.packs, u64::from(first.written.packs));
    assert_eq!((report.deleted.packs, rig.packs().await), (0, before));
    assert_eq!(report.waiting.len(), 1);
    assert!(report.waiting[0].waits_for.is_empty(), "{report:?}");
    assert_eq!(rig.assert_restores().await, 2);

    let report = rig.clean(&vault).await;
    assert_eq!(report.deleted.packs, u64::from(first.written.packs));
    assert_eq!(rig.packs().await, before - first.written.packs as usize);
    assert!(report.waiting.is_empty(), "{report:?}");
    assert!(rig.store.names("packs/00000001/00000000/").await.is_empty());
    assert!(rig.store.names("index/00000001/00000000/").await.is_empty());
    assert_eq!(rig.assert_restores().await, 2);

    let report = rig.clean(&vault).await;
    assert_eq!(
        (report.deleted, report.condemned),
        (Amount::default(), Amount::default())
    );
    assert_eq!(rig.assert_restores().await, 2);
}

#[tokio::test]
async fn a_forgotten_point_stays_until_its_time_is_over_by_the_stores_clock() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let point = rig.back_up(&vault, "web01", &[1, 2, 3]).await;
    rig.forget(&vault, &point).await;
    let plan = CleanPlan {
        force: true,
        ..CleanPlan::default()
    };
    rig.pass(13 * DAY);
    let report = vault.clean(&plan, &|_| {}).await.unwrap();
    assert_eq!((report.purged.len(), report.condemned.packs), (0, 0));
    vault.undelete(point.machine_number, point.number).await.unwrap();
    rig.pass(13 * DAY);
    assert!(vault.clean(&plan, &|_| {}).await.unwrap().purged.is_empty());
    rig.forget(&vault, &point).await;
    rig.pass(14 * DAY);
    assert_eq!(vault.clean(&plan, &|_| {}).await.unwrap().purged.len(), 1);
    assert!(vault.undelete(point.machine_number, point.number).await.is_err());
}

#[tokio::test]
async fn what_a_crashed_session_left_goes_and_what_is_young_stays_without_force() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &(0..40).collect::<Vec<_>>()).await;
    let writer = rig.begin(&vault, "web01", &[], None).await;
    draft(&vault, &writer, &(100..125).collect::<Vec<_>>()).await;
    writer.abort("test").await.unwrap();
    // A pack that no piece lists, and pieces that no point counts.
    let left = rig.store.names("packs/00000001/00000001/").await.len();
    assert_eq!(left, 3);
    let plan = CleanPlan {
        force: true,
        ..CleanPlan::default()
    };
    let young = vault
        .clean(
            &CleanPlan {
                force: false,
                ..plan.clone()
            },
            &|_| {},
        )
        .await;
    assert_eq!(young.unwrap().too_young.packs, 3);
    assert_eq!(rig.packs().await, 3 + 7);
    settle(&rig, &vault).await;
    assert_eq!(rig.packs().await, 7);
}

#[tokio::test]
async fn a_dry_run_says_what_would_go_and_writes_and_deletes_nothing() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let first = rig.back_up(&vault, "web01", &(0..30).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &(20..60).collect::<Vec<_>>()).await;
    rig.forget(&vault, &first).await;
    let plan = CleanPlan {
        dry_run: true,
        ..eager()
    };
    for _ in 0..2 {
        let names = rig.store.names("").await;
        let would = vault.clean(&plan, &|_| {}).await.unwrap();
        assert!(would.dry_run);
        assert_eq!(rig.store.names("").await, names);
        let did = rig.clean(&vault).await;
        assert_eq!((would.purged, would.condemned), (did.purged, did.condemned));
        assert_eq!(
            (would.deleted, would.repacked_chunks),
            (did.deleted, did.repacked_chunks)
        );
        assert_eq!(would.deleted_pieces, did.deleted_pieces);
    }
}

#[tokio::test]
async fn registers_and_the_log_are_never_deleted() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    for round in 0..3 {
        let point = rig.back_up(&vault, "web01", &[round * 10, round * 10 + 1]).await;
        rig.forget(&vault, &point).await;
    }
    rig.back_up(&vault, "web01", &[500]).await;
    let before = rig.store.names("").await;
    settle(&rig, &vault).await;
    let after = rig.store.names("").await;
    let gone = before.iter().filter(|name| !after.contains(name));
    for name in gone {
        assert!(name.starts_with("packs/") || name.starts_with("index/"), "{name}");
    }
}
