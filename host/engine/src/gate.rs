//! The seam between a job and whoever says when transfers go: snapshot now, transfer later.

use std::sync::Arc;

use async_trait::async_trait;
use coffre_vault::Pace;

/// When a job's transfer may begin, whether it may go on, and how fast.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Called once, when the job has its snapshot; ends when its transfer may begin. Is dropped when the job is cancelled.
    async fn pass(&self);

    /// Whether bytes may travel right now. A transfer under way pauses while they may not.
    fn is_open(&self) -> bool;

    /// What packs ask before they go. None: they go.
    fn pace(&self) -> Option<Arc<dyn Pace>>;
}

/// The gate of jobs that somebody waits for: always open.
#[derive(Clone, Debug, Default)]
pub struct OpenGate {
    pub pace: Option<Arc<dyn Pace>>,
}

#[async_trait]
impl Gate for OpenGate {
    async fn pass(&self) {}

    fn is_open(&self) -> bool {
        true
    }

    fn pace(&self) -> Option<Arc<dyn Pace>> {
        self.pace.clone()
    }
}
