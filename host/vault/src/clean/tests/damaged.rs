//! Records that are damaged: none of them stops the clean-up for ever, and none of them costs a point that can be read.

use super::*;
use crate::fate::{self, Purge};
use crate::gclog;
use crate::read::ReadError;
use crate::register;
use crate::repair::RepairError;
use crate::testing::{Fault, Request};

const WEB01: MachineNumber = MachineNumber(1);
const WEEKS: Duration = Duration::from_hours(14 * 24);

/// With two weeks to undelete.
fn patient() -> CleanPlan {
    CleanPlan {
        undelete_for: WEEKS,
        ..eager()
    }
}

async fn stops(rig: &Rig, vault: &Vault, plan: &CleanPlan) -> CleanError {
    let (packs, log) = (rig.packs().await, rig.store.names("gclog/").await);
    let error = vault.clean(plan, &|_| {}).await.unwrap_err();
    assert_eq!((rig.packs().await, rig.store.names("gclog/").await), (packs, log));
    error
}

#[tokio::test]
async fn a_point_whose_record_is_damaged_can_be_forgotten_and_its_purge_lets_the_clean_up_go_on() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let damaged = rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &(15..30).collect::<Vec<_>>()).await;
    rig.store.flip("points/00000001/00000000", 70).await;
    let error = stops(&rig, &vault, &patient()).await;
    assert!(
        matches!(&error, CleanError::UnreadablePoint { machine, point, purged_from: None, what }
            if machine == "web01" && point.0 == 0 && what.contains("points/00000001/00000000")),
        "{error:?}"
    );

    rig.forget(&vault, &damaged).await;
    rig.pass(WEEKS - DAY);
    rig.back_up(&vault, "web01", &[40]).await;
    let error = stops(&rig, &vault, &patient()).await;
    let CleanError::UnreadablePoint {
        purged_from: Some(from),
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    rig.pass(DAY);
    assert!(from <= vault.inner.records().now());

    // A dry run says what would be.
    let plan = CleanPlan {
        dry_run: true,
        ..patient()
    };
    let report = vault.clean(&plan, &|_| {}).await.unwrap();
    assert_eq!((report.purged.len(), report.condemned.packs > 0), (1, true));

    let report = vault.clean(&patient(), &|_| {}).await.unwrap();
    assert_eq!(report.purged.len(), 1);
    assert!(report.condemned.packs > 0, "{report:?}");
    let packs = rig.packs().await;
    settle(&rig, &vault).await;
    assert!(rig.packs().await < packs);
    assert_eq!(rig.assert_restores().await, 2);
}

#[tokio::test]
async fn a_purged_point_needs_no_record() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let purged = rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &[40]).await;
    rig.forget(&vault, &purged).await;
    let seen = fate::read(vault.inner.records(), WEB01, purged.number).await.unwrap();
    let done = fate::purge(vault.inner.records(), WEB01, purged.number, &seen).await;
    assert_eq!(done.unwrap(), Purge::Purged);
    rig.store.flip("points/00000001/00000000", 70).await;
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 1);
    assert!(rig.store.names("packs/00000001/00000000/").await.is_empty());
}

#[tokio::test]
async fn what_a_point_wrote_whose_record_is_damaged_is_used_again() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    rig.store.flip("points/00000001/00000000", 70).await;
    let packs = rig.packs().await;
    let vault = rig.host().await;
    // One more pack for the new leaf: the chunks are those that are there.
    rig.back_up(&vault, "web01", &(1..20).collect::<Vec<_>>()).await;
    assert_eq!(rig.packs().await, packs + 1);
    // Its own pieces list them, since nobody can count the others any more.
    rig.store.hide("index/00000001/00000000");
    assert_eq!(rig.assert_restores().await, 1);
}

#[tokio::test]
async fn a_session_that_builds_upon_a_damaged_and_purged_point_is_fenced() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let base = rig.back_up(&vault, "web01", &[1, 2, 3]).await;
    rig.back_up(&vault, "web01", &[40]).await;
    let writer = rig.begin(&vault, "web01", &[base.number.0], None).await;
    rig.forget(&vault, &base).await;
    let seen = fate::read(vault.inner.records(), WEB01, base.number).await.unwrap();
    fate::purge(vault.inner.records(), WEB01, base.number, &seen)
        .await
        .unwrap();
    rig.store.flip("points/00000001/00000000", 70).await;
    rig.clean(&vault).await;
    let refused = rig.commit(&writer, PointDraft::default()).await;
    assert!(matches!(refused, Err(CommitError::Fenced { .. })), "{refused:?}");
    rig.assert_restores().await;
}

