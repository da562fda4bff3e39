//! The local copy of the vault's index pieces: bounded memory, sorted runs on disk, shared by the processes of a host.
//!
//! ```text
//! <cache>/<vault id>/lock            held while the manifest changes
//! <cache>/<vault id>/manifest.json   the runs, and the index pieces whose content they hold
//! <cache>/<vault id>/*.run           see run.rs
//! ```
//! Lookups take no lock: they go to files that are open, which stay readable after another process has merged and unlinked
//! them. What is wrong with the folder is cured by starting anew.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::compact::CompactIndex;
use super::record::{
    CHUNK_RECORD, Found, PACK_RECORD, decode_chunk, decode_pack, encode_chunk, encode_pack, pack_hash,
};
use super::table::{Merging, Table};
use crate::ids::{ChunkId, MachineNumber, SessionNumber, VaultId};
use crate::object::{HEADER_BYTES, PackKey};
use crate::pack::{ChunkShape, PackInfo, PackListing};

const MANIFEST_VERSION: u32 = 1;

#[derive(Default, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    /// Grows with every change, so that others see that there was one.
    serial: u64,
    chunks: Vec<String>,
    packs: Vec<String>,
    /// Machine, session, and the numbers of the pieces.
    pieces: BTreeMap<u32, BTreeMap<u32, BTreeSet<u32>>>,
}

impl Manifest {
    fn pieces(&self) -> BTreeSet<PackKey> {
        let mut all = BTreeSet::new();
        for (machine, sessions) in &self.pieces {
            for (session, numbers) in sessions {
                let (machine, session) = (MachineNumber(*machine), SessionNumber(*session));
                all.extend(numbers.iter().map(|number| PackKey {
                    machine,
                    session,
                    number: *number,
                }));
            }
        }
        all
    }

    fn set_pieces(&mut self, pieces: &BTreeSet<PackKey>) {
        self.pieces.clear();
        for piece in pieces {
            let sessions = self.pieces.entry(piece.machine.0).or_default();
            sessions.entry(piece.session.0).or_default().insert(piece.number);
        }
    }
}

#[derive(Default)]
struct Pieces {
    serial: u64,
    /// All whose content a lookup sees.
    known: BTreeSet<PackKey>,
    /// Of those, the ones that no manifest names yet.
    in_memory: BTreeSet<PackKey>,
}

/// The local copy of a vault's index.
pub(crate) struct LocalIndex {
    folder: PathBuf,
    chunks: Table<CHUNK_RECORD>,
    packs: Table<PACK_RECORD>,
    pieces: Mutex<Pieces>,
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

    /// Every place where the index has seen a chunk.
    pub(crate) fn candidates(&self, id: &ChunkId) -> io::Result<Vec<Found>> {
        Ok(self.chunks.lookup(id.as_bytes())?.iter().map(decode_chunk).collect())
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

    pub(crate) fn knows_piece(&self, piece: &PackKey) -> bool {
        self.pieces.lock().known.contains(piece)
    }

    pub(crate) fn pieces(&self) -> BTreeSet<PackKey> {
        self.pieces.lock().known.clone()
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
        if self.pieces.lock().in_memory.is_empty() {
            return Ok(());
        }
        self.write(Merging::Few, Merging::Few)
    }

    /// Puts everything on disk as one run a table, which numbers the records, and gives those runs. They stay as they are
    /// whatever is added later.
    pub(crate) fn compact(&self) -> io::Result<CompactIndex> {
        let _writing = self.writing.lock();
        self.write(Merging::One { keep: &|_| true }, Merging::One { keep: &|_| true })?;
        match (self.chunks.only_run(), self.packs.only_run()) {
            (Some(chunks), Some(packs)) => Ok(CompactIndex::new(self.folder.clone(), chunks, packs)),
            _ => Err(io::Error::other("the local index was not merged into one run")),
        }
    }

    /// While `writing` is held.
    fn write(&self, chunks: Merging<'_, CHUNK_RECORD>, packs: Merging<'_, PACK_RECORD>) -> io::Result<()> {
        let _lock = self.lock()?;
        let mut manifest = match self.read_manifest() {
            Ok(manifest) => {
                if manifest.serial != self.pieces.lock().serial {
                    self.adopt(&manifest)?;
                }
                manifest
            }
            Err(error) => {
                tracing::info!(%error, "the local index's manifest is of no use; writing a new one");
                Manifest::default()
            }
        };
        // Taken before the tables: a piece that comes in between is written twice, never left out.
        let taken = self.pieces.lock().in_memory.clone();
        let chunks = self.chunks.write_down(&self.folder, chunks)?;
        let packs = self.packs.write_down(&self.folder, packs)?;
        let mut all = manifest.pieces();
        all.extend(&taken);
        manifest.version = MANIFEST_VERSION;
        manifest.serial += 1;
        manifest.chunks = chunks.names.clone();
        manifest.packs = packs.names.clone();
        manifest.set_pieces(&all);
        self.write_manifest(&manifest)?;
        chunks.remove_unneeded();
        packs.remove_unneeded();
        let mut pieces = self.pieces.lock();
        pieces.serial = manifest.serial;
        pieces.in_memory.retain(|piece| !taken.contains(piece));
        Ok(())
    }

    /// Forgets everything: pieces that the runs hold are no longer in the vault.
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
        let serial = self
            .read_manifest()
            .map_or(u64::from(std::process::id()) << 32, |manifest| manifest.serial)
            + 1;
        self.write_manifest(&Manifest {
            version: MANIFEST_VERSION,
            serial,
            ..Manifest::default()
        })?;
        *self.pieces.lock() = Pieces {
            serial,
            ..Pieces::default()
        };
        Ok(())
    }

