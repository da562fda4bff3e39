//! The two system calls that rustix does not wrap: FIEMAP and leases.

#![allow(unsafe_code)] // ioctl(2) and fcntl(2) with arguments of their own; each use says why it is sound.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `_IOWR('f', 11, struct fiemap)`, from linux/fs.h.
const FS_IOC_FIEMAP: u64 = 0xC020_660B;

/// Words of `struct fiemap` before its extents, and of one `struct fiemap_extent`, from linux/fiemap.h.
const HEADER_WORDS: usize = 4;
const EXTENT_WORDS: usize = 7;

/// From linux/fcntl.h; libc lacks it.
const F_SETSIG: i32 = 10;

/// Write back what is dirty first (FIEMAP_FLAG_SYNC).
pub(super) const SYNC: u32 = 1;

/// One extent as the kernel gives it; flags as in linux/fiemap.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawExtent {
    pub logical: u64,
    pub physical: u64,
    pub length: u64,
    pub flags: u32,
}

/// At most `at_most` extents from `start` on.
pub(super) fn fiemap(file: BorrowedFd<'_>, start: u64, flags: u32, at_most: u32) -> Result<Vec<RawExtent>, Errno> {
    let mut words = vec![0_u64; HEADER_WORDS + EXTENT_WORDS * at_most as usize];
    words[0] = start;
    words[1] = u64::MAX - start;
    words[2] = two(flags, 0);
    words[3] = two(at_most, 0);
    // SAFETY: the descriptor is open for as long as it is borrowed. FS_IOC_FIEMAP reads a `struct fiemap` (32 bytes, of
    // u64 and u32) from the pointer and writes it back with at most `fm_extent_count` extents of 56 bytes behind it; the
    // buffer is exactly that large, aligned to 8, and lives through the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, words.as_mut_ptr()) };
    if done < 0 {
        return Err(last_error());
    }
    let found = (halves(words[2]).1).min(at_most) as usize;
    let extents = words[HEADER_WORDS..].chunks_exact(EXTENT_WORDS).take(found);
    let read = |extent: &[u64]| RawExtent {
        logical: extent[0],
        physical: extent[1],
        length: extent[2],
        flags: halves(extent[5]).0,
    };
    Ok(extents.map(read).collect())
}

/// Whether anybody has the regular file open for writing, as the kernel knows it: a read lease is granted only where
/// nobody has (fcntl(2), F_SETLEASE). It is given back at once. `file` must be open for reading only.
pub(super) fn has_writers(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let fd = file.as_raw_fd();
    // Somebody who opens the file for writing while we hold the lease waits until it is gone, and the kernel sends us a
    // signal: SIGURG, which is ignored unless asked for, instead of SIGIO, which would end the process.
    // SAFETY: these commands take plain integers and touch no memory of ours; the descriptor is open.
    let leased = unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG);
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK)
    };
    if leased < 0 {
        return match last_error() {
            Errno::AGAIN => Ok(true),
            other => Err(other),
        };
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    Ok(false)
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Two u32 fields that lie beside each other in a C structure.
fn two(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn halves(word: u64) -> (u32, u32) {
    let bytes = word.to_ne_bytes();
    let half = |start: usize| u32::from_ne_bytes([bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3]]);
    (half(0), half(4))
}
