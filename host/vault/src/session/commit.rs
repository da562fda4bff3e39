//! The commit: one atomic create, and every answer that a store can give to it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::CommitError;
use super::writer::{SessionWriter, Shared};
use crate::gclog;
use crate::ids::{MachineNumber, SessionNumber};
use crate::index;
use crate::object::{self, ObjectType, PackKey};
use crate::offload::offload;
use crate::point::{Point, PointDraft, Written};
use crate::read::{ReadError, pack_listing};
use crate::record::RECORD_LIMIT_BYTES;
use crate::register::{self, PointRecord};
use crate::store::StoreError;
use crate::vault::Inner;

/// Looks for packs at once, in step 6.
const LOOKS_AT_ONCE: usize = 16;
/// With pauses that double from 0.2 s, a store may be away for about 13 s beyond what object_store itself waits; after that
/// nobody knows, and the commit file is what the next try starts from.
const COMMIT_ATTEMPTS: u32 = 7;

impl SessionWriter {
    /// Steps 4 to 7: everything is in the vault before the point is. `commit_file` gets the very bytes that are sent, on
    /// disk before they are; it is the caller's to remove.
    pub async fn commit(&self, draft: PointDraft, commit_file: &Path) -> Result<Point, CommitError> {
        let shared = &self.shared;
        shared.flush().await?;
        self.list_what_nobody_counts().await?;
        check_packs(shared).await?;
        settle_what_nobody_vouches_for(shared).await?;
        let vault = &shared.vault;
        let (packs, _, index_pieces) = shared.needed();
        let point = Point {
            machine: shared.machine_name.clone(),
            machine_number: shared.machine,
            number: shared.number,
            committed_at: vault.records().now(),
            written: Written {
                packs: packs.len() as u32,
                index_pieces,
                stored_bytes: shared.stored_bytes(),
            },
            fate: Default::default(),
            pin: None,
            forgotten_since: None,
            content: PointDraft {
                host: own_or(draft.host.clone(), &shared.host),
                ..draft
            },
        };
        let object = object::point(shared.machine, shared.number);
        let record = PointRecord::Commit {
            point: Box::new(point.clone()),
        };
        let bytes = vault.records().seal_json(ObjectType::Point, &object, &record);
        let (path, content) = (commit_file.to_owned(), bytes.clone());
        let written = offload(move || write_durably(&path, &content)).await;
        written
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
            .map_err(|source| CommitError::CommitFile {
                path: commit_file.to_owned(),
                source,
            })?;
        create_point(vault, shared.machine, shared.number, bytes).await?;
        // The next session of this host finds this one's chunks on disk. Without it they are fetched again.
        if let Err(error) = index::blocking(vault, |vault| vault.index.write_down()).await {
            tracing::warn!(%error, "the local index could not be written; it will be fetched again");
        }
        Ok(point)
    }
}

impl SessionWriter {
    /// Packs of sessions that never committed are listed by pieces that no point counts: where a listing left such a piece
    /// out, nobody would find what this point relies on. Its own pieces list them as well.
    async fn list_what_nobody_counts(&self) -> Result<(), CommitError> {
        let shared = &self.shared;
        let vault = &shared.vault;
        for (machine, session) in shared.used_sessions() {
            let is_live = shared.log.live(machine).binary_search(&session).is_ok();
            let is_counted = is_live || {
                match register::point_record(vault.records(), machine, session).await {
                    Ok(record) => matches!(record, Some(PointRecord::Commit { .. })),
                    // What cannot be read counts nothing, and need not stop anybody else.
                    Err(error) if error.is_damage() => false,
                    Err(error) => return Err(error.into()),
                }
            };
            if !is_counted {
                self.list_packs_of(machine, session).await?;
            }
        }
        Ok(())
    }

