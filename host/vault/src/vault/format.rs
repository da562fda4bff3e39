//! The `format` object: what makes a place a vault. It can be read without a key, and whoever has the key can prove it.
//!
//! ```text
//! COFFRE-VAULT 1\n
//! {"vault":"…","seal":"aes-256-gcm","created_at":"…","host":"…","coffre":"…"}\n
//! mac 64 hexadecimal digits\n
//! ```

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::VaultId;
use crate::key::{Cipher, KeyRing};

/// The newest format that this version of Coffre knows.
pub(crate) const FORMAT_VERSION: u32 = 1;
const MAGIC: &str = "COFFRE-VAULT ";
pub(crate) const FORMAT_LIMIT_BYTES: u64 = 16 * 1024;

/// What stands in `format`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Format {
    pub(crate) vault: VaultId,
    pub(crate) seal: SealKind,
    pub(crate) created_at: Timestamp,
    pub(crate) host: String,
    pub(crate) coffre: String,
}

/// How a vault is sealed, as people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SealKind {
    #[serde(rename = "none")]
    None,
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

impl SealKind {
    pub(crate) fn cipher(self) -> Cipher {
        match self {
            Self::None => Cipher::Checksum,
            Self::Aes256Gcm => Cipher::Aes256Gcm,
        }
    }
}

/// Why bytes are no `format` of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("its `format` object is not Coffre's")]
    NotOurs,
    #[error("format {0} is newer")]
    Newer(u32),
    #[error("`format`: {0}")]
    Damaged(&'static str),
}

/// A `format` whose MAC nobody has checked yet.
pub(crate) struct Unproven {
    pub(crate) format: Format,
    signed: Vec<u8>,
    mac: blake3::Hash,
}

impl Format {
    pub(crate) fn encode(&self, ring: &KeyRing) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("a format is plain data");
        let mut bytes = format!("{MAGIC}{FORMAT_VERSION}\n{json}\n").into_bytes();
        let mac = ring.format_mac(&bytes);
        bytes.extend_from_slice(format!("mac {}\n", mac.to_hex()).as_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Unproven, FormatError> {
        let version = bytes
            .strip_prefix(MAGIC.as_bytes())
            .and_then(|rest| std::str::from_utf8(rest.split(|byte| *byte == b'\n').next()?).ok())
            .and_then(|version| version.parse::<u32>().ok())
            .ok_or(FormatError::NotOurs)?;
        if version > FORMAT_VERSION {
            return Err(FormatError::Newer(version));
        }
        if version != FORMAT_VERSION {
            return Err(FormatError::NotOurs);
        }
        let damaged = FormatError::Damaged;
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
        let text = text.strip_suffix('\n').ok_or(damaged("it is cut short"))?;
        let (signed, mac) = text.rsplit_once('\n').ok_or(damaged("it is cut short"))?;
        let mac = mac.strip_prefix("mac ").ok_or(damaged("its MAC is missing"))?;
        // One form only, or a flipped bit that makes a letter large would go unnoticed.
        if mac.bytes().any(|letter| letter.is_ascii_uppercase()) {
            return Err(damaged("its MAC is no 64 hexadecimal digits"));
        }
        let mac = blake3::Hash::from_hex(mac).map_err(|_| damaged("its MAC is no 64 hexadecimal digits"))?;
        let (_, json) = signed.split_once('\n').ok_or(damaged("it is cut short"))?;
        let format = serde_json::from_str(json).map_err(|_| damaged("its second line cannot be read"))?;
        let mut signed = signed.as_bytes().to_vec();
        signed.push(b'\n');
        Ok(Unproven { format, signed, mac })
    }
}

impl Unproven {
    pub(crate) fn is_proven_by(&self, ring: &KeyRing) -> bool {
        ring.format_mac(&self.signed) == self.mac
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn format() -> Format {
        Format {
            vault: VaultId([4; 16]),
            seal: SealKind::None,
            created_at: Timestamp::UNIX_EPOCH,
            host: "a".to_owned(),
            coffre: "0".to_owned(),
        }
    }

    #[test]
    fn a_format_reads_back_and_proves_itself() {
        let ring = KeyRing::unencrypted(VaultId([4; 16]));
        let read = Format::decode(&format().encode(&ring)).ok().unwrap();
        assert_eq!(read.format, format());
        assert!(read.is_proven_by(&ring));
        assert!(!read.is_proven_by(&KeyRing::unencrypted(VaultId([5; 16]))));
    }

    #[test]
    fn a_newer_format_is_told_from_something_else() {
        assert_eq!(
            Format::decode(b"COFFRE-VAULT 7\nwhatever").err(),
            Some(FormatError::Newer(7))
        );
        assert_eq!(Format::decode(b"repository format 1").err(), Some(FormatError::NotOurs));
    }

    #[test]
    fn no_flipped_bit_of_a_format_goes_unnoticed() {
        let ring = KeyRing::unencrypted(VaultId([4; 16]));
        let mut bytes = format().encode(&ring);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !Format::decode(&bytes).is_ok_and(|read| read.is_proven_by(&ring)),
                "bit {bit}"
            );
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    proptest! {
        #[test]
        fn garbage_and_flipped_bits_are_no_proven_format(
            garbage in proptest::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            prop_assert!(Format::decode(&garbage).is_err());
            let ring = KeyRing::unencrypted(VaultId([4; 16]));
            let mut bytes = format().encode(&ring);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(!Format::decode(&bytes).is_ok_and(|read| read.is_proven_by(&ring)));
        }
    }
}
