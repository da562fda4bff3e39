//! The keys that open a vault: which there are, one more, one less. Rotation is next door.
//!
//! None of this changes what the vault's key is, so a key that is taken away opens nothing new only after a rotation.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::open::{OpenError, Proven, prove};
use crate::ids::VaultId;
use crate::key::{
    Credential, KeyError, SLOT_LIMIT_BYTES, SLOTS_LIMIT, Slot, SlotContext, SlotKeys, SlotKind, VaultKey,
    generation_exists, list_slots, open_stored_slot, random,
};
use crate::object;
use crate::offload::offload;
use crate::store::{Store, StoreError};

/// Longer is no label but a mistake.
const LABEL_LIMIT_CHARACTERS: usize = 64;
/// Hexadecimal digits in a slot's name.
const NAME_DIGITS: usize = 16;

/// Why keys were not listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("`{label}` is no label: {what}")]
    Label { label: String, what: &'static str },
    #[error("there is a key `{label}` already")]
    LabelTaken { label: String },
    #[error("key `{label}` cannot be used")]
    Key { label: String, source: KeyError },
    #[error("this is key `{label}`, which opens the vault already")]
    OpensAlready { label: String },
    #[error("the vault has {SLOTS_LIMIT} key slots, and more are not tried")]
    Full,
    #[error("the vault has no key `{wanted}`")]
    NotFound { wanted: String },
    #[error("{count} keys are called `{wanted}`")]
    Ambiguous { wanted: String, count: usize },
    #[error("key `{label}` is the one that opened the vault just now")]
    InUse { label: String },
    #[error("key `{label}` is the last one that opens the vault")]
    Last { label: String },
    #[error("the last other keys were removed at the same time, so key `{label}` was made again")]
    MadeAgain { label: String },
    #[error("after the rotation these keys would no longer open the vault: {}", labels.join(", "))]
    WouldDrop { labels: Vec<String> },
    #[error("somebody else rotated the vault's keys at the same time")]
    RotatedMeanwhile,
    #[error("the new slot `{object}` does not open as it was written")]
    NotWritten { object: String },
    /// Either all of it was done or nothing; the key in use opens the vault in both cases.
    #[error("whether the vault's keys are rotated is not known: the store gave no answer")]
    Unknown { source: StoreError },
    #[error("{doing}")]
    Store { doing: &'static str, source: StoreError },
}

impl KeysError {
    pub(super) fn while_doing(doing: &'static str) -> impl Fn(StoreError) -> Self {
        move |source| Self::Store { doing, source }
    }
}

/// A key slot as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// 16 random hexadecimal digits, the last part of its object's name.
    pub name: String,
    pub generation: u32,
    /// It opened the vault just now.
    pub in_use: bool,
    pub state: SlotState,
}

/// What is known of a slot without its credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Made by somebody who had the generation's key.
    Valid {
        label: String,
        kind: SlotKind,
        created_at: Timestamp,
    },
    /// Opens nothing: a rotation did not come to its end, or somebody planted it.
    Foreign {
        label: String,
    },
    Unreadable {
        what: String,
    },
}

impl KeySlot {
    /// What people call it, if it counts.
    pub fn label(&self) -> Option<&str> {
        match &self.state {
            SlotState::Valid { label, .. } => Some(label),
            SlotState::Foreign { .. } | SlotState::Unreadable { .. } => None,
        }
    }
}

/// A vault opened for its keys alone: it holds the vault's keys themselves, which an open [`super::Vault`] does not.
pub struct VaultKeys {
    pub(super) store: Store,
    pub(super) vault: VaultId,
    /// Of generations 0 to the newest.
    pub(super) keys: Vec<VaultKey>,
    pub(super) credential: Credential,
    /// The slot that opened.
    pub(super) slot: String,
    pub(super) label: String,
}

impl std::fmt::Debug for VaultKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VaultKeys({}, generation {})", self.vault, self.generation())
    }
}

impl VaultKeys {
    /// `expect_id` is what this host has pinned. A vault that is not encrypted has no keys: [`OpenError::Unencrypted`].
    pub async fn open(store: Store, credential: Credential, expect_id: Option<VaultId>) -> Result<Self, OpenError> {
        match prove(&store, Some(&credential), expect_id).await? {
            Proven::Unencrypted { .. } => Err(OpenError::Unencrypted),
            Proven::Encrypted { id, unlocked, .. } => Ok(Self {
                store,
                vault: id,
                keys: unlocked.keys,
                credential,
                slot: unlocked.slot,
                label: unlocked.label,
            }),
        }
    }

    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// The label of the key that opened the vault.
    pub fn label_in_use(&self) -> &str {
        &self.label
    }

    /// The newest one.
    pub fn generation(&self) -> u32 {
        self.keys.len() as u32 - 1
    }

    /// Slots of the newest generation, and what a rotation that did not come to its end left for the next one.
    pub async fn list(&self) -> Result<Vec<KeySlot>, KeysError> {
        let mut found = self.slots_of(self.generation()).await?;
        found.extend(self.slots_of(self.generation() + 1).await?);
        Ok(found)
    }

