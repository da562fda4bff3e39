//! The ids of data chunks that the walk meets, put aside until it is over.
//!
//! Ids are hashes, so looking each up as it comes would read the index at random, once a chunk. Sorted, they are one pass
//! over it. And while nodes are walked, a bit says of a node that it was visited; were a chunk of data marked among them that
//! happens to have a node's bytes, that node would count as visited, and what it names would be lost.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::ids::ChunkId;
use crate::index::Merged;

type Id = [u8; ChunkId::LENGTH];

/// Ids in memory before they are sorted into a file: 20 MiB.
const BATCH: usize = 1 << 20;
/// Files that are open at once. Beyond, they are merged.
const FILES_LIMIT: usize = 64;
/// What is read ahead of all files together, however many there are.
const READ_AHEAD_BYTES: usize = FILES_LIMIT * BUFFER_BYTES;
const BUFFER_BYTES: usize = 64 * 1024;

/// A sorted set of ids that grows on local disk.
pub(super) struct LiveIds {
    folder: PathBuf,
    batch: Vec<Id>,
    files: Vec<File>,
}

type Sorted = Box<dyn Iterator<Item = io::Result<Id>> + Send>;

impl LiveIds {
    /// The files have no names: they are gone when the process is.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            batch: Vec::new(),
            files: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.files.is_empty()
    }

    pub(super) fn extend(&mut self, ids: impl IntoIterator<Item = ChunkId>) -> io::Result<()> {
        for id in ids {
            if self.batch.len() == BATCH {
                self.put_aside()?;
            }
            if self.batch.capacity() == 0 {
                self.batch.reserve_exact(BATCH);
            }
            self.batch.push(id.0);
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.batch.sort_unstable();
        self.batch.dedup();
    }

    fn put_aside(&mut self) -> io::Result<()> {
        self.sort();
        let file = write(&self.folder, self.batch.drain(..).map(Ok))?;
        self.files.push(file);
        if self.files.len() == FILES_LIMIT {
            let sources = read_all(std::mem::take(&mut self.files))?;
            self.files.push(write(&self.folder, distinct(Merged::new(sources)))?);
        }
        Ok(())
    }

    /// All ids in order, each once.
    pub(super) fn into_sorted(mut self) -> io::Result<impl Iterator<Item = io::Result<ChunkId>>> {
        self.sort();
        let mut sources: Vec<Sorted> = vec![Box::new(self.batch.into_iter().map(Ok))];
        for file in read_all(self.files)? {
            sources.push(Box::new(file));
        }
        Ok(distinct(Merged::new(sources)).map(|id| id.map(ChunkId)))
    }
}

fn distinct(ids: impl Iterator<Item = io::Result<Id>>) -> impl Iterator<Item = io::Result<Id>> {
    let mut last = None;
    ids.filter(move |id| match id {
        Ok(id) => last.replace(*id) != Some(*id),
        Err(_) => true,
    })
}

fn write(folder: &Path, ids: impl Iterator<Item = io::Result<Id>>) -> io::Result<File> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, tempfile::tempfile_in(folder)?);
    for id in ids {
        out.write_all(&id?)?;
    }
    out.into_inner().map_err(|error| error.into_error())
}

fn read_all(files: Vec<File>) -> io::Result<Vec<impl Iterator<Item = io::Result<Id>> + Send>> {
    let ahead_bytes = READ_AHEAD_BYTES / files.len().max(1);
    files.into_iter().map(|file| read(file, ahead_bytes)).collect()
}

fn read(mut file: File, ahead_bytes: usize) -> io::Result<impl Iterator<Item = io::Result<Id>> + Send> {
    let ids = file.metadata()?.len() / ChunkId::LENGTH as u64;
    file.rewind()?;
    let mut bytes = BufReader::with_capacity(ahead_bytes, file);
    Ok((0..ids).map(move |_| {
        let mut id = [0; ChunkId::LENGTH];
        bytes.read_exact(&mut id).map(|()| id)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_sorted_and_once_from_memory_and_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let id = |number: u32| {
            let mut id = [0; ChunkId::LENGTH];
            id[..4].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
            ChunkId(id)
        };
        let mut ids = LiveIds::new(folder.path());
        for part in 0..FILES_LIMIT as u32 + 3 {
            ids.extend((part * 10..part * 10 + 20).map(id)).unwrap();
            ids.put_aside().unwrap();
        }
        ids.extend((0..5).map(id)).unwrap();
        assert!(ids.files.len() < FILES_LIMIT);
        let found: Vec<ChunkId> = ids.into_sorted().unwrap().collect::<io::Result<_>>().unwrap();
        let mut wanted: Vec<ChunkId> = (0..(FILES_LIMIT as u32 + 3) * 10 + 10).map(id).collect();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }
}
