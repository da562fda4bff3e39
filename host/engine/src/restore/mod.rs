//! Restore: a recovery point's disks become files or block devices again, byte for byte, every chunk verified as it is
//! written.
//!
//! Per disk a *planner* walks the map in windows, asks where the chunks lie and joins neighbours of one pack into one
//! request; *workers* (one per core, shared by all disks) open, decompress, re-hash and write. Chunks that later windows
//! may need again are kept, within a bound. Memory depends on neither disk nor vault.

mod damage;
mod disk;
mod kept;
mod mounted;
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use coffre_vault::map::{MapError, MapRoot};
use coffre_vault::{Point, ReadError, Vault};

use crate::machine::{Attachment, DiskId};

pub use damage::DamagedRange;
pub use target::{Overwrite, Target, TargetError, target_file_name};

/// What is to be restored where.
pub struct RestorePlan {
    pub vault: Vault,
    pub disks: Vec<DiskRestore>,
    /// What is damaged is left as zeroes, and told; else it ends the restore.
    pub skip_damaged: bool,
    /// Set from outside to stop early; what was written so far stays and is not whole.
    pub cancel: Arc<AtomicBool>,
}

/// One disk and its target, which was checked and opened before any disk is written.
pub struct DiskRestore {
    pub id: DiskId,
    pub size_bytes: u64,
    pub root: Option<MapRoot>,
    pub target: Target,
    pub counters: Arc<RestoreCounters>,
}

/// How far a disk is.
#[derive(Debug, Default)]
pub struct RestoreCounters {
    /// Bytes of the disk that are decided, zeroes included; ends at the disk's size.
    pub done_bytes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Bytes that came out of the vault.
    pub fetched_bytes: AtomicU64,
}

/// Why a restore stopped. What was written is not whole; run it again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("read the map of disk {disk}")]
    Map { disk: DiskId, source: Box<MapError> },
    #[error("read disk {disk} from the vault")]
    Read { disk: DiskId, source: ReadError },
    #[error("write disk {disk}")]
    Target { disk: DiskId, source: TargetError },
    #[error("the map of disk {disk} uses bytes past the end of chunk {chunk}")]
    PastChunk { disk: DiskId, chunk: coffre_vault::ChunkId },
    #[error("the store sent less of chunk {chunk} of disk {disk} than was asked for")]
    Short { disk: DiskId, chunk: coffre_vault::ChunkId },
    #[error("the restore was cancelled")]
    Cancelled,
}

impl RestoreError {
    /// Whether it is something in the vault that is damaged, which `skip_damaged` passes over.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Map { source, .. } => source.is_damage(),
            Self::Read { source, .. } => source.is_damage(),
            Self::PastChunk { .. } => true,
            Self::Target { .. } | Self::Short { .. } | Self::Cancelled => false,
        }
    }
}

/// Restores all disks at once and waits until they are on stable storage. Blocks: call it off the runtime, whose `handle`
/// it uses for the vault. Gives what was skipped as damaged.
pub fn run(plan: RestorePlan, handle: &tokio::runtime::Handle) -> Result<Vec<DamagedRange>, RestoreError> {
    disk::run_all(plan, handle)
}

/// The attachments of a point, each verified, or why it cannot be had.
pub async fn attachments(vault: &Vault, point: &Point) -> Vec<(String, Result<Attachment, ReadError>)> {
    let chunks = vault.chunks();
    let mut found = Vec::with_capacity(point.attachments.len());
    for attachment in &point.attachments {
        let read = async {
            let mut content = Vec::new();
            for id in &attachment.chunks {
                content.extend_from_slice(&chunks.read(id).await?);
            }
            Ok(Attachment {
                name: attachment.name.clone(),
                media_type: attachment.media_type.clone(),
                content,
            })
        };
        found.push((attachment.name.clone(), read.await));
    }
    found
}
