//! Paying what is owed: by jobs that died, and by this one when it fails.
//!
//! The order is that of a job: applications first, then the vault, then the provider. What cannot be paid now stays
//! owed in the journal and is tried again by the next job.

use std::time::Duration;

use coffre_vault::{CommitError, NoteLevel, SessionNumber, StepOutcome};
use tokio::time::sleep;

use super::error::JobError;
use super::rest::{hinted, post};
use super::run::Run;
use super::send::bases_of;
use super::snapshot::{LoadedHook, context};
use crate::error_chain::Chain;
use crate::hook::{HookContext, SnapshotOutcome};
use crate::journal::{Ended, Event, JobOutcome, JobRecord, Journal, OwedSession};
use crate::machine::DiskId;
use crate::provider::SnapshotId;

/// How often `settle` and `release` are tried before they are left to the next job.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// What earlier jobs leave to this one.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// A session in this vault that may be resumed.
    pub resumes: Option<Resumes>,
}

/// A session of a job that died, and the journal in which it is owed.
#[derive(Debug)]
pub(super) struct Resumes {
    pub session: SessionNumber,
    pub journal: Journal,
}

/// Undoes what jobs of this machine that died have left: posts of hooks that were started, commits that may have arrived,
/// sessions, snapshots.
pub(super) async fn pay_earlier(run: &mut Run<'_>) -> Result<Earlier, JobError> {
    let mut earlier = Earlier::default();
    let mut not_yet: Vec<SnapshotId> = Vec::new();
    let mut jobs = JobRecord::all(&run.state, &run.machine.name)?;
    jobs.retain(|job| job.id != run.id && !job.records.is_empty());
    jobs.retain(|job| job.ended().is_none() || !job.owed().is_nothing());
    for job in jobs {
        // What is done for that job is written into its journal.
        let own = std::mem::replace(&mut run.journal, Journal::reopen(&job)?);
        let paid = pay_one(run, &job, &mut not_yet).await;
        let journal = std::mem::replace(&mut run.journal, own);
        let resumes = paid?;
        if job.ended().is_none() {
            let text = format!("job {} died; what it owed has been paid", job.id);
            run.say(NoteLevel::Warning, "earlier-job-died", text)?;
        }
        if let Some(session) = resumes {
            let resumes = Resumes { session, journal };
            if let Some(before) = earlier.resumes.replace(resumes) {
                give_up(run, before).await;
            }
        }
    }
    let held = run.deps.provider.held(&run.machine).await;
    let mut held = held.map_err(run.provider_failed("say which snapshots it holds"))?;
    held.retain(|id| !not_yet.contains(id));
    if !held.is_empty() {
        settle(run).await;
    }
    for id in held {
        release(run, &id).await;
    }
    Ok(earlier)
}

/// Aborts a session that nobody will resume.
async fn give_up(run: &mut Run<'_>, resumes: Resumes) {
    let Some(owed) = resumes.journal.owed().session else {
        return;
    };
    let own = std::mem::replace(&mut run.journal, resumes.journal);
    abort(run, owed, "its job died, and a later one is resumed").await;
    run.journal = own;
}

