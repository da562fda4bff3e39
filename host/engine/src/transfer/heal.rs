//! Healing: what the base of a disk needs and the vault has lost is stored again, as far as its bytes are still to be had.
//!
//! Before a disk is compared, the map of its base is walked for what has no good copy (only if anything is quarantined). A
//! lost chunk of data is put together again from the snapshot: where the base says that its parts lie. If the hash is right,
//! these are its very bytes, and every point that needs the chunk is whole again, this one's base and all before it. That is
//! so for aligned and gathered chunks, however the disk is compared afterwards. A chunk whose bytes have changed since, and
//! every node of the map, is taken out of its quarantined pack, if that still gives it.
//!
//! What then remains is lost to the old points. The new one must not rely on it: these byte ranges count as changed, and
//! nodes that cannot be read as absent.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use coffre_vault::{ChunkId, ChunkKind, Encoder, ReadError, Suspect, SuspectPiece, Suspects};

use super::disk::Shared;
use super::work::store_for;
use super::{DiskBase, DiskCounters, TransferError};
use crate::machine::DiskId;
use crate::source::{DiskSource, SourceError};

/// Parts of chunks that are kept until the rest of their chunk is found: 16 MiB. When there are more, those that wait are
/// settled with what there is.
const WAITING_PIECES: usize = 1 << 20;
/// Ranges to read again; when there are more, near ones are joined, which reads some bytes too many.
const RANGES_LIMIT: usize = 1 << 16;
/// The first try at joining.
const GAP_BYTES: u64 = 128 << 10;
/// No chunk is larger.
const CHUNK_BYTES: u32 = 1 << 20;
/// A chunk that a disk holds many times is looked for at so many places.
const PLACES_TRIED: usize = 8;

/// What was damaged in the base of one disk, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Healed {
    /// Chunks of data that are in the vault again.
    pub chunks: u64,
    /// Nodes of the map that are in the vault again.
    pub nodes: u64,
    /// Plain bytes of both.
    pub bytes: u64,
    /// What could not be stored again as it was: the bytes have changed since, so points that need it stay damaged.
    pub lost_chunks: u64,
    pub lost_nodes: u64,
}

impl Healed {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What a transfer has to know of a base that is not whole.
#[derive(Debug, Default)]
pub struct Mend {
    /// What the new point must not take over from its base.
    pub unsure: Ranges,
    pub absent: Arc<HashSet<ChunkId>>,
    pub healed: Healed,
    /// Read from the source for it.
    pub read_bytes: u64,
}

/// Byte ranges of a disk, sorted, none touching the next.
#[derive(Debug, Default)]
pub struct Ranges {
    sorted: Vec<Range<u64>>,
}

impl Ranges {
    fn of(ranges: Vec<Range<u64>>) -> Self {
        let mut sorted = joined(ranges, 0);
        let mut gap = GAP_BYTES;
        while sorted.len() > RANGES_LIMIT {
            sorted = joined(sorted, gap);
            gap *= 2;
        }
        Self { sorted }
    }

    pub fn touch(&self, range: Range<u64>) -> bool {
        let first = self.sorted.partition_point(|known| known.end <= range.start);
        self.sorted.get(first).is_some_and(|known| known.start < range.end)
    }

    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.sorted.iter()
    }
}

fn joined(mut ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + gap => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Stores again what the base lacks. Blocks.
pub fn mend(
    shared: &Shared,
    suspects: &Suspects,
    disk: &DiskId,
    source: &dyn DiskSource,
    base: &DiskBase,
    counters: &DiskCounters,
) -> Result<Mend, TransferError> {
    let mut healer = Healer {
        shared,
        suspects,
        disk,
        source,
        counters,
        encoder: Encoder::new(),
        plain: Vec::new(),
        waiting: BTreeMap::new(),
        waiting_pieces: 0,
        unsure: Vec::new(),
        absent: HashSet::new(),
        mended: HashSet::new(),
        healed: Healed::default(),
        read_bytes: 0,
    };
    let mut walk = suspects.walk(base.root);
    loop {
        if shared.should_stop() {
            return Err(TransferError::Cancelled);
        }
        let found = shared.handle.block_on(walk.next());
        match found.map_err(|source| healer.cannot_read(source))? {
            None => break,
            Some(Suspect::Node {
                id,
                content: Some(bytes),
                ..
            }) => healer.put(ChunkKind::Node, id, &bytes)?,
            Some(Suspect::Node { id, range, .. }) => {
                healer.healed.lost_nodes += 1;
                healer.absent.insert(id);
                healer.unsure.push(range);
            }
            Some(Suspect::Chunk { id, pieces }) => healer.chunk(id, pieces)?,
        }
    }
    healer.settle()?;
    let mend = Mend {
        unsure: Ranges::of(healer.unsure),
        absent: Arc::new(healer.absent),
        healed: healer.healed,
        read_bytes: healer.read_bytes,
    };
    if !mend.healed.is_nothing() {
        tracing::warn!(disk = %disk, healed = ?mend.healed, "the base is damaged; what can be had of it is stored again");
    }
    Ok(mend)
}

struct Healer<'a> {
    shared: &'a Shared,
    suspects: &'a Suspects,
    disk: &'a DiskId,
    source: &'a dyn DiskSource,
    counters: &'a DiskCounters,
    encoder: Encoder,
    plain: Vec<u8>,
    waiting: BTreeMap<ChunkId, Vec<SuspectPiece>>,
    waiting_pieces: usize,
    unsure: Vec<Range<u64>>,
    absent: HashSet<ChunkId>,
    /// Stored again by now; forgotten now and then, which costs time alone.
    mended: HashSet<ChunkId>,
    healed: Healed,
    read_bytes: u64,
}

