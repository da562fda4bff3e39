//! Compression, with one zstd context per thread.

use std::io;

use zstd::bulk::{Compressor, Decompressor};

/// zstd's fastest positive level: on two cores, higher ones cost more time than they save in bytes.
const LEVEL: i32 = 1;

/// Compresses chunks; one per thread.
pub struct Encoder {
    compressor: Compressor<'static>,
    buffer: Vec<u8>,
}

impl Encoder {
    /// # Panics
    /// If there is no memory for a context (about 1 MiB).
    pub fn new() -> Self {
        let compressor = Compressor::new(LEVEL).expect("memory for a zstd context");
        Self {
            compressor,
            buffer: Vec::new(),
        }
    }

    /// The bytes to store and whether they are compressed. What gains less than 1/16 is stored as it is, which makes it
    /// cheaper to read.
    pub(crate) fn encode<'a>(&'a mut self, plain: &'a [u8]) -> (&'a [u8], bool) {
        let limit = plain.len() - plain.len() / 16;
        self.buffer.clear();
        // The whole bound, since zstd is faster where it need not check for room.
        self.buffer.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        match self.compressor.compress_to_buffer(plain, &mut self.buffer) {
            Ok(length) if length < limit => (&self.buffer[..length], true),
            Ok(_) | Err(_) => (plain, false),
        }
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

/// Decompresses chunks; one per thread.
pub struct Decoder {
    decompressor: Decompressor<'static>,
    /// What was opened and still is compressed.
    pub(super) opened: Vec<u8>,
}

impl Decoder {
    /// # Panics
    /// If there is no memory for a context (about 160 KiB).
    pub fn new() -> Self {
        let decompressor = Decompressor::new().expect("memory for a zstd context");
        Self {
            decompressor,
            opened: Vec::new(),
        }
    }

    /// Decompresses `opened` to exactly `plain_bytes`.
    pub(super) fn decompress(&mut self, plain_bytes: usize, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        out.reserve(plain_bytes);
        // The capacity may be larger than what was reserved: a frame that gives more is still found by the length.
        let length = self.decompressor.decompress_to_buffer(&self.opened, out)?;
        if length == plain_bytes {
            Ok(())
        } else {
            Err(io::Error::other("the frame holds another number of bytes"))
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}
