//! Every parser of the vault, for fuzzers and properties: any bytes go in, and a promise that does not hold is a panic.
//!
//! What lies behind a seal in a real vault is parsed here as if its seal were whole: that is what a faulty or hostile
//! program that holds the key could have written.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::fate::FateRecord;
use crate::gclog::GcRecord;
use crate::ids::{ChunkId, MachineNumber, SessionNumber, VaultId, parse_key};
use crate::key::{Cipher, Credential, KeyRing, RecoveryKey, Slot, SlotContext};
use crate::map::{Leaf, MAX_LEVEL, Node, SLOT_BYTES};
use crate::object::{self, HEADER_BYTES, Header, ObjectType, PackKey};
use crate::pack::{
    CHUNK_LIMIT_BYTES, ChunkShape, Decoder, check_chunks, decode_piece, encode_piece, open_chunk, read_pack,
};
use crate::record::Records;
use crate::register::{MachineRecord, PointRecord, Session};
use crate::seal::{self, DIRECTORY_POSITION, Sealer, TAG_BYTES};
use crate::store::Store;
use crate::vault::ChunkHasher;
use crate::vault::format::Format;

mod seeds;

pub use seeds::seeds;

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Panics where a promise about the parser does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "format",
        run: format,
    },
    Target {
        name: "slot",
        run: slot,
    },
    Target {
        name: "recovery_key",
        run: recovery_key,
    },
    Target {
        name: "names",
        run: names,
    },
    Target {
        name: "sealed",
        run: sealed,
    },
    Target {
        name: "machine",
        run: machine,
    },
    Target {
        name: "session",
        run: session,
    },
    Target {
        name: "point",
        run: point,
    },
    Target {
        name: "fate",
        run: fate,
    },
    Target {
        name: "gclog",
        run: gclog,
    },
    Target {
        name: "index_piece",
        run: index_piece,
    },
    Target {
        name: "directory",
        run: directory,
    },
    Target {
        name: "pack",
        run: pack,
    },
    Target {
        name: "chunk",
        run: chunk,
    },
    Target {
        name: "leaf",
        run: leaf,
    },
    Target {
        name: "node",
        run: node,
    },
];

const VAULT: VaultId = VaultId([6; 16]);
const PACK: PackKey = PackKey {
    machine: MachineNumber(1),
    session: SessionNumber(2),
    number: 3,
};

fn ring() -> KeyRing {
    KeyRing::new(VAULT, Cipher::Aes256Gcm, &[Zeroizing::new([1; 32])]).expect("one key was given")
}

fn secret() -> Credential {
    Credential::Secret(Zeroizing::new(vec![1; 32]))
}

const SLOT: SlotContext<'static> = SlotContext {
    vault: VAULT,
    generation: 0,
    name: "0011223344556677",
};

/// What was read says the same when it is written and read again.
pub fn format(bytes: &[u8]) {
    let Ok(read) = Format::decode(bytes) else { return };
    let again = Format::decode(&read.format.encode(&ring()));
    let again = again.unwrap_or_else(|error| panic!("what was written does not read back: {error}"));
    assert_eq!(again.format, read.format);
    assert!(again.is_proven_by(&ring()));
}

/// A slot that nobody made for this credential does not open with it, and costs no more than Coffre's own to try.
pub fn slot(bytes: &[u8]) {
    let Ok(slot) = Slot::decode(bytes) else { return };
    assert_eq!(Slot::decode(&slot.encode()), Ok(slot.clone()));
    if let Ok(key) = slot.open(&secret(), SLOT) {
        assert_eq!(*key, [9; 32], "only the seed's slot opens");
    }
}

/// What is taken for a recovery key is one, however it was typed.
pub fn recovery_key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(key) = text.parse::<RecoveryKey>() else { return };
    let again: RecoveryKey = key.to_string().parse().expect("a printed key reads back");
    assert_eq!(again.to_string(), key.to_string());
    key.credential().check().expect("a recovery key protects enough");
}