    /// Under the lock.
    fn load(&self) -> io::Result<()> {
        if !self.manifest_path().exists() {
            return Ok(());
        }
        let manifest = self.read_manifest()?;
        self.adopt(&manifest)
    }

    /// Under the lock: takes over what another process has written.
    fn adopt(&self, manifest: &Manifest) -> io::Result<()> {
        self.chunks.set_runs(&self.folder, &manifest.chunks)?;
        self.packs.set_runs(&self.folder, &manifest.packs)?;
        let mut pieces = self.pieces.lock();
        pieces.serial = manifest.serial;
        pieces.known = manifest.pieces();
        let in_memory = pieces.in_memory.clone();
        pieces.known.extend(in_memory);
        Ok(())
    }

    fn manifest_path(&self) -> PathBuf {
        self.folder.join("manifest.json")
    }

    fn read_manifest(&self) -> io::Result<Manifest> {
        let bytes = match fs::read(self.manifest_path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manifest::default()),
            Err(error) => return Err(error),
        };
        let manifest: Manifest = serde_json::from_slice(&bytes)?;
        let plain = |name: &String| Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        if manifest.version != MANIFEST_VERSION || !manifest.chunks.iter().chain(&manifest.packs).all(plain) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a manifest of another version",
            ));
        }
        Ok(manifest)
    }

    fn write_manifest(&self, manifest: &Manifest) -> io::Result<()> {
        let new = self.folder.join("manifest.new");
        let file = File::create(&new)?;
        serde_json::to_writer(io::BufWriter::new(&file), manifest)?;
        file.sync_data()?;
        fs::rename(&new, self.manifest_path())
    }

    /// Released when the file is closed, also by a crash.
    fn lock(&self) -> io::Result<File> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

