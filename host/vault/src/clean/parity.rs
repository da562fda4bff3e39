//! The parity of packs goes with them, before them, so that none is left when a clean-up breaks off in between. What a writer
//! has left that died before its pack was there goes once its session is over. None of this is needed for anything to be right,
//! so what does not work is told in the log and tried again by the next run.

use std::sync::Arc;

use crate::mark::Survey;
use crate::object::{self, PackKey};
use crate::vault::Inner;

/// Only local vaults have parity.
pub(super) async fn of_packs_that_go(vault: &Arc<Inner>, packs: &[PackKey]) {
    if vault.store.folder().is_none() {
        return;
    }
    for pack in packs {
        delete(vault, pack).await;
    }
}

/// Parity whose pack is not there and will not come: its session is decided. Should a writer that was fenced while it slept
/// make the pack all the same, that pack has no parity, and nobody needs it.
pub(super) async fn of_no_pack(vault: &Arc<Inner>, survey: &Survey) {
    if vault.store.folder().is_none() {
        return;
    }
    let mut all: Vec<PackKey> = Vec::new();
    let prefix = format!("{}/", object::PARITY);
    let listed = vault.store.list_each(object::PARITY, |found| {
        all.extend(found.object.strip_prefix(&prefix).and_then(PackKey::parse));
    });
    if let Err(error) = listed.await {
        tracing::info!(%error, "parity that belongs to no pack is not looked for");
        return;
    }
    for pack in all {
        let is_over = survey.has_decided(pack.machine, pack.session);
        if is_over && matches!(vault.store.size(&pack.object()).await, Ok(None)) {
            delete(vault, &pack).await;
        }
    }
}

async fn delete(vault: &Arc<Inner>, pack: &PackKey) {
    if let Err(error) = vault.store.delete(&pack.parity_object()).await {
        tracing::info!(%pack, %error, "the parity of a pack that goes stays");
    }
}