/// A text is the name of one number, machine, session or pack at most.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(number) = parse_key(text) {
        assert_eq!(SessionNumber(number).key(), text);
    }
    if let Some(key) = PackKey::parse(text) {
        assert_eq!(key.to_string(), text);
        assert_eq!(PackKey::from_bytes(&key.to_bytes()), key);
    }
    if let Ok(id) = text.parse::<ChunkId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
}

/// Bytes that nobody sealed are no record of any type, and no header is read as two things.
pub fn sealed(bytes: &[u8]) {
    use ObjectType::{Fate, GcLog, Index, Machine, Pack, Point, Session};
    let mut types = 0;
    for object_type in [Pack, Index, Machine, Session, Point, Fate, GcLog] {
        if let Ok(header) = Header::decode(bytes, object_type) {
            assert_eq!(header.encode(), bytes[..HEADER_BYTES]);
            types += 1;
        }
        with_records(|records| {
            let name = "points/00000001/00000002";
            assert!(
                records.open(object_type, name, bytes).is_err(),
                "an unsealed {object_type:?} opens"
            );
        });
    }
    assert!(types <= 1);
}

pub fn machine(bytes: &[u8]) {
    record::<MachineRecord>(ObjectType::Machine, &object::machine(MachineNumber(1)), bytes);
}

pub fn session(bytes: &[u8]) {
    record::<Session>(
        ObjectType::Session,
        &object::session(MachineNumber(1), SessionNumber(2)),
        bytes,
    );
}

pub fn point(bytes: &[u8]) {
    record::<PointRecord>(
        ObjectType::Point,
        &object::point(MachineNumber(1), SessionNumber(2)),
        bytes,
    );
}

pub fn fate(bytes: &[u8]) {
    record::<FateRecord>(
        ObjectType::Fate,
        &object::fate(MachineNumber(1), SessionNumber(2), 3),
        bytes,
    );
}

pub fn gclog(bytes: &[u8]) {
    record::<GcRecord>(ObjectType::GcLog, &object::gclog(4), bytes);
}

/// A record whose body is `body` opens, and what it is read as is written as something that is read as the same. A kind
/// that this version does not know has lost its content and is refused elsewhere.
fn record<T: Serialize + DeserializeOwned + Debug>(object_type: ObjectType, name: &str, body: &[u8]) {
    with_records(|records| {
        let bytes = records.seal(object_type, name, body);
        assert_eq!(
            records
                .open(object_type, name, &bytes)
                .expect("what was just sealed opens"),
            body
        );
        let Ok(read) = records.open_json::<T>(object_type, name, &bytes) else {
            return;
        };
        let written = records.seal_json(object_type, name, &read);
        let again: T = records
            .open_json(object_type, name, &written)
            .expect("what is written reads back");
        assert_eq!(format!("{again:?}"), format!("{read:?}"));
    });
}

/// A piece that is taken is written as the very same bytes: there is one form for one content.
pub fn index_piece(bytes: &[u8]) {
    if let Ok(listings) = decode_piece(bytes) {
        assert_eq!(encode_piece(&listings), bytes);
    }
}

/// `bytes` as the directory of a pack that has room for what it names, whole seals and trailer around it.
pub fn directory(bytes: &[u8]) {
    const ROOM: usize = 4096;
    let pack = sealed_pack(VAULT, &[vec![0; ROOM - TAG_BYTES]], bytes);
    let Ok((listing, sealer)) = read_pack(&pack, &ring(), VAULT, PACK) else {
        return;
    };
    let named: u64 = listing.entries.iter().map(|entry| u64::from(entry.stored_bytes)).sum();
    assert!(named <= ROOM as u64, "chunks beyond the end of their pack");
    let damaged = check_chunks(&pack, &listing.entries, &sealer, &hasher()).len();
    assert_eq!(damaged, listing.entries.len(), "no chunk lies there");
}

/// Bytes that nobody sealed are no pack.
pub fn pack(bytes: &[u8]) {
    assert!(read_pack(bytes, &ring(), VAULT, PACK).is_err());
}

