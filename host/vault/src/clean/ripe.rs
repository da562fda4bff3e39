//! Which condemned packs may go now, and what must be moved out of them first.
//!
//! A group of condemned packs is *ripe* when every session that may rely on it is decided. Decided means: by what was read
//! before the points that were marked. A session that is decided a moment later has a point that the mark has not seen.
//!
//! Of a ripe pack nothing more can come to rely on it: whoever began after it was condemned has read so. So what is live in it
//! is known for good, and the pack may go once each live chunk is somewhere else: in a pack that is there, asked for by
//! name, and neither condemned nor quarantined. Where there is no such copy, one is made. A condemned pack is never
//! pardoned, so a cleaner that was stalled for a month between this decision and the deletion still does no harm: whoever
//! condemned the copy meanwhile has made another one first.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::CleanError;
use super::packs::{Packs, look};
use crate::gclog::GcLog;
use crate::ids::ChunkId;
use crate::index::Found;
use crate::mark::{Marked, PackUses, Survey};
use crate::object::{HEADER_BYTES, PackKey};
use crate::pack::{ChunkShape, PackListing};
use crate::read::pack_listing;
use crate::vault::{Inner, LeftOut};

/// Chunks that one clean-up moves. Each takes about 100 bytes of memory until it has moved; what is left over is for the
/// next run.
const MOVES_LIMIT: u64 = 512 * 1024;

/// A live chunk that must be somewhere else before its pack goes.
pub(super) struct Move {
    pub(super) id: ChunkId,
    pub(super) from: Found,
}

/// Packs that go, if nothing comes in between.
#[derive(Default)]
pub(super) struct Doomed {
    pub(super) packs: BTreeSet<PackKey>,
    /// By the pack that the chunk is read from, each chunk once.
    pub(super) moves: BTreeMap<PackKey, Vec<Move>>,
    /// Packs whose copies let others go, and those others.
    pub(super) relied: BTreeMap<PackKey, BTreeSet<PackKey>>,
    /// Packs that hold a chunk which is moved.
    pub(super) emptied: BTreeSet<PackKey>,
    /// The listings of doomed packs that no piece of the index lists, out of the packs themselves.
    pub(super) unlisted: BTreeMap<PackKey, PackListing>,
    /// Live chunks in ripe packs that wait for a later run.
    pub(super) left_for_later: BTreeSet<PackKey>,
}

impl Doomed {
    /// Takes a pack, and nothing else, off the list.
    pub(super) fn spare(&mut self, pack: &PackKey) {
        self.packs.remove(pack);
    }

    /// Takes off the list whatever was to go because of a copy in a pack that is condemned or quarantined by now.
    pub(super) fn spare_what_relies_on(&mut self, forbidden: impl Fn(&PackKey) -> bool) {
        for (_, others) in self.relied.iter().filter(|(pack, _)| forbidden(pack)) {
            for other in others {
                self.packs.remove(other);
            }
        }
    }

    /// Takes off the list every pack whose chunks were moved.
    pub(super) fn spare_emptied(&mut self) {
        let emptied = std::mem::take(&mut self.emptied);
        self.packs.retain(|pack| !emptied.contains(pack));
    }

    pub(super) fn moved_chunks(&self) -> u64 {
        self.moves.values().map(|moves| moves.len() as u64).sum()
    }
}

/// The packs of the checkpoint's groups that nobody undecided may rely on. What was condemned after the checkpoint is not
/// ripe: this run writes down whom it waits for.
pub(super) fn ripe(log: &GcLog, survey: &Survey) -> BTreeSet<PackKey> {
    let mut ripe: BTreeSet<PackKey> = BTreeSet::new();
    let mut waiting: BTreeSet<PackKey> = BTreeSet::new();
    for group in log.condemned_with_waits() {
        let is_decided = |(machine, session): &(_, _)| survey.has_decided(*machine, *session);
        let waits = !group.waits_for.iter().all(is_decided);
        let side = if waits { &mut waiting } else { &mut ripe };
        side.extend(group.packs.iter().map(|name| name.0));
    }
    // Condemned twice, by two cleaners at once: it waits for all that either has seen.
    ripe.retain(|pack| !waiting.contains(pack));
    ripe
}

/// What the clean-up knows when it decides.
pub(super) struct Knowledge<'a> {
    pub(super) log: &'a GcLog,
    pub(super) marked: &'a Marked,
    /// Packs that the index names and that are not there.
    pub(super) missing: &'a BTreeSet<PackKey>,
    pub(super) uses: &'a PackUses,
}

impl Knowledge<'_> {
    fn may_rely_on(&self, pack: &PackKey) -> bool {
        !self.log.forbids(pack) && !self.missing.contains(pack)
    }
}

