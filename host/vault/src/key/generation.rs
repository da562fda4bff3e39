//! A generation's record: says which key is the generation's, and keeps the key of the one before.
//!
//! Slots are named at random, so two rotations at once would both have written theirs and nobody could say whose key counts.
//! Therefore a rotation writes its slots first and then creates `generations/<n>`, a dense register: whichever is created
//! first names the key, and the slots of any other key are nobody's. Until then the generation does not exist, and a rotation
//! that breaks off leaves a vault that opens as before.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ring::VaultKey;
use super::signed::{Signed, SignedError};
use super::wrapped::{DoesNotOpen, Wrapped};
use crate::ids::VaultId;

const MAGIC: &str = "COFFRE-GENERATION";

/// The record's second line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Contents {
    created_at: Timestamp,
    /// The host that rotated, for people.
    host: String,
    /// Which key is the generation's.
    commitment: String,
    previous: Wrapped,
}

/// The record of one generation from 1 on. The first one has none: `format` proves its key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Generation {
    vault: VaultId,
    number: u32,
    text: Signed<Contents>,
}

/// Why a generation's record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GenerationError {
    #[error("it has version {0}")]
    Newer(u32),
    #[error("{0}")]
    Damaged(&'static str),
}

impl From<SignedError> for GenerationError {
    fn from(error: SignedError) -> Self {
        match error {
            SignedError::Newer(version) => Self::Newer(version),
            SignedError::Damaged(what) => Self::Damaged(what),
        }
    }
}

impl From<DoesNotOpen> for GenerationError {
    fn from(_: DoesNotOpen) -> Self {
        Self::Damaged("its key of the generation before does not open")
    }
}

impl Generation {
    pub(crate) fn make(
        vault: VaultId,
        number: u32,
        (created_at, host): (Timestamp, &str),
        key: &VaultKey,
        previous: &VaultKey,
    ) -> Self {
        let contents = Contents {
            created_at,
            host: host.to_owned(),
            commitment: commitment(vault, number, key).to_hex().to_string(),
            previous: Wrapped::wrap(&chain_key(key), previous, &place("previous", vault, number)),
        };
        let signer = successor_key(previous);
        let text = Signed::sign(MAGIC, contents, &signer, &place("generation mac", vault, number));
        Self { vault, number, text }
    }

    /// Whether this key is the generation's, rather than one of a rotation that another one beat.
    pub(crate) fn is_of(&self, key: &VaultKey) -> bool {
        let stated = blake3::Hash::from_hex(&self.text.contents.commitment);
        // blake3::Hash compares in constant time.
        stated.is_ok_and(|stated| commitment(self.vault, self.number, key) == stated)
    }

    /// The key of the generation before, proven by the MAC that it made.
    pub(crate) fn previous(&self, key: &VaultKey) -> Result<VaultKey, GenerationError> {
        let place = place("previous", self.vault, self.number);
        let previous = self.text.contents.previous.unwrap(&chain_key(key), &place)?;
        if !self.follows(&previous) {
            return Err(GenerationError::Damaged("it was changed: its MAC is wrong"));
        }
        Ok(previous)
    }

    /// Whether somebody who had the key of the generation before made this record.
    pub(crate) fn follows(&self, previous: &VaultKey) -> bool {
        let place = place("generation mac", self.vault, self.number);
        self.text.is_signed_by(&successor_key(previous), &place)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.text.encode()
    }

    pub(crate) fn decode(vault: VaultId, number: u32, bytes: &[u8]) -> Result<Self, GenerationError> {
        Ok(Self {
            vault,
            number,
            text: Signed::decode(MAGIC, bytes)?,
        })
    }
}

fn commitment(vault: VaultId, number: u32, key: &VaultKey) -> blake3::Hash {
    let derived = Zeroizing::new(blake3::derive_key("coffre v1 generation commitment", key.as_slice()));
    blake3::keyed_hash(&derived, &place("generation commitment", vault, number))
}

fn chain_key(key: &VaultKey) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key(
        "coffre v1 key of the generation before, in the record",
        key.as_slice(),
    ))
}

fn successor_key(previous: &VaultKey) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key("coffre v1 generation mac", previous.as_slice()))
}

fn place(purpose: &str, vault: VaultId, number: u32) -> Vec<u8> {
    format!("coffre {purpose} {vault} {number:08x}").into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VAULT: VaultId = VaultId([7; 16]);

    fn keys() -> (VaultKey, VaultKey) {
        (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]))
    }

    fn record() -> Generation {
        let (old, new) = keys();
        Generation::make(VAULT, 1, (Timestamp::UNIX_EPOCH, "host"), &new, &old)
    }

    #[test]
    fn a_generation_names_its_key_and_keeps_the_one_before() {
        let (old, new) = keys();
        let read = Generation::decode(VAULT, 1, &record().encode()).unwrap();
        assert!(read.is_of(&new) && !read.is_of(&old));
        assert_eq!(read.previous(&new).unwrap(), old);
        assert!(read.previous(&old).is_err());
        assert!(read.follows(&old) && !read.follows(&new));
    }

    #[test]
    fn a_generation_is_worth_nothing_under_another_number_or_in_another_vault() {
        let (old, new) = keys();
        for (vault, number) in [(VAULT, 2), (VaultId([8; 16]), 1)] {
            let moved = Generation::decode(vault, number, &record().encode()).unwrap();
            assert!(!moved.is_of(&new) && !moved.follows(&old) && moved.previous(&new).is_err());
        }
    }

    proptest! {
        #[test]
        fn garbage_and_flipped_bits_are_no_generation(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let (old, new) = keys();
            prop_assert!(Generation::decode(VAULT, 1, &garbage).is_err());
            let mut bytes = record().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(read) = Generation::decode(VAULT, 1, &bytes) {
                // Hexadecimal digits of the MAC have two cases.
                prop_assert!(!read.follows(&old) || read.previous(&new).as_ref() == Ok(&old));
            }
        }
    }
}
