//! A new generation of the vault's key.
//!
//! In this order:
//! 1. Slots of the new generation are created, the one of the credential in use first, and each is opened from the store.
//!    Nobody looks at them yet: the generation does not exist.
//! 2. `generations/<n>` is created. This is the rotation: it names the new key, so of two rotations at once one wins, and
//!    the slots that the other one wrote open nothing.
//! 3. Slots of the old generation are listed again: a key that was added after step 1 began is named as left behind.
//!
//! A crash before 2 leaves the vault as it was and slots that open nothing; after 2 all is done. There is no moment at which
//! the credential in use does not open the vault.

use zeroize::Zeroizing;

use super::keys::{KeysError, SlotPlace, VaultKeys, check_new, create_proven_slot};
use crate::clock::{Clock, SystemClock};
use crate::key::{Credential, Generation, SLOTS_LIMIT, VaultKey, generation_exists, random};
use crate::object;
use crate::store::StoreError;

/// How the vault's keys are rotated.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// What shall open the vault beside the credential in use, by label. A label that exists stays with the new credential.
    pub keys: Vec<(String, Credential)>,
    /// Leave behind all other keys; else they are an error, since their credentials are not known here.
    pub drop_others: bool,
    /// The host that rotates, for people.
    pub host: String,
}

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    pub generation: u32,
    /// Labels of the keys that open the vault now.
    pub carried: Vec<String>,
    /// Labels of the keys that open only what was written before.
    pub dropped: Vec<String>,
    /// Labels among those that were added while this ran, so nobody was asked about them.
    pub added_meanwhile: Vec<String>,
}

impl VaultKeys {
    /// Makes the next generation. Objects that exist stay as they are, and a vault that is open elsewhere goes on with the
    /// key that it has: this shuts out whoever was dropped from what sessions write that begin later.
    pub async fn rotate(&mut self, rotation: &Rotation) -> Result<Rotated, KeysError> {
        let failed = KeysError::while_doing("rotate the vault's keys");
        let next = self.generation() + 1;
        if generation_exists(&self.store, next).await.map_err(&failed)? {
            return Err(KeysError::RotatedMeanwhile);
        }
        let carried = self.carried(rotation)?;
        let dropped = self.left_behind_by(rotation).await?;
        if !dropped.is_empty() && !rotation.drop_others {
            return Err(KeysError::WouldDrop { labels: dropped });
        }

        let key: VaultKey = Zeroizing::new(random());
        let previous = self.keys[self.generation() as usize].clone();
        let place = SlotPlace {
            vault: self.vault,
            generation: next,
        };
        let mut names = Vec::new();
        for (label, credential) in &carried {
            let keys = (key.clone(), Some(previous.clone()));
            names.push(create_proven_slot(&self.store, place, label, credential, keys).await?);
        }
        let made = (SystemClock.now(), rotation.host.as_str());
        let record = Generation::make(self.vault, next, made, &key, &previous);
        match self
            .store
            .create(&object::generation(next), record.encode().into())
            .await
        {
            Ok(_) => {}
            Err(StoreError::Taken { .. }) => return Err(KeysError::RotatedMeanwhile),
            Err(source) => return Err(KeysError::Unknown { source }),
        }

        let left_behind = self.left_behind_by(rotation).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "keys that were added during the rotation cannot be looked for");
            dropped.clone()
        });
        let is_new = |label: &&String| !dropped.contains(label);
        let added_meanwhile = left_behind.iter().filter(is_new).cloned().collect();
        self.keys.push(key);
        self.slot = names.swap_remove(0);
        Ok(Rotated {
            generation: next,
            carried: carried.into_iter().map(|(label, _)| label).collect(),
            dropped: left_behind,
            added_meanwhile,
        })
    }

    /// The credentials of the new generation: the one in use first.
    fn carried(&self, rotation: &Rotation) -> Result<Vec<(String, Credential)>, KeysError> {
        let mut carried = vec![(self.label.clone(), self.credential.clone())];
        for (label, credential) in &rotation.keys {
            check_new(label, credential)?;
            if carried.iter().any(|(known, _)| known == label) {
                return Err(KeysError::LabelTaken { label: label.clone() });
            }
            if let Some((known, _)) = carried.iter().find(|(_, known)| known == credential) {
                return Err(KeysError::OpensAlready { label: known.clone() });
            }
            carried.push((label.clone(), credential.clone()));
        }
        if carried.len() > SLOTS_LIMIT {
            return Err(KeysError::Full);
        }
        Ok(carried)
    }

    /// Labels of the newest generation's keys that are neither in use nor replaced.
    async fn left_behind_by(&self, rotation: &Rotation) -> Result<Vec<String>, KeysError> {
        let slots = self.slots_of(self.generation()).await?;
        let others = slots.iter().filter(|slot| !slot.in_use).filter_map(|slot| slot.label());
        let is_replaced = |label: &str| rotation.keys.iter().any(|(new, _)| new == label);
        Ok(others.filter(|label| !is_replaced(label)).map(str::to_owned).collect())
    }
}
