//! What must be so at every instant, looked at by a host that knows nothing yet, over a store where nothing goes wrong and
//! no time goes by.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use coffre_vault::{Fate, Point, ReadData, SystemClock, Vault, VerifyPlan};

use crate::disk::Reading;
use crate::fates::points_of_all;
use crate::host;
use crate::ledger::{Entry, Ledger, PointName};
use crate::plan::Plan;
use crate::reader::compare_point;
use crate::writer::chain;

/// Everything that must be there is there. Gives what it has read.
pub async fn check(plan: &Plan, ledger: &Arc<Ledger>, folder: &Path, verify: bool) -> Option<Reading> {
    let cache = tempfile::tempdir_in(folder).expect("a folder for a new host");
    match look(plan, ledger, cache.path(), verify).await {
        Ok(reading) => Some(reading),
        Err(what) => {
            ledger.wrong(what);
            None
        }
    }
}

pub async fn open_anew(plan: &Plan, ledger: &Ledger, cache: &Path) -> Result<Vault, String> {
    // Whoever looks leaves no rule out.
    let plan = Plan {
        left_out: None,
        ..plan.clone()
    };
    let opened = host::open(
        &ledger.world.calm("calm"),
        cache.to_owned(),
        Arc::new(SystemClock),
        &plan,
    )
    .await;
    opened.map_err(|error| format!("the vault does not open: {}", chain(&error)))
}

async fn look(plan: &Plan, ledger: &Arc<Ledger>, cache: &Path, verify: bool) -> Result<Reading, String> {
    let vault = open_anew(plan, ledger, cache).await?;
    let points = points_of_all(&vault).await;
    let points = points.map_err(|error| format!("the points cannot be read: {}", chain(&error)))?;
    let found: BTreeMap<PointName, &Point> = points
        .iter()
        .map(|point| ((point.machine_number, point.number), point))
        .collect();
    for (name, entry) in ledger.points() {
        match found.get(&name) {
            Some(point) => check_fate(plan, ledger, name, &entry, point.fate)?,
            None if entry.acknowledged => check_absent(plan, ledger, &vault, name, &entry).await?,
            None => {}
        }
    }
    let reading = Reading::new(vault.chunks());
    for (name, point) in found {
        let Some(entry) = ledger.entry(name) else {
            return Err(format!("{name:?} is a point that nobody made"));
        };
        if point.fate == Fate::Purged {
            continue;
        }
        if let Err(wrong) = compare_point(&reading, point, &entry.content).await {
            return Err(format!(
                "point {name:?}, which is {:?}, cannot be restored: {wrong}",
                point.fate
            ));
        }
    }
    if verify {
        let plan = VerifyPlan {
            read: ReadData::All,
            ..VerifyPlan::default()
        };
        let report = vault.verify(plan, &|_| {}).await;
        let report = report.map_err(|error| format!("the vault cannot be verified: {}", chain(&error)))?;
        if let Some(damage) = report.damage.first() {
            return Err(format!("verify finds damage: {damage:?}"));
        }
    }
    ledger.count("looks at everything");
    Ok(reading)
}

/// A point that is not among the others is purged, and was so when somebody wrote a checkpoint.
async fn check_absent(
    plan: &Plan,
    ledger: &Ledger,
    vault: &Vault,
    name: PointName,
    entry: &Entry,
) -> Result<(), String> {
    match vault.point(name.0, name.1).await {
        Ok(Some(point)) if point.fate == Fate::Purged => check_fate(plan, ledger, name, entry, Fate::Purged),
        Ok(Some(point)) => Err(format!(
            "point {name:?}, which is {:?}, is not among the points",
            point.fate
        )),
        Ok(None) => Err(format!("point {name:?} was acknowledged and is not there")),
        Err(error) => Err(format!("point {name:?} cannot be read: {}", chain(&error))),
    }
}

fn check_fate(plan: &Plan, ledger: &Ledger, name: PointName, entry: &Entry, fate: Fate) -> Result<(), String> {
    match fate {
        Fate::Kept | Fate::Forgotten => return Ok(()),
        Fate::Unknown => return Err(format!("what became of point {name:?} cannot be read")),
        Fate::Purged => {}
    }
    if !entry.may_go {
        return Err(format!("point {name:?} is purged, and nobody had asked for that"));
    }
    if entry.pinned {
        return Err(format!("point {name:?} is purged although it is pinned"));
    }
    // By the store's time, the record before the purge is older than the time to undelete.
    let folder = format!("fates/{}/{}/", name.0.key(), name.1.key());
    let made: Vec<_> = ledger
        .world
        .names(&folder)
        .iter()
        .filter_map(|object| ledger.world.created(object))
        .collect();
    match made.as_slice() {
        [.., before, purged] if *purged < *before + plan.undelete_for => Err(format!(
            "point {name:?} was purged after {:?} instead of {:?}",
            *purged - *before,
            plan.undelete_for
        )),
        _ => Ok(()),
    }
}
