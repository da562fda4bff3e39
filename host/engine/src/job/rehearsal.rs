//! A backup up to its snapshot, and back: hooks are tried with the code that holds applications in earnest, and nothing
//! travels.

use std::panic::AssertUnwindSafe;

use coffre_vault::ConsistencyReached;
use futures::FutureExt;

use super::error::{JobError, JobErrorKind};
use super::run::{self, Run};
use super::{JobDeps, base, debts, rest, snapshot};
use crate::journal::{JobOutcome, JobRecord};
use crate::progress::Phase;
use crate::rehearsal::Timeline;

/// What came of it.
#[derive(Debug)]
pub struct Rehearsal {
    pub job: String,
    /// What a point would have been worth, or why there would have been none.
    pub result: Result<ConsistencyReached, JobError>,
    pub timeline: Timeline,
    /// Nothing is held and nothing owed.
    pub all_let_go: bool,
}

/// Brings a machine's applications to rest, takes its snapshot, lets them go and releases the snapshot. There is no point.
///
/// As [`super::backup`], it must not be dropped while it runs. Errors are those that come before there is a job at all.
pub async fn rehearse(deps: &JobDeps, machine: &str) -> Result<Rehearsal, JobError> {
    let mut run = Run::begin(deps, machine)?;
    let result = match AssertUnwindSafe(hold_once(&mut run)).catch_unwind().await {
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
    Ok(Rehearsal {
        timeline: Timeline::of(&record),
        all_let_go: record.owed().is_nothing(),
        job: id,
        result,
    })
}

async fn hold_once(run: &mut Run<'_>) -> Result<ConsistencyReached, JobError> {
    run.enter(Phase::Debts)?;
    // A session that may be resumed stays in the journal of its own job, for the next backup.
    debts::pay_earlier(run).await?;
    run.enter(Phase::Prepare)?;
    let known = snapshot::prepare(run).await?;
    let base = base::find(run, &known).await?;
    let rested = rest::take_at_rest(run, &known, &base).await?;
    let taken = snapshot::accept(run, &known, &base, rested).await?;
    Ok(taken.consistency)
}
