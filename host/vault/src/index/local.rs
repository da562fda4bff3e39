//! The local copy of the vault's index pieces: bounded memory, sorted runs on disk, shared by the processes of a host.
//!
//! ```text
//! <cache>/<vault id>/lock            held while the manifest changes
//! <cache>/<vault id>/manifest.json   the runs, the index pieces whose content they hold, what is condemned
//! <cache>/<vault id>/*.run           see run.rs
//! ```
//! Lookups take no lock: they go to files that are open, which stay readable after another process has merged and unlinked
//! them. What is wrong with the folder is cured by starting anew.
//!
//! A piece that leaves the vault leaves its records here: merged pieces list the same packs again, and records are told
//! apart by their bytes. What leaves is a pack, which the clean-up log condemns first; see [`Standing`].

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FlockOperation, flock};

use super::compact::CompactIndex;
use super::manifest::{Manifest, Standing};
use super::packs::PackSet;
use super::record::{
    CHUNK_RECORD, Found, PACK_RECORD, decode_chunk, decode_pack, encode_chunk, encode_pack, pack_hash, pack_of_chunk,
    pack_of_pack,
};
use super::table::{Merging, Table};
use crate::gclog::GcLog;
use crate::ids::{ChunkId, VaultId};
use crate::object::{HEADER_BYTES, PackKey};
use crate::pack::{ChunkShape, PackInfo, PackListing};

#[derive(Default)]
struct Pieces {
    serial: u64,
    /// All whose content a lookup sees, as far as they are still in the vault.
    known: PackSet,
    /// Of those, the ones that no manifest names yet.
    in_memory: BTreeSet<PackKey>,
    /// What else a manifest should say is not written yet.
    changed: bool,
    /// As in the manifest.
    gone_left_out: u64,
}

/// What the clean-up log says of packs.
#[derive(Default)]
struct Known {
    standing: Standing,
    /// As of the last time that the log was followed.
    quarantined: PackSet,
}

/// The local copy of a vault's index.
pub(crate) struct LocalIndex {
    folder: PathBuf,
    chunks: Table<CHUNK_RECORD>,
    packs: Table<PACK_RECORD>,
    pieces: Mutex<Pieces>,
    known: RwLock<Known>,
    /// Held by the one thread of this process that writes down.
    writing: Mutex<()>,
}

impl LocalIndex {
    pub(crate) fn open(cache_folder: &Path, vault: VaultId) -> io::Result<Self> {
        let folder = cache_folder.join(vault.to_string());
        fs::create_dir_all(&folder)?;
        let index = Self {
            folder,
            chunks: Table::empty(),
            packs: Table::empty(),
            pieces: Mutex::default(),
            known: RwLock::default(),
            writing: Mutex::new(()),
        };
        let _lock = index.lock()?;
        if let Err(error) = index.load() {
            tracing::info!(folder = %index.folder.display(), %error, "the local index is of no use; starting anew");
            index.wipe()?;
        }
        Ok(index)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every place where the index has seen a chunk, but those that are gone; the ones in packs that are condemned or
    /// quarantined come last.
    pub(crate) fn candidates(&self, id: &ChunkId) -> io::Result<Vec<Found>> {
        let records = self.chunks.lookup(id.as_bytes())?;
        let known = self.known.read();
        let places = records.iter().map(decode_chunk);
        let mut places: Vec<Found> = places
            .filter(|place| !known.standing.gone.contains(&place.pack))
            .collect();
        if places.len() > 1 {
            places.sort_by_key(|place| (known.is_doubtful(&place.pack), place.pack, place.shape.ordinal));
            places.dedup_by_key(|place| (place.pack, place.shape.ordinal));
        }
        Ok(places)
    }

    /// Whether some chunk lies in these packs and in no other. Reads all of the index.
    pub(crate) fn any_only_in(&self, packs: &HashSet<PackKey>) -> io::Result<bool> {
        self.chunks.any(|record| {
            let there = packs.contains(&decode_chunk(record).pack);
            Ok(there && {
                let mut id = [0; ChunkId::LENGTH];
                id.copy_from_slice(&record[..ChunkId::LENGTH]);
                let places = self.candidates(&ChunkId(id))?;
                places.iter().all(|place| packs.contains(&place.pack))
            })
        })
    }

    pub(crate) fn pack(&self, key: &PackKey) -> io::Result<Option<PackInfo>> {
        let records = self.packs.lookup(&pack_hash(key))?;
        Ok(records.iter().filter_map(decode_pack).find(|info| info.key == *key))
    }

    /// Whether the pack was ever seen condemned, also where the log no longer says so because it is gone.
    pub(crate) fn is_condemned(&self, key: &PackKey) -> bool {
        self.known.read().standing.condemned.contains(key)
    }

    /// All of those.
    pub(crate) fn condemned(&self) -> PackSet {
        self.known.read().standing.condemned.clone()
    }

    pub(crate) fn knows_piece(&self, piece: &PackKey) -> bool {
        self.pieces.lock().known.contains(piece)
    }

    /// Whether there is nothing in it, as on a new host.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.packs.is_empty()
    }

