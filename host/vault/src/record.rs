//! Sealed records: a header, one sealed body, its tag. Everything in a vault but packs, slots and `format` is one.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Clock;
use crate::ids::VaultId;
use crate::key::{Cipher, KeyRing, generation_exists};
use crate::object::{HEADER_BYTES, Header, HeaderError, ObjectType};
use crate::read::ReadError;
use crate::seal::{self, DIRECTORY_POSITION, Sealer, SealerError, TAG_BYTES};
use crate::store::{Store, StoreError};

/// Records of one JSON document: a point with 64 hooks of 64 KiB output each, or a checkpoint of many thousand points.
pub(crate) const RECORD_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// What seals and opens the records of one vault.
#[derive(Clone, Copy)]
pub(crate) struct Records<'a> {
    pub(crate) store: &'a Store,
    pub(crate) vault: VaultId,
    pub(crate) ring: &'a KeyRing,
    pub(crate) clock: &'a dyn Clock,
}

impl Records<'_> {
    /// What records say of when they were written: this host's time.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The bytes of a record. Sealing the same twice gives different bytes: keep them for a retry.
    pub(crate) fn seal(&self, object_type: ObjectType, object: &str, body: &[u8]) -> Bytes {
        let header = seal::header(self.ring, object_type, object, &blake3::hash(body));
        let sealer = Sealer::new(self.ring, self.vault, object, &header).expect("the header is of this ring");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + TAG_BYTES);
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(&[0; TAG_BYTES]);
        sealer.seal(DIRECTORY_POSITION, &mut bytes[HEADER_BYTES..]);
        bytes.into()
    }

    pub(crate) fn open(&self, object_type: ObjectType, object: &str, bytes: &[u8]) -> Result<Vec<u8>, ReadError> {
        let damaged = |what: String| ReadError::Damaged {
            object: object.to_owned(),
            what,
        };
        let header = Header::decode(bytes, object_type).map_err(|error| match error {
            HeaderError::Newer(_) => ReadError::Newer {
                object: object.to_owned(),
            },
            other => damaged(other.to_string()),
        })?;
        let sealer = Sealer::new(self.ring, self.vault, object, &header).map_err(|error| match error {
            SealerError::Generation if self.ring.cipher != Cipher::Checksum => ReadError::KeyRotated {
                object: object.to_owned(),
            },
            SealerError::Generation | SealerError::Cipher => damaged(error.to_string()),
        })?;
        let sealed = &bytes[HEADER_BYTES..];
        let mut body = vec![0; sealed.len().saturating_sub(TAG_BYTES)];
        sealer
            .open_into(DIRECTORY_POSITION, sealed, &mut body)
            .map_err(|error| damaged(error.to_string()))?;
        Ok(body)
    }

    pub(crate) fn seal_json<T: Serialize>(&self, object_type: ObjectType, object: &str, value: &T) -> Bytes {
        let body = serde_json::to_vec(value).expect("records are plain data");
        self.seal(object_type, object, &body)
    }

    pub(crate) fn open_json<T: DeserializeOwned>(
        &self,
        object_type: ObjectType,
        object: &str,
        bytes: &[u8],
    ) -> Result<T, ReadError> {
        let body = self.open(object_type, object, bytes)?;
        serde_json::from_slice(&body).map_err(|error| ReadError::Damaged {
            object: object.to_owned(),
            what: error.to_string(),
        })
    }

    /// Reads one record, or nothing where nothing is.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        object_type: ObjectType,
        object: &str,
    ) -> Result<Option<T>, ReadError> {
        match self.store.get(object, RECORD_LIMIT_BYTES).await? {
            Some(bytes) => match self.open_json(object_type, object, &bytes) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(self.settle(error).await),
            },
            None => Ok(None),
        }
    }

    /// Asks the store whether there was a rotation, where a header says so: it may be a header with a flipped bit.
    pub(crate) async fn settle(&self, error: ReadError) -> ReadError {
        let ReadError::KeyRotated { object } = error else {
            return error;
        };
        match generation_exists(self.store, self.ring.current() + 1).await {
            Ok(true) => ReadError::KeyRotated { object },
            Ok(false) => ReadError::Damaged {
                object,
                what: SealerError::Generation.to_string(),
            },
            Err(error) => error.into(),
        }
    }

    /// Creates one record; [`StoreError::Taken`] if another is there.
    pub(crate) async fn create<T: Serialize>(
        &self,
        object_type: ObjectType,
        object: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        self.store
            .create(object, self.seal_json(object_type, object, value))
            .await
            .map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use proptest::prelude::*;

    use super::*;
    use crate::clock::SystemClock;

    fn with<R>(test: impl FnOnce(Records<'_>) -> R) -> R {
        let store = Store::over(Arc::new(InMemory::new()), "");
        let ring = KeyRing::unencrypted(VaultId([1; 16]));
        test(Records {
            store: &store,
            vault: VaultId([1; 16]),
            ring: &ring,
            clock: &SystemClock,
        })
    }

    proptest! {
        #[test]
        fn garbage_and_flipped_bits_are_no_record(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            flip in any::<prop::sample::Index>(),
        ) {
            with(|records| {
                assert!(records.open(ObjectType::Point, "points/x", &garbage).is_err());
                let mut bytes = records.seal(ObjectType::Point, "points/x", b"body").to_vec();
                assert_eq!(records.open(ObjectType::Point, "points/x", &bytes).unwrap(), b"body");
                assert!(records.open(ObjectType::Session, "points/x", &bytes).is_err());
                assert!(records.open(ObjectType::Point, "points/y", &bytes).is_err());
                let at = flip.index(bytes.len() * 8);
                bytes[at / 8] ^= 1 << (at % 8);
                assert!(records.open(ObjectType::Point, "points/x", &bytes).is_err());
            });
        }
    }
}
