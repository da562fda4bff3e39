//! The assembler: takes the segments of one disk in disk order, gathers changed runs into chunks, and writes the map.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use coffre_vault::map::{LEAF_BYTES, Leaf, LeafBuilder, MapError, MapReader, MapRoot, MapWriter, Place, SLOT_BYTES};
use coffre_vault::{ChunkId, ChunkKind, ChunkReader, Encoder};
use crossbeam_channel::{Receiver, Sender};

use super::TransferError;
use super::disk::{DiskRun, Message};
use super::segment::{BLOCKS_PER_SEGMENT, SEGMENT_BYTES, SEGMENTS_PER_LEAF, SegmentDone, SlotDone};
use super::work::store;
use crate::digest::{BLOCK_BYTES, BaseDigests, DigestError, NewDigests};
use crate::error_chain::Chain;

/// A gathered chunk is cut here, by rule.
const GATHERED_BYTES: usize = SLOT_BYTES as usize;

/// How a disk's assembly ended.
#[derive(Debug)]
pub enum Assembled {
    /// All is in the vault. The digests are worth keeping only if all of them were noted.
    Done {
        root: Option<MapRoot>,
        digests_noted: bool,
    },
    Lied {
        at_bytes: u64,
    },
    ListFailed(String),
}

/// A changed range of a leaf. Where nothing is said, the base holds.
struct Edit {
    start_bytes: u32,
    length_bytes: u32,
    to: EditTo,
}

enum EditTo {
    Place(Place),
    /// In gathered chunk number `number`, whose id is known when it is cut.
    Gathered {
        number: u64,
        offset_bytes: u32,
    },
}

/// A leaf that is complete but for the ids of gathered chunks.
struct WaitingLeaf {
    index: u64,
    edits: Vec<Edit>,
    base: Option<Arc<Leaf>>,
    /// The last gathered chunk that it needs.
    needs: Option<u64>,
}

/// Why a node was not written; becomes a [`TransferError`] with the disk's name.
enum NodeFailure {
    Base(MapError),
    Transfer(TransferError),
}

impl From<MapError> for NodeFailure {
    fn from(error: MapError) -> Self {
        Self::Base(error)
    }
}

pub struct Assembler<'a> {
    run: &'a DiskRun,
    new_digests: Option<&'a NewDigests>,
    /// Digests of the base that a tracked transfer makes unknown where it writes.
    stale: Option<&'a BaseDigests>,
    encoder: Encoder,
    leaf: Option<WaitingLeaf>,
    waiting: VecDeque<WaitingLeaf>,
    gathering: Vec<u8>,
    /// The number of the chunk being gathered; all before it are cut.
    gathered: u64,
    /// Ids of gathered chunks that waiting leaves may need: a leaf waits for 256 runs at most, so these are few.
    gathered_ids: BTreeMap<u64, ChunkId>,
    digests_noted: bool,
}

impl<'a> Assembler<'a> {
    pub fn new(run: &'a DiskRun, new_digests: Option<&'a NewDigests>, stale: Option<&'a BaseDigests>) -> Self {
        Self {
            run,
            new_digests,
            stale,
            encoder: Encoder::new(),
            leaf: None,
            waiting: VecDeque::new(),
            gathering: Vec::with_capacity(GATHERED_BYTES),
            gathered: 0,
            gathered_ids: BTreeMap::new(),
            digests_noted: true,
        }
    }

