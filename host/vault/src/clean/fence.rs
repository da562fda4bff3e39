//! Sessions that have outlived their deadline are fenced: an Abort is created where their point would be. Whatever they do
//! from then on, they cannot commit; if they were first, they have. Until then everything they may rely on stays.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::guards::lost;
use super::{CleanError, CleanReport, SessionName};
use crate::ids::{MachineNumber, SessionNumber};
use crate::mark::{MachineSurvey, Survey};
use crate::object;
use crate::point::Fate;
use crate::register::Session;
use crate::session::{self, CommitError};
use crate::vault::Inner;

/// What a session may last at most. A deadline beyond it was never meant, and would pin its bases for as long.
const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The writer gives up at its deadline by its own clock; two hours cover one that is wrong by a hundredth over a week, and a
/// commit that is on its way.
const GRACE: SignedDuration = SignedDuration::from_hours(2);

/// From when on a session may be fenced: the time that it gave itself, counted from when the store took its record. What
/// time it is for the writer plays no part, so a wrong clock neither shortens its life nor prolongs it.
pub(super) async fn fenced_from(
    vault: &Arc<Inner>,
    machine: MachineNumber,
    number: SessionNumber,
    session: &Session,
) -> Result<Timestamp, CleanError> {
    let granted = session.deadline.duration_since(session.begun_at);
    let granted = granted.clamp(SignedDuration::ZERO, LONGEST);
    begun_and(vault, machine, number, granted + GRACE).await
}

/// The same for a session that cannot be asked: the longest that any may last.
pub(super) async fn unreadable_fenced_from(
    vault: &Arc<Inner>,
    machine: MachineNumber,
    number: SessionNumber,
) -> Result<Timestamp, CleanError> {
    begun_and(vault, machine, number, LONGEST + GRACE).await
}

async fn begun_and(
    vault: &Arc<Inner>,
    machine: MachineNumber,
    number: SessionNumber,
    lasts: SignedDuration,
) -> Result<Timestamp, CleanError> {
    let object = object::session(machine, number);
    let Some(looked) = vault.store.look(&object).await? else {
        return Err(lost(object).into());
    };
    Ok(looked.modified.checked_add(lasts).unwrap_or(Timestamp::MAX))
}

pub(super) async fn name(
    vault: &Arc<Inner>,
    of: (MachineNumber, &str),
    number: SessionNumber,
    session: &Session,
) -> Result<SessionName, CleanError> {
    let (machine, machine_name) = of;
    Ok(SessionName {
        machine: machine_name.to_owned(),
        machine_number: machine,
        session: number,
        host: session.host.clone(),
        fenced_from: fenced_from(vault, machine, number, session).await?,
    })
}

/// Fences every session that is past its time.
pub(super) async fn fence_expired(
    vault: &Arc<Inner>,
    survey: &Survey,
    now: Timestamp,
    dry_run: bool,
    report: &mut CleanReport,
) -> Result<(), CleanError> {
    for machine in &survey.machines {
        if machine.machine == MachineNumber::MAINTENANCE {
            continue;
        }
        for (number, session) in &machine.undecided {
            let name = name(vault, (machine.machine, &machine.name), *number, session).await?;
            if name.fenced_from <= now
                && (dry_run || fence(vault, machine, *number, "it had outlived its deadline").await?)
            {
                report.fenced.push(name);
            }
        }
        for session in &machine.unreadable_undecided {
            let fenced_from = unreadable_fenced_from(vault, machine.machine, session.number).await?;
            if fenced_from <= now
                && (dry_run
                    || fence(
                        vault,
                        machine,
                        session.number,
                        "its record is damaged, and its time is over",
                    )
                    .await?)
            {
                report.fenced.push(SessionName {
                    machine: machine.name.clone(),
                    machine_number: machine.machine,
                    session: session.number,
                    host: String::new(),
                    fenced_from,
                });
            }
        }
    }
    Ok(())
}

/// Clean-ups that began earlier and are not over have broken off, or are overtaken by this one: the latest wins, and
/// nothing of a broken one stands in the way for the day that its deadline is away. Fencing one is safe at any moment, since
/// it deletes nothing before it has committed.
pub(super) async fn fence_earlier_cleaners(
    vault: &Arc<Inner>,
    survey: &Survey,
    own: SessionNumber,
    report: &mut CleanReport,
) -> Result<(), CleanError> {
    for machine in &survey.machines {
        let readable = machine.undecided.iter().map(|(number, _)| *number);
        let unreadable = machine.unreadable_undecided.iter().map(|session| session.number);
        for number in readable.chain(unreadable) {
            if machine.machine == MachineNumber::MAINTENANCE
                && number < own
                && fence(vault, machine, number, "a later clean-up has begun").await?
            {
                report.abandoned += 1;
            }
        }
    }
    Ok(())
}

/// A session that names a base which is purged gives up by itself, or was killed before it could: either it began after the
/// purge, or the purge came in its first moments. What such a base needs may be gone, so nobody can tell a hole in it from a
/// store that hides something. Fenced, it needs nothing. Says whether any was.
pub(super) async fn fence_baseless(vault: &Arc<Inner>, survey: &mut Survey, dry_run: bool) -> Result<bool, CleanError> {
    let mut any = false;
    for machine in &mut survey.machines {
        let points = &machine.points;
        let undecided: Vec<SessionNumber> = machine.undecided.iter().map(|(number, _)| *number).collect();
        // One that was undecided a moment ago may have committed since, and be a base already.
        let has_base = |base: &SessionNumber| {
            undecided.contains(base)
                || points
                    .iter()
                    .any(|point| point.number == *base && point.fate != Fate::Purged)
        };
        let baseless: Vec<SessionNumber> = machine
            .undecided
            .iter()
            .filter(|(_, session)| !session.bases.iter().all(has_base))
            .map(|(number, _)| *number)
            .collect();
        any |= !baseless.is_empty();
        for number in baseless {
            if dry_run {
                machine.undecided.retain(|(known, _)| *known != number);
            } else {
                fence(vault, machine, number, "its base is purged").await?;
            }
        }
    }
    Ok(any)
}

/// Says whether the session is aborted now; else it has committed meanwhile.
pub(super) async fn fence(
    vault: &Arc<Inner>,
    of: &MachineSurvey,
    number: SessionNumber,
    reason: &str,
) -> Result<bool, CleanError> {
    match session::abort(vault, of.machine, number, reason).await {
        Ok(()) => Ok(true),
        Err(CommitError::IsCommitted(_)) => Ok(false),
        Err(source) => Err(CleanError::Fence {
            machine: of.name.clone(),
            session: number,
            source,
        }),
    }
}
