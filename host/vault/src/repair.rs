//! Rebuilding the index from the packs themselves.
//!
//! Every pack says at its end what it holds. What no readable piece of the index lists is listed anew, in pieces of a
//! maintenance session of its own; nothing is deleted and nothing overwritten, so a repair can be broken off and repeated, and
//! runs beside backups. Pieces that are damaged are named in the session's point as superseded: whoever meets them
//! knows that nothing is missed.
//!
//! The session is there before the clean-up log is read and packs are listed, as with every writer: a pack that a clean-up
//! condemns later waits for it. Packs that cannot be read are quarantined, so that the next backup looks for what they held.

mod log;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::SignedDuration;

use crate::gclog::{self, Broken};
use crate::ids::{MachineNumber, SessionNumber};
use crate::index;
use crate::object::PackKey;
use crate::pack::PackListing;
use crate::point::PointDraft;
use crate::read::{ReadError, pack_listing};
use crate::register::Decision;
use crate::session::{self, BeginError, CommitError, SessionPlan, SessionWriter, WriteError};
use crate::vault::{Inner, Vault};
use crate::verify::superseded;
pub use log::LogRepairReport;
pub(crate) use log::repair_log;

/// Packs whose ends are read at once; 1 MiB each.
const READ_AT_ONCE: usize = 16;
/// A piece is closed at so many packs or chunks: 4 MiB, well below what readers accept.
const PIECE_PACKS: usize = 256;
const PIECE_CHUNKS: usize = 128 * 1024;
/// The session's time. A repair reads 1 MiB for each 32 MiB; one that takes longer is fenced and begun again, and finds most
/// of its work done.
const LASTS: SignedDuration = SignedDuration::from_hours(48);

/// How far a repair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairProgress {
    pub packs_done: u64,
    pub packs_total: u64,
}

/// What a repair has found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// In the vault.
    pub packs: u64,
    /// Of those, the ones that no readable piece listed and that are listed now.
    pub packs_listed: u64,
    pub chunks_listed: u64,
    /// Pieces that were written.
    pub pieces_written: u32,
    /// Pieces that cannot be read, and why. All that they may have listed is listed by others now.
    pub damaged_pieces: Vec<(String, String)>,
    /// Packs that do not say what they hold, and why.
    pub damaged_packs: Vec<(String, String)>,
}

