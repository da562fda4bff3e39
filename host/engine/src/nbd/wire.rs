//! The numbers of the NBD protocol that a reader needs (doc/proto.md of the NBD project), and how its messages are laid out.
//! All numbers are big-endian.

use std::io::{self, Read, Write};

pub(super) const GREETING: u64 = 0x4e42_444d_4147_4943; // NBDMAGIC
pub(super) const OPTION: u64 = 0x4948_4156_454f_5054; // IHAVEOPT
pub(super) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY: u32 = 0x668e_33ef;

pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 2;

pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPT_SET_META_CONTEXT: u32 = 10;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_META_CONTEXT: u32 = 4;
/// Replies from here on are refusals.
pub(super) const REP_ERROR: u32 = 1 << 31;
pub(super) const REP_ERR_UNSUP: u32 = REP_ERROR + 1;
pub(super) const REP_ERR_TLS_REQD: u32 = REP_ERROR + 5;
pub(super) const REP_ERR_UNKNOWN: u32 = REP_ERROR + 6;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_BLOCK_STATUS: u16 = 7;

pub(super) const REPLY_DONE: u16 = 1;
pub(super) const REPLY_NONE: u16 = 0;
pub(super) const REPLY_OFFSET_DATA: u16 = 1;
pub(super) const REPLY_OFFSET_HOLE: u16 = 2;
pub(super) const REPLY_BLOCK_STATUS: u16 = 5;
pub(super) const REPLY_ERROR: u16 = 1 << 15;

/// Which ranges hold data. A server that has it knows holes and zeroes.
pub(super) const ALLOCATION: &str = "base:allocation";
/// Of [`ALLOCATION`]: reads as zeroes.
pub(super) const STATE_ZERO: u32 = 2;
/// Of QEMU's `qemu:dirty-bitmap:NAME`: written since the bitmap began.
pub(super) const STATE_DIRTY: u32 = 1;

/// An error number of the protocol, which are Linux's own for those that it has.
pub(super) fn error_name(code: u32) -> String {
    let name = match code {
        1 => "EPERM",
        5 => "EIO",
        12 => "ENOMEM",
        22 => "EINVAL",
        28 => "ENOSPC",
        75 => "EOVERFLOW",
        95 => "ENOTSUP",
        108 => "ESHUTDOWN",
        _ => return format!("error {code}"),
    };
    name.to_owned()
}

pub(super) fn read_u16(from: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    from.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

pub(super) fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

pub(super) fn read_u64(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// An option of the handshake, in one write.
pub(super) fn write_option(to: &mut impl Write, option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(16 + data.len());
    message.extend(OPTION.to_be_bytes());
    message.extend(option.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    to.write_all(&message)
}

/// A request of the transmission, in one write.
pub(super) fn write_request(
    to: &mut impl Write,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> io::Result<()> {
    let mut message = [0; 28];
    message[0..4].copy_from_slice(&REQUEST.to_be_bytes());
    message[6..8].copy_from_slice(&command.to_be_bytes());
    message[8..16].copy_from_slice(&cookie.to_be_bytes());
    message[16..24].copy_from_slice(&offset.to_be_bytes());
    message[24..28].copy_from_slice(&length.to_be_bytes());
    to.write_all(&message)
}

/// A name with its length before it.
pub(super) fn named(into: &mut Vec<u8>, name: &str) {
    into.extend((name.len() as u32).to_be_bytes());
    into.extend(name.as_bytes());
}