    /// Assembles until the end, the first failure or the first lie. `tokens` lets the planner go on.
    pub fn run(mut self, inbox: Receiver<Message>, tokens: Sender<()>) -> Result<Assembled, TransferError> {
        let run = self.run;
        let mut node_encoder = Encoder::new();
        let put = |bytes: Vec<u8>| put_node(run, &bytes, &mut node_encoder).map_err(NodeFailure::Transfer);
        let mut map = MapWriter::new(run.source.size_bytes(), put);
        let mut base_map = match &run.base {
            Some(base) => Some(base.reader().map_err(|source| run.base_error(source))?),
            None => None,
        };
        let mut early: BTreeMap<u64, SegmentDone> = BTreeMap::new();
        let mut next = 0;
        let mut segments = None;
        while segments != Some(next) {
            // The run holds a sender of its own, so the channel stays open; every thread says when it fails.
            match inbox.recv().map_err(|_| TransferError::Cancelled)? {
                Message::Failed(error) => return Err(error),
                Message::ListFailed(why) => return Ok(Assembled::ListFailed(why)),
                Message::End { segments: count } => segments = Some(count),
                Message::Segment(done) => {
                    early.insert(done.sequence, done);
                }
            }
            while let Some(done) = early.remove(&next) {
                if let Some(at_bytes) = done.lied_at {
                    return Ok(Assembled::Lied { at_bytes });
                }
                self.take(done)?;
                self.write_leaves(&mut map, &mut base_map)?;
                next += 1;
                // The planner may be done already.
                let _ = tokens.try_send(());
            }
            if run.shared.should_stop() {
                return Err(TransferError::Cancelled);
            }
        }
        self.end_leaf();
        self.cut()?;
        self.write_leaves(&mut map, &mut base_map)?;
        if let Some(base) = &mut base_map {
            let leaves = run.source.size_bytes().div_ceil(LEAF_BYTES);
            self.finish(run.shared.handle.block_on(map.copy_until(base, leaves)))?;
        }
        if let Some(stale) = self.stale {
            // Before the commit: a block that is not known any more is right for the old point too.
            self.digests_noted &= noted(run, stale.sync());
        }
        let root = map.finish();
        let digests_noted = self.digests_noted;
        self.finish(root).map(|root| Assembled::Done { root, digests_noted })
    }

    fn finish<T>(&self, result: Result<T, NodeFailure>) -> Result<T, TransferError> {
        result.map_err(|failure| match failure {
            NodeFailure::Base(source) => self.run.base_error(source),
            NodeFailure::Transfer(error) => error,
        })
    }

