//! What stops a clean-up before it takes anything away: a clock or a store that lies.
//!
//! The protocol rests on what a GET says. The guards here are for the day on which that is wrong: a bucket restored from an
//! older copy, a mirror that is behind, a clock that was set by hand. Each compares two things that cannot both be true.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};

use super::{CleanError, CleanPlan, fence};
use crate::fate;
use crate::gclog::GcLog;
use crate::ids::{MachineNumber, SessionNumber, parse_key};
use crate::mark::{Survey, UnreadablePoint, UnreadableSession};
use crate::object;
use crate::point::Fate;
use crate::read::ReadError;
use crate::register;
use crate::store::StoreError;
use crate::vault::Inner;

/// A day covers every time zone mistaken for another, and no clock that anything may be deleted by.
const CLOCKS_APART: SignedDuration = SignedDuration::from_hours(24);
/// A store or clock that is a month ahead of the newest record is ahead of the truth, or nobody has made a backup for a
/// month: either is worth a look before anything is deleted.
const IDLE_LIMIT: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Deleting more than this part of a vault at once is seldom what somebody wanted.
const DEAD_LIMIT_PERCENT: u64 = 20;
/// Machines that are looked at at once, with a handful of requests each.
const MACHINES_AT_ONCE: usize = 8;

/// This host and the store agree about what time it is. Which of them is wrong cannot be known, so force does not help.
pub(super) fn clocks_agree(local: Timestamp, store: Timestamp) -> Result<(), CleanError> {
    if local.duration_since(store).abs() > CLOCKS_APART {
        return Err(CleanError::Clocks { local, store });
    }
    Ok(())
}

/// The clean-up log has no number missing before one that the store lists.
pub(super) async fn log_is_whole(vault: &Arc<Inner>, log: &GcLog) -> Result<(), CleanError> {
    let first = log.checkpoint_number().unwrap_or(0);
    let listed = listed_numbers(vault, "gclog", object::gclog(first)).await?;
    no_gap(vault, first, &listed, listed.last().copied(), object::gclog).await?;
    Ok(())
}

/// No register of machines or sessions has a number missing before one that the store lists. Tells the store's time of the
/// newest session or point of all machines.
pub(super) async fn registers_are_whole(vault: &Arc<Inner>, log: &GcLog) -> Result<Option<Timestamp>, CleanError> {
    let listed = listed_numbers(vault, "machines", "machines/".to_owned()).await?;
    let name = |number| object::machine(MachineNumber(number));
    no_gap(vault, 1, &listed, listed.last().copied(), name).await?;
    // Also those whose name was taken when they were made: sessions may stand under any number.
    let machines = register::every_machine(vault.records(), &[]).await?;
    for known in log.machines() {
        if !machines.iter().any(|(machine, _)| *machine == known.machine) {
            return Err(CleanError::MachineVanished {
                machine: known.name.clone(),
            });
        }
    }
    let newest: Vec<Option<Timestamp>> = stream::iter(machines)
        .map(|(machine, _)| sessions_are_whole(vault, log, machine))
        .buffer_unordered(MACHINES_AT_ONCE)
        .try_collect()
        .await?;
    Ok(newest.into_iter().flatten().max())
}

/// Gives the time of a machine's newest session or point; none for the clean-ups' own, of which this one is the newest.
async fn sessions_are_whole(
    vault: &Arc<Inner>,
    log: &GcLog,
    machine: MachineNumber,
) -> Result<Option<Timestamp>, CleanError> {
    let first = log.decided_below(machine);
    let session = |number| object::session(machine, SessionNumber(number));
    let point = |number| object::point(machine, SessionNumber(number));
    let (sessions, points) = (
        format!("sessions/{}", machine.key()),
        format!("points/{}", machine.key()),
    );
    let after = first.saturating_sub(1);
    let listed = listed_numbers(vault, &sessions, session(after)).await?;
    // A point is of a session, so it tells of one that the store has lost or hides.
    let points = listed_numbers(vault, &points, point(after)).await?;
    let last = listed.last().max(points.last()).copied();
    let end = no_gap(vault, first, &listed, last, session).await?;
    let end = register::end(&vault.store, end, session).await?;
    let Some(last) = end.checked_sub(1) else {
        return Ok(None);
    };
    if machine == MachineNumber::MAINTENANCE {
        return Ok(None);
    }
    let mut newest = None;
    for object in [session(last), point(last)] {
        newest = newest.max(vault.store.look(&object).await?.map(|looked| looked.modified));
    }
    Ok(newest)
}

