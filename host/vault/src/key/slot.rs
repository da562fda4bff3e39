//! A key slot: the vault's key of one generation, wrapped for one credential.
//!
//! The order of opening is: bounds of the Argon2 parameters (a planted slot must not eat the machine), the stretched key, the
//! commitment, and only then the unwrapping. The commitment makes a slot open with one key at most, which XChaCha20-Poly1305
//! alone does not promise. The MAC at the end is by the vault's key: it tells whoever opened the vault by another slot that
//! this one was made by somebody who had the key too, and is not planted.

use argon2::{Algorithm, Argon2, Params, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ring::VaultKey;
use super::signed::{Signed, SignedError};
use super::wrapped::{DoesNotOpen, Wrapped};
use super::{Credential, random};
use crate::ids::VaultId;

/// The first line of a slot, before its version.
const MAGIC: &str = "COFFRE-KEY";

/// What new slots cost to open: 64 MiB and about 0.15 s. More memory would not fit beside a backup on small machines.
const ARGON2_MEMORY_KIB: u32 = 64 * 1024;
const ARGON2_PASSES: u32 = 3;
/// What is run at most for a slot that somebody else wrote.
const ARGON2_MEMORY_LIMIT_KIB: u32 = 64 * 1024;
const ARGON2_PASSES_LIMIT: u32 = 16;
const ARGON2_LANES_LIMIT: u32 = 4;

/// Where a slot stands. All of it is bound into the wrapping, so that a slot works in its own place alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotContext<'a> {
    pub(crate) vault: VaultId,
    pub(crate) generation: u32,
    pub(crate) name: &'a str,
}

/// Why a slot did not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("it is not for this credential")]
    WrongKey,
    #[error("it has version {0}")]
    Newer(u32),
    #[error("{0}")]
    Damaged(&'static str),
}

impl From<SignedError> for SlotError {
    fn from(error: SignedError) -> Self {
        match error {
            SignedError::Newer(version) => Self::Newer(version),
            SignedError::Damaged(what) => Self::Damaged(what),
        }
    }
}

impl From<DoesNotOpen> for SlotError {
    fn from(_: DoesNotOpen) -> Self {
        Self::Damaged("its wrapped key does not open")
    }
}

/// What a slot is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// At least 32 random bytes: a key file, or what a variable or command holds.
    Key,
    Passphrase,
    RecoveryKey,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
enum Stretch {
    Argon2id {
        memory_kib: u32,
        passes: u32,
        lanes: u32,
        salt: String,
    },
    Secret {
        salt: String,
    },
}

/// The slot's second line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Contents {
    label: String,
    created_at: Timestamp,
    /// A recovery key's; else a secret is a key of somebody's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    recovery: bool,
    stretch: Stretch,
    commitment: String,
    key: Wrapped,
    /// The key of the generation before, sealed by this generation's key; absent in generation 0. The generation's own
    /// record has it too: this is for when that one is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<Wrapped>,
}

/// A slot as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slot(Signed<Contents>);

/// The keys that a new slot holds.
#[derive(Clone, Copy)]
pub(crate) struct SlotKeys<'a> {
    pub(crate) key: &'a VaultKey,
    /// Of the generation before.
    pub(crate) previous: Option<&'a VaultKey>,
}

impl Slot {
    pub(crate) fn make(
        label: &str,
        created_at: Timestamp,
        credential: &Credential,
        context: SlotContext<'_>,
        keys: SlotKeys<'_>,
    ) -> Result<Self, SlotError> {
        let salt = hex::encode(random::<16>());
        let stretch = match credential {
            Credential::Passphrase(_) => Stretch::Argon2id {
                memory_kib: ARGON2_MEMORY_KIB,
                passes: ARGON2_PASSES,
                lanes: 1,
                salt,
            },
            Credential::Secret(_) | Credential::Recovery(_) => Stretch::Secret { salt },
        };
        let stretched = stretched(&stretch, credential)?;
        let wrapping = wrapping_key(&stretched);
        let contents = Contents {
            label: label.to_owned(),
            created_at,
            recovery: matches!(credential, Credential::Recovery(_)),
            stretch,
            commitment: commitment(&stretched, context).to_hex().to_string(),
            key: Wrapped::wrap(&wrapping, keys.key, &associated("slot", context)),
            previous: (keys.previous)
                .map(|previous| Wrapped::wrap(&chain_key(keys.key), previous, &associated("previous", context))),
        };
        let key = mac_key(keys.key);
        Ok(Self(Signed::sign(
            MAGIC,
            contents,
            &key,
            &associated("slot mac", context),
        )))
    }

