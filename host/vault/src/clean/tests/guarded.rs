//! A clock or a store that lies stops the clean-up with an error that says what contradicts what, and nothing is deleted.

use super::*;
use crate::gclog::{self, Appended, GcWhat};
use crate::object::ObjectType;
use crate::read::ReadError;
use crate::testing::{Fault, Request};

/// A vault whose next clean-up would delete and condemn: one forgotten point is condemned, another one not yet.
async fn ready_to_delete() -> (Rig, Vault) {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &(0..70).collect::<Vec<_>>()).await;
    for seeds in [100..110, 200..205] {
        let point = rig.back_up(&vault, "web01", &seeds.collect::<Vec<_>>()).await;
        rig.pass(4 * DAY);
        rig.back_up(&vault, "db01", &[900]).await;
        rig.forget(&vault, &point).await;
        if point.number == SessionNumber(1) {
            let report = vault.clean(&careful(), &|_| {}).await.unwrap();
            assert!(report.condemned.packs > 0);
        }
    }
    (rig, vault)
}

async fn stops(rig: &Rig, vault: &Vault, plan: &CleanPlan) -> CleanError {
    let before = rig.store.names("").await;
    let log = gclog_length(rig).await;
    let error = vault.clean(plan, &|_| {}).await.unwrap_err();
    let after = rig.store.names("").await;
    assert!(before.iter().all(|name| after.contains(name)), "something was deleted");
    assert_eq!(gclog_length(rig).await, log, "something was condemned");
    error
}

async fn gclog_length(rig: &Rig) -> usize {
    rig.store.names("gclog/").await.len()
}

#[tokio::test]
async fn without_a_lie_it_deletes_and_condemns() {
    let (rig, vault) = ready_to_delete().await;
    let report = vault.clean(&careful(), &|_| {}).await.unwrap();
    assert!(report.deleted.packs > 0 && report.condemned.packs > 0, "{report:?}");
    rig.assert_restores().await;
}

#[tokio::test]
async fn a_clock_that_is_years_wrong_deletes_nothing_even_by_force() {
    for days in [-3650, -2, 2, 3650] {
        let (rig, vault) = ready_to_delete().await;
        *rig.clock.0.lock() += SignedDuration::from_hours(24 * days);
        for plan in [careful(), eager()] {
            let error = stops(&rig, &vault, &plan).await;
            assert!(matches!(error, CleanError::Clocks { .. }), "{days}: {error:?}");
            assert!(!error.force_helps());
        }
    }
}

