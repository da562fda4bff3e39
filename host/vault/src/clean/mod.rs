//! Cleaning up: what nothing needs any more leaves the vault, beside writers that go on writing, with no lock and no waiting.
//!
//! One run finishes what earlier runs have begun and begins what later ones finish, in this order:
//!
//! 0. **A session of its own**, machine 0. The time that the store gives it is what everything is judged by; this host's
//!    clock is only compared with it. Earlier clean-ups that are not over are fenced: the latest wins, and one that was fenced
//!    cannot commit and so deletes nothing that it has moved.
//! 1. **Guards** ([`guards`]): the clean-up log and the registers are read, and whatever is missing, unreadable, of a kind that is
//!    not known, or from a time that cannot be, ends the run here.
//! 2. **Fence** ([`fence`]): sessions past their deadline get an Abort where their point would be.
//! 3. **Purge** ([`purge`]): points that were forgotten long enough ago. An undelete wants the same number in the register.
//! 4. **List** the packs, *then* survey (fates, *then* undecided sessions, *then* points), *then* mark. A pack that was listed is
//!    of a session that the survey has seen. The mark has every point of every session that is decided by then.
//! 5. **Ripe** ([`ripe`]): condemned packs that nobody undecided may rely on. What lives in them must be elsewhere first.
//! 6. **Repack and relist** ([`repack`], [`pieces`]) into the own session, and commit it. From here on readers find everything
//!    without what is about to go; before here, nothing is gone.
//! 7. **Read the log again, then delete** ([`delete`]), index first. A copy that somebody has condemned meanwhile no longer lets
//!    its twin go. A crash from here on is finished by the next run, which finds the packs condemned as before.
//! 8. **Condemn** ([`condemn`]) what the mark has found dead or sparse: a record in the log. *Then* read which sessions are
//!    undecided: they began before they could read the record, so they are waited for; whoever begins later reads it and relies
//!    on none of these packs. *Then* the **checkpoint** ([`checkpoint`]), which says whom each pack waits for.
//!
//! Between condemning and deleting lies at least one run, and a mark of its own: what a session came to rely on in between is
//! seen by it. A condemned pack is never pardoned, so a clean-up that stalls anywhere does no harm when it wakes: what it is
//! about to delete, nobody has come to need.

mod checkpoint;
mod condemn;
mod delete;
mod error;
mod fence;
mod guards;
mod inventory;
mod packs;
mod parity;
mod pieces;
mod purge;
mod repack;
mod report;
mod ripe;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

pub use error::CleanError;
pub use report::{
    Amount, CleanPlan, CleanProgress, CleanReport, CleanStage, DamagedChunk, PurgedPoint, Refused, RefusedKind,
    SessionName, Waiting,
};

use crate::gclog::GcLog;
use crate::ids::{MachineNumber, SessionNumber};
use crate::mark::{self, Marked, PackUses, Survey, mark, survey};
use crate::object::{self, PackKey};
use crate::point::{Fate, PointDraft};
use crate::session::{self, BeginError, CommitError, SessionPlan, SessionWriter};
use crate::vault::{Inner, LeftOut};
use checkpoint::Outcome;
use condemn::Candidates;
use packs::Packs;
use pieces::Relisting;
use ripe::{Doomed, Knowledge};

/// Longer than any clean-up takes that is still at work; the next one fences it in any case.
const LASTS: SignedDuration = SignedDuration::from_hours(24);
/// How often the survey is made anew because a session names a base that is purged by now.
const SURVEYS: usize = 4;

type Progress<'a> = &'a (dyn Fn(CleanProgress) + Sync);

pub(crate) async fn clean(
    vault: &Arc<Inner>,
    plan: &CleanPlan,
    progress: Progress<'_>,
) -> Result<CleanReport, CleanError> {
    if plan.dry_run {
        return look(vault, plan, progress).await;
    }
    let own = Maintenance::begin(vault, plan).await?;
    let result = run(vault, plan, &own, progress).await;
    if let Err(error) = &result {
        own.give_up(vault, &error.to_string()).await;
    }
    result
}

/// The clean-up's own session.
struct Maintenance {
    number: SessionNumber,
    host: String,
    /// What the store says of when the session began.
    store_time: Timestamp,
}

impl Maintenance {
    /// Step 0.
    async fn begin(vault: &Arc<Inner>, plan: &CleanPlan) -> Result<Self, CleanError> {
        let session = SessionPlan {
            machine: MachineNumber::MAINTENANCE,
            bases: Vec::new(),
            deadline: vault.records().now() + LASTS,
            host: plan.host.clone(),
            resumes: None,
        };
        let number = session::create_session(vault, &session).await?;
        let object = object::session(MachineNumber::MAINTENANCE, number);
        let looked = vault.store.look(&object).await?;
        let looked = looked.ok_or_else(|| guards::lost(object))?;
        Ok(Self {
            number,
            host: plan.host.clone(),
            store_time: looked.modified,
        })
    }

