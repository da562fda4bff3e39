//! Reading chunks back.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::ChunkId;
use crate::pack::Decoder;
use crate::store::StoreError;

/// Why something in the vault could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("chunk {0} is not in the vault")]
    ChunkMissing(ChunkId),
    #[error("pack {0} is not in the vault")]
    PackMissing(String),
    #[error("chunk {id} in {pack} is damaged: {what}")]
    ChunkDamaged {
        id: ChunkId,
        pack: String,
        what: &'static str,
    },
    #[error("`{object}` is damaged: {what}")]
    Damaged { object: String, what: String },
    #[error("`{object}` was written by a newer version of Coffre")]
    Newer { object: String },
    #[error("read the vault")]
    Store(#[from] StoreError),
}

/// A pack that chunks can be read from.
#[derive(Debug)]
pub struct PackRef {}

/// Where a chunk lies.
#[derive(Clone, Debug)]
pub struct Location {
    pub pack: Arc<PackRef>,
    /// Its number in the pack.
    pub ordinal: u32,
    pub offset_bytes: u32,
    /// With its tag.
    pub stored_bytes: u32,
    pub plain_bytes: u32,
    pub compressed: bool,
}

/// Finds, fetches and opens chunks. Clones share a small cache.
#[derive(Clone, Debug)]
pub struct ChunkReader {}

impl ChunkReader {
    /// Where each of the chunks lies, in the order asked.
    pub async fn locate(&self, _ids: &[ChunkId]) -> Result<Vec<Location>, ReadError> {
        unimplemented!()
    }

    /// A byte range of a pack, as one request.
    pub async fn fetch(&self, _pack: &PackRef, _range: Range<u64>) -> Result<Bytes, ReadError> {
        unimplemented!()
    }

    /// Opens, decompresses and hashes again what lay at `location`. Pure computing: call it off the runtime.
    /// `out` is replaced.
    pub fn open(
        &self,
        _id: &ChunkId,
        _location: &Location,
        _sealed: &[u8],
        _decoder: &mut Decoder,
        _out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        unimplemented!()
    }

    /// One chunk, through a small cache of pack blocks, so that neighbours cost one request.
    pub async fn read(&self, _id: &ChunkId) -> Result<Bytes, ReadError> {
        unimplemented!()
    }
}
