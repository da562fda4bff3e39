//! The text of slots and generations: three lines that a person can read, the last one a MAC over the others.
//!
//! ```text
//! MAGIC 1\n
//! {…}\n
//! mac 64 hexadecimal digits\n
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The newest version of such a text that is known.
const VERSION: u32 = 1;

/// What stands in the second line, and the bytes as they were stored: what is unknown in them is under the MAC too.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Signed<T> {
    pub(super) contents: T,
    signed: Vec<u8>,
    mac: blake3::Hash,
}

/// Why bytes are no such text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignedError {
    Newer(u32),
    Damaged(&'static str),
}

impl<T: Serialize + DeserializeOwned> Signed<T> {
    /// `place` is where the text stands: the MAC is worth nothing elsewhere.
    pub(super) fn sign(magic: &str, contents: T, key: &[u8; 32], place: &[u8]) -> Self {
        let json = serde_json::to_string(&contents).expect("slots and generations are plain data");
        let signed = format!("{magic} {VERSION}\n{json}\n").into_bytes();
        let mac = mac(key, place, &signed);
        Self { contents, signed, mac }
    }

    pub(super) fn is_signed_by(&self, key: &[u8; 32], place: &[u8]) -> bool {
        // blake3::Hash compares in constant time.
        mac(key, place, &self.signed) == self.mac
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.signed.clone();
        bytes.extend_from_slice(format!("mac {}\n", self.mac.to_hex()).as_bytes());
        bytes
    }

    pub(super) fn decode(magic: &str, bytes: &[u8]) -> Result<Self, SignedError> {
        let damaged = SignedError::Damaged;
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
        let (first, rest) = text.split_once('\n').ok_or(damaged("it is cut short"))?;
        let version = first.strip_prefix(magic).and_then(|version| version.strip_prefix(' '));
        match version.and_then(|version| version.parse().ok()) {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => return Err(SignedError::Newer(newer)),
            _ => return Err(damaged("its first line is another one's")),
        }
        let rest = rest.strip_suffix('\n').ok_or(damaged("it is cut short"))?;
        let (json, last) = rest.split_once('\n').ok_or(damaged("it is cut short"))?;
        let mac = last.strip_prefix("mac ").ok_or(damaged("its MAC is missing"))?;
        // One form only, or a flipped bit that makes a letter large would go unnoticed.
        if mac.bytes().any(|letter| letter.is_ascii_uppercase()) {
            return Err(damaged("its MAC is no 64 hexadecimal digits"));
        }
        Ok(Self {
            contents: serde_json::from_str(json).map_err(|_| damaged("its second line cannot be read"))?,
            signed: bytes[..first.len() + 1 + json.len() + 1].to_vec(),
            mac: blake3::Hash::from_hex(mac).map_err(|_| damaged("its MAC is no 64 hexadecimal digits"))?,
        })
    }
}

fn mac(key: &[u8; 32], place: &[u8], signed: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(place).update(b"\n").update(signed);
    hasher.finalize()
}
