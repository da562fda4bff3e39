//! An inner node: which of its 128 children are there, and their ids.

use super::NodeError;
use super::geometry::{FANOUT, MAX_LEVEL};
use crate::ids::ChunkId;

/// An inner node of level 1 or more. A child that is not there is zero in all its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    level: u8,
    children: Vec<Option<ChunkId>>,
}

impl Node {
    /// A node of `level` without children; `level` is 1 to [`MAX_LEVEL`].
    pub fn new(level: u8) -> Self {
        debug_assert!((1..=MAX_LEVEL).contains(&level));
        Self {
            level,
            children: vec![None; FANOUT],
        }
    }

    pub fn level(&self) -> u8 {
        self.level
    }

    pub fn child(&self, position: usize) -> Option<ChunkId> {
        self.children[position]
    }

    pub fn set(&mut self, position: usize, id: ChunkId) {
        self.children[position] = Some(id);
    }

    pub fn is_empty(&self) -> bool {
        self.children.iter().all(Option::is_none)
    }

    /// The level, a bitmap of 16 bytes (child `i` is bit `i % 8` of byte `i / 8`), then the ids of those present.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 1 + FANOUT / 8];
        out[0] = self.level;
        for (position, child) in self.children.iter().enumerate() {
            if let Some(id) = child {
                out[1 + position / 8] |= 1 << (position % 8);
                out.extend_from_slice(id.as_bytes());
            }
        }
        out
    }

    /// Reads what [`Node::encode`] wrote for this level.
    pub fn decode(bytes: &[u8], level: u8) -> Result<Self, NodeError> {
        let (&found, rest) = bytes.split_first().ok_or(NodeError::Truncated)?;
        if found != level || level == 0 || level > MAX_LEVEL {
            return Err(NodeError::WrongLevel { found, expected: level });
        }
        let (bitmap, mut ids) = rest.split_at_checked(FANOUT / 8).ok_or(NodeError::Truncated)?;
        let mut node = Self::new(level);
        for position in 0..FANOUT {
            if bitmap[position / 8] & (1 << (position % 8)) != 0 {
                let (id, rest) = ids.split_first_chunk().ok_or(NodeError::Truncated)?;
                node.children[position] = Some(ChunkId(*id));
                ids = rest;
            }
        }
        if !ids.is_empty() {
            return Err(NodeError::TooLong);
        }
        if node.is_empty() {
            return Err(NodeError::NotCanonical("a node without children is left out"));
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_node_survives_its_bytes(level in 1..=MAX_LEVEL, children in proptest::collection::btree_map(0..FANOUT, any::<u8>(), 1..FANOUT)) {
            let mut node = Node::new(level);
            for (position, number) in children {
                node.set(position, ChunkId([number; ChunkId::LENGTH]));
            }
            prop_assert_eq!(Node::decode(&node.encode(), level).unwrap(), node);
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), level in 0_u8..8) {
            let _ = Node::decode(&bytes, level);
        }
    }
}
