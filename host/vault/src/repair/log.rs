//! Mending the clean-up log: a checkpoint behind its damaged records, derived from what stands before and between them.
//!
//! Why nothing is lost. A pack is deleted only by a clean-up that has read a checkpoint which names it as condemned. So what
//! one damaged record may have condemned, nobody can delete as long as no checkpoint came after it: that pack is pardoned by
//! being left out, and whoever condemned it finds, before it writes such a checkpoint, that its number is taken, and reads the
//! log again. A damaged checkpoint says nothing that does not stand before it. Only where a record that may condemn is
//! followed by one that may be a checkpoint, both damaged, can a clean-up that is stalled know more than anybody can read;
//! then nothing is written.
//!
//! What a lost record had quarantined is not known any more; reading the data finds it again.

use std::sync::Arc;

use super::RepairError;
use crate::gclog::{self, Appended, Checkpoint, Condemned, DamagedRecord, GcLog, GcWhat, PackName};
use crate::ids::{MachineNumber, SessionNumber};
use crate::object;
use crate::read::ReadError;
use crate::register::{self, Decision};
use crate::store::StoreError;
use crate::vault::{Inner, Vault};

/// How often the end of the log is tried where others write to it.
const ATTEMPTS: usize = 64;

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRepairReport {
    /// Records that cannot be read, and why. Nobody reads them any more.
    pub damaged: Vec<(String, String)>,
    /// The number of the record that was written; none where nothing was to be mended.
    pub checkpoint: Option<u32>,
    /// One of them may have quarantined packs: reading the data finds those again.
    pub quarantine_may_be_lost: bool,
}

pub(crate) async fn repair_log(vault: &Vault) -> Result<LogRepairReport, RepairError> {
    let inner = &vault.inner;
    let records = inner.records();
    for _ in 0..ATTEMPTS {
        let log = gclog::read_from(records, 0).await?;
        let damaged = log.damaged();
        if damaged.is_empty() {
            return Ok(LogRepairReport::default());
        }
        nothing_is_unknown(damaged)?;
        let waits_for = undecided(inner, &log).await?;
        let what = GcWhat::Checkpoint(sum_up(&log, &waits_for));
        let Appended::Number(number) = log.append(records, what).await.map_err(RepairError::Log)? else {
            continue;
        };
        fill_gaps(inner, damaged).await?;
        return Ok(LogRepairReport {
            damaged: (damaged.iter())
                .map(|record| (object::gclog(record.number), record.what.clone()))
                .collect(),
            checkpoint: Some(number),
            quarantine_may_be_lost: damaged.iter().any(|record| !record.is_checkpoint),
        });
    }
    Err(RepairError::Busy)
}

fn nothing_is_unknown(damaged: &[DamagedRecord]) -> Result<(), RepairError> {
    let mut from_unknown = damaged.iter().skip_while(|record| record.is_checkpoint);
    match (from_unknown.next(), from_unknown.next()) {
        (Some(first), Some(second)) => Err(RepairError::LogUnknown {
            first: object::gclog(first.number),
            second: object::gclog(second.number),
        }),
        _ => Ok(()),
    }
}

/// The sessions that are undecided after the log was read.
async fn undecided(vault: &Arc<Inner>, log: &GcLog) -> Result<Vec<(MachineNumber, SessionNumber)>, ReadError> {
    let records = vault.records();
    let mut all = Vec::new();
    for (machine, _) in register::every_machine(records, log.machines()).await? {
        let first = log.decided_below(machine);
        for (number, decision) in register::decisions_from(records, machine, first).await? {
            let is_undecided = match decision {
                Ok(Decision::Undecided(_)) => true,
                Ok(Decision::Committed(_) | Decision::Aborted) => false,
                Err(damage) => !register::is_decided(&damage, machine, number),
            };
            if is_undecided {
                all.push((machine, number));
            }
        }
    }
    Ok(all)
}

/// Takes nothing out: what is gone, the next clean-up finds.
fn sum_up(log: &GcLog, undecided: &[(MachineNumber, SessionNumber)]) -> Checkpoint {
    let new = log.condemned_since().iter().map(|(since, packs)| Condemned {
        since: *since,
        packs: packs.clone(),
        waits_for: undecided.to_vec(),
    });
    let mut quarantined: Vec<_> = log.quarantined().collect();
    quarantined.sort_unstable();
    Checkpoint {
        machines: log.machines().to_vec(),
        condemned: log.condemned_with_waits().iter().cloned().chain(new).collect(),
        quarantined: quarantined.into_iter().map(PackName).collect(),
        replaced: log.replaced().map(PackName).collect(),
    }
}

/// A number that the store has lost would look like the log's end to whoever sees no listing. What is put there says nothing.
async fn fill_gaps(vault: &Arc<Inner>, damaged: &[DamagedRecord]) -> Result<(), RepairError> {
    for record in damaged.iter().filter(|record| !record.is_there) {
        match gclog::fill(vault.records(), record.number).await {
            Ok(()) | Err(StoreError::Taken { .. }) => {}
            Err(error) => return Err(RepairError::Log(error)),
        }
    }
    Ok(())
}
