//! Servers that break the protocol, and garbage.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;

use super::wire::*;
use super::*;

const SIZE_BYTES: u64 = 1 << 20;

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A handshake whole, with `base:allocation` as context 7 and `qemu:dirty-bitmap:b` as 8.
fn greeting() -> Vec<u8> {
    let context = |id: u32, name: &str| {
        let data = [&id.to_be_bytes(), name.as_bytes()].concat();
        reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &data)
    };
    let export = [
        &INFO_EXPORT.to_be_bytes()[..],
        &SIZE_BYTES.to_be_bytes(),
        &1u16.to_be_bytes(),
    ]
    .concat();
    [
        GREETING.to_be_bytes().to_vec(),
        OPTION.to_be_bytes().to_vec(),
        (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec(),
        reply(OPT_STRUCTURED_REPLY, REP_ACK, &[]),
        context(7, ALLOCATION),
        context(8, "qemu:dirty-bitmap:b"),
        reply(OPT_SET_META_CONTEXT, REP_ACK, &[]),
        reply(OPT_GO, REP_INFO, &export),
        reply(OPT_GO, REP_ACK, &[]),
    ]
    .concat()
}

/// A server that says this, whatever it is asked, and closes.
fn says(bytes: Vec<u8>) -> Socket {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut writing = theirs.try_clone().unwrap();
        // What is asked is read away, so that nobody waits.
        let asked = thread::spawn(move || {
            let mut theirs = theirs;
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        let _ = writing.write_all(&bytes);
        let _ = writing.shutdown(std::net::Shutdown::Write);
        asked.join().unwrap();
    });
    Socket::Unix(ours)
}

fn open(bytes: Vec<u8>) -> Result<NbdSource, NbdError> {
    NbdSource::open(says(bytes), "x", "x".to_owned(), Some("qemu:dirty-bitmap:b"))
}

/// A part of an answer to the first request, whose cookie is 1.
fn part(flags: u16, kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = STRUCTURED_REPLY.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend((content.len() as u32).to_be_bytes());
    bytes.extend(content);
    bytes
}

fn data(flags: u16, offset: u64, bytes: &[u8]) -> Vec<u8> {
    part(flags, REPLY_OFFSET_DATA, &[&offset.to_be_bytes(), bytes].concat())
}

fn hole(flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let content = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    part(flags, REPLY_OFFSET_HOLE, &content)
}

/// Reads eight bytes at 4096 from a server that answers with these parts.
fn read(parts: &[Vec<u8>]) -> Result<[u8; 8], String> {
    let source = open([greeting(), parts.concat()].concat()).unwrap();
    let mut buffer = [0xee; 8];
    let read = source.read_at(4096, &mut buffer);
    read.map(|()| buffer)
        .map_err(|error| crate::error_chain::Chain(&error).to_string())
}

