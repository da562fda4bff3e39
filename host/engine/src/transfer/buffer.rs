//! The buffers that bytes are read into, and the bound on how many there are.

use crossbeam_channel::{Receiver, Sender, bounded};

use super::segment::SEGMENT_BYTES;

/// Segments of one disk between planner and assembler: enough to keep the cores busy while one read is slow.
pub const PER_DISK: usize = 12;
/// Buffers of all disks: what memory the transfer may use beside packs (24 MiB).
const IN_ALL: usize = 24;

/// A pool of segment buffers; taking one waits until one is free.
pub struct Buffers {
    free: Receiver<Vec<u8>>,
    back: Sender<Vec<u8>>,
}

impl Buffers {
    pub fn new() -> Self {
        let (back, free) = bounded(IN_ALL);
        for _ in 0..IN_ALL {
            // Empty vectors take no memory until first use.
            let _ = back.send(Vec::new());
        }
        Self { free, back }
    }

    /// A buffer of one segment, its content whatever was in it before.
    pub fn take(&self) -> Buffer {
        // The pool holds its own sender, so the channel cannot be closed.
        let mut bytes = self.free.recv().unwrap_or_default();
        bytes.resize(SEGMENT_BYTES as usize, 0);
        Buffer {
            bytes,
            back: self.back.clone(),
        }
    }
}

/// A buffer that goes back to its pool by itself.
pub struct Buffer {
    bytes: Vec<u8>,
    back: Sender<Vec<u8>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.back.try_send(std::mem::take(&mut self.bytes));
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
