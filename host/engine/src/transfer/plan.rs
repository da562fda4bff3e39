//! The planner: which parts of a disk are looked at, and how.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coffre_vault::map::{LEAF_BYTES, Leaf, PAGE_BYTES, Place, SECTOR_BYTES, SLOT_BYTES};
use crossbeam_channel::{Receiver, Sender};

use super::TransferError;
use super::disk::{DiskRun, Message};
use super::segment::{PAGES_PER_SLOT, SEGMENT_BYTES, SEGMENTS_PER_LEAF, SLOTS_PER_SEGMENT, Segment, SlotPlan};
use crate::machine::Extent;
use crate::provider::ChangeList;
use crate::source::SourceError;

/// A slot with this many pages changed, or lying in gathered chunks, is written whole: it then costs one chunk and one
/// short extent again, which keeps a disk with a hot region from being shattered.
pub const WHOLE_PAGES: u64 = 24;
/// One segment of so many is read although a provider calls it unchanged; a hundred runs read all of them.
const SAMPLE_EVERY: u64 = 100;
/// Data ranges counted in advance so that progress knows its end; a disk with more is counted as it goes.
const RANGES_COUNTED: usize = 65_536;

/// Why planning stopped.
enum Stop {
    Failed(TransferError),
    ListFailed(String),
    /// Nobody takes segments any more.
    Unwanted,
}

struct Emitter<'a> {
    run: &'a DiskRun,
    reads: &'a Sender<Segment>,
    ready: &'a Receiver<()>,
    sequence: u64,
}

impl Emitter<'_> {
    fn emit(
        &mut self,
        index: u64,
        slots: [SlotPlan; SLOTS_PER_SEGMENT],
        base_leaf: Option<Arc<Leaf>>,
    ) -> Result<(), Stop> {
        if self.run.shared.should_stop() {
            return Err(Stop::Failed(TransferError::Cancelled));
        }
        self.ready.recv().map_err(|_| Stop::Unwanted)?;
        let reads = slots
            .iter()
            .any(|slot| !matches!(slot, SlotPlan::Keep | SlotPlan::Hole));
        // Taken here, in disk order, so that the segment that the assembler waits for always has its buffer.
        let buffer = reads.then(|| self.run.shared.buffers.take());
        let segment = Segment {
            sequence: self.sequence,
            index,
            slots,
            buffer,
            base_leaf,
        };
        self.sequence += 1;
        self.reads.send(segment).map_err(|_| Stop::Unwanted)
    }

    fn end(self, planned: Result<(), Stop>) -> Message {
        match planned {
            Ok(()) | Err(Stop::Unwanted) => Message::End {
                segments: self.sequence,
            },
            Err(Stop::ListFailed(why)) => Message::ListFailed(why),
            Err(Stop::Failed(error)) => Message::Failed(error),
        }
    }
}

/// Plans everything that holds data now or held some at the base.
pub fn all(run: &DiskRun, reads: &Sender<Segment>, ready: &Receiver<()>) -> Message {
    let mut emitter = Emitter {
        run,
        reads,
        ready,
        sequence: 0,
    };
    let planned = plan_all(&mut emitter);
    emitter.end(planned)
}

fn plan_all(emitter: &mut Emitter<'_>) -> Result<(), Stop> {
    let run = emitter.run;
    let failed = |source| {
        Stop::Failed(TransferError::Source {
            disk: run.id.clone(),
            source,
        })
    };
    count_data(run).map_err(failed)?;
    let size_bytes = run.source.size_bytes();
    let leaves = size_bytes.div_ceil(LEAF_BYTES);
    let mut data = run.source.next_data(0).map_err(failed)?;
    let mut base_leaf = next_base_leaf(run, 0)?;
    let mut leaf = 0;
    loop {
        let next = [
            data.as_ref().map(|range| (range.start / LEAF_BYTES).max(leaf)),
            base_leaf,
        ]
        .into_iter()
        .flatten()
        .min();
        leaf = match next {
            Some(next) if next < leaves => next,
            _ => return Ok(()),
        };
        let in_base = base_leaf == Some(leaf);
        for index in leaf * SEGMENTS_PER_LEAF..(leaf + 1) * SEGMENTS_PER_LEAF {
            let mut slots = [const { SlotPlan::Hole }; SLOTS_PER_SEGMENT];
            for (position, slot) in slots.iter_mut().enumerate() {
                let start = index * SEGMENT_BYTES + position as u64 * SLOT_BYTES;
                while let Some(range) = &data
                    && range.end <= start
                {
                    data = run.source.next_data(range.end).map_err(failed)?;
                }
                if data.as_ref().is_some_and(|range| range.start < start + SLOT_BYTES) {
                    *slot = SlotPlan::Compare;
                }
            }
            if in_base || slots.contains(&SlotPlan::Compare) {
                emitter.emit(index, slots, None)?;
            }
        }
        leaf += 1;
        while let Some(range) = &data
            && range.end <= leaf * LEAF_BYTES
        {
            data = run.source.next_data(range.end).map_err(failed)?;
        }
        if in_base {
            base_leaf = next_base_leaf(run, leaf)?;
        }
    }
}