/// Decides for each of the ripe packs that are there.
pub(super) async fn doom(
    vault: &Arc<Inner>,
    know: &Knowledge<'_>,
    packs: &Packs,
    ripe: &BTreeSet<PackKey>,
) -> Result<Doomed, CleanError> {
    let mut doomed = Doomed::default();
    let mut chunks: u64 = 0;
    for key in ripe {
        // What lies in a pack is what the index or its own directory says, never nothing because no piece is at hand.
        if vault.index.pack(key).map_err(CleanError::Cache)?.is_none() {
            match pack_listing(vault, *key, packs.bytes(key)).await {
                Ok(Some(listing)) => {
                    doomed.unlisted.insert(*key, listing);
                }
                Ok(None) => continue,
                // No index lists it and it does not say itself what it holds: nobody can find anything in it.
                Err(error) if error.is_damage() => {
                    tracing::info!(pack = %key, %error, "a condemned pack says nothing of what is in it");
                }
                Err(error) => return Err(error.into()),
            }
        }
        let live = know.uses.get(key).map_or(0, |uses| u64::from(uses.live_chunks));
        if chunks > 0 && chunks + live > MOVES_LIMIT {
            doomed.left_for_later.insert(*key);
            continue;
        }
        chunks += live;
        doomed.packs.insert(*key);
    }
    if vault.leaves_out(LeftOut::MovedBeforeDeleted) {
        return Ok(doomed);
    }
    let live = LiveChunks::of(vault, know, &doomed)?;
    let copies = look(vault, live.copies(know)).await?;
    let is_copy = |found: &Found| -> io::Result<bool> {
        let wanted = vault.index.pack(&found.pack)?.map(|info| u64::from(info.size_bytes));
        let there = copies.get(&found.pack).copied().flatten().map(|file| file.bytes);
        Ok(wanted.is_some() && wanted == there)
    };
    live.each(know, &doomed.packs.clone(), &mut |id, places| {
        let holders = places.iter().filter(|found| doomed.packs.contains(&found.pack));
        let holders: Vec<Found> = holders.copied().collect();
        let mut copy = None;
        for found in places.iter().filter(|found| know.may_rely_on(&found.pack)) {
            if is_copy(found)? {
                copy = Some(found.pack);
                break;
            }
        }
        match copy {
            Some(copy) => {
                let others = doomed.relied.entry(copy).or_default();
                others.extend(holders.iter().map(|found| found.pack));
            }
            None => {
                doomed.emptied.extend(holders.iter().map(|found| found.pack));
                if let Some(from) = holders.first().copied() {
                    doomed.moves.entry(from.pack).or_default().push(Move { id, from });
                }
            }
        }
        Ok(())
    })?;
    Ok(doomed)
}

/// The live chunks of doomed packs, with all their places: those that the index lists and those of unlisted packs.
struct LiveChunks {
    unlisted: BTreeMap<ChunkId, Vec<Found>>,
    copies: BTreeSet<PackKey>,
}

impl LiveChunks {
    fn of(vault: &Arc<Inner>, know: &Knowledge<'_>, doomed: &Doomed) -> Result<Self, CleanError> {
        let mut live = Self {
            unlisted: BTreeMap::new(),
            copies: BTreeSet::new(),
        };
        for listing in doomed.unlisted.values() {
            for (id, found) in places(listing) {
                if know.marked.is_live(&id).map_err(CleanError::Cache)? {
                    live.unlisted.entry(id).or_default().push(found);
                }
            }
        }
        for (id, found) in &mut live.unlisted {
            found.extend(vault.index.candidates(id).map_err(CleanError::Cache)?);
        }
        let mut copies = BTreeSet::new();
        live.each(know, &doomed.packs, &mut |_, places| {
            copies.extend(places.iter().map(|found| found.pack));
            Ok(())
        })?;
        live.copies = copies;
        Ok(live)
    }

    /// The packs whose copies may let others go.
    fn copies(&self, know: &Knowledge<'_>) -> Vec<PackKey> {
        self.copies
            .iter()
            .filter(|pack| know.may_rely_on(pack))
            .copied()
            .collect()
    }

    /// Each chunk once.
    fn each(
        &self,
        know: &Knowledge<'_>,
        doomed: &BTreeSet<PackKey>,
        each: &mut dyn FnMut(ChunkId, &[Found]) -> io::Result<()>,
    ) -> Result<(), CleanError> {
        let listed = know.marked.live_in(doomed, &mut |id, places| {
            if self.unlisted.contains_key(&id) {
                return Ok(());
            }
            each(id, places)
        });
        listed.map_err(CleanError::Cache)?;
        for (id, places) in &self.unlisted {
            each(*id, places).map_err(CleanError::Cache)?;
        }
        Ok(())
    }
}

/// Where the chunks of a pack lie.
fn places(listing: &PackListing) -> impl Iterator<Item = (ChunkId, Found)> + '_ {
    let mut offset = HEADER_BYTES as u32;
    listing.entries.iter().enumerate().map(move |(ordinal, entry)| {
        let found = Found {
            pack: listing.info.key,
            offset_bytes: offset,
            shape: ChunkShape {
                ordinal: ordinal as u32,
                stored_bytes: entry.stored_bytes,
                plain_bytes: entry.plain_bytes,
                compressed: entry.compressed,
            },
        };
        offset += entry.stored_bytes;
        (entry.id, found)
    })
}
