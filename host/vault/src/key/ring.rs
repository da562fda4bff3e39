//! The keys that follow from the vault's key, one set per generation. Each is used for one thing only.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::ids::VaultId;

/// The vault's key of one generation. Whoever has it has everything that was ever sealed up to that generation.
pub(crate) type VaultKey = Zeroizing<[u8; 32]>;

/// How the bytes of a vault are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cipher {
    /// Not encrypted: the 16 bytes of each tag are a checksum, keyed by the vault's id.
    Checksum = 0,
    Aes256Gcm = 1,
}

/// The keys of one generation.
#[derive(Clone)]
pub(crate) struct GenerationKeys {
    /// From it and an object's salt follows the object's own key.
    pub(crate) sealing: Zeroizing<[u8; 32]>,
    /// Mixes salts, so that a bad random generator alone repeats none.
    pub(crate) salts: Zeroizing<[u8; 32]>,
}

/// Every key that a vault needs.
#[derive(Clone)]
pub(crate) struct KeyRing {
    pub(crate) cipher: Cipher,
    generations: BTreeMap<u32, GenerationKeys>,
    current: u32,
    /// Names chunks. Follows from generation 0 and never changes, or nothing would be found again.
    chunk_ids: [u8; 32],
    format_mac: Zeroizing<[u8; 32]>,
}

impl KeyRing {
    /// From the keys of generations 0 to n, in order.
    pub(crate) fn new(vault: VaultId, cipher: Cipher, keys: &[VaultKey]) -> Option<Self> {
        let first = keys.first()?;
        let derive = |context: &str, key: &VaultKey| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            hasher.update(key.as_slice()).update(vault.as_bytes());
            *hasher.finalize().as_bytes()
        };
        let generations = keys
            .iter()
            .enumerate()
            .map(|(generation, key)| {
                let keys = GenerationKeys {
                    sealing: Zeroizing::new(derive("coffre v1 sealing", key)),
                    salts: Zeroizing::new(derive("coffre v1 salts", key)),
                };
                (generation as u32, keys)
            })
            .collect();
        Some(Self {
            cipher,
            generations,
            current: keys.len() as u32 - 1,
            chunk_ids: derive("coffre v1 chunk ids", first),
            format_mac: Zeroizing::new(derive("coffre v1 format object", first)),
        })
    }

    /// The keys of a vault that is not encrypted: known to everybody who sees it, so that they find damage and nothing else.
    pub(crate) fn unencrypted(vault: VaultId) -> Self {
        let key = Zeroizing::new(blake3::derive_key("coffre v1 unencrypted vault", vault.as_bytes()));
        Self::new(vault, Cipher::Checksum, &[key]).expect("one key was given")
    }

    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    pub(crate) fn generation(&self, generation: u32) -> Option<&GenerationKeys> {
        self.generations.get(&generation)
    }

    pub(crate) fn chunk_ids(&self) -> &[u8; 32] {
        &self.chunk_ids
    }

    pub(crate) fn format_mac(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.format_mac, bytes)
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({:?}, {} generations)", self.cipher, self.generations.len())
    }
}
