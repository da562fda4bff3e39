//! The map: the tree that says which chunk holds which extent of a disk.
//!
//! Geometry is fixed, so that resizing a disk moves nothing: a leaf covers 8 MiB in 64 slots of 128 KiB, and every inner
//! node has 128 children. Nodes are stored as chunks, named by the keyed hash of their bytes, and shared between points;
//! what is absent is zero. `FORMAT.md` has the bytes.

mod geometry;
mod leaf;
mod node;
mod read;
mod varint;
mod write;

pub use geometry::{
    FANOUT, LEAF_BYTES, MAX_LEVEL, PAGE_BYTES, SECTOR_BYTES, SLOT_BYTES, SLOTS_PER_LEAF, root_level, span_bytes,
};
pub use leaf::{Leaf, LeafBuilder, LeafExtent, Place};
pub use node::Node;
pub use read::{MapError, MapReader, NextLeaf, NodeSource};
pub use write::MapWriter;

pub use crate::point::MapRoot;

/// Why bytes are not a node of a map. The bytes had the right keyed hash, so this is a fault of the writer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("the node ends too early")]
    Truncated,
    #[error("the node has bytes after its end")]
    TooLong,
    #[error("the node is of level {found}, where level {expected} belongs")]
    WrongLevel { found: u8, expected: u8 },
    #[error("the leaf's unit is 2^{0} bytes; 2^9 and 2^12 are known")]
    Unit(u8),
    #[error("a number in the node is out of range")]
    OutOfRange,
    #[error("the leaf's extents cover {covered_bytes} bytes of 8 MiB")]
    Cover { covered_bytes: u64 },
    #[error("the node is not in canonical form: {0}")]
    NotCanonical(&'static str),
}