    /// The clean-up log was followed to this number, which was not there yet.
    pub(crate) fn log_end(&self) -> u32 {
        self.known.read().standing.log_end
    }

    /// A log that ends before this number says less than is known here.
    pub(crate) fn known_until(&self) -> u32 {
        self.known.read().standing.known_until
    }

    /// How much is remembered of packs that are gone.
    pub(crate) fn condemned_ranges(&self) -> usize {
        self.known.read().standing.condemned.ranges()
    }

    /// Takes in what the clean-up log says now, and the packs that were condemned between [`Self::log_end`] and its newest
    /// checkpoint.
    pub(crate) fn follow(&self, log: &GcLog, passed: impl IntoIterator<Item = PackKey>) {
        let mut known = self.known.write();
        if log.end() < known.standing.known_until {
            return;
        }
        let mut standing = known.standing.clone();
        standing.condemned.extend(passed);
        standing.condemned.extend(log.condemned());
        standing.log_end = log.end();
        standing.known_until = log.end();
        standing.gone = standing
            .condemned
            .iter()
            .filter(|pack| !log.is_condemned(pack))
            .collect();
        if standing != known.standing {
            known.standing = standing;
            self.pieces.lock().changed = true;
        }
        known.quarantined = log.quarantined().collect();
    }

    /// Forgets the names of pieces that are no longer in the vault, but not what they listed. Own ones that no listing shows
    /// yet are fetched once more.
    pub(crate) fn keep_pieces(&self, listed: &PackSet) {
        let mut pieces = self.pieces.lock();
        let kept: PackSet = pieces.known.iter().filter(|piece| listed.contains(piece)).collect();
        if kept != pieces.known {
            pieces.changed = true;
            pieces.known = kept;
            let in_memory = pieces.in_memory.clone();
            pieces.known.extend(in_memory);
        }
    }

    /// Takes in a piece of the vault's index. Blocks on local disk now and then.
    pub(crate) fn add_piece(&self, piece: PackKey, listings: &[PackListing]) -> io::Result<()> {
        self.packs
            .insert(listings.iter().map(|listing| encode_pack(&listing.info)));
        for listing in listings {
            let mut offset = HEADER_BYTES as u32;
            let records = listing.entries.iter().enumerate().map(|(ordinal, entry)| {
                let shape = ChunkShape {
                    ordinal: ordinal as u32,
                    stored_bytes: entry.stored_bytes,
                    plain_bytes: entry.plain_bytes,
                    compressed: entry.compressed,
                };
                let found = Found {
                    pack: listing.info.key,
                    offset_bytes: offset,
                    shape,
                };
                offset += entry.stored_bytes;
                encode_chunk(&entry.id, &found)
            });
            self.chunks.insert(records);
        }
        {
            let mut pieces = self.pieces.lock();
            pieces.known.insert(piece);
            pieces.in_memory.insert(piece);
        }
        if self.chunks.wants_writing() || self.packs.wants_writing() {
            self.write_down()?;
        }
        Ok(())
    }

    /// Puts everything on disk, so that later processes need not fetch it again.
    pub(crate) fn write_down(&self) -> io::Result<()> {
        let _writing = self.writing.lock();
        {
            let pieces = self.pieces.lock();
            if pieces.in_memory.is_empty() && !pieces.changed {
                return Ok(());
            }
        }
        self.write(None)
    }

    /// Puts everything on disk as one run a table, which numbers the records, and gives those runs. They stay as they are
    /// whatever is added later. What lay in packs that are gone is left out.
    pub(crate) fn compact(&self) -> io::Result<CompactIndex> {
        let _writing = self.writing.lock();
        let gone = self.known.read().standing.gone.clone();
        let is_compact = {
            let pieces = self.pieces.lock();
            pieces.in_memory.is_empty() && pieces.gone_left_out == gone.len()
        };
        if !is_compact || self.chunks.only_run().is_none() || self.packs.only_run().is_none() {
            self.write(Some(&gone))?;
        }
        match (self.chunks.only_run(), self.packs.only_run()) {
            (Some(chunks), Some(packs)) => Ok(CompactIndex::new(self.folder.clone(), chunks, packs)),
            _ => Err(io::Error::other("the local index was not merged into one run")),
        }
    }

