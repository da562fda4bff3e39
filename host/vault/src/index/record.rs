//! The records of the local index: one for each place of a chunk, one for each pack. What is found by its key comes first, so
//! that records sort by it.

use super::run::KEY_BYTES;
use crate::ids::ChunkId;
use crate::object::{PackKey, SALT_BYTES};
use crate::pack::{ChunkKind, ChunkShape, PackInfo};

pub(super) const CHUNK_RECORD: usize = KEY_BYTES + 12 + 4 * 4;
pub(super) const PACK_RECORD: usize = KEY_BYTES + 12 + 4 + 1 + 1 + 4 + SALT_BYTES;
const COMPRESSED: u32 = 1 << 31;

/// One place of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) pack: PackKey,
    pub(crate) offset_bytes: u32,
    pub(crate) shape: ChunkShape,
}

/// Packs are found by a hash of their name, so that one kind of run serves both tables.
pub(super) fn pack_hash(key: &PackKey) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    out.copy_from_slice(&blake3::hash(&key.to_bytes()).as_bytes()[..KEY_BYTES]);
    out
}

pub(super) fn encode_chunk(id: &ChunkId, found: &Found) -> [u8; CHUNK_RECORD] {
    let mut record = [0; CHUNK_RECORD];
    let plain = found.shape.plain_bytes | if found.shape.compressed { COMPRESSED } else { 0 };
    record[..20].copy_from_slice(id.as_bytes());
    record[20..32].copy_from_slice(&found.pack.to_bytes());
    record[32..36].copy_from_slice(&found.shape.ordinal.to_le_bytes());
    record[36..40].copy_from_slice(&found.offset_bytes.to_le_bytes());
    record[40..44].copy_from_slice(&found.shape.stored_bytes.to_le_bytes());
    record[44..48].copy_from_slice(&plain.to_le_bytes());
    record
}

pub(super) fn decode_chunk(record: &[u8; CHUNK_RECORD]) -> Found {
    let number = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let mut key = [0; 12];
    key.copy_from_slice(&record[20..32]);
    Found {
        pack: PackKey::from_bytes(&key),
        offset_bytes: number(36),
        shape: ChunkShape {
            ordinal: number(32),
            stored_bytes: number(40),
            plain_bytes: number(44) & !COMPRESSED,
            compressed: number(44) & COMPRESSED != 0,
        },
    }
}

pub(super) fn encode_pack(info: &PackInfo) -> [u8; PACK_RECORD] {
    let mut record = [0; PACK_RECORD];
    record[..20].copy_from_slice(&pack_hash(&info.key));
    record[20..32].copy_from_slice(&info.key.to_bytes());
    record[32..36].copy_from_slice(&info.size_bytes.to_le_bytes());
    record[36] = info.kind.number();
    record[37] = info.cipher;
    record[38..42].copy_from_slice(&info.generation.to_le_bytes());
    record[42..].copy_from_slice(&info.salt);
    record
}

pub(super) fn decode_pack(record: &[u8; PACK_RECORD]) -> Option<PackInfo> {
    let number = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let mut key = [0; 12];
    key.copy_from_slice(&record[20..32]);
    let mut salt = [0; SALT_BYTES];
    salt.copy_from_slice(&record[42..]);
    Some(PackInfo {
        key: PackKey::from_bytes(&key),
        size_bytes: number(32),
        kind: ChunkKind::of(record[36])?,
        cipher: record[37],
        generation: number(38),
        salt,
    })
}

pub(super) fn pack_of_chunk(record: &[u8; CHUNK_RECORD]) -> PackKey {
    pack_at(record)
}

pub(super) fn pack_of_pack(record: &[u8; PACK_RECORD]) -> PackKey {
    pack_at(record)
}

/// In both tables it stands behind what the record is found by.
fn pack_at(record: &[u8]) -> PackKey {
    let mut key = [0; 12];
    key.copy_from_slice(&record[20..32]);
    PackKey::from_bytes(&key)
}
