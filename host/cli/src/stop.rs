//! Ctrl-C and SIGTERM: what was asked for stops, cleanly where there is something to clean.

use std::future::Future;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Complaint, Exit};

/// Waits until somebody wants this process to stop.
pub async fn asked() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hang_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
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

pub fn cancelled() -> Complaint {
    Complaint {
        exit: Exit::Cancelled,
        text: "cancelled".to_owned(),
        hint: None,
    }
}
