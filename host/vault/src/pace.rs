//! What slows down on purpose: a seam that packs and requests ask before they go to a store.

use async_trait::async_trait;

/// Lets bytes and requests go one after the other, no faster than somebody allows.
#[async_trait]
pub trait Pace: Send + Sync + std::fmt::Debug {
    /// Ends once so many bytes may go. May be dropped before.
    async fn admit(&self, bytes: u64);

    /// From now on everything may go at once: whoever waits for these bytes wants to end.
    fn let_go(&self);
}