fn next_base_leaf(run: &DiskRun, from: u64) -> Result<Option<u64>, Stop> {
    match &run.base {
        Some(base) => base
            .next_leaf(from)
            .map_err(|source| Stop::Failed(run.base_error(source))),
        None => Ok(None),
    }
}

/// Tells progress how much there is to read.
fn count_data(run: &DiskRun) -> Result<(), SourceError> {
    let mut from = 0;
    let mut bytes = 0;
    for _ in 0..RANGES_COUNTED {
        match run.source.next_data(from)? {
            Some(range) => {
                bytes += range.end - range.start;
                from = range.end;
            }
            None => {
                run.counters.to_read_bytes.store(bytes, Ordering::Relaxed);
                return Ok(());
            }
        }
    }
    // What was not counted may be data to the last byte.
    run.counters
        .to_read_bytes
        .store(bytes + (run.source.size_bytes() - from), Ordering::Relaxed);
    Ok(())
}

/// Plans what the provider's list names, and the sample of what it does not.
pub fn tracked(run: &DiskRun, list: Box<dyn ChangeList>, reads: &Sender<Segment>, ready: &Receiver<()>) -> Message {
    let mut emitter = Emitter {
        run,
        reads,
        ready,
        sequence: 0,
    };
    let planned = plan_tracked(&mut emitter, list);
    emitter.end(planned)
}

fn plan_tracked(emitter: &mut Emitter<'_>, list: Box<dyn ChangeList>) -> Result<(), Stop> {
    let run = emitter.run;
    let leaves = run.source.size_bytes().div_ceil(LEAF_BYTES);
    let mut changes = ChangeStream::new(run, list);
    let mut holes = Holes {
        run,
        data: None,
        from: 0,
    };
    let mut sample = next_sample(run, 0)?;
    loop {
        let changed = changes.peek()?.map(|range| range.start / LEAF_BYTES);
        let sampled = sample.map(|index| index / SEGMENTS_PER_LEAF);
        let leaf = match changed.into_iter().chain(sampled).min() {
            Some(leaf) if leaf < leaves => leaf,
            _ => return Ok(()),
        };
        let base_leaf = run.base_leaf(leaf).map_err(Stop::Failed)?;
        for index in leaf * SEGMENTS_PER_LEAF..(leaf + 1) * SEGMENTS_PER_LEAF {
            let is_sample = sample == Some(index);
            let mut slots = [const { SlotPlan::Keep }; SLOTS_PER_SEGMENT];
            for (position, slot) in slots.iter_mut().enumerate() {
                let start = index * SEGMENT_BYTES + position as u64 * SLOT_BYTES;
                let runs = changes.take_slot(start)?;
                let in_leaf = (start % LEAF_BYTES) as u32;
                *slot = if runs.is_empty() {
                    if is_sample { SlotPlan::Sample } else { SlotPlan::Keep }
                } else if holes.is_hole(start..start + SLOT_BYTES)? && runs.first() == Some(&(0..SLOT_BYTES as u32)) {
                    SlotPlan::Hole
                } else if pages_apart(&base_leaf, in_leaf, &runs) >= WHOLE_PAGES {
                    SlotPlan::Whole
                } else {
                    SlotPlan::Runs(runs)
                };
            }
            if slots.iter().any(|slot| *slot != SlotPlan::Keep) {
                run.counters
                    .to_read_bytes
                    .fetch_add(planned_bytes(&slots), Ordering::Relaxed);
                emitter.emit(index, slots, Some(base_leaf.clone()))?;
            }
            if is_sample {
                sample = next_sample(run, index + 1)?;
            }
        }
    }
}

