//! One disk's way back: windows of its map, joined requests, workers that verify and write.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use coffre_vault::map::{LEAF_BYTES, Leaf, MapReader, NextLeaf, Place};
use coffre_vault::{ChunkId, ChunkReader, Decoder, Location, ReadError};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::damage::Skipped;
use super::kept::KeptChunks;
use super::{DamagedRange, DiskRestore, RestoreCounters, RestoreError, RestorePlan, Target};
use crate::error_chain::Chain;
use crate::machine::DiskId;

/// What a planner looks at before it asks for chunks: more joins better, and costs more to remember.
const WINDOW_LEAVES: usize = 8;
/// The most that one request asks for.
const REQUEST_BYTES: u64 = 2 << 20;
/// Bytes between two wanted chunks that are fetched and thrown away rather than asked for apart.
const GAP_BYTES: u64 = 64 << 10;
/// Requests on their way or waiting for a worker, of all disks: bounds memory to 24 MiB of sealed bytes.
const REQUESTS: usize = 12;

/// A run of a disk that lies in one chunk.
struct Piece {
    disk_bytes: u64,
    chunk_bytes: u32,
    length_bytes: u32,
}

/// One chunk to open, and where its bytes go.
struct Wanted {
    id: ChunkId,
    location: Location,
    pieces: Vec<Piece>,
}

/// What workers take.
enum Job {
    /// Sealed chunks that came with one request, which began at `start_bytes` of its pack.
    Fetched {
        disk: Arc<Running>,
        start_bytes: u64,
        sealed: Bytes,
        chunks: Vec<Wanted>,
        _permit: OwnedSemaphorePermit,
    },
    /// What could not be fetched together: each is read alone, from another copy where there is one.
    Alone {
        disk: Arc<Running>,
        chunks: Vec<Wanted>,
        _permit: OwnedSemaphorePermit,
    },
    /// A chunk that was kept.
    Kept {
        disk: Arc<Running>,
        id: ChunkId,
        plain: Arc<Vec<u8>>,
        pieces: Vec<Piece>,
    },
}

/// A disk while it is restored.
struct Running {
    id: DiskId,
    size_bytes: u64,
    target: Target,
    counters: Arc<RestoreCounters>,
}

struct Shared {
    chunks: ChunkReader,
    kept: KeptChunks,
    requests: Arc<Semaphore>,
    handle: Handle,
    cancel: Arc<AtomicBool>,
    error: Mutex<Option<RestoreError>>,
    /// None: what is damaged ends the restore.
    skipped: Option<Skipped>,
}

impl Shared {
    fn should_stop(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.error.lock().is_some()
    }

    /// The first error ends all disks.
    fn fail(&self, error: RestoreError) {
        self.error.lock().get_or_insert(error);
    }

    /// Leaves zeroes where a chunk would go that is damaged, if that is wanted.
    fn skip(&self, disk: &Running, pieces: &[Piece], error: RestoreError) -> Result<(), RestoreError> {
        for piece in pieces {
            let range = piece.disk_bytes..piece.disk_bytes + u64::from(piece.length_bytes);
            match &self.skipped {
                Some(skipped) if error.is_damage() => skipped.add(&disk.id, range.clone(), &error),
                _ => return Err(error),
            }
            disk.zeroes(range)?;
        }
        Ok(())
    }
}

