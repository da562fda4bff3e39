//! Using again what a session that broke off has sent and no piece of the index lists: at most the packs of one piece and
//! those that were on their way. The session that resumes it lists them in its own pieces.

use std::sync::Arc;

use crate::gclog::GcLog;
use crate::ids::{MachineNumber, SessionNumber};
use crate::object::{HEADER_BYTES, PackKey};
use crate::pack::{PACK_LIMIT_BYTES, PackListing};
use crate::read::{ReadError, pack_listing};
use crate::vault::Inner;

/// A session leaves about a dozen; more than this are stored again rather than kept in memory.
const PACKS_LIMIT: usize = 32;

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
        if listed || log.forbids(&key) || vault.index.is_condemned(&key) || !possible || adopted.len() == PACKS_LIMIT {
            continue;
        }
        adopted.extend(listing(vault, key, found.size_bytes).await?);
    }
    Ok(adopted)
}

/// What the resumed session sent and cannot be read is stored again.
async fn listing(vault: &Arc<Inner>, key: PackKey, size_bytes: u64) -> Result<Option<PackListing>, ReadError> {
    match pack_listing(vault, key, size_bytes).await {
        Err(damage) if damage.is_damage() => {
            tracing::debug!(pack = %key, %damage, "what the resumed session sent in this pack is stored again");
            Ok(None)
        }
        other => other,
    }
}
