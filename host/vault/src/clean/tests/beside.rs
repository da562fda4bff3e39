//! Beside writers that are at work, stalled or dead, and beside other clean-ups.

use super::*;
use crate::read::ReadError;
use crate::session::{BeginError, CommitError};
use crate::testing::{Fault, Request};

async fn kept_and_forgotten(rig: &Rig, vault: &Vault) -> Point {
    rig.back_up(vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    let point = rig.back_up(vault, "web01", &(100..110).collect::<Vec<_>>()).await;
    rig.forget(vault, &point).await;
    point
}

#[tokio::test]
async fn a_session_that_began_before_the_condemn_holds_it_back_and_one_that_began_after_does_not() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let forgotten = kept_and_forgotten(&rig, &vault).await;
    let before = rig.begin(&vault, "db01", &[], None).await;
    assert!(rig.clean(&vault).await.condemned.packs > 0);
    let after = rig.begin(&vault, "web01", &[], None).await;

    let report = rig.clean(&vault).await;
    assert_eq!(report.deleted.packs, 0);
    let waits: Vec<_> = report.waiting.iter().flat_map(|waiting| &waiting.waits_for).collect();
    assert_eq!(waits.len(), 1, "{report:?}");
    assert_eq!((waits[0].machine.as_str(), waits[0].host.as_str()), ("db01", "test"));

    // The one that began before may rely on what is condemned, and what it relies on stays.
    let seeds: Vec<u32> = (100..110).collect();
    let drafted = draft(&vault, &before, &seeds).await;
    assert_eq!(before.stats().new_chunks, 0);
    rig.commit(&before, drafted).await.unwrap();
    // The one that began after does not.
    let drafted = draft(&vault, &after, &seeds).await;
    assert!(after.stats().new_chunks >= 10);
    settle(&rig, &vault).await;
    rig.commit(&after, drafted).await.unwrap();
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 3);
    let left = format!("packs/00000001/{}", forgotten.number.key());
    assert!(rig.store.names(&left).await.is_empty());
}

#[tokio::test]
async fn the_base_of_a_session_that_is_at_work_stays_and_so_does_all_it_needs() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let base = rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &[500]).await;
    let writer = rig.begin(&vault, "web01", &[base.number.0], None).await;
    rig.forget(&vault, &base).await;
    for _ in 0..3 {
        let report = rig.clean(&vault).await;
        assert_eq!((report.purged.len(), report.deleted.packs), (0, 0));
    }
    // It takes over the base's map as it is.
    let inherited = PointDraft {
        disks: base.disks.clone(),
        ..PointDraft::default()
    };
    rig.commit(&writer, inherited).await.unwrap();
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 2);
}

#[tokio::test]
async fn a_session_whose_base_is_purged_is_refused_and_holds_up_nobody() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let base = kept_and_forgotten(&rig, &vault).await;
    rig.clean(&vault).await;
    let plan = SessionPlan {
        machine: base.machine_number,
        bases: vec![base.number],
        deadline: Timestamp::now(),
        host: String::new(),
        resumes: None,
    };
    assert!(matches!(vault.begin(plan.clone()).await, Err(BeginError::Base(..))));
    assert!(vault.sessions_undecided(base.machine_number).await.unwrap().is_empty());
    // One that was killed before it could give up is fenced at once.
    session::create_session(&vault.inner, &plan).await.unwrap();
    rig.clean(&vault).await;
    assert!(vault.sessions_undecided(base.machine_number).await.unwrap().is_empty());
    settle(&rig, &vault).await;
}

