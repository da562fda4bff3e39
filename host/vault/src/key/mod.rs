//! What opens a vault: credentials, the slots that they open, and the keys that follow from the vault's own.

mod recovery;
mod ring;
mod slot;

use std::fmt;

use zeroize::Zeroizing;

pub use recovery::RecoveryKey;
pub(crate) use ring::{Cipher, KeyRing, VaultKey};
pub(crate) use slot::{Slot, SlotContext, SlotError};

/// Fewer random bytes than this could be guessed, and no Argon2 stands in the way.
const SECRET_MIN_BYTES: usize = 32;

/// What a key slot is opened with.
#[derive(Clone)]
pub enum Credential {
    /// Stretched by Argon2id.
    Passphrase(Zeroizing<String>),
    /// At least 32 random bytes, used as they are.
    Secret(Zeroizing<Vec<u8>>),
}

impl Credential {
    /// Refuses what cannot protect anything.
    pub fn check(&self) -> Result<(), KeyError> {
        match self {
            Self::Passphrase(text) if text.is_empty() => Err(KeyError::Empty),
            Self::Secret(bytes) if bytes.len() < SECRET_MIN_BYTES => Err(KeyError::TooShort { bytes: bytes.len() }),
            Self::Passphrase(_) | Self::Secret(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(secret)",
            Self::Secret(_) => "Secret(secret)",
        })
    }
}

/// Why a credential or recovery key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a passphrase is empty")]
    Empty,
    #[error("a key has {bytes} bytes, at least 32 random ones are wanted")]
    TooShort { bytes: usize },
    #[error("a recovery key has 56 letters and digits, this has {found}")]
    RecoveryLength { found: usize },
    #[error("a recovery key has no `{0}` in it")]
    RecoveryCharacter(char),
    #[error("the recovery key is mistyped: its checksum is wrong")]
    RecoveryChecksum,
}

/// Random bytes of the system.
///
/// # Panics
/// If the system has no randomness, which no supported system does; to go on would seal with known keys.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}