/// Pays for one job, whose journal stands in for the run's own. Returns the session that may be resumed.
async fn pay_one(
    run: &mut Run<'_>,
    job: &JobRecord,
    not_yet: &mut Vec<SnapshotId>,
) -> Result<Option<SessionNumber>, JobError> {
    let owed = run.journal.owed().clone();
    let outcome = match (owed.taken, owed.snapshots.is_empty()) {
        (true, _) => SnapshotOutcome::Taken,
        (false, false) => SnapshotOutcome::Failed,
        (false, true) => SnapshotOutcome::NotTried,
    };
    pay_hooks(run, &job.id, &job.disks(), outcome).await;
    let here = job
        .started()
        .is_some_and(|started| started.vault_id == run.deps.vault.id().to_string());
    let mut resumes = None;
    if let Some(session) = owed.session {
        if !here && session.committing {
            // Only a backup to that vault can find out; until then what belongs to its point stays.
            not_yet.extend(owed.snapshots.iter().cloned());
            run.fate_unknown = true;
            died(run);
            return Ok(None);
        }
        if !here {
            over(
                run,
                session,
                "its vault is not the one that is backed up to; its deadline ends it",
            );
        } else if !settled_in_vault(run, session, job.has_commit_file(session.session)).await? {
            resumes = Some(session.session);
        }
    }
    // Before the release: what the provider drops then depends on what it was told to keep.
    if !owed.snapshots.is_empty() {
        settle(run).await;
    }
    for id in &owed.snapshots {
        release(run, id).await;
    }
    died(run);
    Ok(resumes)
}

/// Ends the journal of a job that could not.
fn died(run: &mut Run<'_>) {
    if !run.journal.has_ended() {
        run.record_quietly(Event::Ended(Ended {
            outcome: JobOutcome::Died,
            error: Some(JobError::Died.to_string()),
            hint: None,
            read_bytes: 0,
            changed_bytes: 0,
            stored_bytes: 0,
        }));
    }
}

/// Pays what this job owes at its end. After a success that is the snapshot; after a failure whatever there is.
pub(super) async fn pay_own(run: &mut Run<'_>, failure: Option<&JobError>) {
    let owed = run.journal.owed().clone();
    // Only a panic leaves hooks owed: a failure has run their post long before.
    let (id, disks) = (run.id.clone(), run.disks.clone());
    pay_hooks(run, &id, &disks, SnapshotOutcome::Failed).await;
    if let Some(JobError::FateUnknown(_)) = failure {
        return;
    }
    if failure.is_some()
        && let Some(pace) = run.deps.gate.pace()
    {
        // Packs that wait for their share of the line would hold up the end.
        pace.let_go();
    }
    match (failure, owed.session) {
        (Some(JobError::Cancelled), Some(_)) if run.deps.cancel.is_stopped() => leave(run).await,
        (Some(error), Some(session)) => abort(run, session, &Chain(error).to_string()).await,
        _ => {}
    }
    for id in &owed.snapshots {
        release(run, id).await;
    }
}

/// The session stays owed: the next job goes on with it.
async fn leave(run: &mut Run<'_>) {
    if let Some(writer) = run.writer.clone()
        && let Err(error) = writer.leave().await
    {
        tracing::debug!(job = run.id, error = %Chain(&error), "a session that was left had failed before");
    }
}

/// Runs the posts that `job` owes, last first. They hear of the job that started them.
async fn pay_hooks(run: &mut Run<'_>, job: &str, disks: &[DiskId], outcome: SnapshotOutcome) {
    for owed in run.journal.owed().hooks.clone().into_iter().rev() {
        let config = run.deps.config.hook(&owed.name).cloned();
        let runner = run.deps.hooks.iter().find(|runner| runner.name() == owed.name).cloned();
        let (Ok(config), Some(runner)) = (config, runner) else {
            let text = format!(
                "hook {} was started by job {job}, and the machine has it no more",
                owed.name
            );
            run.say_quietly(NoteLevel::Error, "hook-lost", text);
            // Said once; nothing here can ever run it.
            run.record_quietly(Event::HookEnded {
                hook: owed.name,
                outcome: StepOutcome::default(),
            });
            continue;
        };
        let hook = LoadedHook::new(config, runner);
        let context = HookContext {
            job: job.to_owned(),
            ..context(run, disks, &hook)
        };
        let ended = post(run, &hook, &context, &owed, outcome, None).await;
        if let Some(failure) = ended.failure {
            let text = format!("post of hook {} failed: {failure}{}", owed.name, hinted(&failure));
            run.say_quietly(NoteLevel::Error, "hook-failed", text);
        }
    }
}

