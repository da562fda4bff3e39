//! How much later than due: by the machine's own delay, and after failures.

use std::time::Duration;

use jiff::Timestamp;

use super::Plan;

/// After the first failure; what passes by itself (a restart, a busy store) mostly passes within it.
const FIRST: Duration = Duration::from_secs(60);
/// Delays double up to this: often enough that an outage of hours is over soon after it is over.
const MOST: Duration = Duration::from_secs(3600);

/// How long to wait after so many attempts.
pub(super) fn delay(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    (FIRST * (1 << doublings)).min(MOST)
}

/// When a job that failed is tried again, if that is within its window and before the machine is due again.
pub(super) fn next(plan: &Plan, due: Timestamp, attempts: u32, now: Timestamp) -> Option<Timestamp> {
    let at = now.checked_add(delay(attempts)).ok()?;
    let until = due.checked_add(plan.retry_within).unwrap_or(Timestamp::MAX);
    let due_again = plan.schedule.next_after(due);
    (at <= until && due_again.is_none_or(|next| at < next)).then_some(at)
}

/// The machine's own part of the jitter: of many machines with one schedule, not all begin at once, and each always at
/// the same time, so that its points are as far apart as the schedule says.
pub(super) fn jitter(machine: &str, most: Duration) -> Duration {
    let most_ms = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    if most_ms == 0 {
        return Duration::ZERO;
    }
    let hash = blake3::hash(machine.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    Duration::from_millis(u64::from_le_bytes(first) % most_ms)
}
