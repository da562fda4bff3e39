//! The index pieces: what lists packs that go is replaced by pieces that do not, small pieces are merged, and what no point
//! counts comes to be counted.
//!
//! A piece goes only when everything it lists is in pieces that the clean-up's own point, or another committed one, counts:
//! so a reader finds it by number even where the listing of the store leaves it out. Pieces of undecided sessions are left
//! alone; their packs are not condemned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use super::condemn::InUse;
use super::inventory::{self, Listed};
use super::packs::Packs;
use super::{CleanError, CleanProgress, CleanReport, CleanStage};
use crate::ids::{MachineNumber, SessionNumber};
use crate::index::read_piece;
use crate::mark::{Survey, SurveyedPoint};
use crate::object::PackKey;
use crate::pack::PackListing;
use crate::point::Fate;
use crate::read::pack_listing;
use crate::session::SessionWriter;
use crate::vault::Inner;

/// Small pieces are merged when there are more than this many, so their number does not grow with the vault's age, and not
/// every clean-up writes what the one before it wrote.
const SMALL_PIECES_LIMIT: usize = 32;
/// What is smaller is small. A piece of a busy session, 8 packs of 256 chunks each, has 58 KiB.
const SMALL_BYTES: u64 = 256 * 1024;
/// Merged pieces are closed at this size: 37,000 chunks, one request to read. A piece is in memory about three times while it
/// is taken in, and what an allocator has once given for it, it may keep for each thread.
const MERGED_BYTES: usize = 1024 * 1024;
/// The format's limit for readers is 1024 packs.
const MERGED_PACKS: usize = 1000;
/// Pieces read at once, and in memory.
const READ_AT_ONCE: usize = 4;

/// One piece as it lies in the vault.
pub(super) struct Piece {
    pub(super) key: PackKey,
    pub(super) bytes: u64,
    pub(super) packs: Vec<PackKey>,
    standing: Standing,
}

/// What is to be written into pieces of the clean-up's own, and which pieces then go.
#[derive(Default)]
pub(super) struct Relisting {
    leaving: Vec<Piece>,
    /// Pieces that earlier clean-ups' points count and that are there.
    of_cleaners: BTreeSet<PackKey>,
    /// By the piece that lists them: packs whose listings must come into pieces of the clean-up's own. A pack stands with every
    /// leaving piece that lists it, since a piece that a stale listing shows may be gone.
    relist: BTreeMap<PackKey, BTreeSet<PackKey>>,
    /// Packs that are relied upon and that no piece at hand lists: they say themselves what they hold.
    of_packs: BTreeSet<PackKey>,
    /// Packs that a piece lists and that are not there.
    pub(super) not_there: BTreeSet<PackKey>,
    /// Of the packs that go or are gone, those that pieces list which stay: of sessions that are not over.
    listed_by_staying: BTreeSet<PackKey>,
    /// Of the leaving pieces, those whose packs all stay.
    pub(super) merged: u64,
}

impl Relisting {
    pub(super) fn writes_nothing(&self) -> bool {
        self.relist.is_empty() && self.of_packs.is_empty()
    }

    /// The pieces that go: every pack that they list goes too, or is listed by a piece that a point counts.
    pub(super) fn going(&self, spared: &BTreeSet<PackKey>) -> impl Iterator<Item = &Piece> {
        let spared = spared.clone();
        self.leaving
            .iter()
            .filter(move |piece| !piece.packs.iter().any(|pack| spared.contains(pack)))
    }

    /// Of the packs that go or are gone, those that some piece lists when those in `gone` are gone.
    pub(super) fn still_listed(&self, gone: &BTreeSet<PackKey>) -> BTreeSet<PackKey> {
        let kept = self.leaving.iter().filter(|piece| !gone.contains(&piece.key));
        let by_kept = kept.flat_map(|piece| &piece.packs);
        by_kept.chain(&self.listed_by_staying).copied().collect()
    }

    /// The earlier clean-ups that still count a piece, once `gone` are gone.
    pub(super) fn counting_cleaners(&self, gone: &BTreeSet<PackKey>) -> BTreeSet<SessionNumber> {
        self.of_cleaners.difference(gone).map(|piece| piece.session).collect()
    }
}

/// How a session's pieces are treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Undecided,
    /// Aborted or purged: no point that readers look at counts its pieces.
    Uncounted,
    Counted,
}

fn standing(survey: &Survey, in_use: &InUse, machine: MachineNumber, session: SessionNumber) -> Standing {
    // Whoever resumes a session lists its packs out of its pieces.
    if in_use.contains(&(machine, session)) {
        return Standing::Undecided;
    }
    let Some(known) = survey.machine(machine).filter(|known| known.has_decided(session)) else {
        return Standing::Undecided;
    };
    match known.points.binary_search_by_key(&session, |point| point.number) {
        Ok(at) if known.points[at].fate == Fate::Purged => Standing::Uncounted,
        Ok(_) => Standing::Counted,
        Err(_) => Standing::Uncounted,
    }
}

