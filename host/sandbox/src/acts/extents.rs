//! Where the bytes of a file lie on the medium (FIEMAP).

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::ActError;
use super::system::{SYNC, fiemap};

/// Extents asked of the kernel at once while counting: 230 KB of buffer.
const COUNT_STEP: u32 = 4096;

/// The flags of an extent, by their places in linux/fiemap.h (and the kernel's filesystems/fiemap.rst for meanings).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MappedFlags(pub u32);

impl MappedFlags {
    pub const LAST: u32 = 0x1;
    pub const UNKNOWN: u32 = 0x2;
    pub const DELAYED: u32 = 0x4;
    pub const ENCODED: u32 = 0x8;
    pub const ENCRYPTED: u32 = 0x80;
    pub const NOT_ALIGNED: u32 = 0x100;
    pub const INLINE: u32 = 0x200;
    pub const TAIL: u32 = 0x400;
    pub const UNWRITTEN: u32 = 0x800;
    pub const MERGED: u32 = 0x1000;
    pub const SHARED: u32 = 0x2000;

    pub fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// One extent of a file and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub offset_bytes: u64,
    pub length_bytes: u64,
    pub location_bytes: u64,
    pub flags: MappedFlags,
}

/// What is mapped from `offset` on, at most `at_most` entries, after writing back what is dirty. Fewer: no more follow.
pub(crate) fn mapped(file: BorrowedFd<'_>, offset: u64, at_most: u32) -> Result<Vec<Mapped>, ActError> {
    let mut found: Vec<Mapped> = Vec::new();
    let mut from = offset;
    // A file system may hand out fewer than there is room for, so only LAST or an empty answer is the end.
    while (found.len() as u32) < at_most {
        // Dirty bytes are written back once; repeating it would cost a walk of the page cache each time.
        let flags = if found.is_empty() { SYNC } else { 0 };
        let room = at_most - found.len() as u32;
        let step = fiemap(file, from, flags, room).map_err(ActError::at("list the extents"))?;
        let Some(last) = step.last().copied() else { break };
        found.extend(step.into_iter().map(|extent| Mapped {
            offset_bytes: extent.logical,
            length_bytes: extent.length,
            location_bytes: extent.physical,
            flags: MappedFlags(extent.flags),
        }));
        let next = last.logical.saturating_add(last.length);
        if MappedFlags(last.flags).has(MappedFlags::LAST) || next <= from {
            break;
        }
        from = next;
    }
    Ok(found)
}

/// How many extents there are; counting stops at `at_most`.
pub(crate) fn extent_count(file: BorrowedFd<'_>, at_most: u32) -> Result<u32, ActError> {
    let mut count = 0_u32;
    let mut from = 0;
    while count < at_most {
        let step = fiemap(file, from, 0, COUNT_STEP.min(at_most - count)).map_err(ActError::at("count the extents"))?;
        let Some(last) = step.last() else { break };
        count += u32::try_from(step.len()).map_err(|_| ActError {
            doing: "count the extents",
            errno: Errno::OVERFLOW,
        })?;
        let next = last.logical.saturating_add(last.length);
        if MappedFlags(last.flags).has(MappedFlags::LAST) || next <= from {
            break;
        }
        from = next;
    }
    Ok(count)
}
