//! From a credential to the vault's keys of all generations.
//!
//! The newest generation is known from the register `generations/<n>`, which needs no listing. Only its slots are tried, and a
//! slot counts only if its key is the one that the generation's record names. From there each record gives the key of the
//! generation before.

use super::{Credential, Generation, Slot, SlotContext, SlotError, VaultKey};
use crate::ids::VaultId;
use crate::key::generation::GenerationError;
use crate::object;
use crate::offload::offload;
use crate::read::ReadError;
use crate::register::read_dense;
use crate::store::{Store, StoreError};

/// Slots that a generation has at most; each passphrase slot that is tried takes 0.15 s.
pub(crate) const SLOTS_LIMIT: usize = 64;
/// A slot is far smaller, and so is a generation's record; more is not read.
pub(crate) const SLOT_LIMIT_BYTES: u64 = 16 * 1024;
/// The generation that a vault is made with has no record.
const FIRST_RECORD: u32 = 1;

/// What a credential opened.
pub(crate) struct Unlocked {
    /// Of generations 0 to the newest.
    pub(crate) keys: Vec<VaultKey>,
    /// The name of the slot that opened.
    pub(crate) slot: String,
    pub(crate) label: String,
}

/// Why a credential opened nothing.
#[derive(Debug)]
pub(crate) enum UnlockError {
    WrongKey {
        slots: usize,
        unreadable: usize,
    },
    /// It opens an older generation: the rotation left it behind.
    LeftBehind {
        opens: u32,
        newest: u32,
    },
    Newer(u32),
    Damaged(String),
    Store(StoreError),
}

impl From<StoreError> for UnlockError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

/// The records of generations 1 to the newest.
type Generations = Vec<Result<Generation, GenerationError>>;

pub(crate) async fn unlock(store: &Store, vault: VaultId, credential: &Credential) -> Result<Unlocked, UnlockError> {
    let generations = read_generations(store, vault).await?;
    let newest = generations.len() as u32;
    if let Some(Err(GenerationError::Newer(version))) = generations.last() {
        return Err(UnlockError::Newer(*version));
    }
    let record_of = |number: u32| {
        generations
            .get(number.checked_sub(FIRST_RECORD)? as usize)?
            .as_ref()
            .ok()
    };
    let wrong = match try_slots(store, vault, newest, credential, record_of(newest)).await? {
        Ok((slot, label, key)) => {
            let keys = chain(store, vault, &generations, key).await?;
            return Ok(Unlocked { keys, slot, label });
        }
        Err(wrong) => wrong,
    };
    for older in (0..newest).rev() {
        if let Ok((_, _, key)) = try_slots(store, vault, older, credential, record_of(older)).await? {
            if record_of(older + 1).is_some_and(|next| !next.follows(&key)) {
                let object = object::generation(older + 1);
                return Err(UnlockError::Damaged(format!(
                    "`{object}` was not made by anybody who had the vault's key"
                )));
            }
            return Err(UnlockError::LeftBehind { opens: older, newest });
        }
    }
    Err(wrong)
}

async fn read_generations(store: &Store, vault: VaultId) -> Result<Generations, UnlockError> {
    let read = |number| async move {
        let found = store.get(&object::generation(number), SLOT_LIMIT_BYTES).await;
        match found {
            Ok(Some(bytes)) => Ok(Some(Generation::decode(vault, number, &bytes))),
            Ok(None) => Ok(None),
            Err(StoreError::TooLarge { .. }) => Ok(Some(Err(GenerationError::Damaged("it is far too large")))),
            Err(error) => Err(ReadError::Store(error)),
        }
    };
    let all = read_dense(FIRST_RECORD, read).await.map_err(|error| match error {
        ReadError::Store(error) => UnlockError::Store(error),
        other => UnlockError::Damaged(other.to_string()),
    })?;
    Ok(all.into_iter().map(|(_, record)| record).collect())
}

/// Whether the store has a record of this generation. A GET is never stale, so this settles who was first.
pub(crate) async fn generation_exists(store: &Store, number: u32) -> Result<bool, StoreError> {
    Ok(store.size(&object::generation(number)).await?.is_some())
}

/// The names of a generation's slots, as a listing has them.
pub(crate) async fn list_slots(store: &Store, generation: u32) -> Result<Vec<String>, StoreError> {
    let folder = object::slots(generation);
    let listed = store.list(&folder).await?;
    let name = |object: &str| {
        let name = object.strip_prefix(&folder)?.strip_prefix('/')?;
        (!name.contains('/')).then(|| name.to_owned())
    };
    Ok(listed.iter().filter_map(|found| name(&found.object)).collect())
}

type Opened = (String, String, VaultKey);

