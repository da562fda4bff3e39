//! What is in a pack: the directory at its end, and the same again in the session's index pieces, so that finding a chunk
//! needs no look into packs.

use bytes::{Buf, BufMut};

use super::{CHUNK_LIMIT_BYTES, CHUNKS_LIMIT, ChunkKind, PACK_LIMIT_BYTES};
use crate::ids::ChunkId;
use crate::object::{HEADER_BYTES, Header, ObjectType, PackKey, SALT_BYTES};
use crate::seal::TAG_BYTES;

/// One chunk of a pack. Its offset follows from the entries before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ChunkId,
    /// With its tag.
    pub(crate) stored_bytes: u32,
    pub(crate) plain_bytes: u32,
    pub(crate) compressed: bool,
}

/// What must be known of a pack to read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackInfo {
    pub(crate) key: PackKey,
    pub(crate) size_bytes: u32,
    pub(crate) kind: ChunkKind,
    pub(crate) cipher: u8,
    pub(crate) generation: u32,
    pub(crate) salt: [u8; SALT_BYTES],
}

impl PackInfo {
    pub(crate) fn header(&self) -> Header {
        Header {
            object_type: ObjectType::Pack,
            cipher: self.cipher,
            generation: self.generation,
            salt: self.salt,
        }
    }
}

/// A pack and its chunks, as they stand in an index piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackListing {
    pub(crate) info: PackInfo,
    pub(crate) entries: Vec<Entry>,
}

impl PackListing {
    /// What it takes in a piece.
    pub(crate) fn encoded_bytes(&self) -> usize {
        LISTING_BYTES + self.entries.len() * ENTRY_BYTES
    }
}

/// What is no directory or index piece, although its seal was whole: written by a faulty program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DirectoryError(pub(crate) &'static str);

const COMPRESSED: u32 = 1 << 31;
pub(super) const ENTRY_BYTES: usize = ChunkId::LENGTH + 4 + 4;
const LISTING_BYTES: usize = 12 + 4 + 1 + 1 + 4 + SALT_BYTES + 4;
/// Writers put eight packs into a piece; a reader takes more.
const PIECE_PACKS_LIMIT: usize = 1024;

pub(super) fn encode_entries(entries: &[Entry], out: &mut impl BufMut) {
    out.put_u32_le(entries.len() as u32);
    for entry in entries {
        out.put_slice(entry.id.as_bytes());
        out.put_u32_le(entry.stored_bytes);
        out.put_u32_le(entry.plain_bytes | if entry.compressed { COMPRESSED } else { 0 });
    }
}

/// Also checks that the chunks can lie in a pack of `size_bytes`.
pub(super) fn decode_entries(bytes: &mut &[u8], size_bytes: u64) -> Result<Vec<Entry>, DirectoryError> {
    let count = take_u32(bytes)? as usize;
    if count > CHUNKS_LIMIT || count * ENTRY_BYTES > bytes.len() {
        return Err(DirectoryError("more chunks than there are entries"));
    }
    let mut entries = Vec::with_capacity(count);
    let mut end = HEADER_BYTES as u64;
    for _ in 0..count {
        let mut id = [0; ChunkId::LENGTH];
        bytes.copy_to_slice(&mut id);
        let stored_bytes = bytes.get_u32_le();
        let plain = bytes.get_u32_le();
        let entry = Entry {
            id: ChunkId(id),
            stored_bytes,
            plain_bytes: plain & !COMPRESSED,
            compressed: plain & COMPRESSED != 0,
        };
        check(&entry)?;
        end += u64::from(stored_bytes);
        entries.push(entry);
    }
    if end > size_bytes {
        return Err(DirectoryError("chunks beyond the end of their pack"));
    }
    Ok(entries)
}

fn check(entry: &Entry) -> Result<(), DirectoryError> {
    let plain = entry.plain_bytes as usize;
    let Some(body) = (entry.stored_bytes as usize).checked_sub(TAG_BYTES) else {
        return Err(DirectoryError("a chunk smaller than its tag"));
    };
    if plain == 0 || plain > CHUNK_LIMIT_BYTES {
        return Err(DirectoryError("a chunk of an impossible size"));
    }
    if entry.compressed && body >= plain || !entry.compressed && body != plain {
        return Err(DirectoryError("a chunk whose sizes contradict each other"));
    }
    Ok(())
}

