//! Transfer: what changed on each disk of a snapshot travels into the vault, all disks at once.
//!
//! Per disk: a *planner* walks the disk in segments of 1 MiB and says of each what to read; *readers* fill buffers; *workers*
//! (shared by all disks, one per core) hash, compare, compress and store slots; an *assembler* takes the segments back
//! in disk order, gathers changed runs, and writes the map. Every queue and buffer is bounded, so memory does not
//! depend on the disk. Cutting chunks depends on base, changes and bytes alone, never on timing, so that a resumed
//! transfer finds what the first one stored.
//!
//! How changes are found, best first: by the provider's extents (`tracked`), by the digests that this host kept of the base
//! (`scan`), by the base's map in the vault (`vault`), or not at all (`full`). A sample of what a provider calls
//! unchanged is read each time; where it lied, the disk is scanned instead, and the result says so.

mod assemble;
mod buffer;
mod disk;
mod heal;
mod plan;
mod regions;
mod segment;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coffre_vault::map::{MapError, MapRoot};
use coffre_vault::{ComparedHow, ReadError, SessionNumber, SessionWriter, Vault, WriteError};

use crate::digest::{BaseDigests, DigestBinding, DigestError, NewDigests};
use crate::machine::DiskId;
use crate::provider::ChangeList;
use crate::source::{DiskSource, SourceError};

pub use heal::Healed;
pub use regions::REGIONS;
use regions::Regions;

/// Disks that are read at the same time; more wait. Each costs four threads and at most [`buffer::PER_DISK`] buffers.
pub const DISKS_AT_ONCE: usize = 8;

/// What is to be transferred.
pub struct TransferPlan {
    pub vault: Vault,
    pub writer: SessionWriter,
    /// The machine's name, to which the kept digests are bound.
    pub machine: String,
    /// Where digests are kept; may be emptied at any time.
    pub cache_folder: PathBuf,
    pub disks: Vec<DiskTransfer>,
    /// Set from outside to stop early; the transfer then ends with [`TransferError::Cancelled`].
    pub cancel: Arc<AtomicBool>,
    /// How many disks are read at the same time; at most [`DISKS_AT_ONCE`].
    pub disks_at_once: usize,
    /// Set from outside while nothing may travel. What was read already still goes: four packs at most.
    pub paused: Arc<AtomicBool>,
}

/// One disk to transfer.
pub struct DiskTransfer {
    pub id: DiskId,
    pub source: Arc<dyn DiskSource>,
    /// The same disk in the point that the session names as its base.
    pub base: Option<DiskBase>,
    /// What the provider says changed since then, or why it cannot or may not say.
    pub tracked: Result<Box<dyn ChangeList>, String>,
    pub counters: Arc<DiskCounters>,
}

/// A disk as an earlier point has it.
#[derive(Clone, Debug)]
pub struct DiskBase {
    pub point: SessionNumber,
    pub size_bytes: u64,
    pub root: Option<MapRoot>,
}

/// How far a disk is; written by the transfer, read by whoever shows it.
#[derive(Debug, Default)]
pub struct DiskCounters {
    /// What will be read in all, as far as is known; holes do not count.
    pub to_read_bytes: AtomicU64,
    pub read_bytes: AtomicU64,
    /// What differs from the base.
    pub changed_bytes: AtomicU64,
    /// Of what a provider called unchanged, read all the same.
    pub sampled_bytes: AtomicU64,
    /// What went into packs, compressed and sealed.
    pub stored_bytes: AtomicU64,
    /// Of `changed_bytes`, where they lie.
    regions: Regions,
}

