//! Sealing: authenticated encryption in place, one key per object, one nonce per position in it.
//!
//! An object's key follows from its salt, and the salt from 32 random bytes, the object's name and what is sealed: two
//! objects share a key only if they are the same object with the same bytes, even where the random generator repeats itself
//! (a virtual machine that was restored to an earlier instant). A retry sends the bytes that were sealed the first time.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::ids::VaultId;
use crate::key::{Cipher, KeyRing, random};
use crate::object::{BOUND_BYTES, Header, ObjectType, SALT_BYTES};

/// What a seal adds to the bytes.
pub(crate) const TAG_BYTES: usize = 16;
/// The nonce of what says what is in an object: a pack's directory, and the one body of a record.
pub(crate) const DIRECTORY_POSITION: u32 = u32::MAX;

/// What did not open: damaged, moved from elsewhere, or sealed with another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its seal is broken")]
pub(crate) struct Broken;

/// Room for what is bound to a seal: 16 bytes of header, vault id, position, and the longest object name.
const ASSOCIATED_BYTES: usize = BOUND_BYTES + VaultId::LENGTH + 4 + 64;

enum Key {
    Aes(Box<LessSafeKey>),
    Checksum(Zeroizing<[u8; 32]>),
}

/// Seals and opens the parts of one object.
pub(crate) struct Sealer {
    key: Key,
    /// Header, vault id, position (filled in per part), name.
    associated: [u8; ASSOCIATED_BYTES],
    associated_bytes: usize,
}

/// Why no sealer can be had for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealerError {
    #[error("it is sealed in another way than its vault")]
    Cipher,
    #[error("its key generation is not in the vault")]
    Generation,
}

/// A salt for a new object. `content` is the hash of what will be sealed.
pub(crate) fn salt(ring: &KeyRing, object: &str, content: &blake3::Hash) -> [u8; SALT_BYTES] {
    let generation = ring
        .generation(ring.current())
        .expect("the current generation is in the ring");
    let mut hasher = blake3::Hasher::new_keyed(&generation.salts);
    hasher.update(&random::<32>());
    hasher.update(object.as_bytes());
    hasher.update(content.as_bytes());
    *hasher.finalize().as_bytes()
}

/// The header of an object that is about to be sealed with the newest key.
pub(crate) fn header(ring: &KeyRing, object_type: ObjectType, object: &str, content: &blake3::Hash) -> Header {
    Header {
        object_type,
        cipher: ring.cipher as u8,
        generation: ring.current(),
        salt: salt(ring, object, content),
    }
}

impl Sealer {
    pub(crate) fn new(ring: &KeyRing, vault: VaultId, object: &str, header: &Header) -> Result<Self, SealerError> {
        if header.cipher != ring.cipher as u8 {
            return Err(SealerError::Cipher);
        }
        let generation = ring.generation(header.generation).ok_or(SealerError::Generation)?;
        let mut hasher = blake3::Hasher::new_keyed(&generation.sealing);
        hasher.update(&[header.object_type as u8]).update(&header.salt);
        let bytes = Zeroizing::new(*hasher.finalize().as_bytes());
        let key = match ring.cipher {
            Cipher::Aes256Gcm => {
                let unbound = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).expect("an AES-256 key has 32 bytes");
                Key::Aes(Box::new(LessSafeKey::new(unbound)))
            }
            Cipher::Checksum => Key::Checksum(bytes),
        };
        let mut associated = [0; ASSOCIATED_BYTES];
        let position = BOUND_BYTES + VaultId::LENGTH;
        associated[..BOUND_BYTES].copy_from_slice(&header.encode()[..BOUND_BYTES]);
        associated[BOUND_BYTES..position].copy_from_slice(vault.as_bytes());
        let name = object.as_bytes();
        let end = position + 4 + name.len();
        associated[position + 4..end].copy_from_slice(name);
        Ok(Self {
            key,
            associated,
            associated_bytes: end,
        })
    }

    fn associated(&self, position: u32) -> [u8; ASSOCIATED_BYTES] {
        let mut associated = self.associated;
        let at = BOUND_BYTES + VaultId::LENGTH;
        associated[at..at + 4].copy_from_slice(&position.to_le_bytes());
        associated
    }

    /// Seals `part`, whose last [`TAG_BYTES`] are room for the tag.
    pub(crate) fn seal(&self, position: u32, part: &mut [u8]) {
        let (body, room) = part.split_at_mut(part.len() - TAG_BYTES);
        let associated = self.associated(position);
        let associated = &associated[..self.associated_bytes];
        match &self.key {
            Key::Aes(key) => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(position), Aad::from(associated), body)
                    .expect("AES-GCM seals up to 64 GiB");
                room.copy_from_slice(tag.as_ref());
            }
            Key::Checksum(key) => room.copy_from_slice(&checksum(key, associated, body)),
        }
    }

    /// Opens `part` (with its tag) into `out`, which has room for exactly the body. `out` is worthless after an error.
    pub(crate) fn open_into(&self, position: u32, part: &[u8], out: &mut [u8]) -> Result<(), Broken> {
        let (body, tag) = split(part)?;
        if body.len() != out.len() {
            return Err(Broken);
        }
        let associated = self.associated(position);
        let associated = &associated[..self.associated_bytes];
        match &self.key {
            Key::Aes(key) => key
                .open_separate_gather(nonce(position), Aad::from(associated), body, tag, out)
                .map_err(|_| Broken),
            Key::Checksum(key) => {
                if checksum(key, associated, body) != *tag {
                    return Err(Broken);
                }
                out.copy_from_slice(body);
                Ok(())
            }
        }
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(secret)")
    }
}

