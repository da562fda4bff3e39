//! What a scan remembers of a disk: 12 bytes for each 16 KiB, in a local file that can be thrown away.
//!
//! A block's digest is the first 12 bytes of the chaining value that BLAKE3 (keyed, as for chunk ids) gives the block as a
//! subtree of its 128 KiB slot. Eight of them merge into the slot's chunk id, so one pass over the bytes makes both. Two
//! values are set apart: all zero for a block of zeroes, so that holes are holes in this file too, and all ones for "not
//! known", which counts as changed.
//!
//! The file is bound to vault, machine, disk, size and point. It is written beside the old one, synced and renamed after the
//! point is committed: a block that the file calls zero must really be so, and a flipped bit elsewhere can only make a
//! block look changed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use coffre_vault::map::SLOT_BYTES;
use coffre_vault::{ChunkHasher, ChunkId};
use serde::{Deserialize, Serialize};

/// The unit of comparison.
pub const BLOCK_BYTES: u64 = 16 << 10;
pub const BLOCKS_PER_SLOT: usize = (SLOT_BYTES / BLOCK_BYTES) as usize;
pub const DIGEST_BYTES: usize = 12;

/// One block's digest.
pub type Digest = [u8; DIGEST_BYTES];
/// A block of zeroes.
pub const ZERO: Digest = [0; DIGEST_BYTES];
/// Nobody knows; the block counts as changed.
pub const UNKNOWN: Digest = [0xff; DIGEST_BYTES];

const MAGIC: &str = "coffre scan digests 1";
/// The header's room at the front of the file: one page.
const HEADER_BYTES: u64 = 4096;

/// Hashes a whole slot once: the digests of its blocks, and its chunk id.
pub fn hash_slot(key: &[u8; 32], slot: &[u8]) -> ([Digest; BLOCKS_PER_SLOT], ChunkId) {
    debug_assert_eq!(slot.len() as u64, SLOT_BYTES);
    let mode = Mode::KeyedHash(key);
    let mut values: [ChainingValue; BLOCKS_PER_SLOT] = [[0; 32]; BLOCKS_PER_SLOT];
    let mut digests = [ZERO; BLOCKS_PER_SLOT];
    for (position, block) in slot.chunks_exact(BLOCK_BYTES as usize).enumerate() {
        values[position] = blake3::Hasher::new_keyed(key)
            .set_input_offset(position as u64 * BLOCK_BYTES)
            .update(block)
            .finalize_non_root();
        if !is_zero(block) {
            digests[position] = digest_of(&values[position]);
        }
    }
    let [a, b, c, d, e, f, g, h] = &values;
    let left = merge_subtrees_non_root(
        &merge_subtrees_non_root(a, b, mode),
        &merge_subtrees_non_root(c, d, mode),
        mode,
    );
    let right = merge_subtrees_non_root(
        &merge_subtrees_non_root(e, f, mode),
        &merge_subtrees_non_root(g, h, mode),
        mode,
    );
    let root = merge_subtrees_root(&left, &right, mode);
    (digests, ChunkHasher::truncate(&root))
}

fn digest_of(value: &ChainingValue) -> Digest {
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&value[..DIGEST_BYTES]);
    // The two values that mean something else are as likely as any other, 2^-96 each.
    if digest == ZERO || digest == UNKNOWN {
        [1; DIGEST_BYTES]
    } else {
        digest
    }
}

/// Whether there is nothing but zeroes; looks at the first bytes before it looks at all.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, tail) = bytes.split_at(bytes.len().min(64));
    // In runs of 64, which compilers turn into a few wide instructions each.
    let (runs, rest) = tail.as_chunks::<64>();
    let none = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    none(head) && runs.iter().all(|run| none(run)) && none(rest)
}

/// What a digest file belongs to. It is used only where everything is equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestBinding {
    pub vault: String,
    pub machine: String,
    pub disk: String,
    pub size_bytes: u64,
    /// The point's number in its vault.
    pub point: u32,
}

#[derive(Serialize, Deserialize)]
struct Header {
    magic: String,
    #[serde(flatten)]
    binding: DigestBinding,
}

