//! Reading a map from its root.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::geometry::{FANOUT, MAX_LEVEL, span_bytes};
use super::{Leaf, MapRoot, Node, NodeError};
use crate::ids::ChunkId;
use crate::read::{ChunkReader, ReadError};

/// Where nodes come from. Each call may be a round trip to the store.
#[async_trait]
pub trait NodeSource: Send + Sync {
    /// The node's plain bytes, verified against its id.
    async fn node(&self, id: &ChunkId) -> Result<Bytes, ReadError>;
}

#[async_trait]
impl NodeSource for ChunkReader {
    async fn node(&self, id: &ChunkId) -> Result<Bytes, ReadError> {
        self.read(id).await
    }
}

/// Why a map cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("read node {id} of the map")]
    Read { id: ChunkId, source: ReadError },
    #[error("node {id} of the map is not well formed")]
    Node { id: ChunkId, source: NodeError },
    #[error("the map's root is of level {0}; {MAX_LEVEL} is the highest known")]
    Root(u8),
}

impl MapError {
    /// Whether the map is damaged there, rather than out of reach for now.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.is_damage(),
            Self::Node { .. } | Self::Root(_) => true,
        }
    }
}

/// What comes next in a map of which something may be damaged.
#[derive(Debug)]
pub enum NextLeaf {
    Leaf(u64, ChunkId),
    /// What lies in these leaves cannot be known.
    Hole(Range<u64>, MapError),
    End,
}

/// One disk's map at one point. Keeps the inner nodes on the way to the last leaf, so a walk in disk order reads each once.
pub struct MapReader<S> {
    source: S,
    root: Option<MapRoot>,
    /// The node last used, by level; its number in spans of that level.
    path: Vec<Option<(u64, Node)>>,
    /// Nodes that are taken for zero: they cannot be read, and what lay below is told in another way.
    absent: Arc<HashSet<ChunkId>>,
}

impl<S: NodeSource> MapReader<S> {
    pub fn new(source: S, root: Option<MapRoot>) -> Result<Self, MapError> {
        if let Some(root) = root
            && root.level > MAX_LEVEL
        {
            return Err(MapError::Root(root.level));
        }
        Ok(Self {
            source,
            root,
            path: vec![None; usize::from(MAX_LEVEL) + 1],
            absent: Arc::default(),
        })
    }

    /// The same map without some nodes that cannot be read: what they covered reads as zero.
    pub fn without(mut self, absent: Arc<HashSet<ChunkId>>) -> Self {
        self.root = self.root.filter(|root| !absent.contains(&root.id));
        self.path.fill(None);
        self.absent = absent;
        self
    }

    pub fn root(&self) -> Option<MapRoot> {
        self.root
    }

    /// How many leaves the root can reach.
    pub fn leaf_limit(&self) -> u64 {
        self.root.map_or(0, |root| span_bytes(root.level) / span_bytes(0))
    }

    /// The inner node of `level` that is number `index` there, if it is present. `level` is 1 to the root's.
    async fn inner(&mut self, level: u8, index: u64) -> Result<Option<&Node>, MapError> {
        let Some(root) = self.root else { return Ok(None) };
        // Find the lowest level whose node on the path is an ancestor (or the node itself), then go down from there.
        let mut at = level;
        while at <= root.level {
            let ancestor = index >> (7 * u32::from(at - level));
            if matches!(&self.path[usize::from(at)], Some((number, _)) if *number == ancestor) {
                break;
            }
            at += 1;
        }
        if at > root.level {
            if index >> (7 * u32::from(root.level - level)) != 0 {
                return Ok(None);
            }
            let node = self.load(root.id, root.level).await?;
            self.path[usize::from(root.level)] = Some((0, node));
            at = root.level;
        }
        while at > level {
            let child_index = index >> (7 * u32::from(at - 1 - level));
            let child = match &self.path[usize::from(at)] {
                Some((_, node)) => node.child((child_index % FANOUT as u64) as usize),
                None => None,
            };
            let Some(id) = child.filter(|id| !self.absent.contains(id)) else {
                return Ok(None);
            };
            at -= 1;
            let node = self.load(id, at).await?;
            self.path[usize::from(at)] = Some((child_index, node));
        }
        Ok(self.path[usize::from(level)].as_ref().map(|(_, node)| node))
    }