impl Healer<'_> {
    fn cannot_read(&self, source: ReadError) -> TransferError {
        TransferError::Heal {
            disk: self.disk.clone(),
            source,
        }
    }

    /// A chunk that one leaf needs: stored again at once if the leaf has all of it.
    fn chunk(&mut self, id: ChunkId, pieces: Vec<SuspectPiece>) -> Result<(), TransferError> {
        if self.mended.contains(&id) || self.put_together(id, &pieces)? {
            return Ok(());
        }
        self.waiting_pieces += pieces.len();
        self.waiting.entry(id).or_default().extend(pieces);
        if self.waiting_pieces > WAITING_PIECES {
            self.settle()?;
        }
        Ok(())
    }

    /// What waits is put together, rescued or given up.
    fn settle(&mut self) -> Result<(), TransferError> {
        self.waiting_pieces = 0;
        for (id, pieces) in std::mem::take(&mut self.waiting) {
            if self.shared.should_stop() {
                return Err(TransferError::Cancelled);
            }
            if self.mended.contains(&id) || self.put_together(id, &pieces)? {
                continue;
            }
            let rescued = self.shared.handle.block_on(self.suspects.rescue(&id));
            match rescued.map_err(|source| self.cannot_read(source))? {
                Some(bytes) => self.put(ChunkKind::Data, id, &bytes)?,
                None => {
                    self.healed.lost_chunks += 1;
                    let ranges = pieces
                        .iter()
                        .map(|piece| piece.disk_bytes..piece.disk_bytes + u64::from(piece.length_bytes));
                    self.unsure.extend(ranges);
                }
            }
        }
        if self.unsure.len() > WAITING_PIECES {
            self.unsure = Ranges::of(std::mem::take(&mut self.unsure)).sorted;
        }
        Ok(())
    }

    /// Reads the parts of a chunk from the snapshot. Only the hash says whether these are its bytes.
    fn put_together(&mut self, id: ChunkId, pieces: &[SuspectPiece]) -> Result<bool, TransferError> {
        let beginnings = pieces.iter().filter(|piece| piece.chunk_bytes == 0);
        for first in beginnings.take(PLACES_TRIED) {
            self.plain.clear();
            let mut next = Some(first);
            while let Some(piece) = next {
                let at = self.plain.len() as u32;
                let from = piece.disk_bytes + u64::from(at - piece.chunk_bytes);
                self.read(from, end_of(piece) - at)?;
                let at = self.plain.len() as u32;
                next = pieces
                    .iter()
                    .filter(|piece| piece.chunk_bytes <= at && at < end_of(piece) && end_of(piece) <= CHUNK_BYTES)
                    .max_by_key(|piece| end_of(piece));
            }
            if self.shared.hasher.id(&self.plain) == id {
                let plain = std::mem::take(&mut self.plain);
                self.put(ChunkKind::Data, id, &plain)?;
                self.plain = plain;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Appends bytes of the disk; past its end there are zeroes.
    fn read(&mut self, from: u64, length: u32) -> Result<(), TransferError> {
        let start = self.plain.len();
        self.plain.resize(start + length as usize, 0);
        let inside = self.source.size_bytes().saturating_sub(from).min(u64::from(length)) as usize;
        if inside > 0 {
            let failed = |source: SourceError| TransferError::Source {
                disk: self.disk.clone(),
                source,
            };
            let into = &mut self.plain[start..start + inside];
            self.source.read_at(from, into).map_err(failed)?;
            self.read_bytes += inside as u64;
        }
        Ok(())
    }

    fn put(&mut self, kind: ChunkKind, id: ChunkId, plain: &[u8]) -> Result<(), TransferError> {
        store_for(
            self.shared,
            self.disk,
            self.counters,
            kind,
            id,
            plain,
            &mut self.encoder,
        )?;
        match kind {
            ChunkKind::Data => self.healed.chunks += 1,
            ChunkKind::Node => self.healed.nodes += 1,
        }
        self.healed.bytes += plain.len() as u64;
        if self.mended.len() > WAITING_PIECES {
            self.mended.clear();
        }
        self.mended.insert(id);
        Ok(())
    }
}

fn end_of(piece: &SuspectPiece) -> u32 {
    piece.chunk_bytes.saturating_add(piece.length_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_asked() {
        let ranges = Ranges::of(vec![20..30, 0..10, 8..12, 30..40, 50..51]);
        assert_eq!(ranges.sorted, [0..12, 20..40, 50..51]);
        assert!(ranges.touch(11..13) && ranges.touch(0..100) && ranges.touch(39..60));
        assert!(!ranges.touch(12..20) && !ranges.touch(40..50) && !ranges.touch(51..60));
        let many = (0..2 * RANGES_LIMIT as u64)
            .map(|at| at << 20..(at << 20) + 512)
            .collect();
        let few = Ranges::of(many);
        assert!(few.sorted.len() <= RANGES_LIMIT);
        assert!(few.touch(5 << 20..(5 << 20) + 1));
    }
}
