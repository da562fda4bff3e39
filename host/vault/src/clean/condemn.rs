//! Choosing the packs that a later clean-up deletes, and saying so in the clean-up log, where every writer reads it after its
//! session exists and before it relies on anything.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::checkpoint::LOG_ATTEMPTS;
use super::packs::Packs;
use super::{Amount, CleanError, CleanPlan};
use crate::gclog::{Appended, GcLog, GcWhat, PackName};
use crate::ids::{MachineNumber, SessionNumber};
use crate::mark::{PackUses, Survey};
use crate::object::{self, ObjectType, PackKey};
use crate::register::Session;
use crate::vault::Inner;

/// A pack with less than half of its bytes in use is emptied: moving what lives costs less than what that frees.
const SPARSE_PERCENT: u64 = 50;
/// Chunks that are left to be moved by the next run; more sparse packs wait their turn, the emptiest come first.
const SPARSE_CHUNKS_LIMIT: u64 = 256 * 1024;

/// Sessions whose packs are not chosen.
pub(super) type InUse = BTreeSet<(MachineNumber, SessionNumber)>;

/// What nothing needs any more, or hardly.
#[derive(Default)]
pub(super) struct Candidates {
    pub(super) packs: BTreeSet<PackKey>,
    pub(super) amount: Amount,
    /// Of the bytes of all candidates, those that nobody needs.
    pub(super) dead_bytes: u64,
    pub(super) too_young: Amount,
}

/// Chooses among the packs that were listed *before* the survey: what came later belongs to sessions that it may not have seen.
pub(super) fn candidates(
    packs: &Packs,
    survey: &Survey,
    log: &GcLog,
    uses: &PackUses,
    in_use: &InUse,
    now: Timestamp,
    plan: &CleanPlan,
) -> Result<Candidates, CleanError> {
    let minimum_age = if plan.force {
        SignedDuration::ZERO
    } else {
        SignedDuration::try_from(plan.minimum_age).unwrap_or(SignedDuration::MAX)
    };
    let quarantined: BTreeSet<PackKey> = log.quarantined().collect();
    let mut chosen = Candidates::default();
    let mut sparse: Vec<(u64, PackKey, u64, u64)> = Vec::new();
    for (key, file) in packs.iter() {
        let known = survey
            .machine(key.machine)
            .is_some_and(|known| key.session.0 < known.end);
        if !known {
            // Its session was created before it, so the register of sessions is not what it was.
            return Err(CleanError::Gap {
                missing: object::session(key.machine, key.session),
                listed: key.object(),
            });
        }
        if log.is_condemned(&key) || in_use.contains(&(key.machine, key.session)) {
            continue;
        }
        let used = uses.get(&key);
        let (stored, live) = used.map_or((0, 0), |used| (used.stored_bytes, used.live_bytes));
        let is_dead = live == 0;
        // What lives in a damaged pack is not moved: it may be what is damaged. The next backups store it again.
        let is_sparse = u64::from(live) * 100 < u64::from(stored) * SPARSE_PERCENT && !quarantined.contains(&key);
        if !is_dead && !is_sparse {
            continue;
        }
        let dead_bytes = file.bytes.saturating_sub(u64::from(live));
        if now.duration_since(file.modified) < minimum_age {
            chosen.too_young.add(dead_bytes);
        } else if is_dead {
            chosen.take(key, file.bytes, dead_bytes);
        } else {
            let part = u64::from(live) * 1000 / u64::from(stored.max(1));
            sparse.push((part, key, file.bytes, dead_bytes));
        }
    }
    sparse.sort_unstable();
    let mut chunks = 0;
    for (_, key, bytes, dead_bytes) in sparse {
        chunks += uses.get(&key).map_or(0, |used| u64::from(used.live_chunks));
        if chunks > SPARSE_CHUNKS_LIMIT {
            break;
        }
        chosen.take(key, bytes, dead_bytes);
    }
    Ok(chosen)
}

impl Candidates {
    fn take(&mut self, key: PackKey, bytes: u64, dead_bytes: u64) {
        self.packs.insert(key);
        self.amount.add(bytes);
        self.dead_bytes += dead_bytes;
    }
}

/// Sessions that are at work, and those that they resume, one after the other: their packs are used again, and no point needs
/// them yet.
pub(super) async fn sessions_in_use(vault: &Arc<Inner>, survey: &Survey) -> Result<InUse, CleanError> {
    let mut in_use = InUse::new();
    for machine in &survey.machines {
        for (number, session) in &machine.undecided {
            in_use.insert((machine.machine, *number));
            let mut resumed = session.resumes;
            while let Some(number) = resumed.filter(|number| in_use.insert((machine.machine, *number))) {
                let object = object::session(machine.machine, number);
                let before: Option<Session> = vault.records().get(ObjectType::Session, &object).await?;
                resumed = before.and_then(|session| session.resumes);
            }
        }
    }
    Ok(in_use)
}

/// Writes the Condemn record. Packs that somebody else has condemned meanwhile are left to that record.
pub(super) async fn condemn(vault: &Arc<Inner>, packs: BTreeSet<PackKey>) -> Result<(), CleanError> {
    for _ in 0..LOG_ATTEMPTS {
        let log = vault.log_anew().await?;
        let names: Vec<PackName> = packs
            .iter()
            .filter(|pack| !log.is_condemned(pack))
            .copied()
            .map(PackName)
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let what = GcWhat::Condemn {
            packs: names,
            reason: "nothing needs them, or little of them, or they are not there".to_owned(),
        };
        match log.append(vault.records(), what).await.map_err(CleanError::Log)? {
            Appended::Number(_) => return Ok(()),
            Appended::TooLate => {}
        }
    }
    Err(CleanError::Busy)
}
