//! Disks that an NBD server exports: bytes, holes, and what changed since a bitmap of its own began.

mod connection;
mod handshake;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::machine::Extent;
use crate::provider::{ChangeList, ProviderError, ProviderErrorKind};
use crate::source::{DiskSource, SourceError};

use connection::Connection;
pub use socket::Socket;

/// A server that says nothing for so long is taken for gone: the slowest disk answers sooner.
const SILENCE: Duration = Duration::from_secs(60);
/// How much of the disk one question about its state is about. A server answers of its beginning at least.
const STATUS_BYTES: u64 = 1 << 30;
/// What one step of a listing has at most, as of a provider's.
const EXTENTS_AT_A_TIME: usize = 65_536;

/// Why an NBD server was of no use.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("what answers is no NBD server")]
    NoServer,
    #[error("the server speaks an old form of NBD only")]
    TooOld,
    #[error("the server wants TLS")]
    WantsTls,
    #[error("the server has no export `{export}`")]
    NoExport { export: String },
    #[error("the server has no metadata context `{name}` for the export")]
    NoContext { name: String },
    #[error("the server refused: {text}")]
    Refused { text: String },
    #[error("the server failed to answer for {length} bytes at {offset}: {what}")]
    Request { offset: u64, length: usize, what: String },
    #[error("the server sent {what}")]
    Protocol { what: String },
    #[error("the server has said nothing for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the server closed the connection")]
    Closed,
    #[error("the connection is of no use any more: {why}")]
    Broken { why: String },
    #[error("speak to the server")]
    Io(#[source] io::Error),
}

impl NbdError {
    fn protocol(what: &str) -> Self {
        Self::Protocol { what: what.to_owned() }
    }
}

/// A range whose bytes are of one kind.
#[derive(Clone, Debug)]
struct Stretch {
    range: Range<u64>,
    flags: u32,
}

/// One export, as it is while the snapshot is held.
pub struct NbdSource {
    connection: Connection,
    /// For messages.
    what: String,
    size_bytes: u64,
    read_limit_bytes: usize,
    allocation: Option<u32>,
    changed: Option<u32>,
    /// The last answer on what is allocated: the next question is about what follows.
    allocated: Mutex<Vec<Stretch>>,
}

impl NbdSource {
    /// Negotiates on a fresh connection. Blocks. `what` is how errors call it; `changed_context` must be there if named.
    pub fn open(socket: Socket, export: &str, what: String, changed_context: Option<&str>) -> Result<Self, NbdError> {
        socket.set_timeout(SILENCE)?;
        let agreed = match handshake::shake_hands(&socket, export, changed_context) {
            Ok(agreed) => agreed,
            Err(error) => {
                handshake::give_up(&socket);
                return Err(error);
            }
        };
        Ok(Self {
            connection: Connection::new(socket),
            what,
            size_bytes: agreed.size_bytes,
            read_limit_bytes: agreed.read_limit_bytes as usize,
            allocation: agreed.allocation,
            changed: agreed.changed,
            allocated: Mutex::default(),
        })
    }

    /// What the context for changes calls changed, from the first byte on. None where no context was named.
    pub fn changes(self: &Arc<Self>) -> Option<Box<dyn ChangeList>> {
        let context = self.changed?;
        Some(Box::new(Dirty {
            source: self.clone(),
            context,
            at_bytes: 0,
        }))
    }

    /// What a context says from there on: stretches side by side, at least one.
    fn stretches(&self, context: u32, from_bytes: u64) -> Result<Vec<Stretch>, NbdError> {
        let length = (self.size_bytes - from_bytes).min(STATUS_BYTES);
        let said = self.connection.status(from_bytes, length as u32)?;
        let mut of_context = said.into_iter().filter(|status| status.context == context);
        let status = of_context.next();
        let status = status.ok_or_else(|| NbdError::protocol("nothing on a context that it has"))?;
        let mut at_bytes = from_bytes;
        let mut stretches = Vec::with_capacity(status.extents.len());
        for (length, flags) in status.extents {
            // The last one may go beyond what was asked.
            let end_bytes = (at_bytes + u64::from(length)).min(self.size_bytes);
            if end_bytes == at_bytes {
                return Err(NbdError::protocol("an extent of nothing"));
            }
            stretches.push(Stretch {
                range: at_bytes..end_bytes,
                flags,
            });
            at_bytes = end_bytes;
            if at_bytes == self.size_bytes {
                break;
            }
        }
        Ok(stretches)
    }