/// Decides which pieces go and what must be listed anew. `away` are the packs that go or are gone, `relied` those whose copies
/// let others go: they must be findable by more than a listing of the store.
///
/// A pack that a piece lists and that is not there goes from the index: a session that was fenced long ago may have woken up and
/// listed what is gone, and the log no longer says so. Whoever relied on it would find that out at his commit.
///
/// All that stays of a piece is listed anew, also where another piece lists it as well: an earlier clean-up that was stalled
/// may be about to delete that one, relying on this. `replaced` are pieces that the checkpoint calls replaced already.
pub(super) async fn plan(
    vault: &Arc<Inner>,
    survey: &Survey,
    in_use: &InUse,
    packs: &Packs,
    mut away: BTreeSet<PackKey>,
    replaced: &BTreeSet<PackKey>,
    relied: impl Iterator<Item = PackKey>,
) -> Result<Relisting, CleanError> {
    let mut planned = Relisting::default();
    let pieces = read_all(vault, survey, in_use).await?;
    let decided = pieces.iter().filter(|piece| piece.standing != Standing::Undecided);
    let named: BTreeSet<PackKey> = decided.flat_map(|piece| &piece.packs).copied().collect();
    planned.not_there = packs.not_there(vault, named.difference(&away).copied()).await?;
    away.extend(&planned.not_there);
    let of_cleaners = pieces
        .iter()
        .map(|piece| piece.key)
        .filter(|key| key.machine == MachineNumber::MAINTENANCE);
    planned.of_cleaners = of_cleaners.collect();
    let is_small = |piece: &Piece| piece.bytes < SMALL_BYTES && !replaced.contains(&piece.key);
    let merges_small = pieces.iter().filter(|piece| is_small(piece)).count() > SMALL_PIECES_LIMIT;
    let (leaving, staying): (Vec<Piece>, Vec<Piece>) = pieces.into_iter().partition(|piece| match piece.standing {
        Standing::Undecided => false,
        Standing::Uncounted => true,
        Standing::Counted => {
            replaced.contains(&piece.key)
                || merges_small && is_small(piece)
                || piece.packs.iter().any(|pack| away.contains(pack))
        }
    });
    let mut listed: BTreeSet<PackKey> = BTreeSet::new();
    for piece in leaving.iter().filter(|piece| !replaced.contains(&piece.key)) {
        let stays: BTreeSet<PackKey> = piece
            .packs
            .iter()
            .filter(|pack| !away.contains(pack))
            .copied()
            .collect();
        planned.merged += u64::from(!piece.packs.is_empty() && stays.len() == piece.packs.len());
        if !stays.is_empty() {
            listed.extend(&stays);
            planned.relist.insert(piece.key, stays);
        }
    }
    let listed_by_staying = staying.iter().flat_map(|piece| &piece.packs);
    planned.listed_by_staying = listed_by_staying.filter(|pack| away.contains(pack)).copied().collect();
    let counted = staying.iter().filter(|piece| piece.standing == Standing::Counted);
    listed.extend(counted.flat_map(|piece| &piece.packs));
    planned.of_packs = relied.filter(|pack| !listed.contains(pack)).collect();
    planned.leaving = leaving;
    Ok(planned)
}