    /// What it writes with. The log was read after the session began, as every writer does.
    fn writer(&self, vault: &Arc<Inner>, log: &GcLog) -> SessionWriter {
        let machine = (MachineNumber::MAINTENANCE, String::new());
        SessionWriter::new(
            Arc::clone(vault),
            machine,
            self.number,
            self.host.clone(),
            log.clone(),
            Vec::new(),
        )
    }

    async fn commit(&self, vault: &Arc<Inner>, writer: &SessionWriter) -> Result<(), CleanError> {
        let draft = PointDraft {
            coffre: env!("CARGO_PKG_VERSION").to_owned(),
            ..PointDraft::default()
        };
        // Nobody commits a clean-up again after a crash: the file is only what the commit wants.
        let folder = tempfile::tempdir_in(vault.index.folder()).map_err(CleanError::Cache)?;
        match writer.commit(draft, &folder.path().join("commit")).await {
            Ok(_) => Ok(()),
            Err(CommitError::Fenced { reason }) => Err(CleanError::Overtaken { reason }),
            Err(error) => Err(CleanError::Commit(error)),
        }
    }

    /// Ends the session without a point, so that nobody waits for it. Where that fails, the next clean-up does it.
    async fn give_up(&self, vault: &Arc<Inner>, reason: &str) {
        match session::abort(vault, MachineNumber::MAINTENANCE, self.number, reason).await {
            Ok(()) | Err(CommitError::IsCommitted(_)) => {}
            Err(error) => tracing::warn!(session = %self.number, %error, "the clean-up's session stays undecided"),
        }
    }
}

/// Steps 1 to 4, which take nothing away.
struct Seen {
    log: GcLog,
    packs: Packs,
    survey: Survey,
    marked: Marked,
    uses: PackUses,
    /// Packs that the log or the index names and that are not there, each asked for by name.
    missing: BTreeSet<PackKey>,
}

async fn see(
    vault: &Arc<Inner>,
    plan: &CleanPlan,
    own: Option<&Maintenance>,
    now: Timestamp,
    report: &mut CleanReport,
    progress: Progress<'_>,
) -> Result<Seen, CleanError> {
    stage(progress, CleanStage::Surveying);
    let log = vault.log_anew().await?;
    guards::log_is_whole(vault, &log).await?;
    let newest = guards::registers_are_whole(vault, &log).await?;
    if !plan.force {
        guards::newest_is_near(newest, now)?;
    }
    let before = survey(vault, &log).await?;
    guards::points_are_all_there(&log, &before)?;
    if let Some(own) = own {
        fence::fence_earlier_cleaners(vault, &before, own.number, report).await?;
    }
    let without_abort = plan.dry_run || vault.leaves_out(LeftOut::Fence);
    fence::fence_expired(vault, &before, now, without_abort, report).await?;
    purge::purge_forgotten(vault, &before, now, plan, report).await?;

    let mut packs = Packs::list(vault).await?;
    let survey = survey_with_bases(vault, &log, plan, report).await?;
    guards::points_are_all_there(&log, &survey)?;
    let tell = |marking: mark::MarkProgress| {
        progress(CleanProgress {
            stage: CleanStage::Marking,
            done: marking.roots_done,
            total: marking.roots_total,
        });
    };
    let marked = mark(vault, &survey.roots(), &tell).await?;
    let mut named = marked.packs().map_err(CleanError::Cache)?;
    named.extend(log.condemned().chain(log.quarantined()));
    // In order and each once.
    named.sort_unstable();
    named.dedup();
    let missing = packs.missing(vault, named.into_iter()).await?;
    everything_live_is_somewhere(&marked, &missing)?;
    let forbids = |pack: &PackKey| log.forbids(pack) || missing.contains(pack);
    let uses = marked.pack_uses(&forbids).map_err(CleanError::Cache)?;
    Ok(Seen {
        uses,
        log,
        packs,
        survey,
        marked,
        missing,
    })
}

/// The survey that is marked: none of its sessions builds upon what may be gone.
async fn survey_with_bases(
    vault: &Arc<Inner>,
    log: &GcLog,
    plan: &CleanPlan,
    report: &CleanReport,
) -> Result<Survey, CleanError> {
    for _ in 0..SURVEYS {
        let mut survey = survey(vault, log).await?;
        if plan.dry_run || vault.leaves_out(LeftOut::Fence) {
            suppose_done(&mut survey, report);
        }
        guards::everything_reads(vault, &survey, plan).await?;
        if !fence::fence_baseless(vault, &mut survey, plan.dry_run).await? || plan.dry_run {
            return Ok(survey);
        }
    }
    Err(CleanError::Busy)
}