    /// Piece by piece, so that memory does not grow with what a session before has left.
    async fn list_packs_of(&self, machine: MachineNumber, session: SessionNumber) -> Result<(), CommitError> {
        let vault = &self.shared.vault;
        let mut packs = self.shared.used_of(machine, session);
        for number in 0.. {
            let piece = PackKey {
                machine,
                session,
                number,
            };
            let Some(mut listings) = index::read_piece(vault, piece).await? else {
                break;
            };
            listings.retain(|listing| packs.remove(&listing.info.key));
            if !listings.is_empty() {
                self.relist(listings).await?;
            }
        }
        // In pieces that a clean-up has replaced, or after one that is missing.
        for pack in packs {
            let looked = vault.store.size(&pack.object()).await;
            let size_bytes = looked.map_err(|source| CommitError::Check { source })?.unwrap_or(0);
            match pack_listing(vault, pack, size_bytes).await {
                Ok(Some(listing)) => self.relist(vec![listing]).await?,
                // What is not as it should be, the next step says.
                Ok(None) => {}
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn own_or(own: String, other: &str) -> String {
    if own.is_empty() { other.to_owned() } else { own }
}

/// Step 6. A pack that is not there now was never acknowledged or has been deleted beneath us; either way the point must
/// not be.
async fn check_packs(shared: &Arc<Shared>) -> Result<(), CommitError> {
    let vault = &shared.vault;
    let (own, used, _) = shared.needed();
    let own = own.into_iter().map(|(number, size_bytes)| {
        (
            PackKey {
                machine: shared.machine,
                session: shared.number,
                number,
            },
            size_bytes,
        )
    });
    let looked = stream::iter(own.chain(used.into_sizes())).map(|(key, wanted)| async move {
        let found = vault.store.size(&key.object()).await?;
        let what = match found {
            Some(found) if found == u64::from(wanted) => return Ok(None),
            Some(found) => format!("it has {found} bytes instead of {wanted}"),
            None => "it is not there".to_owned(),
        };
        Ok(Some((key, what)))
    });
    let wrong: Vec<(PackKey, String)> = looked
        .buffer_unordered(LOOKS_AT_ONCE)
        .try_filter_map(|wrong| std::future::ready(Ok(wrong)))
        .try_collect()
        .await
        .map_err(|source| CommitError::Check { source })?;
    let Some((first, what)) = wrong.first() else {
        return Ok(());
    };
    // Or the next session would rely on them again, on this host and on others.
    let keys: Vec<PackKey> = wrong.iter().map(|(key, _)| *key).collect();
    if let Err(error) = gclog::quarantine(vault.records(), &keys, what).await {
        tracing::warn!(pack = %first, %error, "packs that are not as they should be could not be quarantined");
    }
    Err(CommitError::PackMissing {
        pack: first.to_string(),
        what: what.clone(),
    })
}

/// What a session has left that died may be seen in a local vault and be lost with the power ([`Store::settle`]). A point's
/// acknowledgement vouches for the packs of its own session; this point vouches for those of sessions that have none.
///
/// [`Store::settle`]: crate::store::Store::settle
async fn settle_what_nobody_vouches_for(shared: &Arc<Shared>) -> Result<(), CommitError> {
    let vault = &shared.vault;
    if !vault.store.is_a_folder() {
        return Ok(());
    }
    let (_, used, _) = shared.needed();
    for (machine, session) in used.sessions() {
        let record = register::point_record(vault.records(), machine, session).await?;
        if matches!(record, Some(PointRecord::Commit { .. })) {
            continue;
        }
        let packs: Vec<PackKey> = used.of(machine, session).collect();
        for pack in packs {
            let settled = vault.store.settle(&pack.object()).await;
            settled.map_err(|source| CommitError::Check { source })?;
        }
    }
    Ok(())
}

/// Step 7. Only what is read decides; the answer to a create only says when to read.
async fn create_point(
    vault: &Arc<Inner>,
    machine: MachineNumber,
    number: SessionNumber,
    bytes: Bytes,
) -> Result<(), CommitError> {
    let object = object::point(machine, number);
    let mut pause: Duration = vault.store.first_pause();
    let mut attempt = 1;
    loop {
        let error = match vault.store.create_once(&object, bytes.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => vault.store.create_failed(&object, error),
        };
        tracing::debug!(
            object,
            ?error,
            attempt,
            "the commit was answered with an error; reading what is there"
        );
        let why = match vault.store.get(&object, RECORD_LIMIT_BYTES).await {
            Ok(Some(found)) if found == bytes => match vault.store.settle(&object).await {
                Ok(()) => return Ok(()),
                Err(unsettled) => unsettled,
            },
            Ok(Some(found)) => return Err(whose(vault, machine, number, &found)),
            // What a local file system has refused does not come later, as it might from a store far away; and a full disk stays
            // full for longer than anybody waits here.
            Ok(None) if matches!(error, StoreError::Full { .. }) => return Err(CommitError::Full(error)),
            // Nothing is there: the same bytes again.
            Ok(None) => error,
            Err(StoreError::TooLarge { .. }) => return Err(CommitError::OtherPoint),
            Err(unread) => unread,
        };
        if attempt == COMMIT_ATTEMPTS || !why.may_help_to_try_again() {
            return Err(CommitError::Unknown(why));
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
        attempt += 1;
    }
}

/// What stands where our point should.
fn whose(vault: &Arc<Inner>, machine: MachineNumber, number: SessionNumber, found: &[u8]) -> CommitError {
    let object = object::point(machine, number);
    match vault.records().open_json(ObjectType::Point, &object, found) {
        Ok(PointRecord::Abort { reason, .. }) => CommitError::Fenced { reason },
        Ok(PointRecord::Commit { .. }) => CommitError::OtherPoint,
        Err(error) => CommitError::Read(error),
    }
}

/// Sends a commit again whose outcome is not known.
pub(crate) async fn commit_again(
    vault: &Arc<Inner>,
    machine: MachineNumber,
    number: SessionNumber,
    commit_file: &Path,
) -> Result<Point, CommitError> {
    let failed = |source| CommitError::CommitFile {
        path: commit_file.to_owned(),
        source,
    };
    let path = commit_file.to_owned();
    let read = offload(move || std::fs::read(path)).await;
    let read = read.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    let bytes: Bytes = read.map_err(failed)?.into();
    let object = object::point(machine, number);
    let record = vault.records().open_json(ObjectType::Point, &object, &bytes)?;
    let PointRecord::Commit { point } = record else {
        let what = "the commit file holds no commit".to_owned();
        return Err(ReadError::Damaged {
            object: commit_file.display().to_string(),
            what,
        }
        .into());
    };
    create_point(vault, machine, number, bytes).await?;
    Ok(*point)
}

/// The file and its folder are on disk when this returns.
fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder: PathBuf = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(&folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(&folder)?.sync_all()
}
