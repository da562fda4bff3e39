//! Deleting, pieces of the index first: were a pack gone before the piece that lists it, writers of other hosts would rely on it
//! until their commit finds that it is not there.
//!
//! A store may say no: an object under a retention time, a container that is immutable, a role that must not delete. That is
//! no failure of the clean-up. What was refused is in the report, the packs stay condemned, and the next run tries again.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, stream};

use super::packs::Packs;
use super::parity;
use super::pieces::Piece;
use super::{CleanError, CleanProgress, CleanReport, CleanStage, Refused, RefusedKind};
use crate::object::PackKey;
use crate::store::StoreError;
use crate::vault::Inner;

/// Requests at once.
const DELETES_AT_ONCE: usize = 16;
/// After so many refusals in a row that are no "no", the store is taken to be away; what is left waits for the next run.
const FAILURES_LIMIT: usize = 32;

/// What is gone now, and what was to go and is not.
#[derive(Default)]
pub(super) struct Deleted {
    pub(super) packs: BTreeSet<PackKey>,
    pub(super) pieces: BTreeSet<PackKey>,
    pub(super) refused_pieces: BTreeSet<PackKey>,
}

pub(super) async fn delete(
    vault: &Arc<Inner>,
    pieces: Vec<&Piece>,
    doomed: &BTreeSet<PackKey>,
    packs: &Packs,
    report: &mut CleanReport,
    progress: &(dyn Fn(CleanProgress) + Sync),
) -> Result<Deleted, CleanError> {
    let mut deleted = Deleted::default();
    let mut state = State {
        done: 0,
        total: (pieces.len() + doomed.len()) as u64,
        failures: 0,
        progress,
    };
    // A pack that a piece still lists stays.
    let mut listed: BTreeSet<PackKey> = BTreeSet::new();
    let objects = pieces
        .iter()
        .map(|piece| (piece.key.index_object(), piece.bytes))
        .collect();
    for (piece, gone) in pieces.iter().zip(state.delete_all(vault, objects, report).await?) {
        if gone {
            report.deleted_pieces += 1;
            deleted.pieces.insert(piece.key);
        } else {
            deleted.refused_pieces.insert(piece.key);
            listed.extend(&piece.packs);
        }
    }
    let going: Vec<PackKey> = doomed.iter().filter(|pack| !listed.contains(pack)).copied().collect();
    parity::of_packs_that_go(vault, &going).await;
    let objects = going.iter().map(|pack| (pack.object(), packs.bytes(pack))).collect();
    for (pack, gone) in going.iter().zip(state.delete_all(vault, objects, report).await?) {
        if gone {
            report.deleted.add(packs.bytes(pack));
            deleted.packs.insert(*pack);
        }
    }
    Ok(deleted)
}

struct State<'a> {
    done: u64,
    total: u64,
    failures: usize,
    progress: &'a (dyn Fn(CleanProgress) + Sync),
}

impl State<'_> {
    /// Says of each object whether it is gone.
    async fn delete_all(
        &mut self,
        vault: &Arc<Inner>,
        objects: Vec<(String, u64)>,
        report: &mut CleanReport,
    ) -> Result<Vec<bool>, CleanError> {
        let mut gone = Vec::with_capacity(objects.len());
        let mut answers = stream::iter(objects)
            .map(|(object, bytes)| async move {
                let answer = vault.store.delete(&object).await;
                (object, bytes, answer)
            })
            .buffered(DELETES_AT_ONCE);
        while let Some((object, bytes, answer)) = answers.next().await {
            gone.push(answer.is_ok());
            match answer {
                Ok(()) => self.failures = 0,
                Err(error) => {
                    let refused = Refused::new(object, bytes, &error);
                    let is_away = refused.kind == RefusedKind::Failed;
                    self.failures = if is_away { self.failures + 1 } else { 0 };
                    report.refused.push(refused);
                    if self.failures > FAILURES_LIMIT {
                        return Err(error.into());
                    }
                }
            }
            self.done += 1;
            (self.progress)(CleanProgress {
                stage: CleanStage::Deleting,
                done: self.done,
                total: self.total,
            });
        }
        Ok(gone)
    }
}

/// What S3 and Azure call an object that is under a lock, in lower case; with 403, 409 or 400, as each likes it.
const LOCK_WORDS: [&str; 5] = [
    "objectlocked",
    "object lock",
    "immutable",
    "retention",
    "worm protected",
];
/// What they say of a right that is missing. A bulk deletion answers 200 and says it of each object.
const DENIED_WORDS: [&str; 3] = [
    "accessdenied",
    "authorizationpermissionmismatch",
    "authorizationfailure",
];

impl Refused {
    fn new(object: String, bytes: u64, error: &StoreError) -> Self {
        let cause = error.cause();
        let why = cause.map_or_else(|| error.to_string(), ToString::to_string);
        let said = why.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
        let kind = if says(&LOCK_WORDS) {
            RefusedKind::Locked
        } else if matches!(error, StoreError::Denied { .. }) || says(&DENIED_WORDS) {
            RefusedKind::Denied
        } else {
            RefusedKind::Failed
        };
        Self {
            object,
            bytes,
            why,
            kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Cause;

    #[test]
    fn what_stores_say_of_a_lock_is_no_failure() {
        let kind = |said: &str| {
            let error = StoreError::Failed {
                store: String::new(),
                action: "delete",
                object: String::new(),
                source: Cause::text(said),
            };
            Refused::new(String::new(), 0, &error).kind
        };
        for said in [
            // Azure, by policy, by legal hold and by version; S3; MinIO.
            "the server says BlobImmutableDueToPolicy: This operation is not permitted as the blob is immutable due to a policy.",
            "the server says BlobImmutableDueToLegalHold: This operation is not permitted as the blob is immutable due to one or more legal holds.",
            "the server says AccessDenied: Access Denied because object protected by object lock.",
            "the server says ObjectLocked: Object is WORM protected and cannot be overwritten",
        ] {
            assert_eq!(kind(said), RefusedKind::Locked, "{said}");
        }
        for said in [
            "the server says AuthorizationPermissionMismatch: This request is not authorized",
            "the server says AccessDenied: Access Denied.",
        ] {
            assert_eq!(kind(said), RefusedKind::Denied, "{said}");
        }
        assert_eq!(kind("the server says ServerBusy"), RefusedKind::Failed);
    }
}
