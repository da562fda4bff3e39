//! Walking the maps of all roots, each node once.
//!
//! Depth first, a batch of nodes of one level at a time: what waits is at most a batch's children a level, whatever the disk's
//! size. The nodes of a batch are read in the order in which they lie, neighbours in one request.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;

use super::live::LiveIds;
use super::{Marked, Root};
use crate::ids::ChunkId;
use crate::index;
use crate::map::{FANOUT, Leaf, MAX_LEVEL, MapRoot, Node, NodeError, Place};
use crate::offload::offload;
use crate::pack::Decoder;
use crate::read::{self, ChunkReader, Location, ReadError};
use crate::vault::Inner;

/// Nodes that are looked up and read together. The leaves of a disk lie beside each other in their packs, 1.5 KB each where
/// nothing was gathered, so this many are one or two requests.
const BATCH: usize = 512;
/// Inner nodes have 128 children each, which all wait.
const INNER_BATCH: usize = 64;
/// Nodes with less than this between them are read as one range: a request costs more than these bytes.
const GAP_BYTES: u64 = 32 * 1024;
/// A range ends here, or with its first node.
const RANGE_BYTES: u64 = 1024 * 1024;
const RANGES_AT_ONCE: usize = 8;

/// What the walk has found.
pub(super) struct Found {
    /// Of the nodes alone.
    pub(super) marked: Marked,
    /// Data that must be there.
    pub(super) live: LiveIds,
    /// Data of purged roots, which may be gone.
    pub(super) live_if_there: LiveIds,
}

/// One walk over many roots.
pub(super) struct Walk {
    vault: Arc<Inner>,
    reader: ChunkReader,
    /// Locked off the runtime alone.
    found: Arc<Mutex<Found>>,
    nodes: u64,
}

/// A node that was not visited before, and where it is read.
struct Visit {
    id: ChunkId,
    location: Location,
}

impl Walk {
    pub(super) fn new(vault: &Arc<Inner>, marked: Marked) -> Self {
        let folder = marked.index.folder();
        let found = Found {
            live: LiveIds::new(folder),
            live_if_there: LiveIds::new(folder),
            marked,
        };
        Self {
            reader: ChunkReader::new(Arc::clone(vault)),
            vault: Arc::clone(vault),
            found: Arc::new(Mutex::new(found)),
            nodes: 0,
        }
    }

    /// Nodes read so far.
    pub(super) fn nodes(&self) -> u64 {
        self.nodes
    }

    pub(super) fn into_found(self) -> Found {
        let found = Arc::into_inner(self.found).expect("every task of the walk was awaited");
        found.into_inner()
    }

    /// Roots that are not purged first: a node is not visited twice, also where what it names could not be followed.
    pub(super) async fn root(&mut self, root: &Root) -> Result<(), ReadError> {
        self.put_aside(root.attachments.clone(), root.purged).await?;
        for map in &root.maps {
            self.map(*map, root.purged).await?;
        }
        Ok(())
    }

    async fn map(&mut self, root: MapRoot, purged: bool) -> Result<(), ReadError> {
        if root.level > MAX_LEVEL {
            return Err(ReadError::Damaged {
                object: format!("the map of node {}", root.id),
                what: format!("its root is of level {}; {MAX_LEVEL} is the highest known", root.level),
            });
        }
        let mut waiting: Vec<(u8, Vec<ChunkId>)> = vec![(root.level, vec![root.id])];
        while let Some((level, mut ids)) = waiting.pop() {
            let at_most = if level == 0 { BATCH } else { INNER_BATCH };
            let batch = ids.split_off(ids.len().saturating_sub(at_most));
            if !ids.is_empty() {
                waiting.push((level, ids));
            }
            let children = self.visit(level, batch, purged).await?;
            if !children.is_empty() {
                waiting.push((level - 1, children));
            }
        }
        Ok(())
    }

    /// Marks nodes, and reads those that were not marked before. Gives the children of inner nodes; of leaves it puts aside
    /// what they name.
    async fn visit(&mut self, level: u8, ids: Vec<ChunkId>, purged: bool) -> Result<Vec<ChunkId>, ReadError> {
        let visits = self.mark(ids, purged).await?;
        self.nodes += visits.len() as u64;
        let mut children = Vec::new();
        let reader = &self.reader;
        let mut read = stream::iter(ranges(visits))
            .map(|range| read_range(reader, level, range, purged))
            .buffer_unordered(RANGES_AT_ONCE);
        while let Some(named) = read.next().await {
            let named = named?;
            if level == 0 {
                self.put_aside(named, purged).await?;
            } else {
                children.extend(named);
            }
        }
        Ok(children)
    }

