//! A small cache of pack blocks. Map nodes that are read one after the other lie beside each other in their pack, so a block
//! around each saves most requests.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::{ChunkReader, PackRef, ReadError};
use crate::object::PackKey;

const BLOCK_BYTES: u64 = 256 * 1024;
/// 8 MiB in all.
const BLOCKS: usize = 32;

/// The blocks that were used last.
#[derive(Default)]
pub(super) struct BlockCache {
    blocks: Mutex<VecDeque<(PackKey, u64, Bytes)>>,
}

impl BlockCache {
    /// The bytes of a range, which lies within the pack.
    pub(super) async fn read(
        &self,
        reader: &ChunkReader,
        pack: &Arc<PackRef>,
        range: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        let start = blocks.start * BLOCK_BYTES;
        let cached: Option<Vec<Bytes>> = blocks.clone().map(|block| self.get(pack.info.key, block)).collect();
        let whole = match cached {
            Some(parts) => join(parts),
            None => {
                let end = (blocks.end * BLOCK_BYTES).min(pack.size_bytes()).max(range.end);
                let bytes = match reader.fetch(pack, start..end).await {
                    // The pack may be cut short behind what is asked for.
                    Err(ReadError::Damaged { .. }) => return reader.fetch(pack, range).await,
                    other => other?,
                };
                for block in blocks {
                    let from = ((block * BLOCK_BYTES - start) as usize).min(bytes.len());
                    let to = (from + BLOCK_BYTES as usize).min(bytes.len());
                    self.put(pack.info.key, block, bytes.slice(from..to));
                }
                bytes
            }
        };
        let from = (range.start - start) as usize;
        let to = (range.end - start) as usize;
        if to > whole.len() {
            return Err(ReadError::Damaged {
                object: pack.info.key.object(),
                what: "it is cut short".to_owned(),
            });
        }
        Ok(whole.slice(from..to))
    }

    fn get(&self, pack: PackKey, block: u64) -> Option<Bytes> {
        let mut blocks = self.blocks.lock();
        let at = blocks
            .iter()
            .position(|(key, number, _)| (*key, *number) == (pack, block))?;
        let found = blocks.remove(at)?;
        let bytes = found.2.clone();
        blocks.push_back(found);
        Some(bytes)
    }

    fn put(&self, pack: PackKey, block: u64, bytes: Bytes) {
        let mut blocks = self.blocks.lock();
        blocks.retain(|(key, number, _)| (*key, *number) != (pack, block));
        if blocks.len() == BLOCKS {
            blocks.pop_front();
        }
        blocks.push_back((pack, block, bytes));
    }
}

fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return only;
    }
    let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in parts {
        all.extend_from_slice(&part);
    }
    all.freeze()
}
