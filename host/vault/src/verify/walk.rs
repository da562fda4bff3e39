//! Walking the maps of points: every node is read, every chunk that they name is looked for.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use super::Touched;
use super::damage::Findings;
use super::packs::BadPacks;
use super::walked::Walked;
use crate::ids::ChunkId;
use crate::index::PackSet;
use crate::map::{FANOUT, Leaf, MAX_LEVEL, Node, Place, span_bytes};
use crate::object::PackKey;
use crate::point::{MapRoot, Point, PointDisk};
use crate::read::{ChunkReader, ReadError};
use crate::vault::Vault;

/// One walk over many points.
pub(super) struct Walk<'a> {
    reader: ChunkReader,
    bad: &'a BadPacks,
    quarantined: &'a HashSet<PackKey>,
    needed: PackSet,
    /// Of the needed ones those that are quarantined, or in which the walk met damage.
    doubtful: BTreeSet<PackKey>,
    walked: Walked,
    chunks: u64,
}

/// One disk of one point, while it is walked.
struct DiskWalk<'a> {
    point: &'a Point,
    disk: &'a PointDisk,
}

impl DiskWalk<'_> {
    fn touched(&self, range: Range<u64>) -> Touched {
        let end = range.end.min(self.disk.size_bytes).max(range.start);
        Touched {
            machine: self.point.machine.clone(),
            point: self.point.number,
            disk: Some(self.disk.id.clone()),
            ranges: std::iter::once(range.start..end).collect(),
        }
    }
}

impl<'a> Walk<'a> {
    pub(super) async fn new(
        vault: &Vault,
        bad: &'a BadPacks,
        quarantined: &'a HashSet<PackKey>,
    ) -> Result<Self, ReadError> {
        Ok(Self {
            reader: vault.chunks(),
            bad,
            quarantined,
            needed: PackSet::default(),
            doubtful: BTreeSet::new(),
            walked: Walked::none(vault).await?,
            chunks: 0,
        })
    }

    /// The packs that hold the best copy of some chunk, and those of them that must be read to know what they are worth.
    pub(super) fn into_packs(self) -> (PackSet, BTreeSet<PackKey>) {
        (self.needed, self.doubtful)
    }