fn planned_bytes(slots: &[SlotPlan]) -> u64 {
    slots
        .iter()
        .map(|slot| match slot {
            SlotPlan::Keep | SlotPlan::Hole => 0,
            SlotPlan::Compare | SlotPlan::Whole | SlotPlan::Sample => SLOT_BYTES,
            SlotPlan::Runs(runs) => runs.iter().map(|run| u64::from(run.end - run.start)).sum(),
        })
        .sum()
}

/// The pages of a slot that changed or lie in gathered chunks of the base.
pub fn pages_apart(base: &Leaf, slot_start: u32, changed: &[Range<u32>]) -> u64 {
    let mut apart = 0_u32;
    let mut mark = |start: u32, end: u32| {
        for page in start / PAGE_BYTES as u32..end.div_ceil(PAGE_BYTES as u32) {
            apart |= 1 << page;
        }
    };
    const { assert!(PAGES_PER_SLOT == u32::BITS as u64) };
    for run in changed {
        mark(run.start, run.end);
    }
    for extent in base.slice(slot_start, slot_start + SLOT_BYTES as u32) {
        if matches!(extent.place, Place::Chunk { .. }) && !extent.is_aligned() {
            mark(extent.start_bytes - slot_start, extent.end_bytes() - slot_start);
        }
    }
    u64::from(apart.count_ones())
}

/// The next segment to sample: its turn this time, and not all zero at the base.
fn next_sample(run: &DiskRun, from: u64) -> Result<Option<u64>, Stop> {
    let turn = u64::from(run.shared.writer.number().0) % SAMPLE_EVERY;
    let mut from = from;
    loop {
        let index = from + (turn + SAMPLE_EVERY - from % SAMPLE_EVERY) % SAMPLE_EVERY;
        let leaf = index / SEGMENTS_PER_LEAF;
        match next_base_leaf(run, leaf)? {
            None => return Ok(None),
            Some(found) if found == leaf => return Ok(Some(index)),
            Some(found) => from = found * SEGMENTS_PER_LEAF,
        }
    }
}

/// Where the source has no data, asked in disk order.
struct Holes<'a> {
    run: &'a DiskRun,
    data: Option<Range<u64>>,
    /// The source has been asked from here on.
    from: u64,
}

impl Holes<'_> {
    fn is_hole(&mut self, range: Range<u64>) -> Result<bool, Stop> {
        if self.data.as_ref().is_none_or(|data| data.end <= range.start) && self.from <= range.start {
            let found = self.run.source.next_data(range.start);
            self.data = found.map_err(|source| {
                Stop::Failed(TransferError::Source {
                    disk: self.run.id.clone(),
                    source,
                })
            })?;
            // Nothing lies between here and the data that was found.
            self.from = self.data.as_ref().map_or(u64::MAX, |data| data.start);
        }
        Ok(self
            .data
            .as_ref()
            .is_none_or(|data| data.start >= range.end || data.end <= range.start))
    }
}

/// The provider's extents as byte ranges of whole sectors, in order, with what a resize adds.
struct ChangeStream<'a> {
    run: &'a DiskRun,
    list: Option<Box<dyn ChangeList>>,
    queue: std::collections::VecDeque<Range<u64>>,
    /// All further changes begin here or later.
    end_bytes: u64,
    /// Where the smaller of the two sizes ends, if they differ: from there on all is changed.
    resized_from: Option<u64>,
    /// How far the part past it has been queued.
    resized_to: u64,
    /// What counts as changed because the base is damaged there; sorted.
    unsure: std::collections::VecDeque<Range<u64>>,
    /// The next range of both.
    next: Option<Range<u64>>,
}

impl<'a> ChangeStream<'a> {
    fn new(run: &'a DiskRun, list: Box<dyn ChangeList>) -> Self {
        let size_bytes = run.source.size_bytes();
        let base_bytes = run.base.as_ref().map_or(0, |base| base.size_bytes);
        let resized_from = (size_bytes != base_bytes).then(|| size_bytes.min(base_bytes) / SECTOR_BYTES * SECTOR_BYTES);
        let resized_to = resized_from.unwrap_or(0);
        // Past the disk's end there is nothing to read; of its last leaf the rest is zero.
        let end_bytes = size_bytes.next_multiple_of(LEAF_BYTES);
        Self {
            run,
            list: Some(list),
            queue: Default::default(),
            end_bytes: 0,
            resized_from,
            resized_to,
            unsure: run
                .mend
                .unsure
                .iter()
                .map(|range| range.start..range.end.min(end_bytes))
                .collect(),
            next: None,
        }
    }

