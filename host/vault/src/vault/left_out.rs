//! The rules of the protocol that a test can leave out, to see that it notices.

/// A rule that is not kept. Each of them loses points, and the simulation shows that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// The clean-up log is read after the session exists.
    LogAfterSession,
    /// Nothing new relies on a condemned pack.
    CondemnedPacks,
    /// A session names the bases that it inherits from.
    PinnedBases,
    /// Condemned packs wait until every session is decided that may rely on them.
    Drain,
    /// Whom a condemned pack waits for is read after it was condemned.
    WaitsAfterCondemn,
    /// A session that has outlived its deadline is fenced before it counts as decided.
    Fence,
    /// What lives in a pack is somewhere else before the pack goes.
    MovedBeforeDeleted,
}

impl LeftOut {
    pub const ALL: [Self; 7] = [
        Self::LogAfterSession,
        Self::CondemnedPacks,
        Self::PinnedBases,
        Self::Drain,
        Self::WaitsAfterCondemn,
        Self::Fence,
        Self::MovedBeforeDeleted,
    ];
}
