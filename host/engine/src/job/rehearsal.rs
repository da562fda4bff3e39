//! A backup up to its snapshot, and back: hooks are tried with the code that holds applications in earnest, and nothing
//! travels.

use std::panic::AssertUnwindSafe;

use coffre_vault::{ConsistencyReached, Note};
use futures::FutureExt;

use super::error::{JobError, JobErrorKind};
use super::run::{self, Run};
use super::{JobDeps, base, debts, rest, snapshot};
use crate::journal::{Event, JobOutcome, JobRecord};
use crate::progress::Phase;
use crate::rehearsal::Timeline;

/// What came of it.
#[derive(Debug)]
pub struct Rehearsal {
    pub job: String,
    /// What a point would have been worth, or why there would have been none.
    pub result: Result<ConsistencyReached, JobError>,
    pub timeline: Timeline,
    /// What else stands in the job's journal, in order: failures with what to do about them, and what the guard did.
    pub notes: Vec<Note>,
    /// Some hook has declared that its application is at rest.
    pub declared: bool,
    /// Nothing is held and nothing owed.
    pub all_let_go: bool,
}

impl Rehearsal {
    /// As far as a job's journal tells it; of one that died there is nothing else.
    pub fn of(record: &JobRecord, result: Result<ConsistencyReached, JobError>, declared: bool) -> Self {
        let notes = record.records.iter().filter_map(|record| match &record.event {
            Event::Note { note } => Some(note.clone()),
            _ => None,
        });
        Self {
            job: record.id.clone(),
            timeline: Timeline::of(record),
            notes: notes.collect(),
            all_let_go: record.owed().is_nothing(),
            declared,
            result,
        }
    }
}

/// Brings a machine's applications to rest, takes its snapshot, lets them go and releases the snapshot. There is no point.
///
/// As [`super::backup`], it must not be dropped while it runs. Errors are those that come before there is a job at all.
pub async fn rehearse(deps: &JobDeps, machine: &str) -> Result<Rehearsal, JobError> {
    let mut run = Run::begin(deps, machine)?;
    let mut declared = false;
    let result = match AssertUnwindSafe(hold_once(&mut run, &mut declared))
        .catch_unwind()
        .await
    {
        Ok(result) => result,
        Err(panic) => Err(JobError::Panicked(run::panic_text(&*panic))),
    };
    run.enter_quietly(Phase::Release);
    debts::pay_own(&mut run, result.as_ref().err()).await;
    let (state, id) = (run.state.clone(), run.id.clone());
    let outcome = match &result {
        Ok(_) => JobOutcome::Rehearsed,
        Err(error) if error.kind() == JobErrorKind::Cancelled => JobOutcome::Cancelled,
        Err(_) => JobOutcome::Failed,
    };
    run.close(outcome, result.as_ref().err());
    let record = JobRecord::read(&state, machine, &id)?;
    Ok(Rehearsal::of(&record, result, declared))
}

async fn hold_once(run: &mut Run<'_>, declared: &mut bool) -> Result<ConsistencyReached, JobError> {
    run.enter(Phase::Debts)?;
    // A session that may be resumed stays in the journal of its own job, for the next backup.
    debts::pay_earlier(run).await?;
    run.enter(Phase::Prepare)?;
    let known = snapshot::prepare(run).await?;
    let base = base::find(run, &known).await?;
    let rested = rest::take_at_rest(run, &known, &base).await?;
    *declared = (rested.hooks.iter()).any(|hook| hook.outcome.application_consistent);
    run.go_on()?;
    let taken = snapshot::accept(run, &known, &base, rested).await?;
    Ok(taken.consistency)
}