#[tokio::test]
async fn a_session_whose_record_is_damaged_is_waited_for_as_long_as_any_and_then_fenced() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &[1]).await;
    let writer = rig.begin(&vault, "web01", &[0], None).await;
    rig.store.flip("sessions/00000001/00000001", 70).await;
    for _ in 0..7 {
        let error = stops(&rig, &vault, &eager()).await;
        assert!(
            matches!(&error, CleanError::UnreadableSession { session, .. } if session.0 == 1),
            "{error:?}"
        );
        rig.pass(DAY);
    }
    rig.pass(Duration::from_hours(3));
    let report = rig.clean(&vault).await;
    assert_eq!(report.fenced.len(), 1);
    let refused = rig.commit(&writer, PointDraft::default()).await;
    assert!(matches!(refused, Err(CommitError::Fenced { .. })), "{refused:?}");
    rig.assert_restores().await;
}

#[tokio::test]
async fn all_of_a_point_stays_whose_fate_is_damaged() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let point = rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &[40]).await;
    rig.forget(&vault, &point).await;
    rig.store.flip("fates/00000001/00000000/00000000", 60).await;
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 2);

    // It may have been purged, and what is gone of it stops nothing.
    for folder in ["packs/00000001/00000000/", "index/00000001/00000000/"] {
        for object in rig.store.names(folder).await {
            rig.store.lose(&object).await;
        }
    }
    rig.clean(&rig.host().await).await;
}

#[tokio::test]
async fn a_damaged_record_of_an_earlier_clean_up_is_done_without() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let mut points = Vec::new();
    for number in 0..40 {
        points.push(rig.back_up(&vault, "web01", &[number, 1000]).await);
    }
    for point in &points[..20] {
        rig.forget(&vault, point).await;
    }
    rig.clean(&vault).await;
    rig.clean(&vault).await;
    let mut damaged = 0;
    for object in rig.store.names("points/00000000/").await {
        let machine = MachineNumber::MAINTENANCE;
        let number = SessionNumber(u32::from_str_radix(&object[16..], 16).unwrap());
        let decision = register::decision(vault.inner.records(), machine, number)
            .await
            .unwrap();
        if matches!(decision, Some(register::Decision::Committed(_))) {
            rig.store.flip(&object, 70).await;
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let vault = rig.host().await;
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 20);
}

#[tokio::test]
async fn a_machine_whose_record_is_damaged_keeps_its_points_and_its_name() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &[1]).await;
    rig.back_up(&vault, "db01", &[2]).await;
    rig.store.flip("machines/00000001", 60).await;
    let vault = rig.host().await;
    let names: Vec<String> = vault
        .machines()
        .await
        .unwrap()
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    assert_eq!(names, ["web01", "db01"]);
    // The next backup is of the same machine.
    assert_eq!(rig.back_up(&vault, "web01", &[3]).await.machine_number, WEB01);
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 3);
}

#[tokio::test]
async fn no_machine_is_made_while_one_is_there_that_nobody_can_name() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &[1]).await;
    vault.machine_or_create("db01").await.unwrap();
    rig.store.flip("machines/00000002", 60).await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &[2]).await;
    let refused = vault.machine_or_create("db01").await.unwrap_err();
    assert!(format!("{refused:?}").contains("machines/00000002"), "{refused:?}");
    // A checkpoint settles what it is called, and then the name is free.
    rig.clean(&vault).await;
    assert_eq!(
        rig.host().await.machine_or_create("db01").await.unwrap(),
        MachineNumber(3)
    );
}

/// A vault whose clean-up log has two checkpoints and what was condemned between them.
async fn with_log() -> (Rig, Vault) {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    for number in 0..4 {
        let seeds: Vec<u32> = (number * 20..number * 20 + 15).collect();
        let point = rig.back_up(&vault, "web01", &seeds).await;
        if number % 2 == 0 {
            rig.forget(&vault, &point).await;
            rig.clean(&vault).await;
        }
    }
    // Condemn, checkpoint, condemn, checkpoint.
    assert_eq!(rig.store.names("gclog/").await.len(), 4);
    (rig, vault)
}