pub(super) fn run_all(plan: RestorePlan, handle: &Handle) -> Result<Vec<DamagedRange>, RestoreError> {
    let RestorePlan {
        vault,
        disks,
        skip_damaged,
        cancel,
    } = plan;
    let shared = Arc::new(Shared {
        chunks: vault.chunks(),
        kept: KeptChunks::default(),
        requests: Arc::new(Semaphore::new(REQUESTS)),
        handle: handle.clone(),
        cancel,
        error: Mutex::new(None),
        skipped: skip_damaged.then(Skipped::default),
    });
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    // Requests hold permits until they are worked off, so a finished one always finds room here.
    let (jobs, inbox) = bounded(REQUESTS + cores);
    let running: Vec<(Arc<Running>, _)> = disks
        .into_iter()
        .map(|disk| {
            let DiskRestore {
                id,
                size_bytes,
                root,
                target,
                counters,
            } = disk;
            (
                Arc::new(Running {
                    id,
                    size_bytes,
                    target,
                    counters,
                }),
                root,
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            let (inbox, shared) = (inbox.clone(), &shared);
            scope.spawn(move || work(shared, &inbox));
        }
        for (disk, root) in &running {
            let (jobs, shared) = (jobs.clone(), &shared);
            scope.spawn(move || {
                let planned = MapReader::new(shared.chunks.clone(), *root)
                    .map_err(|source| RestoreError::Map {
                        disk: disk.id.clone(),
                        source: Box::new(source),
                    })
                    .and_then(|map| Planner { shared, disk, jobs }.run(map));
                if let Err(error) = planned {
                    shared.fail(error);
                }
            });
        }
        drop(jobs);
    });
    if let Some(error) = shared.error.lock().take() {
        return Err(error);
    }
    for (disk, _) in &running {
        disk.target.sync().map_err(|source| RestoreError::Target {
            disk: disk.id.clone(),
            source,
        })?;
    }
    Ok(shared.skipped.as_ref().map(Skipped::take).unwrap_or_default())
}

impl Running {
    fn zeroes(&self, range: Range<u64>) -> Result<(), RestoreError> {
        let end = range.end.min(self.size_bytes);
        if range.start >= end {
            return Ok(());
        }
        self.target
            .write_zeroes(range.start, end - range.start)
            .map_err(|source| RestoreError::Target {
                disk: self.id.clone(),
                source,
            })?;
        self.counters.done_bytes.fetch_add(end - range.start, Ordering::Relaxed);
        Ok(())
    }
}

struct Planner<'a> {
    shared: &'a Arc<Shared>,
    disk: &'a Arc<Running>,
    jobs: Sender<Job>,
}

