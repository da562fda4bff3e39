//! One disk's transfer: chooses how to compare, starts planner and readers, assembles, and starts over with a scan where
//! the provider's word turns out to be worth nothing.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;

use coffre_vault::map::{Leaf, MapError, MapReader, MapRoot};
use coffre_vault::{ChunkHasher, ChunkId, ChunkReader, ComparedHow, Encoder, SessionWriter, Suspects, Vault};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::assemble::{Assembled, Assembler};
use super::buffer::{Buffers, PER_DISK};
use super::heal::{self, Mend};
use super::plan;
use super::segment::{Segment, SegmentDone, Work};
use super::work;
use super::{DiskBase, DiskCounters, DiskResult, DiskTransfer, KeepDigests, TransferError};
use crate::digest::{BaseDigests, DigestBinding, NewDigests, digest_path};
use crate::error_chain::Chain;
use crate::machine::DiskId;
use crate::provider::ChangeList;
use crate::source::DiskSource;

/// Scattered reads of a tracked transfer wait for the device one by one; some at a time hide it.
const TRACKED_READERS: usize = 8;
/// A scan reads in order, where the kernel reads ahead.
const SCAN_READERS: usize = 1;
/// How often a reader that is paused looks whether it may go on.
const PAUSED_ASKED: Duration = Duration::from_millis(200);
/// Leaves of a base kept for the workers that look at the same one.
const LEAVES_KEPT: usize = 16;

/// What all disks of one transfer share.
pub struct Shared {
    pub vault: Vault,
    pub writer: SessionWriter,
    /// What the vault has no good copy of, if anything.
    pub suspects: Option<Suspects>,
    pub hasher: ChunkHasher,
    pub machine: String,
    pub cache_folder: PathBuf,
    pub handle: tokio::runtime::Handle,
    pub buffers: Buffers,
    /// Asked from outside to stop.
    pub cancel: Arc<AtomicBool>,
    /// Asked from outside to wait.
    pub paused: Arc<AtomicBool>,
    pub disks_at_once: usize,
    /// Another disk failed.
    pub failed: AtomicBool,
}

impl Shared {
    pub fn should_stop(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// Blocks while nothing may travel.
    pub fn wait_while_paused(&self) {
        while self.paused.load(Ordering::Relaxed) && !self.should_stop() {
            std::thread::sleep(PAUSED_ASKED);
        }
    }
}

/// How the bytes that were read are compared.
pub enum Compare {
    /// There is no base.
    Full,
    /// With the kept digests of the base.
    Digests(BaseDigests),
    /// With the base's map.
    Map,
    /// Not at all: the provider says what changed.
    Tracked,
}

/// The base's map, for many threads.
pub struct BaseMap {
    pub size_bytes: u64,
    chunks: ChunkReader,
    map: Mutex<MapReader<ChunkReader>>,
    /// Nodes that cannot be read.
    absent: Arc<HashSet<ChunkId>>,
    leaves: Mutex<HashMap<u64, Option<Arc<Leaf>>>>,
    handle: tokio::runtime::Handle,
}

impl BaseMap {
    fn new(base: &DiskBase, shared: &Shared, absent: &Arc<HashSet<ChunkId>>) -> Result<Self, MapError> {
        let chunks = shared.vault.chunks();
        let map = MapReader::new(chunks.clone(), base.root)?.without(absent.clone());
        Ok(Self {
            size_bytes: base.size_bytes,
            map: Mutex::new(map),
            absent: absent.clone(),
            chunks,
            leaves: Mutex::new(HashMap::new()),
            handle: shared.handle.clone(),
        })
    }

    /// The leaf of this number; none where all is zero. Blocks.
    pub fn leaf(&self, index: u64) -> Result<Option<Arc<Leaf>>, MapError> {
        if let Some(leaf) = self.leaves.lock().get(&index) {
            return Ok(leaf.clone());
        }
        let mut map = self.map.lock();
        let leaf = self.handle.block_on(map.leaf(index))?.map(Arc::new);
        drop(map);
        let mut leaves = self.leaves.lock();
        if leaves.len() >= LEAVES_KEPT {
            leaves.clear();
        }
        leaves.insert(index, leaf.clone());
        Ok(leaf)
    }