/// What a dry run has not fenced and purged counts as if it had.
fn suppose_done(survey: &mut Survey, report: &CleanReport) {
    for machine in &mut survey.machines {
        let is_fenced = |number: &SessionNumber| {
            report
                .fenced
                .iter()
                .any(|name| (name.machine_number, name.session) == (machine.machine, *number))
        };
        machine.undecided.retain(|(number, _)| !is_fenced(number));
        machine.unreadable_undecided.retain(|known| !is_fenced(&known.number));
        let readable = machine.points.iter_mut().map(|point| (point.number, &mut point.fate));
        let unreadable = machine
            .unreadable
            .iter_mut()
            .map(|point| (point.number, &mut point.fate));
        for (number, fate) in readable.chain(unreadable) {
            let is_purged = |purged: &PurgedPoint| (&purged.machine, purged.point) == (&machine.name, number);
            if report.purged.iter().any(is_purged) {
                *fate = Fate::Purged;
            }
        }
    }
}

/// A live chunk whose only packs are gone is damage that no clean-up may build upon: what it would call dead could be what
/// `repair` needs.
fn everything_live_is_somewhere(marked: &Marked, missing: &BTreeSet<PackKey>) -> Result<(), CleanError> {
    let mut lost = None;
    let looked = marked.live_in(missing, &mut |id, places| {
        if places.iter().all(|found| missing.contains(&found.pack)) {
            lost.get_or_insert(id);
        }
        Ok(())
    });
    looked.map_err(CleanError::Cache)?;
    lost.map_or(Ok(()), |id| Err(CleanError::ChunkMissing(id)))
}

/// What is decided before anything is written: what goes, what is listed anew, what is condemned.
struct Decided {
    doomed: Doomed,
    relisting: Relisting,
    candidates: Candidates,
}

async fn decide(vault: &Arc<Inner>, plan: &CleanPlan, now: Timestamp, seen: &Seen) -> Result<Decided, CleanError> {
    let in_use = condemn::sessions_in_use(vault, &seen.survey).await?;
    let candidates = condemn::candidates(&seen.packs, &seen.survey, &seen.log, &seen.uses, &in_use, now, plan)?;
    if !plan.force {
        guards::not_too_much(candidates.dead_bytes, seen.packs.total().bytes)?;
    }
    let mut ripe = match vault.leaves_out(LeftOut::Drain) {
        true => seen.log.condemned().collect(),
        false => ripe::ripe(&seen.log, &seen.survey),
    };
    ripe.retain(|pack| !seen.missing.contains(pack));
    let know = Knowledge {
        log: &seen.log,
        marked: &seen.marked,
        missing: &seen.missing,
        uses: &seen.uses,
    };
    let doomed = ripe::doom(vault, &know, &seen.packs, &ripe).await?;
    let away = doomed.packs.union(&seen.missing).copied().collect();
    let replaced = seen.log.replaced().collect();
    let relied = doomed.relied.keys().copied();
    let relisting = pieces::plan(vault, &seen.survey, &in_use, &seen.packs, away, &replaced, relied).await?;
    Ok(Decided {
        doomed,
        relisting,
        candidates,
    })
}

