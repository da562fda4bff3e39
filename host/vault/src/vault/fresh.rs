//! The same vault seen without what this host remembers of it: with an index of its own, fetched anew.
//!
//! Proving and repairing must not count on the local copy of the index: it may know pieces that the vault has lost. The copy
//! that backups use stays as it is, since jobs may be using it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::{Inner, Vault};
use crate::index::LocalIndex;
use crate::offload::offload;
use crate::read::{ReadError, ReaderState};

const PREFIX: &str = "fresh-";
/// What a process left that died; nobody's verification takes longer without writing there.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A vault with an index of its own, which is removed with it.
pub(crate) struct Fresh {
    pub(crate) vault: Vault,
    // Dropped after the vault that uses it.
    _folder: TempDir,
}

impl Vault {
    /// This vault with an empty index.
    pub(crate) async fn with_fresh_index(&self) -> Result<Fresh, ReadError> {
        let folder = self.cache_folder().to_owned();
        let id = self.id();
        let made = offload(move || {
            remove_stale(&folder);
            let own = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&folder)?;
            let index = LocalIndex::open(own.path(), id)?;
            Ok((own, index))
        });
        let made = made.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        let (folder, index) = made.map_err(|source| ReadError::Cache {
            folder: self.cache_folder().to_owned(),
            source,
        })?;
        let inner = &*self.inner;
        let inner = Inner {
            store: inner.store.clone(),
            id: inner.id,
            ring: inner.ring.clone(),
            index,
            pool: Arc::clone(&inner.pool),
            clock: Arc::clone(&inner.clock),
            packs_per_piece: inner.packs_per_piece,
            syncing: tokio::sync::Mutex::new(()),
            reading: ReaderState::default(),
            log: tokio::sync::Mutex::default(),
            #[cfg(any(test, feature = "testing"))]
            left_out: None,
            encrypted: inner.encrypted,
        };
        let vault = Vault { inner: Arc::new(inner) };
        Ok(Fresh { vault, _folder: folder })
    }
}

fn remove_stale(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if is_ours && age.is_some_and(|age| age > STALE) {
            // What cannot be removed costs space alone.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
