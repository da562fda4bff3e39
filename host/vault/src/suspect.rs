//! What points rely on and the vault has no good copy of: chunks that lie in quarantined packs alone, or nowhere.
//!
//! A writer puts such chunks again as soon as somebody has their bytes, because it relies on no quarantined pack. But what it
//! takes over from its base without looking (whole subtrees of the map, slots that did not change) it would rely on
//! unseen. So a backup walks the maps of its base first, and is told what of them has no good copy. Where nothing is
//! quarantined nothing is walked; where all that was quarantined has a good copy by now, one look through the local index
//! says so.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::gclog::GcLog;
use crate::ids::ChunkId;
use crate::map::{FANOUT, Leaf, MAX_LEVEL, MapRoot, Node, Place, span_bytes};
use crate::object::PackKey;
use crate::read::{ChunkReader, ReadError};
use crate::vault::Inner;

/// What is not to be relied on, as of the moment when a session read the clean-up log.
#[derive(Clone)]
pub struct Suspects {
    reader: ChunkReader,
    quarantined: Arc<HashSet<PackKey>>,
}

impl std::fmt::Debug for Suspects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Suspects({} packs)", self.quarantined.len())
    }
}

/// A part of a map that the vault has no good copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspect {
    /// A node. Its content, if a quarantined pack still gives it; else nothing is known of what lies below.
    Node {
        id: ChunkId,
        range: Range<u64>,
        content: Option<Bytes>,
    },
    /// A chunk of data, and where one leaf uses it, in disk order.
    Chunk { id: ChunkId, pieces: Vec<SuspectPiece> },
}

/// A run of a disk that lies in a suspect chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspectPiece {
    pub disk_bytes: u64,
    pub chunk_bytes: u32,
    pub length_bytes: u32,
}

/// None: everything that the index lists has a good copy, so there is nothing to look for.
pub(crate) fn suspects(vault: &Arc<Inner>, log: &GcLog) -> std::io::Result<Option<Suspects>> {
    let quarantined = log.quarantined_packs();
    if quarantined.is_empty() && !log.says_chunks_are_lost() {
        return Ok(None);
    }
    let mut all_listed = true;
    for pack in quarantined {
        all_listed &= vault.index.pack(pack)?.is_some();
    }
    if all_listed && !log.says_chunks_are_lost() && !vault.index.any_only_in(quarantined)? {
        return Ok(None);
    }
    vault.reading.doubt(quarantined.iter().copied());
    Ok(Some(Suspects {
        reader: ChunkReader::new(Arc::clone(vault)),
        quarantined: Arc::new(quarantined.clone()),
    }))
}

impl Suspects {
    /// Walks one disk's map.
    pub fn walk(&self, root: Option<MapRoot>) -> SuspectWalk {
        let steps = root.map(|root| Step {
            level: root.level.min(MAX_LEVEL),
            index: 0,
            id: root.id,
        });
        SuspectWalk {
            suspects: self.clone(),
            steps: steps.into_iter().collect(),
            found: VecDeque::new(),
        }
    }

    /// The bytes of a suspect chunk, if a quarantined pack still gives them.
    pub async fn rescue(&self, id: &ChunkId) -> Result<Option<Bytes>, ReadError> {
        match self.reader.read_known(id).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which of the chunks have no good copy.
    async fn without_copy(&self, ids: &[ChunkId]) -> Result<Vec<bool>, ReadError> {
        let places = self.reader.look_up(ids).await?;
        let good = |place: &crate::read::Location| !self.quarantined.contains(&place.pack.info.key);
        Ok(places.iter().map(|places| !places.iter().any(good)).collect())
    }
}

struct Step {
    level: u8,
    index: u64,
    id: ChunkId,
}

/// A walk in disk order. Reads every node of the map once.
pub struct SuspectWalk {
    suspects: Suspects,
    steps: Vec<Step>,
    found: VecDeque<Suspect>,
}

impl SuspectWalk {
    /// The next part without a good copy; none when the map is done. An error that is damage: a node that nobody has
    /// quarantined cannot be read.
    pub async fn next(&mut self) -> Result<Option<Suspect>, ReadError> {
        while self.found.is_empty() {
            let Some(step) = self.steps.pop() else {
                return Ok(None);
            };
            self.enter(step).await?;
        }
        Ok(self.found.pop_front())
    }

    async fn enter(&mut self, Step { level, index, id }: Step) -> Result<(), ReadError> {
        let start = index * span_bytes(level);
        let range = start..start + span_bytes(level);
        let suspect = self.suspects.without_copy(&[id]).await?[0];
        let content = if suspect {
            self.suspects.rescue(&id).await?
        } else {
            Some(self.suspects.reader.read(&id).await?)
        };
        let below = content.as_deref().map(|bytes| {
            if level == 0 {
                Leaf::decode(bytes).map(Below::Leaf)
            } else {
                Node::decode(bytes, level).map(Below::Node)
            }
        });
        match below {
            Some(Ok(below)) => {
                if suspect {
                    self.found.push_back(Suspect::Node { id, range, content });
                }
                match below {
                    Below::Leaf(leaf) => self.leaf(start, &leaf).await?,
                    Below::Node(node) => {
                        let children = (0..FANOUT).rev().filter_map(|position| {
                            let index = index * FANOUT as u64 + position as u64;
                            node.child(position).map(|id| Step {
                                level: level - 1,
                                index,
                                id,
                            })
                        });
                        self.steps.extend(children);
                    }
                }
            }
            // What is not well formed is as good as lost, wherever it lies.
            Some(Err(_)) | None => self.found.push_back(Suspect::Node {
                id,
                range,
                content: None,
            }),
        }
        Ok(())
    }

    async fn leaf(&mut self, start: u64, leaf: &Leaf) -> Result<(), ReadError> {
        let mut ids: Vec<ChunkId> = Vec::new();
        let mut seen = HashSet::new();
        for extent in leaf.extents() {
            if let Place::Chunk { id, .. } = extent.place
                && seen.insert(id)
            {
                ids.push(id);
            }
        }
        let suspect = self.suspects.without_copy(&ids).await?;
        for (id, _) in ids.into_iter().zip(suspect).filter(|(_, suspect)| *suspect) {
            let pieces = leaf.extents().iter().filter_map(|extent| match extent.place {
                Place::Chunk { id: of, offset_bytes } if of == id => Some(SuspectPiece {
                    disk_bytes: start + u64::from(extent.start_bytes),
                    chunk_bytes: offset_bytes,
                    length_bytes: extent.length_bytes,
                }),
                Place::Chunk { .. } | Place::Zero => None,
            });
            let pieces = pieces.collect();
            self.found.push_back(Suspect::Chunk { id, pieces });
        }
        Ok(())
    }
}

enum Below {
    Leaf(Leaf),
    Node(Node),
}
