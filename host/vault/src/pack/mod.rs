//! Packs: immutable objects that hold many sealed chunks and, at their end, a sealed directory of them.

mod buffer;
mod builder;
mod coder;
mod directory;
mod open;

pub(crate) use buffer::{Acquired, PACKS_ALIVE_LIMIT, PackBuffer, PackHolder, PackPool};
pub(crate) use builder::{PackBuilder, PackDamage, check_chunks, read_frame, read_pack};
pub use coder::{Decoder, Encoder};
#[cfg(any(test, feature = "testing"))]
pub(crate) use directory::Entry;
pub(crate) use directory::{DirectoryError, PackInfo, PackListing, decode_piece, encode_piece};
pub(crate) use open::{ChunkShape, open_chunk};

/// What a chunk holds. Nodes lie in packs of their own, so that reading maps touches few packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkKind {
    Data,
    Node,
}

impl ChunkKind {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Node => 1,
        }
    }

    pub(crate) fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Data),
            1 => Some(Self::Node),
            _ => None,
        }
    }
}

/// Writers close a pack before it grows beyond this; it is what the process has in memory up to four times.
pub(crate) const PACK_TARGET_BYTES: usize = 32 * 1024 * 1024;
/// Readers accept this much, so that a later version may write larger packs.
pub(crate) const PACK_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
/// No chunk is larger before compression; map nodes may reach it, data chunks stay at 128 KiB.
pub(crate) const CHUNK_LIMIT_BYTES: usize = 1024 * 1024;
/// A directory of more chunks is refused before anything is allocated for it.
pub(crate) const CHUNKS_LIMIT: usize = 1 << 20;
