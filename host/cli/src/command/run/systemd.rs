//! What systemd is told (sd_notify(3)): that the service is ready, reads its configuration, stops, and is alive. Where nobody
//! listens, nothing is said.

use std::time::Duration;

use sd_notify::NotifyState;

pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

pub(super) fn reloading() {
    // Type=notify-reload wants to know when that was.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How long the loop may sleep: half of what the watchdog allows.
pub(super) fn patience() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::MAX, |allowed| allowed / 2)
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
