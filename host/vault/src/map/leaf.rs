//! A leaf: what lies where in 8 MiB of a disk.

use super::geometry::{LEAF_BYTES, PAGE_BYTES, SECTOR_BYTES, SLOT_BYTES};
use super::{NodeError, varint};
use crate::ids::ChunkId;

/// Where bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Zero,
    /// `offset_bytes` into the chunk's plain bytes.
    Chunk {
        id: ChunkId,
        offset_bytes: u32,
    },
}

/// A run of a leaf that lies in one place. All numbers are multiples of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafExtent {
    /// From the leaf's first byte.
    pub start_bytes: u32,
    pub length_bytes: u32,
    pub place: Place,
}

impl LeafExtent {
    pub fn end_bytes(&self) -> u32 {
        self.start_bytes + self.length_bytes
    }

    /// True where the extent lies in its slot's own whole chunk, at the place that it has in the slot. Everything else was
    /// gathered. (By chance a gathered run can look aligned, which costs a little space and nothing else.)
    pub fn is_aligned(&self) -> bool {
        match self.place {
            Place::Zero => true,
            Place::Chunk { offset_bytes, .. } => u64::from(self.start_bytes) % SLOT_BYTES == u64::from(offset_bytes),
        }
    }
}

/// The extents of a leaf: sorted, covering all 8 MiB, neighbours merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    extents: Vec<LeafExtent>,
}

/// A bound for readers: 8 MiB in extents of 512 bytes.
const MAX_EXTENTS: u64 = LEAF_BYTES / SECTOR_BYTES;
const SECTOR_LOG2: u8 = 9;
const PAGE_LOG2: u8 = 12;

impl Leaf {
    /// Nothing but zeroes.
    pub fn zero() -> Self {
        Self {
            extents: vec![LeafExtent {
                start_bytes: 0,
                length_bytes: LEAF_BYTES as u32,
                place: Place::Zero,
            }],
        }
    }

    pub fn is_zero(&self) -> bool {
        self.extents.iter().all(|extent| extent.place == Place::Zero)
    }

    pub fn extents(&self) -> &[LeafExtent] {
        &self.extents
    }

