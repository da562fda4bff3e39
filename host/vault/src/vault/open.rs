//! Opening a vault: the `format` object, the key slots, the proof that they belong together, the local index.

use std::path::PathBuf;

use super::format::{FORMAT_LIMIT_BYTES, FORMAT_VERSION, Format, FormatError};
use super::{Inner, Tuning};
use crate::ids::{VaultId, parse_key};
use crate::index::LocalIndex;
use crate::key::{Cipher, Credential, KeyError, KeyRing, Slot, SlotContext, SlotError, VaultKey};
use crate::object;
use crate::pack::PackPool;
use crate::read::ReaderState;
use crate::store::{Store, StoreError};

/// Slots that are tried; each passphrase slot takes 0.15 s.
const SLOTS_LIMIT: usize = 64;
/// A slot is far smaller; more is not read.
const SLOT_LIMIT_BYTES: u64 = 16 * 1024;

/// How a vault is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// What may be thrown away: the local index.
    pub cache_folder: PathBuf,
    /// The id that this host has pinned.
    pub expect_id: Option<VaultId>,
    pub allow_unencrypted: bool,
}

/// Why a vault was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("nothing is there")]
    NotThere,
    #[error("this is no vault: {found}")]
    NotAVault { found: String },
    #[error("the vault has format {found}, this version of Coffre knows formats up to {known}")]
    NewerFormat { found: u32, known: u32 },
    #[error("none of the vault's {slots} key slots opens with this key")]
    WrongKey { slots: usize },
    #[error("the key cannot be used")]
    Key { source: KeyError },
    #[error("the vault is encrypted and no key was given")]
    KeyNeeded,
    #[error("the vault is not encrypted, which the config does not allow")]
    Unencrypted,
    #[error("the vault has the id {found}, this host has pinned {expected}")]
    IdChanged { expected: VaultId, found: VaultId },
    #[error("the store cannot be reached")]
    Unreachable { source: StoreError },
    #[error("the vault is damaged: {what}")]
    Damaged { what: String },
    #[error("open the vault")]
    Store { source: StoreError },
    #[error("open the local index below {}", folder.display())]
    Cache { folder: PathBuf, source: std::io::Error },
}

impl From<StoreError> for OpenError {
    fn from(source: StoreError) -> Self {
        if source.is_unreachable() {
            Self::Unreachable { source }
        } else {
            Self::Store { source }
        }
    }
}

pub(super) async fn open(
    store: Store,
    credential: Option<Credential>,
    options: OpenOptions,
    tuning: Tuning,
) -> Result<Inner, OpenError> {
    if let Some(credential) = &credential {
        credential.check().map_err(|source| OpenError::Key { source })?;
    }
    let unproven = read_format(&store).await?;
    let id = unproven.format.vault;
    if let Some(expected) = options.expect_id
        && expected != id
    {
        return Err(OpenError::IdChanged { expected, found: id });
    }
    let ring = match (unproven.format.seal.cipher(), credential) {
        (Cipher::Checksum, _) if !options.allow_unencrypted => return Err(OpenError::Unencrypted),
        (Cipher::Checksum, _) => KeyRing::unencrypted(id),
        (Cipher::Aes256Gcm, None) => return Err(OpenError::KeyNeeded),
        (Cipher::Aes256Gcm, Some(credential)) => {
            let keys = open_slots(&store, id, credential).await?;
            KeyRing::new(id, Cipher::Aes256Gcm, &keys).expect("generation 0 is among the keys")
        }
    };
    if !unproven.is_proven_by(&ring) {
        return Err(OpenError::Damaged {
            what: "its `format` object was changed: the MAC is wrong".to_owned(),
        });
    }
    let folder = options.cache_folder.clone();
    let index = tokio::task::spawn_blocking(move || LocalIndex::open(&folder, id))
        .await
        .unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
        .map_err(|source| OpenError::Cache {
            folder: options.cache_folder,
            source,
        })?;
    Ok(Inner {
        encrypted: ring.cipher != Cipher::Checksum,
        store,
        id,
        ring,
        index,
        pool: tuning.pack_target_bytes.map_or_else(PackPool::get, |target_bytes| {
            PackPool::new(target_bytes, tuning.packs_alive)
        }),
        clock: tuning.clock,
        packs_per_piece: tuning.packs_per_piece,
        syncing: tokio::sync::Mutex::new(()),
        reading: ReaderState::default(),
        log: tokio::sync::Mutex::default(),
        #[cfg(any(test, feature = "testing"))]
        left_out: tuning.left_out,
    })
}

