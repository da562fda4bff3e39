//! The local index as one sorted run of each table, as of one moment: its records are numbered, so that one bit can stand for
//! one chunk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{CHUNK_RECORD, Found, PACK_RECORD, decode_chunk, decode_pack};
use super::run::{KEY_BYTES, Run};
use crate::ids::ChunkId;
use crate::object::PackKey;
use crate::pack::PackInfo;

/// The runs stay readable when the local index goes on and unlinks them.
pub(crate) struct CompactIndex {
    folder: PathBuf,
    chunks: Arc<Run<CHUNK_RECORD>>,
    packs: Arc<Run<PACK_RECORD>>,
}

/// A chunk and all its places.
pub(crate) struct Group<'a> {
    /// The number of its first record, which stands for the chunk.
    pub(crate) ordinal: u64,
    pub(crate) id: ChunkId,
    pub(crate) places: &'a [Found],
}

impl CompactIndex {
    pub(super) fn new(folder: PathBuf, chunks: Arc<Run<CHUNK_RECORD>>, packs: Arc<Run<PACK_RECORD>>) -> Self {
        Self { folder, chunks, packs }
    }

    /// Where temporary files of those who work with it belong.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// One more than the last record's number.
    pub(crate) fn records(&self) -> u64 {
        self.chunks.count()
    }

    /// The number that stands for a chunk, and its places.
    pub(crate) fn find(&self, id: &ChunkId) -> io::Result<Option<(u64, Vec<Found>)>> {
        let mut records = Vec::new();
        let first = self.chunks.find(id.as_bytes(), &mut records)?;
        Ok(first.map(|ordinal| (ordinal, records.iter().map(decode_chunk).collect())))
    }

    /// Every chunk in the order of their ids, read once from beginning to end.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Group<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut places: Vec<Found> = Vec::new();
        let mut group: Option<(u64, [u8; KEY_BYTES])> = None;
        for (record, ordinal) in self.chunks.records().zip(0..) {
            let record = record?;
            let key: [u8; KEY_BYTES] = *record.first_chunk().expect("a record begins with its key");
            if let Some((first, of)) = group
                && of != key
            {
                each(Group {
                    ordinal: first,
                    id: ChunkId(of),
                    places: &places,
                })?;
                places.clear();
                group = None;
            }
            group.get_or_insert((ordinal, key));
            places.push(decode_chunk(&record));
        }
        match group {
            Some((ordinal, id)) => each(Group {
                ordinal,
                id: ChunkId(id),
                places: &places,
            }),
            None => Ok(()),
        }
    }

    /// All packs that the index lists, sorted.
    pub(crate) fn pack_keys(&self) -> io::Result<Vec<PackKey>> {
        let mut keys = Vec::with_capacity(self.packs.count() as usize);
        for record in self.packs.records() {
            keys.extend(decode_pack(&record?).map(|info: PackInfo| info.key));
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }
}

impl std::fmt::Debug for CompactIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompactIndex({} records)", self.chunks.count())
    }
}
