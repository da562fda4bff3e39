//! What host and guard say to each other over a unix socket: a head of fixed size, and a text.
//!
//! The host sends a debt and waits for the guard's word before it incurs it; `Paid` takes it back. The end of the stream is
//! a message too: the other one is gone. A debt's text goes over as it will be needed, unread: the guard's waiting thread
//! only copies it, so that it allocates nothing. A mount is named by the host's own descriptor, which the guard opens again
//! through `/proc/HOST/fd/N` before it says yes.
//!
//! ```text
//! host → guard   tag u8 | id u32 | deadline u64 | kind u8 | descriptor i32 | text length u16 | text    little endian;
//!                                                                          deadline in nanoseconds of CLOCK_MONOTONIC
//! guard → host   tag u8 | id u32 | code u8
//! ```

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

/// Raised with every change, so that a host never trusts a guard of another version.
pub(crate) const VERSION: u32 = 1;

/// Of a debt's text. The longest is a command with its arguments.
pub(crate) const TEXT_AT_MOST_BYTES: usize = 8 * 1024;

const HEAD_BYTES: usize = 20;
const REPLY_BYTES: usize = 6;

/// The text of a hello.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub host: i32,
    pub volatile: std::path::PathBuf,
    pub durable: std::path::PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    /// `id` is the version; the text is a [`Hello`].
    Hello = 1,
    Owe = 2,
    /// The freeze of this debt has come to be: from now on "it is not frozen" is an answer.
    Held = 3,
    Paid = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Thaw = 1,
    EndTree = 2,
    Command = 3,
    AgentThaw = 4,
}

/// What the guard answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Written down; it may be incurred. To a hello: armed, see [`Shelter`] in the id.
    Yes = 1,
    /// Too many debts, or one that is none.
    No = 2,
    /// To `Paid`: the guard has paid it already, since the deadline had passed.
    PaidByGuard = 3,
}

#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub tag: Tag,
    pub id: u32,
    pub deadline_ns: u64,
    pub kind: Kind,
    /// The host's, of a mount that will have to be thawed.
    pub descriptor: i32,
    pub text: &'a [u8],
}

impl<'a> Message<'a> {
    /// One that says no more than its tag.
    pub fn plain(tag: Tag, id: u32) -> Self {
        Self {
            tag,
            id,
            deadline_ns: 0,
            kind: Kind::Thaw,
            descriptor: -1,
            text: &[],
        }
    }
}

/// Sends it in one piece: the other side never waits for the rest of one.
pub(crate) fn send(mut socket: &UnixStream, message: &Message<'_>) -> io::Result<()> {
    let mut bytes = [0; HEAD_BYTES + TEXT_AT_MOST_BYTES];
    bytes[0] = message.tag as u8;
    bytes[1..5].copy_from_slice(&message.id.to_le_bytes());
    bytes[5..13].copy_from_slice(&message.deadline_ns.to_le_bytes());
    bytes[13] = message.kind as u8;
    bytes[14..18].copy_from_slice(&message.descriptor.to_le_bytes());
    let length = u16::try_from(message.text.len()).map_err(io::Error::other)?;
    bytes[18..20].copy_from_slice(&length.to_le_bytes());
    let end = HEAD_BYTES + message.text.len();
    bytes[HEAD_BYTES..end].copy_from_slice(message.text);
    socket.write_all(&bytes[..end])
}

/// What the guard reads into; made once.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
}

impl Inbox {
    pub fn new() -> Self {
        Self {
            bytes: vec![0; HEAD_BYTES + TEXT_AT_MOST_BYTES].into_boxed_slice(),
        }
    }