impl Planner<'_> {
    fn run(&self, mut map: MapReader<ChunkReader>) -> Result<(), RestoreError> {
        let shared = self.shared;
        let map_error = |source| RestoreError::Map {
            disk: self.disk.id.clone(),
            source: Box::new(source),
        };
        let leaves = self.disk.size_bytes.div_ceil(LEAF_BYTES);
        let mut window: HashMap<ChunkId, Vec<Piece>> = HashMap::new();
        let mut in_window = 0;
        let mut next = 0;
        loop {
            if shared.should_stop() {
                return Err(RestoreError::Cancelled);
            }
            let (index, id) = match shared.handle.block_on(map.next_leaf_or_hole(next)).map_err(map_error)? {
                NextLeaf::Leaf(index, id) if index < leaves => (index, id),
                NextLeaf::Hole(hole, error) if hole.start < leaves => {
                    self.zeroes(next * LEAF_BYTES, hole.start * LEAF_BYTES)?;
                    next = hole.end;
                    self.hole(hole, map_error(error))?;
                    continue;
                }
                NextLeaf::Leaf(..) | NextLeaf::Hole(..) | NextLeaf::End => break,
            };
            self.zeroes(next * LEAF_BYTES, index * LEAF_BYTES)?;
            match shared.handle.block_on(map.leaf_of(id)) {
                Ok(leaf) => self.add(index, &leaf, &mut window)?,
                Err(error) => self.hole(index..index + 1, map_error(error))?,
            }
            next = index + 1;
            in_window += 1;
            if in_window == WINDOW_LEAVES {
                self.fetch(std::mem::take(&mut window))?;
                in_window = 0;
            }
        }
        self.zeroes(next * LEAF_BYTES, self.disk.size_bytes)?;
        self.fetch(window)
    }

    fn zeroes(&self, from_bytes: u64, to_bytes: u64) -> Result<(), RestoreError> {
        self.disk.zeroes(from_bytes..to_bytes)
    }

    /// Leaves that nobody can read.
    fn hole(&self, leaves: Range<u64>, error: RestoreError) -> Result<(), RestoreError> {
        let end = (leaves.end * LEAF_BYTES).min(self.disk.size_bytes);
        let range = leaves.start * LEAF_BYTES..end;
        match &self.shared.skipped {
            Some(skipped) if error.is_damage() => skipped.add(&self.disk.id, range.clone(), &error),
            _ => return Err(error),
        }
        self.disk.zeroes(range)
    }

    /// Sorts a leaf's extents by chunk.
    fn add(&self, index: u64, leaf: &Leaf, window: &mut HashMap<ChunkId, Vec<Piece>>) -> Result<(), RestoreError> {
        for extent in leaf.extents() {
            let start = index * LEAF_BYTES + u64::from(extent.start_bytes);
            let end = (start + u64::from(extent.length_bytes)).min(self.disk.size_bytes);
            if start >= end {
                break;
            }
            match extent.place {
                Place::Zero => self.zeroes(start, end)?,
                Place::Chunk { id, offset_bytes } => window.entry(id).or_default().push(Piece {
                    disk_bytes: start,
                    chunk_bytes: offset_bytes,
                    length_bytes: (end - start) as u32,
                }),
            }
        }
        Ok(())
    }

    /// Asks for the window's chunks, neighbours in a pack together.
    fn fetch(&self, window: HashMap<ChunkId, Vec<Piece>>) -> Result<(), RestoreError> {
        let shared = self.shared;
        let read_error = |source| RestoreError::Read {
            disk: self.disk.id.clone(),
            source,
        };
        let mut missing = Vec::with_capacity(window.len());
        for (id, pieces) in window {
            match shared.kept.get(&id) {
                Some(plain) => self.send(Job::Kept {
                    disk: self.disk.clone(),
                    id,
                    plain,
                    pieces,
                }),
                None => missing.push((id, pieces)),
            }
        }
        let ids: Vec<ChunkId> = missing.iter().map(|(id, _)| *id).collect();
        let mut wanted: Vec<Wanted> = Vec::with_capacity(ids.len());
        match shared.handle.block_on(shared.chunks.locate(&ids)) {
            Ok(locations) => {
                let located = missing.into_iter().zip(locations);
                wanted.extend(located.map(|((id, pieces), location)| Wanted { id, location, pieces }));
            }
            Err(error) if shared.skipped.is_some() && error.is_damage() => {
                for (id, pieces) in missing {
                    let located = shared.handle.block_on(shared.chunks.locate(&[id]));
                    match located.map(|locations| locations.into_iter().next()) {
                        Ok(Some(location)) => wanted.push(Wanted { id, location, pieces }),
                        Ok(None) => shared.skip(self.disk, &pieces, read_error(ReadError::ChunkMissing(id)))?,
                        Err(source) => shared.skip(self.disk, &pieces, read_error(source))?,
                    }
                }
            }
            Err(error) => return Err(read_error(error)),
        }
        wanted.sort_by(|a, b| {
            (Arc::as_ptr(&a.location.pack), a.location.offset_bytes)
                .cmp(&(Arc::as_ptr(&b.location.pack), b.location.offset_bytes))
        });
        let mut request: Vec<Wanted> = Vec::new();
        for next in wanted {
            if let (Some(first), Some(last)) = (request.first(), request.last())
                && !joins(&first.location, &last.location, &next.location)
            {
                self.ask(std::mem::take(&mut request))?;
            }
            request.push(next);
        }
        self.ask(request)
    }

    fn ask(&self, chunks: Vec<Wanted>) -> Result<(), RestoreError> {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
            return Ok(());
        };
        if self.shared.should_stop() {
            return Err(RestoreError::Cancelled);
        }
        let range: Range<u64> = u64::from(first.location.offset_bytes)..end_of(&last.location);
        let pack = first.location.pack.clone();
        let acquired = self
            .shared
            .handle
            .block_on(self.shared.requests.clone().acquire_owned());
        // The semaphore is never closed.
        let Ok(permit) = acquired else {
            return Err(RestoreError::Cancelled);
        };
        let (shared, disk, jobs) = (self.shared.clone(), self.disk.clone(), self.jobs.clone());
        self.shared.handle.spawn(async move {
            let start_bytes = range.start;
            match shared.chunks.fetch(&pack, range).await {
                Ok(sealed) => {
                    disk.counters
                        .fetched_bytes
                        .fetch_add(sealed.len() as u64, Ordering::Relaxed);
                    let job = Job::Fetched {
                        disk,
                        start_bytes,
                        sealed,
                        chunks,
                        _permit: permit,
                    };
                    // Workers stay until all senders are gone, and permits bound what is queued.
                    let _ = jobs.send(job);
                }
                Err(source) if source.is_damage() => {
                    tracing::warn!(pack = pack.name(), error = %Chain(&source), "looking for other copies");
                    let job = Job::Alone {
                        disk,
                        chunks,
                        _permit: permit,
                    };
                    let _ = jobs.send(job);
                }
                Err(source) => shared.fail(RestoreError::Read {
                    disk: disk.id.clone(),
                    source,
                }),
            }
        });
        Ok(())
    }

    fn send(&self, job: Job) {
        // Workers stay until all senders are gone.
        let _ = self.jobs.send(job);
    }
}