    /// The parts of extents that lie in `start_bytes..end_bytes`, in order.
    pub fn slice(&self, start_bytes: u32, end_bytes: u32) -> impl Iterator<Item = LeafExtent> + '_ {
        let first = self.extents.partition_point(|extent| extent.end_bytes() <= start_bytes);
        self.extents[first..]
            .iter()
            .take_while(move |extent| extent.start_bytes < end_bytes)
            .map(move |extent| {
                let start = extent.start_bytes.max(start_bytes);
                let end = extent.end_bytes().min(end_bytes);
                let place = match extent.place {
                    Place::Zero => Place::Zero,
                    Place::Chunk { id, offset_bytes } => Place::Chunk {
                        id,
                        offset_bytes: offset_bytes + (start - extent.start_bytes),
                    },
                };
                LeafExtent {
                    start_bytes: start,
                    length_bytes: end - start,
                    place,
                }
            })
    }

    /// The id of the one chunk that holds all of slot `slot` in its own order, if there is one.
    pub fn aligned_chunk(&self, slot: u32) -> Option<ChunkId> {
        let start = slot * SLOT_BYTES as u32;
        let mut parts = self.slice(start, start + SLOT_BYTES as u32);
        match (parts.next(), parts.next()) {
            (
                Some(LeafExtent {
                    place: Place::Chunk { id, offset_bytes: 0 },
                    length_bytes,
                    ..
                }),
                None,
            ) if u64::from(length_bytes) == SLOT_BYTES => Some(id),
            _ => None,
        }
    }

    /// The bytes of the canonical form.
    pub fn encode(&self) -> Vec<u8> {
        let mut ids: Vec<ChunkId> = Vec::new();
        let mut positions = std::collections::HashMap::new();
        let mut page_aligned = true;
        for extent in &self.extents {
            let mut numbers = u64::from(extent.length_bytes);
            if let Place::Chunk { id, offset_bytes } = extent.place {
                numbers |= u64::from(offset_bytes);
                positions.entry(id).or_insert_with(|| {
                    ids.push(id);
                    ids.len() as u64
                });
            }
            page_aligned &= numbers % PAGE_BYTES == 0;
        }
        let unit_log2 = if page_aligned { PAGE_LOG2 } else { SECTOR_LOG2 };
        let mut out = Vec::with_capacity(8 + ids.len() * ChunkId::LENGTH + self.extents.len() * 4);
        out.push(0);
        out.push(unit_log2);
        varint::put(&mut out, ids.len() as u64);
        for id in &ids {
            out.extend_from_slice(id.as_bytes());
        }
        varint::put(&mut out, self.extents.len() as u64);
        for extent in &self.extents {
            varint::put(&mut out, u64::from(extent.length_bytes >> unit_log2));
            match extent.place {
                Place::Zero => varint::put(&mut out, 0),
                Place::Chunk { id, offset_bytes } => {
                    varint::put(&mut out, positions[&id]);
                    varint::put(&mut out, u64::from(offset_bytes >> unit_log2));
                }
            }
        }
        out
    }

    /// Reads what [`Leaf::encode`] wrote, and refuses every other form of the same content.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        let [level, unit_log2, rest @ ..] = bytes else {
            return Err(NodeError::Truncated);
        };
        if *level != 0 {
            return Err(NodeError::WrongLevel {
                found: *level,
                expected: 0,
            });
        }
        if *unit_log2 != PAGE_LOG2 && *unit_log2 != SECTOR_LOG2 {
            return Err(NodeError::Unit(*unit_log2));
        }
        let mut rest = rest;
        let id_count = varint::take(&mut rest)?;
        if id_count > MAX_EXTENTS {
            return Err(NodeError::OutOfRange);
        }
        let id_bytes = id_count as usize * ChunkId::LENGTH;
        if rest.len() < id_bytes {
            return Err(NodeError::Truncated);
        }
        let (ids, mut rest) = rest.split_at(id_bytes);
        let ids: Vec<ChunkId> = ids
            .chunks_exact(ChunkId::LENGTH)
            .map(|id| ChunkId(id.try_into().expect("chunks_exact cuts at the id's length")))
            .collect();
        let extent_count = varint::take(&mut rest)?;
        if extent_count > MAX_EXTENTS {
            return Err(NodeError::OutOfRange);
        }
        let mut extents: Vec<LeafExtent> = Vec::with_capacity(extent_count as usize);
        let mut start = 0_u64;
        let mut first_unused = 0_u64;
        for _ in 0..extent_count {
            let length = varint::take(&mut rest)?;
            if length == 0 || length > (LEAF_BYTES >> unit_log2) {
                return Err(NodeError::OutOfRange);
            }
            let length = length << unit_log2;
            let place = match varint::take(&mut rest)? {
                0 => Place::Zero,
                position => {
                    if position > id_count {
                        return Err(NodeError::OutOfRange);
                    }
                    if position - 1 > first_unused {
                        return Err(NodeError::NotCanonical(
                            "chunks are not in the order of their first use",
                        ));
                    }
                    first_unused = first_unused.max(position);
                    let offset = varint::take(&mut rest)?;
                    if offset > (SLOT_BYTES >> unit_log2) || (offset << unit_log2) + length > SLOT_BYTES {
                        return Err(NodeError::OutOfRange);
                    }
                    Place::Chunk {
                        id: ids[position as usize - 1],
                        offset_bytes: (offset << unit_log2) as u32,
                    }
                }
            };
            if start + length > LEAF_BYTES {
                return Err(NodeError::Cover {
                    covered_bytes: start + length,
                });
            }
            extents.push(LeafExtent {
                start_bytes: start as u32,
                length_bytes: length as u32,
                place,
            });
            start += length;
        }
        if !rest.is_empty() {
            return Err(NodeError::TooLong);
        }
        if start != LEAF_BYTES {
            return Err(NodeError::Cover { covered_bytes: start });
        }
        let leaf = Self { extents };
        // One comparison covers the rules that are left: neighbours merged, the larger unit where it fits, no id twice.
        if first_unused != id_count || leaf.rebuilt().encode() != bytes {
            return Err(NodeError::NotCanonical(
                "neighbours not merged, a smaller unit, or a chunk listed twice or unused",
            ));
        }
        Ok(leaf)
    }

    fn rebuilt(&self) -> Leaf {
        let mut builder = LeafBuilder::new();
        for extent in &self.extents {
            builder.push(extent.length_bytes, extent.place);
        }
        builder.finish()
    }
}

/// Builds a leaf from its first byte to its last.
#[derive(Debug, Default)]
pub struct LeafBuilder {
    extents: Vec<LeafExtent>,
    end_bytes: u32,
}

