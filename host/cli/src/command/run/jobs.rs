//! A job of the service: the backup, and after a good one what its policy keeps no longer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffre_engine::job::BackupReport;
use coffre_engine::journal::JobOutcome;
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::scheduler::Outcome;
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use super::Message;
use super::gate::{QueueGate, Windows};
use crate::backing::Backing;
use crate::book;
use crate::command::forget;
use crate::output::{size, span};

pub(super) struct Job {
    pub machine: String,
    pub backing: Arc<Backing>,
    pub cancel: Cancel,
    pub go: Arc<Semaphore>,
    pub windows: Windows,
    pub outbox: mpsc::Sender<Message>,
}

/// What became of a job.
pub(super) struct EndedJob {
    pub machine: String,
    /// None: it ended before there was one.
    pub job: Option<String>,
    pub result: anyhow::Result<Made>,
    /// How many points its policy no longer kept; none: it was not asked.
    pub forgotten: Option<anyhow::Result<usize>>,
    pub elapsed: Duration,
}

/// The point that a job made, as far as it is told.
pub(super) struct Made(BackupReport);

impl Made {
    pub fn outcome(&self) -> Outcome {
        match self.0.outcome {
            JobOutcome::Downgraded => Outcome::Downgraded,
            _ => Outcome::Done,
        }
    }

    /// One line of the service's log.
    pub fn line(&self, elapsed: Duration) -> String {
        let point = &self.0.point;
        let changed: u64 = point.disks.iter().map(|disk| disk.changed_bytes).sum();
        let reached = match self.outcome() {
            Outcome::Downgraded => format!("DOWNGRADED to {}", point.consistency.reached),
            _ => format!("{} consistent", point.consistency.reached),
        };
        format!(
            "point {} is there, {reached}, changed {}, stored {}, in {}",
            point.number,
            size(changed),
            size(point.written.stored_bytes),
            span(elapsed)
        )
    }
}

impl Job {
    pub fn spawn(self) {
        tokio::spawn(async move {
            let outbox = self.outbox.clone();
            let ended = self.run().await;
            // The loop hears until all jobs have ended.
            let _ = outbox.send(Message::Ended(Box::new(ended))).await;
        });
    }

    async fn run(self) -> EndedJob {
        let (started, began) = (Instant::now(), Timestamp::now());
        let progress = Progress::new();
        let gate = Arc::new(QueueGate {
            machine: self.machine.clone(),
            go: self.go,
            windows: self.windows,
            pace: self.backing.pacer.share(),
            outbox: self.outbox,
        });
        let backup = self.backing.backup(&self.machine, progress.clone(), self.cancel, gate);
        let result = match caught(backup).await {
            Ok(result) => result,
            Err(what) => Err(anyhow::anyhow!("the backup broke off: {what}")),
        };
        let job = progress.snapshot().job;
        if let (None, Err(error)) = (&job, &result) {
            book::attempt(&self.backing.config, &self.machine, began, error);
        }
        let elapsed = started.elapsed();
        let forgotten = match &result {
            Ok(report) => forget::after_backup(&self.backing, &self.machine, &report.vault)
                .await
                .transpose(),
            Err(_) => None,
        };
        EndedJob {
            machine: self.machine,
            job,
            result: result.map(Made),
            forgotten,
            elapsed,
        }
    }
}

/// A panic outside of the job proper ends that job and not the service.
async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    use futures::FutureExt;
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "it panicked".to_owned())
    })
}