    /// The vault's key, if the slot is for this credential and as it was made.
    pub(crate) fn open(&self, credential: &Credential, context: SlotContext<'_>) -> Result<VaultKey, SlotError> {
        let contents = &self.0.contents;
        let stretched = stretched(&contents.stretch, credential)?;
        let expected = blake3::Hash::from_hex(&contents.commitment)
            .map_err(|_| SlotError::Damaged("its commitment is no 64 hexadecimal digits"))?;
        // blake3::Hash compares in constant time.
        if commitment(&stretched, context) != expected {
            return Err(SlotError::WrongKey);
        }
        let key = contents
            .key
            .unwrap(&wrapping_key(&stretched), &associated("slot", context))?;
        if !self.is_made_with(&key, context) {
            return Err(SlotError::Damaged("it was changed: its MAC is wrong"));
        }
        Ok(key)
    }

    /// Whether somebody who had this key of the vault made the slot, as it is and for this place.
    pub(crate) fn is_made_with(&self, key: &VaultKey, context: SlotContext<'_>) -> bool {
        self.0.is_signed_by(&mac_key(key), &associated("slot mac", context))
    }

    /// The key of the generation before, by the key of this slot's generation.
    pub(crate) fn previous(&self, key: &VaultKey, context: SlotContext<'_>) -> Result<VaultKey, SlotError> {
        let previous = self.0.contents.previous.as_ref();
        let previous = previous.ok_or(SlotError::Damaged("it has no key of the generation before"))?;
        Ok(previous.unwrap(&chain_key(key), &associated("previous", context))?)
    }

    pub(crate) fn label(&self) -> &str {
        &self.0.contents.label
    }

    pub(crate) fn created_at(&self) -> Timestamp {
        self.0.contents.created_at
    }

    pub(crate) fn kind(&self) -> SlotKind {
        match self.0.contents.stretch {
            Stretch::Argon2id { .. } => SlotKind::Passphrase,
            Stretch::Secret { .. } if self.0.contents.recovery => SlotKind::RecoveryKey,
            Stretch::Secret { .. } => SlotKind::Key,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.0.encode()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SlotError> {
        Ok(Self(Signed::decode(MAGIC, bytes)?))
    }
}

fn stretched(stretch: &Stretch, credential: &Credential) -> Result<Zeroizing<[u8; 32]>, SlotError> {
    let salt_of = |salt: &str| -> Result<[u8; 16], SlotError> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(salt, &mut bytes)
            .map_err(|_| SlotError::Damaged("its salt is no 32 hexadecimal digits"))?;
        Ok(bytes)
    };
    match (stretch, credential) {
        (
            Stretch::Argon2id {
                memory_kib,
                passes,
                lanes,
                salt,
            },
            Credential::Passphrase(passphrase),
        ) => {
            if *memory_kib > ARGON2_MEMORY_LIMIT_KIB || *passes > ARGON2_PASSES_LIMIT || *lanes > ARGON2_LANES_LIMIT {
                return Err(SlotError::Damaged(
                    "its Argon2id parameters are beyond what Coffre writes",
                ));
            }
            let params = Params::new(*memory_kib, *passes, *lanes, Some(32))
                .map_err(|_| SlotError::Damaged("its Argon2id parameters are impossible"))?;
            let mut out = Zeroizing::new([0; 32]);
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(passphrase.as_bytes(), &salt_of(salt)?, out.as_mut_slice())
                .map_err(|_| SlotError::Damaged("its Argon2id parameters are impossible"))?;
            Ok(out)
        }
        (Stretch::Secret { salt }, Credential::Secret(secret) | Credential::Recovery(secret)) => {
            let mut hasher = blake3::Hasher::new_derive_key("coffre v1 slot secret");
            hasher.update(&salt_of(salt)?).update(secret);
            Ok(Zeroizing::new(*hasher.finalize().as_bytes()))
        }
        (Stretch::Argon2id { .. }, Credential::Secret(_) | Credential::Recovery(_))
        | (Stretch::Secret { .. }, Credential::Passphrase(_)) => Err(SlotError::WrongKey),
    }
}

fn commitment(stretched: &[u8; 32], context: SlotContext<'_>) -> blake3::Hash {
    let key = blake3::derive_key("coffre v1 slot commitment", stretched);
    blake3::keyed_hash(&key, &associated("commitment", context))
}

fn wrapping_key(stretched: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key("coffre v1 slot wrapping", stretched))
}

fn chain_key(key: &VaultKey) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key(
        "coffre v1 key of the generation before",
        key.as_slice(),
    ))
}

fn mac_key(key: &VaultKey) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key("coffre v1 slot mac", key.as_slice()))
}

