//! Freezing and thawing, as fsfreeze(8) does it: the two system calls that rustix has no safe name for.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{NoArg, Opcode, ioctl};

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)` of linux/fs.h; the kernel ignores the argument.
const FIFREEZE: Opcode = 0xc004_5877;
const FITHAW: Opcode = 0xc004_5878;

/// Freezes the file system that `file` lies on: what is dirty is written, and then every change waits. EBUSY: it is frozen
/// already, so by somebody else.
#[allow(unsafe_code)]
pub(crate) fn freeze(file: impl AsFd) -> Result<()> {
    // SAFETY: the opcode is a valid one that reads no argument and writes none.
    retry(|| unsafe { ioctl(file.as_fd(), NoArg::<FIFREEZE>::new()) })
}

/// Thaws it. EINVAL: it is not frozen.
#[allow(unsafe_code)]
pub(crate) fn thaw(file: impl AsFd) -> Result<()> {
    // SAFETY: as above.
    retry(|| unsafe { ioctl(file.as_fd(), NoArg::<FITHAW>::new()) })
}

fn retry(mut call: impl FnMut() -> Result<()>) -> Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
