//! A key slot: the vault's key of one generation, wrapped for one credential.
//!
//! The order of opening is: bounds of the Argon2 parameters (a planted slot must not eat the machine), the stretched key, the
//! commitment, and only then the unwrapping. The commitment makes a slot open with one key at most, which XChaCha20-Poly1305
//! alone does not promise.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ring::VaultKey;
use super::{Credential, random};
use crate::ids::VaultId;

/// The first line of a slot; the number is its version.
const MAGIC: &str = "COFFRE-KEY ";
const VERSION: u32 = 1;

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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Wrapped {
    nonce: String,
    bytes: String,
}

/// A slot as it is stored: one line of magic and version, one of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) label: String,
    stretch: Stretch,
    commitment: String,
    key: Wrapped,
    /// The key of the generation before, sealed by this generation's key; absent in generation 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<Wrapped>,
}

impl Slot {
    pub(crate) fn make(
        label: &str,
        credential: &Credential,
        context: SlotContext<'_>,
        key: &VaultKey,
        previous: Option<&VaultKey>,
    ) -> Result<Self, SlotError> {
        let salt = hex::encode(random::<16>());
        let stretch = match credential {
            Credential::Passphrase(_) => Stretch::Argon2id {
                memory_kib: ARGON2_MEMORY_KIB,
                passes: ARGON2_PASSES,
                lanes: 1,
                salt,
            },
            Credential::Secret(_) => Stretch::Secret { salt },
        };
        let stretched = stretched(&stretch, credential)?;
        Ok(Self {
            label: label.to_owned(),
            stretch,
            commitment: commitment(&stretched, context).to_hex().to_string(),
            key: wrap(&wrapping_key(&stretched), key, &associated("slot", context)),
            previous: previous.map(|previous| wrap(&chain_key(key), previous, &associated("previous", context))),
        })
    }

    pub(crate) fn open(&self, credential: &Credential, context: SlotContext<'_>) -> Result<VaultKey, SlotError> {
        let stretched = stretched(&self.stretch, credential)?;
        let expected = blake3::Hash::from_hex(&self.commitment)
            .map_err(|_| SlotError::Damaged("its commitment is no 64 hexadecimal digits"))?;
        // blake3::Hash compares in constant time.
        if commitment(&stretched, context) != expected {
            return Err(SlotError::WrongKey);
        }
        unwrap(&wrapping_key(&stretched), &self.key, &associated("slot", context))
    }

    /// The key of the generation before, by the key of this slot's generation.
    pub(crate) fn previous(&self, key: &VaultKey, context: SlotContext<'_>) -> Result<VaultKey, SlotError> {
        let previous = self
            .previous
            .as_ref()
            .ok_or(SlotError::Damaged("it has no key of the generation before"))?;
        unwrap(&chain_key(key), previous, &associated("previous", context))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("a slot is plain data");
        format!("{MAGIC}{VERSION}\n{json}\n").into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SlotError> {
        let text = std::str::from_utf8(bytes).map_err(|_| SlotError::Damaged("it is no text"))?;
        let (first, json) = text
            .split_once('\n')
            .ok_or(SlotError::Damaged("it has one line only"))?;
        let version = first.strip_prefix(MAGIC).and_then(|version| version.parse().ok());
        match version {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => return Err(SlotError::Newer(newer)),
            _ => return Err(SlotError::Damaged("it does not begin as a key slot does")),
        }
        serde_json::from_str(json).map_err(|_| SlotError::Damaged("its second line is no slot in JSON"))
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
        (Stretch::Secret { salt }, Credential::Secret(secret)) => {
            let mut hasher = blake3::Hasher::new_derive_key("coffre v1 slot secret");
            hasher.update(&salt_of(salt)?).update(secret);
            Ok(Zeroizing::new(*hasher.finalize().as_bytes()))
        }
        (Stretch::Argon2id { .. }, Credential::Secret(_)) | (Stretch::Secret { .. }, Credential::Passphrase(_)) => {
            Err(SlotError::WrongKey)
        }
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

fn associated(purpose: &str, context: SlotContext<'_>) -> Vec<u8> {
    format!(
        "coffre {purpose} {} {:08x} {}",
        context.vault, context.generation, context.name
    )
    .into_bytes()
}

fn wrap(with: &[u8; 32], key: &VaultKey, associated: &[u8]) -> Wrapped {
    let nonce: [u8; 24] = random();
    let sealed = XChaCha20Poly1305::new(&Key::from(*with))
        .encrypt(
            &XNonce::from(nonce),
            Payload {
                msg: key.as_slice(),
                aad: associated,
            },
        )
        .expect("32 bytes are never too long to seal");
    Wrapped {
        nonce: hex::encode(nonce),
        bytes: hex::encode(sealed),
    }
}

fn unwrap(with: &[u8; 32], wrapped: &Wrapped, associated: &[u8]) -> Result<VaultKey, SlotError> {
    const DAMAGED: SlotError = SlotError::Damaged("its wrapped key does not open");
    let mut nonce = [0; 24];
    hex::decode_to_slice(&wrapped.nonce, &mut nonce).map_err(|_| DAMAGED)?;
    let mut sealed = [0; 48];
    hex::decode_to_slice(&wrapped.bytes, &mut sealed).map_err(|_| DAMAGED)?;
    let opened = XChaCha20Poly1305::new(&Key::from(*with))
        .decrypt(
            &XNonce::from(nonce),
            Payload {
                msg: &sealed,
                aad: associated,
            },
        )
        .map_err(|_| DAMAGED)?;
    let opened = Zeroizing::new(opened);
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&opened);
    Ok(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            let slot = Slot::make("main", &right, context("a"), &key, None).unwrap();
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
        let slot = Slot::make("main", &secret(1), context, &new, Some(&old)).unwrap();
        assert_eq!(slot.previous(&new, context).unwrap(), old);
        assert!(slot.previous(&old, context).is_err());
    }

    #[test]
    fn a_planted_slot_does_not_eat_the_machine() {
        let mut slot = Slot::make("main", &secret(1), context("a"), &Zeroizing::new([0; 32]), None).unwrap();
        slot.stretch = Stretch::Argon2id {
            memory_kib: u32::MAX,
            passes: 1,
            lanes: 1,
            salt: "00".repeat(16),
        };
        assert!(matches!(
            slot.open(&passphrase("x"), context("a")),
            Err(SlotError::Damaged(_))
        ));
    }

    #[test]
    fn a_newer_slot_says_so() {
        assert_eq!(Slot::decode(b"COFFRE-KEY 2\n{}\n"), Err(SlotError::Newer(2)));
    }

    proptest! {
        #[test]
        fn garbage_is_no_slot(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Slot::decode(&bytes).is_err());
        }

        #[test]
        fn a_flipped_bit_never_gives_another_key(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let key: VaultKey = Zeroizing::new([9; 32]);
            let mut bytes = Slot::make("main", &secret(1), context("a"), &key, None).unwrap().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(slot) = Slot::decode(&bytes)
                && let Ok(opened) = slot.open(&secret(1), context("a"))
            {
                prop_assert_eq!(opened, key);
            }
        }
    }
}