fn split(part: &[u8]) -> Result<(&[u8], &[u8]), Broken> {
    part.len()
        .checked_sub(TAG_BYTES)
        .map(|body| part.split_at(body))
        .ok_or(Broken)
}

fn nonce(position: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&position.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn checksum(key: &[u8; 32], associated: &[u8], body: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher
        .update(&(associated.len() as u64).to_le_bytes())
        .update(associated)
        .update(body);
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_BYTES]);
    tag
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rings() -> [KeyRing; 2] {
        let key = Zeroizing::new([3; 32]);
        [
            KeyRing::new(VaultId([1; 16]), Cipher::Aes256Gcm, &[key]).unwrap(),
            KeyRing::unencrypted(VaultId([1; 16])),
        ]
    }

    fn sealer(ring: &KeyRing, vault: u8, object: &str, header: &Header) -> Sealer {
        Sealer::new(ring, VaultId([vault; 16]), object, header).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_in_its_place_alone(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            position in any::<u32>(),
            flip in any::<prop::sample::Index>(),
        ) {
            for ring in rings() {
                let header = header(&ring, ObjectType::Pack, "packs/x", &blake3::hash(&body));
                let sealer_here = sealer(&ring, 1, "packs/x", &header);
                let mut part = body.clone();
                part.extend([0; TAG_BYTES]);
                sealer_here.seal(position, &mut part);
                let mut out = vec![0; body.len()];
                prop_assert_eq!(sealer_here.open_into(position, &part, &mut out), Ok(()));
                prop_assert_eq!(&out, &body);

                let elsewhere = Header { object_type: ObjectType::Point, ..header };
                for wrong in [
                    sealer(&ring, 2, "packs/x", &header),
                    sealer(&ring, 1, "packs/y", &header),
                    sealer(&ring, 1, "packs/x", &elsewhere),
                ] {
                    prop_assert_eq!(wrong.open_into(position, &part, &mut out), Err(Broken));
                }
                prop_assert_eq!(sealer_here.open_into(position ^ 1, &part, &mut out), Err(Broken));
                let at = flip.index(part.len() * 8);
                part[at / 8] ^= 1 << (at % 8);
                prop_assert_eq!(sealer_here.open_into(position, &part, &mut out), Err(Broken));
            }
        }
    }

    #[test]
    fn two_objects_never_share_a_salt() {
        let [ring, _] = rings();
        let content = blake3::hash(b"x");
        assert_ne!(salt(&ring, "packs/x", &content), salt(&ring, "packs/x", &content));
    }

    #[test]
    fn another_vaults_way_of_sealing_is_refused() {
        let [encrypted, plain] = rings();
        let header = header(&plain, ObjectType::Pack, "packs/x", &blake3::hash(b""));
        assert_eq!(
            Sealer::new(&encrypted, VaultId([1; 16]), "x", &header).unwrap_err(),
            SealerError::Cipher
        );
    }

    /// If this fails, vaults that exist can no longer be read: FORMAT.md says what these bytes follow from.
    #[test]
    fn the_format_has_not_changed() {
        let [encrypted, plain] = rings();
        assert_eq!(
            hex::encode(encrypted.chunk_ids()),
            "f38c25d04ef10ff784563d7c7b45c54628025d37149761b76e25c54db2bddf17"
        );
        for (ring, wanted) in [
            (encrypted, "aa5ba91e675d47e799545930c16e6651848342341ddb"),
            (plain, "636f6666726513bfd242a893f509728705f630e7416e"),
        ] {
            let header = Header {
                object_type: ObjectType::Pack,
                cipher: ring.cipher as u8,
                generation: 0,
                salt: [7; SALT_BYTES],
            };
            let mut part = b"coffre".to_vec();
            part.extend([0; TAG_BYTES]);
            sealer(&ring, 1, "packs/00000001/00000000/00000000", &header).seal(5, &mut part);
            assert_eq!(hex::encode(part), wanted);
        }
    }
}