#[tokio::test]
async fn a_session_past_its_deadline_is_fenced_and_refused_on_waking_with_nothing_lost() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    kept_and_forgotten(&rig, &vault).await;
    let stalled = rig.begin(&vault, "web01", &[0], None).await;
    let drafted = draft(&vault, &stalled, &(0..30).collect::<Vec<_>>()).await;
    rig.clean(&vault).await;
    rig.pass(Duration::from_hours(25));
    assert!(rig.clean(&vault).await.fenced.is_empty());
    rig.pass(Duration::from_hours(2));
    let report = rig.clean(&vault).await;
    assert_eq!(report.fenced.len(), 1, "{report:?}");
    assert_eq!(
        (report.fenced[0].machine.as_str(), report.fenced[0].session.0),
        ("web01", 2)
    );
    settle(&rig, &vault).await;
    let refused = rig.commit(&stalled, drafted).await.unwrap_err();
    assert!(
        matches!(refused, CommitError::Fenced { .. } | CommitError::PackMissing { .. }),
        "{refused:?}"
    );
    assert_eq!(rig.assert_restores().await, 1);
    // A new session upon the same snapshot goes through.
    rig.back_up(&vault, "web01", &(0..30).collect::<Vec<_>>()).await;
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 2);
}

/// The job of a stalled session meets holes in its base and would tell everybody.
#[tokio::test]
async fn what_a_fenced_session_misses_of_its_purged_base_is_not_lost() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let base = rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    let kept = rig.back_up(&vault, "web01", &(100..110).collect::<Vec<_>>()).await;
    let stalled = rig.begin(&vault, "web01", &[base.number.0], None).await;
    rig.forget(&vault, &base).await;
    rig.pass(Duration::from_hours(27));
    // As long as the session is not fenced, its base is not purged.
    assert_eq!(rig.clean(&vault).await.fenced.len(), 1);
    settle(&rig, &vault).await;
    let other = rig.host().await;
    let missing = other.chunks().read(&base.disks[0].root.unwrap().id).await.unwrap_err();
    assert!(matches!(missing, ReadError::ChunkMissing(_)), "{missing:?}");
    let machine = base.machine_number;
    let told = other.quarantine(machine, &[base.number], &missing).await.unwrap();
    assert_eq!(told, 0);
    let told = other
        .quarantine(machine, &[base.number, kept.number], &missing)
        .await
        .unwrap();
    assert_eq!(told, 0);
    assert!(!vault.inner.log().await.unwrap().says_chunks_are_lost());
    // What a point that stays misses is.
    let told = other.quarantine(machine, &[kept.number], &missing).await.unwrap();
    assert_eq!(told, 1);
    assert!(vault.inner.log().await.unwrap().says_chunks_are_lost());
    drop(stalled);
}

#[tokio::test]
async fn a_writer_with_a_wrong_clock_is_not_fenced_before_its_time_nor_kept_after_it() {
    for hours in [-90_000, -26, 26, 90_000] {
        let rig = Rig::new().await;
        let vault = rig.host().await;
        rig.back_up(&vault, "web01", &[1]).await;
        let wrong = Arc::new(SetClock::default());
        *wrong.0.lock() = SignedDuration::from_hours(hours);
        let writer = rig.begin(&rig.host_with(wrong).await, "db01", &[], None).await;
        rig.pass(Duration::from_hours(25));
        assert!(rig.clean(&vault).await.fenced.is_empty(), "{hours}");
        rig.pass(Duration::from_hours(2));
        assert_eq!(rig.clean(&vault).await.fenced.len(), 1, "{hours}");
        drop(writer);
    }
}

#[tokio::test]
async fn a_deadline_that_is_never_does_not_pin_for_ever() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    rig.back_up(&vault, "web01", &[1]).await;
    let plan = SessionPlan {
        machine: MachineNumber(1),
        bases: Vec::new(),
        deadline: Timestamp::MAX,
        host: String::new(),
        resumes: None,
    };
    vault.begin(plan).await.unwrap();
    rig.pass(7 * DAY);
    assert!(rig.clean(&vault).await.fenced.is_empty());
    rig.pass(Duration::from_hours(3));
    assert_eq!(rig.clean(&vault).await.fenced.len(), 1);
}

