//! Valid inputs of every target: where a fuzzer starts, and what properties change a little.

use serde_json::json;
use zeroize::Zeroizing;

use super::{PACK, SLOT, VAULT, hasher, ring, sealed_pack, secret, with_records};
use crate::ids::{ChunkId, VaultId};
use crate::key::{RecoveryKey, Slot, SlotKeys};
use crate::map::{Leaf, LeafBuilder, Node, Place};
use crate::object::{self, ObjectType};
use crate::pack::{ChunkKind, Encoder, Entry, PackInfo, PackListing, encode_piece};
use crate::seal::TAG_BYTES;
use crate::vault::format::{Format, SealKind};

/// Valid bytes for the target of this name.
///
/// # Panics
/// If there is no such target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "format" => formats(),
        "slot" => slots(),
        "recovery_key" => {
            let key = RecoveryKey::generate().to_string();
            texts([key.clone(), key.to_lowercase().replace('-', " ")])
        }
        "names" => texts([
            "0000002a",
            "00000001/0000002a/00000003",
            "00112233445566778899aabbccddeeff00112233",
        ]),
        "sealed" => sealed(),
        "machine" => texts([r#"{"name":"web01","created_at":"2026-01-02T03:04:05.678Z"}"#]),
        "session" => texts([
            r#"{"bases":[0,1],"deadline":"2026-01-03T00:00:00Z","begun_at":"2026-01-02T00:00:00Z","host":"a","resumes":null}"#,
            r#"{"bases":[],"deadline":"2026-01-03T00:00:00Z","begun_at":"2026-01-02T00:00:00Z","host":"","resumes":7}"#,
        ]),
        "point" => points(),
        "fate" => texts([
            r#"{"fate":"forget","at":"2026-01-02T00:00:00Z"}"#,
            r#"{"fate":"restore","at":"2026-01-02T00:00:00Z"}"#,
            r#"{"fate":"purge","at":"2026-01-02T00:00:00Z"}"#,
            r#"{"fate":"pin","at":"2026-01-02T00:00:00Z"}"#,
            r#"{"fate":"unpin","at":"2026-01-02T00:00:00Z"}"#,
        ]),
        "gclog" => gclogs(),
        "index_piece" => vec![encode_piece(&[]), encode_piece(&[listing(0), listing(3)])],
        "directory" => vec![directory(&[]), directory(&listing(2).entries)],
        "pack" => {
            let entries = listing(2).entries;
            let bodies: Vec<Vec<u8>> = entries.iter().map(|entry| body(entry.stored_bytes)).collect();
            // Sealed by the same key and in the same way, but for another vault: it must not open, whatever is changed.
            vec![sealed_pack(VaultId([7; 16]), &bodies, &directory(&entries))]
        }
        "chunk" => chunks(),
        "leaf" => leaves(),
        "node" => nodes(),
        other => panic!("there is no target `{other}`"),
    }
}

fn texts<T: AsRef<str>, const N: usize>(texts: [T; N]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_ref().as_bytes().to_vec()).collect()
}

fn formats() -> Vec<Vec<u8>> {
    [SealKind::None, SealKind::Aes256Gcm]
        .map(|seal| {
            let format = Format {
                vault: VAULT,
                seal,
                created_at: jiff::Timestamp::UNIX_EPOCH,
                host: "backup \"1\"".to_owned(),
                coffre: "0.1.0".to_owned(),
            };
            format.encode(&ring())
        })
        .into()
}

fn slots() -> Vec<Vec<u8>> {
    let key = Zeroizing::new([9; 32]);
    let slot = |credential, previous| {
        let keys = SlotKeys { key: &key, previous };
        let slot = Slot::make("main", jiff::Timestamp::UNIX_EPOCH, &credential, SLOT, keys);
        slot.expect("our own parameters are sound").encode()
    };
    let passphrase = crate::Credential::Passphrase(Zeroizing::new("x".to_owned()));
    vec![slot(secret(), None), slot(secret(), Some(&key)), slot(passphrase, None)]
}

/// Whole, but sealed under a name that the target does not ask for: they must not open, whatever is changed.
fn sealed() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for object_type in [ObjectType::Point, ObjectType::Index, ObjectType::GcLog] {
        with_records(|records| {
            all.push(records.seal(object_type, &object::gclog(1), b"{}").to_vec());
        });
    }
    all
}