/// Tries the credential on every slot of a generation. Where the record is damaged, slots must agree: a rotation that was
/// beaten may have left some with another key, and what that sealed nobody could open.
async fn try_slots(
    store: &Store,
    vault: VaultId,
    generation: u32,
    credential: &Credential,
    record: Option<&Generation>,
) -> Result<Result<Opened, UnlockError>, UnlockError> {
    let names = list_slots(store, generation).await?;
    if names.is_empty() {
        let what = format!("it has no key slot of generation {generation}");
        return Ok(Err(UnlockError::Damaged(what)));
    }
    let slots = names.len();
    let (mut unreadable, mut last_error) = (0, None);
    let mut opened: Option<Opened> = None;
    for name in names.into_iter().take(SLOTS_LIMIT) {
        match open_stored_slot(store, vault, generation, &name, credential).await? {
            Ok((_, key)) if record.is_some_and(|record| !record.is_of(&key)) => {
                tracing::debug!(generation, name, "a slot of a rotation that did not come to be");
            }
            Ok((slot, key)) => {
                let is_certain = record.is_some() || generation == 0;
                if opened.as_ref().is_some_and(|(_, _, known)| *known != key) {
                    let object = object::generation(generation);
                    return Err(UnlockError::Damaged(format!("`{object}`, which says which key counts")));
                }
                opened = Some((name, slot.label().to_owned(), key));
                if is_certain {
                    break;
                }
            }
            Err(SlotError::WrongKey) => {}
            Err(error) => {
                unreadable += 1;
                last_error = Some(error);
            }
        }
    }
    Ok(match (opened, last_error) {
        (Some(opened), _) => Ok(opened),
        (None, Some(SlotError::Newer(version))) => Err(UnlockError::Newer(version)),
        (None, Some(error)) if slots == 1 => Err(UnlockError::Damaged(format!("its only key slot: {error}"))),
        (None, _) => Err(UnlockError::WrongKey { slots, unreadable }),
    })
}

/// Reads one slot and tries the credential on it.
pub(crate) async fn open_stored_slot(
    store: &Store,
    vault: VaultId,
    generation: u32,
    name: &str,
    credential: &Credential,
) -> Result<Result<(Slot, VaultKey), SlotError>, StoreError> {
    let bytes = match store.get(&object::slot(generation, name), SLOT_LIMIT_BYTES).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Err(SlotError::WrongKey)),
        Err(StoreError::TooLarge { .. }) => return Ok(Err(SlotError::Damaged("it is far too large"))),
        Err(error) => return Err(error),
    };
    // Argon2 takes its time, off the runtime.
    let (name, credential) = (name.to_owned(), credential.clone());
    let opening = offload(move || {
        let slot = Slot::decode(&bytes)?;
        let context = SlotContext {
            vault,
            generation,
            name: &name,
        };
        let key = slot.open(&credential, context)?;
        Ok((slot, key))
    });
    Ok(opening.await.unwrap_or(Err(SlotError::Damaged("opening it failed"))))
}

/// The keys of all generations, down the chain from the newest.
async fn chain(
    store: &Store,
    vault: VaultId,
    generations: &Generations,
    newest: VaultKey,
) -> Result<Vec<VaultKey>, UnlockError> {
    let mut keys = vec![newest];
    for (below, record) in generations.iter().enumerate().rev() {
        let number = below as u32 + FIRST_RECORD;
        let key = keys.last().expect("there is one key at least");
        let previous = record
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|record| record.previous(key));
        keys.push(match previous {
            Ok(previous) => previous,
            Err(error) => previous_from_slots(store, vault, number, key, &error).await?,
        });
    }
    keys.reverse();
    Ok(keys)
}

/// Where a generation's record is damaged, each of its slots has the key of the generation before too.
async fn previous_from_slots(
    store: &Store,
    vault: VaultId,
    generation: u32,
    key: &VaultKey,
    error: &GenerationError,
) -> Result<VaultKey, UnlockError> {
    let object = object::generation(generation);
    tracing::warn!(object, %error, "a record of the vault's keys is damaged; its key slots have what it said");
    for name in list_slots(store, generation).await? {
        let Some(bytes) = store.get(&object::slot(generation, &name), SLOT_LIMIT_BYTES).await? else {
            continue;
        };
        let context = SlotContext {
            vault,
            generation,
            name: &name,
        };
        let slot = Slot::decode(&bytes).ok().filter(|slot| slot.is_made_with(key, context));
        if let Some(previous) = slot.and_then(|slot| slot.previous(key, context).ok()) {
            return Ok(previous);
        }
    }
    Err(UnlockError::Damaged(format!("`{object}`: {error}")))
}