async fn read_format(store: &Store) -> Result<super::format::Unproven, OpenError> {
    let bytes = match store.get_promptly(object::FORMAT, FORMAT_LIMIT_BYTES).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            return Err(match store.any().await? {
                Some(example) => OpenError::NotAVault {
                    found: format!("it holds `{example}` and no `format` object"),
                },
                None => OpenError::NotThere,
            });
        }
        Err(StoreError::TooLarge { .. }) => {
            return Err(OpenError::NotAVault {
                found: "its `format` object is far too large".to_owned(),
            });
        }
        Err(error) => return Err(error.into()),
    };
    Format::decode(&bytes).map_err(|error| match error {
        FormatError::NotOurs => OpenError::NotAVault {
            found: error.to_string(),
        },
        FormatError::Newer(found) => OpenError::NewerFormat {
            found,
            known: FORMAT_VERSION,
        },
        FormatError::Damaged(_) => OpenError::Damaged {
            what: error.to_string(),
        },
    })
}

/// The keys of all generations, from the newest slots down the chain.
async fn open_slots(store: &Store, vault: VaultId, credential: Credential) -> Result<Vec<VaultKey>, OpenError> {
    let listed = store.list(object::KEYS).await?;
    let mut slots: Vec<(u32, String)> = Vec::new();
    for found in &listed {
        let mut parts = found.object.split('/').skip(1);
        if let (Some(generation), Some(name), None) = (parts.next().and_then(parse_key), parts.next(), parts.next()) {
            slots.push((generation, name.to_owned()));
        }
    }
    let Some(newest) = slots.iter().map(|(generation, _)| *generation).max() else {
        return Err(OpenError::Damaged {
            what: "it has no key slot".to_owned(),
        });
    };
    let of = |wanted: u32| {
        let slots: Vec<String> = slots
            .iter()
            .filter(|(generation, _)| *generation == wanted)
            .map(|(_, name)| name.clone())
            .collect();
        slots
    };
    let tried = of(newest).len();
    let mut unreadable = None;
    let mut opened = None;
    for name in of(newest).into_iter().take(SLOTS_LIMIT) {
        match open_slot(store, vault, newest, name, credential.clone()).await? {
            Ok(found) => {
                opened = Some(found);
                break;
            }
            Err(SlotError::WrongKey) => {}
            Err(error) => unreadable = Some(error),
        }
    }
    let Some((slot, name, key)) = opened else {
        return Err(match unreadable {
            Some(SlotError::Newer(found)) => OpenError::NewerFormat {
                found,
                known: FORMAT_VERSION,
            },
            Some(error) if tried == 1 => OpenError::Damaged {
                what: format!("its only key slot: {error}"),
            },
            _ => OpenError::WrongKey { slots: tried },
        });
    };
    let mut keys = vec![key];
    let mut holder = (slot, name);
    for generation in (1..=newest).rev() {
        let key = keys.last().expect("there is one key at least").clone();
        let context = SlotContext {
            vault,
            generation,
            name: &holder.1,
        };
        let damaged = |error: SlotError| OpenError::Damaged {
            what: format!("a key slot: {error}"),
        };
        keys.push(holder.0.previous(&key, context).map_err(damaged)?);
        if generation > 1 {
            // Any slot of the generation below has what its key seals, whoever it is for.
            holder = first_slot(store, generation - 1, of(generation - 1)).await?;
        }
    }
    keys.reverse();
    Ok(keys)
}

type Opened = (Slot, String, VaultKey);

async fn open_slot(
    store: &Store,
    vault: VaultId,
    generation: u32,
    name: String,
    credential: Credential,
) -> Result<Result<Opened, SlotError>, StoreError> {
    let Some(bytes) = store.get(&object::slot(generation, &name), SLOT_LIMIT_BYTES).await? else {
        return Ok(Err(SlotError::WrongKey));
    };
    // Argon2 takes its time, off the runtime.
    let opening = tokio::task::spawn_blocking(move || {
        let slot = Slot::decode(&bytes)?;
        let key = slot.open(
            &credential,
            SlotContext {
                vault,
                generation,
                name: &name,
            },
        )?;
        Ok((slot, name, key))
    });
    Ok(opening.await.unwrap_or(Err(SlotError::Damaged("opening it failed"))))
}

async fn first_slot(store: &Store, generation: u32, names: Vec<String>) -> Result<(Slot, String), OpenError> {
    for name in names {
        if let Some(bytes) = store.get(&object::slot(generation, &name), SLOT_LIMIT_BYTES).await?
            && let Ok(slot) = Slot::decode(&bytes)
        {
            return Ok((slot, name));
        }
    }
    Err(OpenError::Damaged {
        what: format!("it has no key slot of generation {generation}"),
    })
}
