//! Between a scheduled job's snapshot and its transfer: its place in the queue, and its policy's windows.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use coffre_engine::config::Config;
use coffre_engine::schedule::Window;
use coffre_engine::{Clock, Gate, SystemClock};
use coffre_vault::Pace;
use tokio::sync::{Semaphore, mpsc};

use super::Message;

/// The windows of every machine, as the configuration has them now.
#[derive(Clone)]
pub(super) struct Windows(Arc<RwLock<BTreeMap<String, Vec<Window>>>>);

impl Windows {
    pub fn of(config: &Config) -> Self {
        Self(Arc::new(RwLock::new(read(config))))
    }

    pub fn reload(&self, config: &Config) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = read(config);
    }

    /// Whether a machine's transfer may go on; one that the configuration has no more may end.
    fn is_open(&self, machine: &str) -> bool {
        let windows = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let now = SystemClock.now();
        let of_machine = windows.get(machine).filter(|windows| !windows.is_empty());
        of_machine.is_none_or(|windows| windows.iter().any(|window| window.contains(now)))
    }
}

fn read(config: &Config) -> BTreeMap<String, Vec<Window>> {
    let of_machine = config.machines.values().map(|machine| {
        let windows = config.policy_of(machine).transfer;
        (machine.name.clone(), windows)
    });
    of_machine.collect()
}

/// The gate of a job of the service.
pub(super) struct QueueGate {
    pub machine: String,
    pub go: Arc<Semaphore>,
    pub windows: Windows,
    pub pace: Arc<dyn Pace>,
    pub outbox: mpsc::Sender<Message>,
}

#[async_trait]
impl Gate for QueueGate {
    async fn pass(&self) {
        // The loop hears until all jobs have ended, and closes no semaphore.
        let _ = self.outbox.send(Message::SnapshotTaken(self.machine.clone())).await;
        if let Ok(permit) = self.go.acquire().await {
            permit.forget();
        }
    }

    fn is_open(&self) -> bool {
        self.windows.is_open(&self.machine)
    }

    fn pace(&self) -> Option<Arc<dyn Pace>> {
        Some(self.pace.clone())
    }
}

/// The gate of a job that cron has started: its policy's windows alone.
pub struct WindowGate {
    windows: Windows,
    machine: String,
    pace: Arc<dyn Pace>,
}

/// How often it is looked whether a window has opened.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);

impl WindowGate {
    pub fn new(config: &Config, machine: &str, pace: Arc<dyn Pace>) -> Self {
        Self {
            windows: Windows::of(config),
            machine: machine.to_owned(),
            pace,
        }
    }
}

#[async_trait]
impl Gate for WindowGate {
    async fn pass(&self) {
        while !self.is_open() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn is_open(&self) -> bool {
        self.windows.is_open(&self.machine)
    }

    fn pace(&self) -> Option<Arc<dyn Pace>> {
        Some(self.pace.clone())
    }
}
