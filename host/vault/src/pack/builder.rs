//! Filling, sealing and proving a pack.
//!
//! A pack is sealed in place when it closes, since its key follows from all of its bytes. Then it is opened again, chunk by
//! chunk, from the bytes that will be sent, and every chunk is hashed against its id: what a faulty memory, compressor or
//! program of ours has done to the bytes is found before anything relies on them.

use bytes::Bytes;

use super::directory::{self, ENTRY_BYTES, Entry, PackInfo, PackListing};
use super::open::{ChunkShape, open_chunk};
use super::{ChunkKind, Decoder, DirectoryError, PACK_LIMIT_BYTES, PackBuffer};
use crate::ids::{ChunkId, VaultId};
use crate::key::KeyRing;
use crate::object::{HEADER_BYTES, Header, ObjectType, PackKey};
use crate::seal::{self, DIRECTORY_POSITION, Sealer, TAG_BYTES};
use crate::vault::ChunkHasher;

const TRAILER_BYTES: usize = 16;
const TRAILER_MAGIC: &[u8; 8] = b"COFFEND1";
/// A directory's kind byte and count.
const DIRECTORY_HEAD_BYTES: usize = 1 + 4;

/// An open pack.
pub(crate) struct PackBuilder {
    buffer: PackBuffer,
    kind: ChunkKind,
    entries: Vec<Entry>,
}

impl PackBuilder {
    pub(crate) fn new(mut buffer: PackBuffer, kind: ChunkKind) -> Self {
        buffer.reserve_all();
        buffer.bytes.clear();
        buffer.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        Self {
            buffer,
            kind,
            entries: Vec::new(),
        }
    }

    /// Whether a chunk of `body_bytes` can be added without growing beyond the target.
    pub(crate) fn fits(&self, body_bytes: usize) -> bool {
        let directory = DIRECTORY_HEAD_BYTES + (self.entries.len() + 1) * ENTRY_BYTES + TAG_BYTES + TRAILER_BYTES;
        self.buffer.bytes.len() + body_bytes + TAG_BYTES + directory <= self.buffer.target_bytes()
    }

    pub(crate) fn chunks(&self) -> usize {
        self.entries.len()
    }

    /// Appends a chunk, not sealed yet, with room for its tag.
    pub(crate) fn push(&mut self, id: ChunkId, body: &[u8], plain_bytes: usize, compressed: bool) {
        self.buffer.bytes.extend_from_slice(body);
        self.buffer.bytes.extend_from_slice(&[0; TAG_BYTES]);
        self.entries.push(Entry {
            id,
            stored_bytes: (body.len() + TAG_BYTES) as u32,
            plain_bytes: plain_bytes as u32,
            compressed,
        });
    }

    /// Says that this pack takes nothing more and is on its way.
    pub(crate) fn set_moving(&mut self) {
        self.buffer.set_moving();
    }

    pub(crate) fn seal(self, ring: &KeyRing, vault: VaultId, key: PackKey) -> SealedPack {
        let Self {
            mut buffer,
            kind,
            entries,
        } = self;
        let object = key.object();
        let bytes = &mut buffer.bytes;
        let header = seal::header(ring, ObjectType::Pack, &object, &blake3::hash(&bytes[HEADER_BYTES..]));
        let sealer = Sealer::new(ring, vault, &object, &header).expect("the header is of this ring");
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        let mut at = HEADER_BYTES;
        for (ordinal, entry) in entries.iter().enumerate() {
            let end = at + entry.stored_bytes as usize;
            sealer.seal(ordinal as u32, &mut bytes[at..end]);
            at = end;
        }
        bytes.push(kind.number());
        directory::encode_entries(&entries, bytes);
        bytes.extend_from_slice(&[0; TAG_BYTES]);
        sealer.seal(DIRECTORY_POSITION, &mut bytes[at..]);
        let directory_bytes = (bytes.len() - at) as u32;
        bytes.extend_from_slice(&directory_bytes.to_le_bytes());
        bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(TRAILER_MAGIC);
        let info = PackInfo {
            key,
            size_bytes: bytes.len() as u32,
            kind,
            cipher: header.cipher,
            generation: header.generation,
            salt: header.salt,
        };
        SealedPack {
            listing: PackListing { info, entries },
            bytes: Bytes::from_owner(buffer),
        }
    }
}

/// A pack as it will be sent.
pub(crate) struct SealedPack {
    pub(crate) listing: PackListing,
    pub(crate) bytes: Bytes,
}