fn associated(purpose: &str, context: SlotContext<'_>) -> Vec<u8> {
    format!(
        "coffre {purpose} {} {:08x} {}",
        context.vault, context.generation, context.name
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A slot with these keys, made at no time in particular.
    fn make(credential: &Credential, context: SlotContext<'_>, key: &VaultKey, previous: Option<&VaultKey>) -> Slot {
        let keys = SlotKeys { key, previous };
        Slot::make("main", Timestamp::UNIX_EPOCH, credential, context, keys).unwrap()
    }

    fn context(name: &str) -> SlotContext<'_> {
        SlotContext {
            vault: VaultId([7; 16]),
            generation: 0,
            name,
        }
    }

    fn secret(byte: u8) -> Credential {
        Credential::Secret(Zeroizing::new(vec![byte; 32]))
    }

    fn passphrase(text: &str) -> Credential {
        Credential::Passphrase(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn a_slot_opens_with_its_credential_in_its_place_alone() {
        let key: VaultKey = Zeroizing::new(random());
        for (right, wrong) in [(secret(1), secret(2)), (passphrase("right"), passphrase("wrong"))] {
            let slot = make(&right, context("a"), &key, None);
            let slot = Slot::decode(&slot.encode()).unwrap();
            assert_eq!(slot.open(&right, context("a")).unwrap(), key);
            assert_eq!(slot.open(&wrong, context("a")).unwrap_err(), SlotError::WrongKey);
            assert_eq!(slot.open(&right, context("b")).unwrap_err(), SlotError::WrongKey);
        }
    }

    #[test]
    fn a_generation_opens_its_predecessor() {
        let (old, new): (VaultKey, VaultKey) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
        let context = SlotContext {
            generation: 1,
            ..context("a")
        };
        let slot = make(&secret(1), context, &new, Some(&old));
        assert_eq!(slot.previous(&new, context).unwrap(), old);
        assert!(slot.previous(&old, context).is_err());
    }

    #[test]
    fn whoever_has_the_key_tells_a_slot_of_the_vault_from_a_planted_or_changed_one() {
        let (key, other): (VaultKey, VaultKey) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
        let slot = make(&secret(1), context("a"), &key, None);
        assert!(slot.is_made_with(&key, context("a")));
        assert!(!slot.is_made_with(&key, context("b")));
        assert!(!make(&secret(1), context("a"), &other, None).is_made_with(&key, context("a")));
        let text = String::from_utf8(slot.encode()).unwrap().replace("main", "pain");
        let relabelled = Slot::decode(text.as_bytes()).unwrap();
        assert!(!relabelled.is_made_with(&key, context("a")));
        assert!(matches!(
            relabelled.open(&secret(1), context("a")),
            Err(SlotError::Damaged(_))
        ));
    }

    #[test]
    fn a_planted_slot_does_not_eat_the_machine() {
        let mut slot = make(&secret(1), context("a"), &Zeroizing::new([0; 32]), None);
        for (memory_kib, passes, lanes) in [
            (u32::MAX, 1, 1),
            (ARGON2_MEMORY_LIMIT_KIB + 1, 1, 1),
            (64, u32::MAX, 1),
            (64, ARGON2_PASSES_LIMIT + 1, 1),
            (64, 1, ARGON2_LANES_LIMIT + 1),
            (0, 0, 0),
            (64, 0, 1),
            (1, 1, 1),
        ] {
            slot.0.contents.stretch = Stretch::Argon2id {
                memory_kib,
                passes,
                lanes,
                salt: "00".repeat(16),
            };
            let opened = slot.open(&passphrase("x"), context("a"));
            assert!(matches!(opened, Err(SlotError::Damaged(_))), "{opened:?}");
        }
    }

    #[test]
    fn a_newer_slot_says_so() {
        assert_eq!(Slot::decode(b"COFFRE-KEY 2\n{}\nmac 00\n"), Err(SlotError::Newer(2)));
    }

    proptest! {
        #[test]
        fn garbage_is_no_slot(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Slot::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_flipped_bit_never_gives_another_key() {
        let key: VaultKey = Zeroizing::new([9; 32]);
        let before: VaultKey = Zeroizing::new([8; 32]);
        let slot = make(&secret(1), context("a"), &key, Some(&before));
        let mut bytes = slot.encode();
        assert_eq!(slot.open(&secret(1), context("a")), Ok(key.clone()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            // It is not even taken for the same slot, so nobody counts on it.
            if let Ok(slot) = Slot::decode(&bytes) {
                assert!(slot.open(&secret(1), context("a")).is_err(), "bit {bit}");
                assert!(!slot.is_made_with(&key, context("a")), "bit {bit}");
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
