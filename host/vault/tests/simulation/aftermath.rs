//! When nothing goes wrong any more, the vault comes to rest: a few clean-ups leave what is needed and nothing else, and a
//! backup goes through.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coffre_vault::CleanPlan;
use coffre_vault::testing::Weather;
use jiff::SignedDuration;
use tokio::time::sleep;

use crate::host::{CLEAN, Host};
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::writer::{self, chain};
use crate::{check, cleaner};

/// One fences, purges and condemns, one moves and deletes, one condemns what moving has left over, one deletes that.
const CLEANS: u64 = 4;
/// The longest that a session can have, and the two hours that are added: where a clock jumps while a session begins, it may seem
/// to have been granted that much.
const UNTIL_ALL_CAN_BE_FENCED: Duration = Duration::from_secs((7 * 24 + 3) * 3600);

pub async fn aftermath(plan: &Plan, ledger: &Arc<Ledger>, folder: &Path) {
    if let Err(what) = come_to_rest(plan, ledger, folder).await {
        ledger.wrong(what);
    }
}

async fn come_to_rest(plan: &Plan, ledger: &Arc<Ledger>, folder: &Path) -> Result<(), String> {
    sleep(UNTIL_ALL_CAN_BE_FENCED).await;
    let fair = Arc::new(Plan {
        weather: Weather::FAIR,
        clean_stall: 0,
        backups: 3,
        writers_stall: false,
        writers_give_up: false,
        longest_pause: Duration::from_millis(5),
        longest_deadline: Duration::from_secs(86_400),
        ..plan.clone()
    });
    let host = Host::new("eve", SignedDuration::ZERO, &fair, ledger, folder.join("eve"));
    clean(&host, ledger).await?;
    check::check(plan, ledger, folder, true).await;
    let before = points(ledger);
    writer::run(Arc::clone(&host), "machine-0".to_owned(), plan.dice.of("aftermath")).await;
    if points(ledger) == before && !ledger.is_wrong() {
        return Err("a backup in fair weather does not succeed".to_owned());
    }
    check::check(plan, ledger, folder, true).await;
    Ok(())
}

fn points(ledger: &Ledger) -> u64 {
    ledger.counts().get("points").copied().unwrap_or(0)
}

async fn clean(host: &Arc<Host>, ledger: &Arc<Ledger>) -> Result<(), String> {
    let plan = CleanPlan {
        force: true,
        undelete_for: host.plan.undelete_for,
        host: host.name.clone(),
        ..CleanPlan::default()
    };
    for _ in 0..CLEANS {
        let vault = host.open(&host.life(CLEAN, false)).await;
        let vault = vault.map_err(|error| format!("the vault does not open: {}", chain(&error)))?;
        let report = vault.clean(&plan, &|_| {}).await;
        let report = report.map_err(|error| format!("a clean-up in fair weather stops: {}", chain(&error)))?;
        cleaner::count(ledger, &report);
        sleep(Duration::from_secs(60)).await;
    }
    let Some(reading) = check::check(&host.plan, ledger, host.folder(), false).await else {
        return Ok(());
    };
    let needed = reading
        .packs()
        .await
        .map_err(|error| format!("nobody knows what is needed: {}", chain(&error)))?;
    let there: BTreeSet<String> = ledger
        .world
        .names("packs/")
        .iter()
        .map(|name| name.trim_start_matches("packs/").to_owned())
        .collect();
    let left: Vec<&String> = there.difference(&needed).collect();
    match left.first() {
        Some(pack) => Err(format!(
            "{} of {} packs stay that nothing needs, as {pack}",
            left.len(),
            there.len()
        )),
        None => Ok(()),
    }
}
