//! The map's fixed sizes.

/// What a provider or device can address at the least.
pub const SECTOR_BYTES: u64 = 512;
/// The usual unit of change.
pub const PAGE_BYTES: u64 = 4 << 10;
/// An aligned chunk holds one whole slot.
pub const SLOT_BYTES: u64 = 128 << 10;
pub const SLOTS_PER_LEAF: u64 = 64;
/// What one leaf covers.
pub const LEAF_BYTES: u64 = SLOT_BYTES * SLOTS_PER_LEAF;
/// Children of an inner node.
pub const FANOUT: usize = 128;
/// 2 EiB: past every disk there is, and the bound for readers.
pub const MAX_LEVEL: u8 = 5;

/// The bytes that a node of this level covers: 8 MiB, 1 GiB, 128 GiB, 16 TiB, 2 PiB, 256 PiB.
pub const fn span_bytes(level: u8) -> u64 {
    LEAF_BYTES << (7 * level as u32)
}

/// The lowest level that covers a disk of this size.
pub fn root_level(size_bytes: u64) -> u8 {
    (0..MAX_LEVEL)
        .find(|level| size_bytes <= span_bytes(*level))
        .unwrap_or(MAX_LEVEL)
}
