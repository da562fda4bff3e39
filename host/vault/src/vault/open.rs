//! Opening a vault: the `format` object, the key slots, the proof that they belong together, the local index.

use std::path::PathBuf;

use super::format::{FORMAT_LIMIT_BYTES, FORMAT_VERSION, Format, FormatError};
use super::{Inner, Tuning};
use crate::ids::VaultId;
use crate::index::LocalIndex;
use crate::key::{Cipher, Credential, KeyError, KeyRing, UnlockError, Unlocked, unlock};
use crate::object;
use crate::offload::offload;
use crate::pack::PackPool;
use crate::read::ReaderState;
use crate::store::{Store, StoreError};

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
    #[error("none of the vault's {slots} key slots opens with this key{}", unreadable_among(*unreadable))]
    WrongKey { slots: usize, unreadable: usize },
    /// It was right until somebody rotated the vault's keys without it.
    #[error(
        "this key was left behind when the vault's keys were rotated: it opens generation {opens}, the newest is {newest}"
    )]
    LeftBehind { opens: u32, newest: u32 },
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

impl From<UnlockError> for OpenError {
    fn from(error: UnlockError) -> Self {
        match error {
            UnlockError::WrongKey { slots, unreadable } => Self::WrongKey { slots, unreadable },
            UnlockError::LeftBehind { opens, newest } => Self::LeftBehind { opens, newest },
            UnlockError::Newer(found) => Self::NewerFormat {
                found,
                known: FORMAT_VERSION,
            },
            UnlockError::Damaged(what) => Self::Damaged { what },
            UnlockError::Store(source) => source.into(),
        }
    }
}

fn unreadable_among(slots: usize) -> String {
    match slots {
        0 => String::new(),
        count => format!(" ({count} of them cannot be read)"),
    }
}

pub(super) async fn open(
    store: Store,
    credential: Option<Credential>,
    options: OpenOptions,
    tuning: Tuning,
) -> Result<Inner, OpenError> {
    let (id, ring) = match prove(&store, credential.as_ref(), options.expect_id).await? {
        Proven::Unencrypted { .. } if !options.allow_unencrypted => return Err(OpenError::Unencrypted),
        Proven::Unencrypted { id, ring } | Proven::Encrypted { id, ring, .. } => (id, ring),
    };
    let folder = options.cache_folder.clone();
    let index = offload(move || LocalIndex::open(&folder, id))
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

/// A vault whose `format` is proven by its key.
pub(super) enum Proven {
    Unencrypted {
        id: VaultId,
        ring: KeyRing,
    },
    Encrypted {
        id: VaultId,
        ring: KeyRing,
        unlocked: Unlocked,
    },
}

pub(super) async fn prove(
    store: &Store,
    credential: Option<&Credential>,
    expect_id: Option<VaultId>,
) -> Result<Proven, OpenError> {
    if let Some(credential) = credential {
        credential.check().map_err(|source| OpenError::Key { source })?;
    }
    let unproven = read_format(store).await?;
    let id = unproven.format.vault;
    if let Some(expected) = expect_id
        && expected != id
    {
        return Err(OpenError::IdChanged { expected, found: id });
    }
    let proven = match (unproven.format.seal.cipher(), credential) {
        (Cipher::Checksum, _) => Proven::Unencrypted {
            id,
            ring: KeyRing::unencrypted(id),
        },
        (Cipher::Aes256Gcm, None) => return Err(OpenError::KeyNeeded),
        (Cipher::Aes256Gcm, Some(credential)) => {
            let unlocked = unlock(store, id, credential).await?;
            let ring = KeyRing::new(id, Cipher::Aes256Gcm, &unlocked.keys).expect("generation 0 is among the keys");
            Proven::Encrypted { id, ring, unlocked }
        }
    };
    let (Proven::Unencrypted { ring, .. } | Proven::Encrypted { ring, .. }) = &proven;
    if !unproven.is_proven_by(ring) {
        return Err(OpenError::Damaged {
            what: "its `format` object was changed: the MAC is wrong".to_owned(),
        });
    }
    Ok(proven)
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