    /// Takes the next message; allocates nothing. None: the other end is gone, or talks nonsense, which is the same.
    pub fn receive(&mut self, mut socket: &UnixStream) -> Option<Message<'_>> {
        let (head, text) = self.bytes.split_at_mut(HEAD_BYTES);
        socket.read_exact(head).ok()?;
        let text = text.get_mut(..usize::from(u16::from_le_bytes([head[18], head[19]])))?;
        socket.read_exact(text).ok()?;
        let tag = match head[0] {
            1 => Tag::Hello,
            2 => Tag::Owe,
            3 => Tag::Held,
            4 => Tag::Paid,
            _ => return None,
        };
        let kind = match head[13] {
            1 => Kind::Thaw,
            2 => Kind::EndTree,
            3 => Kind::Command,
            4 => Kind::AgentThaw,
            _ => return None,
        };
        Some(Message {
            tag,
            id: u32::from_le_bytes(head[1..5].try_into().ok()?),
            deadline_ns: u64::from_le_bytes(head[5..13].try_into().ok()?),
            kind,
            descriptor: i32::from_le_bytes(head[14..18].try_into().ok()?),
            text,
        })
    }
}

pub(crate) fn reply(mut socket: &UnixStream, tag: Tag, id: u32, code: Code) -> io::Result<()> {
    let mut bytes = [0; REPLY_BYTES];
    bytes[0] = tag as u8;
    bytes[1..5].copy_from_slice(&id.to_le_bytes());
    bytes[5] = code as u8;
    socket.write_all(&bytes)
}

/// Waits for the answer to exactly this message.
pub(crate) fn await_reply(mut socket: &UnixStream, tag: Tag) -> io::Result<(u32, Code)> {
    let mut bytes = [0; REPLY_BYTES];
    socket.read_exact(&mut bytes)?;
    let code = match bytes[5] {
        1 => Code::Yes,
        2 => Code::No,
        3 => Code::PaidByGuard,
        _ => return Err(io::Error::other("an answer that says nothing")),
    };
    if bytes[0] != tag as u8 {
        return Err(io::Error::other("an answer to another question"));
    }
    Ok((u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]), code))
}

/// What a guard could do for itself at its start, as it says in its answer to a hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shelter {
    /// Its memory cannot be paged out.
    pub memory_locked: bool,
    /// The OOM killer takes it last.
    pub last_for_oom: bool,
    /// It is in no group with its host that anything kills as one.
    pub own_group: bool,
}

impl Shelter {
    pub(crate) fn to_bits(self) -> u32 {
        u32::from(self.memory_locked) | u32::from(self.last_for_oom) << 1 | u32::from(self.own_group) << 2
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self {
            memory_locked: bits & 1 != 0,
            last_for_oom: bits & 2 != 0,
            own_group: bits & 4 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_answers_arrive_as_they_were_sent() {
        let (host, guard) = UnixStream::pair().unwrap();
        let text = vec![b'x'; TEXT_AT_MOST_BYTES];
        let sent = Message {
            tag: Tag::Owe,
            id: 77,
            deadline_ns: u64::MAX - 1,
            kind: Kind::Command,
            descriptor: 9,
            text: &text,
        };
        send(&host, &sent).unwrap();
        send(&host, &Message::plain(Tag::Paid, 5)).unwrap();
        let mut inbox = Inbox::new();
        let heard = inbox.receive(&guard).unwrap();
        assert_eq!(
            (heard.tag, heard.id, heard.kind, heard.descriptor),
            (Tag::Owe, 77, Kind::Command, 9)
        );
        assert_eq!(
            (heard.deadline_ns, heard.text.len()),
            (u64::MAX - 1, TEXT_AT_MOST_BYTES)
        );
        assert_eq!(
            inbox.receive(&guard).map(|message| (message.tag, message.id)),
            Some((Tag::Paid, 5))
        );
        reply(&guard, Tag::Paid, 5, Code::PaidByGuard).unwrap();
        assert_eq!(await_reply(&host, Tag::Paid).unwrap(), (5, Code::PaidByGuard));
        reply(&guard, Tag::Paid, 5, Code::Yes).unwrap();
        assert!(await_reply(&host, Tag::Owe).is_err(), "it answers something else");
        drop(guard);
        assert!(await_reply(&host, Tag::Owe).is_err());
    }

    #[test]
    fn nonsense_and_an_end_are_the_same() {
        let mut inbox = Inbox::new();
        for nonsense in [&[0; HEAD_BYTES][..], &[255; HEAD_BYTES + 9], &[1, 2, 3]] {
            let (host, guard) = UnixStream::pair().unwrap();
            (&host).write_all(nonsense).unwrap();
            drop(host);
            assert!(inbox.receive(&guard).is_none());
        }
    }
}
