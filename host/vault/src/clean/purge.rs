//! Points that were forgotten long enough ago are purged: from then on their chunks may go. An undelete that comes at the
//! same moment wants the same number in the point's register of fates, so one of the two is too late and sees it.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{CleanError, CleanPlan, CleanReport, PurgedPoint};
use crate::fate::{self, Purge};
use crate::ids::SessionNumber;
use crate::mark::Survey;
use crate::point::Fate;
use crate::vault::Inner;

pub(super) async fn purge_forgotten(
    vault: &Arc<Inner>,
    survey: &Survey,
    now: Timestamp,
    plan: &CleanPlan,
    report: &mut CleanReport,
) -> Result<(), CleanError> {
    let records = vault.records();
    let undelete_for = SignedDuration::try_from(plan.undelete_for).unwrap_or(SignedDuration::MAX);
    for machine in &survey.machines {
        // A base stays as long as somebody builds upon it; the next clean-up purges it.
        let is_base = |point: SessionNumber| {
            machine
                .undecided
                .iter()
                .any(|(_, session)| session.bases.contains(&point))
        };
        // One whose record is damaged as well: once it is purged, nobody need know what it held.
        let readable = machine.points.iter().map(|point| (point.number, point.fate));
        let unreadable = machine.unreadable.iter().map(|point| (point.number, point.fate));
        let forgotten = readable.chain(unreadable).filter(|(_, fate)| *fate == Fate::Forgotten);
        for (number, _) in forgotten {
            let seen = fate::read(records, machine.machine, number).await?;
            let since = fate::forgotten_since(records, machine.machine, number, &seen).await?;
            let is_over = since.is_some_and(|since| now.duration_since(since) >= undelete_for);
            if !is_over || is_base(number) {
                continue;
            }
            let purged = plan.dry_run
                || fate::purge(records, machine.machine, number, &seen)
                    .await
                    .map_err(|source| CleanError::Purge {
                        machine: machine.name.clone(),
                        point: number,
                        source,
                    })?
                    == Purge::Purged;
            if purged {
                report.purged.push(PurgedPoint {
                    machine: machine.name.clone(),
                    point: number,
                });
            }
        }
    }
    Ok(())
}
