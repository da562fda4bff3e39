//! The words between planner, readers, workers and assembler.

use std::ops::Range;
use std::sync::Arc;

use coffre_vault::ChunkId;
use coffre_vault::map::{LEAF_BYTES, Leaf, PAGE_BYTES, SLOT_BYTES};

use super::buffer::Buffer;
use super::disk::DiskRun;
use crate::digest::Digest;

/// What is read, hashed and put at a time.
pub const SEGMENT_BYTES: u64 = 1 << 20;
pub const SLOTS_PER_SEGMENT: usize = (SEGMENT_BYTES / SLOT_BYTES) as usize;
pub const SEGMENTS_PER_LEAF: u64 = LEAF_BYTES / SEGMENT_BYTES;
/// Digests of one segment.
pub const BLOCKS_PER_SEGMENT: usize = (SEGMENT_BYTES / crate::digest::BLOCK_BYTES) as usize;
pub const PAGES_PER_SLOT: u64 = SLOT_BYTES / PAGE_BYTES;

/// What the planner wants to know of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotPlan {
    /// As in the base; not looked at.
    Keep,
    /// A hole: zero without reading.
    Hole,
    /// Read it all and compare it with the base.
    Compare,
    /// Read it all and store it as one chunk.
    Whole,
    /// These ranges (from the slot's first byte) changed; read them and gather them.
    Runs(Vec<Range<u32>>),
    /// Called unchanged; read it and see.
    Sample,
}

/// One segment on its way.
pub struct Segment {
    /// Position in the disk's order of segments; the assembler goes by it.
    pub sequence: u64,
    /// In segments from the disk's beginning.
    pub index: u64,
    pub slots: [SlotPlan; SLOTS_PER_SEGMENT],
    /// None where nothing is read.
    pub buffer: Option<Buffer>,
    /// The base's leaf, where the planner has read it. `Some(None)` in the base's place: zero.
    pub base_leaf: Option<Arc<Leaf>>,
}

impl Segment {
    pub fn start_bytes(&self) -> u64 {
        self.index * SEGMENT_BYTES
    }

    /// The number of its leaf.
    pub fn leaf(&self) -> u64 {
        self.index / SEGMENTS_PER_LEAF
    }

    /// The number of its slot `slot` within the leaf.
    pub fn slot_in_leaf(&self, slot: usize) -> u32 {
        ((self.index % SEGMENTS_PER_LEAF) * SLOTS_PER_SEGMENT as u64) as u32 + slot as u32
    }
}

/// What became of a slot.
#[derive(Debug)]
pub enum SlotDone {
    /// As in the base.
    Keep,
    Zero,
    /// One aligned chunk, which is in the vault or on its way.
    Chunk(ChunkId),
    /// Some ranges changed; `bytes` holds the content of those that are not zero, one after the other.
    Gather {
        runs: Vec<Run>,
        bytes: Vec<u8>,
    },
}

/// A changed range of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub start_bytes: u32,
    pub length_bytes: u32,
    pub zero: bool,
}

/// A segment as a worker leaves it.
pub struct SegmentDone {
    pub sequence: u64,
    pub index: u64,
    pub slots: Vec<SlotDone>,
    pub base_leaf: Option<Arc<Leaf>>,
    /// None where digests are not kept (tracked transfers).
    pub digests: Option<Box<[Digest; BLOCKS_PER_SEGMENT]>>,
    /// The first byte of a sampled slot that was not as the base has it.
    pub lied_at: Option<u64>,
}

/// A segment with the disk that it belongs to, as workers take it.
pub struct Work {
    pub disk: Arc<DiskRun>,
    pub segment: Segment,
}
