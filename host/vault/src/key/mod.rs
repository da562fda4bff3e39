//! What opens a vault: credentials, the slots that they open, and the keys that follow from the vault's own.

mod generation;
mod recovery;
mod ring;
mod signed;
mod slot;
mod unlock;
mod wrapped;

use std::fmt;

use zeroize::Zeroizing;

pub(crate) use generation::Generation;
pub use recovery::RecoveryKey;
pub(crate) use ring::{Cipher, KeyRing, VaultKey};
pub use slot::SlotKind;
pub(crate) use slot::{Slot, SlotContext, SlotError, SlotKeys};
pub(crate) use unlock::{
    SLOT_LIMIT_BYTES, SLOTS_LIMIT, UnlockError, Unlocked, generation_exists, list_slots, open_stored_slot, unlock,
};

/// Fewer random bytes than this could be guessed, and no Argon2 stands in the way.
const SECRET_MIN_BYTES: usize = 32;
/// 32 random bytes have about 30 different ones among them, 32 random hexadecimal digits about 14. Less than this is a file
/// of zeroes or a repeated word.
const SECRET_MIN_DIFFERENT: usize = 8;
/// What NIST SP 800-63B asks of a passphrase at least; Argon2id makes each guess cost 0.15 s and 64 MiB.
const PASSPHRASE_MIN_CHARACTERS: usize = 8;

/// What a key slot is opened with.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Stretched by Argon2id.
    Passphrase(Zeroizing<String>),
    /// At least 32 random bytes, used as they are.
    Secret(Zeroizing<Vec<u8>>),
    /// A recovery key's 32 random bytes; opens as a secret does, and is listed as what it is.
    Recovery(Zeroizing<Vec<u8>>),
}

impl Credential {
    /// Refuses what cannot open anything.
    pub fn check(&self) -> Result<(), KeyError> {
        match self {
            Self::Passphrase(text) if text.is_empty() => Err(KeyError::Empty),
            Self::Secret(bytes) | Self::Recovery(bytes) if bytes.len() < SECRET_MIN_BYTES => {
                Err(KeyError::TooShort { bytes: bytes.len() })
            }
            Self::Passphrase(_) | Self::Secret(_) | Self::Recovery(_) => Ok(()),
        }
    }

    /// Refuses what should not protect anything new, since anybody could guess it.
    pub fn check_new(&self) -> Result<(), KeyError> {
        self.check()?;
        match self {
            Self::Passphrase(text) => match text.chars().count() {
                characters if characters < PASSPHRASE_MIN_CHARACTERS => Err(KeyError::EasyPassphrase { characters }),
                _ => Ok(()),
            },
            Self::Secret(bytes) | Self::Recovery(bytes) => {
                let different = bytes.iter().collect::<std::collections::HashSet<_>>().len();
                match different {
                    0..SECRET_MIN_DIFFERENT => Err(KeyError::EasySecret { different }),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(secret)",
            Self::Secret(_) => "Secret(secret)",
            Self::Recovery(_) => "Recovery(secret)",
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
    #[error("a key has {different} different bytes only, so it is not random")]
    EasySecret { different: usize },
    #[error("a passphrase has {characters} characters, at least {PASSPHRASE_MIN_CHARACTERS} are wanted")]
    EasyPassphrase { characters: usize },
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