    /// While `writing` is held. With packs to leave out, all runs become one.
    fn write(&self, leave_out: Option<&PackSet>) -> io::Result<()> {
        let _lock = self.lock()?;
        match Manifest::read(&self.folder) {
            Ok(Some(manifest)) if manifest.serial != self.pieces.lock().serial => self.adopt(&manifest)?,
            Ok(_) => {}
            Err(error) => tracing::info!(%error, "the local index's manifest is of no use; writing a new one"),
        }
        // Taken before the tables: a piece that comes in between is written twice, never left out.
        let (mut manifest, taken) = {
            let pieces = self.pieces.lock();
            let manifest = Manifest {
                pieces: pieces.known.clone(),
                gone_left_out: leave_out.map_or(pieces.gone_left_out, PackSet::len),
                ..Manifest::empty(pieces.serial + 1)
            };
            (manifest, pieces.in_memory.clone())
        };
        manifest.standing = self.known.read().standing.clone();
        let (chunks, packs) = match leave_out {
            None => (
                self.chunks.write_down(&self.folder, Merging::Few)?,
                self.packs.write_down(&self.folder, Merging::Few)?,
            ),
            Some(gone) => {
                let chunks = &|record: &[u8; CHUNK_RECORD]| !gone.contains(&pack_of_chunk(record));
                let packs = &|record: &[u8; PACK_RECORD]| !gone.contains(&pack_of_pack(record));
                (
                    self.chunks.write_down(&self.folder, Merging::One { keep: chunks })?,
                    self.packs.write_down(&self.folder, Merging::One { keep: packs })?,
                )
            }
        };
        manifest.chunks = chunks.names.clone();
        manifest.packs = packs.names.clone();
        manifest.write(&self.folder)?;
        chunks.remove_unneeded();
        packs.remove_unneeded();
        let mut pieces = self.pieces.lock();
        pieces.serial = manifest.serial;
        pieces.gone_left_out = manifest.gone_left_out;
        pieces.in_memory.retain(|piece| !taken.contains(piece));
        pieces.changed = false;
        Ok(())
    }

    /// Forgets everything: too much has happened since to be followed.
    pub(crate) fn reset(&self) -> io::Result<()> {
        let _writing = self.writing.lock();
        let _lock = self.lock()?;
        self.wipe()
    }

    /// Under the lock.
    fn wipe(&self) -> io::Result<()> {
        self.chunks.forget_all();
        self.packs.forget_all();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "run" || extension == "new")
            {
                fs::remove_file(path)?;
            }
        }
        // The serial goes on, or another process would take the empty manifest for the one it has read.
        let serial = match Manifest::read(&self.folder) {
            Ok(Some(manifest)) => manifest.serial + 1,
            _ => u64::from(std::process::id()) << 32,
        };
        Manifest::empty(serial).write(&self.folder)?;
        *self.known.write() = Known::default();
        *self.pieces.lock() = Pieces {
            serial,
            ..Pieces::default()
        };
        Ok(())
    }

    /// Under the lock.
    fn load(&self) -> io::Result<()> {
        let Some(manifest) = Manifest::read(&self.folder)? else {
            return Ok(());
        };
        self.known.write().standing = manifest.standing.clone();
        self.adopt(&manifest)
    }

    /// Under the lock: takes over what another process has written.
    fn adopt(&self, manifest: &Manifest) -> io::Result<()> {
        self.chunks.set_runs(&self.folder, &manifest.chunks)?;
        self.packs.set_runs(&self.folder, &manifest.packs)?;
        self.known.write().standing.adopt(&manifest.standing);
        let mut pieces = self.pieces.lock();
        pieces.serial = manifest.serial;
        pieces.gone_left_out = manifest.gone_left_out;
        pieces.known = manifest.pieces.clone();
        let in_memory = pieces.in_memory.clone();
        pieces.known.extend(in_memory);
        Ok(())
    }

    /// Released when the file is closed, also by a crash.
    fn lock(&self) -> io::Result<File> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

impl Known {
    fn is_doubtful(&self, pack: &PackKey) -> bool {
        self.standing.condemned.contains(pack) || self.quarantined.contains(pack)
    }
}

impl std::fmt::Debug for LocalIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalIndex({})", self.folder.display())
    }
}
