//! What readers and workers do with a segment: read it, hash it, compare it with the base, store what is new.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coffre_vault::map::{LEAF_BYTES, Leaf, PAGE_BYTES, Place, SLOT_BYTES};
use coffre_vault::{ChunkId, ChunkKind, Claim, Encoder};

use super::disk::{Compare, DiskRun, Shared};
use super::plan::{WHOLE_PAGES, pages_apart};
use super::segment::{BLOCKS_PER_SEGMENT, Run, SLOTS_PER_SEGMENT, Segment, SegmentDone, SlotDone, SlotPlan};
use super::{DiskCounters, TransferError};
use crate::digest::{BLOCK_BYTES, BLOCKS_PER_SLOT, Digest, UNKNOWN, ZERO, hash_slot, is_zero};
use crate::machine::DiskId;

const SLOT: usize = SLOT_BYTES as usize;
/// A slot with this many of its eight blocks changed is written whole.
const WHOLE_BLOCKS: u32 = 6;

/// Reads what the plan asks for into the segment's buffer. Past the disk's end there are zeroes.
pub fn read(run: &DiskRun, mut segment: Segment) -> Result<Segment, TransferError> {
    run.shared.wait_while_paused();
    let start_bytes = segment.start_bytes();
    let Some(buffer) = &mut segment.buffer else {
        return Ok(segment);
    };
    let mut read_bytes = 0;
    for range in wanted(&segment.slots) {
        let bytes = &mut buffer[range.start as usize..range.end as usize];
        let from = start_bytes + u64::from(range.start);
        let inside = run.source.size_bytes().saturating_sub(from).min(bytes.len() as u64) as usize;
        let (inside, outside) = bytes.split_at_mut(inside);
        outside.fill(0);
        if !inside.is_empty() {
            let failed = |source| TransferError::Source {
                disk: run.id.clone(),
                source,
            };
            run.source.read_at(from, inside).map_err(failed)?;
            read_bytes += inside.len() as u64;
        }
    }
    run.counters.read_bytes.fetch_add(read_bytes, Ordering::Relaxed);
    Ok(segment)
}

/// The ranges of a segment to read, neighbours joined.
fn wanted(slots: &[SlotPlan; SLOTS_PER_SEGMENT]) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut add = |range: Range<u32>| match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    };
    for (position, slot) in slots.iter().enumerate() {
        let start = (position * SLOT) as u32;
        match slot {
            SlotPlan::Keep | SlotPlan::Hole => {}
            SlotPlan::Compare | SlotPlan::Whole | SlotPlan::Sample => add(start..start + SLOT_BYTES as u32),
            SlotPlan::Runs(runs) => runs.iter().for_each(|run| add(start + run.start..start + run.end)),
        }
    }
    ranges
}

/// Decides about every slot of a segment, and stores what is new.
pub fn process(run: &DiskRun, mut segment: Segment, encoder: &mut Encoder) -> Result<SegmentDone, TransferError> {
    let mut worker = Worker {
        run,
        encoder,
        base_leaf: segment.base_leaf.take(),
        leaf: segment.leaf(),
        start_bytes: segment.start_bytes(),
    };
    let keeps_digests = !run.is_tracked();
    let mut digests = keeps_digests.then(|| Box::new([ZERO; BLOCKS_PER_SEGMENT]));
    let mut base_digests = [ZERO; BLOCKS_PER_SEGMENT];
    if let Compare::Digests(base) = &run.compare {
        base.read(segment.index * BLOCKS_PER_SEGMENT as u64, &mut base_digests);
        if !run.mend.unsure.is_empty() {
            for (block, digest) in base_digests.iter_mut().enumerate() {
                let start = segment.start_bytes() + block as u64 * BLOCK_BYTES;
                if run.mend.unsure.touch(start..start + BLOCK_BYTES) {
                    *digest = UNKNOWN;
                }
            }
        }
    }
    let mut lied_at = None;
    let mut slots = Vec::with_capacity(SLOTS_PER_SEGMENT);
    for (position, plan) in segment.slots.iter().enumerate() {
        let start = segment.start_bytes() + (position * SLOT) as u64;
        let at = Slot {
            in_leaf: segment.slot_in_leaf(position) * SLOT_BYTES as u32,
            unsure: run.mend.unsure.touch(start..start + SLOT_BYTES),
        };
        let bytes = match &segment.buffer {
            Some(buffer) => &buffer[position * SLOT..(position + 1) * SLOT],
            None => &[],
        };
        let blocks = position * BLOCKS_PER_SLOT..(position + 1) * BLOCKS_PER_SLOT;
        let before: &[Digest; BLOCKS_PER_SLOT] = base_digests[blocks.clone()]
            .try_into()
            .expect("the range is as long as the array");
        slots.push(match plan {
            SlotPlan::Keep => SlotDone::Keep,
            SlotPlan::Hole => worker.zero(before),
            SlotPlan::Compare => {
                let (done, now) = worker.compare(at, bytes, before)?;
                if let Some(digests) = &mut digests {
                    digests[blocks].copy_from_slice(&now);
                }
                done
            }
            SlotPlan::Whole => worker.whole(at, bytes)?,
            SlotPlan::Runs(runs) => worker.gather(bytes, runs.iter().cloned()),
            SlotPlan::Sample => {
                run.counters.sampled_bytes.fetch_add(SLOT_BYTES, Ordering::Relaxed);
                if !worker.as_in_base(at, bytes)? {
                    lied_at.get_or_insert(start);
                }
                SlotDone::Keep
            }
        });
    }
    Ok(SegmentDone {
        sequence: segment.sequence,
        index: segment.index,
        slots,
        base_leaf: worker.base_leaf,
        digests,
        lied_at,
    })
}

