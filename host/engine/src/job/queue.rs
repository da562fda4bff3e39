//! Between the snapshot and its transfer: waiting to be let through.

use futures::FutureExt;
use tokio::time::{Instant, sleep_until};

use super::error::JobError;
use super::run::Run;
use crate::progress::Phase;

/// Waits until the transfer may begin. The deadline counts from the snapshot, however long that takes.
pub(super) async fn pass(run: &mut Run<'_>) -> Result<Instant, JobError> {
    let deadline = Instant::now() + run.policy.deadline;
    let gate = run.deps.gate.clone();
    let mut passed = gate.pass();
    if passed.as_mut().now_or_never().is_some() {
        return Ok(deadline);
    }
    run.enter(Phase::Queue)?;
    tokio::select! {
        () = passed => Ok(deadline),
        () = run.deps.cancel.cancelled() => Err(JobError::Cancelled),
        () = sleep_until(deadline) => Err(JobError::DeadlinePassed(run.policy.deadline)),
    }
}
