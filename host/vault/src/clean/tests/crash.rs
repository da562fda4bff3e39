//! A clean-up that dies before or after any request that changes the store; dying at one that only reads leaves the same as
//! dying before the next that does not. Whatever it has done by then, every point restores, the next one goes through, and the
//! one after that finds the vault as clean as if nothing had happened.

use super::*;
use crate::testing::{Fault, Request};

/// A vault in which the next clean-up does all it can: fences, purges, moves, lists anew, deletes, condemns.
async fn ready() -> (Rig, Vault) {
    let rig = Rig::new().await;
    let vault = rig.host().await;
    let seeds: Vec<u32> = (0..21).collect();
    let first = rig.back_up(&vault, "web01", &seeds).await;
    rig.back_up(&vault, "web01", &[0, 7, 300]).await;
    let third = rig.back_up(&vault, "web01", &(100..107).collect::<Vec<_>>()).await;
    rig.forget(&vault, &first).await;
    rig.clean(&vault).await;
    rig.begin(&vault, "db01", &[], None).await;
    rig.pass(Duration::from_hours(30));
    rig.forget(&vault, &third).await;
    (rig, vault)
}

async fn deletable(rig: &Rig) -> Vec<String> {
    let mut names = rig.store.names("packs/").await;
    names.retain(|name| !name.starts_with("packs/00000000"));
    names
}

#[tokio::test]
async fn a_clean_up_that_dies_at_any_change_loses_nothing_and_the_third_run_converges() {
    let (rig, vault) = ready().await;
    rig.store.forget_seen();
    let report = rig.clean(&vault).await;
    assert!(report.fenced.len() == 1 && report.purged.len() == 1, "{report:?}");
    assert!(report.repacked_chunks == 2 && report.deleted.packs > 0 && report.condemned.packs > 0);
    let changing: Vec<usize> = (rig.store.seen().iter().enumerate())
        .filter(|(_, (request, _))| matches!(request, Request::Put | Request::Delete))
        .map(|(at, _)| at)
        .collect();
    settle(&rig, &vault).await;
    let wanted = deletable(&rig).await;

    let mut died = 0;
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        for at in changing.iter().copied() {
            let (rig, vault) = ready().await;
            rig.store.die_after(at, fault);
            let result = vault.clean(&eager(), &|_| {}).await;
            rig.store.heal();
            died += usize::from(result.is_err());
            // The third point may be forgotten still, and is not lost either.
            assert!([1, 2].contains(&rig.assert_restores().await), "{fault:?} at {at}");
            // Another host, which knows nothing of the first.
            let other = rig.host().await;
            for _ in 0..3 {
                other
                    .clean(&eager(), &|_| {})
                    .await
                    .unwrap_or_else(|error| panic!("{fault:?} at {at}: {error:?}"));
                assert_eq!(rig.assert_restores().await, 1, "{fault:?} at {at}");
            }
            assert_eq!(deletable(&rig).await, wanted, "{fault:?} at {at}");
        }
    }
    assert!(died > changing.len(), "{died} of {}", changing.len());
}

#[tokio::test]
async fn a_clean_up_whose_future_is_dropped_anywhere_loses_nothing() {
    let (rig, vault) = ready().await;
    let mut steps = 0;
    loop {
        let plan = eager();
        let mut cleaning = Box::pin(vault.clean(&plan, &|_| {}));
        let mut over = false;
        for _ in 0..=steps {
            if futures::poll!(&mut cleaning).is_ready() {
                over = true;
                break;
            }
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        drop(cleaning);
        rig.assert_restores().await;
        if over {
            break;
        }
        steps = steps * 5 / 4 + 1;
    }
    settle(&rig, &vault).await;
}