fn points() -> Vec<Vec<u8>> {
    let id = ChunkId([0xab; 20]).to_string();
    let step = json!({"ok": false, "attempts": 2, "duration_ms": 3, "error": "exit code 1", "output": "…"});
    let full = json!({"decision": "commit", "point": {
        "machine": "web01", "machine_number": 1, "number": 2, "committed_at": "2026-01-02T03:04:05.678Z",
        "written": {"packs": 3, "index_pieces": 1, "stored_bytes": 123456},
        "taken_at": "2026-01-02T03:04:05Z", "host": "backup1", "coffre": "0.1.0",
        "consistency": {"reached": "file-system", "wanted": "application", "reason": "a hook failed"},
        "held_ms": 12, "hold_overhead_ms": 3, "frozen_ms": null, "policy": "nightly", "job": "j1",
        "provider": {"name": "image", "version": "1", "digest": "00", "pinned": true},
        "disks": [
            {"id": "vda", "label": "root", "size_bytes": 8388608, "root": {"level": 0, "id": id}, "token": "t",
             "compared": {"how": "tracked", "why": ""}, "base": 1, "read_bytes": 1, "changed_bytes": 2,
             "sampled_bytes": 3, "stored_bytes": 4, "tracking_lied": false},
            {"id": "vdb", "size_bytes": 512, "root": null},
        ],
        "hooks": [{"name": "db", "kind": "rhai", "pre": step, "post": null, "application_consistent": true}],
        "notes": [{"level": "warning", "code": "disk-vanished", "disk": "vdc", "text": "gone"}],
        "attachments": [{"name": "definition", "media_type": "text/xml", "size_bytes": 10, "chunks": [id]}],
    }});
    texts([
        full.to_string(),
        r#"{"decision":"commit","point":{}}"#.to_owned(),
        r#"{"decision":"abort","reason":"fenced","host":"a","at":"2026-01-02T00:00:00Z"}"#.to_owned(),
    ])
}

fn gclogs() -> Vec<Vec<u8>> {
    let at = "2026-01-02T00:00:00Z";
    let pack = PACK.to_string();
    texts([
        json!({"at": at, "checkpoint": null, "kind": "condemn", "packs": [pack], "reason": "dead"}).to_string(),
        json!({"at": at, "checkpoint": 3, "kind": "quarantine", "packs": [pack], "reason": "damaged"}).to_string(),
        json!({"at": at, "checkpoint": 3, "kind": "checkpoint",
               "machines": [{"machine": 1, "name": "web01", "decided_below": 9, "live": [0, 8]}],
               "condemned": [], "quarantined": [pack]})
        .to_string(),
        json!({"at": at, "kind": "checkpoint",
               "condemned": [{"packs": [pack], "since": 1, "waits_for": [[1, 2]]}], "quarantined": []})
        .to_string(),
    ])
}

/// Bytes that compress to about half.
fn body(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|at| (at / 2 % 251) as u8).collect()
}

fn listing(chunks: u32) -> PackListing {
    let entries: Vec<Entry> = (1..=chunks)
        .map(|number| Entry {
            id: hasher().id(&body(number * 100)),
            stored_bytes: number * 100 + TAG_BYTES as u32,
            plain_bytes: number * 100,
            compressed: false,
        })
        .collect();
    PackListing {
        info: PackInfo {
            key: PACK,
            size_bytes: 4096,
            kind: ChunkKind::Data,
            cipher: 1,
            generation: 0,
            salt: [7; 32],
        },
        entries,
    }
}

/// As it lies in a pack: the kind before what an index piece has behind its 58 bytes on the pack itself.
fn directory(entries: &[Entry]) -> Vec<u8> {
    let listing = PackListing {
        entries: entries.to_vec(),
        ..listing(0)
    };
    let piece = encode_piece(&[listing]);
    let mut directory = vec![ChunkKind::Data.number()];
    directory.extend_from_slice(&piece[4 + 12 + 4 + 1 + 1 + 4 + 32..]);
    directory
}

fn chunks() -> Vec<Vec<u8>> {
    let input = |plain_bytes: u32, compressed: bool, body: &[u8]| {
        let mut bytes = plain_bytes.to_le_bytes().to_vec();
        bytes.push(compressed.into());
        bytes.extend_from_slice(body);
        bytes
    };
    let plain = body(1000);
    let mut encoder = Encoder::new();
    let (frame, compressed) = encoder.encode(&plain);
    assert!(compressed);
    vec![
        input(1000, false, &plain),
        input(1000, true, frame),
        input(999, true, frame),
        input(1 << 20, true, &bomb()),
        input(u32::MAX, true, frame),
    ]
}

/// A few hundred bytes that decompress to 16 MiB.
fn bomb() -> Vec<u8> {
    zstd::bulk::compress(&vec![0; 16 << 20], 19).expect("zeroes compress")
}

fn leaves() -> Vec<Vec<u8>> {
    let mut builder = LeafBuilder::new();
    let place = |number: u8, offset_bytes| Place::Chunk {
        id: ChunkId([number; 20]),
        offset_bytes,
    };
    builder.push(128 << 10, place(1, 0));
    builder.push(512, place(2, 1024));
    builder.push(4096, Place::Zero);
    builder.push(4096, place(1, 4096));
    let mut aligned = LeafBuilder::new();
    aligned.push(4096, place(3, 8192));
    vec![
        Leaf::zero().encode(),
        builder.finish().encode(),
        aligned.finish().encode(),
    ]
}

fn nodes() -> Vec<Vec<u8>> {
    let mut one = Node::new(1);
    one.set(3, ChunkId([1; 20]));
    let mut full = Node::new(5);
    for position in 0..crate::map::FANOUT {
        full.set(position, ChunkId([position as u8; 20]));
    }
    vec![one.encode(), full.encode()]
}