/// A local digest file could not be read or written. The backup can go on without one.
#[derive(Debug, thiserror::Error)]
#[error("{action} the scan digests {}", path.display())]
pub struct DigestError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Where the digests of one disk lie, below the cache folder.
pub fn digest_path(folder: &Path, vault: &str, machine: &str, disk: &str) -> PathBuf {
    // Machine and disk names may hold anything; a hash makes a file name of them.
    let name = blake3::hash(format!("{}:{machine}{disk}", machine.len()).as_bytes()).to_hex();
    folder
        .join("digests")
        .join(vault)
        .join(format!("{}.digests", &name[..32]))
}

/// The digests of a base point, to compare with.
#[derive(Debug)]
pub struct BaseDigests {
    file: File,
    path: PathBuf,
    size_bytes: u64,
}

impl BaseDigests {
    /// Opens the file if it is there and bound to just this. The reason why not is for the point and the log.
    pub fn open(path: &Path, binding: &DigestBinding) -> Result<Self, String> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("this host keeps no digests of the last point".into());
            }
            Err(error) => return Err(format!("the digests of the last point cannot be opened: {error}")),
        };
        let header =
            read_header(&file).map_err(|error| format!("the digests of the last point are unreadable: {error}"))?;
        if header.magic != MAGIC {
            return Err("the digests of the last point are of another version".into());
        }
        if header.binding != *binding {
            return Err("the digests on this host are of another point".into());
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            size_bytes: binding.size_bytes,
        })
    }

    /// Fills `digests` from block `first` on. What lies past the base's end is zero, as in its map; what cannot be read is
    /// unknown.
    pub fn read(&self, first: u64, digests: &mut [Digest]) {
        let known_blocks = self.size_bytes.div_ceil(BLOCK_BYTES);
        let known = known_blocks.saturating_sub(first).min(digests.len() as u64) as usize;
        let (inside, outside) = digests.split_at_mut(known);
        outside.fill(ZERO);
        let offset = HEADER_BYTES + first * DIGEST_BYTES as u64;
        if self.file.read_exact_at(inside.as_flattened_mut(), offset).is_err() {
            inside.fill(UNKNOWN);
        }
    }

    /// Before a commit by change tracking: blocks that may have changed are not known any more. This is right for the old
    /// point too, so the order of this and the commit does not matter; [`BaseDigests::sync`] comes before the commit.
    pub fn forget(&self, blocks: std::ops::Range<u64>) -> Result<(), DigestError> {
        let end = blocks.end.min(self.size_bytes.div_ceil(BLOCK_BYTES));
        let mut at = blocks.start;
        while at < end {
            let digests = [UNKNOWN; 64];
            let count = (end - at).min(digests.len() as u64) as usize;
            let offset = HEADER_BYTES + at * DIGEST_BYTES as u64;
            self.file
                .write_all_at(digests[..count].as_flattened(), offset)
                .map_err(|source| DigestError {
                    action: "mark",
                    path: self.path.clone(),
                    source,
                })?;
            at += count as u64;
        }
        Ok(())
    }

    pub fn sync(&self) -> Result<(), DigestError> {
        self.file.sync_data().map_err(|source| DigestError {
            action: "sync",
            path: self.path.clone(),
            source,
        })
    }

    /// After such a commit: the same digests are the new point's. Only for a disk of the same size.
    pub fn rebind(self, binding: &DigestBinding) -> Result<(), DigestError> {
        write_header(&self.file, binding)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| DigestError {
                action: "bind",
                path: self.path.clone(),
                source,
            })
    }
}

/// The digests of the point that is being made.
#[derive(Debug)]
pub struct NewDigests {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl NewDigests {
    /// Begins the file beside the old one.
    pub fn create(path: &Path, binding: &DigestBinding) -> Result<Self, DigestError> {
        let temporary = path.with_extension("new");
        let make = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.set_len(HEADER_BYTES + binding.size_bytes.div_ceil(BLOCK_BYTES) * DIGEST_BYTES as u64)?;
            write_header(&file, binding)?;
            Ok(file)
        };
        match make() {
            Ok(file) => Ok(Self {
                file,
                temporary,
                path: path.to_owned(),
            }),
            Err(source) => Err(DigestError {
                action: "create",
                path: temporary,
                source,
            }),
        }
    }

