//! The key on paper: 32 random bytes and a checksum, in an alphabet without look-alikes.

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, Zeroizing};

use super::{Credential, KeyError, random};

const SECRET_BYTES: usize = 32;
/// One mistyped letter in sixteen million goes unnoticed here, and then the key just does not open.
const CHECKSUM_BYTES: usize = 3;
const BYTES: usize = SECRET_BYTES + CHECKSUM_BYTES;
const LETTERS: usize = BYTES * 8 / 5;
/// Crockford's base 32: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUP: usize = 4;

/// A key to print and put away: 14 groups of four letters and digits.
#[derive(Clone)]
pub struct RecoveryKey(Zeroizing<Vec<u8>>);

impl RecoveryKey {
    pub fn generate() -> Self {
        let mut secret: [u8; SECRET_BYTES] = random();
        let key = Self(Zeroizing::new(secret.to_vec()));
        secret.zeroize();
        key
    }

    pub fn credential(&self) -> Credential {
        Credential::Recovery(self.0.clone())
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(secret)")
    }
}

fn checksum(secret: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::derive_key("coffre recovery key checksum v1", secret);
    [hash[0], hash[1], hash[2]]
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bits: u32 = 0;
        let mut held = 0;
        let mut written = 0;
        for byte in self.0.iter().chain(&checksum(&self.0)) {
            bits = bits << 8 | u32::from(*byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                if written > 0 && written % GROUP == 0 {
                    f.write_str("-")?;
                }
                let letter = ALPHABET[(bits >> held & 31) as usize];
                write!(f, "{}", char::from(letter))?;
                written += 1;
            }
        }
        Ok(())
    }
}

impl FromStr for RecoveryKey {
    type Err = KeyError;

    /// Takes lower case, any grouping, and the letters that people write for 0 and 1.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES));
        let mut bits: u32 = 0;
        let mut held = 0;
        let mut letters = 0;
        for letter in text.chars().filter(|letter| !letter.is_whitespace() && *letter != '-') {
            let plain = match letter.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let value = ALPHABET.iter().position(|known| char::from(*known) == plain);
            let Some(value) = value else {
                return Err(KeyError::RecoveryCharacter(letter));
            };
            letters += 1;
            if letters > LETTERS {
                continue;
            }
            bits = bits << 5 | value as u32;
            held += 5;
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held) as u8);
            }
        }
        if letters != LETTERS {
            return Err(KeyError::RecoveryLength { found: letters });
        }
        let (secret, sum) = bytes.split_at(SECRET_BYTES);
        if checksum(secret) != *sum {
            return Err(KeyError::RecoveryChecksum);
        }
        Ok(Self(Zeroizing::new(secret.to_vec())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_key_reads_back_however_it_is_typed() {
        let key = RecoveryKey::generate();
        let shown = key.to_string();
        assert_eq!(shown.len(), 56 + 13);
        for typed in [
            shown.clone(),
            shown.to_lowercase(),
            shown.replace('-', " "),
            shown.replace('0', "o"),
        ] {
            let read: RecoveryKey = typed.parse().unwrap();
            assert_eq!(*read.0, *key.0);
        }
    }

    #[test]
    fn a_mistyped_recovery_key_is_told_from_a_wrong_one() {
        let shown = RecoveryKey::generate().to_string();
        let first = if shown.starts_with('7') { "8" } else { "7" };
        let mistyped = format!("{first}{}", &shown[1..]);
        assert_eq!(mistyped.parse::<RecoveryKey>().unwrap_err(), KeyError::RecoveryChecksum);
        assert_eq!(
            shown[4..].parse::<RecoveryKey>().unwrap_err(),
            KeyError::RecoveryLength { found: 52 }
        );
        assert_eq!(
            "U".parse::<RecoveryKey>().unwrap_err(),
            KeyError::RecoveryCharacter('U')
        );
    }
}