fn end_of(location: &Location) -> u64 {
    u64::from(location.offset_bytes) + u64::from(location.stored_bytes)
}

/// Whether a chunk is near enough to those before it to come with the same request.
fn joins(first: &Location, last: &Location, next: &Location) -> bool {
    Arc::ptr_eq(&first.pack, &next.pack)
        && u64::from(next.offset_bytes) <= end_of(last) + GAP_BYTES
        && end_of(next) - u64::from(first.offset_bytes) <= REQUEST_BYTES
}

/// A worker: opens, verifies, writes, until no planner and no request is left.
fn work(shared: &Shared, inbox: &Receiver<Job>) {
    let mut decoder = Decoder::new();
    let mut plain = Vec::new();
    while let Ok(job) = inbox.recv() {
        if shared.should_stop() {
            continue;
        }
        let done = match job {
            Job::Kept {
                disk,
                id,
                plain,
                pieces,
            } => write(&disk, &id, &plain, &pieces),
            Job::Alone { disk, chunks, _permit } => chunks.iter().try_for_each(|wanted| alone(shared, &disk, wanted)),
            Job::Fetched {
                disk,
                start_bytes,
                sealed,
                chunks,
                _permit,
            } => chunks.iter().try_for_each(|wanted| {
                let start = (u64::from(wanted.location.offset_bytes) - start_bytes) as usize;
                let sealed = sealed
                    .get(start..start + wanted.location.stored_bytes as usize)
                    .ok_or_else(|| RestoreError::Short {
                        disk: disk.id.clone(),
                        chunk: wanted.id,
                    })?;
                let opened = (shared.chunks).open(&wanted.id, &wanted.location, sealed, &mut decoder, &mut plain);
                if let Err(error) = opened {
                    tracing::warn!(error = %Chain(&error), "looking for another copy");
                    return alone(shared, &disk, wanted);
                }
                write(&disk, &wanted.id, &plain, &wanted.pieces)?;
                let used: usize = wanted.pieces.iter().map(|piece| piece.length_bytes as usize).sum();
                if used < plain.len() {
                    shared.kept.keep(wanted.id, Arc::new(std::mem::take(&mut plain)));
                }
                Ok(())
            }),
        };
        if let Err(error) = done {
            shared.fail(error);
        }
    }
}

/// Reads a chunk from whatever copy is good.
fn alone(shared: &Shared, disk: &Running, wanted: &Wanted) -> Result<(), RestoreError> {
    let plain = match shared.handle.block_on(shared.chunks.read(&wanted.id)) {
        Ok(plain) => plain,
        Err(source) => {
            let disk_id = disk.id.clone();
            return shared.skip(disk, &wanted.pieces, RestoreError::Read { disk: disk_id, source });
        }
    };
    disk.counters
        .fetched_bytes
        .fetch_add(u64::from(wanted.location.stored_bytes), Ordering::Relaxed);
    write(disk, &wanted.id, &plain, &wanted.pieces)
}

fn write(disk: &Running, id: &ChunkId, plain: &[u8], pieces: &[Piece]) -> Result<(), RestoreError> {
    for piece in pieces {
        let start = piece.chunk_bytes as usize;
        let bytes = plain
            .get(start..start + piece.length_bytes as usize)
            .ok_or_else(|| RestoreError::PastChunk {
                disk: disk.id.clone(),
                chunk: *id,
            })?;
        disk.target
            .write(bytes, piece.disk_bytes)
            .map_err(|source| RestoreError::Target {
                disk: disk.id.clone(),
                source,
            })?;
        disk.counters
            .done_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        disk.counters
            .written_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}
