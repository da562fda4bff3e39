//! Chunks kept because a later window may need them again: gathered chunks hold runs from far apart.

use std::collections::HashMap;
use std::sync::Arc;

use coffre_vault::ChunkId;
use parking_lot::Mutex;

/// Plain bytes kept for all disks of a restore.
const KEPT_BYTES: usize = 64 << 20;

/// A bounded set of plain chunks; the one unused for longest goes first.
#[derive(Default)]
pub struct KeptChunks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: HashMap<ChunkId, (u64, Arc<Vec<u8>>)>,
    bytes: usize,
    clock: u64,
}

impl KeptChunks {
    pub fn get(&self, id: &ChunkId) -> Option<Arc<Vec<u8>>> {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        let (used, plain) = state.chunks.get_mut(id)?;
        *used = now;
        Some(plain.clone())
    }

    pub fn keep(&self, id: ChunkId, plain: Arc<Vec<u8>>) {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        state.bytes += plain.len();
        if let Some((_, before)) = state.chunks.insert(id, (now, plain)) {
            state.bytes -= before.len();
        }
        if state.bytes > KEPT_BYTES {
            // Makes room for a quarter at once, so that the search for the oldest is rare.
            let mut by_age: Vec<(u64, ChunkId)> = state.chunks.iter().map(|(id, (used, _))| (*used, *id)).collect();
            by_age.sort_unstable();
            for (_, id) in by_age {
                if state.bytes <= KEPT_BYTES / 4 * 3 {
                    break;
                }
                if let Some((_, plain)) = state.chunks.remove(&id) {
                    state.bytes -= plain.len();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_the_bound_is_reached() {
        let kept = KeptChunks::default();
        let id = |number: u32| {
            let mut bytes = [0; ChunkId::LENGTH];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            ChunkId(bytes)
        };
        let chunk = Arc::new(vec![0; 128 << 10]);
        for number in 0..1000 {
            kept.keep(id(number), chunk.clone());
            kept.get(&id(0));
        }
        assert!(kept.state.lock().bytes <= KEPT_BYTES);
        assert!(kept.get(&id(0)).is_some());
        assert!(kept.get(&id(1)).is_none());
        assert!(kept.get(&id(999)).is_some());
    }
}