    fn allocated_at(&self, context: u32, at_bytes: u64) -> Result<Stretch, NbdError> {
        let mut known = self.allocated.lock();
        let found = |known: &[Stretch]| {
            let at = known.partition_point(|stretch| stretch.range.end <= at_bytes);
            known.get(at).filter(|stretch| stretch.range.start <= at_bytes).cloned()
        };
        if let Some(stretch) = found(&known) {
            return Ok(stretch);
        }
        *known = self.stretches(context, at_bytes)?;
        Ok(known[0].clone())
    }

    fn failed(&self, error: NbdError) -> SourceError {
        SourceError::Nbd {
            what: self.what.clone(),
            source: error,
        }
    }
}

impl DiskSource for NbdSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let mut at_bytes = offset_bytes;
        for part in buffer.chunks_mut(self.read_limit_bytes) {
            self.connection
                .read(at_bytes, part)
                .map_err(|error| self.failed(error))?;
            at_bytes += part.len() as u64;
        }
        Ok(())
    }

    fn next_data(&self, from_bytes: u64) -> Result<Option<Range<u64>>, SourceError> {
        let Some(context) = self.allocation else {
            return Ok((from_bytes < self.size_bytes).then_some(from_bytes..self.size_bytes));
        };
        let mut start_bytes = from_bytes;
        let mut end_bytes = from_bytes;
        while end_bytes < self.size_bytes {
            let stretch = self
                .allocated_at(context, end_bytes)
                .map_err(|error| self.failed(error))?;
            let is_data = stretch.flags & wire::STATE_ZERO == 0;
            if is_data {
                end_bytes = stretch.range.end;
            } else if start_bytes < end_bytes {
                break;
            } else {
                (start_bytes, end_bytes) = (stretch.range.end, stretch.range.end);
            }
        }
        Ok((start_bytes < end_bytes).then_some(start_bytes..end_bytes))
    }
}

/// The running listing of what a bitmap has.
struct Dirty {
    source: Arc<NbdSource>,
    context: u32,
    at_bytes: u64,
}

impl Dirty {
    /// Up to the first answer that has something changed in it.
    fn step(&mut self) -> Result<Vec<Extent>, NbdError> {
        let mut found: Vec<Extent> = Vec::new();
        while self.at_bytes < self.source.size_bytes && found.is_empty() {
            for stretch in self.source.stretches(self.context, self.at_bytes)? {
                if found.len() == EXTENTS_AT_A_TIME {
                    break;
                }
                if stretch.flags & wire::STATE_DIRTY != 0 {
                    found.push(Extent {
                        offset_bytes: stretch.range.start,
                        length_bytes: stretch.range.end - stretch.range.start,
                    });
                }
                self.at_bytes = stretch.range.end;
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl ChangeList for Dirty {
    async fn next(&mut self) -> Result<Vec<Extent>, ProviderError> {
        let mut dirty = Self {
            source: self.source.clone(),
            ..*self
        };
        let what = self.source.what.clone();
        let failed = |cause: String| ProviderError {
            kind: ProviderErrorKind::Failed,
            text: format!("what changed on {what} cannot be had: {cause}"),
            hint: None,
        };
        let stepped = tokio::task::spawn_blocking(move || {
            let found = dirty.step();
            (dirty.at_bytes, found)
        });
        let (at_bytes, found) = stepped.await.map_err(|error| failed(error.to_string()))?;
        self.at_bytes = at_bytes;
        found.map_err(|error| failed(crate::error_chain::Chain(&error).to_string()))
    }
}
