//! Marking: which chunks the points still need.
//!
//! The local index is compacted into one sorted run, so that a record's place in it is its number, and one bit in memory says
//! of a chunk that it lives; everything else is on local disk. The maps of all roots are walked ([`walk`]), each node once
//! however many points share it. The chunks of data that leaves name are put aside and sorted ([`live`]), and their bits are
//! set in one pass over the index when the walk is over. Memory is the bits and what is on its way, whatever the vault.
//!
//! A chunk that a point needs and no piece of the index lists stops it all: nobody may delete by half a mark.

mod bits;
mod live;
mod survey;
mod uses;
mod walk;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use crate::ids::ChunkId;
use crate::index::{self, CompactIndex, Group};
use crate::object::PackKey;
use crate::read::ReadError;
use crate::vault::Inner;
pub(crate) use bits::Bits;
use live::LiveIds;
pub(crate) use survey::{MachineSurvey, Root, Survey, SurveyedPoint, UnreadablePoint, UnreadableSession, survey};
pub(crate) use uses::PackUses;
use uses::{PackPlaces, PackUse};
use walk::{Found, Walk};

/// How far a mark is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MarkProgress {
    pub(crate) roots_done: u64,
    pub(crate) roots_total: u64,
    pub(crate) nodes: u64,
}

/// Which chunks live, as of the survey that gave the roots.
#[derive(Debug)]
pub(crate) struct Marked {
    index: CompactIndex,
    live: Bits,
}

/// Marks everything that the roots need.
pub(crate) async fn mark(
    vault: &Arc<Inner>,
    roots: &[Root],
    progress: &(dyn Fn(MarkProgress) + Sync),
) -> Result<Marked, ReadError> {
    index::sync(vault).await?;
    match attempt(vault, roots, progress).await {
        Err(ReadError::ChunkMissing(id)) => {
            tracing::info!(chunk = %id, "no piece of the index that was listed names a chunk that lives; looking for others");
            index::sync(vault).await?;
            index::load_counted(vault).await?;
            attempt(vault, roots, progress).await
        }
        other => other,
    }
}

async fn attempt(
    vault: &Arc<Inner>,
    roots: &[Root],
    progress: &(dyn Fn(MarkProgress) + Sync),
) -> Result<Marked, ReadError> {
    let index = index::blocking(vault, |vault| vault.index.compact()).await?;
    let marked = Marked {
        live: Bits::new(index.records()),
        index,
    };
    let mut walk = Walk::new(vault, marked);
    let mut state = MarkProgress {
        roots_total: roots.len() as u64,
        ..MarkProgress::default()
    };
    // Those whose parts may be gone come last: a node that they could not follow has a bit, and nobody else would try again.
    let (purged, kept): (Vec<&Root>, Vec<&Root>) = roots.iter().partition(|root| root.purged);
    for root in kept.into_iter().chain(purged) {
        walk.root(root).await?;
        state.roots_done += 1;
        state.nodes = walk.nodes();
        progress(state);
    }
    let found = walk.into_found();
    let (marked, missing) = index::blocking(vault, move |_| {
        let Found {
            mut marked,
            live,
            live_if_there,
        } = found;
        let missing = marked.set_live(live)?;
        marked.set_live(live_if_there)?;
        Ok((marked, missing))
    })
    .await?;
    match missing {
        Some(id) => Err(ReadError::ChunkMissing(id)),
        None => Ok(marked),
    }
}

impl Marked {
    /// Sets the bits of sorted ids in one pass, and gives the first id that the index does not list.
    fn set_live(&mut self, live: LiveIds) -> io::Result<Option<ChunkId>> {
        if live.is_empty() {
            return Ok(None);
        }
        let mut ids = live.into_sorted()?;
        let mut wanted = ids.next().transpose()?;
        let mut missing = None;
        let live = &mut self.live;
        self.index.for_each(|group| {
            while let Some(id) = wanted.filter(|id| *id <= group.id) {
                if id == group.id {
                    live.set(group.ordinal);
                } else {
                    missing.get_or_insert(id);
                }
                wanted = ids.next().transpose()?;
            }
            Ok(())
        })?;
        Ok(missing.or(wanted))
    }

    /// Whether a point needs the chunk. Reads local disk.
    pub(crate) fn is_live(&self, id: &ChunkId) -> io::Result<bool> {
        Ok(self.index.find(id)?.is_some_and(|(ordinal, _)| self.live.get(ordinal)))
    }

    /// All packs that the index lists, sorted.
    pub(crate) fn packs(&self) -> io::Result<Vec<PackKey>> {
        self.index.pack_keys()
    }

    /// What every pack that the index lists holds: one pass over the index. Of a live chunk's copies the canonical one counts:
    /// in a pack that `forbids` does not name, if there is one, and of those the lowest.
    pub(crate) fn pack_uses(&self, forbids: &dyn Fn(&PackKey) -> bool) -> io::Result<PackUses> {
        let packs = PackPlaces::new(&self.index.pack_keys()?);
        let mut forbidden = Bits::new(packs.len() as u64);
        for (key, at) in packs.iter().zip(0..) {
            if forbids(&key) {
                forbidden.set(at);
            }
        }
        let mut uses = PackUses::new(packs);
        self.index.for_each(|group| {
            let mut canonical: Option<(bool, usize, u32)> = None;
            for place in group.places {
                let Some(at) = uses.place(&place.pack) else {
                    continue;
                };
                let known: &mut PackUse = uses.at(at);
                known.chunks += 1;
                known.stored_bytes = known.stored_bytes.saturating_add(place.shape.stored_bytes);
                let candidate = (forbidden.get(at as u64), at, place.shape.stored_bytes);
                canonical = Some(canonical.map_or(candidate, |known| known.min(candidate)));
            }
            if let Some((_, at, stored_bytes)) = canonical.filter(|_| self.live.get(group.ordinal)) {
                let known = uses.at(at);
                known.live_chunks += 1;
                known.live_bytes = known.live_bytes.saturating_add(stored_bytes);
            }
            Ok(())
        })?;
        Ok(uses)
    }

    /// Live chunks that lie in any of `packs`, in the order of their ids, each with all its places: one pass over the index.
    pub(crate) fn live_in(
        &self,
        packs: &BTreeSet<PackKey>,
        each: &mut dyn FnMut(ChunkId, &[index::Found]) -> io::Result<()>,
    ) -> io::Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        self.index.for_each(|Group { ordinal, id, places }| {
            if self.live.get(ordinal) && places.iter().any(|place| packs.contains(&place.pack)) {
                each(id, places)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
