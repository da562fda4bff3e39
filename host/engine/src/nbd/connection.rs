//! Requests and their answers on one connection, many at a time.
//!
//! Any thread sends; whoever waits for an answer takes turns in receiving. What comes for oneself goes straight into one's own
//! buffer, what comes for another is kept for it. One connection suffices: servers answer what lies in flight side by side,
//! and some (qemu-nbd) take no second one.

use std::collections::HashMap;
use std::io::{self, Read};

use parking_lot::Mutex;

use super::NbdError;
use super::socket::Socket;
use super::wire::*;

/// Of one answer about a range: 64 Ki extents, and one that is larger is no answer.
const STATUS_LIMIT_BYTES: u32 = 8 * 64 * 1024 + 4;
/// Of an error's text.
const ERROR_LIMIT_BYTES: u32 = 8 * 1024;
/// Parts of one answer. Servers send one for each stretch of data or hole in what was asked for.
const PARTS_LIMIT: usize = 64 * 1024;

pub(super) struct Connection {
    socket: Socket,
    /// The next cookie; held while a request is written.
    sending: Mutex<u64>,
    /// Held by the one who receives.
    receiving: Mutex<Receiver>,
    in_flight: Mutex<HashMap<u64, InFlight>>,
}

#[derive(Default)]
struct Receiver {
    /// Nothing can be made of what comes any more.
    broken: Option<String>,
}

/// A request that is not answered yet.
#[derive(Default)]
struct InFlight {
    offset: u64,
    length: usize,
    is_read: bool,
    /// What another has received of it.
    kept: Vec<u8>,
    /// Where in the range bytes have come to.
    parts: Vec<(usize, usize)>,
    statuses: Vec<Status>,
    failure: Option<NbdError>,
    is_over: bool,
}

/// What a metadata context says of the range, from its beginning: lengths and flags.
pub(super) struct Status {
    pub context: u32,
    pub extents: Vec<(u32, u32)>,
}

impl Connection {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            sending: Mutex::new(1),
            receiving: Mutex::default(),
            in_flight: Mutex::default(),
        }
    }

    /// Fills `buffer` from `offset`.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), NbdError> {
        self.ask(CMD_READ, offset, buffer.len() as u32, buffer).map(drop)
    }

    /// What the contexts say of a range, of its beginning at least.
    pub(super) fn status(&self, offset: u64, length: u32) -> Result<Vec<Status>, NbdError> {
        self.ask(CMD_BLOCK_STATUS, offset, length, &mut [])
    }

    fn ask(&self, command: u16, offset: u64, length: u32, buffer: &mut [u8]) -> Result<Vec<Status>, NbdError> {
        let cookie = {
            let mut next = self.sending.lock();
            let cookie = *next;
            *next += 1;
            let asked = InFlight {
                offset,
                length: length as usize,
                is_read: command == CMD_READ,
                ..InFlight::default()
            };
            self.in_flight.lock().insert(cookie, asked);
            if let Err(error) = write_request(&mut &self.socket, command, cookie, offset, length) {
                self.in_flight.lock().remove(&cookie);
                return Err(error.into());
            }
            cookie
        };
        let mut receiver = self.receiving.lock();
        let asked = self.in_flight.lock().remove(&cookie);
        let mut mine = asked.ok_or_else(|| NbdError::protocol("an answer that came twice"))?;
        if !mine.kept.is_empty() {
            buffer.copy_from_slice(&mine.kept);
            mine.kept = Vec::new();
        }
        while !mine.is_over {
            if let Some(why) = &receiver.broken {
                return Err(NbdError::Broken { why: why.clone() });
            }
            if let Err(error) = self.receive(cookie, &mut mine, buffer) {
                receiver.broken = Some(error.to_string());
                return Err(error);
            }
        }
        drop(receiver);
        mine.finish()
    }

    /// Takes in the next part of an answer, whoever asked.
    fn receive(&self, cookie: u64, mine: &mut InFlight, buffer: &mut [u8]) -> Result<(), NbdError> {
        let mut socket = &self.socket;
        let magic = read_u32(&mut socket)?;
        let (flags, kind, error) = match magic {
            STRUCTURED_REPLY => (read_u16(&mut socket)?, read_u16(&mut socket)?, 0),
            SIMPLE_REPLY => (REPLY_DONE, REPLY_NONE, read_u32(&mut socket)?),
            _ => return Err(NbdError::protocol("something that is no reply")),
        };
        let whose = read_u64(&mut socket)?;
        let mut part = Part {
            socket,
            is_simple: magic == SIMPLE_REPLY,
            kind,
            error,
            length: 0,
        };
        if !part.is_simple {
            part.length = read_u32(&mut socket)?;
        }
        if whose == cookie {
            part.take(mine, buffer)?;
            mine.is_over = flags & REPLY_DONE != 0;
            return Ok(());
        }
        let other = self.in_flight.lock().remove(&whose);
        let mut other = other.ok_or_else(|| NbdError::protocol("a reply to what nobody asked"))?;
        if other.is_over {
            return Err(NbdError::protocol("a reply after the last one"));
        }
        let mut kept = std::mem::take(&mut other.kept);
        if kept.is_empty() && other.is_read {
            kept = vec![0; other.length];
        }
        let taken = part.take(&mut other, &mut kept);
        other.kept = kept;
        other.is_over = flags & REPLY_DONE != 0;
        self.in_flight.lock().insert(whose, other);
        taken
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A courtesy; the server sees the end of the connection anyway.
        let _ = write_request(&mut &self.socket, CMD_DISC, 0, 0, 0);
    }
}