/// What is wrong with a pack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PackDamage {
    #[error("its header: {0}")]
    Header(String),
    #[error("its header or directory: {0}")]
    Directory(String),
    #[error("chunk {id} (number {ordinal}): {what}")]
    Chunk { id: ChunkId, ordinal: u32, what: String },
}

impl SealedPack {
    /// Reads the pack back as a reader would.
    pub(crate) fn prove(&self, ring: &KeyRing, vault: VaultId, hasher: &ChunkHasher) -> Result<(), PackDamage> {
        let key = self.listing.info.key;
        let (listing, sealer) = read_pack(&self.bytes, ring, vault, key)?;
        if listing != self.listing {
            return Err(PackDamage::Directory("it is not what was put in".to_owned()));
        }
        match check_chunks(&self.bytes, &listing.entries, &sealer, hasher)
            .into_iter()
            .next()
        {
            Some(damage) => Err(damage),
            None => Ok(()),
        }
    }
}

/// Reads a whole pack's header and directory.
pub(crate) fn read_pack(
    bytes: &[u8],
    ring: &KeyRing,
    vault: VaultId,
    key: PackKey,
) -> Result<(PackListing, Sealer), PackDamage> {
    read_frame(bytes, bytes, bytes.len() as u64, ring, vault, key)
}

/// Reads header and directory of a pack of which only the beginning and the end are at hand.
pub(crate) fn read_frame(
    head: &[u8],
    tail: &[u8],
    size_bytes: u64,
    ring: &KeyRing,
    vault: VaultId,
    key: PackKey,
) -> Result<(PackListing, Sealer), PackDamage> {
    let in_header = |what: String| PackDamage::Header(what);
    let header = Header::decode(head, ObjectType::Pack).map_err(|error| in_header(error.to_string()))?;
    let sealer = Sealer::new(ring, vault, &key.object(), &header).map_err(|error| in_header(error.to_string()))?;
    let in_directory = |error: DirectoryError| PackDamage::Directory(error.to_string());
    let short = || in_directory(DirectoryError("no room for a trailer"));
    let trailer = tail.len().checked_sub(TRAILER_BYTES).ok_or_else(short)?;
    let directory_bytes = directory_length(&tail[trailer..], size_bytes).map_err(in_directory)?;
    let directory = trailer.checked_sub(directory_bytes).ok_or_else(short)?;
    let chunks_end = size_bytes - (TRAILER_BYTES + directory_bytes) as u64;
    let (kind, entries) = open_directory(&tail[directory..trailer], &sealer, chunks_end).map_err(in_directory)?;
    if tail[trailer + 4..trailer + 8] != (entries.len() as u32).to_le_bytes() {
        return Err(in_directory(DirectoryError("the trailer counts other chunks")));
    }
    let info = PackInfo {
        key,
        size_bytes: size_bytes as u32,
        kind,
        cipher: header.cipher,
        generation: header.generation,
        salt: header.salt,
    };
    Ok((PackListing { info, entries }, sealer))
}

/// The length of the sealed directory, from a pack's last 16 bytes.
fn directory_length(trailer: &[u8], size_bytes: u64) -> Result<usize, DirectoryError> {
    let trailer: &[u8; TRAILER_BYTES] = trailer
        .try_into()
        .map_err(|_| DirectoryError("no room for a trailer"))?;
    if &trailer[8..] != TRAILER_MAGIC {
        return Err(DirectoryError("the trailer is missing: the pack is cut short"));
    }
    let length = u64::from(u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]));
    let room = size_bytes
        .min(PACK_LIMIT_BYTES)
        .saturating_sub((HEADER_BYTES + TRAILER_BYTES) as u64);
    if length > room {
        return Err(DirectoryError("a directory longer than its pack"));
    }
    Ok(length as usize)
}

fn open_directory(sealed: &[u8], sealer: &Sealer, chunks_end: u64) -> Result<(ChunkKind, Vec<Entry>), DirectoryError> {
    let mut plain = vec![0; sealed.len().saturating_sub(TAG_BYTES)];
    sealer
        .open_into(DIRECTORY_POSITION, sealed, &mut plain)
        .map_err(|_| DirectoryError("its seal is broken"))?;
    let (kind, mut rest) = plain.split_first().ok_or(DirectoryError("it is empty"))?;
    let kind = ChunkKind::of(*kind).ok_or(DirectoryError("a kind of pack that is not known"))?;
    let entries = directory::decode_entries(&mut rest, chunks_end)?;
    if rest.is_empty() {
        Ok((kind, entries))
    } else {
        Err(DirectoryError("bytes after its end"))
    }
}