/// Where a slot lies in its leaf.
#[derive(Clone, Copy)]
struct Slot {
    in_leaf: u32,
    /// The base may have nothing here that can be relied on, even where its ids say the same.
    unsure: bool,
}

struct Worker<'a> {
    run: &'a DiskRun,
    encoder: &'a mut Encoder,
    base_leaf: Option<Arc<Leaf>>,
    leaf: u64,
    /// Of the segment.
    start_bytes: u64,
}

impl Worker<'_> {
    fn base_leaf(&mut self) -> Result<Arc<Leaf>, TransferError> {
        match &self.base_leaf {
            Some(leaf) => Ok(leaf.clone()),
            None => {
                let leaf = self.run.base_leaf(self.leaf)?;
                self.base_leaf = Some(leaf.clone());
                Ok(leaf)
            }
        }
    }

    fn changed(&self, bytes: u64) {
        let counters = &self.run.counters;
        counters.changed_bytes.fetch_add(bytes, Ordering::Relaxed);
        counters
            .regions
            .add(self.start_bytes, self.run.source.size_bytes(), bytes);
    }

    /// A slot that is zero now.
    fn zero(&self, before: &[Digest; BLOCKS_PER_SLOT]) -> SlotDone {
        if matches!(self.run.compare, Compare::Digests(_)) {
            let blocks = before.iter().filter(|digest| **digest != ZERO).count() as u64;
            if blocks == 0 {
                return SlotDone::Keep;
            }
            self.changed(blocks * BLOCK_BYTES);
        }
        SlotDone::Zero
    }

    /// A slot that was read for the comparison that this run makes; also its digests.
    fn compare(
        &mut self,
        at: Slot,
        bytes: &[u8],
        before: &[Digest; BLOCKS_PER_SLOT],
    ) -> Result<(SlotDone, [Digest; BLOCKS_PER_SLOT]), TransferError> {
        if is_zero(bytes) {
            return Ok((self.zero(before), [ZERO; BLOCKS_PER_SLOT]));
        }
        let (now, id) = hash_slot(self.run.shared.hasher.key(), bytes);
        let done = match &self.run.compare {
            Compare::Full | Compare::Tracked => {
                self.changed(SLOT_BYTES);
                self.store(id, bytes)?
            }
            Compare::Map => {
                if !at.unsure && self.base_leaf()?.aligned_chunk(at.in_leaf / SLOT_BYTES as u32) == Some(id) {
                    SlotDone::Keep
                } else {
                    self.changed(SLOT_BYTES);
                    self.store(id, bytes)?
                }
            }
            Compare::Digests(_) => {
                let changed: Vec<u32> = (0..BLOCKS_PER_SLOT as u32)
                    .filter(|block| now[*block as usize] != before[*block as usize])
                    .collect();
                self.changed(changed.len() as u64 * BLOCK_BYTES);
                let block = BLOCK_BYTES as u32;
                let runs: Vec<Range<u32>> = changed.iter().map(|at| at * block..(at + 1) * block).collect();
                if changed.is_empty() {
                    SlotDone::Keep
                } else if changed.len() as u32 >= WHOLE_BLOCKS
                    || pages_apart(&*self.base_leaf()?, at.in_leaf, &runs) >= WHOLE_PAGES
                {
                    self.store(id, bytes)?
                } else {
                    gather(bytes, runs.into_iter())
                }
            }
        };
        Ok((done, now))
    }

    /// A slot that change tracking says to write whole.
    fn whole(&mut self, at: Slot, bytes: &[u8]) -> Result<SlotDone, TransferError> {
        if is_zero(bytes) {
            self.changed(SLOT_BYTES);
            return Ok(SlotDone::Zero);
        }
        let id = self.run.shared.hasher.id(bytes);
        if !at.unsure && self.base_leaf()?.aligned_chunk(at.in_leaf / SLOT_BYTES as u32) == Some(id) {
            return Ok(SlotDone::Keep);
        }
        self.changed(SLOT_BYTES);
        self.store(id, bytes)
    }

    fn gather(&self, bytes: &[u8], runs: impl Iterator<Item = Range<u32>>) -> SlotDone {
        let done = gather(bytes, runs);
        if let SlotDone::Gather { runs, .. } = &done {
            self.changed(runs.iter().map(|run| u64::from(run.length_bytes)).sum());
        }
        done
    }

    /// Makes sure that the vault has the slot's chunk.
    fn store(&mut self, id: ChunkId, bytes: &[u8]) -> Result<SlotDone, TransferError> {
        store(self.run, ChunkKind::Data, id, bytes, self.encoder)?;
        Ok(SlotDone::Chunk(id))
    }

    /// Whether a slot that was not to have changed is as the base has it.
    fn as_in_base(&mut self, at: Slot, bytes: &[u8]) -> Result<bool, TransferError> {
        let leaf = self.base_leaf()?;
        if let Some(id) = leaf.aligned_chunk(at.in_leaf / SLOT_BYTES as u32) {
            return Ok(self.run.shared.hasher.id(bytes) == id);
        }
        for part in leaf.slice(at.in_leaf, at.in_leaf + SLOT_BYTES as u32) {
            let start = (part.start_bytes - at.in_leaf) as usize;
            let now = &bytes[start..start + part.length_bytes as usize];
            let same = match part.place {
                Place::Zero => is_zero(now),
                Place::Chunk { id, offset_bytes } => match &self.run.base {
                    Some(base) => {
                        let plain = base.chunk(&id).map_err(|source| self.run.base_error(source))?;
                        let offset = offset_bytes as usize;
                        plain
                            .get(offset..offset + now.len())
                            .is_some_and(|before| before == now)
                    }
                    None => false,
                },
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Puts a chunk that the vault does not have.
pub fn store(
    run: &DiskRun,
    kind: ChunkKind,
    id: ChunkId,
    bytes: &[u8],
    encoder: &mut Encoder,
) -> Result<(), TransferError> {
    store_for(&run.shared, &run.id, &run.counters, kind, id, bytes, encoder)
}

/// As [`store`], outside of a run.
pub fn store_for(
    shared: &Shared,
    disk: &DiskId,
    counters: &DiskCounters,
    kind: ChunkKind,
    id: ChunkId,
    bytes: &[u8],
    encoder: &mut Encoder,
) -> Result<(), TransferError> {
    let failed = |source| TransferError::Write {
        disk: disk.clone(),
        source,
    };
    let writer = &shared.writer;
    if writer.claim(&id).map_err(failed)? == Claim::New {
        let put = writer.put(kind, id, bytes, encoder).map_err(failed)?;
        counters
            .stored_bytes
            .fetch_add(u64::from(put.stored_bytes), Ordering::Relaxed);
    }
    Ok(())
}

/// Copies the changed ranges of a slot, telling zero pages apart, which cost nothing to store.
fn gather(slot: &[u8], ranges: impl Iterator<Item = Range<u32>>) -> SlotDone {
    let mut runs: Vec<Run> = Vec::new();
    let mut bytes = Vec::new();
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start / PAGE_BYTES as u32 + 1) * PAGE_BYTES as u32);
            let piece = &slot[start as usize..end as usize];
            let zero = is_zero(piece);
            if !zero {
                bytes.extend_from_slice(piece);
            }
            match runs.last_mut() {
                Some(last) if last.zero == zero && last.start_bytes + last.length_bytes == start => {
                    last.length_bytes += end - start;
                }
                _ => runs.push(Run {
                    start_bytes: start,
                    length_bytes: end - start,
                    zero,
                }),
            }
            start = end;
        }
    }
    const { assert!(LEAF_BYTES.is_multiple_of(PAGE_BYTES)) };
    SlotDone::Gather { runs, bytes }
}
