//! What is remembered of each machine while nothing runs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A due time of a machine, and what became of it so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub due: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next; none: nothing more is tried for this due time.
    pub try_at: Option<Timestamp>,
    pub state: TurnState,
    /// Of the last attempt.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TurnState {
    /// For its time, a free place, or another attempt.
    Waiting,
    Running,
    Done,
    /// No attempt is left.
    Failed,
    /// Its time went by: a newer one took its place before it could run.
    Missed,
}
