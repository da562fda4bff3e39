//! Opening one chunk: seal, compression, and the hash of the plain bytes against the id that was asked for.

use crate::ids::ChunkId;
use crate::seal::{Sealer, TAG_BYTES};
use crate::vault::ChunkHasher;

use super::{CHUNK_LIMIT_BYTES, Decoder};

/// What is wrong with a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenChunkError {
    #[error("it is not as long as the index says")]
    Length,
    #[error("its seal is broken")]
    Broken,
    #[error("it does not decompress")]
    Compression,
    #[error("its bytes have another id")]
    OtherId,
}

/// What the index says of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkShape {
    pub(crate) ordinal: u32,
    pub(crate) stored_bytes: u32,
    pub(crate) plain_bytes: u32,
    pub(crate) compressed: bool,
}

/// Replaces `out` by the plain bytes. After an error, `out` holds nothing to be used.
pub(crate) fn open_chunk(
    sealer: &Sealer,
    hasher: &ChunkHasher,
    id: &ChunkId,
    shape: ChunkShape,
    sealed: &[u8],
    decoder: &mut Decoder,
    out: &mut Vec<u8>,
) -> Result<(), OpenChunkError> {
    let plain_bytes = shape.plain_bytes as usize;
    if sealed.len() != shape.stored_bytes as usize || sealed.len() < TAG_BYTES || plain_bytes > CHUNK_LIMIT_BYTES {
        return Err(OpenChunkError::Length);
    }
    let body_bytes = sealed.len() - TAG_BYTES;
    if shape.compressed {
        decoder.opened.resize(body_bytes, 0);
        sealer
            .open_into(shape.ordinal, sealed, &mut decoder.opened)
            .map_err(|_| OpenChunkError::Broken)?;
        decoder
            .decompress(plain_bytes, out)
            .map_err(|_| OpenChunkError::Compression)?;
    } else {
        if body_bytes != plain_bytes {
            return Err(OpenChunkError::Length);
        }
        out.resize(plain_bytes, 0);
        sealer
            .open_into(shape.ordinal, sealed, out)
            .map_err(|_| OpenChunkError::Broken)?;
    }
    if hasher.id(out) == *id {
        Ok(())
    } else {
        Err(OpenChunkError::OtherId)
    }
}