impl LeafBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// How far it is built.
    pub fn end_bytes(&self) -> u32 {
        self.end_bytes
    }

    /// Appends a run, merging it with the last where they lie side by side.
    pub fn push(&mut self, length_bytes: u32, place: Place) {
        if length_bytes == 0 {
            return;
        }
        let start_bytes = self.end_bytes;
        self.end_bytes += length_bytes;
        if let Some(last) = self.extents.last_mut() {
            let joins = match (last.place, place) {
                (Place::Zero, Place::Zero) => true,
                (
                    Place::Chunk { id, offset_bytes },
                    Place::Chunk {
                        id: next_id,
                        offset_bytes: next_offset,
                    },
                ) => id == next_id && offset_bytes + last.length_bytes == next_offset,
                _ => false,
            };
            if joins {
                last.length_bytes += length_bytes;
                return;
            }
        }
        self.extents.push(LeafExtent {
            start_bytes,
            length_bytes,
            place,
        });
    }

    /// Appends what `base` has in this range, which begins where the builder stands.
    pub fn push_from(&mut self, base: &Leaf, end_bytes: u32) {
        for part in base.slice(self.end_bytes, end_bytes) {
            self.push(part.length_bytes, part.place);
        }
    }

    /// The leaf; what was not pushed is zero.
    pub fn finish(mut self) -> Leaf {
        self.push(LEAF_BYTES as u32 - self.end_bytes, Place::Zero);
        Leaf { extents: self.extents }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u8) -> ChunkId {
        ChunkId([number; ChunkId::LENGTH])
    }

    /// Runs of random units, chunks and offsets that cover one leaf.
    fn leaves() -> impl Strategy<Value = Leaf> {
        let unit = prop_oneof![Just(512_u32), Just(4096)];
        let run = (1_u32..64, 0_u8..6, 0_u32..8);
        (unit, proptest::collection::vec(run, 0..200)).prop_map(|(unit, runs)| {
            let mut builder = LeafBuilder::new();
            for (length, chunk, offset) in runs {
                let length = (length * unit).min(LEAF_BYTES as u32 - builder.end_bytes());
                let offset_bytes = offset * unit;
                if u64::from(offset_bytes + length) > SLOT_BYTES {
                    continue;
                }
                let place = if chunk == 0 {
                    Place::Zero
                } else {
                    Place::Chunk {
                        id: id(chunk),
                        offset_bytes,
                    }
                };
                builder.push(length, place);
            }
            builder.finish()
        })
    }

    proptest! {
        #[test]
        fn a_leaf_survives_its_bytes(leaf in leaves()) {
            prop_assert_eq!(Leaf::decode(&leaf.encode()).unwrap(), leaf);
        }

        #[test]
        fn a_slice_is_what_lies_there(leaf in leaves(), start in 0_u32..16384, length in 1_u32..512) {
            let start = start * 512;
            let end = (start + length * 512).min(LEAF_BYTES as u32);
            let mut at = start;
            for part in leaf.slice(start, end) {
                prop_assert_eq!(part.start_bytes, at);
                at = part.end_bytes();
                let whole = leaf.extents().iter().find(|extent| extent.start_bytes <= part.start_bytes && part.end_bytes() <= extent.end_bytes());
                prop_assert!(whole.is_some());
            }
            prop_assert_eq!(at, end);
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Leaf::decode(&bytes);
        }

        #[test]
        fn a_changed_byte_is_another_leaf_or_none(leaf in leaves(), at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut bytes = leaf.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = Leaf::decode(&bytes) {
                prop_assert_ne!(other, leaf);
            }
        }
    }

    #[test]
    fn a_slot_in_one_chunk_is_aligned() {
        let mut builder = LeafBuilder::new();
        builder.push(
            SLOT_BYTES as u32,
            Place::Chunk {
                id: id(1),
                offset_bytes: 0,
            },
        );
        builder.push(
            4096,
            Place::Chunk {
                id: id(2),
                offset_bytes: 8192,
            },
        );
        let leaf = builder.finish();
        assert_eq!(leaf.aligned_chunk(0), Some(id(1)));
        assert_eq!(leaf.aligned_chunk(1), None);
        assert_eq!(leaf.aligned_chunk(2), None);
        assert!(!leaf.extents()[1].is_aligned());
    }
}
