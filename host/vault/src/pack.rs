//! Packs: immutable objects that hold many sealed chunks.

/// What a chunk holds. Nodes lie in packs of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkKind {
    Data,
    Node,
}

/// Compresses chunks; one per thread.
#[derive(Default)]
pub struct Encoder {}

impl Encoder {
    pub fn new() -> Self {
        Self::default()
    }
}

/// Decompresses chunks; one per thread.
#[derive(Default)]
pub struct Decoder {}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }
}