impl DiskCounters {
    fn reset(&self) {
        self.regions.reset();
        for counter in [
            &self.to_read_bytes,
            &self.read_bytes,
            &self.changed_bytes,
            &self.sampled_bytes,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// What became of one disk; the fields of its entry in the point.
#[derive(Debug)]
pub struct DiskResult {
    pub id: DiskId,
    pub size_bytes: u64,
    pub root: Option<MapRoot>,
    pub how: ComparedHow,
    pub why: String,
    pub base: Option<SessionNumber>,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub sampled_bytes: u64,
    pub stored_bytes: u64,
    /// As [`coffre_vault::PointDisk`] has them.
    pub changed_regions: String,
    /// Where the sample found a change that the provider had not named.
    pub tracking_lied_at: Option<u64>,
    /// What was damaged in the base.
    pub healed: Healed,
    keep: KeepDigests,
}

#[derive(Debug)]
enum KeepDigests {
    No,
    New(NewDigests),
    Rebind(BaseDigests, DigestBinding),
}

impl DiskResult {
    /// Once the point is committed: makes this host's digests the ones of the new point. Without this, or when it fails,
    /// the next scan compares with the vault.
    pub fn keep_digests(self) -> Result<(), DigestError> {
        match self.keep {
            KeepDigests::No => Ok(()),
            KeepDigests::New(digests) => digests.keep(),
            KeepDigests::Rebind(digests, binding) => digests.rebind(&binding),
        }
    }

    /// There will be no point.
    pub fn discard_digests(self) {
        if let KeepDigests::New(digests) = self.keep {
            digests.discard();
        }
    }
}

/// Why a transfer ended without all of its disks. What has arrived in the vault stays there for a resumed session.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("read disk {disk}")]
    Source { disk: DiskId, source: SourceError },
    #[error("store disk {disk}")]
    Write { disk: DiskId, source: WriteError },
    #[error("read the base of disk {disk}")]
    Base { disk: DiskId, source: Box<MapError> },
    #[error("look for what is damaged in the base of disk {disk}")]
    Heal { disk: DiskId, source: ReadError },
    #[error("look for what is damaged in the vault")]
    Suspects { source: WriteError },
    #[error("the transfer was cancelled")]
    Cancelled,
}

impl TransferError {
    /// What of the vault was found damaged, if that is what stopped the transfer. Once it is quarantined, another session
    /// heals it or goes around it.
    pub fn damage(&self) -> Option<&ReadError> {
        let source = match self {
            Self::Heal { source, .. } => source,
            Self::Base { source, .. } => match &**source {
                MapError::Read { source, .. } => source,
                MapError::Node { .. } | MapError::Root(_) => return None,
            },
            Self::Source { .. } | Self::Write { .. } | Self::Suspects { .. } | Self::Cancelled => return None,
        };
        source.is_damage().then_some(source)
    }
}

/// Transfers all disks and waits for them. Blocks: call it off the runtime, whose `handle` it uses for the vault.
///
/// The results are in the order of the plan. The first failure stops the other disks.
pub fn run(plan: TransferPlan, handle: &tokio::runtime::Handle) -> Result<Vec<DiskResult>, TransferError> {
    let TransferPlan {
        vault,
        writer,
        machine,
        cache_folder,
        disks,
        cancel,
        disks_at_once,
        paused,
    } = plan;
    let suspects = handle
        .block_on(writer.suspects())
        .map_err(|source| TransferError::Suspects { source })?;
    let shared = Arc::new(disk::Shared {
        suspects,
        hasher: vault.hasher(),
        vault,
        writer,
        machine,
        cache_folder,
        handle: handle.clone(),
        buffers: buffer::Buffers::new(),
        cancel,
        paused,
        disks_at_once: disks_at_once.clamp(1, DISKS_AT_ONCE),
        failed: AtomicBool::new(false),
    });
    // Segments that are read and wait for a worker hold buffers, which bound them already.
    let (work, inbox) = crossbeam_channel::bounded(2 * buffer::PER_DISK);
    std::thread::scope(|scope| {
        disk::start_workers(scope, &inbox);
        let results = disk::run_all(&shared, &work, disks);
        // No more segments come: the workers end.
        drop(work);
        results
    })
}