async fn listed_numbers(vault: &Arc<Inner>, folder: &str, after: String) -> Result<BTreeSet<u32>, StoreError> {
    let listed = vault.store.list_after(folder, &after).await?;
    let number = |object: &str| parse_key(object.strip_prefix(folder)?.strip_prefix('/')?);
    Ok(listed.iter().filter_map(|found| number(&found.object)).collect())
}

/// Looks for every number up to the last one that anything tells of; what the listing shows need not be looked for. Gives the
/// number after the last.
async fn no_gap(
    vault: &Arc<Inner>,
    first: u32,
    listed: &BTreeSet<u32>,
    last: Option<u32>,
    name: impl Fn(u32) -> String,
) -> Result<u32, CleanError> {
    let Some(last) = last else {
        return Ok(first);
    };
    for number in first..=last {
        if !listed.contains(&number) && vault.store.size(&name(number)).await?.is_none() {
            return Err(CleanError::Gap {
                missing: name(number),
                listed: name(last),
            });
        }
    }
    Ok(last.saturating_add(1).max(first))
}

/// Somebody has written to the vault in the last month, and not in the future.
pub(super) fn newest_is_near(newest: Option<Timestamp>, now: Timestamp) -> Result<(), CleanError> {
    let Some(newest) = newest else { return Ok(()) };
    let age = now.duration_since(newest);
    if age > IDLE_LIMIT {
        Err(CleanError::Idle { newest, now })
    } else if -age > CLOCKS_APART {
        Err(CleanError::Future { newest, now })
    } else {
        Ok(())
    }
}

/// Every point that the checkpoint calls live is there; purged ones are there as well, since points are never deleted.
pub(super) fn points_are_all_there(log: &GcLog, survey: &Survey) -> Result<(), CleanError> {
    for known in log.machines() {
        let found = survey.machines.iter().find(|found| found.machine == known.machine);
        for live in &known.live {
            if !found.is_some_and(|found| found.has_point(*live)) {
                return Err(CleanError::PointVanished {
                    machine: known.name.clone(),
                    point: *live,
                });
            }
        }
    }
    Ok(())
}

/// What every point and every undecided session needs is known. A point that is purged needs nothing, so its record may be
/// damaged; and the clean-ups' own points need nothing in any case. For the others there is a way out, which the error tells.
pub(super) async fn everything_reads(vault: &Arc<Inner>, survey: &Survey, plan: &CleanPlan) -> Result<(), CleanError> {
    let records = vault.records();
    for machine in survey
        .machines
        .iter()
        .filter(|known| known.machine != MachineNumber::MAINTENANCE)
    {
        for UnreadablePoint { number, fate, what } in &machine.unreadable {
            let purged_from = match fate {
                Fate::Purged => continue,
                Fate::Kept | Fate::Unknown => None,
                Fate::Forgotten => {
                    let seen = fate::read(records, machine.machine, *number).await?;
                    let since = fate::forgotten_since(records, machine.machine, *number, &seen).await?;
                    let undelete_for = SignedDuration::try_from(plan.undelete_for).unwrap_or(SignedDuration::MAX);
                    since.map(|since| since.checked_add(undelete_for).unwrap_or(Timestamp::MAX))
                }
            };
            return Err(CleanError::UnreadablePoint {
                machine: machine.name.clone(),
                point: *number,
                what: what.clone(),
                purged_from,
            });
        }
        if let Some(UnreadableSession { number, what }) = machine.unreadable_undecided.first() {
            return Err(CleanError::UnreadableSession {
                machine: machine.name.clone(),
                session: *number,
                what: what.clone(),
                fenced_from: fence::unreadable_fenced_from(vault, machine.machine, *number).await?,
            });
        }
    }
    Ok(())
}

/// What is to be condemned at once is a small part of the vault.
pub(super) fn not_too_much(dead_bytes: u64, all_bytes: u64) -> Result<(), CleanError> {
    // In 128 bits nothing overflows.
    let percent = u128::from(dead_bytes) * 100 / u128::from(all_bytes.max(1));
    if u128::from(dead_bytes) * 100 > u128::from(all_bytes) * u128::from(DEAD_LIMIT_PERCENT) {
        return Err(CleanError::TooMuch {
            dead_bytes,
            all_bytes,
            dead_percent: percent as u64,
        });
    }
    Ok(())
}

/// What a register's reader says where a number is missing.
pub(super) fn lost(object: String) -> ReadError {
    ReadError::Damaged {
        object,
        what: "it has left the vault".to_owned(),
    }
}