    async fn load(&self, id: ChunkId, level: u8) -> Result<Node, MapError> {
        let bytes = self
            .source
            .node(&id)
            .await
            .map_err(|source| MapError::Read { id, source })?;
        Node::decode(&bytes, level).map_err(|source| MapError::Node { id, source })
    }

    /// The id of the node of `level` that is number `index` there; none where all is zero. Leaves are level 0.
    pub async fn node_id(&mut self, level: u8, index: u64) -> Result<Option<ChunkId>, MapError> {
        let Some(root) = self.root else { return Ok(None) };
        if level > root.level {
            return Ok(None);
        }
        if level == root.level {
            return Ok((index == 0).then_some(root.id));
        }
        let node = self.inner(level + 1, index / FANOUT as u64).await?;
        let child = node.and_then(|node| node.child((index % FANOUT as u64) as usize));
        Ok(child.filter(|id| !self.absent.contains(id)))
    }

    /// The leaf of this number; none where all is zero.
    pub async fn leaf(&mut self, index: u64) -> Result<Option<Leaf>, MapError> {
        match self.node_id(0, index).await? {
            Some(id) => self.leaf_of(id).await.map(Some),
            None => Ok(None),
        }
    }

    /// The leaf with this id.
    pub async fn leaf_of(&self, id: ChunkId) -> Result<Leaf, MapError> {
        let bytes = self
            .source
            .node(&id)
            .await
            .map_err(|source| MapError::Read { id, source })?;
        Leaf::decode(&bytes).map_err(|source| MapError::Node { id, source })
    }

    /// The first leaf at or after `from` that is there, and its id. Skips what is absent at the level where it is absent.
    pub async fn next_leaf(&mut self, from: u64) -> Result<Option<(u64, ChunkId)>, MapError> {
        let mut index = from;
        self.search(&mut index).await
    }

    /// The same for those who go on without what is damaged: a node that cannot be read is told with the leaves that lie
    /// below it, as a range from `from` on, and the next search begins behind them.
    pub async fn next_leaf_or_hole(&mut self, from: u64) -> Result<NextLeaf, MapError> {
        let mut index = from;
        let error = match self.search(&mut index).await {
            Ok(Some((index, id))) => return Ok(NextLeaf::Leaf(index, id)),
            Ok(None) => return Ok(NextLeaf::End),
            Err(error) => error,
        };
        let (MapError::Read { id, .. } | MapError::Node { id, .. }) = &error else {
            return Err(error);
        };
        if !error.is_damage() {
            return Err(error);
        }
        let leaves = self.leaves_below(*id, index).await?;
        Ok(NextLeaf::Hole(leaves.start.max(from)..leaves.end, error))
    }

    /// The leaves below a node on the way to a leaf, whose ancestors can be read.
    async fn leaves_below(&mut self, id: ChunkId, leaf: u64) -> Result<Range<u64>, MapError> {
        let highest = self.root.map_or(0, |root| root.level);
        for level in (1..=highest).rev() {
            let leaves = span_bytes(level) / span_bytes(0);
            if self.node_id(level, leaf / leaves).await? == Some(id) {
                let start = leaf / leaves * leaves;
                return Ok(start..start + leaves);
            }
        }
        Ok(leaf..leaf + 1)
    }

    /// `index` is how far it has come.
    async fn search(&mut self, index: &mut u64) -> Result<Option<(u64, ChunkId)>, MapError> {
        let limit = self.leaf_limit();
        let Some(root) = self.root else { return Ok(None) };
        'search: while *index < limit {
            for level in (1..=root.level).rev() {
                let leaves = span_bytes(level) / span_bytes(0);
                if self.node_id(level, *index / leaves).await?.is_none() {
                    *index = (*index / leaves + 1) * leaves;
                    continue 'search;
                }
            }
            if let Some(id) = self.node_id(0, *index).await? {
                return Ok(Some((*index, id)));
            }
            *index += 1;
        }
        Ok(None)
    }
}