    /// The first leaf at or after `from` that is not all zero. Blocks.
    pub fn next_leaf(&self, from: u64) -> Result<Option<u64>, MapError> {
        let mut map = self.map.lock();
        Ok(self.handle.block_on(map.next_leaf(from))?.map(|(index, _)| index))
    }

    /// A reader of its own, for who walks the map in order.
    pub fn reader(&self) -> Result<MapReader<ChunkReader>, MapError> {
        let root = self.map.lock().root();
        Ok(MapReader::new(self.chunks.clone(), root)?.without(self.absent.clone()))
    }

    /// A chunk's plain bytes. Blocks.
    pub fn chunk(&self, id: &ChunkId) -> Result<bytes::Bytes, MapError> {
        self.handle
            .block_on(self.chunks.read(id))
            .map_err(|source| MapError::Read { id: *id, source })
    }
}

/// One attempt at one disk, as its threads and the workers see it.
pub struct DiskRun {
    pub shared: Arc<Shared>,
    pub id: DiskId,
    pub source: Arc<dyn DiskSource>,
    pub base: Option<BaseMap>,
    pub compare: Compare,
    /// What of the base is not to be taken over.
    pub mend: Arc<Mend>,
    pub counters: Arc<DiskCounters>,
    pub done: Sender<Message>,
}

impl DiskRun {
    pub fn is_tracked(&self) -> bool {
        matches!(self.compare, Compare::Tracked)
    }

    pub fn base_error(&self, source: MapError) -> TransferError {
        TransferError::Base {
            disk: self.id.clone(),
            source: Box::new(source),
        }
    }