/// A reply or a part of one, up to its content.
struct Part<'a> {
    socket: &'a Socket,
    is_simple: bool,
    kind: u16,
    error: u32,
    length: u32,
}

impl Part<'_> {
    fn take(mut self, of: &mut InFlight, buffer: &mut [u8]) -> Result<(), NbdError> {
        if self.is_simple {
            if self.error != 0 {
                of.fail(self.error, "");
            } else if of.is_read {
                self.socket.read_exact(buffer)?;
                of.parts.push((0, of.length));
            }
            return Ok(());
        }
        match self.kind {
            REPLY_NONE if self.length == 0 => Ok(()),
            REPLY_OFFSET_DATA if of.is_read && self.length > 8 => {
                let offset = read_u64(&mut self.socket)?;
                let range = of.part(offset, (self.length - 8) as usize)?;
                Ok(self.socket.read_exact(&mut buffer[range])?)
            }
            REPLY_OFFSET_HOLE if of.is_read && self.length == 12 => {
                let (offset, length) = (read_u64(&mut self.socket)?, read_u32(&mut self.socket)?);
                let range = of.part(offset, length as usize)?;
                buffer[range].fill(0);
                Ok(())
            }
            REPLY_BLOCK_STATUS if !of.is_read && self.length >= 12 && self.length % 8 == 4 => {
                let status = self.status()?;
                of.statuses.push(status);
                Ok(())
            }
            kind if kind & REPLY_ERROR != 0 => self.refusal(of),
            kind => Err(NbdError::protocol(&format!(
                "a part of kind {kind} with {} bytes, which cannot be",
                self.length
            ))),
        }
    }

    fn status(&mut self) -> Result<Status, NbdError> {
        let bytes = self.content(STATUS_LIMIT_BYTES)?;
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Ok(Status {
            context: number(0),
            extents: (4..bytes.len())
                .step_by(8)
                .map(|at| (number(at), number(at + 4)))
                .collect(),
        })
    }

    fn refusal(&mut self, of: &mut InFlight) -> Result<(), NbdError> {
        let bytes = self.content(ERROR_LIMIT_BYTES)?;
        let mut rest = bytes.as_slice();
        let code = read_u32(&mut rest)?;
        let length = usize::from(read_u16(&mut rest)?);
        let text = String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).into_owned();
        of.fail(code, &text);
        Ok(())
    }

    fn content(&mut self, at_most: u32) -> Result<Vec<u8>, NbdError> {
        if self.length > at_most {
            return Err(NbdError::protocol(&format!("a reply of {} bytes", self.length)));
        }
        let mut bytes = vec![0; self.length as usize];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl InFlight {
    /// Where a part goes in the buffer.
    fn part(&mut self, offset: u64, length: usize) -> Result<std::ops::Range<usize>, NbdError> {
        let start = offset
            .checked_sub(self.offset)
            .and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        match range {
            Some(range) if range.end <= self.length && length > 0 && self.parts.len() < PARTS_LIMIT => {
                self.parts.push((range.start, range.end));
                Ok(range)
            }
            _ => Err(NbdError::protocol(&format!(
                "{length} bytes at {offset}, where {} at {} were asked for",
                self.length, self.offset
            ))),
        }
    }

    fn fail(&mut self, code: u32, text: &str) {
        let text: String = text.chars().filter(|letter| !letter.is_control()).take(200).collect();
        let code = error_name(code);
        self.failure.get_or_insert(NbdError::Request {
            offset: self.offset,
            length: self.length,
            what: if text.is_empty() {
                code
            } else {
                format!("{code}: {text}")
            },
        });
    }

    /// Every byte has come, once, or it is an error: what a buffer held before is never taken for the disk's.
    fn finish(mut self) -> Result<Vec<Status>, NbdError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.is_read {
            self.parts.sort_unstable();
            let mut end = 0;
            for (start, until) in &self.parts {
                if *start != end {
                    return Err(NbdError::protocol("a read that is not answered whole"));
                }
                end = *until;
            }
            if end != self.length {
                return Err(NbdError::protocol("a read that is not answered whole"));
            }
        }
        Ok(self.statuses)
    }
}

impl From<io::Error> for NbdError {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(source),
        }
    }
}
