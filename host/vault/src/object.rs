//! The names of the vault's objects, and the header that every sealed one begins with.

use std::fmt;

use crate::ids::{MachineNumber, SessionNumber, parse_key};

/// What an object is. The number stands in its header and in what is bound to every seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ObjectType {
    Pack = 1,
    Index = 2,
    Machine = 3,
    Session = 4,
    Point = 5,
    Fate = 6,
    GcLog = 7,
}

impl ObjectType {
    fn of(number: u8) -> Option<Self> {
        [
            Self::Pack,
            Self::Index,
            Self::Machine,
            Self::Session,
            Self::Point,
            Self::Fate,
            Self::GcLog,
        ]
        .into_iter()
        .find(|known| *known as u8 == number)
    }
}

/// A numbered object of a session: a pack or an index piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PackKey {
    pub(crate) machine: MachineNumber,
    pub(crate) session: SessionNumber,
    pub(crate) number: u32,
}

impl PackKey {
    pub(crate) fn object(&self) -> String {
        format!("packs/{self}")
    }

    pub(crate) fn index_object(&self) -> String {
        format!("index/{self}")
    }

    /// What mends the pack.
    pub(crate) fn parity_object(&self) -> String {
        format!("{PARITY}/{self}")
    }

    /// From the part of a name after `packs/`, `index/` or `parity/`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/').map(parse_key);
        let key = Self {
            machine: MachineNumber(parts.next()??),
            session: SessionNumber(parts.next()??),
            number: parts.next()??,
        };
        parts.next().is_none().then_some(key)
    }

    pub(crate) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.machine.0.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.session.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; 12]) -> Self {
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            machine: MachineNumber(number(0)),
            session: SessionNumber(number(4)),
            number: number(8),
        }
    }
}

impl fmt::Display for PackKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}/{:08x}/{:08x}", self.machine.0, self.session.0, self.number)
    }
}

/// The folder of what mends packs.
pub(crate) const PARITY: &str = "parity";
pub(crate) const FORMAT: &str = "format";
pub(crate) const KEYS: &str = "keys";

pub(crate) fn machine(machine: MachineNumber) -> String {
    format!("machines/{}", machine.key())
}

pub(crate) fn session(machine: MachineNumber, session: SessionNumber) -> String {
    format!("sessions/{}/{}", machine.key(), session.key())
}

pub(crate) fn point(machine: MachineNumber, session: SessionNumber) -> String {
    format!("points/{}/{}", machine.key(), session.key())
}

pub(crate) fn fate(machine: MachineNumber, session: SessionNumber, number: u32) -> String {
    format!("fates/{}/{}/{number:08x}", machine.key(), session.key())
}

pub(crate) fn gclog(number: u32) -> String {
    format!("gclog/{number:08x}")
}

pub(crate) fn generation(number: u32) -> String {
    format!("generations/{number:08x}")
}

pub(crate) fn slots(generation: u32) -> String {
    format!("{KEYS}/{generation:08x}")
}

pub(crate) fn slot(generation: u32, name: &str) -> String {
    format!("{KEYS}/{generation:08x}/{name}")
}

const MAGIC: &[u8; 7] = b"COFFRE\0";
/// The version of every sealed object. A reader refuses what is above.
pub(crate) const VERSION: u16 = 1;
pub(crate) const HEADER_BYTES: usize = 48;
/// The part of the header that is bound to every seal of the object.
pub(crate) const BOUND_BYTES: usize = 16;
pub(crate) const SALT_BYTES: usize = 32;

/// The first 48 bytes of every sealed object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) object_type: ObjectType,
    pub(crate) cipher: u8,
    pub(crate) generation: u32,
    pub(crate) salt: [u8; SALT_BYTES],
}

/// Why bytes are no sealed object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it is too short")]
    Short,
    #[error("it does not begin as a sealed object does")]
    Magic,
    #[error("it has version {0}")]
    Newer(u16),
    #[error("its header says that it is something else")]
    Type,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..7].copy_from_slice(MAGIC);
        bytes[7] = self.object_type as u8;
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = self.cipher;
        bytes[12..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..].copy_from_slice(&self.salt);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], wanted: ObjectType) -> Result<Self, HeaderError> {
        let bytes: &[u8; HEADER_BYTES] = bytes
            .get(..HEADER_BYTES)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(HeaderError::Short)?;
        if &bytes[..7] != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > VERSION {
            return Err(HeaderError::Newer(version));
        }
        let object_type = ObjectType::of(bytes[7])
            .filter(|found| *found == wanted)
            .ok_or(HeaderError::Type)?;
        if version == 0 || bytes[11] != 0 {
            return Err(HeaderError::Magic);
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&bytes[16..]);
        let generation = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        Ok(Self {
            object_type,
            cipher: bytes[10],
            generation,
            salt,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_names_sort_as_their_numbers_and_read_back() {
        let key = PackKey {
            machine: MachineNumber(1),
            session: SessionNumber(0xab),
            number: 16,
        };
        assert_eq!(key.object(), "packs/00000001/000000ab/00000010");
        assert_eq!(PackKey::parse("00000001/000000ab/00000010"), Some(key));
        assert_eq!(PackKey::from_bytes(&key.to_bytes()), key);
        for bad in ["", "00000001/000000ab", "00000001/000000ab/00000010/00000000", "1/2/3"] {
            assert_eq!(PackKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_header_reads_back_and_a_newer_one_is_refused() {
        let header = Header {
            object_type: ObjectType::Point,
            cipher: 1,
            generation: 3,
            salt: [5; 32],
        };
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes, ObjectType::Point), Ok(header));
        assert_eq!(Header::decode(&bytes, ObjectType::Pack), Err(HeaderError::Type));
        assert_eq!(Header::decode(&bytes[..47], ObjectType::Point), Err(HeaderError::Short));
        bytes[8] = 2;
        assert_eq!(Header::decode(&bytes, ObjectType::Point), Err(HeaderError::Newer(2)));
    }
}
