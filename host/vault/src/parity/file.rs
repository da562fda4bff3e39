//! A parity object, and mending a pack by it. Pure computing.
//!
//! ```text
//! head     magic "COFFPAR1" | block size u32 LE | blocks of the pack u32 LE | parity blocks u32 LE | pack's size u64 LE
//!          | BLAKE3 of the pack (32) | for each block of the pack, then each parity block: 8 bytes of its BLAKE3 | BLAKE3 of
//!          all this (32)
//! blocks   the parity blocks
//! head     once more, since a lost sector may lie anywhere
//! end      the head's size u32 LE
//! ```
//! The pack's last block is filled with zeroes. The code is the one of the crate `reed-solomon-simd` (Leopard's, over
//! GF(2^16)): of blocks and parity blocks together, as many as the pack has blocks give all of them. It tells nothing of where
//! damage is, which the hashes do.

use std::ops::Range;

use bytes::{Buf, BufMut};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use super::Parity;

const MAGIC: &[u8; 8] = b"COFFPAR1";
/// What disks lose at once.
pub(super) const BLOCK_BYTES: usize = 4096;
const BLOCK_HASH_BYTES: usize = 8;
const FIXED_BYTES: usize = 8 + 4 + 4 + 4 + 8 + blake3::OUT_LEN;
/// Of blocks and parity blocks together: the code has no more, and a pack of 64 MiB has 16,384 with as many parity blocks.
const BLOCKS_LIMIT: usize = 1 << 15;

/// Why a pack could not be mended.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum NotMended {
    #[error("its parity is damaged")]
    Parity,
    #[error("{lost} of its {blocks} blocks are damaged, and its parity mends {whole}")]
    TooMuch { lost: usize, blocks: usize, whole: usize },
    #[error("its parity is of other bytes")]
    OtherBytes,
    #[error("its bytes are what they were when its parity was made")]
    NotDamaged,
    #[error("{0}")]
    Code(#[from] reed_solomon_simd::Error),
}

/// A pack as it was.
#[derive(Debug)]
pub(crate) struct Mended {
    pub(crate) bytes: Vec<u8>,
    /// The ranges that were not.
    pub(crate) ranges: Vec<Range<u64>>,
}

struct Head {
    blocks: usize,
    parity_blocks: usize,
    pack_bytes: usize,
    pack_hash: blake3::Hash,
    /// Of the blocks, then of the parity blocks.
    hashes: Vec<[u8; BLOCK_HASH_BYTES]>,
}

impl Head {
    fn bytes(blocks: usize, parity_blocks: usize) -> usize {
        FIXED_BYTES + (blocks + parity_blocks) * BLOCK_HASH_BYTES + blake3::OUT_LEN
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::bytes(self.blocks, self.parity_blocks));
        out.put_slice(MAGIC);
        out.put_u32_le(BLOCK_BYTES as u32);
        out.put_u32_le(self.blocks as u32);
        out.put_u32_le(self.parity_blocks as u32);
        out.put_u64_le(self.pack_bytes as u64);
        out.put_slice(self.pack_hash.as_bytes());
        self.hashes.iter().for_each(|hash| out.put_slice(hash));
        let hash = blake3::hash(&out);
        out.put_slice(hash.as_bytes());
        out
    }

    /// Of bytes that begin with a head.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fixed = bytes.get(..FIXED_BYTES)?.strip_prefix(MAGIC)?;
        let block_bytes = fixed.get_u32_le() as usize;
        let (blocks, parity_blocks) = (fixed.get_u32_le() as usize, fixed.get_u32_le() as usize);
        let pack_bytes = usize::try_from(fixed.get_u64_le()).ok()?;
        let pack_hash = blake3::Hash::from_slice(fixed).ok()?;
        let is_possible = block_bytes == BLOCK_BYTES
            && blocks > 0
            && parity_blocks > 0
            && blocks.checked_add(parity_blocks)? <= BLOCKS_LIMIT
            && pack_bytes.div_ceil(BLOCK_BYTES) == blocks;
        if !is_possible {
            return None;
        }
        let (head, hash) = bytes
            .get(..Self::bytes(blocks, parity_blocks))?
            .split_last_chunk::<{ blake3::OUT_LEN }>()?;
        if blake3::hash(head).as_bytes() != hash {
            return None;
        }
        let hashes = head[FIXED_BYTES..].chunks_exact(BLOCK_HASH_BYTES);
        Some(Self {
            blocks,
            parity_blocks,
            pack_bytes,
            pack_hash,
            hashes: hashes.filter_map(|hash| hash.try_into().ok()).collect(),
        })
    }

    /// The one at the front, or the one at the end; and where the parity blocks begin.
    fn find(object: &[u8]) -> Option<(Self, usize)> {
        if let Some(head) = Self::decode(object) {
            let at = Self::bytes(head.blocks, head.parity_blocks);
            return Some((head, at));
        }
        let (rest, size) = object.split_last_chunk::<4>()?;
        let start = rest.len().checked_sub(u32::from_le_bytes(*size) as usize)?;
        let head = Self::decode(&rest[start..])?;
        let at = start.checked_sub(head.parity_blocks * BLOCK_BYTES)?;
        Some((head, at))
    }
}