/// Why the index was not repaired. What is written so far stays, and a repetition goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("read the vault")]
    Read(#[from] ReadError),
    #[error("begin the repair's session")]
    Begin(#[source] BeginError),
    #[error("write pieces of the index")]
    Write(#[from] WriteError),
    /// The earlier one may have condemned packs, and the later one may have let a clean-up delete them.
    #[error("`{first}` and `{second}` of the clean-up log cannot be read, so nobody can know what they took away")]
    LogUnknown { first: String, second: String },
    #[error("others write to the clean-up log all the time")]
    Busy,
    #[error("write to the clean-up log")]
    Log(#[source] crate::store::StoreError),
    #[error("commit the repair")]
    Commit(#[source] CommitError),
    #[error("use the cache folder")]
    Cache(#[source] std::io::Error),
}

pub(crate) async fn repair_index(
    vault: &Vault,
    host: &str,
    progress: &(dyn Fn(RepairProgress) + Sync),
) -> Result<RepairReport, RepairError> {
    let fresh = vault.with_fresh_index().await?;
    let inner = &fresh.vault.inner;
    let plan = SessionPlan {
        machine: MachineNumber::MAINTENANCE,
        bases: Vec::new(),
        deadline: inner.records().now() + LASTS,
        host: host.to_owned(),
        resumes: None,
    };
    let number = session::create_session(inner, &plan)
        .await
        .map_err(RepairError::Begin)?;
    let result = within(&fresh.vault, number, host, progress).await;
    let give_up = match &result {
        Ok((report, _)) if report.pieces_written == 0 => Some("nothing was to be repaired"),
        Ok(_) => None,
        Err(_) => Some("the repair failed"),
    };
    if let Some(reason) = give_up
        && let Err(error) = session::abort(inner, MachineNumber::MAINTENANCE, number, reason).await
    {
        tracing::warn!(session = %number, %error, "the repair's session stays undecided");
    }
    let (mut report, broken) = result?;
    if let Err(error) = gclog::record_damage(inner.records(), &broken, "their directories cannot be read").await {
        tracing::warn!(%error, "packs that cannot be read could not be quarantined");
    }
    report.damaged_packs.sort();
    // This host's own copy takes in what is new; it may also have been of an index that is gone.
    index::sync(&vault.inner).await?;
    Ok(report)
}

async fn within(
    vault: &Vault,
    number: SessionNumber,
    host: &str,
    progress: &(dyn Fn(RepairProgress) + Sync),
) -> Result<(RepairReport, Broken), RepairError> {
    let inner = &vault.inner;
    let log = gclog::read(inner.records()).await?;
    let known_damaged = superseded(vault, &log).await?;
    let mut report = RepairReport::default();
    for error in index::sync(inner).await? {
        match error {
            ReadError::Damaged { object, what } => report.damaged_pieces.push((object, what)),
            other => return Err(other.into()),
        }
    }
    index::load_counted(inner).await?;
    let packs = packs(vault, &log).await?;
    report.packs = packs.len() as u64;
    let mut state = RepairProgress {
        packs_total: report.packs,
        ..RepairProgress::default()
    };
    progress(state);
    let machine = (MachineNumber::MAINTENANCE, String::new());
    let writer = SessionWriter::new(Arc::clone(inner), machine, number, host.to_owned(), log, Vec::new());
    let mut broken = Broken::default();
    let mut waiting: Vec<PackListing> = Vec::new();
    let mut chunks = 0;
    let mut read = stream::iter(packs)
        .map(|key| async move { (key, unlisted(inner, key).await) })
        .buffer_unordered(READ_AT_ONCE);
    while let Some((key, listing)) = read.next().await {
        match listing {
            Ok(None) => {}
            Ok(Some(listing)) => {
                report.packs_listed += 1;
                chunks += listing.entries.len();
                waiting.push(listing);
            }
            Err(ReadError::Damaged { object, what }) => {
                report.damaged_packs.push((object, what));
                broken.packs.push(key);
            }
            Err(error) => return Err(error.into()),
        }
        if waiting.len() == PIECE_PACKS || chunks >= PIECE_CHUNKS {
            report.chunks_listed += chunks as u64;
            report.pieces_written += 1;
            writer.relist(std::mem::take(&mut waiting)).await?;
            chunks = 0;
        }
        state.packs_done += 1;
        progress(state);
    }
    let news = report
        .damaged_pieces
        .iter()
        .any(|(object, _)| !known_damaged.contains(object));
    if !waiting.is_empty() || (news && report.pieces_written == 0) {
        // Where all packs are listed already, an empty piece: it takes a point to say what is superseded.
        report.chunks_listed += chunks as u64;
        report.pieces_written += 1;
        writer.relist(waiting).await?;
    }
    if report.pieces_written > 0 {
        commit(inner, &writer, &report).await?;
    }
    Ok((report, broken))
}

async fn commit(vault: &Arc<Inner>, writer: &SessionWriter, report: &RepairReport) -> Result<(), RepairError> {
    let draft = PointDraft {
        coffre: env!("CARGO_PKG_VERSION").to_owned(),
        supersedes: report.damaged_pieces.iter().map(|(object, _)| object.clone()).collect(),
        ..PointDraft::default()
    };
    // After a crash the next repair begins anew: the file is only what the commit wants.
    let folder = tempfile::tempdir_in(vault.index.folder()).map_err(RepairError::Cache)?;
    let committed = writer.commit(draft, &folder.path().join("commit")).await;
    committed.map(drop).map_err(RepairError::Commit)
}

/// Every pack that a listing of the store shows, and those that points count, since a listing is a hint. Twelve bytes each.
async fn packs(vault: &Vault, log: &gclog::GcLog) -> Result<BTreeSet<PackKey>, ReadError> {
    let mut packs = BTreeSet::new();
    for found in vault.inner.store.list("packs").await? {
        packs.extend(found.object.strip_prefix("packs/").and_then(PackKey::parse));
    }
    let machines = vault.machines().await?.into_iter().map(|(machine, _)| machine);
    for machine in std::iter::once(MachineNumber::MAINTENANCE).chain(machines) {
        let mut decisions = pin!(log.stream_decisions(vault.inner.records(), machine));
        while let Some((session, decision)) = decisions.try_next().await? {
            if let Ok(Decision::Committed(point)) = decision {
                packs.extend((0..point.written.packs).map(|number| PackKey {
                    machine,
                    session,
                    number,
                }));
            }
        }
    }
    Ok(packs)
}

/// What a pack holds, if no readable piece says so.
async fn unlisted(vault: &Arc<Inner>, key: PackKey) -> Result<Option<PackListing>, ReadError> {
    let known = index::blocking(vault, move |vault| vault.index.pack(&key)).await?;
    if known.is_some() {
        return Ok(None);
    }
    match vault.store.size(&key.object()).await? {
        Some(size_bytes) => pack_listing(vault, key, size_bytes).await,
        // Cleaned up; a point that needs it is the business of `verify`.
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests;
