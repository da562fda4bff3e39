//! Why a clean-up stopped. Whatever the reason, nothing that is needed is gone, and the next one goes on from there.

use jiff::Timestamp;

use crate::fate::FateError;
use crate::ids::{ChunkId, SessionNumber};
use crate::read::ReadError;
use crate::session::{BeginError, CommitError, WriteError};
use crate::store::StoreError;

/// Why a clean-up stopped.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    #[error("this host's clock says {local}, the store's {store}: one of them is wrong")]
    Clocks { local: Timestamp, store: Timestamp },
    #[error("the newest session is from {newest}, and now it is {now}")]
    Idle { newest: Timestamp, now: Timestamp },
    #[error("the newest session is from {newest}, which is after now, {now}")]
    Future { newest: Timestamp, now: Timestamp },
    /// Something that comes after it shows that it was there, so the store has lost it, or hides it.
    #[error("`{missing}` is not in the vault, and the listings say that it was")]
    Gap { missing: String, listed: String },
    #[error("point {point} of {machine} has left the vault, and nobody has purged it")]
    PointVanished { machine: String, point: SessionNumber },
    #[error("the record of machine {machine} has left the vault")]
    MachineVanished { machine: String },
    #[error("nobody can know what point {point} of {machine} needs: {what}")]
    UnreadablePoint {
        machine: String,
        point: SessionNumber,
        what: String,
        /// It is forgotten: from then on a clean-up purges it, and goes on.
        purged_from: Option<Timestamp>,
    },
    #[error("nobody can know what session {session} of {machine} builds upon, which is not over: {what}")]
    UnreadableSession {
        machine: String,
        session: SessionNumber,
        what: String,
        /// From then on a clean-up ends it, and goes on.
        fenced_from: Timestamp,
    },
    #[error("chunk {0}, which a point needs, is in no pack of the vault")]
    ChunkMissing(ChunkId),
    #[error("{dead_percent} % of the vault's {all_bytes} bytes would be condemned at once")]
    TooMuch {
        dead_bytes: u64,
        all_bytes: u64,
        dead_percent: u64,
    },
    #[error("another clean-up has begun and taken over ({reason})")]
    Overtaken { reason: String },
    #[error("others write to the clean-up log all the time")]
    Busy,
    #[error("begin the clean-up's session")]
    Begin(#[source] BeginError),
    #[error("purge point {point} of {machine}")]
    Purge {
        machine: String,
        point: SessionNumber,
        source: FateError,
    },
    #[error("fence session {session} of {machine}")]
    Fence {
        machine: String,
        session: SessionNumber,
        source: CommitError,
    },
    #[error("write what takes the place of what goes")]
    Write(#[from] WriteError),
    #[error("commit what takes the place of what goes")]
    Commit(#[source] CommitError),
    #[error("read the vault")]
    Read(#[from] ReadError),
    #[error("write to the clean-up log")]
    Log(#[source] StoreError),
    #[error("use the store")]
    Store(#[from] StoreError),
    #[error("use the local index")]
    Cache(#[source] std::io::Error),
}

impl CleanError {
    /// Whether the same clean-up may succeed a little later.
    pub fn may_help_to_try_again(&self) -> bool {
        match self {
            Self::Overtaken { .. } | Self::Busy => true,
            Self::Read(error) => error.may_help_to_try_again(),
            Self::Log(error) | Self::Store(error) => error.may_help_to_try_again(),
            Self::Purge { source, .. } => source.may_help_to_try_again(),
            _ => false,
        }
    }

    /// Whether a guard stopped it that `force` lifts.
    pub fn force_helps(&self) -> bool {
        matches!(self, Self::Idle { .. } | Self::Future { .. } | Self::TooMuch { .. })
    }
}