#[tokio::test]
async fn a_store_and_a_host_that_are_years_ahead_together_delete_nothing() {
    let (rig, vault) = ready_to_delete().await;
    rig.pass(3650 * DAY);
    let error = stops(&rig, &vault, &careful()).await;
    assert!(
        matches!(error, CleanError::Idle { .. }) && error.force_helps(),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_vault_that_nobody_wrote_to_for_a_month_wants_force() {
    let (rig, vault) = ready_to_delete().await;
    rig.pass(29 * DAY);
    vault.clean(&careful(), &|_| {}).await.unwrap();
    rig.pass(2 * DAY);
    assert!(matches!(stops(&rig, &vault, &careful()).await, CleanError::Idle { .. }));
    vault.clean(&eager(), &|_| {}).await.unwrap();
}

#[tokio::test]
async fn a_store_and_a_host_that_are_years_behind_together_delete_nothing() {
    let (rig, vault) = ready_to_delete().await;
    let point = "points/00000002/00000001";
    assert!(rig.store.names(point).await.len() == 1);
    rig.store.date_ahead(point, 3650 * DAY);
    let error = stops(&rig, &vault, &careful()).await;
    assert!(matches!(error, CleanError::Future { .. }), "{error:?}");
}

#[tokio::test]
async fn a_number_that_is_missing_in_a_register_stops_it_even_by_force() {
    for lost in ["gclog/00000001", "sessions/00000001/00000002", "machines/00000001"] {
        let (rig, vault) = ready_to_delete().await;
        // So that the checkpoint does not stand between, a session of everybody's after it.
        rig.back_up(&vault, "web01", &[7]).await;
        let checkpoint = "gclog/00000001";
        if lost == checkpoint {
            let log = gclog::read(vault.inner.records()).await.unwrap();
            let packs = Vec::new();
            let reason = String::new();
            let appended = log
                .append(vault.inner.records(), GcWhat::Condemn { packs, reason })
                .await;
            assert_eq!(appended.unwrap(), Appended::Number(2));
        }
        rig.store.lose(lost).await;
        let error = stops(&rig, &vault, &eager()).await;
        match error {
            CleanError::Gap { missing, .. } => assert_eq!(missing, lost),
            CleanError::Read(error) => assert!(error.is_damage() && lost == checkpoint, "{lost}: {error:?}"),
            other => panic!("{lost}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_last_session_lost_with_its_point_is_noticed_by_its_packs() {
    let (rig, vault) = ready_to_delete().await;
    rig.back_up(&vault, "web01", &[7, 8]).await;
    rig.store.lose("sessions/00000001/00000003").await;
    rig.store.lose("points/00000001/00000003").await;
    let error = stops(&rig, &vault, &eager()).await;
    assert!(
        matches!(&error, CleanError::Gap { missing, .. } if missing == "sessions/00000001/00000003"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_listing_that_fails_stops_it() {
    for folder in ["gclog", "machines", "sessions", "points", "packs", "index"] {
        let (rig, vault) = ready_to_delete().await;
        rig.store.inject(Request::List, folder, Fault::Refuse, 1000);
        let error = stops(&rig, &vault, &eager()).await;
        assert!(
            matches!(error, CleanError::Read(_) | CleanError::Store(_)),
            "{folder}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_it_and_is_named() {
    for object in [
        "gclog/00000001",
        "sessions/00000001/00000003",
        "points/00000001/00000000",
        "points/00000001/00000002",
    ] {
        let (rig, vault) = ready_to_delete().await;
        let _undecided = rig.begin(&vault, "web01", &[], None).await;
        if object == "points/00000001/00000002" {
            // It is forgotten, and would be purged now.
            vault.undelete(MachineNumber(1), SessionNumber(2)).await.unwrap();
        }
        rig.store.flip(object, 70).await;
        let named = match stops(&rig, &vault, &eager()).await {
            CleanError::Read(ReadError::Damaged { object: named, .. }) => named,
            CleanError::UnreadablePoint { what, .. } | CleanError::UnreadableSession { what, .. } => what,
            other => panic!("{object}: {other:?}"),
        };
        assert!(named.contains(object), "{object}: {named}");
    }
}

#[tokio::test]
async fn a_kind_of_record_that_is_not_known_stops_it() {
    let (rig, vault) = ready_to_delete().await;
    let bless = serde_json::json!({ "at": "2026-01-01T00:00:00Z", "checkpoint": 1, "kind": "bless" });
    let object = "gclog/00000002";
    vault
        .inner
        .records()
        .create(ObjectType::GcLog, object, &bless)
        .await
        .unwrap();
    let error = stops(&rig, &vault, &eager()).await;
    assert!(matches!(error, CleanError::Read(ReadError::Newer { .. })), "{error:?}");
}

#[tokio::test]
async fn a_point_that_the_checkpoint_knows_and_that_is_gone_stops_it() {
    let (rig, vault) = ready_to_delete().await;
    rig.store.lose("points/00000001/00000000").await;
    let error = stops(&rig, &vault, &eager()).await;
    assert!(
        matches!(&error, CleanError::PointVanished { machine, point } if machine == "web01" && point.0 == 0),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_chunk_that_is_needed_and_nowhere_stops_it() {
    let (rig, vault) = ready_to_delete().await;
    let needed = rig.store.names("packs/00000001/00000000/").await;
    rig.store.lose(&needed[0]).await;
    let error = stops(&rig, &vault, &eager()).await;
    assert!(
        matches!(
            error,
            CleanError::ChunkMissing(_) | CleanError::Read(ReadError::ChunkMissing(_) | ReadError::PackMissing(_))
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn much_at_once_wants_force() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let first = rig.back_up(&vault, "web01", &(0..30).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &(100..150).collect::<Vec<_>>()).await;
    rig.pass(4 * DAY);
    rig.forget(&vault, &first).await;
    let error = stops(&rig, &vault, &careful()).await;
    assert!(
        matches!(
            error,
            CleanError::TooMuch {
                dead_percent: 30..=45,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.force_helps());
    assert!(vault.clean(&eager(), &|_| {}).await.unwrap().condemned.packs > 0);
}
