//! Bringing the local copy of the index up to date with the vault.
//!
//! A listing is a hint. A piece that it leaves out is not deduplicated against, and when a chunk is missing at reading, the
//! pieces are fetched by the numbers that points carry. A piece that was here and is no longer listed was merged into
//! another or lists nothing that is still needed; either way its records stay until the clean-up log says that their packs
//! are gone.
//!
//! The log is followed *before* pieces are fetched, however long before. A pack leaves after the pieces that list it, so what
//! a fetched piece lists was there when the log was read, or is named in it as condemned, or will be when it is followed on:
//! no pack comes into the index that went unseen.

use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::sync::Semaphore;

use super::packs::PackSet;
use crate::gclog;
use crate::object::{ObjectType, PackKey};
use crate::offload::offload;
use crate::pack::{PackListing, decode_piece};
use crate::read::ReadError;
use crate::record::RECORD_LIMIT_BYTES;
use crate::register;
use crate::vault::Inner;

/// Pieces fetched at once.
const FETCHED_AT_ONCE: usize = 8;
/// Their bytes at once, but for one that alone is larger. A piece is in memory about three times while it is taken in; eight
/// of a session's are half a MiB, merged ones have 4 MiB each.
const FETCHED_KIB_AT_ONCE: u32 = 4 * 1024;
/// What is assumed of a piece that no listing told the size of.
const PIECE_KIB: u32 = 4 * 1024;
/// A host that was away for more records of the clean-up log than this fetches the index anew, which costs less than
/// reading them would soon.
const FOLLOWED_LIMIT: u32 = 512;
/// The same for one that has seen so much come and go: the manifest is read and written whole.
const CONDEMNED_RANGES_LIMIT: usize = 64 * 1024;

/// Takes in every listed piece that is not here yet. Pieces that cannot be read are named in the result: what only they
/// list cannot be found.
pub(crate) async fn sync(vault: &Arc<Inner>) -> Result<Vec<ReadError>, ReadError> {
    let _syncing = vault.syncing.lock().await;
    follow(vault).await?;
    let mut listed: Vec<(PackKey, u32)> = Vec::new();
    for found in vault.store.list("index").await? {
        let piece = found.object.strip_prefix("index/").and_then(PackKey::parse);
        listed.extend(piece.map(|piece| (piece, kib(found.size_bytes))));
    }
    listed.sort_unstable();
    let pieces: PackSet = listed.iter().map(|(piece, _)| *piece).collect();
    vault.index.keep_pieces(&pieces);
    listed.retain(|(piece, _)| !vault.index.knows_piece(piece));
    let unreadable = fetch(vault, listed).await?;
    blocking(vault, |vault| vault.index.write_down()).await?;
    if vault.index.log_end() < vault.index.known_until() {
        // Another program of this host had written down what it knows, and had not followed the log as far.
        follow(vault).await?;
        blocking(vault, |vault| vault.index.write_down()).await?;
    }
    Ok(unreadable)
}

fn kib(size_bytes: u64) -> u32 {
    size_bytes.div_ceil(1024).clamp(1, FETCHED_KIB_AT_ONCE.into()) as u32
}

/// Learns from the clean-up log which packs are going and gone.
async fn follow(vault: &Arc<Inner>) -> Result<(), ReadError> {
    let mut log = vault.log_so_far().await?;
    if log.end() < vault.index.known_until() {
        // Another process of this host has seen more of it.
        log = vault.log().await?;
    }
    let mut passed = Vec::new();
    // Of packs that are listed nowhere here, nothing need be known that the newest checkpoint does not say.
    if !vault.index.is_empty() {
        let from = vault.index.log_end();
        let until = log.checkpoint_number().unwrap_or(0);
        let is_too_much =
            until.saturating_sub(from) > FOLLOWED_LIMIT || vault.index.condemned_ranges() > CONDEMNED_RANGES_LIMIT;
        if is_too_much {
            tracing::info!(
                from,
                until,
                "the local index is too far behind the vault; it starts anew"
            );
            blocking(vault, |vault| vault.index.reset()).await?;
        } else {
            passed = gclog::condemned_between(vault.records(), from, until).await?;
        }
    }
    vault.index.follow(&log, passed);
    Ok(())
}

/// Takes in the pieces that committed points count, whether they are listed or not.
pub(crate) async fn load_counted(vault: &Arc<Inner>) -> Result<(), ReadError> {
    let _syncing = vault.syncing.lock().await;
    let mut wanted = Vec::new();
    let log = vault.log_so_far().await?;
    // The clean-up counts its pieces as machines do.
    for (machine, _) in register::every_machine(vault.records(), log.machines()).await? {
        for (session, decision) in log.decisions(vault.records(), machine).await? {
            if let Ok(register::Decision::Committed(point)) = decision {
                let pieces = (0..point.written.index_pieces).map(|number| PackKey {
                    machine,
                    session,
                    number,
                });
                wanted.extend(
                    pieces
                        .filter(|piece| !vault.index.knows_piece(piece))
                        .map(|piece| (piece, PIECE_KIB)),
                );
            }
        }
    }
    fetch(vault, wanted).await?;
    blocking(vault, |vault| vault.index.write_down()).await
}

async fn fetch(vault: &Arc<Inner>, wanted: Vec<(PackKey, u32)>) -> Result<Vec<ReadError>, ReadError> {
    let mut unreadable = Vec::new();
    let room = Semaphore::new(FETCHED_KIB_AT_ONCE as usize);
    let room = &room;
    let mut fetched = stream::iter(wanted)
        .map(|(piece, kib)| async move {
            let _room = room.acquire_many(kib).await;
            (piece, fetch_one(vault, piece).await)
        })
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
    let result = offload(move || work(&inner)).await;
    let failed = |source| ReadError::Cache {
        folder: vault.index.folder().to_owned(),
        source,
    };
    match result {
        Ok(result) => result.map_err(failed),
        Err(panicked) => Err(failed(std::io::Error::other(panicked))),
    }
}

#[cfg(test)]
mod tests;
