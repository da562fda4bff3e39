//! What those are told who want to hear how scheduled backups go: metrics, notifications, logs.

use std::time::Duration;

use jiff::Timestamp;

use super::Account;

/// One thing that happened, in the order in which it did.
#[derive(Clone, Debug)]
pub enum Happened {
    JobStarted {
        machine: String,
        due: Timestamp,
        /// Counted from 1.
        attempt: u32,
    },
    /// The job has its snapshot and waits until its transfer may begin.
    SnapshotTaken {
        machine: String,
    },
    TransferStarted {
        machine: String,
    },
    JobEnded {
        machine: String,
        /// None: it ended before there was a job.
        job: Option<String>,
        outcome: Outcome,
        error: Option<String>,
        hint: Option<String>,
        elapsed: Duration,
    },
    /// What became of due times: also that some were missed.
    Told(Account),
    /// Points that the policy keeps no longer were forgotten.
    Forgotten {
        machine: String,
        points: usize,
    },
    /// A changed configuration was taken over.
    Reloaded,
    /// It was not, and the old one stays.
    Refused {
        why: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There is a point, worth less than wanted.
    Downgraded,
    Failed,
    Cancelled,
    /// With the service; it goes on when that runs again.
    Stopped,
}