async fn run(
    vault: &Arc<Inner>,
    plan: &CleanPlan,
    own: &Maintenance,
    progress: Progress<'_>,
) -> Result<CleanReport, CleanError> {
    let now = own.store_time;
    let mut report = CleanReport {
        judged_at: now,
        ..CleanReport::default()
    };
    guards::clocks_agree(vault.records().now(), now)?;
    let seen = see(vault, plan, Some(own), now, &mut report, progress).await?;
    report.packs_before = seen.packs.total();
    let mut decided = decide(vault, plan, now, &seen).await?;

    // Step 6.
    let planned = decided.doomed.packs.clone();
    if decided.doomed.moved_chunks() > 0 || !decided.relisting.writes_nothing() {
        let writer = own.writer(vault, &seen.log);
        repack::repack(vault, &writer, &mut decided.doomed, &mut report, progress).await?;
        pieces::relist(vault, &writer, &decided.relisting, &mut report, progress).await?;
        report.repacked.bytes = writer.stats().stored_bytes;
        own.commit(vault, &writer).await?;
    } else {
        own.give_up(vault, "nothing had to be moved").await;
    }
    report.merged_pieces = decided.relisting.merged;
    for pack in &decided.doomed.left_for_later {
        report.left_for_later.add(seen.packs.bytes(pack));
    }

    // Step 7.
    let log = vault.log_anew().await?;
    let doomed = &mut decided.doomed;
    // What has left the log was gone; if its name is back, a writer that was stalled has made it again.
    doomed.packs.retain(|pack| log.is_condemned(pack));
    doomed.spare_what_relies_on(|pack| log.forbids(pack));
    let is_own = |pack: &PackKey| (pack.machine, pack.session) == (MachineNumber::MAINTENANCE, own.number);
    if log.quarantined().any(|pack| is_own(&pack)) {
        doomed.spare_emptied();
    }
    let spared = planned.difference(&doomed.packs).copied().collect();
    let going: Vec<_> = decided.relisting.going(&spared).collect();
    stage(progress, CleanStage::Deleting);
    let deleted = delete::delete(vault, going, &doomed.packs, &seen.packs, &mut report, progress).await?;

    parity::of_no_pack(vault, &seen.survey).await;

    // Step 8.
    stage(progress, CleanStage::Condemning);
    let not_there: BTreeSet<PackKey> = seen.missing.union(&decided.relisting.not_there).copied().collect();
    // What is not there is condemned as well, though the checkpoint drops it at once: hosts whose copy of the index lists it
    // learn of it by this record alone.
    condemn::condemn(vault, decided.candidates.packs.union(&not_there).copied().collect()).await?;
    report.condemned = decided.candidates.amount;
    report.too_young = decided.candidates.too_young;
    let gone: BTreeSet<PackKey> = not_there.union(&deleted.packs).copied().collect();
    let mut replaced: BTreeSet<PackKey> = deleted.refused_pieces.clone();
    replaced.extend(seen.log.replaced().filter(|piece| !deleted.pieces.contains(piece)));
    let outcome = Outcome {
        survey: &seen.survey,
        gone: &gone,
        still_listed: decided.relisting.still_listed(&deleted.pieces),
        replaced,
        counting: decided.relisting.counting_cleaners(&deleted.pieces),
    };
    let written = checkpoint::write(vault, &outcome).await?;
    let bytes = |pack: &PackKey| seen.packs.bytes(pack);
    let groups = &written.checkpoint.condemned;
    report.waiting = checkpoint::waiting(vault, &seen.survey, groups, &written.undecided, &gone, bytes).await?;
    report.checkpoint = Some(written.number);
    Ok(report)
}

/// A dry run: the same decisions, and nothing written. Only the store could tell its time, and only of something that is
/// written, so this host's clock stands in for it.
async fn look(vault: &Arc<Inner>, plan: &CleanPlan, progress: Progress<'_>) -> Result<CleanReport, CleanError> {
    let now = vault.records().now();
    let mut report = CleanReport {
        dry_run: true,
        judged_at: now,
        ..CleanReport::default()
    };
    let seen = see(vault, plan, None, now, &mut report, progress).await?;
    report.packs_before = seen.packs.total();
    let decided = decide(vault, plan, now, &seen).await?;
    report.repacked_chunks = decided.doomed.moved_chunks();
    report.repacked.packs = decided.doomed.moves.len() as u64;
    for pack in &decided.doomed.packs {
        report.deleted.add(seen.packs.bytes(pack));
    }
    report.deleted_pieces = decided.relisting.going(&BTreeSet::new()).count() as u64;
    report.merged_pieces = decided.relisting.merged;
    for pack in &decided.doomed.left_for_later {
        report.left_for_later.add(seen.packs.bytes(pack));
    }
    report.condemned = decided.candidates.amount;
    report.too_young = decided.candidates.too_young;
    let undecided = checkpoint::undecided(vault, &seen.survey).await?;
    let gone: BTreeSet<PackKey> = seen.missing.union(&decided.doomed.packs).copied().collect();
    let pieces: BTreeSet<PackKey> = decided
        .relisting
        .going(&BTreeSet::new())
        .map(|piece| piece.key)
        .collect();
    let outcome = Outcome {
        survey: &seen.survey,
        gone: &gone,
        still_listed: decided.relisting.still_listed(&pieces),
        replaced: BTreeSet::new(),
        counting: BTreeSet::new(),
    };
    let groups = checkpoint::sum_up(&seen.log, &undecided, &outcome).condemned;
    let bytes = |pack: &PackKey| seen.packs.bytes(pack);
    report.waiting = checkpoint::waiting(vault, &seen.survey, &groups, &undecided, &gone, bytes).await?;
    Ok(report)
}

fn stage(progress: Progress<'_>, stage: CleanStage) {
    progress(CleanProgress {
        stage,
        done: 0,
        total: 0,
    });
}

impl From<session::BeginError> for CleanError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Read(error) => Self::Read(error),
            BeginError::Store(error) => Self::Store(error),
            other => Self::Begin(other),
        }
    }
}