    /// Slots of the older generations, the newest first. They open what was written in their time.
    pub async fn list_older(&self) -> Result<Vec<KeySlot>, KeysError> {
        let mut found = Vec::new();
        for generation in (0..self.generation()).rev() {
            found.extend(self.slots_of(generation).await?);
        }
        Ok(found)
    }

    /// As a listing shows them, which may be behind.
    pub(super) async fn slots_of(&self, generation: u32) -> Result<Vec<KeySlot>, KeysError> {
        let failed = KeysError::while_doing("list the vault's keys");
        let mut found = Vec::new();
        for name in list_slots(&self.store, generation).await.map_err(&failed)? {
            found.extend(self.slot(generation, &name).await.map_err(&failed)?);
        }
        Ok(found)
    }

    /// One slot, or nothing where nothing is.
    async fn slot(&self, generation: u32, name: &str) -> Result<Option<KeySlot>, StoreError> {
        let bytes = match self.store.get(&object::slot(generation, name), SLOT_LIMIT_BYTES).await {
            Ok(Some(bytes)) => Slot::decode(&bytes).map_err(|error| error.to_string()),
            Ok(None) => return Ok(None),
            Err(StoreError::TooLarge { .. }) => Err("it is far too large".to_owned()),
            Err(error) => return Err(error),
        };
        Ok(Some(KeySlot {
            name: name.to_owned(),
            generation,
            in_use: generation == self.generation() && name == self.slot,
            state: self.state_of(generation, name, bytes),
        }))
    }

    fn state_of(&self, generation: u32, name: &str, slot: Result<Slot, String>) -> SlotState {
        let context = SlotContext {
            vault: self.vault,
            generation,
            name,
        };
        let made_with = |slot: &Slot| {
            let key = self.keys.get(generation as usize);
            key.is_some_and(|key| slot.is_made_with(key, context))
        };
        match slot {
            Ok(slot) if made_with(&slot) => SlotState::Valid {
                label: slot.label().to_owned(),
                kind: slot.kind(),
                created_at: slot.created_at(),
            },
            Ok(slot) => SlotState::Foreign {
                label: slot.label().to_owned(),
            },
            Err(what) => SlotState::Unreadable { what },
        }
    }

    /// One more key for the newest generation.
    ///
    /// Beside a rotation on another host the two agree by their order: this creates its slot and then looks for the next
    /// generation, the rotation creates the generation and then lists slots. One of them sees the other.
    pub async fn add(&self, label: &str, credential: &Credential) -> Result<KeySlot, KeysError> {
        check_new(label, credential)?;
        let failed = KeysError::while_doing("add a key");
        let there = self.slots_of(self.generation()).await?;
        if there.len() >= SLOTS_LIMIT {
            return Err(KeysError::Full);
        }
        if there.iter().any(|slot| slot.label() == Some(label)) {
            return Err(KeysError::LabelTaken {
                label: label.to_owned(),
            });
        }
        // What a beaten rotation left may open with this credential, and is nobody's.
        for slot in there.iter().filter(|slot| slot.label().is_some()) {
            let opened = open_stored_slot(&self.store, self.vault, slot.generation, &slot.name, credential);
            if opened.await.map_err(&failed)?.is_ok() {
                return Err(KeysError::OpensAlready {
                    label: slot.label().unwrap_or(&slot.name).to_owned(),
                });
            }
        }
        let name = self.create_proven(self.generation(), label, credential).await?;
        if generation_exists(&self.store, self.generation() + 1)
            .await
            .map_err(&failed)?
        {
            return Err(KeysError::RotatedMeanwhile);
        }
        let made = self.slot(self.generation(), &name).await.map_err(&failed)?;
        made.filter(|slot| slot.label().is_some())
            .ok_or_else(|| KeysError::NotWritten {
                object: object::slot(self.generation(), &name),
            })
    }

    /// Creates a slot of the newest generation and opens it from the store.
    async fn create_proven(&self, generation: u32, label: &str, credential: &Credential) -> Result<String, KeysError> {
        let place = SlotPlace {
            vault: self.vault,
            generation,
        };
        let key = self.keys[generation as usize].clone();
        let previous = (generation as usize)
            .checked_sub(1)
            .map(|below| self.keys[below].clone());
        create_proven_slot(&self.store, place, label, credential, (key, previous)).await
    }