    /// The base's leaf; a leaf of zeroes where it has none.
    pub fn base_leaf(&self, index: u64) -> Result<Arc<Leaf>, TransferError> {
        let found = match &self.base {
            Some(base) => base.leaf(index).map_err(|source| self.base_error(source))?,
            None => None,
        };
        Ok(found.unwrap_or_else(|| Arc::new(Leaf::zero())))
    }
}

/// What the assembler is told.
pub enum Message {
    Segment(SegmentDone),
    /// No segments follow beyond this many.
    End {
        segments: u64,
    },
    /// The provider's list broke off.
    ListFailed(String),
    Failed(TransferError),
}

/// Transfers all disks, so many at a time; results in the order given.
pub fn run_all(
    shared: &Arc<Shared>,
    work: &Sender<Work>,
    disks: Vec<DiskTransfer>,
) -> Result<Vec<DiskResult>, TransferError> {
    let count = disks.len();
    let (queue, next) = bounded(count.max(1));
    for disk in disks.into_iter().enumerate() {
        // Room for all of them was made above.
        let _ = queue.send(disk);
    }
    drop(queue);
    let results = Mutex::new(Vec::with_capacity(count));
    let first_error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..count.min(shared.disks_at_once) {
            scope.spawn(|| {
                while let Ok((position, disk)) = next.recv() {
                    if shared.should_stop() {
                        break;
                    }
                    match transfer_disk(shared, work, disk) {
                        Ok(result) => results.lock().push((position, result)),
                        Err(error) => {
                            shared.failed.store(true, Ordering::Relaxed);
                            first_error.lock().get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    let mut results = results.into_inner();
    if let Some(error) = first_error.into_inner() {
        results.into_iter().for_each(|(_, result)| result.discard_digests());
        return Err(error);
    }
    if results.len() < count {
        results.into_iter().for_each(|(_, result)| result.discard_digests());
        return Err(TransferError::Cancelled);
    }
    results.sort_by_key(|(position, _)| *position);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Starts the threads that hash, compress and store for all disks: one per core.
pub fn start_workers<'scope>(scope: &'scope Scope<'scope, '_>, inbox: &Receiver<Work>) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    for _ in 0..cores {
        let inbox = inbox.clone();
        scope.spawn(move || {
            let mut encoder = Encoder::new();
            while let Ok(Work { disk, segment }) = inbox.recv() {
                let message = match work::process(&disk, segment, &mut encoder) {
                    Ok(done) => Message::Segment(done),
                    Err(error) => Message::Failed(error),
                };
                // The assembler may have given up; then nobody wants it.
                let _ = disk.done.send(message);
            }
        });
    }
}

/// One disk, with a second attempt by scan where change tracking fails or lies.
fn transfer_disk(shared: &Arc<Shared>, work: &Sender<Work>, disk: DiskTransfer) -> Result<DiskResult, TransferError> {
    let DiskTransfer {
        id,
        source,
        base,
        tracked,
        counters,
    } = disk;
    let mend = match (&base, &shared.suspects) {
        (Some(base), Some(suspects)) => heal::mend(shared, suspects, &id, &*source, base, &counters)?,
        _ => Mend::default(),
    };
    let mend = Arc::new(mend);
    let attempt = |tracked: Result<Box<dyn ChangeList>, String>| {
        counters.reset();
        Attempt {
            shared,
            work,
            id: &id,
            source: &source,
            base: base.as_ref(),
            mend: &mend,
            counters: &counters,
        }
        .run(tracked)
    };
    let tracked = match (&base, tracked) {
        (None, _) => Err("there is no earlier point with this disk".to_owned()),
        (Some(_), tracked) => tracked,
    };
    match attempt(tracked)? {
        Outcome::Done(result) => Ok(*result),
        Outcome::Lied { at_bytes } => {
            tracing::error!(disk = %id, at_bytes, "the provider called bytes unchanged that have changed; reading all of the disk");
            let why = format!("the provider called byte {at_bytes} unchanged, and it had changed");
            match attempt(Err(why))? {
                Outcome::Done(result) => Ok(DiskResult {
                    tracking_lied_at: Some(at_bytes),
                    ..*result
                }),
                // Only a tracked attempt can end otherwise.
                Outcome::Lied { .. } | Outcome::ListFailed(_) => Err(TransferError::Cancelled),
            }
        }
        Outcome::ListFailed(why) => {
            tracing::warn!(disk = %id, why, "the list of changes broke off; reading all of the disk");
            match attempt(Err(format!("the list of changes broke off: {why}")))? {
                Outcome::Done(result) => Ok(*result),
                Outcome::Lied { .. } | Outcome::ListFailed(_) => Err(TransferError::Cancelled),
            }
        }
    }
}

enum Outcome {
    Done(Box<DiskResult>),
    Lied { at_bytes: u64 },
    ListFailed(String),
}

struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    work: &'a Sender<Work>,
    id: &'a DiskId,
    source: &'a Arc<dyn DiskSource>,
    base: Option<&'a DiskBase>,
    mend: &'a Arc<Mend>,
    counters: &'a Arc<DiskCounters>,
}

impl Attempt<'_> {
    fn binding(&self, size_bytes: u64, point: u32) -> DigestBinding {
        DigestBinding {
            vault: self.shared.vault.id().to_string(),
            machine: self.shared.machine.clone(),
            disk: self.id.to_string(),
            size_bytes,
            point,
        }
    }

    fn run(&self, tracked: Result<Box<dyn ChangeList>, String>) -> Result<Outcome, TransferError> {
        let shared = self.shared;
        let size_bytes = self.source.size_bytes();
        let path = digest_path(
            &shared.cache_folder,
            &shared.vault.id().to_string(),
            &shared.machine,
            &self.id.0,
        );
        let binding = self.binding(size_bytes, shared.writer.number().0);
        let kept = self
            .base
            .map(|base| BaseDigests::open(&path, &self.binding(base.size_bytes, base.point.0)));
        let base = match self.base {
            Some(base) => {
                Some(
                    BaseMap::new(base, shared, &self.mend.absent).map_err(|source| TransferError::Base {
                        disk: self.id.clone(),
                        source: Box::new(source),
                    })?,
                )
            }
            None => None,
        };
        let (list, compare, how, why, stale) = match (tracked, kept) {
            (Ok(list), kept) => {
                let why = "the provider says what changed".to_owned();
                (
                    Some(list),
                    Compare::Tracked,
                    ComparedHow::Tracked,
                    why,
                    kept.and_then(Result::ok),
                )
            }
            (Err(why), None) => (None, Compare::Full, ComparedHow::Full, why, None),
            (Err(why), Some(Ok(digests))) => (None, Compare::Digests(digests), ComparedHow::Scan, why, None),
            (Err(why), Some(Err(no_digests))) => (
                None,
                Compare::Map,
                ComparedHow::Vault,
                format!("{why}; {no_digests}"),
                None,
            ),
        };
        tracing::info!(disk = %self.id, how = %how, why, "comparing");
        let new_digests = if matches!(compare, Compare::Tracked) {
            None
        } else {
            // Without them the next scan is slower; that is no reason to fail now.
            NewDigests::create(&path, &binding)
                .inspect_err(|error| tracing::warn!(disk = %self.id, error = %Chain(error), "no digests will be kept"))
                .ok()
        };
        let (done, inbox) = bounded(2 * PER_DISK + 4);
        let run = Arc::new(DiskRun {
            shared: shared.clone(),
            id: self.id.clone(),
            source: self.source.clone(),
            base,
            compare,
            mend: self.mend.clone(),
            counters: self.counters.clone(),
            done,
        });
        let assembled = self.pump(&run, list, inbox, new_digests.as_ref(), stale.as_ref())?;
        let (root, digests_noted) = match assembled {
            Assembled::Done { root, digests_noted } => (root, digests_noted),
            // Only tracked attempts end so, and they make no new digests.
            Assembled::Lied { at_bytes } => return Ok(Outcome::Lied { at_bytes }),
            Assembled::ListFailed(why) => return Ok(Outcome::ListFailed(why)),
        };
        let same_size = self.base.is_some_and(|base| base.size_bytes == size_bytes);
        let keep = match (new_digests, stale) {
            (Some(digests), _) if digests_noted => KeepDigests::New(digests),
            (None, Some(digests)) if digests_noted && same_size => KeepDigests::Rebind(digests, binding),
            _ => KeepDigests::No,
        };
        Ok(Outcome::Done(Box::new(self.result(size_bytes, root, how, why, keep))))
    }

    /// Runs planner, readers and assembler to their end.
    fn pump(
        &self,
        run: &Arc<DiskRun>,
        list: Option<Box<dyn ChangeList>>,
        inbox: Receiver<Message>,
        new_digests: Option<&NewDigests>,
        stale: Option<&BaseDigests>,
    ) -> Result<Assembled, TransferError> {
        // A token per segment on its way bounds what the assembler has to hold for the order's sake.
        let (tokens, ready) = bounded(PER_DISK);
        for _ in 0..PER_DISK {
            let _ = tokens.send(());
        }
        let (reads, segments) = bounded::<Segment>(PER_DISK);
        let readers = if run.is_tracked() {
            TRACKED_READERS
        } else {
            SCAN_READERS
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let ended = match list {
                    Some(list) => plan::tracked(run, list, &reads, &ready),
                    None => plan::all(run, &reads, &ready),
                };
                // Readers end when they have read what was planned.
                drop(reads);
                let _ = run.done.send(ended);
            });
            for _ in 0..readers {
                let segments = segments.clone();
                scope.spawn(move || {
                    while let Ok(segment) = segments.recv() {
                        match work::read(run, segment) {
                            Ok(segment) => {
                                if self
                                    .work
                                    .send(Work {
                                        disk: run.clone(),
                                        segment,
                                    })
                                    .is_err()
                                {
                                    return;
                                }
                            }
                            Err(error) => {
                                let _ = run.done.send(Message::Failed(error));
                            }
                        }
                    }
                });
            }
            drop(segments);
            let assembled = Assembler::new(run, new_digests, stale).run(inbox, tokens);
            // Dropping inbox and tokens (in `run`) ends planner and readers on their next step.
            assembled
        })
    }

    fn result(
        &self,
        size_bytes: u64,
        root: Option<MapRoot>,
        how: ComparedHow,
        why: String,
        keep: KeepDigests,
    ) -> DiskResult {
        let counters = self.counters;
        DiskResult {
            id: self.id.clone(),
            size_bytes,
            root,
            how,
            why,
            base: self.base.map(|base| base.point),
            read_bytes: counters.read_bytes.load(Ordering::Relaxed) + self.mend.read_bytes,
            changed_bytes: counters.changed_bytes.load(Ordering::Relaxed),
            sampled_bytes: counters.sampled_bytes.load(Ordering::Relaxed),
            stored_bytes: counters.stored_bytes.load(Ordering::Relaxed),
            changed_regions: counters.regions.digits(size_bytes),
            tracking_lied_at: None,
            healed: self.mend.healed,
            keep,
        }
    }
}
