//! Using again what a session that broke off has sent and no piece of the index lists: at most the packs of one piece and
//! those that were on their way. The session that resumes it lists them in its own pieces.

use std::sync::Arc;

use crate::gclog::GcLog;
use crate::ids::{MachineNumber, SessionNumber};
use crate::object::{HEADER_BYTES, PackKey};
use crate::pack::{PACK_LIMIT_BYTES, PackListing, read_frame};
use crate::read::ReadError;
use crate::vault::Inner;

/// A session leaves about a dozen; more than this are stored again rather than kept in memory.
const PACKS_LIMIT: usize = 32;
/// The end of a pack that holds its directory, unless its chunks are tiny.
const TAIL_BYTES: u64 = 1024 * 1024;

/// The listing is a hint: what it leaves out, and what cannot be read, is stored again.
pub(super) async fn unlisted_packs(
    vault: &Arc<Inner>,
    machine: MachineNumber,
    resumed: SessionNumber,
    log: &GcLog,
) -> Result<Vec<PackListing>, ReadError> {
    let folder = format!("packs/{}/{}", machine.key(), resumed.key());
    let mut adopted = Vec::new();
    for found in vault.store.list(&folder).await? {
        let Some(key) = found.object.strip_prefix("packs/").and_then(PackKey::parse) else {
            continue;
        };
        let failed = |source| ReadError::Cache {
            folder: vault.index.folder().to_owned(),
            source,
        };
        let listed = vault.index.pack(&key).map_err(failed)?.is_some();
        let possible = (HEADER_BYTES as u64 + 1..=PACK_LIMIT_BYTES).contains(&found.size_bytes);
        if listed || log.forbids(&key) || !possible || adopted.len() == PACKS_LIMIT {
            continue;
        }
        adopted.extend(listing(vault, key, found.size_bytes).await?);
    }
    Ok(adopted)
}

async fn listing(vault: &Arc<Inner>, key: PackKey, size_bytes: u64) -> Result<Option<PackListing>, ReadError> {
    let object = key.object();
    let head = vault.store.get_range(&object, 0..HEADER_BYTES as u64).await?;
    let tail = vault
        .store
        .get_range(&object, size_bytes.saturating_sub(TAIL_BYTES)..size_bytes)
        .await?;
    let (Some(head), Some(tail)) = (head, tail) else {
        return Ok(None);
    };
    match read_frame(&head, &tail, size_bytes, &vault.ring, vault.id, key) {
        Ok((listing, _)) => Ok(Some(listing)),
        Err(damage) => {
            tracing::debug!(pack = %key, %damage, "what the resumed session sent in this pack is stored again");
            Ok(None)
        }
    }
}
