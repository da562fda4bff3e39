//! What a clean-up is asked to do, how far it is, and what it has done.

use std::time::Duration;

use jiff::Timestamp;

use crate::ids::{ChunkId, MachineNumber, SessionNumber};

/// Two weeks to notice that the wrong point was forgotten, or that somebody else forgot it.
const UNDELETE_FOR: Duration = Duration::from_hours(14 * 24);
/// A weekend: what a program has written that nobody thought of is not taken from it while it runs. The protocol does not
/// need it, so `force` does without.
const MINIMUM_AGE: Duration = Duration::from_hours(72);

/// A clean-up to do.
#[derive(Clone, Debug)]
pub struct CleanPlan {
    /// Looks at everything, writes and deletes nothing, and says what it would do.
    pub dry_run: bool,
    /// Goes on where a guard that can be wrong would stop: a vault that nobody has written to for a month, much to delete at
    /// once, young packs. Never past clocks that contradict each other or records that are missing or unreadable.
    pub force: bool,
    /// Packs younger than this, by the store's time, are not condemned.
    pub minimum_age: Duration,
    /// Points stay restorable for so long after they were forgotten, by the store's time.
    pub undelete_for: Duration,
    /// Who cleans, for the vault's records.
    pub host: String,
}

impl Default for CleanPlan {
    fn default() -> Self {
        Self {
            dry_run: false,
            force: false,
            minimum_age: MINIMUM_AGE,
            undelete_for: UNDELETE_FOR,
            host: String::new(),
        }
    }
}

/// What a clean-up is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanStage {
    /// Reading what all machines have.
    Surveying,
    /// Following the maps of all points.
    Marking,
    /// Moving chunks that are needed out of packs that are mostly not.
    Repacking,
    /// Writing pieces of the index that take the place of others.
    Relisting,
    Deleting,
    Condemning,
}

/// How far a clean-up is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanProgress {
    pub stage: CleanStage,
    pub done: u64,
    /// 0 where it is not known.
    pub total: u64,
}

/// What a clean-up has done, or a dry run would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanReport {
    pub dry_run: bool,
    /// By whose time everything was judged: the store's, or in a dry run, which writes nothing that could tell it, this
    /// host's.
    pub judged_at: Timestamp,
    /// Packs in the vault when the clean-up began, and their bytes.
    pub packs_before: Amount,
    /// Forgotten points whose time to undelete is over. Nothing brings them back.
    pub purged: Vec<PurgedPoint>,
    /// Sessions that had outlived their deadline. They cannot commit any more.
    pub fenced: Vec<SessionName>,
    /// Earlier clean-ups that broke off.
    pub abandoned: u32,
    pub repacked_chunks: u64,
    pub repacked: Amount,
    pub deleted: Amount,
    pub deleted_pieces: u64,
    pub written_pieces: u64,
    /// Pieces of the index that were merged or taken over although nothing in them goes.
    pub merged_pieces: u64,
    /// What the store did not delete: a retention time, or no right to.
    pub refused: Vec<Refused>,
    /// Chunks that cannot be read, so the packs that they lie in stay.
    pub damaged: Vec<DamagedChunk>,
    /// Newly condemned: nothing relies on them any more, and a later clean-up deletes them.
    pub condemned: Amount,
    /// What is condemned and not gone, and what it waits for.
    pub waiting: Vec<Waiting>,
    /// Not needed either, and too young to be condemned.
    pub too_young: Amount,
    /// Condemned packs whose time has come and that wait for the next run all the same: what is needed of them was more than
    /// one run moves.
    pub left_for_later: Amount,
    /// The number of the checkpoint that says all this to others.
    pub checkpoint: Option<u32>,
}

/// A number of packs, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub packs: u64,
    pub bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// A point that was purged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgedPoint {
    pub machine: String,
    pub point: SessionNumber,
}

/// A session, so that somebody can find who runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName {
    /// Empty: a clean-up's own.
    pub machine: String,
    pub machine_number: MachineNumber,
    pub session: SessionNumber,
    pub host: String,
    /// By the store's time: what is undecided by then is fenced.
    pub fenced_from: Timestamp,
}

/// An object that the store did not delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub object: String,
    pub bytes: u64,
    pub why: String,
    pub kind: RefusedKind,
}

/// What stands behind a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// A retention time or a legal hold. It ends by itself, or whoever set it ends it.
    Locked,
    /// Who cleans may not delete.
    Denied,
    /// The way to the store, or the store on a bad day.
    Failed,
}

/// A chunk that is needed and could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedChunk {
    pub id: ChunkId,
    pub pack: String,
    pub what: String,
}

/// Packs that are condemned and not gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub amount: Amount,
    /// Sessions that may rely on them. Where there is none, the next clean-up deletes them.
    pub waits_for: Vec<SessionName>,
}
