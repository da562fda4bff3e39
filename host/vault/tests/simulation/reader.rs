//! Those who restore and those who verify, on hosts whose caches are as old as they are.

use std::sync::Arc;

use coffre_vault::testing::Dice;
use coffre_vault::{Fate, Point, ReadData, Vault, VerifyPlan};

use crate::check;
use crate::disk::{Reading, Wrong, compare};
use crate::fates::points_of_all;
use crate::host::{Host, rest, until_death};
use crate::ledger::Content;
use crate::writer::chain;

pub async fn run(host: Arc<Host>, dice: Dice) {
    for number in 0..host.plan.restores {
        let mut dice = dice.nth("restore", number);
        rest(&mut dice, &host.plan).await;
        let store = host.life("restore", true);
        let reading = async {
            let Ok(vault) = host.open(&store).await else { return };
            if dice.once_in(4) {
                verify(&host, &vault).await;
                return;
            }
            let Ok(mut points) = points_of_all(&vault).await else {
                return;
            };
            points.retain(|point| point.fate != Fate::Purged);
            if !points.is_empty() {
                restore(&host, &vault, dice.pick(&points)).await;
            }
        };
        until_death(&store, reading).await;
        if host.ledger.is_wrong() {
            return;
        }
    }
}

/// Everything that a point holds, compared byte for byte.
pub async fn compare_point(reading: &Reading, point: &Point, content: &Content) -> Result<(), Wrong> {
    let Some(disk) = point.disks.first() else {
        return Err(Wrong::Content("the point has no disk".to_owned()));
    };
    compare(reading, disk.root, &content.disk).await?;
    let mut attached = Vec::new();
    for id in point.attachments.iter().flat_map(|attachment| &attachment.chunks) {
        attached.extend_from_slice(&reading.chunk(id).await.map_err(Wrong::Read)?);
    }
    match attached == content.attachment {
        true => Ok(()),
        false => Err(Wrong::Content("the attachment is another".to_owned())),
    }
}

async fn restore(host: &Host, vault: &Vault, point: &Point) {
    let name = (point.machine_number, point.number);
    let Some(entry) = host.ledger.entry(name) else {
        host.ledger.wrong(format!("{name:?} is a point that nobody made"));
        return;
    };
    let outcome = compare_point(&Reading::new(vault.chunks()), point, &entry.content).await;
    match outcome {
        Ok(()) => host.ledger.count("points restored"),
        Err(Wrong::Content(what)) => host.ledger.wrong(format!("{} restores {name:?}: {what}", host.name)),
        Err(wrong) if wrong.is_damage() => restore_again(host, point, &entry.content, &wrong).await,
        Err(_) => host.ledger.count("restores that failed"),
    }
}

/// A listing that lied or a point that was purged meanwhile is a reason to fail; a point that is there is none.
async fn restore_again(host: &Host, point: &Point, content: &Content, first: &Wrong) {
    host.ledger.count("restores that missed something");
    let name = (point.machine_number, point.number);
    let Ok(vault) = host.open_calmly().await else {
        host.ledger
            .wrong(format!("{} cannot open the vault with its cache", host.name));
        return;
    };
    match vault.point(name.0, name.1).await {
        Ok(Some(now)) if now.fate == Fate::Purged => return,
        Ok(Some(_)) => {}
        other => {
            host.ledger.wrong(format!("{name:?} is gone: {other:?}"));
            return;
        }
    }
    if let Err(wrong) = compare_point(&Reading::new(vault.chunks()), point, content).await {
        let what = format!(
            "{} cannot restore {name:?} with its cache: {first}; again: {wrong}",
            host.name
        );
        host.ledger.wrong(what);
    }
}

async fn verify(host: &Host, vault: &Vault) {
    let plan = VerifyPlan {
        read: ReadData::All,
        ..VerifyPlan::default()
    };
    match vault.verify(plan, &|_| {}).await {
        Ok(report) if report.is_sound() => host.ledger.count("vaults verified"),
        Ok(report) => {
            host.ledger.count("verifications that found something");
            host.world.note(&host.name, format!("verify finds {:?}", report.damage));
            // A listing that lied, or points that were purged while it read them. Nothing of it may be so.
            check::check(&host.plan, &host.ledger, host.folder(), true).await;
        }
        Err(error) => host.world.note(&host.name, format!("verify failed: {}", chain(&error))),
    }
}