/// The first five bytes say the plain size and whether the rest is compressed: whatever a frame claims or holds, no more
/// is given, or taken from memory, than a chunk may have.
pub fn chunk(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<5>() else {
        return;
    };
    let [a, b, c, d, compressed] = *head;
    let shape = ChunkShape {
        ordinal: 0,
        stored_bytes: (body.len() + TAG_BYTES) as u32,
        plain_bytes: u32::from_le_bytes([a, b, c, d]),
        compressed: compressed & 1 == 1,
    };
    let (sealer, _) = pack_sealer(VAULT);
    let mut part = body.to_vec();
    part.extend([0; TAG_BYTES]);
    sealer.seal(0, &mut part);
    let mut plain = Vec::new();
    let mut decoder = Decoder::new();
    let opened = open_chunk(
        &sealer,
        &hasher(),
        &ChunkId([0; 20]),
        shape,
        &part,
        &mut decoder,
        &mut plain,
    );
    assert!(opened.is_err(), "no bytes have this id");
    assert!(
        plain.capacity() <= CHUNK_LIMIT_BYTES,
        "{} bytes for one chunk",
        plain.capacity()
    );
}

/// A leaf that is taken is in its one form, covers all of its 8 MiB, and points within its chunks.
pub fn leaf(bytes: &[u8]) {
    let Ok(leaf) = Leaf::decode(bytes) else { return };
    assert_eq!(leaf.encode(), bytes);
    let mut end = 0;
    for extent in leaf.extents() {
        assert_eq!(extent.start_bytes, end);
        end = extent.end_bytes();
        if let crate::map::Place::Chunk { offset_bytes, .. } = extent.place {
            assert!(u64::from(offset_bytes) + u64::from(extent.length_bytes) <= SLOT_BYTES);
        }
    }
    assert_eq!(u64::from(end), crate::map::LEAF_BYTES);
}

/// A node is taken as one level alone, in its one form.
pub fn node(bytes: &[u8]) {
    let taken: Vec<Node> = (0..=MAX_LEVEL + 1)
        .filter_map(|level| Node::decode(bytes, level).ok())
        .collect();
    assert!(taken.len() <= 1);
    for node in taken {
        assert_eq!(node.encode(), bytes);
        assert!(!node.is_empty());
    }
}

fn hasher() -> ChunkHasher {
    ChunkHasher::new(*ring().chunk_ids())
}

fn with_records(test: impl FnOnce(Records<'_>)) {
    let store = Store::over(std::sync::Arc::new(object_store::memory::InMemory::new()), "");
    let ring = ring();
    test(Records {
        store: &store,
        vault: VAULT,
        ring: &ring,
        clock: &crate::clock::SystemClock,
    });
}

fn pack_sealer(vault: VaultId) -> (Sealer, Header) {
    let ring = ring();
    let header = seal::header(&ring, ObjectType::Pack, &PACK.object(), &blake3::hash(b""));
    let sealer = Sealer::new(&ring, vault, &PACK.object(), &header).expect("the header is of this ring");
    (sealer, header)
}

/// A pack as FORMAT.md describes it, with whatever directory.
fn sealed_pack(vault: VaultId, bodies: &[Vec<u8>], directory: &[u8]) -> Vec<u8> {
    let (sealer, header) = pack_sealer(vault);
    let mut pack = header.encode().to_vec();
    let mut add = |position: u32, body: &[u8]| {
        let mut part = body.to_vec();
        part.extend([0; TAG_BYTES]);
        sealer.seal(position, &mut part);
        pack.extend_from_slice(&part);
        part.len()
    };
    for (position, body) in bodies.iter().enumerate() {
        add(position as u32, body);
    }
    let length = add(DIRECTORY_POSITION, directory);
    let chunks: [u8; 4] = directory
        .get(1..5)
        .and_then(|count| count.try_into().ok())
        .unwrap_or_default();
    pack.extend_from_slice(&(length as u32).to_le_bytes());
    pack.extend_from_slice(&chunks);
    pack.extend_from_slice(b"COFFEND1");
    pack
}
