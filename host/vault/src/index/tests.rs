//! The local index: what it finds, keeps, shares between processes and forgets.

use std::collections::HashMap;

use std::fs;

use super::*;
use crate::ids::{ChunkId, MachineNumber, SessionNumber, VaultId};
use crate::object::PackKey;
use crate::pack::{ChunkKind, Entry, PackInfo, PackListing};

const VAULT: VaultId = VaultId([2; 16]);

fn key(number: u32) -> PackKey {
    PackKey {
        machine: MachineNumber(1),
        session: SessionNumber(0),
        number,
    }
}

fn id(number: u32) -> ChunkId {
    ChunkHash::id(number)
}

struct ChunkHash;

impl ChunkHash {
    fn id(number: u32) -> ChunkId {
        let mut id = [0; 20];
        id.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..20]);
        ChunkId(id)
    }
}

fn listing(number: u32, chunks: std::ops::Range<u32>) -> PackListing {
    let info = PackInfo {
        key: key(number),
        size_bytes: 1 << 20,
        kind: ChunkKind::Data,
        cipher: 1,
        generation: 0,
        salt: [number as u8; 32],
    };
    let entry = |chunk| Entry {
        id: id(chunk),
        stored_bytes: 116,
        plain_bytes: 100,
        compressed: false,
    };
    PackListing {
        info,
        entries: chunks.map(entry).collect(),
    }
}

fn check(index: &LocalIndex, model: &HashMap<u32, Vec<u32>>) {
    for (chunk, packs) in model {
        let mut found: Vec<u32> = index
            .candidates(&id(*chunk))
            .unwrap()
            .iter()
            .map(|found| found.pack.number)
            .collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(&found, packs, "chunk {chunk}");
    }
    assert!(index.candidates(&id(u32::MAX)).unwrap().is_empty());
}

#[test]
fn the_index_finds_what_a_hash_map_finds_in_memory_on_disk_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let mut model: HashMap<u32, Vec<u32>> = HashMap::new();
    let index = LocalIndex::open(folder.path(), VAULT).unwrap();
    for pack in 0..40 {
        let chunks = pack * 20..pack * 20 + 40;
        index.add_piece(key(pack), &[listing(pack, chunks.clone())]).unwrap();
        for chunk in chunks {
            model.entry(chunk).or_default().push(pack);
        }
        if pack % 3 == 0 {
            index.write_down().unwrap();
        }
    }
    check(&index, &model);
    assert_eq!(index.pack(&key(7)).unwrap(), Some(listing(7, 0..0).info));
    assert_eq!(index.pack(&key(70)).unwrap(), None);
    index.write_down().unwrap();
    let files: Vec<_> = fs::read_dir(index.folder())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert!(files.len() < 20, "{files:?}");
    drop(index);
    let again = LocalIndex::open(folder.path(), VAULT).unwrap();
    check(&again, &model);
    assert!((0..40).all(|piece| again.knows_piece(&key(piece))));
}

#[test]
fn two_processes_keep_each_others_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let one = LocalIndex::open(folder.path(), VAULT).unwrap();
    let two = LocalIndex::open(folder.path(), VAULT).unwrap();
    one.add_piece(key(1), &[listing(1, 0..10)]).unwrap();
    two.add_piece(key(2), &[listing(2, 5..20)]).unwrap();
    one.write_down().unwrap();
    two.write_down().unwrap();
    assert!(two.knows_piece(&key(1)));
    let three = LocalIndex::open(folder.path(), VAULT).unwrap();
    check(&three, &HashMap::from([(0, vec![1]), (7, vec![1, 2]), (19, vec![2])]));
    // The first still works with files that the second has merged away.
    check(&one, &HashMap::from([(0, vec![1])]));
}

#[test]
fn a_damaged_cache_is_started_anew() {
    let folder = tempfile::tempdir().unwrap();
    let index = LocalIndex::open(folder.path(), VAULT).unwrap();
    index.add_piece(key(1), &[listing(1, 0..10)]).unwrap();
    index.write_down().unwrap();
    let path = index.folder().to_owned();
    drop(index);
    for entry in fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "run") {
            fs::write(file, b"rubbish").unwrap();
        }
    }
    let again = LocalIndex::open(folder.path(), VAULT).unwrap();
    assert!(again.is_empty() && !again.knows_piece(&key(1)));
    fs::write(path.join("manifest.json"), b"{").unwrap();
    assert!(LocalIndex::open(folder.path(), VAULT).unwrap().is_empty());
}

#[test]
fn a_reset_forgets_and_others_notice() {
    let folder = tempfile::tempdir().unwrap();
    let one = LocalIndex::open(folder.path(), VAULT).unwrap();
    one.add_piece(key(1), &[listing(1, 0..10)]).unwrap();
    one.write_down().unwrap();
    let two = LocalIndex::open(folder.path(), VAULT).unwrap();
    two.reset().unwrap();
    assert!(two.candidates(&id(3)).unwrap().is_empty());
    one.add_piece(key(2), &[listing(2, 20..30)]).unwrap();
    one.write_down().unwrap();
    assert!(!one.knows_piece(&key(1)));
    assert!(one.knows_piece(&key(2)));
}
