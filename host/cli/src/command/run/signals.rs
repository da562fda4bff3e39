//! What the service is told by signals.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) enum Wish {
    /// SIGHUP.
    Reload,
    /// SIGTERM, Ctrl-C.
    Stop,
}

pub(super) struct Signals {
    hang_up: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind: SignalKind| {
            signal(kind).with_context(|| format!("cannot listen for signal {}", kind.as_raw_value()))
        };
        Ok(Self {
            hang_up: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.hang_up.recv() => Wish::Reload,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.terminate.recv() => Wish::Stop,
        }
    }
}
