//! A backup, from lock to release, as one function that can be read aloud.
//!
//! The order matters, and why:
//! 1. The machine's lock first: everything after it may assume that nobody else works on the machine.
//! 2. What an earlier job that died still owes is paid before anything new is owed.
//! 3. Everything that can be known is checked before applications are disturbed.
//! 4. Applications are held for as short as can be: pre hooks, the freeze if there is one, one snapshot of all disks, the thaw,
//!    post hooks. Only then is the vault written to.
//! 5. The snapshot can wait: for a place, for its window, for others to have their share of the line.
//! 6. The point is committed last. Before it there is nothing to see in the vault, after it the job has succeeded, whatever
//!    the release of the snapshot does.
//! 7. Whatever happened, what the journal says is still owed is paid at the end, with the same code that pays after a crash.

mod base;
mod changes;
mod debts;
mod disks;
mod error;
mod freeze;
mod point;
mod queue;
mod rehearsal;
mod remembered;
mod rest;
mod run;
mod send;
mod snapshot;
mod told;
mod view;

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use coffre_guard::Guard;
use coffre_vault::{Note, Point, Vault};
use futures::FutureExt;

use crate::clock::Clock;
use crate::config::Config;
use crate::freeze::Freezer;
use crate::gate::Gate;
use crate::hook::HookRunner;
use crate::journal::JobOutcome;
use crate::progress::{Cancel, Phase, Progress};
use crate::provider::SnapshotProvider;

pub use error::{JobError, JobErrorKind};
pub use rehearsal::{Rehearsal, rehearse};
use run::Run;
pub use told::{Told, owes, tell};
pub use view::{HookView, JobView, PhaseView, job, jobs, listed};

/// How often it is looked whether another process wants a job to end.
const CANCEL_ASKED: Duration = Duration::from_secs(1);

/// What a backup works with. The provider and hooks are those of the machine, loaded by the caller; the vault is open.
#[derive(Clone)]
pub struct JobDeps {
    pub config: Arc<Config>,
    pub provider: Arc<dyn SnapshotProvider>,
    /// At least those that the machine's config names, in any order.
    pub hooks: Vec<Arc<dyn HookRunner>>,
    pub vault: Vault,
    /// Pays what hooks and freezes may leave behind when this process cannot. None: nothing outlives this process anyway, as
    /// in tests.
    pub guard: Option<Guard>,
    pub freezer: Arc<dyn Freezer>,
    pub clock: Arc<dyn Clock>,
    pub progress: Arc<Progress>,
    pub cancel: Cancel,
    /// When the transfer may go, and how fast.
    pub gate: Arc<dyn Gate>,
    /// This host's name, for people who read points.
    pub host: String,
    /// Things to say in the point that were known before the job began: a plugin without a pin, grants that were assumed.
    pub notes: Vec<Note>,
}

/// A backup that made a point.
#[derive(Clone, Debug)]
pub struct BackupReport {
    pub job: String,
    pub machine: String,
    /// The vault's name in the config.
    pub vault: String,
    pub point: Point,
    /// [`JobOutcome::Done`] or [`JobOutcome::Downgraded`].
    pub outcome: JobOutcome,
    /// Those of the point, and what was said after it was committed.
    pub notes: Vec<Note>,
    pub elapsed: Duration,
}

/// Backs up one machine. Ends only when nothing that it held is held any more, or is written down to be released by the
/// next job. Must not be dropped while it runs: ask `deps.cancel` instead. (If it is dropped, that is as a crash.)
pub async fn backup(deps: &JobDeps, machine: &str) -> Result<BackupReport, JobError> {
    let mut run = Run::begin(deps, machine)?;
    let listening = listen(&run);
    let result = match AssertUnwindSafe(make_point(&mut run)).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(JobError::Panicked(run::panic_text(&*panic))),
    };
    run.enter_quietly(Phase::Release);
    debts::pay_own(&mut run, result.as_ref().err()).await;
    listening.abort();
    run.end(result)
}

/// Hears when another process wants this job to end.
fn listen(run: &Run<'_>) -> tokio::task::JoinHandle<()> {
    let (state, machine, job) = (run.state.clone(), run.machine.name.clone(), run.id.clone());
    let cancel = run.deps.cancel.clone();
    tokio::spawn(async move {
        while !state.wants_to_cancel(&machine, &job) {
            tokio::time::sleep(CANCEL_ASKED).await;
        }
        tracing::info!(machine, job, "somebody cancels this job");
        cancel.cancel();
    })
}

/// Pays what jobs of a machine that died still owe, without backing it up: what a backup does first. Says what was done.
pub async fn pay(deps: &JobDeps, machine: &str) -> Result<Vec<Note>, JobError> {
    let mut run = Run::begin(deps, machine)?;
    let paid = AssertUnwindSafe(async {
        run.enter(Phase::Debts)?;
        let earlier = debts::pay_earlier(&mut run).await?;
        if let Some(resumes) = earlier.resumes {
            let text = format!("session {} is resumed by the next backup", resumes.session);
            run.say(coffre_vault::NoteLevel::Info, "session-open", text)?;
        }
        Ok(())
    });
    let paid = match paid.catch_unwind().await {
        Ok(paid) => paid,
        Err(panic) => Err(JobError::Panicked(run::panic_text(&*panic))),
    };
    run.end_without_point(paid)
}

/// The way of a backup.
async fn make_point(run: &mut Run<'_>) -> Result<Point, JobError> {
    run.enter(Phase::Debts)?;
    let earlier = debts::pay_earlier(run).await?;

    run.enter(Phase::Prepare)?;
    let known = snapshot::prepare(run).await?;
    let base = base::find(run, &known).await?;

    let rested = rest::take_at_rest(run, &known, &base).await?;
    let taken = snapshot::accept(run, &known, &base, rested).await?;

    let deadline = queue::pass(run).await?;
    let mut resumes = earlier.resumes;
    let sent = loop {
        run.enter(Phase::Transfer)?;
        let session = send::begin(run, &base, resumes.take(), deadline).await?;
        let sent = match send::transfer(run, &session, &taken, &base).await {
            // What the base needs is damaged, and nobody knew: from now on everybody does. Once more, around it.
            Err(error) if !run.began_anew && send::quarantine(run, &session, &base, &error).await => {
                run.once_more(&error)?;
                continue;
            }
            sent => sent?,
        };
        run.enter(Phase::Commit)?;
        match send::commit(run, &session, &taken, sent).await {
            // Somebody took our session for dead, or an old pack is lost. The snapshot is still there: once more.
            Err(error) if error.wants_a_new_session() && !run.began_anew => run.once_more(&error)?,
            sent => break sent?,
        }
    };

    // There is a point: nothing from here on makes the job fail.
    run.enter_quietly(Phase::Release);
    send::keep(run, &sent.point, sent.results).await;
    debts::settle(run).await;
    Ok(sent.point)
}
