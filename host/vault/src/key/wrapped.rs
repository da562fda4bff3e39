//! One key sealed by another, as slots and generations hold it.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::random;
use super::ring::VaultKey;

/// XChaCha20-Poly1305, whose nonce is long enough to be random.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Wrapped {
    nonce: String,
    bytes: String,
}

/// Damaged, from another place, or wrapped by another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DoesNotOpen;

impl Wrapped {
    pub(super) fn wrap(with: &[u8; 32], key: &VaultKey, associated: &[u8]) -> Self {
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
        Self {
            nonce: hex::encode(nonce),
            bytes: hex::encode(sealed),
        }
    }

    pub(super) fn unwrap(&self, with: &[u8; 32], associated: &[u8]) -> Result<VaultKey, DoesNotOpen> {
        let mut nonce = [0; 24];
        hex::decode_to_slice(&self.nonce, &mut nonce).map_err(|_| DoesNotOpen)?;
        let mut sealed = [0; 48];
        hex::decode_to_slice(&self.bytes, &mut sealed).map_err(|_| DoesNotOpen)?;
        let opened = XChaCha20Poly1305::new(&Key::from(*with))
            .decrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: &sealed,
                    aad: associated,
                },
            )
            .map_err(|_| DoesNotOpen)?;
        let opened = Zeroizing::new(opened);
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&opened);
        Ok(key)
    }
}