impl std::fmt::Debug for LocalIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalIndex({})", self.folder.display())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::pack::{ChunkKind, Entry};

    const VAULT: VaultId = VaultId([2; 16]);

    fn key(number: u32) -> PackKey {
        PackKey {
            machine: MachineNumber(1),
            session: SessionNumber(0),
            number,
        }
    }

    fn id(number: u32) -> ChunkId {
        ChunkHash::id(number)
    }

    struct ChunkHash;

    impl ChunkHash {
        fn id(number: u32) -> ChunkId {
            let mut id = [0; 20];
            id.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..20]);
            ChunkId(id)
        }
    }

    fn listing(number: u32, chunks: std::ops::Range<u32>) -> PackListing {
        let info = PackInfo {
            key: key(number),
            size_bytes: 1 << 20,
            kind: ChunkKind::Data,
            cipher: 1,
            generation: 0,
            salt: [number as u8; 32],
        };
        let entry = |chunk| Entry {
            id: id(chunk),
            stored_bytes: 116,
            plain_bytes: 100,
            compressed: false,
        };
        PackListing {
            info,
            entries: chunks.map(entry).collect(),
        }
    }

    fn check(index: &LocalIndex, model: &HashMap<u32, Vec<u32>>) {
        for (chunk, packs) in model {
            let mut found: Vec<u32> = index
                .candidates(&id(*chunk))
                .unwrap()
                .iter()
                .map(|found| found.pack.number)
                .collect();
            found.sort_unstable();
            found.dedup();
            assert_eq!(&found, packs, "chunk {chunk}");
        }
        assert!(index.candidates(&id(u32::MAX)).unwrap().is_empty());
    }

    #[test]
    fn the_index_finds_what_a_hash_map_finds_in_memory_on_disk_and_merged() {
        let folder = tempfile::tempdir().unwrap();
        let mut model: HashMap<u32, Vec<u32>> = HashMap::new();
        let index = LocalIndex::open(folder.path(), VAULT).unwrap();
        for pack in 0..40 {
            let chunks = pack * 20..pack * 20 + 40;
            index.add_piece(key(pack), &[listing(pack, chunks.clone())]).unwrap();
            for chunk in chunks {
                model.entry(chunk).or_default().push(pack);
            }
            if pack % 3 == 0 {
                index.write_down().unwrap();
            }
        }
        check(&index, &model);
        assert_eq!(index.pack(&key(7)).unwrap(), Some(listing(7, 0..0).info));
        assert_eq!(index.pack(&key(70)).unwrap(), None);
        index.write_down().unwrap();
        let files: Vec<_> = fs::read_dir(index.folder())
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        assert!(files.len() < 20, "{files:?}");
        drop(index);
        let again = LocalIndex::open(folder.path(), VAULT).unwrap();
        check(&again, &model);
        assert_eq!(again.pieces().len(), 40);
    }

    #[test]
    fn two_processes_keep_each_others_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let one = LocalIndex::open(folder.path(), VAULT).unwrap();
        let two = LocalIndex::open(folder.path(), VAULT).unwrap();
        one.add_piece(key(1), &[listing(1, 0..10)]).unwrap();
        two.add_piece(key(2), &[listing(2, 5..20)]).unwrap();
        one.write_down().unwrap();
        two.write_down().unwrap();
        assert!(two.knows_piece(&key(1)));
        let three = LocalIndex::open(folder.path(), VAULT).unwrap();
        check(&three, &HashMap::from([(0, vec![1]), (7, vec![1, 2]), (19, vec![2])]));
        // The first still works with files that the second has merged away.
        check(&one, &HashMap::from([(0, vec![1])]));
    }

    #[test]
    fn a_damaged_cache_is_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(folder.path(), VAULT).unwrap();
        index.add_piece(key(1), &[listing(1, 0..10)]).unwrap();
        index.write_down().unwrap();
        let path = index.folder().to_owned();
        drop(index);
        for entry in fs::read_dir(&path).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "run") {
                fs::write(file, b"rubbish").unwrap();
            }
        }
        let again = LocalIndex::open(folder.path(), VAULT).unwrap();
        assert!(again.pieces().is_empty());
        fs::write(path.join("manifest.json"), b"{").unwrap();
        assert!(LocalIndex::open(folder.path(), VAULT).unwrap().pieces().is_empty());
    }

    #[test]
    fn a_reset_forgets_and_others_notice() {
        let folder = tempfile::tempdir().unwrap();
        let one = LocalIndex::open(folder.path(), VAULT).unwrap();
        one.add_piece(key(1), &[listing(1, 0..10)]).unwrap();
        one.write_down().unwrap();
        let two = LocalIndex::open(folder.path(), VAULT).unwrap();
        two.reset().unwrap();
        assert!(two.candidates(&id(3)).unwrap().is_empty());
        one.add_piece(key(2), &[listing(2, 20..30)]).unwrap();
        one.write_down().unwrap();
        assert!(!one.knows_piece(&key(1)));
        assert!(one.knows_piece(&key(2)));
    }
}
