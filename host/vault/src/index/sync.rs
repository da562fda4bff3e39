//! Bringing the local copy of the index up to date with the vault.
//!
//! A listing is a hint. A piece that it leaves out is not deduplicated against, and when a chunk is missing at reading, the
//! pieces are fetched by the numbers that points carry. A piece that was here and is no longer listed may have been cleaned
//! up, and its packs with it: the copy is then started anew, since deduplicating against packs that are gone would only be
//! noticed when the point is committed.

use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::task::spawn_blocking;

use crate::gclog;
use crate::ids::MachineNumber;
use crate::object::{ObjectType, PackKey};
use crate::pack::{PackListing, decode_piece};
use crate::read::ReadError;
use crate::record::RECORD_LIMIT_BYTES;
use crate::register;
use crate::vault::Inner;

/// Pieces fetched at once; each is a few hundred KiB at most as this version writes them.
const FETCHED_AT_ONCE: usize = 8;

/// Takes in every listed piece that is not here yet. Pieces that cannot be read are named in the result: what only they
/// list cannot be found.
pub(crate) async fn sync(vault: &Arc<Inner>) -> Result<Vec<ReadError>, ReadError> {
    let _syncing = vault.syncing.lock().await;
    let before = vault.index.pieces();
    let mut listed = Vec::new();
    for found in vault.store.list("index").await? {
        listed.extend(found.object.strip_prefix("index/").and_then(PackKey::parse));
    }
    listed.sort_unstable();
    if before.iter().any(|piece| listed.binary_search(piece).is_err()) {
        tracing::info!("pieces of the index have left the vault; the local copy starts anew");
        blocking(vault, |vault| vault.index.reset()).await?;
    }
    listed.retain(|piece| !vault.index.knows_piece(piece));
    let unreadable = fetch(vault, listed).await?;
    blocking(vault, |vault| vault.index.write_down()).await?;
    Ok(unreadable)
}

/// Takes in the pieces that committed points count, whether they are listed or not.
pub(crate) async fn load_counted(vault: &Arc<Inner>) -> Result<(), ReadError> {
    let _syncing = vault.syncing.lock().await;
    let mut wanted = Vec::new();
    let log = gclog::read(vault.records()).await?;
    let machines = register::machines(vault.records()).await?;
    // The clean-up counts its pieces as machines do.
    for machine in std::iter::once(MachineNumber::MAINTENANCE).chain(machines.into_iter().map(|(machine, _)| machine)) {
        for (session, decision) in log.decisions(vault.records(), machine).await? {
            if let Ok(register::Decision::Committed(point)) = decision {
                wanted.extend((0..point.written.index_pieces).map(|number| PackKey {
                    machine,
                    session,
                    number,
                }));
            }
        }
    }
    wanted.retain(|piece| !vault.index.knows_piece(piece));
    fetch(vault, wanted).await?;
    blocking(vault, |vault| vault.index.write_down()).await
}

async fn fetch(vault: &Arc<Inner>, wanted: Vec<PackKey>) -> Result<Vec<ReadError>, ReadError> {
    let mut unreadable = Vec::new();
    let mut fetched = stream::iter(wanted)
        .map(|piece| async move { (piece, fetch_one(vault, piece).await) })
        .buffer_unordered(FETCHED_AT_ONCE);
    while let Some((piece, result)) = fetched.next().await {
        match result {
            // Listed and gone again: cleaned up.
            Ok(()) => {}
            Err(error @ (ReadError::Store(_) | ReadError::Cache { .. })) => return Err(error),
            Err(error) => {
                tracing::warn!(piece = %piece, %error, "a piece of the index cannot be read");
                unreadable.push(error);
            }
        }
    }
    Ok(unreadable)
}

async fn fetch_one(vault: &Arc<Inner>, piece: PackKey) -> Result<(), ReadError> {
    let Some(listings) = read_piece(vault, piece).await? else {
        return Ok(());
    };
    blocking(vault, move |vault| vault.index.add_piece(piece, &listings)).await
}

/// What a piece lists; nothing where no piece is.
pub(crate) async fn read_piece(vault: &Arc<Inner>, piece: PackKey) -> Result<Option<Vec<PackListing>>, ReadError> {
    let object = piece.index_object();
    let Some(bytes) = vault.store.get(&object, RECORD_LIMIT_BYTES).await? else {
        return Ok(None);
    };
    let body = match vault.records().open(ObjectType::Index, &object, &bytes) {
        Ok(body) => body,
        Err(error) => return Err(vault.records().settle(error).await),
    };
    let listings = decode_piece(&body).map_err(|error| ReadError::Damaged {
        object,
        what: error.to_string(),
    })?;
    Ok(Some(listings))
}

/// Local disk off the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    vault: &Arc<Inner>,
    work: impl FnOnce(&Inner) -> std::io::Result<T> + Send + 'static,
) -> Result<T, ReadError> {
    let inner = Arc::clone(vault);
    let result = spawn_blocking(move || work(&inner)).await;
    let failed = |source| ReadError::Cache {
        folder: vault.index.folder().to_owned(),
        source,
    };
    match result {
        Ok(result) => result.map_err(failed),
        Err(panicked) => Err(failed(std::io::Error::other(panicked))),
    }
}