pub(crate) fn encode_piece(listings: &[PackListing]) -> Vec<u8> {
    let chunks: usize = listings.iter().map(|listing| listing.entries.len()).sum();
    let mut out = Vec::with_capacity(4 + listings.len() * LISTING_BYTES + chunks * ENTRY_BYTES);
    out.put_u32_le(listings.len() as u32);
    for PackListing { info, entries } in listings {
        out.put_slice(&info.key.to_bytes());
        out.put_u32_le(info.size_bytes);
        out.put_u8(info.kind.number());
        out.put_u8(info.cipher);
        out.put_u32_le(info.generation);
        out.put_slice(&info.salt);
        encode_entries(entries, &mut out);
    }
    out
}

pub(crate) fn decode_piece(mut bytes: &[u8]) -> Result<Vec<PackListing>, DirectoryError> {
    let bytes = &mut bytes;
    let count = take_u32(bytes)? as usize;
    if count > PIECE_PACKS_LIMIT || count * LISTING_BYTES > bytes.len() {
        return Err(DirectoryError("more packs than there are entries"));
    }
    let mut listings = Vec::with_capacity(count);
    for _ in 0..count {
        if bytes.len() < LISTING_BYTES {
            return Err(DirectoryError("it ends within a pack"));
        }
        let mut key = [0; 12];
        bytes.copy_to_slice(&mut key);
        let size_bytes = bytes.get_u32_le();
        if u64::from(size_bytes) > PACK_LIMIT_BYTES {
            return Err(DirectoryError("a pack that is too large"));
        }
        let kind = ChunkKind::of(bytes.get_u8()).ok_or(DirectoryError("a kind of pack that is not known"))?;
        let cipher = bytes.get_u8();
        let generation = bytes.get_u32_le();
        let mut salt = [0; SALT_BYTES];
        bytes.copy_to_slice(&mut salt);
        let info = PackInfo {
            key: PackKey::from_bytes(&key),
            size_bytes,
            kind,
            cipher,
            generation,
            salt,
        };
        let entries = decode_entries(bytes, u64::from(size_bytes))?;
        listings.push(PackListing { info, entries });
    }
    if bytes.is_empty() {
        Ok(listings)
    } else {
        Err(DirectoryError("bytes after its end"))
    }
}

fn take_u32(bytes: &mut &[u8]) -> Result<u32, DirectoryError> {
    bytes.try_get_u32_le().map_err(|_| DirectoryError("it ends early"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{MachineNumber, SessionNumber};

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (
            any::<[u8; 20]>(),
            1u32..=1 << 20,
            any::<bool>(),
            any::<prop::sample::Index>(),
        )
            .prop_map(|(id, plain_bytes, compressed, index)| {
                let body = if compressed {
                    index.index(plain_bytes as usize) as u32
                } else {
                    plain_bytes
                };
                Entry {
                    id: ChunkId(id),
                    stored_bytes: body + TAG_BYTES as u32,
                    plain_bytes,
                    compressed,
                }
            });
        proptest::collection::vec(entry, 0..20)
    }

    proptest! {
        #[test]
        fn a_piece_reads_back(packs in proptest::collection::vec((entries(), any::<u32>(), any::<bool>()), 0..9)) {
            let listings: Vec<_> = packs
                .into_iter()
                .map(|(entries, number, node)| PackListing {
                    info: PackInfo {
                        key: PackKey { machine: MachineNumber(number), session: SessionNumber(7), number },
                        size_bytes: PACK_LIMIT_BYTES as u32,
                        kind: if node { ChunkKind::Node } else { ChunkKind::Data },
                        cipher: 1,
                        generation: number,
                        salt: [4; 32],
                    },
                    entries,
                })
                .collect();
            prop_assert_eq!(decode_piece(&encode_piece(&listings)), Ok(listings));
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_piece(&bytes);
            let _ = decode_entries(&mut bytes.as_slice(), 1 << 20);
        }

        #[test]
        fn a_changed_piece_is_refused_or_stays_within_bounds(
            list in entries(), at in any::<prop::sample::Index>(), to in any::<u8>(),
        ) {
            let mut bytes = Vec::new();
            encode_entries(&list, &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(read) = decode_entries(&mut bytes.as_slice(), PACK_LIMIT_BYTES) {
                prop_assert!(read.iter().all(|entry| check(entry).is_ok()));
            }
        }
    }
}
