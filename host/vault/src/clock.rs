//! What time it is, as this host sees it. Safety never rests on it: what may be deleted is decided by the store's time.

use std::fmt::Debug;

use jiff::Timestamp;

/// Asked whenever a record says when it was written. Never blocks; may go backwards.
pub trait Clock: Debug + Send + Sync {
    fn now(&self) -> Timestamp;
}

/// The host's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
