//! From a fresh connection to an export that can be read: fixed newstyle negotiation, structured replies where the server has
//! them, and what it knows beside the bytes.

use std::io::{self, Read};

use super::NbdError;
use super::socket::Socket;
use super::wire::*;

/// What a server says of itself may not take more than this: names, texts and numbers.
const OPTION_REPLY_LIMIT_BYTES: u32 = 64 * 1024;
/// Replies to one option: a server lists one context per query and a few infos.
const OPTION_REPLIES_LIMIT: usize = 64;
/// What the protocol lets a client ask for at once where the server says nothing.
const READ_LIMIT_BYTES: u32 = 32 << 20;

/// What was agreed upon.
#[derive(Debug)]
pub(super) struct Agreed {
    pub size_bytes: u64,
    /// The largest read.
    pub read_limit_bytes: u32,
    /// Ids of metadata contexts that the server has.
    pub allocation: Option<u32>,
    pub changed: Option<u32>,
}

/// Negotiates for `export`. `changed_context` must be there if it is named.
pub(super) fn shake_hands(socket: &Socket, export: &str, changed_context: Option<&str>) -> Result<Agreed, NbdError> {
    let mut socket = socket;
    if read_u64(&mut socket)? != GREETING {
        return Err(NbdError::NoServer);
    }
    if read_u64(&mut socket)? != OPTION {
        return Err(NbdError::TooOld);
    }
    let flags = read_u16(&mut socket)?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(NbdError::TooOld);
    }
    let chosen = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES));
    io::Write::write_all(&mut socket, &chosen.to_be_bytes())?;

    let structured = ask(socket, OPT_STRUCTURED_REPLY, &[], |_, _| Ok(()))?.is_ok();
    let mut contexts = Contexts::default();
    if structured {
        contexts = Contexts::ask(socket, export, changed_context)?;
    }
    if let Some(name) = changed_context
        && contexts.changed.is_none()
    {
        return Err(NbdError::NoContext { name: name.to_owned() });
    }
    let mut size_bytes = None;
    let mut read_limit_bytes = READ_LIMIT_BYTES;
    let mut wanted = Vec::new();
    named(&mut wanted, export);
    wanted.extend(1u16.to_be_bytes());
    wanted.extend(INFO_BLOCK_SIZE.to_be_bytes());
    let answer = ask(socket, OPT_GO, &wanted, |kind, data| {
        if kind != REP_INFO {
            return Err(NbdError::protocol("an answer to GO that is none"));
        }
        let mut data = data;
        match read_u16(&mut data)? {
            INFO_EXPORT => size_bytes = Some(read_u64(&mut data)?),
            INFO_BLOCK_SIZE => {
                let (_least, _preferred) = (read_u32(&mut data)?, read_u32(&mut data)?);
                read_limit_bytes = read_u32(&mut data)?.min(READ_LIMIT_BYTES);
            }
            _ => {}
        }
        Ok(())
    })?;
    if let Err(refusal) = answer {
        return Err(refusal.of_export(export));
    }
    let size_bytes = size_bytes.ok_or_else(|| NbdError::protocol("an export without a size"))?;
    if read_limit_bytes == 0 {
        return Err(NbdError::protocol("reads of at most 0 bytes"));
    }
    Ok(Agreed {
        size_bytes,
        read_limit_bytes,
        allocation: contexts.allocation,
        changed: contexts.changed,
    })
}

/// Says goodbye to a server that is of no use. It is closed anyway.
pub(super) fn give_up(socket: &Socket) {
    let mut socket = socket;
    let _ = write_option(&mut socket, OPT_ABORT, &[]);
}

#[derive(Debug, Default)]
struct Contexts {
    allocation: Option<u32>,
    changed: Option<u32>,
}

impl Contexts {
    fn ask(socket: &Socket, export: &str, changed_context: Option<&str>) -> Result<Self, NbdError> {
        let queries: Vec<&str> = [ALLOCATION].into_iter().chain(changed_context).collect();
        let mut wanted = Vec::new();
        named(&mut wanted, export);
        wanted.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| named(&mut wanted, query));
        let mut found = Self::default();
        let answer = ask(socket, OPT_SET_META_CONTEXT, &wanted, |kind, data| {
            if kind != REP_META_CONTEXT {
                return Err(NbdError::protocol("an answer about contexts that is none"));
            }
            let mut name = data;
            let id = read_u32(&mut name)?;
            if name == ALLOCATION.as_bytes() {
                found.allocation = Some(id);
            }
            if changed_context.is_some_and(|wanted| wanted.as_bytes() == name) {
                found.changed = Some(id);
            }
            Ok(())
        })?;
        match answer {
            // It knows no contexts: all is data.
            Ok(()) => Ok(found),
            Err(refusal) if refusal.kind == REP_ERR_UNSUP => Ok(Self::default()),
            Err(refusal) => Err(refusal.of_export(export)),
        }
    }
}

/// A server's no.
#[derive(Debug)]
struct Refusal {
    kind: u32,
    text: String,
}

impl Refusal {
    fn of_export(self, export: &str) -> NbdError {
        match self.kind {
            REP_ERR_UNKNOWN => NbdError::NoExport {
                export: export.to_owned(),
            },
            REP_ERR_TLS_REQD => NbdError::WantsTls,
            REP_ERR_UNSUP => NbdError::TooOld,
            _ => NbdError::Refused { text: self.text },
        }
    }
}

/// Sends one option, and gives its answers to `each` until the server has said yes or no.
fn ask(
    socket: &Socket,
    option: u32,
    data: &[u8],
    mut each: impl FnMut(u32, &[u8]) -> Result<(), NbdError>,
) -> Result<Result<(), Refusal>, NbdError> {
    let mut socket = socket;
    write_option(&mut socket, option, data)?;
    for _ in 0..OPTION_REPLIES_LIMIT {
        if read_u64(&mut socket)? != OPTION_REPLY || read_u32(&mut socket)? != option {
            return Err(NbdError::protocol("an answer to what was not asked"));
        }
        let (kind, length) = (read_u32(&mut socket)?, read_u32(&mut socket)?);
        if length > OPTION_REPLY_LIMIT_BYTES {
            return Err(NbdError::protocol("an endless answer while connecting"));
        }
        let mut data = vec![0; length as usize];
        socket.read_exact(&mut data)?;
        if kind == REP_ACK {
            return Ok(Ok(()));
        }
        if kind >= REP_ERROR {
            let text: String = String::from_utf8_lossy(&data)
                .chars()
                .filter(|letter| !letter.is_control())
                .take(200)
                .collect();
            return Ok(Err(Refusal { kind, text }));
        }
        each(kind, &data)?;
    }
    Err(NbdError::protocol("answers without end while connecting"))
}
