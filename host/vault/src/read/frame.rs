//! What a pack says of itself: its header and its directory, for packs that no piece of the index lists.

use std::sync::Arc;

use crate::object::{HEADER_BYTES, PackKey};
use crate::pack::{PACK_LIMIT_BYTES, PackListing, read_frame, read_pack};
use crate::read::ReadError;
use crate::vault::Inner;

/// The end of a pack that holds its directory, unless its chunks are tiny.
const TAIL_BYTES: u64 = 1024 * 1024;

/// Reads the listing of a pack of this size from the pack itself; nothing where no pack is.
pub(crate) async fn pack_listing(
    vault: &Arc<Inner>,
    key: PackKey,
    size_bytes: u64,
) -> Result<Option<PackListing>, ReadError> {
    let object = key.object();
    if !(HEADER_BYTES as u64 + 1..=PACK_LIMIT_BYTES).contains(&size_bytes) {
        return Err(ReadError::Damaged {
            object,
            what: format!("no pack has {size_bytes} bytes"),
        });
    }
    let head = vault.store.get_range(&object, 0..HEADER_BYTES as u64).await?;
    let tail = vault
        .store
        .get_range(&object, size_bytes.saturating_sub(TAIL_BYTES)..size_bytes)
        .await?;
    let (Some(head), Some(tail)) = (head, tail) else {
        return Ok(None);
    };
    if let Ok((listing, _)) = read_frame(&head, &tail, size_bytes, &vault.ring, vault.id, key) {
        return Ok(Some(listing));
    }
    let Some(whole) = vault.store.get(&object, PACK_LIMIT_BYTES).await? else {
        return Ok(None);
    };
    match read_pack(&whole, &vault.ring, vault.id, key) {
        Ok((listing, _)) => Ok(Some(listing)),
        Err(damage) => Err(ReadError::Damaged {
            object,
            what: damage.to_string(),
        }),
    }
}
