//! The numbers and names that vault objects are called by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is no id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}: {wanted} are wanted")]
pub struct IdError {
    text: String,
    what: &'static str,
    wanted: &'static str,
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $length:literal, $what:literal, $wanted:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl $name {
            /// Its length in bytes.
            pub const LENGTH: usize = $length;

            pub fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError {
                    text: text.chars().take(80).collect(),
                    what: $what,
                    wanted: $wanted,
                })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

bytes_id!(
    /// Names a vault: 16 random bytes, pinned on every host that uses it.
    VaultId,
    16,
    "vault id",
    "32 hexadecimal digits"
);
bytes_id!(
    /// Names a chunk: the first 20 bytes of the keyed BLAKE3 of its plain bytes.
    ChunkId,
    20,
    "chunk id",
    "40 hexadecimal digits"
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// As it stands in object names: eight lower-case hexadecimal digits, so that names sort as numbers do.
            pub fn key(self) -> String {
                format!("{:08x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.parse().map(Self).map_err(|_| IdError {
                    text: text.chars().take(80).collect(),
                    what: $what,
                    wanted: "decimal digits",
                })
            }
        }
    };
}

number!(
    /// Names a machine in a vault. 0 is the vault's own maintenance.
    MachineNumber,
    "machine number"
);
number!(
    /// Names a session of a machine, and the recovery point that it makes.
    SessionNumber,
    "point number"
);

impl MachineNumber {
    /// What clean-up and repacking write under. It has no record in the machines register.
    pub const MAINTENANCE: MachineNumber = MachineNumber(0);
}

/// Parses the eight hexadecimal digits of [`MachineNumber::key`]; anything else is nothing.
pub(crate) fn parse_key(text: &str) -> Option<u32> {
    let canonical = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if canonical {
        u32::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_show() {
        let id = ChunkId(std::array::from_fn(|i| i as u8 * 11));
        assert_eq!(id.to_string().parse::<ChunkId>(), Ok(id));
        assert_eq!(
            serde_json::from_str::<ChunkId>(&serde_json::to_string(&id).unwrap()).unwrap(),
            id
        );
        assert!("00".parse::<VaultId>().is_err());
        assert!("zz".repeat(16).parse::<VaultId>().is_err());
    }

    #[test]
    fn only_the_canonical_form_of_a_number_is_a_key() {
        assert_eq!(parse_key(&SessionNumber(0xfeed).key()), Some(0xfeed));
        for bad in ["0000FEED", "feed", "+000feed", "0000feedf", ""] {
            assert_eq!(parse_key(bad), None, "{bad}");
        }
    }
}
