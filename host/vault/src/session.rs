//! A session: what one job writes into the vault.

use std::path::Path;
use std::sync::Arc;

use crate::ids::{ChunkId, MachineNumber, SessionNumber};
use crate::pack::{ChunkKind, Encoder};
use crate::point::{Point, PointDraft};
use crate::read::ReadError;
use crate::store::StoreError;

/// Why no session was begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error("point {0} cannot be a base: {1}")]
    Base(SessionNumber, &'static str),
    #[error("session {0} is already committed and cannot be resumed")]
    ResumedIsCommitted(SessionNumber),
    #[error("read the vault before writing to it")]
    Read(#[from] ReadError),
    #[error("begin a session")]
    Store(#[from] StoreError),
}

/// Why a chunk was not taken. The session has failed and takes nothing more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0}")]
    Failed(Arc<str>),
}

/// Why a point was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("write what the point needs")]
    Write(#[from] WriteError),
    #[error("the session was aborted by somebody else ({reason}): begin a new one upon the same snapshot")]
    Fenced { reason: String },
    #[error("whether the point is there cannot be known: {0}")]
    Unknown(#[source] StoreError),
}

/// Whether a chunk must be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is in the vault, or somebody else in this session is putting it.
    Known,
    /// The caller must put it.
    New,
}

/// What a put has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutReport {
    /// With its tag.
    pub stored_bytes: u32,
}

/// What a session has written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    pub packs: u32,
    pub stored_bytes: u64,
    pub new_chunks: u64,
    pub known_chunks: u64,
}

/// Writes the chunks of one point and then the point. Clones share the session.
///
/// `claim` and `put` block and are called from plain threads, never from within the runtime.
#[derive(Clone, Debug)]
pub struct SessionWriter {}

impl SessionWriter {
    pub fn machine(&self) -> MachineNumber {
        unimplemented!()
    }

    pub fn number(&self) -> SessionNumber {
        unimplemented!()
    }

    /// Asks whether the vault has a chunk. `New` is said once per id and session: who hears it must put the chunk.
    pub fn claim(&self, _id: &ChunkId) -> Result<Claim, WriteError> {
        unimplemented!()
    }

    /// Compresses and appends a chunk to an open pack. Blocks while as many packs are alive as may be.
    pub fn put(
        &self,
        _kind: ChunkKind,
        _id: ChunkId,
        _plain: &[u8],
        _encoder: &mut Encoder,
    ) -> Result<PutReport, WriteError> {
        unimplemented!()
    }

    /// Cuts `content` at 128 KiB and puts what is not known yet.
    pub fn put_bytes(&self, _content: &[u8]) -> Result<Vec<ChunkId>, WriteError> {
        unimplemented!()
    }

    pub fn stats(&self) -> WriteStats {
        unimplemented!()
    }

    /// Steps 4 to 7: everything is in the vault before the point is.
    pub async fn commit(&self, _draft: PointDraft, _commit_file: &Path) -> Result<Point, CommitError> {
        unimplemented!()
    }

    /// Gives the session up. Nothing is deleted.
    pub async fn abort(&self, _reason: &str) -> Result<(), CommitError> {
        unimplemented!()
    }
}