    fn fill(&mut self) -> Result<(), Stop> {
        while self.queue.is_empty() {
            let Some(list) = &mut self.list else {
                return self.fill_resized();
            };
            let next = self.run.shared.handle.block_on(list.next());
            let extents = next.map_err(|error| Stop::ListFailed(error.text))?;
            if extents.is_empty() {
                self.list = None;
            }
            for extent in extents {
                self.push(extent)?;
            }
        }
        Ok(())
    }

    /// After the list: what lies past the smaller size. Of a disk that grew only what holds data, for the base has nothing
    /// there; of one that shrank the rest of its last leaf, which reads as zero.
    fn fill_resized(&mut self) -> Result<(), Stop> {
        let Some(from) = self.resized_from else { return Ok(()) };
        let size_bytes = self.run.source.size_bytes();
        let grew = self.run.base.as_ref().is_some_and(|base| base.size_bytes < size_bytes);
        if !grew {
            self.resized_from = None;
            let end = size_bytes.next_multiple_of(LEAF_BYTES);
            self.queue.extend((from < end).then_some(from..end));
            return Ok(());
        }
        let found = self.run.source.next_data(self.resized_to);
        let failed = |source| {
            Stop::Failed(TransferError::Source {
                disk: self.run.id.clone(),
                source,
            })
        };
        match found.map_err(failed)? {
            Some(data) => {
                let start = data.start.max(from) / SECTOR_BYTES * SECTOR_BYTES;
                self.queue.push_back(start..data.end.next_multiple_of(SECTOR_BYTES));
                self.resized_to = data.end;
            }
            None => self.resized_from = None,
        }
        Ok(())
    }

    fn push(&mut self, extent: Extent) -> Result<(), Stop> {
        let size_bytes = self.run.source.size_bytes();
        let end = extent.offset_bytes.checked_add(extent.length_bytes);
        let Some(end) = end.filter(|_| extent.offset_bytes >= self.end_bytes) else {
            return Err(Stop::ListFailed(format!(
                "its extents overlap or are out of order at {}",
                extent.offset_bytes
            )));
        };
        self.end_bytes = end;
        // A base that was larger may have changes past today's end.
        let limit = self.resized_from.unwrap_or(size_bytes.next_multiple_of(SECTOR_BYTES));
        let start = extent.offset_bytes / SECTOR_BYTES * SECTOR_BYTES;
        let end = end.next_multiple_of(SECTOR_BYTES).min(limit);
        if start >= end {
            return Ok(());
        }
        match self.queue.back_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => self.queue.push_back(start..end),
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<Range<u64>>, Stop> {
        if self.next.is_none() {
            self.next = self.join()?;
        }
        Ok(self.next.clone())
    }

    /// Takes the first range of the provider's and the unsure ones, and all that touch it.
    fn join(&mut self) -> Result<Option<Range<u64>>, Stop> {
        let mut joined: Option<Range<u64>> = None;
        loop {
            self.fill()?;
            let changed = self.queue.front().map_or(u64::MAX, |range| range.start);
            let unsure = self.unsure.front().map_or(u64::MAX, |range| range.start);
            if joined.as_ref().is_some_and(|range| changed.min(unsure) > range.end) {
                return Ok(joined);
            }
            let from = if changed <= unsure {
                &mut self.queue
            } else {
                &mut self.unsure
            };
            let Some(range) = from.pop_front() else {
                return Ok(joined);
            };
            match &mut joined {
                Some(joined) => joined.end = joined.end.max(range.end),
                None if range.start < range.end => joined = Some(range),
                None => {}
            }
        }
    }

    /// Takes the changes that lie in the slot from `start` on, relative to it.
    fn take_slot(&mut self, start: u64) -> Result<Vec<Range<u32>>, Stop> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        while let Some(range) = self.peek()? {
            if range.start >= start + SLOT_BYTES {
                break;
            }
            let end = range.end.min(start + SLOT_BYTES);
            let from = (range.start.max(start) - start) as u32;
            let to = (end - start) as u32;
            match runs.last_mut() {
                Some(last) if from <= last.end => last.end = last.end.max(to),
                _ => runs.push(from..to),
            }
            self.next = (end < range.end).then_some(end..range.end);
            if end == start + SLOT_BYTES {
                break;
            }
        }
        Ok(runs)
    }
}
