//! Those who clean up: several at once, on hosts whose clocks may be wrong, and they die anywhere.

use std::sync::Arc;
use std::time::Duration;

use coffre_vault::testing::Dice;
use coffre_vault::{CleanError, CleanPlan, CleanReport, ReadError};
use tokio::time::sleep;

use crate::check;
use crate::host::{CLEAN, Host, until_death};
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::writer::chain;

/// Clean-ups of one cleaner in all.
const MOST: u64 = 40;

pub async fn run(host: Arc<Host>, dice: Dice) {
    for number in 0..MOST {
        let mut dice = dice.nth("clean", number);
        sleep(dice.duration(Duration::from_millis(200), host.plan.longest_clean_rest)).await;
        if number >= host.plan.cleans {
            sleep(dice.duration(Duration::from_secs(1800), Duration::from_secs(86_400))).await;
            if !host.ledger.somebody_writes() {
                return;
            }
        }
        let store = host.life(CLEAN, dice.once_in(2));
        let plan = CleanPlan {
            dry_run: dice.once_in(10),
            force: dice.within(0..5) > 0,
            minimum_age: host.plan.minimum_age,
            undelete_for: host.plan.undelete_for,
            host: host.name.clone(),
        };
        let clean = async {
            let Ok(vault) = host.open(&store).await else { return };
            let beside = host.ledger.clean_begins();
            let cleaned = vault.clean(&plan, &|_| {}).await;
            let was_alone = host.ledger.clean_ends(beside);
            match cleaned {
                Ok(report) if !plan.dry_run => count(&host.ledger, &report),
                Ok(_) => host.ledger.count("dry runs"),
                Err(error) => {
                    host.ledger.count("cleans that stopped");
                    host.world.note(&host.name, format!("clean stopped: {}", chain(&error)));
                    if is_alarm(&error, &host.plan, was_alone) {
                        host.ledger.wrong(format!("a clean-up finds damage: {}", chain(&error)));
                    } else if is_missing(&error) {
                        check::check(&host.plan, &host.ledger, host.folder(), false).await;
                    }
                }
            }
        };
        if until_death(&store, clean).await.is_none() {
            host.ledger.count("cleans that died");
        }
        if host.ledger.is_wrong() {
            return;
        }
    }
}

pub fn count(ledger: &Ledger, report: &CleanReport) {
    ledger.count("cleans");
    ledger.world.note("clean", format!("{report:?}"));
    for (what, happened) in [
        ("cleans that deleted", report.deleted.packs > 0),
        ("cleans that repacked", report.repacked_chunks > 0),
        ("cleans that purged", !report.purged.is_empty()),
        ("cleans that fenced", !report.fenced.is_empty()),
        ("cleans that condemned", report.condemned.packs > 0),
        ("cleans that had to wait", !report.waiting.is_empty()),
        ("cleans that merged pieces", report.merged_pieces > 0),
    ] {
        if happened {
            ledger.count(what);
        }
    }
    if let Some(damaged) = report.damaged.first() {
        ledger.wrong(format!("a clean-up cannot read what it moves: {damaged:?}"));
    }
}

/// What a clean-up must never meet in a store that loses nothing.
fn is_alarm(error: &CleanError, plan: &Plan, was_alone: bool) -> bool {
    match error {
        CleanError::Gap { .. } | CleanError::PointVanished { .. } | CleanError::MachineVanished { .. } => true,
        // A listing of the index that was cut short hides where a chunk has moved to while the local copy still knows its old
        // place. And another clean-up may purge and sweep away what this one is looking at.
        error if is_missing(error) => plan.weather.lying_lists == 0 && was_alone,
        CleanError::Read(error) => error.is_damage(),
        _ => false,
    }
}

fn is_missing(error: &CleanError) -> bool {
    matches!(
        error,
        CleanError::ChunkMissing(_) | CleanError::Read(ReadError::ChunkMissing(_))
    )
}
