//! Those who forget points, want them back, and pin them.

use std::sync::Arc;

use coffre_vault::testing::Dice;
use coffre_vault::{FateError, Point, ReadError, Vault};

use crate::host::{Host, rest, until_death};
use crate::ledger::PointName;
use crate::writer::chain;

pub async fn run(host: Arc<Host>, dice: Dice) {
    for number in 0..host.plan.fates {
        let mut dice = dice.nth("fate", number);
        rest(&mut dice, &host.plan).await;
        let store = host.life("fate", true);
        let change = async {
            let Ok(vault) = host.open(&store).await else { return };
            let points = match points_of_all(&vault).await {
                Ok(points) if points.is_empty() => return,
                Ok(points) => points,
                Err(error) => {
                    if error.is_damage() {
                        host.ledger
                            .wrong(format!("the points cannot be read: {}", chain(&error)));
                    }
                    return;
                }
            };
            let point = dice.pick(&points);
            let name = (point.machine_number, point.number);
            match dice.within(0..10) {
                0..6 => forget(&host, &vault, name).await,
                6..8 => undelete(&host, &vault, name).await,
                8 => pin(&host, &vault, name).await,
                _ => unpin(&host, &vault, name).await,
            }
        };
        until_death(&store, change).await;
        if host.ledger.is_wrong() {
            return;
        }
    }
}

pub async fn points_of_all(vault: &Vault) -> Result<Vec<Point>, ReadError> {
    let mut all = Vec::new();
    for (machine, _) in vault.machines().await? {
        all.extend(vault.points(machine).await?);
    }
    Ok(all)
}

pub async fn forget(host: &Host, vault: &Vault, point: PointName) {
    host.ledger.ask_to_go(point);
    let outcome = vault.forget(point.0, point.1, None).await;
    match outcome {
        Ok(_) => host.ledger.count("points forgotten"),
        Err(FateError::Read(error)) if error.is_damage() => {
            host.ledger
                .wrong(format!("the fates of {point:?} cannot be read: {}", chain(&error)));
        }
        // What was sent may be on its way.
        Err(FateError::Write(_)) => return,
        Err(_) => {}
    }
    host.ledger.asked(point);
}

async fn undelete(host: &Host, vault: &Vault, point: PointName) {
    let Some(before) = host.ledger.before(point) else {
        return;
    };
    match vault.undelete(point.0, point.1).await {
        Ok(_) => {
            host.ledger.count("points wanted back");
            host.ledger.kept(point, before);
        }
        Err(FateError::Purged(_)) => {
            host.ledger.count("points wanted back too late");
            let entry = host.ledger.entry(point);
            if entry.is_none_or(|entry| !entry.may_go) {
                host.ledger
                    .wrong(format!("{point:?} is purged, and nobody had asked for that"));
            }
        }
        Err(_) => {}
    }
}

async fn pin(host: &Host, vault: &Vault, point: PointName) {
    let Some(before) = host.ledger.before(point) else {
        return;
    };
    if vault.pin(point.0, point.1, Some("wanted")).await.is_ok() {
        host.ledger.count("points pinned");
        host.ledger.pinned(point, before);
    }
}

async fn unpin(host: &Host, vault: &Vault, point: PointName) {
    host.ledger.unpin(point);
    match vault.unpin(point.0, point.1).await {
        // What was sent may be on its way.
        Err(FateError::Write(_)) => {}
        _ => host.ledger.unpinned(point),
    }
}