#[tokio::test]
async fn a_damaged_checkpoint_that_a_later_record_names_is_done_without() {
    for damaged in ["gclog/00000003", "gclog/00000001"] {
        let (rig, vault) = with_log().await;
        let records = vault.inner.records();
        let pack = PackKey {
            machine: WEB01,
            session: SessionNumber(1),
            number: 0,
        };
        let before = gclog::read(records).await.unwrap();
        gclog::quarantine(records, &[pack], "for the test").await.unwrap();
        rig.store.flip(damaged, 70).await;
        let log = gclog::read(records).await.unwrap();
        // What it knew as gone may be condemned again, and nothing is pardoned.
        assert!(before.condemned().all(|condemned| log.is_condemned(&condemned)));
        assert!(log.forbids(&pack));
        let vault = rig.host().await;
        rig.back_up(&vault, "web01", &[7]).await;
        settle(&rig, &vault).await;
        assert_eq!(rig.assert_restores().await, 3);
    }
}

#[tokio::test]
async fn a_damaged_record_of_the_log_hides_no_point_and_a_repair_lets_writers_and_clean_ups_go_on() {
    for lost in [false, true] {
        for damaged in ["gclog/00000003", "gclog/00000004"] {
            let (rig, vault) = with_log().await;
            let records = vault.inner.records();
            let pack = PackKey {
                machine: WEB01,
                session: SessionNumber(1),
                number: 0,
            };
            if damaged != "gclog/00000003" {
                let packs = vec![gclog::PackName(pack)];
                let reason = String::new();
                let condemn = gclog::GcWhat::Condemn { packs, reason };
                gclog::read(records)
                    .await
                    .unwrap()
                    .append(records, condemn)
                    .await
                    .unwrap();
                // So that it is not merely the last one.
                gclog::quarantine(records, &[pack], "for the test").await.unwrap();
            } else if lost {
                // The last record that is lost was never there.
                continue;
            }
            if lost {
                rig.store.lose(damaged).await;
            } else {
                rig.store.flip(damaged, 70).await;
            }
            let vault = rig.host().await;
            assert_eq!(rig.assert_restores().await, 2);
            let error = stops(&rig, &vault, &eager()).await;
            assert!(
                matches!(&error, CleanError::Read(read) if read.to_string().contains(damaged)),
                "{error:?}"
            );
            let sessions = rig.store.names("sessions/00000001").await.len();
            let plan = SessionPlan {
                machine: WEB01,
                bases: Vec::new(),
                deadline: vault.inner.records().now() + SignedDuration::from_hours(24),
                host: "test".to_owned(),
                resumes: None,
            };
            let refused = vault.begin(plan).await.unwrap_err();
            assert!(format!("{refused:?}").contains(damaged), "{refused:?}");
            assert_eq!(rig.store.names("sessions/00000001").await.len(), sessions);

            let report = vault.repair_log().await.unwrap();
            assert_eq!(report.damaged.len(), 1);
            assert!(report.checkpoint.is_some());
            assert_eq!(vault.repair_log().await.unwrap().checkpoint, None);
            rig.back_up(&vault, "web01", &[7]).await;
            settle(&rig, &vault).await;
            assert_eq!(rig.assert_restores().await, 3);
        }
    }
}

#[tokio::test]
async fn a_log_is_not_repaired_where_a_clean_up_may_know_more_than_can_be_read() {
    let (rig, vault) = with_log().await;
    rig.store.flip("gclog/00000002", 70).await;
    rig.store.flip("gclog/00000003", 70).await;
    let error = vault.repair_log().await.unwrap_err();
    assert!(
        matches!(&error, RepairError::LogUnknown { first, second }
            if first == "gclog/00000002" && second == "gclog/00000003"),
        "{error:?}"
    );
    assert_eq!(rig.store.names("gclog/").await.len(), 4);
    assert_eq!(rig.assert_restores().await, 2);
}

#[tokio::test]
async fn a_log_that_does_not_answer_is_not_damaged() {
    let (rig, vault) = with_log().await;
    rig.store.inject(Request::Get, "gclog/00000003", Fault::Refuse, 100);
    let error = vault.repair_log().await.unwrap_err();
    assert!(matches!(error, RepairError::Read(ReadError::Store(_))), "{error:?}");
    rig.store.heal();
    assert_eq!(rig.store.names("gclog/").await.len(), 4);
}