/// Every piece that is listed, or that an earlier clean-up counts, with the packs in it.
async fn read_all(vault: &Arc<Inner>, survey: &Survey, in_use: &InUse) -> Result<Vec<Piece>, CleanError> {
    let mut wanted: BTreeMap<PackKey, u64> = BTreeMap::new();
    for found in vault.store.list("index").await? {
        let key = found.object.strip_prefix("index/").and_then(PackKey::parse);
        wanted.extend(key.map(|key| (key, found.size_bytes)));
    }
    // Earlier clean-ups are counted for their pieces alone, so it must be known which of those are there, listed or not. And
    // purged points are counted no longer once a checkpoint leaves them out: what their pieces list comes over before.
    for machine in &survey.machines {
        let is_asked =
            |point: &&SurveyedPoint| machine.machine == MachineNumber::MAINTENANCE || point.fate == Fate::Purged;
        for point in machine.points.iter().filter(is_asked) {
            for number in 0..point.written.index_pieces {
                let key = PackKey {
                    machine: machine.machine,
                    session: point.number,
                    number,
                };
                if !wanted.contains_key(&key) {
                    let hidden = vault.store.size(&key.index_object()).await?;
                    wanted.extend(hidden.map(|bytes| (key, bytes)));
                }
            }
        }
    }
    // What a repair has listed anew need not be read, and cannot.
    let superseded: BTreeSet<PackKey> = (survey.machine(MachineNumber::MAINTENANCE).into_iter())
        .flat_map(|machine| &machine.points)
        .flat_map(|point| &point.supersedes)
        .filter(|key| wanted.contains_key(key))
        .copied()
        .collect();
    wanted.retain(|key, _| !superseded.contains(key));
    let remembered = inventory::load(vault).await;
    let (known, unknown): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(key, _)| remembered.contains_key(key));
    let mut listed: Listed = remembered;
    listed.retain(|key, _| known.binary_search_by_key(key, |(known, _)| *known).is_ok());
    let read: Vec<(PackKey, u64, Option<Vec<PackKey>>)> = stream::iter(unknown)
        .map(|(key, bytes)| async move {
            let listings = read_piece(vault, key).await?;
            let packs = listings.map(|listings| listings.iter().map(|listing| listing.info.key).collect());
            Ok::<_, CleanError>((key, bytes, packs))
        })
        .buffer_unordered(READ_AT_ONCE)
        .try_collect()
        .await?;
    let mut sizes: BTreeMap<PackKey, u64> = known.into_iter().collect();
    for (key, bytes, packs) in read {
        // Listed, and gone by now: another clean-up has replaced it.
        if let Some(packs) = packs {
            sizes.insert(key, bytes);
            listed.insert(key, packs);
        }
    }
    inventory::save(vault, &listed).await?;
    let pieces = listed.into_iter().map(|(key, packs)| Piece {
        key,
        bytes: sizes.get(&key).copied().unwrap_or_default(),
        packs,
        standing: standing(survey, in_use, key.machine, key.session),
    });
    let damaged = superseded.into_iter().map(|key| Piece {
        key,
        bytes: 0,
        packs: Vec::new(),
        standing: match standing(survey, in_use, key.machine, key.session) {
            Standing::Undecided => Standing::Undecided,
            Standing::Uncounted | Standing::Counted => Standing::Uncounted,
        },
    });
    Ok(pieces.chain(damaged).collect())
}

/// Puts the planned listings into pieces of the clean-up's own.
pub(super) async fn relist(
    vault: &Arc<Inner>,
    writer: &SessionWriter,
    planned: &Relisting,
    report: &mut CleanReport,
    progress: &(dyn Fn(CleanProgress) + Sync),
) -> Result<(), CleanError> {
    let mut open = Merged::default();
    let total = (planned.relist.len() + planned.of_packs.len()) as u64;
    let mut done = 0;
    let mut listed: BTreeSet<PackKey> = BTreeSet::new();
    for (piece, packs) in &planned.relist {
        if !packs.is_subset(&listed) {
            // A piece that has gone was another clean-up's to replace, and that had committed what it listed: into a piece
            // that stays, or that is among these.
            let listings = read_piece(vault, *piece).await?;
            for listing in listings.into_iter().flatten() {
                if packs.contains(&listing.info.key) && listed.insert(listing.info.key) {
                    open.add(listing, writer, report).await?;
                }
            }
        }
        done += 1;
        tell(progress, done, total);
    }
    for pack in &planned.of_packs {
        let Some(size_bytes) = vault.store.size(&pack.object()).await? else {
            return Err(overtaken());
        };
        let Some(listing) = pack_listing(vault, *pack, size_bytes).await? else {
            return Err(overtaken());
        };
        open.add(listing, writer, report).await?;
        done += 1;
        tell(progress, done, total);
    }
    open.close(writer, report).await
}

fn overtaken() -> CleanError {
    CleanError::Overtaken {
        reason: "it has deleted a pack that this one was about to rely on".to_owned(),
    }
}

fn tell(progress: &(dyn Fn(CleanProgress) + Sync), done: u64, total: u64) {
    progress(CleanProgress {
        stage: CleanStage::Relisting,
        done,
        total,
    });
}

/// The piece that is being filled.
#[derive(Default)]
struct Merged {
    listings: Vec<PackListing>,
    bytes: usize,
}

impl Merged {
    async fn add(
        &mut self,
        listing: PackListing,
        writer: &SessionWriter,
        report: &mut CleanReport,
    ) -> Result<(), CleanError> {
        let bytes = listing.encoded_bytes();
        if self.bytes + bytes > MERGED_BYTES || self.listings.len() == MERGED_PACKS {
            self.close(writer, report).await?;
        }
        self.bytes += bytes;
        self.listings.push(listing);
        Ok(())
    }

    async fn close(&mut self, writer: &SessionWriter, report: &mut CleanReport) -> Result<(), CleanError> {
        if self.listings.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        writer.relist(std::mem::take(&mut self.listings)).await?;
        report.written_pieces += 1;
        Ok(())
    }
}
