//! Writing a map from its first leaf to its last, taking over from a base what did not change.

use super::geometry::{FANOUT, LEAF_BYTES, root_level, span_bytes};
use super::{MapError, MapReader, MapRoot, Node, NodeSource};
use crate::ids::ChunkId;

/// Builds the inner nodes of one disk's map. Leaves and whole subtrees come in disk order; what never comes is zero.
///
/// `put` stores a node's bytes and returns its id; its errors end the map.
pub struct MapWriter<P> {
    put: P,
    root_level: u8,
    /// The node under construction of each level from 1 on, and its number there.
    open: Vec<Option<(u64, Node)>>,
    root: Option<ChunkId>,
    /// All leaves before this one are decided.
    next_leaf: u64,
}

impl<P, E> MapWriter<P>
where
    P: FnMut(Vec<u8>) -> Result<ChunkId, E>,
    E: From<MapError>,
{
    /// For a disk of `size_bytes`.
    pub fn new(size_bytes: u64, put: P) -> Self {
        let root_level = root_level(size_bytes);
        Self {
            put,
            root_level,
            open: vec![None; usize::from(root_level) + 1],
            root: None,
            next_leaf: 0,
        }
    }

    /// The first leaf that is not decided yet.
    pub fn next_leaf(&self) -> u64 {
        self.next_leaf
    }

    /// Leaf `index` is this node; it is not before [`MapWriter::next_leaf`]. None: it is zero.
    pub fn push_leaf(&mut self, index: u64, id: Option<ChunkId>) -> Result<(), E> {
        debug_assert!(index >= self.next_leaf);
        if let Some(id) = id {
            self.place(0, index, id)?;
        }
        self.next_leaf = index + 1;
        Ok(())
    }

    /// Leaves from [`MapWriter::next_leaf`] up to `end` are as in `base`; whole subtrees are taken over by their id.
    pub async fn copy_until<S: NodeSource>(&mut self, base: &mut MapReader<S>, end: u64) -> Result<(), E> {
        while self.next_leaf < end {
            let from = self.next_leaf;
            // The largest subtree that begins here, fits, and is not above the new root.
            let mut level = self.root_level;
            let leaves = loop {
                let leaves = span_bytes(level) / LEAF_BYTES;
                if level == 0 || (from.is_multiple_of(leaves) && from + leaves <= end) {
                    break leaves;
                }
                level -= 1;
            };
            let index = from / leaves;
            // A base that is less deep has its root as the first subtree of its level.
            if let Some(id) = base.node_id(level, index).await? {
                self.place(level, index, id)?;
            } else if base.root().is_some_and(|root| root.level < level) && index == 0 {
                let limit = base.leaf_limit().min(from + leaves);
                let before = self.next_leaf;
                Box::pin(self.copy_until(base, limit)).await?;
                debug_assert!(self.next_leaf >= before);
            }
            self.next_leaf = from + leaves;
        }
        Ok(())
    }

    fn place(&mut self, level: u8, index: u64, id: ChunkId) -> Result<(), E> {
        // What is open at or below this level comes before it and is complete.
        for below in 1..=level {
            self.close(below)?;
        }
        self.attach(level, index, id)
    }

    /// Stores the open node of this level and hangs it below its parent.
    fn close(&mut self, level: u8) -> Result<(), E> {
        let Some((index, node)) = self.open[usize::from(level)].take() else {
            return Ok(());
        };
        let id = (self.put)(node.encode())?;
        self.attach(level, index, id)
    }

    /// Makes the node `id`, which is number `index` of its level, a child of its parent; another parent that is still
    /// open comes before this one and is complete.
    fn attach(&mut self, level: u8, index: u64, id: ChunkId) -> Result<(), E> {
        if level == self.root_level {
            self.root = Some(id);
            return Ok(());
        }
        let at = usize::from(level) + 1;
        let parent = index / FANOUT as u64;
        if matches!(&self.open[at], Some((number, _)) if *number != parent) {
            self.close(level + 1)?;
        }
        let (_, node) = self.open[at].get_or_insert_with(|| (parent, Node::new(level + 1)));
        node.set((index % FANOUT as u64) as usize, id);
        Ok(())
    }

    /// The root; none for a disk of zeroes.
    pub fn finish(mut self) -> Result<Option<MapRoot>, E> {
        for level in 1..=self.root_level {
            self.close(level)?;
        }
        Ok(self.root.map(|id| MapRoot {
            level: self.root_level,
            id,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::read::ReadError;

    type Kept = (HashMap<ChunkId, Vec<u8>>, usize);

    /// Nodes in memory, named by their plain hash; counts reads.
    #[derive(Clone, Default)]
    struct Nodes(Arc<Mutex<Kept>>);

    impl Nodes {
        fn put(&self, bytes: Vec<u8>) -> Result<ChunkId, MapError> {
            let hash = blake3::hash(&bytes);
            let id = ChunkId(hash.as_bytes()[..ChunkId::LENGTH].try_into().unwrap());
            self.0.lock().unwrap().0.insert(id, bytes);
            Ok(id)
        }
    }

    #[async_trait]
    impl NodeSource for Nodes {
        async fn node(&self, id: &ChunkId) -> Result<Bytes, ReadError> {
            let mut state = self.0.lock().unwrap();
            state.1 += 1;
            Ok(Bytes::from(state.0[id].clone()))
        }
    }

    fn leaf_id(number: u64) -> ChunkId {
        let mut id = [7; ChunkId::LENGTH];
        id[..8].copy_from_slice(&number.to_le_bytes());
        ChunkId(id)
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn write(nodes: &Nodes, leaves: u64, present: &BTreeMap<u64, u64>) -> Option<MapRoot> {
        let mut writer = MapWriter::new(leaves * LEAF_BYTES, |bytes| nodes.put(bytes));
        for (index, number) in present {
            writer.push_leaf(*index, Some(leaf_id(*number))).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(nodes: &Nodes, root: Option<MapRoot>) -> BTreeMap<u64, ChunkId> {
        let mut reader = MapReader::new(nodes.clone(), root).unwrap();
        let mut found = BTreeMap::new();
        let mut from = 0;
        while let Some((index, id)) = now(reader.next_leaf(from)).unwrap() {
            found.insert(index, id);
            from = index + 1;
        }
        found
    }

    fn sizes() -> impl Strategy<Value = u64> {
        prop_oneof![1_u64..200, 100_u64..40_000, 16_000_u64..3_000_000]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_edited_copy_is_what_writing_it_anew_gives(
            old_leaves in sizes(), new_leaves in sizes(),
            old in proptest::collection::btree_map(any::<u64>(), any::<u64>(), 0..40),
            edits in proptest::collection::btree_map(any::<u64>(), proptest::option::of(any::<u64>()), 0..20),
        ) {
            let nodes = Nodes::default();
            let old: BTreeMap<_, _> = old.into_iter().map(|(index, number)| (index % old_leaves, number)).collect();
            let edits: BTreeMap<_, _> = edits.into_iter().map(|(index, number)| (index % new_leaves, number)).collect();
            let root = write(&nodes, old_leaves, &old);
            prop_assert_eq!(read(&nodes, root), old.iter().map(|(index, number)| (*index, leaf_id(*number))).collect::<BTreeMap<_, _>>());

            let mut base = MapReader::new(nodes.clone(), root).unwrap();
            let mut writer = MapWriter::new(new_leaves * LEAF_BYTES, |bytes| nodes.put(bytes));
            let mut wanted: BTreeMap<u64, u64> = old.range(..new_leaves).map(|(index, number)| (*index, *number)).collect();
            for (index, number) in &edits {
                now(writer.copy_until(&mut base, *index)).unwrap();
                writer.push_leaf(*index, number.map(leaf_id)).unwrap();
                match number {
                    Some(number) => wanted.insert(*index, *number),
                    None => wanted.remove(index),
                };
            }
            now(writer.copy_until(&mut base, new_leaves)).unwrap();
            let edited = writer.finish().unwrap();
            prop_assert_eq!(edited, write(&nodes, new_leaves, &wanted));
        }
    }

    #[test]
    fn one_changed_leaf_of_a_tebibyte_reads_a_path_and_not_the_map() {
        let nodes = Nodes::default();
        let all: BTreeMap<u64, u64> = (0..131_072).map(|index| (index, index)).collect();
        let root = write(&nodes, 131_072, &all);
        nodes.0.lock().unwrap().1 = 0;
        let mut base = MapReader::new(nodes.clone(), root).unwrap();
        let mut writer = MapWriter::new(131_072 * LEAF_BYTES, |bytes| nodes.put(bytes));
        now(writer.copy_until(&mut base, 70_000)).unwrap();
        writer.push_leaf(70_000, Some(leaf_id(1))).unwrap();
        now(writer.copy_until(&mut base, 131_072)).unwrap();
        writer.finish().unwrap();
        assert!(
            nodes.0.lock().unwrap().1 <= 4,
            "{} nodes read",
            nodes.0.lock().unwrap().1
        );
    }
}