fn hash_of(block: &[u8]) -> [u8; BLOCK_HASH_BYTES] {
    let mut hash = [0; BLOCK_HASH_BYTES];
    hash.copy_from_slice(&blake3::hash(block).as_bytes()[..BLOCK_HASH_BYTES]);
    hash
}

/// One block, filled up with zeroes; bytes that are not there are zeroes.
fn block(pack: &[u8], number: usize) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let bytes = pack.get(number * BLOCK_BYTES..).unwrap_or_default();
    let length = bytes.len().min(BLOCK_BYTES);
    block[..length].copy_from_slice(&bytes[..length]);
    block
}

/// The parity object of a pack.
pub(crate) fn encode(pack: &[u8], parity: Parity) -> Result<Vec<u8>, reed_solomon_simd::Error> {
    let blocks = pack.len().div_ceil(BLOCK_BYTES).max(1);
    let parity_blocks = parity.blocks_for(blocks);
    let mut encoder = ReedSolomonEncoder::new(blocks, parity_blocks, BLOCK_BYTES)?;
    let mut hashes = Vec::with_capacity(blocks + parity_blocks);
    for number in 0..blocks {
        let block = block(pack, number);
        hashes.push(hash_of(&block));
        encoder.add_original_shard(block)?;
    }
    let encoded = encoder.encode()?;
    hashes.extend(encoded.recovery_iter().map(hash_of));
    let head = Head {
        blocks,
        parity_blocks,
        pack_bytes: pack.len(),
        pack_hash: blake3::hash(pack),
        hashes,
    };
    let head = head.encode();
    let mut out = Vec::with_capacity(2 * head.len() + parity_blocks * BLOCK_BYTES + 4);
    out.put_slice(&head);
    encoded.recovery_iter().for_each(|block| out.put_slice(block));
    out.put_slice(&head);
    out.put_u32_le(head.len() as u32);
    Ok(out)
}

/// A pack as it was when its parity was made, out of what is left of both.
pub(crate) fn mend(object: &[u8], damaged: &[u8]) -> Result<Mended, NotMended> {
    let (head, at) = Head::find(object).ok_or(NotMended::Parity)?;
    let whole = &damaged[..damaged.len().min(head.pack_bytes)];
    let (of_blocks, of_parity) = head.hashes.split_at(head.blocks);
    let mut lost: Vec<usize> = Vec::new();
    for (number, wanted) in of_blocks.iter().enumerate() {
        // A block that the file ends before or in is lost also where it was zeroes.
        let is_there = whole.len() >= head.pack_bytes.min((number + 1) * BLOCK_BYTES);
        if !is_there || hash_of(&block(whole, number)) != *wanted {
            lost.push(number);
        }
    }
    let parity: Vec<(usize, &[u8])> = (of_parity.iter().enumerate())
        .filter_map(|(number, wanted)| {
            let start = at + number * BLOCK_BYTES;
            let block = object.get(start..start + BLOCK_BYTES)?;
            (hash_of(block) == *wanted).then_some((number, block))
        })
        .collect();
    if lost.is_empty() {
        // Longer than it was is the only damage that is left.
        return match damaged.len() > head.pack_bytes && blake3::hash(whole) == head.pack_hash {
            true => Ok(Mended {
                bytes: whole.to_vec(),
                ranges: Vec::new(),
            }),
            false => Err(NotMended::NotDamaged),
        };
    }
    if lost.len() > parity.len() {
        return Err(NotMended::TooMuch {
            lost: lost.len(),
            blocks: head.blocks,
            whole: parity.len(),
        });
    }
    let mut bytes = whole.to_vec();
    bytes.resize(head.blocks * BLOCK_BYTES, 0);
    let mut decoder = ReedSolomonDecoder::new(head.blocks, head.parity_blocks, BLOCK_BYTES)?;
    let mut missing = lost.iter().peekable();
    for (number, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
        if missing.next_if(|lost| **lost == number).is_none() {
            decoder.add_original_shard(number, block)?;
        }
    }
    for (number, block) in parity {
        decoder.add_recovery_shard(number, block)?;
    }
    let decoded = decoder.decode()?;
    for (number, block) in decoded.restored_original_iter() {
        let start = number * BLOCK_BYTES;
        bytes[start..start + BLOCK_BYTES].copy_from_slice(block);
    }
    bytes.truncate(head.pack_bytes);
    if blake3::hash(&bytes) != head.pack_hash {
        return Err(NotMended::OtherBytes);
    }
    let ranges = lost.iter().map(|number| {
        let start = (number * BLOCK_BYTES) as u64;
        start..(start + BLOCK_BYTES as u64).min(head.pack_bytes as u64)
    });
    Ok(Mended {
        ranges: ranges.collect(),
        bytes,
    })
}
