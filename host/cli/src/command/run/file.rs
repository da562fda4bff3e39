//! Whether the configuration file has changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use coffre_engine::config::Config;

use crate::args::Global;

pub(super) struct ConfigFile {
    path: PathBuf,
    seen: Option<Look>,
}

/// What differs when a file was written or another one was put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl ConfigFile {
    pub fn find(global: &Global) -> anyhow::Result<Self> {
        let path = Config::find(global.config.as_deref())?;
        let seen = look(&path);
        Ok(Self { path, seen })
    }

    /// Whether it has, since this was last asked. One that is gone for a moment, while an editor replaces it, has not.
    pub fn has_changed(&mut self) -> bool {
        let Some(now) = look(&self.path) else { return false };
        self.seen.replace(now) != Some(now)
    }
}

fn look(path: &PathBuf) -> Option<Look> {
    let metadata = fs::metadata(path).ok()?;
    Some(Look {
        inode: metadata.ino(),
        size_bytes: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}
