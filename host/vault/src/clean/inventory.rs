//! Which packs each piece of the index lists, remembered on local disk: without it every clean-up would read the whole index of
//! the vault again, 30 bytes for each chunk. A piece never changes, so what was read once stays true as long as it is there.
//!
//! ```text
//! pieces.listed   magic "COFLST01", then per piece: its key (12) | number of packs u32 LE | their keys (12 each); BLAKE3 of all
//! ```
//! It decides which pieces are replaced, so a flipped bit must not get through: what does not hash is read from the vault anew.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};

use crate::index;
use crate::object::PackKey;
use crate::offload::offload;
use crate::read::ReadError;
use crate::vault::Inner;

const MAGIC: &[u8; 8] = b"COFLST01";
const KEY_BYTES: usize = 12;

/// The packs of each piece.
pub(super) type Listed = BTreeMap<PackKey, Vec<PackKey>>;

/// What was remembered; nothing where that is of no use.
pub(super) async fn load(vault: &Arc<Inner>) -> Listed {
    let path = path(vault);
    let read = offload(move || read(&path)).await;
    match read {
        Ok(Ok(listed)) => listed,
        Ok(Err(error)) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::info!(%error, "what is remembered of the index's pieces is of no use; reading them anew");
            }
            Listed::new()
        }
        Err(_) => Listed::new(),
    }
}

/// Remembers these pieces, and no others.
pub(super) async fn save(vault: &Arc<Inner>, listed: &Listed) -> Result<(), ReadError> {
    let bytes = encode(listed);
    index::blocking(vault, move |vault| {
        let path = path(vault);
        let new = tempfile::NamedTempFile::new_in(vault.index.folder())?;
        fs::write(new.path(), bytes)?;
        new.persist(path).map_err(|error| error.error)?;
        Ok(())
    })
    .await
}

fn path(vault: &Inner) -> PathBuf {
    vault.index.folder().join("pieces.listed")
}

fn read(path: &Path) -> io::Result<Listed> {
    let bytes = fs::read(path)?;
    decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
}

fn encode(listed: &Listed) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for (piece, packs) in listed {
        out.put_slice(&piece.to_bytes());
        out.put_u32_le(packs.len() as u32);
        for pack in packs {
            out.put_slice(&pack.to_bytes());
        }
    }
    let hash = blake3::hash(&out);
    out.put_slice(hash.as_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<Listed> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(blake3::OUT_LEN)?)?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let mut body = body.strip_prefix(MAGIC)?;
    let mut listed = Listed::new();
    while body.has_remaining() {
        let piece = take_key(&mut body)?;
        let count = body.try_get_u32_le().ok()? as usize;
        if count > body.len() / KEY_BYTES {
            return None;
        }
        let packs = (0..count).map(|_| take_key(&mut body)).collect::<Option<_>>()?;
        listed.insert(piece, packs);
    }
    Some(listed)
}

fn take_key(bytes: &mut &[u8]) -> Option<PackKey> {
    let (key, rest) = bytes.split_first_chunk::<KEY_BYTES>()?;
    *bytes = rest;
    Some(PackKey::from_bytes(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{MachineNumber, SessionNumber};

    #[test]
    fn what_is_remembered_reads_back_and_no_changed_bit_gets_through() {
        let key = |number| PackKey {
            machine: MachineNumber(1),
            session: SessionNumber(2),
            number,
        };
        let listed = Listed::from([(key(0), vec![key(5), key(6)]), (key(1), Vec::new())]);
        let bytes = encode(&listed);
        assert_eq!(decode(&bytes), Some(listed));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            assert_eq!(decode(&changed), None, "{at}");
            assert_eq!(decode(&bytes[..at]), None, "{at}");
        }
    }
}
