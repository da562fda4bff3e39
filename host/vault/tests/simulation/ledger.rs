//! What must be true, kept beside the vault: what every point holds, who was told that it is there, and who asked for it to
//! go. The first thing that is not as it must be ends the run.

use std::collections::BTreeMap;
use std::sync::Arc;

use coffre_vault::testing::SimWorld;
use coffre_vault::{MachineNumber, SessionNumber};
use parking_lot::Mutex;

use crate::disk::Disk;

pub type PointName = (MachineNumber, SessionNumber);

/// What a point holds.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub disk: Disk,
    pub attachment: Vec<u8>,
}

/// What is known of a point from outside.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub content: Arc<Content>,
    /// Somebody was told that it is there.
    pub acknowledged: bool,
    /// Somebody has asked for it to go, and nobody was told since that it is kept.
    pub may_go: bool,
    /// Those who are asking for it to go at this moment, or died while they did: what they sent may arrive at any time.
    asking: u32,
    /// How often somebody has asked for it to go.
    asked: u32,
    /// Somebody was told that it is pinned, and nobody has asked for the pin to go since.
    pub pinned: bool,
    /// The same as of those who want it to go.
    unpinning: u32,
    unpinned: u32,
}

/// What others were about when somebody began to ask for a point to be kept: the answer tells of some moment since.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// Nobody was asking for it to go or for its pin to go.
    quiet: bool,
    asked: u32,
    unpinned: u32,
}

/// Which other clean-ups there were when one began.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    others: u64,
    begun: u64,
}

#[derive(Default)]
struct State {
    points: BTreeMap<PointName, Entry>,
    wrong: Option<String>,
    counts: BTreeMap<&'static str, u64>,
    writers: u64,
    /// Clean-ups that are at work, or died at it: what they sent may arrive at any time.
    cleaning: u64,
    cleans_begun: u64,
}

pub struct Ledger {
    pub world: Arc<SimWorld>,
    state: Mutex<State>,
}

impl Ledger {
    pub fn new(world: &Arc<SimWorld>) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            state: Mutex::default(),
        })
    }

    /// The first one counts.
    pub fn wrong(&self, what: impl Into<String>) {
        let what = what.into();
        self.world.note("VIOLATION", what.clone());
        self.state.lock().wrong.get_or_insert(what);
    }

    pub fn is_wrong(&self) -> bool {
        self.state.lock().wrong.is_some()
    }

    pub fn take_wrong(&self) -> Option<String> {
        self.state.lock().wrong.take()
    }

    /// How often things happened, so that one can see that they do.
    pub fn count(&self, what: &'static str) {
        *self.state.lock().counts.entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().counts.clone()
    }

    pub fn writer_begins(&self) {
        self.state.lock().writers += 1;
    }

    pub fn writer_ends(&self) {
        self.state.lock().writers -= 1;
    }

    pub fn somebody_writes(&self) -> bool {
        self.state.lock().writers > 0
    }

    /// Before a clean-up.
    pub fn clean_begins(&self) -> Beside {
        let mut state = self.state.lock();
        let beside = Beside {
            others: state.cleaning,
            begun: state.cleans_begun,
        };
        state.cleaning += 1;
        state.cleans_begun += 1;
        beside
    }

    /// After one that did not die. Says whether it was the only one all the while.
    pub fn clean_ends(&self, beside: Beside) -> bool {
        let mut state = self.state.lock();
        state.cleaning -= 1;
        beside.others == 0 && state.cleans_begun == beside.begun + 1
    }

    pub fn points(&self) -> Vec<(PointName, Entry)> {
        let state = self.state.lock();
        state
            .points
            .iter()
            .map(|(name, entry)| (*name, entry.clone()))
            .collect()
    }

    pub fn entry(&self, point: PointName) -> Option<Entry> {
        self.state.lock().points.get(&point).cloned()
    }

    /// Before a commit is sent.
    pub fn intend(&self, point: PointName, content: &Arc<Content>) {
        self.state.lock().points.entry(point).or_insert_with(|| Entry {
            content: Arc::clone(content),
            ..Entry::default()
        });
    }

    pub fn acknowledge(&self, point: PointName) {
        self.count("points");
        let mut state = self.state.lock();
        if let Some(entry) = state.points.get_mut(&point) {
            entry.acknowledged = true;
        }
    }

    /// Before somebody asks for a point to go.
    pub fn ask_to_go(&self, point: PointName) {
        self.change(point, |entry| {
            entry.asking += 1;
            entry.asked += 1;
            entry.may_go = true;
        });
    }

    /// Somebody who asked was answered, and sends nothing more.
    pub fn asked(&self, point: PointName) {
        self.change(point, |entry| entry.asking -= 1);
    }

    /// Before somebody asks for a point to be kept, or pinned.
    pub fn before(&self, point: PointName) -> Option<Before> {
        let entry = self.entry(point)?;
        Some(Before {
            quiet: entry.asking == 0 && entry.unpinning == 0,
            asked: entry.asked,
            unpinned: entry.unpinned,
        })
    }

    /// Somebody who asked for it to be kept was told that it is.
    pub fn kept(&self, point: PointName, before: Before) {
        self.change(point, |entry| {
            entry.may_go &= !(before.quiet && entry.asked == before.asked);
        });
    }

    /// Somebody who asked for it to be pinned was told that it is.
    pub fn pinned(&self, point: PointName, before: Before) {
        self.change(point, |entry| {
            entry.pinned |= before.quiet && entry.unpinned == before.unpinned;
        });
    }

    /// Before somebody asks for the pin to go.
    pub fn unpin(&self, point: PointName) {
        self.change(point, |entry| {
            entry.unpinning += 1;
            entry.unpinned += 1;
            entry.pinned = false;
        });
    }

    /// Somebody who asked was answered, and sends nothing more.
    pub fn unpinned(&self, point: PointName) {
        self.change(point, |entry| entry.unpinning -= 1);
    }

    fn change(&self, point: PointName, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.state.lock().points.get_mut(&point) {
            change(entry);
        }
    }
}