/// Opens every chunk of a pack and hashes it; gives what is damaged.
pub(crate) fn check_chunks(bytes: &[u8], entries: &[Entry], sealer: &Sealer, hasher: &ChunkHasher) -> Vec<PackDamage> {
    let mut decoder = Decoder::new();
    let mut plain = Vec::new();
    let mut damage = Vec::new();
    let mut at = HEADER_BYTES;
    for (ordinal, entry) in entries.iter().enumerate() {
        let ordinal = ordinal as u32;
        let end = at + entry.stored_bytes as usize;
        let shape = ChunkShape {
            ordinal,
            stored_bytes: entry.stored_bytes,
            plain_bytes: entry.plain_bytes,
            compressed: entry.compressed,
        };
        let sealed = bytes.get(at..end).unwrap_or_default();
        if let Err(error) = open_chunk(sealer, hasher, &entry.id, shape, sealed, &mut decoder, &mut plain) {
            damage.push(PackDamage::Chunk {
                id: entry.id,
                ordinal,
                what: error.to_string(),
            });
        }
        at = end;
    }
    damage
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::ids::{MachineNumber, SessionNumber};
    use crate::key::Cipher;
    use crate::pack::{Acquired, Encoder, PackPool};

    const VAULT: VaultId = VaultId([6; 16]);
    const KEY: PackKey = PackKey {
        machine: MachineNumber(1),
        session: SessionNumber(2),
        number: 3,
    };

    fn ring() -> KeyRing {
        KeyRing::new(VAULT, Cipher::Aes256Gcm, &[Zeroizing::new([1; 32])]).unwrap()
    }

    fn build(chunks: &[Vec<u8>], ring: &KeyRing) -> SealedPack {
        let Acquired::Buffer(buffer) = PackPool::get().acquire(false) else {
            panic!("nothing is open")
        };
        let mut builder = PackBuilder::new(buffer, ChunkKind::Data);
        let hasher = ChunkHasher::new(*ring.chunk_ids());
        let mut encoder = Encoder::new();
        for chunk in chunks {
            let (body, compressed) = encoder.encode(chunk);
            builder.push(hasher.id(chunk), body, chunk.len(), compressed);
        }
        builder.seal(ring, VAULT, KEY)
    }

    fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let chunk =
            (proptest::collection::vec(any::<u8>(), 1..40), 1usize..200).prop_map(|(piece, times)| piece.repeat(times));
        proptest::collection::vec(chunk, 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_pack_reads_back(chunks in chunks()) {
            let ring = ring();
            let hasher = ChunkHasher::new(*ring.chunk_ids());
            let pack = build(&chunks, &ring);
            prop_assert_eq!(pack.prove(&ring, VAULT, &hasher), Ok(()));
            let (listing, sealer) = read_pack(&pack.bytes, &ring, VAULT, KEY).unwrap();
            let mut at = HEADER_BYTES;
            let mut plain = Vec::new();
            for (ordinal, (entry, chunk)) in listing.entries.iter().zip(&chunks).enumerate() {
                let end = at + entry.stored_bytes as usize;
                let shape = ChunkShape {
                    ordinal: ordinal as u32,
                    stored_bytes: entry.stored_bytes,
                    plain_bytes: entry.plain_bytes,
                    compressed: entry.compressed,
                };
                let sealed = &pack.bytes[at..end];
                open_chunk(&sealer, &hasher, &entry.id, shape, sealed, &mut Decoder::new(), &mut plain).unwrap();
                prop_assert_eq!(&plain, chunk);
                at = end;
            }
        }

        #[test]
        fn a_flipped_bit_anywhere_in_a_pack_is_found(chunks in chunks(), flip in any::<prop::sample::Index>()) {
            let ring = ring();
            let hasher = ChunkHasher::new(*ring.chunk_ids());
            let pack = build(&chunks, &ring);
            let mut bytes = pack.bytes.to_vec();
            let at = flip.index(bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let damaged = SealedPack { listing: pack.listing.clone(), bytes: bytes.into() };
            prop_assert!(damaged.prove(&ring, VAULT, &hasher).is_err());
        }

        #[test]
        fn garbage_is_no_pack(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read_pack(&bytes, &ring(), VAULT, KEY).is_err());
        }
    }
}
