//! Bandwidth and requests that all jobs of this process share, fairly and by the time of day.
//!
//! Bytes are paid for before they go: a pack waits until the line has had time for it, so no more than the cap ever goes in any
//! span of time but the one pack that was paid for. Of jobs that wait, the one that had the least so far is next, so each
//! has an equal share however large its packs are; a job that comes later begins with what the others have had. What
//! the caps are is asked again all the time, so they change while packs wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coffre_vault::Pace;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::TransferConfig;

#[cfg(test)]
mod tests;

/// How long somebody sleeps at most before the caps are asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What may go per second; none: as much as can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    pub bytes: Option<u64>,
    pub requests: Option<u64>,
}

/// What all jobs of a process share.
#[derive(Clone)]
pub struct Pacer {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    config: Mutex<Arc<TransferConfig>>,
    bytes: Line,
    requests: Line,
}

/// One thing of which only so much goes per second.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    next_ticket: u64,
    /// By ticket, which is the order of arrival.
    waiting: BTreeMap<u64, Waiting>,
    /// Paid so far for whoever is next.
    paid: f64,
    paid_at: Option<Instant>,
    /// Where the one that went last had begun, in units of what a share has had (start-time fair queueing; Goyal, Vin and
    /// Cheng, 1996).
    virtual_time: u64,
    /// Where the next one of each share begins, if that is later.
    finish: BTreeMap<u64, u64>,
    next_share: u64,
}

#[derive(Clone, Copy)]
struct Waiting {
    start: u64,
    amount: u64,
}

impl Pacer {
    pub fn new(config: TransferConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock,
                config: Mutex::new(Arc::new(config)),
                bytes: Line::default(),
                requests: Line::default(),
            }),
        }
    }

    /// Takes new caps over, also for what waits already.
    pub fn reload(&self, config: TransferConfig) {
        *self.shared.config.lock() = Arc::new(config);
        self.shared.bytes.changed.notify_waiters();
        self.shared.requests.changed.notify_waiters();
    }

    /// One job's fair share of the bandwidth.
    pub fn share(&self) -> Arc<dyn Pace> {
        Arc::new(Share {
            number: self.shared.bytes.open_share(),
            shared: Arc::clone(&self.shared),
            what: What::Bytes,
            let_go: AtomicBool::new(false),
        })
    }

    /// For a store: each request, whatever its bytes.
    pub fn requests(&self) -> Arc<dyn Pace> {
        Arc::new(Share {
            number: self.shared.requests.open_share(),
            shared: Arc::clone(&self.shared),
            what: What::Requests,
            let_go: AtomicBool::new(false),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Bytes,
    Requests,
}

struct Share {
    number: u64,
    shared: Arc<Shared>,
    what: What,
    let_go: AtomicBool,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Share({}, {:?})", self.number, self.what)
    }
}

impl Share {
    fn line(&self) -> &Line {
        match self.what {
            What::Bytes => &self.shared.bytes,
            What::Requests => &self.shared.requests,
        }
    }

    fn cap(&self, now: Timestamp) -> Option<u64> {
        let caps = self.shared.config.lock().caps(now);
        match self.what {
            What::Bytes => caps.bytes,
            What::Requests => caps.requests,
        }
    }
}

#[async_trait]
impl Pace for Share {
    async fn admit(&self, bytes: u64) {
        let amount = match self.what {
            What::Bytes => bytes,
            What::Requests => 1,
        };
        let line = self.line();
        let ticket = Ticket::take(line, self.number, amount);
        loop {
            let changed = line.changed.notified();
            tokio::pin!(changed);
            // Listening before looking: a change in between is not missed.
            changed.as_mut().enable();
            if self.let_go.load(Ordering::Relaxed) {
                return;
            }
            let cap = self.cap(self.shared.clock.now());
            let Some(wait) = line.pay(ticket.number, cap, Instant::now()) else {
                return;
            };
            let _ = tokio::time::timeout(wait.min(ASK_AGAIN), changed).await;
        }
    }

    fn let_go(&self) {
        self.let_go.store(true, Ordering::Relaxed);
        self.line().changed.notify_waiters();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.line().state.lock().finish.remove(&self.number);
    }
}

/// A place in the queue; it is given back however the wait ends.
struct Ticket<'a> {
    line: &'a Line,
    number: u64,
}

impl<'a> Ticket<'a> {
    fn take(line: &'a Line, share: u64, amount: u64) -> Self {
        let mut state = line.state.lock();
        // Who did not wait lately has no claim to what it did not use.
        let finish = state.finish.get(&share).copied().unwrap_or(0);
        let start = finish.max(state.virtual_time);
        state.finish.insert(share, start + amount);
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.insert(number, Waiting { start, amount });
        Self { line, number }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state.lock();
        state.waiting.remove(&self.number);
        if state.waiting.is_empty() {
            // Time in which nobody waits is lost: it would let a burst through later.
            state.paid = 0.0;
            state.paid_at = None;
        }
        drop(state);
        self.line.changed.notify_waiters();
    }
}

impl Line {
    fn open_share(&self) -> u64 {
        let mut state = self.state.lock();
        state.next_share += 1;
        state.next_share
    }

    /// None: this one may go now. Else how long to wait before asking again.
    fn pay(&self, ticket: u64, cap: Option<u64>, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock();
        let since = state.paid_at.replace(now).unwrap_or(now);
        let Waiting { start, amount } = *state.waiting.get(&ticket)?;
        let Some(cap) = cap else {
            state.virtual_time = state.virtual_time.max(start);
            return None;
        };
        state.paid += now.duration_since(since).as_secs_f64() * cap as f64;
        let next = state
            .waiting
            .iter()
            .min_by_key(|(number, waiting)| (waiting.start, **number));
        if next.is_some_and(|(number, _)| *number != ticket) {
            return Some(ASK_AGAIN);
        }
        let missing = amount as f64 - state.paid;
        if missing <= 0.0 {
            state.paid = -missing;
            state.virtual_time = state.virtual_time.max(start);
            return None;
        }
        match cap {
            0 => Some(ASK_AGAIN),
            // Rounded up, so that it is paid for then.
            cap => Some(Duration::from_secs_f64(missing / cap as f64) + Duration::from_millis(1)),
        }
    }
}
