//! Moving live chunks out of packs that go: opened, hashed against their ids, and put like any writer's chunks, so a bit that
//! has flipped in the old pack never reaches a new one, and what is moved is sealed by the newest key.
//!
//! Memory stays that of a writer: one range of one pack is read at a time, and the packs that are filled come from the
//! process's few buffers. A chunk that cannot be opened at any of its places stays where it is, with all packs that hold it:
//! a later program, or a store that has found its bytes again, may still read it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::ripe::{Doomed, Move};
use super::{CleanError, CleanProgress, CleanReport, CleanStage, DamagedChunk};
use crate::ids::ChunkId;
use crate::object::PackKey;
use crate::offload::offload;
use crate::pack::{ChunkKind, Decoder, Encoder};
use crate::read::{ChunkReader, Location, PackRef, ReadError};
use crate::session::{SessionWriter, WriteError};
use crate::vault::Inner;

/// A request costs about as much as 64 KiB that nobody wanted.
const GAP_BYTES: u64 = 64 * 1024;
/// What is in memory of a pack that is read.
const READ_BYTES: u64 = 4 * 1024 * 1024;

/// A chunk to be moved and where it is read.
type Source = (ChunkId, Location);

/// Moves what is to be moved. Packs of which something could not be moved are no longer doomed.
pub(super) async fn repack(
    vault: &Arc<Inner>,
    writer: &SessionWriter,
    doomed: &mut Doomed,
    report: &mut CleanReport,
    progress: &(dyn Fn(CleanProgress) + Sync),
) -> Result<(), CleanError> {
    let total = doomed.moved_chunks();
    let moves = std::mem::take(&mut doomed.moves);
    for (pack, moves) in moves {
        let damaged = repack_one(vault, writer, doomed, pack, &moves).await?;
        report.repacked_chunks += (moves.len() - damaged.len()) as u64;
        report.repacked.packs += 1;
        for (id, what) in damaged {
            for holder in holders(vault, doomed, &id)? {
                doomed.spare(&holder);
            }
            report.damaged.push(DamagedChunk {
                id,
                pack: pack.to_string(),
                what,
            });
        }
        progress(CleanProgress {
            stage: CleanStage::Repacking,
            done: report.repacked_chunks,
            total,
        });
    }
    Ok(())
}

/// Gives the chunks that could not be read anywhere, and why.
async fn repack_one(
    vault: &Arc<Inner>,
    writer: &SessionWriter,
    doomed: &Doomed,
    pack: PackKey,
    moves: &[Move],
) -> Result<Vec<(ChunkId, String)>, CleanError> {
    let info = match doomed.unlisted.get(&pack) {
        Some(listing) => Some(listing.info),
        None => vault.index.pack(&pack).map_err(CleanError::Cache)?,
    };
    let Some(reference) = info.and_then(|info| PackRef::new(vault, info)).map(Arc::new) else {
        let what = "the pack is sealed in another way than this vault";
        return Ok(moves.iter().map(|moved| (moved.id, what.to_owned())).collect());
    };
    let kind = reference.kind();
    let mut sources: Vec<Source> = moves
        .iter()
        .map(|moved| {
            let location = Location {
                pack: Arc::clone(&reference),
                ordinal: moved.from.shape.ordinal,
                offset_bytes: moved.from.offset_bytes,
                stored_bytes: moved.from.shape.stored_bytes,
                plain_bytes: moved.from.shape.plain_bytes,
                compressed: moved.from.shape.compressed,
            };
            (moved.id, location)
        })
        .collect();
    sources.sort_unstable_by_key(|(_, location)| location.offset_bytes);
    let reader = ChunkReader::new(Arc::clone(vault));
    let mut unread: Vec<(ChunkId, String)> = Vec::new();
    for (range, sources) in coalesced(sources) {
        match reader.fetch(&reference, range.clone()).await {
            Ok(bytes) => unread.extend(put_all(&reader, writer, kind, range.start, bytes, sources).await?),
            Err(error) if error.is_damage() => {
                let what = error.to_string();
                unread.extend(sources.into_iter().map(|(id, _)| (id, what.clone())));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mut damaged = Vec::new();
    for (id, what) in unread {
        match read_elsewhere(&reader, &id).await? {
            Some(plain) => put_one(writer, kind, id, plain).await?,
            None => damaged.push((id, what)),
        }
    }
    Ok(damaged)
}

/// Neighbours as one request.
fn coalesced(sources: Vec<Source>) -> Vec<(Range<u64>, Vec<Source>)> {
    let mut ranges: Vec<(Range<u64>, Vec<Source>)> = Vec::new();
    for source in sources {
        let range = source.1.range();
        match ranges.last_mut() {
            Some((last, sources)) if range.start <= last.end + GAP_BYTES && range.end - last.start <= READ_BYTES => {
                last.end = last.end.max(range.end);
                sources.push(source);
            }
            _ => ranges.push((range, vec![source])),
        }
    }
    ranges
}

/// Opens and puts what lies in one range. `put` waits for a free pack buffer, so all of it is off the runtime.
async fn put_all(
    reader: &ChunkReader,
    writer: &SessionWriter,
    kind: ChunkKind,
    start: u64,
    bytes: bytes::Bytes,
    sources: Vec<Source>,
) -> Result<Vec<(ChunkId, String)>, WriteError> {
    let (reader, writer) = (reader.clone(), writer.clone());
    let put = offload(move || {
        let (mut decoder, mut encoder, mut plain) = (Decoder::new(), Encoder::new(), Vec::new());
        let mut unread = Vec::new();
        for (id, location) in sources {
            let range = location.range();
            let sealed = &bytes[(range.start - start) as usize..(range.end - start) as usize];
            match reader.open(&id, &location, sealed, &mut decoder, &mut plain) {
                Ok(()) => {
                    writer.put(kind, id, &plain, &mut encoder)?;
                }
                Err(error) => unread.push((id, error.to_string())),
            }
        }
        Ok(unread)
    });
    put.await.unwrap_or_else(|panicked| Err(broken(panicked)))
}

async fn put_one(writer: &SessionWriter, kind: ChunkKind, id: ChunkId, plain: bytes::Bytes) -> Result<(), WriteError> {
    let writer = writer.clone();
    let put = offload(move || writer.put(kind, id, &plain, &mut Encoder::new()).map(|_| ()));
    put.await.unwrap_or_else(|panicked| Err(broken(panicked)))
}

fn broken(panicked: tokio::task::JoinError) -> WriteError {
    WriteError::Broken {
        what: panicked.to_string(),
    }
}

/// From any other copy, also one in a quarantined pack: a quarantined pack is seldom damaged from end to end.
async fn read_elsewhere(reader: &ChunkReader, id: &ChunkId) -> Result<Option<bytes::Bytes>, ReadError> {
    match reader.read_known(id).await {
        Ok(plain) => Ok(Some(plain)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every pack that holds the chunk.
fn holders(vault: &Arc<Inner>, doomed: &Doomed, id: &ChunkId) -> Result<BTreeSet<PackKey>, CleanError> {
    let listed = vault.index.candidates(id).map_err(CleanError::Cache)?;
    let unlisted = doomed
        .unlisted
        .values()
        .filter(|listing| listing.entries.iter().any(|entry| entry.id == *id))
        .map(|listing| listing.info.key);
    Ok(listed.iter().map(|found| found.pack).chain(unlisted).collect())
}
