//! The checkpoint: where every reader of the log starts, and what says of condemned packs whom they wait for.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Amount, SessionName, Waiting};
use super::{CleanError, fence};
use crate::gclog::{Appended, Checkpoint, Condemned, GcLog, GcWhat, MachineCheckpoint, PackName};
use crate::ids::{MachineNumber, SessionNumber};
use crate::mark::{MachineSurvey, Survey};
use crate::object::PackKey;
use crate::point::Fate;
use crate::register::{self, Decision, Session};
use crate::vault::{Inner, LeftOut};

/// How often the end of the log is tried where others write to it.
pub(super) const LOG_ATTEMPTS: usize = 64;

/// What this clean-up knows that the log does not say.
pub(super) struct Outcome<'a> {
    pub(super) survey: &'a Survey,
    /// Packs that are not there: deleted now, or asked for by name and not found.
    pub(super) gone: &'a BTreeSet<PackKey>,
    /// Packs that a piece of the index lists, gone or not: whoever reads that piece learns here that they are.
    pub(super) still_listed: BTreeSet<PackKey>,
    /// Pieces that are replaced and that the store has not deleted.
    pub(super) replaced: BTreeSet<PackKey>,
    /// The earlier clean-ups that count a piece which is there. The others need not be looked at any more.
    pub(super) counting: BTreeSet<SessionNumber>,
}

impl Outcome<'_> {
    /// Whether nobody need know any more that the pack has gone.
    fn is_past(&self, pack: &PackKey) -> bool {
        self.gone.contains(pack) && !self.still_listed.contains(pack)
    }
}

type Undecided = (MachineNumber, SessionNumber, Session);

/// What was written.
pub(super) struct Written {
    pub(super) number: u32,
    pub(super) checkpoint: Checkpoint,
    pub(super) undecided: Vec<Undecided>,
}

/// Writes the checkpoint upon the very log that it sums up. Where another record takes its number, that is read, and so are
/// the sessions anew: whom a foreign Condemn waits for can only be seen after it.
pub(super) async fn write(vault: &Arc<Inner>, outcome: &Outcome<'_>) -> Result<Written, CleanError> {
    for _ in 0..LOG_ATTEMPTS {
        let log = vault.log_anew().await?;
        let undecided = match vault.leaves_out(LeftOut::WaitsAfterCondemn) {
            true => undecided_before(outcome.survey),
            false => undecided(vault, outcome.survey).await?,
        };
        let checkpoint = sum_up(&log, &undecided, outcome);
        let what = GcWhat::Checkpoint(checkpoint.clone());
        match log.append(vault.records(), what).await.map_err(CleanError::Log)? {
            Appended::Number(number) => {
                return Ok(Written {
                    number,
                    checkpoint,
                    undecided,
                });
            }
            Appended::TooLate => {}
        }
    }
    Err(CleanError::Busy)
}

/// The sessions of all machines that are undecided now, machines that are new since the survey included.
pub(super) async fn undecided(vault: &Arc<Inner>, survey: &Survey) -> Result<Vec<Undecided>, CleanError> {
    let records = vault.records();
    let mut all = Vec::new();
    for (machine, _) in register::every_machine(records, &[]).await? {
        let first = survey.machine(machine).map_or(0, |known| known.decided_below);
        for (number, decision) in register::decisions(records, machine, &[], first).await? {
            match decision {
                Ok(Decision::Undecided(session)) => all.push((machine, number, session)),
                Ok(Decision::Committed(_) | Decision::Aborted) => {}
                Err(damage) if register::is_decided(&damage, machine, number) => {}
                Err(damage) => return Err(damage.into()),
            }
        }
    }
    Ok(all)
}

/// Those that were undecided before anything was condemned: what must not be waited for in their stead.
fn undecided_before(survey: &Survey) -> Vec<Undecided> {
    let of = |machine: &MachineSurvey| {
        let undecided = machine.undecided.clone();
        let number = machine.machine;
        undecided
            .into_iter()
            .map(move |(session, what)| (number, session, what))
    };
    survey.machines.iter().flat_map(of).collect()
}

/// What the log comes to, with what this clean-up knows beside.
pub(super) fn sum_up(log: &GcLog, undecided: &[Undecided], outcome: &Outcome<'_>) -> Checkpoint {
    let waits_now: Vec<(MachineNumber, SessionNumber)> = undecided
        .iter()
        .map(|(machine, number, _)| (*machine, *number))
        .collect();
    let there = |packs: &[PackName]| -> Vec<PackName> {
        packs.iter().filter(|name| !outcome.is_past(&name.0)).copied().collect()
    };
    let known = log.condemned_with_waits().iter().map(|group| Condemned {
        since: group.since,
        packs: there(&group.packs),
        // Whoever is decided stays so.
        waits_for: group
            .waits_for
            .iter()
            .filter(|session| waits_now.contains(session))
            .copied()
            .collect(),
    });
    // All that are undecided now: those that were when the packs were condemned are among them, or decided.
    let new = log.condemned_since().iter().map(|(since, packs)| Condemned {
        since: *since,
        packs: there(packs),
        waits_for: waits_now.clone(),
    });
    let mut quarantined: Vec<PackKey> = log.quarantined().filter(|pack| !outcome.is_past(pack)).collect();
    quarantined.sort_unstable();
    Checkpoint {
        machines: machines(outcome),
        condemned: known.chain(new).filter(|group| !group.packs.is_empty()).collect(),
        quarantined: quarantined.into_iter().map(PackName).collect(),
        replaced: outcome.replaced.iter().copied().map(PackName).collect(),
    }
}

fn machines(outcome: &Outcome<'_>) -> Vec<MachineCheckpoint> {
    let machines = outcome.survey.machines.iter().map(|machine| {
        let is_own = machine.machine == MachineNumber::MAINTENANCE;
        let is_live =
            |number: &SessionNumber| number.0 < machine.decided_below && (!is_own || outcome.counting.contains(number));
        let kept = machine.points.iter().filter(|point| point.fate != Fate::Purged);
        MachineCheckpoint {
            machine: machine.machine,
            name: machine.name.clone(),
            decided_below: machine.decided_below,
            live: kept.map(|point| point.number).filter(is_live).collect(),
        }
    });
    machines.collect()
}

/// What is condemned and not gone, and whom it waits for, told so that somebody can do something about it.
pub(super) async fn waiting(
    vault: &Arc<Inner>,
    survey: &Survey,
    groups: &[Condemned],
    undecided: &[Undecided],
    gone: &BTreeSet<PackKey>,
    bytes: impl Fn(&PackKey) -> u64,
) -> Result<Vec<Waiting>, CleanError> {
    let mut all: Vec<Waiting> = Vec::new();
    for group in groups {
        let mut amount = Amount::default();
        let there = group.packs.iter().filter(|name| !gone.contains(&name.0));
        there.for_each(|name| amount.add(bytes(&name.0)));
        if amount.packs == 0 {
            continue;
        }
        let mut waits_for: Vec<SessionName> = Vec::new();
        for (machine, number, session) in undecided {
            if group.waits_for.contains(&(*machine, *number)) {
                let name = survey.machine(*machine).map_or("", |known| known.name.as_str());
                waits_for.push(fence::name(vault, (*machine, name), *number, session).await?);
            }
        }
        match all.iter_mut().find(|known| known.waits_for == waits_for) {
            Some(known) => {
                known.amount.packs += amount.packs;
                known.amount.bytes += amount.bytes;
            }
            None => all.push(Waiting { amount, waits_for }),
        }
    }
    Ok(all)
}
