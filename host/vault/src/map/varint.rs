//! LEB128 numbers, as in the WebAssembly and DWARF specifications, in their shortest form only.

use super::NodeError;

pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number off the front of `input`.
pub(super) fn take(input: &mut &[u8]) -> Result<u64, NodeError> {
    let mut value = 0_u64;
    for position in 0..10 {
        let (&byte, rest) = input.split_first().ok_or(NodeError::Truncated)?;
        *input = rest;
        let bits = u64::from(byte & 0x7f);
        if position == 9 && bits > 1 {
            return Err(NodeError::OutOfRange);
        }
        value |= bits << (7 * position);
        if byte & 0x80 == 0 {
            if byte == 0 && position > 0 {
                return Err(NodeError::NotCanonical("a number is longer than it need be"));
            }
            return Ok(value);
        }
    }
    Err(NodeError::OutOfRange)
}
