//! The seam to freezing: a machine's file systems come to rest for the instant of its snapshot.
//!
//! Every freeze is owed to the guard before it happens (see `coffre_guard`); what fills this seam for real is a guard, tests
//! fill it with one that freezes nothing.

use std::path::PathBuf;
use std::time::Instant;

use coffre_guard::{FreezeError, Frozen, Owner, Thawed};

/// Freezes file systems. Its calls block.
///
/// `look` is called before applications are disturbed, and disturbs nothing. `freeze` is called once per job, after the last
/// `pre`; it freezes all or nothing. What it gives is thawed right after the snapshot, or at the deadline by whoever is
/// there; it is safe to drop, and then thawed.
pub trait Freezer: Send + Sync {
    /// Refuses what must not be frozen, or cannot be, as far as that can be known.
    fn look(&self, mounts: &[PathBuf]) -> Result<(), FreezeError>;
    fn freeze(
        &self,
        owner: &Owner,
        mounts: &[PathBuf],
        deadline: Instant,
    ) -> Result<Box<dyn FrozenMounts>, FreezeError>;
}

/// File systems that are frozen.
pub trait FrozenMounts: Send {
    fn thaw(self: Box<Self>) -> Thawed;
}

impl FrozenMounts for Frozen {
    fn thaw(self: Box<Self>) -> Thawed {
        Self::thaw(*self)
    }
}