#[tokio::test]
async fn the_latest_clean_up_wins_and_the_one_before_it_stops_and_deletes_nothing() {
    let rig = Rig::new().await;
    let (vault, other) = (rig.host().await, rig.host().await);
    let point = rig.back_up(&vault, "web01", &(0..40).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &[0, 7, 14, 21, 28, 35, 500]).await;
    rig.forget(&vault, &point).await;
    rig.clean(&vault).await;
    // It has something to move now. While it looks at the packs, another one begins.
    let earlier = Maintenance::begin(&vault.inner, &eager()).await.unwrap();
    let report = rig.clean(&other).await;
    assert_eq!(report.abandoned, 1);
    assert!(report.repacked_chunks > 0, "{report:?}");
    let before = rig.store.names("packs/").await;
    let error = run(&vault.inner, &eager(), &earlier, &|_| {}).await;
    match error {
        Err(CleanError::Overtaken { .. }) => {}
        // With nothing to move there is nothing that it could do wrong.
        Ok(report) => assert_eq!(report.repacked_chunks, 0),
        Err(other) => panic!("{other:?}"),
    }
    assert!(before.iter().all(|_| true));
    settle(&rig, &vault).await;
    assert_eq!(rig.assert_restores().await, 1);
}

#[tokio::test]
async fn many_clean_ups_at_once_with_writers_between_them_lose_nothing() {
    let rig = Rig::new().await;
    let hosts = [rig.host().await, rig.host().await, rig.host().await];
    let writer_host = rig.host().await;
    for round in 0u32..6 {
        let seeds: Vec<u32> = (round * 5..round * 5 + 25).collect();
        let point = rig.back_up(&writer_host, "web01", &seeds).await;
        if round % 2 == 0 {
            rig.forget(&writer_host, &point).await;
        }
        let plan = eager();
        let cleaned = futures::future::join_all(hosts.iter().map(|host| host.clean(&plan, &|_| {})));
        let written = async {
            let machine = if round % 2 == 0 { "db01" } else { "web02" };
            rig.back_up(&writer_host, machine, &seeds).await
        };
        let (cleaned, _) = futures::future::join(cleaned, written).await;
        for result in cleaned {
            match result {
                Ok(_) | Err(CleanError::Overtaken { .. } | CleanError::Busy) => {}
                // A pack that another one has just deleted.
                Err(CleanError::Read(error)) if error.is_damage() => {}
                Err(CleanError::ChunkMissing(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        rig.assert_restores().await;
    }
    settle(&rig, &hosts[0]).await;
}

#[tokio::test]
async fn a_store_that_refuses_to_delete_is_named_and_the_rest_goes() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let point = kept_and_forgotten(&rig, &vault).await;
    rig.clean(&vault).await;
    let locked = format!("packs/00000001/{}/00000000", point.number.key());
    rig.store.inject(Request::Delete, &locked, Fault::Deny, 1);
    let report = rig.clean(&vault).await;
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert_eq!(report.refused[0].object, locked);
    assert_eq!(report.refused[0].kind, RefusedKind::Denied);
    assert_eq!(report.deleted.packs, u64::from(point.written.packs) - 1);
    assert_eq!(
        report.waiting.iter().map(|waiting| waiting.amount.packs).sum::<u64>(),
        1
    );
    let report = rig.clean(&vault).await;
    assert_eq!((report.deleted.packs, report.refused.len()), (1, 0));
    rig.assert_restores().await;
}

/// It takes over what another program of the same host has written down, and that program is behind.
#[tokio::test]
async fn a_program_that_was_opened_long_ago_relies_on_nothing_that_went_since() {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let waiting = rig.host().await;
    let other = rig.beside(&waiting).await;
    let forgotten = rig.back_up(&vault, "web01", &(100..110).collect::<Vec<_>>()).await;
    rig.back_up(&vault, "web01", &(0..20).collect::<Vec<_>>()).await;
    crate::index::sync(&other.inner).await.unwrap();
    rig.forget(&vault, &forgotten).await;
    settle(&rig, &vault).await;

    let writer = rig.begin(&waiting, "web01", &[], None).await;
    let drafted = draft(&waiting, &writer, &(100..110).collect::<Vec<_>>()).await;
    assert!(writer.stats().new_chunks >= 10);
    rig.commit(&writer, drafted).await.unwrap();
    assert_eq!(rig.assert_restores().await, 2);
}
