//! How far a job is: counters that the work bumps and a screen looks at, so that the work never waits for a terminal.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::machine::DiskId;
use crate::transfer::DiskCounters;

/// What a backup is doing, in the order in which it does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Taking the machine's lock.
    #[default]
    Start,
    /// Undoing what an earlier job that died has left.
    Debts,
    /// Finding the base, the disks, and what would stand in the way.
    Prepare,
    Pre,
    Snapshot,
    Post,
    /// With its snapshot, for a place or its window.
    Queue,
    Transfer,
    Commit,
    /// Telling the provider what to keep, and letting the snapshot go.
    Release,
    End,
}

impl Phase {
    const ALL: [Self; 11] = [
        Self::Start,
        Self::Debts,
        Self::Prepare,
        Self::Pre,
        Self::Snapshot,
        Self::Post,
        Self::Queue,
        Self::Transfer,
        Self::Commit,
        Self::Release,
        Self::End,
    ];

    fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Start => "starting",
            Self::Debts => "paying what an earlier job owes",
            Self::Prepare => "preparing",
            Self::Pre => "running pre hooks",
            Self::Snapshot => "taking the snapshot",
            Self::Post => "running post hooks",
            Self::Queue => "waiting to transfer",
            Self::Transfer => "transferring",
            Self::Commit => "committing",
            Self::Release => "releasing the snapshot",
            Self::End => "done",
        })
    }
}

/// A running job as others see it. Shared by reference; every call is cheap.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    job: Option<String>,
    step: Option<String>,
    disks: Vec<(DiskId, u64, Arc<DiskCounters>)>,
    notes: Vec<String>,
}

/// What [`Progress`] was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressView {
    pub job: Option<String>,
    pub phase: Phase,
    /// What within the phase: a hook's name.
    pub step: Option<String>,
    pub disks: Vec<DiskView>,
    /// What a person should hear of while it runs, in the order in which it was said.
    pub notes: Vec<String>,
}

/// One disk of a [`ProgressView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    pub id: DiskId,
    pub size_bytes: u64,
    pub to_read_bytes: u64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub stored_bytes: u64,
    /// All of it has been read and stored.
    pub finished: bool,
}

impl Progress {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Relaxed))
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.inner.lock().step = None;
    }

    pub(crate) fn begin(&self, job: &str) {
        self.inner.lock().job = Some(job.to_owned());
    }

    pub(crate) fn step(&self, step: &str) {
        self.inner.lock().step = Some(step.to_owned());
    }

    pub(crate) fn note(&self, text: &str) {
        self.inner.lock().notes.push(text.to_owned());
    }

    /// The counters of a disk that is about to travel. A disk that starts over gets them anew.
    pub(crate) fn disk(&self, id: &DiskId, size_bytes: u64) -> Arc<DiskCounters> {
        let counters = Arc::new(DiskCounters::default());
        let mut inner = self.inner.lock();
        inner.disks.retain(|(known, ..)| known != id);
        inner.disks.push((id.clone(), size_bytes, counters.clone()));
        counters
    }

    /// Looks at everything. Counters of different disks may be a moment apart.
    pub fn snapshot(&self) -> ProgressView {
        let inner = self.inner.lock();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProgressView {
            job: inner.job.clone(),
            phase: self.phase(),
            step: inner.step.clone(),
            disks: inner
                .disks
                .iter()
                .map(|(id, size_bytes, counters)| DiskView {
                    id: id.clone(),
                    size_bytes: *size_bytes,
                    to_read_bytes: read(&counters.to_read_bytes),
                    read_bytes: read(&counters.read_bytes),
                    changed_bytes: read(&counters.changed_bytes),
                    stored_bytes: read(&counters.stored_bytes),
                    finished: self.phase() > Phase::Transfer,
                })
                .collect(),
            notes: inner.notes.clone(),
        }
    }
}

/// Somebody's wish that a job ends. Clones share it; it is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    shared: Arc<Wish>,
    /// A wish for all jobs is one for each.
    parent: Option<Arc<Wish>>,
}

#[derive(Debug, Default)]
struct Wish {
    wished: AtomicBool,
    /// The job is to go on later: what it has sent is for the next one.
    resumes: AtomicBool,
    wake: Notify,
}

impl Wish {
    fn is_there(&self) -> bool {
        self.wished.load(Ordering::Relaxed)
    }

    async fn comes(&self) {
        let mut woken = std::pin::pin!(self.wake.notified());
        // Listening before looking: a wish in between is not missed.
        woken.as_mut().enable();
        if !self.is_there() {
            woken.await;
        }
    }
}

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    /// One of its own for a job, which is also cancelled by this one.
    pub fn child(&self) -> Self {
        Self {
            shared: Arc::default(),
            parent: Some(self.shared.clone()),
        }
    }

    pub fn cancel(&self) {
        self.shared.wished.store(true, Ordering::Relaxed);
        self.shared.wake.notify_waiters();
    }

    /// The job is to end as soon as it can, and a later one goes on with what it has sent.
    pub fn stop(&self) {
        self.shared.resumes.store(true, Ordering::Relaxed);
        self.cancel();
    }

    fn wishes(&self) -> impl Iterator<Item = &Arc<Wish>> {
        std::iter::once(&self.shared).chain(&self.parent)
    }

    pub fn is_cancelled(&self) -> bool {
        self.wishes().any(|wish| wish.is_there())
    }

    /// Whether a later job goes on with what this one has sent.
    pub fn is_stopped(&self) -> bool {
        let stops = |wish: &Arc<Wish>| wish.resumes.load(Ordering::Relaxed);
        self.is_cancelled() && self.wishes().filter(|wish| wish.is_there()).all(stops)
    }

    /// Ends once it is wished.
    pub async fn cancelled(&self) {
        match &self.parent {
            Some(parent) => tokio::select! {
                () = self.shared.comes() => {}
                () = parent.comes() => {}
            },
            None => self.shared.comes().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_reads_back_from_its_number() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_number(phase as u8), phase);
        }
    }

    #[test]
    fn a_disk_that_starts_over_stands_there_once() {
        let progress = Progress::new();
        let id = DiskId("a".to_owned());
        progress.disk(&id, 10).read_bytes.store(7, Ordering::Relaxed);
        progress.disk(&id, 10).read_bytes.store(3, Ordering::Relaxed);
        let view = progress.snapshot();
        assert_eq!(view.disks.iter().map(|disk| disk.read_bytes).collect::<Vec<_>>(), [3]);
    }

    #[tokio::test]
    async fn a_cancel_is_heard_before_and_after_waiting() {
        let cancel = Cancel::new();
        let waiting = tokio::spawn({
            let cancel = cancel.clone();
            async move { cancel.cancelled().await }
        });
        tokio::task::yield_now().await;
        cancel.cancel();
        waiting.await.unwrap();
        cancel.cancelled().await;
    }

    #[tokio::test]
    async fn a_wish_for_all_is_one_for_each_and_not_the_other_way_round() {
        let all = Cancel::new();
        let (one, other) = (all.child(), all.child());
        one.cancel();
        one.cancelled().await;
        assert!(one.is_cancelled() && !one.is_stopped() && !other.is_cancelled() && !all.is_cancelled());
        all.stop();
        other.cancelled().await;
        assert!(other.is_stopped());
        // Somebody wanted that very job to end for good.
        assert!(!one.is_stopped());
    }
}