/// Whether a session's fate is known. Where its commit's bytes lie here, the very same are sent again.
async fn settled_in_vault(run: &mut Run<'_>, owed: OwedSession, has_commit_file: bool) -> Result<bool, JobError> {
    let vault = &run.deps.vault;
    let file = run.journal.commit_file(owed.session);
    let there = vault.settled_point(owed.machine, owed.session).await;
    let answer = match there.map_err(JobError::Read)? {
        Some(point) => Ok(point),
        None if owed.committing && has_commit_file => vault.commit_again(owed.machine, owed.session, &file).await,
        None => return Ok(false),
    };
    match answer {
        Ok(point) => {
            let vault = vault.id().to_string();
            run.memory.bases.insert(vault, bases_of(&point));
            run.state.write_machine(&run.machine.name, &run.memory)?;
            run.record(Event::Committed { session: owed.session })?;
            let text = format!("point {} of a job that died is in the vault after all", point.number);
            run.say(NoteLevel::Info, "committed-after-all", text)?;
            Ok(true)
        }
        Err(CommitError::Fenced { reason }) => {
            over(run, owed, &reason);
            Ok(true)
        }
        Err(error @ (CommitError::Unknown(_) | CommitError::Full(_))) => Err(JobError::FateUnknown(Box::new(error))),
        // What lies here is no commit of this session, and what is not there was not sent.
        Err(CommitError::CommitFile { .. } | CommitError::Read(_)) => Ok(false),
        Err(error) => Err(JobError::Commit(Box::new(error))),
    }
}

fn over(run: &mut Run<'_>, owed: OwedSession, why: &str) {
    run.record_quietly(Event::SessionOver {
        session: owed.session,
        why: why.to_owned(),
    });
}

/// Gives a session up.
pub(super) async fn abort(run: &mut Run<'_>, owed: OwedSession, why: &str) {
    let own = run
        .writer
        .as_ref()
        .filter(|writer| writer.number() == owed.session)
        .cloned();
    let aborted = match own {
        // Which waits for what it is still sending.
        Some(writer) => writer.abort(why).await,
        None => run.deps.vault.abort(owed.machine, owed.session, why).await,
    };
    match aborted {
        Ok(()) => over(run, owed, why),
        // Somebody else has.
        Err(CommitError::Fenced { reason }) => over(run, owed, &reason),
        Err(CommitError::IsCommitted(session)) => run.record_quietly(Event::Committed { session }),
        Err(error) => {
            let text = format!("session {} could not be aborted yet: {}", owed.session, Chain(&error));
            run.say_quietly(NoteLevel::Warning, "session-open", text);
        }
    }
}

/// Tells the provider which bases stay: of every vault that this machine is backed up to. Failing costs a scan, no data.
pub(super) async fn settle(run: &mut Run<'_>) {
    if run.fate_unknown {
        return;
    }
    let keep = run.memory.keep();
    let mut attempt = 1;
    while let Err(error) = run.deps.provider.settle(&run.machine, &keep).await {
        if attempt == ATTEMPTS || !error.may_retry() {
            let text = format!(
                "{} could not be told what to keep: {}",
                run.provider.name,
                Chain(&error)
            );
            return run.say_quietly(NoteLevel::Warning, "not-settled", text);
        }
        attempt += 1;
        sleep(PAUSE).await;
    }
}

/// Lets a snapshot go.
async fn release(run: &mut Run<'_>, id: &SnapshotId) {
    let mut attempt = 1;
    while let Err(error) = run.deps.provider.release(&run.machine, id).await {
        if attempt == ATTEMPTS || !error.may_retry() {
            let text = format!(
                "snapshot {} could not be released, the next job tries again: {}",
                id.0,
                Chain(&error)
            );
            return run.say_quietly(NoteLevel::Warning, "snapshot-held", text);
        }
        attempt += 1;
        sleep(PAUSE).await;
    }
    run.record_quietly(Event::Released { snapshot: id.clone() });
}
