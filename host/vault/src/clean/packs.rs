//! Which packs are there. The listing says it where it shows a pack; where it does not, the pack itself is asked, since a
//! listing may leave out anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::{Amount, CleanError};
use crate::object::PackKey;
use crate::store::{Listed, StoreError};
use crate::vault::Inner;

/// Looks at packs at once.
const LOOKS_AT_ONCE: usize = 16;

/// A pack as the store tells of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackFile {
    pub(super) bytes: u64,
    /// By the store's clock.
    pub(super) modified: Timestamp,
}

/// The packs that a listing shows: about 70 bytes each, so 7 MiB for a vault of 3 TiB.
pub(super) struct Packs {
    listed: BTreeMap<PackKey, PackFile>,
    /// Not listed, asked for later, and there. They may be of sessions that began meanwhile.
    found_later: BTreeMap<PackKey, PackFile>,
}

impl Packs {
    pub(super) async fn list(vault: &Arc<Inner>) -> Result<Self, StoreError> {
        let mut listed = BTreeMap::new();
        let each = |found: Listed| {
            if let Some(key) = found.object.strip_prefix("packs/").and_then(PackKey::parse) {
                let file = PackFile {
                    bytes: found.size_bytes,
                    modified: found.modified,
                };
                listed.insert(key, file);
            }
        };
        vault.store.list_each("packs", each).await?;
        Ok(Self {
            listed,
            found_later: BTreeMap::new(),
        })
    }

    /// What was listed.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PackKey, PackFile)> + '_ {
        self.listed.iter().map(|(key, file)| (*key, *file))
    }

    pub(super) fn bytes(&self, key: &PackKey) -> u64 {
        let file = self.listed.get(key).or_else(|| self.found_later.get(key));
        file.map_or(0, |file| file.bytes)
    }

    pub(super) fn total(&self) -> Amount {
        let mut total = Amount::default();
        self.listed.values().for_each(|file| total.add(file.bytes));
        total
    }

    /// Of `keys`, the packs that are not there: not merely not listed, but asked for by name.
    pub(super) async fn missing(
        &mut self,
        vault: &Arc<Inner>,
        keys: impl Iterator<Item = PackKey>,
    ) -> Result<BTreeSet<PackKey>, CleanError> {
        let mut missing = BTreeSet::new();
        for (key, file) in self.look_for_hidden(vault, keys).await? {
            match file {
                Some(file) => {
                    self.found_later.insert(key, file);
                }
                None => {
                    missing.insert(key);
                }
            }
        }
        Ok(missing)
    }

    /// The same, and remembers nothing.
    pub(super) async fn not_there(
        &self,
        vault: &Arc<Inner>,
        keys: impl Iterator<Item = PackKey>,
    ) -> Result<BTreeSet<PackKey>, CleanError> {
        let looked = self.look_for_hidden(vault, keys).await?;
        let missing = looked.into_iter().filter(|(_, file)| file.is_none());
        Ok(missing.map(|(key, _)| key).collect())
    }

    async fn look_for_hidden(
        &self,
        vault: &Arc<Inner>,
        keys: impl Iterator<Item = PackKey>,
    ) -> Result<BTreeMap<PackKey, Option<PackFile>>, StoreError> {
        look(vault, keys.filter(|key| !self.listed.contains_key(key))).await
    }
}

/// Asks for each of these packs by name.
pub(super) async fn look(
    vault: &Arc<Inner>,
    keys: impl IntoIterator<Item = PackKey>,
) -> Result<BTreeMap<PackKey, Option<PackFile>>, StoreError> {
    stream::iter(keys)
        .map(|key| async move {
            let looked = vault.store.look(&key.object()).await?;
            let file = looked.map(|looked| PackFile {
                bytes: looked.size_bytes,
                modified: looked.modified,
            });
            Ok((key, file))
        })
        .buffer_unordered(LOOKS_AT_ONCE)
        .try_collect()
        .await
}