#[test]
fn a_read_is_whole_or_an_error() {
    assert_eq!(read(&[data(REPLY_DONE, 4096, &[1; 8])]), Ok([1; 8]));
    assert_eq!(
        read(&[data(0, 4100, &[2; 4]), hole(REPLY_DONE, 4096, 4)]),
        Ok([0, 0, 0, 0, 2, 2, 2, 2])
    );
    for (parts, wanted) in [
        (vec![data(REPLY_DONE, 4096, &[1; 7])], "not answered whole"),
        (vec![part(REPLY_DONE, REPLY_NONE, &[])], "not answered whole"),
        (
            vec![data(0, 4096, &[1; 4]), data(REPLY_DONE, 4096, &[1; 4])],
            "not answered whole",
        ),
        (
            vec![data(REPLY_DONE, 4096, &[1; 9])],
            "9 bytes at 4096, where 8 at 4096",
        ),
        (vec![data(REPLY_DONE, 4095, &[1; 8])], "8 bytes at 4095"),
        (vec![data(REPLY_DONE, u64::MAX, &[1; 8])], "where 8 at 4096"),
        (vec![hole(REPLY_DONE, 4096, u32::MAX)], "where 8 at 4096"),
        (vec![hole(REPLY_DONE, 4096, 0)], "where 8 at 4096"),
        (vec![part(REPLY_DONE, 77, &[])], "of kind 77"),
        (vec![data(0, 4096, &[1; 8])], "closed the connection"),
        (vec![vec![0; 40]], "no reply"),
        (
            vec![part(
                REPLY_DONE,
                REPLY_ERROR + 1,
                &[&5u32.to_be_bytes()[..], &4u16.to_be_bytes(), b"d\x1bsk"].concat(),
            )],
            "8 bytes at 4096: EIO: dsk",
        ),
    ] {
        let said = read(&parts).expect_err(wanted);
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn answers_about_changes_are_checked() {
    let listed = |extents: &[(u32, u32)]| {
        let mut content = 8u32.to_be_bytes().to_vec();
        for (length, flags) in extents {
            content.extend(length.to_be_bytes());
            content.extend(flags.to_be_bytes());
        }
        let source = open([greeting(), part(REPLY_DONE, REPLY_BLOCK_STATUS, &content)].concat()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut list = Arc::new(source).changes().unwrap();
        runtime.block_on(list.next()).map(|extents| {
            extents
                .iter()
                .map(|extent| (extent.offset_bytes, extent.length_bytes))
                .collect::<Vec<_>>()
        })
    };
    let size = SIZE_BYTES as u32;
    // The last may go beyond the end.
    let found = listed(&[(4096, 0), (8192, 1), (size, 1)]).unwrap();
    assert_eq!(found, [(4096, 8192), (12288, SIZE_BYTES - 12288)]);
    assert_eq!(listed(&[(size, 0)]).unwrap(), []);
    let nothing = listed(&[(4096, 0), (0, 1)]).unwrap_err();
    assert!(nothing.text.contains("an extent of nothing"), "{nothing}");
}

#[test]
fn what_is_no_server_or_has_not_what_is_wanted_is_told() {
    let said = |bytes: Vec<u8>| open(bytes).err().unwrap().to_string();
    assert_eq!(said(b"SSH-2.0-OpenSSH_9.2".to_vec()), "what answers is no NBD server");
    assert_eq!(said(Vec::new()), "the server closed the connection");
    let old = [GREETING.to_be_bytes(), 0x0000_4202_8186_1253_u64.to_be_bytes()].concat();
    assert_eq!(said(old), "the server speaks an old form of NBD only");
    let until = |option: u32, last: Vec<u8>| {
        let greeting = greeting();
        let head = reply(option, 0, &[])[..12].to_vec();
        let at = greeting.windows(12).position(|window| window == head).unwrap();
        [greeting[..at].to_vec(), last].concat()
    };
    let refused = until(OPT_GO, reply(OPT_GO, REP_ERR_UNKNOWN, b"no such thing"));
    assert_eq!(said(refused), "the server has no export `x`");
    let tls = until(OPT_SET_META_CONTEXT, reply(OPT_SET_META_CONTEXT, REP_ERR_TLS_REQD, &[]));
    assert_eq!(said(tls), "the server wants TLS");
    let bare = until(OPT_SET_META_CONTEXT, reply(OPT_SET_META_CONTEXT, REP_ACK, &[]));
    assert_eq!(
        said(bare),
        "the server has no metadata context `qemu:dirty-bitmap:b` for the export"
    );
    let mut endless = reply(OPT_GO, REP_INFO, &[]);
    endless[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(said(until(OPT_GO, endless)).contains("an endless answer"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a server sends, there is an end, without a panic.
    #[test]
    fn garbage_ends_in_an_error_or_in_bytes(
        cut in any::<prop::sample::Index>(),
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
        keep in any::<bool>(),
    ) {
        let greeting = greeting();
        let at = if keep { greeting.len() } else { cut.index(greeting.len()) };
        if let Ok(source) = open([&greeting[..at], &garbage[..]].concat()) {
            let _ = source.read_at(0, &mut [0; 64]);
            let _ = source.next_data(0);
        }
    }
}