    /// Adds a segment to its leaf.
    fn take(&mut self, done: SegmentDone) -> Result<(), TransferError> {
        self.keep_digests(&done);
        let index = done.index / SEGMENTS_PER_LEAF;
        if self.leaf.as_ref().is_some_and(|leaf| leaf.index != index) {
            self.end_leaf();
        }
        let leaf = self.leaf.get_or_insert_with(|| WaitingLeaf {
            index,
            edits: Vec::new(),
            base: None,
            needs: None,
        });
        if leaf.base.is_none() {
            leaf.base = done.base_leaf;
        }
        let segment_start = ((done.index % SEGMENTS_PER_LEAF) * SEGMENT_BYTES) as u32;
        for (position, slot) in done.slots.into_iter().enumerate() {
            let start_bytes = segment_start + (position as u64 * SLOT_BYTES) as u32;
            let whole = |place| Edit {
                start_bytes,
                length_bytes: SLOT_BYTES as u32,
                to: EditTo::Place(place),
            };
            match slot {
                SlotDone::Keep => {}
                SlotDone::Zero => self.edit(whole(Place::Zero)),
                SlotDone::Chunk(id) => self.edit(whole(Place::Chunk { id, offset_bytes: 0 })),
                SlotDone::Gather { runs, bytes } => {
                    let mut bytes = bytes.as_slice();
                    for run in runs {
                        let start_bytes = start_bytes + run.start_bytes;
                        if run.zero {
                            let to = EditTo::Place(Place::Zero);
                            self.edit(Edit {
                                start_bytes,
                                length_bytes: run.length_bytes,
                                to,
                            });
                        } else {
                            let (content, rest) = bytes.split_at(run.length_bytes as usize);
                            bytes = rest;
                            self.gather(start_bytes, content)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn edit(&mut self, edit: Edit) {
        if let Some(leaf) = &mut self.leaf {
            if let EditTo::Gathered { number, .. } = edit.to {
                leaf.needs = Some(number);
            }
            leaf.edits.push(edit);
        }
    }

    /// Appends changed bytes to the chunk being gathered, cutting it wherever it is full.
    fn gather(&mut self, mut start_bytes: u32, mut content: &[u8]) -> Result<(), TransferError> {
        while !content.is_empty() {
            let room = GATHERED_BYTES - self.gathering.len();
            let (now, later) = content.split_at(content.len().min(room));
            let to = EditTo::Gathered {
                number: self.gathered,
                offset_bytes: self.gathering.len() as u32,
            };
            self.edit(Edit {
                start_bytes,
                length_bytes: now.len() as u32,
                to,
            });
            self.gathering.extend_from_slice(now);
            start_bytes += now.len() as u32;
            content = later;
            if self.gathering.len() == GATHERED_BYTES {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// Stores what has been gathered as one chunk.
    fn cut(&mut self) -> Result<(), TransferError> {
        if self.gathering.is_empty() {
            return Ok(());
        }
        let id = self.run.shared.hasher.id(&self.gathering);
        store(self.run, ChunkKind::Data, id, &self.gathering, &mut self.encoder)?;
        self.gathering.clear();
        self.gathered_ids.insert(self.gathered, id);
        self.gathered += 1;
        Ok(())
    }

    fn end_leaf(&mut self) {
        if let Some(leaf) = self.leaf.take()
            && !leaf.edits.is_empty()
        {
            self.waiting.push_back(leaf);
        }
    }

    /// Writes the leaves whose gathered chunks are all cut, in order.
    fn write_leaves<P>(
        &mut self,
        map: &mut MapWriter<P>,
        base_map: &mut Option<MapReader<ChunkReader>>,
    ) -> Result<(), TransferError>
    where
        P: FnMut(Vec<u8>) -> Result<ChunkId, NodeFailure>,
    {
        while let Some(front) = self.waiting.front() {
            if front.needs.is_some_and(|number| number >= self.gathered) {
                return Ok(());
            }
            let Some(waiting) = self.waiting.pop_front() else {
                return Ok(());
            };
            let leaf = self.build(&waiting)?;
            let id = if leaf.is_zero() {
                None
            } else {
                Some(put_node(self.run, &leaf.encode(), &mut self.encoder)?)
            };
            if let Some(base) = base_map {
                let copied = self.run.shared.handle.block_on(map.copy_until(base, waiting.index));
                self.finish(copied)?;
            }
            let pushed = map.push_leaf(waiting.index, id);
            self.finish(pushed)?;
            if let Some(needs) = waiting.needs {
                // Later leaves may share its last chunk, and need none before that.
                self.gathered_ids = self.gathered_ids.split_off(&needs);
            }
        }
        Ok(())
    }

    fn build(&self, waiting: &WaitingLeaf) -> Result<Leaf, TransferError> {
        let covered: u64 = waiting.edits.iter().map(|edit| u64::from(edit.length_bytes)).sum();
        let base = match &waiting.base {
            Some(base) => base.clone(),
            None if covered == LEAF_BYTES => Arc::new(Leaf::zero()),
            None => self.run.base_leaf(waiting.index)?,
        };
        let mut builder = LeafBuilder::new();
        for edit in &waiting.edits {
            builder.push_from(&base, edit.start_bytes);
            let place = match &edit.to {
                EditTo::Place(place) => *place,
                EditTo::Gathered { number, offset_bytes } => Place::Chunk {
                    id: self.gathered_ids[number],
                    offset_bytes: *offset_bytes,
                },
            };
            builder.push(edit.length_bytes, place);
        }
        builder.push_from(&base, LEAF_BYTES as u32);
        Ok(builder.finish())
    }

    fn keep_digests(&mut self, done: &SegmentDone) {
        let first = done.index * BLOCKS_PER_SEGMENT as u64;
        let written = if let (Some(new), Some(digests)) = (self.new_digests, &done.digests) {
            new.write(first, digests.as_slice())
        } else if let Some(stale) = self.stale {
            let blocks_per_slot = SLOT_BYTES / BLOCK_BYTES;
            done.slots.iter().enumerate().try_for_each(|(position, slot)| {
                let slot_first = first + position as u64 * blocks_per_slot;
                match slot {
                    SlotDone::Keep => Ok(()),
                    SlotDone::Zero | SlotDone::Chunk(_) => stale.forget(slot_first..slot_first + blocks_per_slot),
                    SlotDone::Gather { runs, .. } => runs.iter().try_for_each(|run| {
                        let start = u64::from(run.start_bytes) / BLOCK_BYTES;
                        let end = u64::from(run.start_bytes + run.length_bytes).div_ceil(BLOCK_BYTES);
                        stale.forget(slot_first + start..slot_first + end)
                    }),
                }
            })
        } else {
            Ok(())
        };
        self.digests_noted &= noted(self.run, written);
    }
}

/// Without digests the next scan is slower; that is no reason to fail.
fn noted(run: &DiskRun, result: Result<(), DigestError>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(disk = %run.id, error = %Chain(&error), "this host's digests of the disk are not kept");
            false
        }
    }
}

fn put_node(run: &DiskRun, bytes: &[u8], encoder: &mut Encoder) -> Result<ChunkId, TransferError> {
    let id = run.shared.hasher.id(bytes);
    store(run, ChunkKind::Node, id, bytes, encoder)?;
    Ok(id)
}
