//! What a good `pre` leaves for `post`: sessions that are open, and what it did that must be undone.

use std::collections::BTreeMap;

use coffre_engine::HookFreeze;
use parking_lot::Mutex;

use super::held::{EndOf, Sessions};
use super::undo::Undone;

/// What one job has left.
#[derive(Default)]
pub(super) struct Left {
    pub sessions: Sessions,
    pub undone: Undone,
}

/// What came of undoing it.
#[derive(Default)]
pub(super) struct Cleared {
    pub sessions: Vec<EndOf>,
    /// What could not be undone, or had been undone by somebody else before it was time.
    pub wrong: Vec<String>,
}

impl Left {
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.undone.is_empty()
    }

    /// Undoes all of it and waits for that. File systems first: a session may wait for one that is frozen. `all_is_well`: the
    /// script came to its end.
    pub(super) async fn clear(self, all_is_well: bool) -> Cleared {
        if self.is_empty() {
            return Cleared::default();
        }
        let cleared = tokio::task::spawn_blocking(move || {
            let wrong = self.undone.undo_all(all_is_well);
            Cleared {
                sessions: self.sessions.end_all(),
                wrong,
            }
        });
        cleared.await.unwrap_or_default()
    }
}

/// What every job has left that has run `pre` and not yet `post`.
#[derive(Default)]
pub(super) struct OfJobs(Mutex<BTreeMap<String, Left>>);

impl OfJobs {
    pub(super) fn put(&self, job: &str, left: Left) {
        if !left.is_empty() {
            self.0.lock().insert(job.to_owned(), left);
        }
    }

    pub(super) fn take(&self, job: &str) -> Left {
        self.0.lock().remove(job).unwrap_or_default()
    }

    /// What `pre` has frozen and holds.
    pub(super) fn frozen(&self, job: &str) -> Vec<HookFreeze> {
        let of = self.0.lock();
        of.get(job).map(|left| left.undone.frozen()).unwrap_or_default()
    }

    /// The first session that has ended although nobody closed it, and why.
    pub(super) fn lost(&self, job: &str) -> Option<(String, String)> {
        self.0.lock().get(job)?.sessions.lost()
    }
}