    /// Takes a key's slot away, by label or by the slot's name. Whoever had the key may have kept what it opened: only a
    /// rotation shuts them out, and only of what is written from then on.
    ///
    /// The one request in the vault's life with keys that deletes, so it wants the cleaner's credentials.
    pub async fn remove(&mut self, wanted: &str, force: bool) -> Result<KeySlot, KeysError> {
        let failed = KeysError::while_doing("remove a key");
        let newest = self.slots_of(self.generation()).await?;
        let target = self.find(wanted, &newest).await?;
        // The one in use is known to be there, whatever the listing shows.
        let valid = newest.iter().filter(|slot| slot.label().is_some());
        let others = valid.map(|slot| slot.name.clone()).chain([self.slot.clone()]);
        let others: BTreeSet<String> = others.filter(|name| *name != target.name).collect();
        let counts = target.generation == self.generation();
        if let Some(label) = target.label().filter(|_| counts) {
            let label = label.to_owned();
            if others.is_empty() {
                return Err(KeysError::Last { label });
            }
            if target.in_use && !force {
                return Err(KeysError::InUse { label });
            }
        }
        let object = object::slot(target.generation, &target.name);
        self.store.delete(&object).await.map_err(&failed)?;
        if counts && !self.any_is_there(&others).await.map_err(&failed)? {
            // Two who each removed the other's key: whoever sees that none is left puts its own back.
            let (label, credential) = (self.label.clone(), self.credential.clone());
            self.slot = self.create_proven(self.generation(), &label, &credential).await?;
            return Err(KeysError::MadeAgain { label });
        }
        Ok(target)
    }

    async fn any_is_there(&self, names: &BTreeSet<String>) -> Result<bool, StoreError> {
        for name in names {
            if self.store.size(&object::slot(self.generation(), name)).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn find(&self, wanted: &str, newest: &[KeySlot]) -> Result<KeySlot, KeysError> {
        let mut labelled = newest.iter().filter(|slot| slot.label() == Some(wanted));
        match (labelled.next(), labelled.count()) {
            (Some(slot), 0) => return Ok(slot.clone()),
            (Some(_), more) => {
                return Err(KeysError::Ambiguous {
                    wanted: wanted.to_owned(),
                    count: more + 1,
                });
            }
            (None, _) => {}
        }
        let mut everywhere = self.list().await?;
        everywhere.extend(self.list_older().await?);
        everywhere
            .into_iter()
            .find(|slot| slot.name == wanted)
            .ok_or_else(|| KeysError::NotFound {
                wanted: wanted.to_owned(),
            })
    }
}

/// Refuses labels that would confuse people and credentials that anybody could guess.
pub(super) fn check_new(label: &str, credential: &Credential) -> Result<(), KeysError> {
    let wrong = |what| {
        Err(KeysError::Label {
            label: label.to_owned(),
            what,
        })
    };
    if label.is_empty() || label.trim() != label {
        return wrong("it is empty, or begins or ends with a blank");
    }
    if label.chars().count() > LABEL_LIMIT_CHARACTERS {
        return wrong("it is longer than 64 characters");
    }
    if label.chars().any(char::is_control) {
        return wrong("it has control characters");
    }
    if label.len() == NAME_DIGITS && label.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return wrong("it looks like a slot's name");
    }
    credential.check_new().map_err(|source| KeysError::Key {
        label: label.to_owned(),
        source,
    })
}

/// Which generation of which vault a slot is for.
#[derive(Clone, Copy)]
pub(super) struct SlotPlace {
    pub(super) vault: VaultId,
    pub(super) generation: u32,
}

/// Makes a slot with a new name and returns the name. The keys are the generation's and that of the one before.
pub(super) async fn create_slot(
    store: &Store,
    place: SlotPlace,
    label: &str,
    credential: &Credential,
    (key, previous): (VaultKey, Option<VaultKey>),
) -> Result<String, StoreError> {
    let name = hex::encode(random::<{ NAME_DIGITS / 2 }>());
    let (label, credential, slot_name) = (label.to_owned(), credential.clone(), name.clone());
    // Argon2 takes its time, off the runtime.
    let made = offload(move || {
        let context = SlotContext {
            vault: place.vault,
            generation: place.generation,
            name: &slot_name,
        };
        let keys = SlotKeys {
            key: &key,
            previous: previous.as_ref(),
        };
        Slot::make(&label, Timestamp::now(), &credential, context, keys)
    });
    let slot = made
        .await
        .expect("making a slot does not panic")
        .expect("our own parameters are sound");
    store
        .create(&object::slot(place.generation, &name), slot.encode().into())
        .await?;
    Ok(name)
}

/// As [`create_slot`], and opens it from the store: a key that somebody relies on has opened once.
pub(super) async fn create_proven_slot(
    store: &Store,
    place: SlotPlace,
    label: &str,
    credential: &Credential,
    (key, previous): (VaultKey, Option<VaultKey>),
) -> Result<String, KeysError> {
    let failed = KeysError::while_doing("write a key slot");
    let name = create_slot(store, place, label, credential, (key.clone(), previous))
        .await
        .map_err(&failed)?;
    match open_stored_slot(store, place.vault, place.generation, &name, credential)
        .await
        .map_err(&failed)?
    {
        Ok((_, opened)) if opened == key => Ok(name),
        Ok(_) | Err(_) => Err(KeysError::NotWritten {
            object: object::slot(place.generation, &name),
        }),
    }
}
