//! Making a vault. `format` comes last: without it nothing here is a vault, so an `init` that breaks off leaves none.

use bytes::Bytes;

use super::Tuning;
use super::format::{FORMAT_LIMIT_BYTES, Format, SealKind};
use super::keys::{SlotPlace, create_slot};
use crate::ids::VaultId;
use crate::key::{Cipher, Credential, KeyError, KeyRing, RecoveryKey, random};
use crate::object;
use crate::store::{Store, StoreError};

/// Creates at once in the probe: a store that passes one at a time may still let two writers win when they race.
const PROBE_RACERS: usize = 16;

/// How a new vault is sealed.
#[derive(Clone, Debug)]
pub enum Encryption {
    /// One key slot per label and credential.
    Encrypted { slots: Vec<(String, Credential)> },
    /// Only where the config says `encryption = "none"`.
    None,
}

/// How a vault is made.
#[derive(Clone, Debug)]
pub struct InitOptions {
    pub encryption: Encryption,
    /// Make one more slot and hand its key back.
    pub recovery_key: bool,
    /// The host that made it, for people.
    pub host: String,
}

/// A vault that was just made.
#[derive(Clone, Debug)]
pub struct Initialized {
    pub id: VaultId,
    pub recovery_key: Option<RecoveryKey>,
}

/// Why no vault was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("a vault is already there")]
    AlreadyThere { id: Option<VaultId> },
    #[error("the place is not empty: it holds `{example}`")]
    NotEmpty { example: String },
    #[error("the store ignores put-if-absent ({observed}), so two writers could overwrite each other")]
    NoPutIfAbsent { observed: String },
    #[error("an encrypted vault needs a key, or a recovery key at least")]
    NoKey,
    #[error("key `{label}` cannot be used")]
    Key { label: String, source: KeyError },
    #[error("the store cannot be reached")]
    Unreachable { source: StoreError },
    #[error("make the vault")]
    Store { source: StoreError },
}

impl From<StoreError> for InitError {
    fn from(source: StoreError) -> Self {
        if source.is_unreachable() {
            Self::Unreachable { source }
        } else {
            Self::Store { source }
        }
    }
}

pub(super) async fn init(store: Store, options: InitOptions, tuning: &Tuning) -> Result<Initialized, InitError> {
    let encrypted = matches!(options.encryption, Encryption::Encrypted { .. });
    let mut slots = match options.encryption {
        Encryption::Encrypted { slots } => slots,
        Encryption::None => Vec::new(),
    };
    for (label, credential) in &slots {
        credential.check().map_err(|source| InitError::Key {
            label: label.clone(),
            source,
        })?;
    }
    let recovery_key = (encrypted && options.recovery_key).then(RecoveryKey::generate);
    slots.extend(recovery_key.iter().map(|key| ("recovery".to_owned(), key.credential())));
    if encrypted && slots.is_empty() {
        return Err(InitError::NoKey);
    }

    refuse_what_is_not_empty(&store).await?;
    probe(&store).await?;

    let (id, key) = tuning.id_and_key();
    let ring = if encrypted {
        KeyRing::new(id, Cipher::Aes256Gcm, std::slice::from_ref(&key)).expect("one key was given")
    } else {
        KeyRing::unencrypted(id)
    };
    for (label, credential) in slots {
        let place = SlotPlace {
            vault: id,
            generation: 0,
        };
        create_slot(&store, place, &label, &credential, (key.clone(), None)).await?;
    }
    let format = Format {
        vault: id,
        seal: if encrypted { SealKind::Aes256Gcm } else { SealKind::None },
        created_at: tuning.clock.now(),
        host: options.host,
        coffre: env!("CARGO_PKG_VERSION").to_owned(),
    };
    match store.create(object::FORMAT, format.encode(&ring).into()).await {
        Ok(_) => Ok(Initialized { id, recovery_key }),
        Err(StoreError::Taken { .. }) => Err(InitError::AlreadyThere { id: None }),
        Err(error) => Err(error.into()),
    }
}

async fn refuse_what_is_not_empty(store: &Store) -> Result<(), InitError> {
    match store.get_promptly(object::FORMAT, FORMAT_LIMIT_BYTES).await {
        Ok(Some(bytes)) => {
            return Err(match Format::decode(&bytes) {
                Ok(found) => InitError::AlreadyThere {
                    id: Some(found.format.vault),
                },
                Err(_) => InitError::NotEmpty {
                    example: object::FORMAT.to_owned(),
                },
            });
        }
        Ok(None) => {}
        Err(StoreError::TooLarge { .. }) => {
            return Err(InitError::NotEmpty {
                example: object::FORMAT.to_owned(),
            });
        }
        Err(error) => return Err(error.into()),
    }
    match store.any().await? {
        Some(example) => Err(InitError::NotEmpty { example }),
        None => Ok(()),
    }
}

/// Everything rests on creates being atomic, so the store must show it: once one after the other, once all at once.
async fn probe(store: &Store) -> Result<(), InitError> {
    let once = format!("probe/{}", hex::encode(random::<8>()));
    let race = format!("probe/{}", hex::encode(random::<8>()));
    let result = probe_with(store, &once, &race).await;
    for object in [once, race] {
        if let Err(error) = store.delete(&object).await {
            // A store that keeps everything for a while (object lock) is a good place for a vault.
            tracing::debug!(object, %error, "a probe stays in the vault");
        }
    }
    result
}

async fn probe_with(store: &Store, once: &str, race: &str) -> Result<(), InitError> {
    let ignored = |observed: String| Err(InitError::NoPutIfAbsent { observed });
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    store.create(once, first.clone()).await?;
    if store.create_once(once, second).await.is_ok() {
        return ignored("it took a second create of one object".to_owned());
    }
    if store.get(once, 16).await? != Some(first) {
        return ignored("a create that it refused changed the object".to_owned());
    }
    let racers = (0..PROBE_RACERS).map(|racer| {
        let store = store.clone();
        let object = race.to_owned();
        tokio::spawn(async move {
            let bytes = Bytes::from(format!("racer {racer:02}"));
            store.create_once(&object, bytes.clone()).await.is_ok().then_some(bytes)
        })
    });
    let mut winners = Vec::new();
    for racer in futures::future::join_all(racers).await {
        winners.extend(racer.expect("a racer does not panic"));
    }
    let stored = store.get(race, 16).await?;
    match (winners.as_slice(), stored) {
        ([winner], Some(stored)) if *winner == stored => Ok(()),
        // Nobody was told to have won: S3's answer "in conflict" to all, or acknowledgements that were lost. One byte
        // string must be there in the end, and it must stay.
        ([], stored) => {
            let winner = Bytes::from_static(b"late one");
            match (store.create(race, winner.clone()).await, stored) {
                (Ok(_), None) => Ok(()),
                (Err(StoreError::Taken { .. }), Some(stored)) if store.get(race, 16).await? == Some(stored.clone()) => {
                    Ok(())
                }
                (Err(error), _) if !matches!(error, StoreError::Taken { .. }) => Err(error.into()),
                _ => ignored("an object changed after it was created".to_owned()),
            }
        }
        ([_], _) => ignored("the winner's object is not what is there".to_owned()),
        (winners, _) => ignored(format!(
            "{} of {PROBE_RACERS} creates of one object at once succeeded",
            winners.len()
        )),
    }
}