    /// Notes the digests from block `first` on. Blocks never noted are zero.
    pub fn write(&self, first: u64, digests: &[Digest]) -> Result<(), DigestError> {
        if digests.iter().all(|digest| *digest == ZERO) {
            return Ok(());
        }
        self.file
            .write_all_at(digests.as_flattened(), HEADER_BYTES + first * DIGEST_BYTES as u64)
            .map_err(|source| DigestError {
                action: "write",
                path: self.temporary.clone(),
                source,
            })
    }

    /// After the commit: this is what the next scan compares with.
    pub fn keep(self) -> Result<(), DigestError> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(|source| DigestError {
                action: "keep",
                path: self.path.clone(),
                source,
            })
    }

    /// There is no point to keep them for.
    pub fn discard(self) {
        // What stays behind is overwritten by the next scan.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn write_header(file: &File, binding: &DigestBinding) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(&Header {
        magic: MAGIC.into(),
        binding: binding.clone(),
    })?;
    bytes.push(b'\n');
    if bytes.len() as u64 > HEADER_BYTES {
        return Err(io::Error::other(
            "the names of machine and disk are too long for the header",
        ));
    }
    bytes.resize(HEADER_BYTES as usize, 0);
    file.write_all_at(&bytes, 0)
}

fn read_header(file: &File) -> io::Result<Header> {
    let mut bytes = vec![0; HEADER_BYTES as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| io::Error::other("no header"))?;
    Ok(serde_json::from_slice(&bytes[..end])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn binding(point: u32) -> DigestBinding {
        DigestBinding {
            vault: "v".into(),
            machine: "m".into(),
            disk: "d".into(),
            size_bytes: 10 * SLOT_BYTES,
            point,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_blocks_of_a_slot_merge_into_its_chunk_id(seed in any::<u64>(), key in any::<[u8; 32]>()) {
            let slot: Vec<u8> = (0..SLOT_BYTES).map(|at| (at.wrapping_mul(seed | 1) >> 7) as u8).collect();
            prop_assert_eq!(hash_slot(&key, &slot).1, ChunkHasher::truncate(&blake3::keyed_hash(&key, &slot)));
        }
    }

    #[test]
    fn a_changed_byte_changes_one_digest() {
        let key = [3; 32];
        let mut slot = vec![5; SLOT_BYTES as usize];
        slot[..BLOCK_BYTES as usize].fill(0);
        let (before, _) = hash_slot(&key, &slot);
        slot[3 * BLOCK_BYTES as usize + 7] = 6;
        let (after, _) = hash_slot(&key, &slot);
        assert_eq!(before[0], ZERO);
        let differ: Vec<usize> = (0..BLOCKS_PER_SLOT).filter(|at| before[*at] != after[*at]).collect();
        assert_eq!(differ, [3]);
    }

    #[test]
    fn digests_are_found_for_their_own_point_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = digest_path(folder.path(), "v", "m", "d");
        let new = NewDigests::create(&path, &binding(1)).unwrap();
        new.write(3, &[[9; 12], UNKNOWN]).unwrap();
        new.keep().unwrap();
        assert!(BaseDigests::open(&path, &binding(2)).is_err());
        let base = BaseDigests::open(&path, &binding(1)).unwrap();
        let mut digests = [[1; 12]; 6];
        base.read(2, &mut digests);
        assert_eq!(digests, [ZERO, [9; 12], UNKNOWN, ZERO, ZERO, ZERO]);
        digests.fill([1; 12]);
        base.read(78, &mut digests);
        assert_eq!(digests, [ZERO; 6]);
        base.forget(3..4).unwrap();
        base.sync().unwrap();
        base.rebind(&binding(2)).unwrap();
        let base = BaseDigests::open(&path, &binding(2)).unwrap();
        base.read(2, &mut digests);
        assert_eq!(digests[1], UNKNOWN);
    }
}
