//! Stream sockets in the file system, for plugins that speak to a program of this host.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Broker, Done, Failure, FailureKind, acted};
use crate::acts::{self, Kind};
use crate::grant::GrantKind;
use crate::limits::SOCKET_BYTES;

/// A connection that a guest has opened.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    path: String,
}

impl Broker {
    /// Connects to the socket that lies there and is granted, whatever its name means a moment later. The guest agent's
    /// sockets are refused, though they be granted: a freeze that Coffre does not know of would be undone by nobody.
    pub fn connect_socket(&self, path: &str) -> Done<Connection> {
        let there = self.look(GrantKind::UnixSocket, path)?;
        if self.permissions.path(GrantKind::GuestAgent, path).is_ok() {
            let text = format!("{path} is a guest agent's socket, which is spoken to through `guest-agent` alone");
            return Err(Failure::new(FailureKind::Denied, text));
        }
        if acts::kind_of(there.as_fd()).map_err(|error| acted(path, error))? != Kind::Other {
            return Err(Failure::new(FailureKind::Failed, format!("{path} is no socket")));
        }
        let connected = UnixStream::connect(format!("/proc/self/fd/{}", there.as_raw_fd()));
        let stream = connected.map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused => {
                Failure::new(FailureKind::NotFound, format!("{path}: nobody listens there"))
            }
            ErrorKind::WouldBlock => Failure::new(FailureKind::Busy, format!("{path}: too many wait there already")),
            _ => Failure::new(FailureKind::Failed, format!("cannot connect to {path}: {error}")),
        })?;
        Ok(Connection {
            stream,
            path: path.to_owned(),
        })
    }
}

impl Connection {
    /// All of it, or an error.
    pub fn send(&self, bytes: &[u8], deadline: Instant) -> Done<()> {
        self.stream
            .set_write_timeout(Some(left(deadline)))
            .and_then(|()| (&self.stream).write_all(bytes))
            .map_err(|error| self.failed("send to", error))
    }

    /// What is there, once anything is; empty where the other side has closed.
    pub fn receive(&self, max_bytes: u32, deadline: Instant) -> Done<Vec<u8>> {
        let mut bytes = vec![0; max_bytes.clamp(1, SOCKET_BYTES) as usize];
        let received = self
            .stream
            .set_read_timeout(Some(left(deadline)))
            .and_then(|()| (&self.stream).read(&mut bytes));
        let length = received.map_err(|error| self.failed("receive from", error))?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn failed(&self, doing: &str, error: io::Error) -> Failure {
        let path = &self.path;
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Failure::new(FailureKind::TimedOut, format!("{path}: nothing came in time"))
            }
            _ => Failure::new(FailureKind::Failed, format!("cannot {doing} {path}: {error}")),
        }
    }
}

/// The kernel takes 0 for no end.
fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}
