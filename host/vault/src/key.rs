//! What opens a vault.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// What a key slot is opened with.
#[derive(Clone)]
pub enum Credential {
    /// Stretched by Argon2id.
    Passphrase(Zeroizing<String>),
    /// At least 32 random bytes, used as they are.
    Secret(Zeroizing<Vec<u8>>),
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
    #[error("a recovery key is mistyped: {0}")]
    Mistyped(&'static str),
}

/// A key on paper: printable, grouped, with a checksum.
#[derive(Clone)]
pub struct RecoveryKey(Zeroizing<Vec<u8>>);

impl RecoveryKey {
    pub fn credential(&self) -> Credential {
        Credential::Secret(self.0.clone())
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(secret)")
    }
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}

impl FromStr for RecoveryKey {
    type Err = KeyError;

    fn from_str(_text: &str) -> Result<Self, KeyError> {
        unimplemented!()
    }
}
