//! The only place that asks what time it is, so that tests can say it.

use jiff::Timestamp;

/// Wall time, for records that people read; never for deciding whether data may go (the store's own time does that).
pub trait Clock: Send + Sync {
    /// Now. May jump backwards when the operator sets the clock.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