    /// Chunks looked for, nodes included.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    pub(super) async fn point(&mut self, point: &Point, findings: &mut Findings) -> Result<(), ReadError> {
        for disk in &point.disks {
            if let Some(root) = disk.root {
                self.disk(DiskWalk { point, disk }, root, findings).await?;
            }
        }
        for attachment in &point.attachments {
            for error in self
                .check(&attachment.chunks)
                .await?
                .into_iter()
                .filter_map(|(_, error)| error)
            {
                let touched = Touched {
                    machine: point.machine.clone(),
                    point: point.number,
                    disk: None,
                    ranges: Vec::new(),
                };
                findings.add_error(error, Some(touched));
            }
        }
        Ok(())
    }

    /// Depth first, without recursion: a node is left once all below it was walked, and is clean if nothing was found since
    /// it was entered.
    async fn disk(&mut self, walk: DiskWalk<'_>, root: MapRoot, findings: &mut Findings) -> Result<(), ReadError> {
        enum Step {
            Enter { level: u8, index: u64, id: ChunkId },
            Leave { node: Option<u64>, found_before: u64 },
        }
        let mut found: u64 = 0;
        let mut steps = vec![Step::Enter {
            level: root.level.min(MAX_LEVEL),
            index: 0,
            id: root.id,
        }];
        while let Some(step) = steps.pop() {
            let (level, index, id) = match step {
                Step::Leave { node, found_before } => {
                    if found == found_before {
                        self.walked.set_well(node);
                    }
                    continue;
                }
                Step::Enter { level, index, id } => (level, index, id),
            };
            let node = self.walked.number(&id)?;
            if self.walked.is_well(node) {
                continue;
            }
            let start = index * span_bytes(level);
            let span = start..start + span_bytes(level);
            let (_, error) = self.check(&[id]).await?.remove(0);
            let bytes = match error {
                Some(error) => Err(error),
                None => self.reader.read_known(&id).await,
            };
            steps.push(Step::Leave {
                node,
                found_before: found,
            });
            let node = match bytes {
                Ok(bytes) if level == 0 => Leaf::decode(&bytes).map(|leaf| (Some(leaf), None)),
                Ok(bytes) => Node::decode(&bytes, level).map(|node| (None, Some(node))),
                Err(error) if error.is_damage() => {
                    found += 1;
                    self.doubt(&id).await?;
                    findings.add_error(error, Some(walk.touched(span)));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match node {
                Ok((leaf, node)) => {
                    if let Some(leaf) = leaf {
                        found += self.leaf(&walk, start, &leaf, findings).await?;
                    }
                    if let Some(node) = node {
                        let children = (0..FANOUT).rev().filter_map(|position| {
                            let index = index * FANOUT as u64 + position as u64;
                            node.child(position).map(|id| Step::Enter {
                                level: level - 1,
                                index,
                                id,
                            })
                        });
                        steps.extend(children);
                    }
                }
                Err(error) => {
                    found += 1;
                    findings.add(&format!("node {id}"), &error.to_string(), Some(walk.touched(span)));
                }
            }
        }
        Ok(())
    }

    async fn leaf(
        &mut self,
        walk: &DiskWalk<'_>,
        start: u64,
        leaf: &Leaf,
        findings: &mut Findings,
    ) -> Result<u64, ReadError> {
        let mut ids: Vec<ChunkId> = Vec::new();
        let mut seen = HashSet::new();
        for extent in leaf.extents() {
            if let Place::Chunk { id, .. } = extent.place
                && seen.insert(id)
            {
                ids.push(id);
            }
        }
        let mut found = 0;
        for (id, error) in self.check(&ids).await? {
            let Some(error) = error else { continue };
            found += 1;
            let mut touched = walk.touched(0..0);
            touched.ranges.clear();
            for extent in leaf.extents() {
                if matches!(extent.place, Place::Chunk { id: of, .. } if of == id) {
                    let from = start + u64::from(extent.start_bytes);
                    touched
                        .ranges
                        .extend(walk.touched(from..from + u64::from(extent.length_bytes)).ranges);
                }
            }
            findings.add_error(error, Some(touched));
        }
        Ok(found)
    }

    /// Looks for chunks, and reads those that lie in a pack that is known to be bad.
    async fn check(&mut self, ids: &[ChunkId]) -> Result<Vec<(ChunkId, Option<ReadError>)>, ReadError> {
        let places = self.reader.look_up(ids).await?;
        let mut checked = Vec::with_capacity(ids.len());
        for (id, places) in ids.iter().zip(places) {
            self.chunks += 1;
            let Some(first) = places.first() else {
                let error = self.missing(id)?;
                checked.push((*id, Some(error)));
                continue;
            };
            let key = first.pack.info.key;
            self.needed.insert(key);
            if self.quarantined.contains(&key) {
                self.doubtful.insert(key);
            }
            let error = if self.bad.puts_in_doubt(&key, id) {
                match self.reader.read_known(id).await {
                    Ok(_) => None,
                    Err(ReadError::ChunkMissing(_)) => Some(self.missing(id)?),
                    Err(error) if error.is_damage() => Some(error),
                    Err(error) => return Err(error),
                }
            } else {
                None
            };
            checked.push((*id, error));
        }
        Ok(checked)
    }

    /// What is said of a chunk that has no place. A pack that was missed a moment ago is passed over from then on; it is that
    /// pack which is missing all the same.
    fn missing(&mut self, id: &ChunkId) -> Result<ReadError, ReadError> {
        Ok(match self.reader.gone_with(id)? {
            Some(pack) => {
                self.needed.insert(pack);
                ReadError::PackMissing(pack.to_string())
            }
            None => ReadError::ChunkMissing(*id),
        })
    }

    /// A chunk could not be read: whatever pack holds it is read whole.
    async fn doubt(&mut self, id: &ChunkId) -> Result<(), ReadError> {
        for place in self
            .reader
            .look_up(std::slice::from_ref(id))
            .await?
            .into_iter()
            .flatten()
        {
            self.needed.insert(place.pack.info.key);
            self.doubtful.insert(place.pack.info.key);
        }
        Ok(())
    }
}
