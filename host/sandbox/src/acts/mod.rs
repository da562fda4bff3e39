//! What is done on the host for a plugin, to descriptors that somebody else has opened and allowed.
//!
//! Nothing here knows a grant, a plugin or a path as a guest wrote it; names are single parts below an open folder.
//! Everything blocks, so callers keep it off the runtime's threads.

mod extents;
mod files;
mod system;
mod usage;

pub(crate) use extents::{Mapped, MappedFlags, extent_count, mapped};
pub(crate) use files::{
    Entry, Kind, Status, clone_file, create_folder, kind_of, link, list_folder, remove, status, sync,
};
pub(crate) use usage::{Usage, UsageState, usage};

use rustix::io::Errno;

/// An act that went wrong: what was done, and what the kernel said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {errno}")]
pub(crate) struct ActError {
    /// A verb phrase for "cannot …".
    pub doing: &'static str,
    pub errno: Errno,
}

impl ActError {
    fn at(doing: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { doing, errno }
    }
}
