//! What the machine allows: the bare pipeline without an index, a map, a check or a safe order of writes.
//!
//! `cargo xtask bench limit` runs it beside a backup of the same disk, so that a ratio says how much safety costs.
//! usage: limit IMAGE FOLDER hash|full

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::{env, fs, thread};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::fs::{Advice, SeekFrom, fadvise, seek};

type Failed = Box<dyn Error + Send + Sync>;

const BLOCK_BYTES: usize = 128 << 10;
const PIECE_BYTES: u64 = 1 << 20;
const PACK_BYTES: usize = 32 << 20;
const WORKERS: usize = 2;

fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = env::args().collect();
    let [_, image, folder, mode] = arguments.as_slice() else {
        return Err("usage: limit IMAGE FOLDER hash|full".into());
    };
    let file = File::open(image)?;
    fadvise(&file, 0, None, Advice::Sequential)?;
    let pieces = pieces(&file)?;
    let (next, packs) = (AtomicUsize::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| scope.spawn(|| work(&file, &pieces, &next, &packs, Path::new(folder), mode == "full")))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })
}

/// Where the image has data, in pieces that a worker reads at once.
fn pieces(file: &File) -> Result<Vec<(u64, usize)>, Failed> {
    let size_bytes = file.metadata()?.len();
    let (mut pieces, mut offset) = (Vec::new(), 0);
    while offset < size_bytes {
        let Ok(start) = seek(file, SeekFrom::Data(offset)) else {
            break;
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        let mut at = (start & !(PIECE_BYTES - 1)).max(offset);
        while at < end {
            let length = PIECE_BYTES.min(size_bytes - at);
            pieces.push((at, length as usize));
            at += length;
        }
        offset = at;
    }
    Ok(pieces)
}

fn work(
    file: &File,
    pieces: &[(u64, usize)],
    next: &AtomicUsize,
    packs: &AtomicU64,
    folder: &Path,
    full: bool,
) -> Result<(), Failed> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "the key has the wrong length")?);
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    let mut piece = vec![0; PIECE_BYTES as usize];
    let mut small = vec![0; zstd::zstd_safe::compress_bound(BLOCK_BYTES)];
    let mut pack = Vec::with_capacity(PACK_BYTES + PIECE_BYTES as usize);
    let write = |pack: &mut Vec<u8>| {
        let name = packs.fetch_add(1, Ordering::Relaxed).to_string();
        fs::write(folder.join(name), &pack).map(|()| pack.clear())
    };
    while let Some((offset, length)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        file.read_exact_at(&mut piece[..*length], *offset)?;
        for (number, block) in piece[..*length].chunks(BLOCK_BYTES).enumerate() {
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            std::hint::black_box(blake3::keyed_hash(&[1; 32], block));
            if !full {
                continue;
            }
            let start = pack.len();
            match compressor.compress_to_buffer(block, &mut small[..]) {
                Ok(length) if length < block.len() - block.len() / 16 => pack.extend_from_slice(&small[..length]),
                _ => pack.extend_from_slice(block),
            }
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&(offset + (number * BLOCK_BYTES) as u64).to_le_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut pack[start..]);
            pack.extend_from_slice(tag.map_err(|_| "sealing failed")?.as_ref());
        }
        if pack.len() >= PACK_BYTES {
            write(&mut pack)?;
        }
    }
    if !pack.is_empty() {
        write(&mut pack)?;
    }
    Ok(())
}
