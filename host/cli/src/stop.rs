//! Ctrl-C, SIGTERM and SIGHUP: what was asked for stops, cleanly where there is something to clean.

use std::fs;
use std::future::{self, Future};

use anyhow::Context;
use coffre_engine::progress::Cancel;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Complaint, Exit};

/// Waits until somebody wants this process to stop.
///
/// A signal that was ignored when this process started stays ignored: `nohup` does that with SIGHUP, and a shell with
/// SIGINT for what it puts into the background.
pub async fn asked() -> anyhow::Result<()> {
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    tokio::select! {
        () = heard(&mut interrupt) => {}
        () = heard(&mut terminate) => {}
        () = heard(&mut hang_up) => {}
    }
    Ok(())
}

fn listen(kind: SignalKind) -> anyhow::Result<Option<Signal>> {
    if ignored_at_start(kind) {
        return Ok(None);
    }
    let listening = signal(kind).with_context(|| format!("cannot listen for signal {}", kind.as_raw_value()))?;
    Ok(Some(listening))
}

async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => future::pending().await,
    }
}

/// By the mask in /proc/self/status (proc(5), SigIgn). Listening changes it, so a signal that is listened for is not
/// taken for ignored.
fn ignored_at_start(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, kind.as_raw_value())
}

fn ignores(status: &str, number: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0);
    (1..=64).contains(&number) && mask & (1 << (number - 1)) != 0
}

/// Runs what can be dropped at any point (reading, listing), until it ends or somebody stops it.
pub async fn or_dropped<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        stopped = asked() => {
            stopped?;
            Err(cancelled().into())
        }
    }
}

/// The same where somebody else listens.
pub async fn unless<T>(cancel: &Cancel, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = cancel.cancelled() => Err(cancelled().into()),
    }
}

pub fn cancelled() -> Complaint {
    Complaint {
        exit: Some(Exit::Cancelled),
        text: "cancelled".to_owned(),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_nohup_ignores_is_known() {
        let status = "Name:\tcoffre\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert!(ignores(status, 1));
        assert!(ignores(status, 13));
        assert!(!ignores(status, 2));
        assert!(!ignores("", 1));
    }
}