    /// Sets the bits of nodes, and says of which they were clear.
    async fn mark(&self, ids: Vec<ChunkId>, purged: bool) -> Result<Vec<Visit>, ReadError> {
        let found = Arc::clone(&self.found);
        let marked = index::blocking(&self.vault, move |vault| {
            let Found { marked, .. } = &mut *found.lock();
            let mut visits = Vec::with_capacity(ids.len());
            for id in ids {
                let known = marked.index.find(&id)?;
                if known.as_ref().is_some_and(|(ordinal, _)| marked.live.get(*ordinal)) {
                    continue;
                }
                let location = match &known {
                    Some((_, places)) => first_location(vault, places)?,
                    None => None,
                };
                match (known, location) {
                    (Some((ordinal, _)), Some(location)) => {
                        marked.live.set(ordinal);
                        visits.push(Visit { id, location });
                    }
                    _ if purged => {}
                    _ => return Ok(Err(id)),
                }
            }
            Ok(Ok(visits))
        });
        marked.await?.map_err(ReadError::ChunkMissing)
    }

    async fn put_aside(&self, ids: Vec<ChunkId>, purged: bool) -> Result<(), ReadError> {
        if ids.is_empty() {
            return Ok(());
        }
        let found = Arc::clone(&self.found);
        index::blocking(&self.vault, move |_| {
            let mut found = found.lock();
            let set = if purged {
                &mut found.live_if_there
            } else {
                &mut found.live
            };
            set.extend(ids)
        })
        .await
    }
}

fn first_location(vault: &Inner, places: &[index::Found]) -> io::Result<Option<Location>> {
    for place in places {
        if let Some(location) = read::location(vault, place)? {
            return Ok(Some(location));
        }
    }
    Ok(None)
}

/// Nodes in the order in which they lie, those beside each other together.
fn ranges(mut visits: Vec<Visit>) -> Vec<Vec<Visit>> {
    visits
        .sort_by(|a, b| (&a.location.pack, a.location.offset_bytes).cmp(&(&b.location.pack, b.location.offset_bytes)));
    let mut ranges: Vec<Vec<Visit>> = Vec::new();
    for visit in visits {
        let joins = ranges.last().and_then(|range| Some((range.first()?, range.last()?)));
        let joins = joins.is_some_and(|(first, last)| {
            let range = visit.location.range();
            last.location.pack == visit.location.pack
                && range.start <= last.location.range().end + GAP_BYTES
                && range.end - first.location.range().start <= RANGE_BYTES
        });
        match ranges.last_mut() {
            Some(range) if joins => range.push(visit),
            _ => ranges.push(vec![visit]),
        }
    }
    ranges
}

/// What the nodes of a range name: children, or the chunks of leaves.
async fn read_range(
    reader: &ChunkReader,
    level: u8,
    range: Vec<Visit>,
    purged: bool,
) -> Result<Vec<ChunkId>, ReadError> {
    let (Some(first), Some(last)) = (range.first(), range.last()) else {
        return Ok(Vec::new());
    };
    let wanted = first.location.range().start..last.location.range().end;
    let fetched = reader.fetch(&first.location.pack, wanted).await;
    let ids: Vec<ChunkId> = range.iter().map(|visit| visit.id).collect();
    let opened = match fetched {
        Ok(bytes) => {
            let opener = reader.clone();
            offload(move || open_range(&opener, level, &range, &bytes))
                .await
                .unwrap_or_else(|panicked| {
                    Err(ReadError::Damaged {
                        object: format!("node {}", ids[0]),
                        what: format!("opening it failed: {panicked}"),
                    })
                })
        }
        Err(error) => Err(error),
    };
    match opened {
        Err(error) if error.is_damage() => {
            // One by one, from whatever copy is whole.
            tracing::debug!(%error, nodes = ids.len(), "nodes are read one by one");
            let mut named = Vec::new();
            for id in ids {
                match reader.read(&id).await {
                    Ok(plain) => named.extend(names(&id, level, &plain)?),
                    Err(error) if purged && error.is_damage() => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(named)
        }
        other => other,
    }
}

fn open_range(reader: &ChunkReader, level: u8, range: &[Visit], bytes: &Bytes) -> Result<Vec<ChunkId>, ReadError> {
    let mut decoder = Decoder::new();
    let mut plain = Vec::new();
    let mut named = Vec::new();
    let start = range.first().map_or(0, |first| first.location.range().start);
    for visit in range {
        let at = visit.location.range();
        let sealed = &bytes[(at.start - start) as usize..(at.end - start) as usize];
        reader.open(&visit.id, &visit.location, sealed, &mut decoder, &mut plain)?;
        named.extend(names(&visit.id, level, &plain)?);
    }
    Ok(named)
}

fn names(id: &ChunkId, level: u8, plain: &[u8]) -> Result<Vec<ChunkId>, ReadError> {
    let malformed = |error: NodeError| ReadError::Damaged {
        object: format!("node {id} of a map"),
        what: error.to_string(),
    };
    if level > 0 {
        let node = Node::decode(plain, level).map_err(malformed)?;
        return Ok((0..FANOUT).filter_map(|position| node.child(position)).collect());
    }
    let leaf = Leaf::decode(plain).map_err(malformed)?;
    let mut ids: Vec<ChunkId> = leaf
        .extents()
        .iter()
        .filter_map(|extent| match extent.place {
            Place::Chunk { id, .. } => Some(id),
            Place::Zero => None,
        })
        .collect();
    ids.dedup();
    Ok(ids)
}
