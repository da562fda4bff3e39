//! The index: which pack holds which chunk. The truth is the index pieces in the vault; this is a copy of them on local disk
//! that can be thrown away.

mod compact;
mod local;
mod manifest;
mod merge;
mod packs;
mod recent;
mod record;
mod run;
mod sync;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use compact::{CompactIndex, Group};
pub(crate) use local::LocalIndex;
pub(crate) use merge::Merged;
pub(crate) use packs::PackSet;
pub(crate) use record::Found;
pub(crate) use sync::{blocking, load_counted, read_piece, sync};
