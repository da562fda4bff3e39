//! Reading a pack through its parity, and putting it right where it lies.
//!
//! A pack is put right in its own file, and only where it is wrong: a file that a clean-up has deleted meanwhile does not come
//! back, and whoever reads meanwhile finds what is whole as it was. A sector that cannot be read is given new bytes, for
//! which disks take another one.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use super::file::{BLOCK_BYTES, mend};
use crate::object::PackKey;
use crate::offload::offload;
use crate::pack::PACK_LIMIT_BYTES;
use crate::vault::Inner;

/// As much parity as the largest pack has bytes, and two heads.
const PARITY_LIMIT_BYTES: u64 = PACK_LIMIT_BYTES + 1024 * 1024;
const READ_BYTES: usize = 1024 * 1024;

/// A pack as it was when it was written.
#[derive(Debug)]
pub(crate) struct MendedPack {
    pub(crate) key: PackKey,
    pub(crate) bytes: Bytes,
    /// Where its file has something else.
    ranges: Vec<Range<u64>>,
}

impl MendedPack {
    /// How many blocks its file has lost.
    pub(crate) fn blocks(&self) -> u64 {
        self.ranges.len() as u64
    }
}

/// A pack as it was, if its file is not so and its parity can tell. Whatever is in the way is told in the log and no error:
/// the damage is what the caller has to tell.
pub(crate) async fn mended(vault: &Inner, key: PackKey) -> Option<MendedPack> {
    let folder = vault.store.folder()?;
    let read = offload(move || {
        let Some(parity) = read_what_is_left(&folder.join(key.parity_object()), PARITY_LIMIT_BYTES)? else {
            return Ok(None);
        };
        let Some(left) = read_what_is_left(&folder.join(key.object()), PACK_LIMIT_BYTES)? else {
            return Ok(None);
        };
        mend(&parity, &left).map(Some).map_err(io::Error::other)
    });
    let found = read.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    match found {
        Ok(Some(mended)) => {
            tracing::warn!(pack = %key, blocks = mended.ranges.len(), "a damaged pack is read through its parity");
            Some(MendedPack {
                key,
                bytes: mended.bytes.into(),
                ranges: mended.ranges,
            })
        }
        Ok(None) => None,
        Err(error) => {
            tracing::info!(pack = %key, %error, "a pack's parity does not mend it");
            None
        }
    }
}

/// Writes what was lost into the pack's file, to disk, and reads it again.
pub(crate) async fn put_back(vault: &Inner, pack: &MendedPack) -> io::Result<()> {
    let Some(folder) = vault.store.folder() else {
        return Err(io::Error::other("the vault is in no local folder"));
    };
    let (path, bytes, ranges) = (folder.join(pack.key.object()), pack.bytes.clone(), pack.ranges.clone());
    let written = offload(move || {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        for range in ranges {
            file.write_all_at(&bytes[range.start as usize..range.end as usize], range.start)?;
        }
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 0)?;
        if read == bytes {
            Ok(())
        } else {
            Err(io::Error::other("what was written is not what is read"))
        }
    });
    written.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
}

/// A file's bytes, with zeroes where the disk cannot read them; nothing where no file is.
fn read_what_is_left(path: &Path, limit_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    if size > limit_bytes {
        return Err(io::Error::other(format!("it has {size} bytes")));
    }
    let mut bytes = vec![0; size as usize];
    for (part, at) in bytes.chunks_mut(READ_BYTES).zip((0..).step_by(READ_BYTES)) {
        if file.read_exact_at(part, at).is_ok() {
            continue;
        }
        for (block, offset) in part.chunks_mut(BLOCK_BYTES).zip((0..).step_by(BLOCK_BYTES)) {
            if let Err(error) = file.read_exact_at(block, at + offset) {
                tracing::info!(file = %path.display(), at = at + offset, %error, "a block cannot be read");
                block.fill(0);
            }
        }
    }
    Ok(Some(bytes))
}
