//! Objects, and parts of objects, in each other's place: from the same vault, or from another one that the same key opens.

use std::collections::{BTreeMap, BTreeSet};

use coffre_vault::map::{MapReader, Place, span_bytes};
use coffre_vault::{ChunkId, Location, Vault};

use crate::sample::Sample;

/// The types of objects, by their folder. A pack of data for one of map nodes is a swap too.
const FOLDERS: [&str; 7] = [
    "machines/",
    "sessions/",
    "points/",
    "fates/",
    "gclog/",
    "packs/",
    "index/",
];

/// What nothing relies on any more, so that nobody looks at it: see [`crate::bits`].
fn is_superseded(object: &str) -> bool {
    crate::bits::SUPERSEDED.contains(&object)
}

#[tokio::test]
async fn two_objects_of_one_type_in_each_others_place_are_refused() {
    let sample = Sample::new().await;
    let mut tried = 0;
    for folder in FOLDERS {
        let names = sample.store.names(folder).await;
        for (at, one) in names.iter().enumerate() {
            for other in &names[at + 1..] {
                let (first, second) = (sample.store.bytes(one).await, sample.store.bytes(other).await);
                sample.store.replace(one, second.clone()).await;
                sample.store.replace(other, first.clone()).await;
                let seen = sample.look().await;
                assert!(
                    !seen.is_sound() || is_superseded(one) && is_superseded(other),
                    "{one} and {other}"
                );
                sample.store.replace(one, first).await;
                sample.store.replace(other, second).await;
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "{tried}");
    assert!(sample.look().await.is_sound());
}

/// Also every object of another type: what is bound to a seal is the whole name.
#[tokio::test]
async fn an_object_at_the_name_of_any_other_is_refused() {
    let sample = Sample::new().await;
    let names = sample.store.names("").await;
    for (at, one) in names.iter().enumerate() {
        // Each is tried at three other names; all pairs of one type are tried above.
        for step in [1, 7, 13] {
            let other = &names[(at + step) % names.len()];
            if is_superseded(other) || other.starts_with("keys/") {
                continue;
            }
            let whole = sample.store.bytes(other).await;
            sample.store.replace(other, sample.store.bytes(one).await).await;
            assert!(!sample.look().await.is_sound(), "{one} at {other}");
            sample.store.replace(other, whole).await;
        }
    }
}

#[tokio::test]
async fn objects_of_another_vault_that_the_same_key_opens_are_refused() {
    let (sample, other) = (Sample::new().await, Sample::new().await);
    for object in sample.store.names("").await {
        let theirs = other.store.names("").await.contains(&object);
        if !theirs || is_superseded(&object) {
            continue;
        }
        let whole = sample.store.bytes(&object).await;
        sample.store.replace(&object, other.store.bytes(&object).await).await;
        assert!(!sample.look().await.is_sound(), "{object}");
        sample.store.replace(&object, whole).await;
    }
}

/// Slots have random names, so theirs are put beside and in the place of ours.
#[tokio::test]
async fn a_slot_opens_in_its_own_place_of_its_own_vault_alone() {
    let (sample, other) = (Sample::new().await, Sample::new().await);
    let ours = sample.store.names("keys/").await;
    let theirs = other.store.names("keys/").await;
    let mut own = Vec::new();
    for slot in &ours {
        own.push(sample.store.bytes(slot).await);
    }
    let sources = [
        (
            "another vault's",
            other.store.bytes(&theirs[0]).await,
            other.store.bytes(&theirs[1]).await,
        ),
        ("each other's place", own[1].clone(), own[0].clone()),
    ];
    for (what, first, second) in sources {
        sample.store.replace(&ours[0], first).await;
        sample.store.replace(&ours[1], second).await;
        assert!(sample.new_host().await.is_err(), "{what}");
    }
    for (slot, bytes) in ours.iter().zip(&own) {
        sample.store.replace(slot, bytes.clone()).await;
    }
    assert!(sample.look().await.is_sound());
    // A slot of generation 0 in the folder of the next one, which no rotation has begun: it opens nothing, and nobody minds it.
    for (slot, bytes) in ours.iter().zip(&own) {
        let moved = slot.replace("keys/00000000/", "keys/00000001/");
        sample.store.replace(&moved, bytes.clone()).await;
    }
    assert!(sample.look().await.is_sound());
    for slot in &ours {
        sample.store.lose(slot).await;
    }
    assert!(sample.new_host().await.is_err(), "another generation's");
}

#[tokio::test]
async fn chunks_and_map_nodes_in_each_others_place_are_refused() {
    let sample = Sample::new().await;
    let vault = sample.new_host().await.expect("a sound vault");
    let ids: Vec<ChunkId> = every_chunk(&vault).await.into_iter().collect();
    let places = vault.chunks().locate(&ids).await.expect("a sound vault");
    let mut by_size: BTreeMap<u32, Vec<&Location>> = BTreeMap::new();
    for place in &places {
        by_size.entry(place.stored_bytes).or_default().push(place);
    }
    let (mut in_one_pack, mut across_packs) = (0, 0);
    for same in by_size.values() {
        for (at, one) in same.iter().enumerate() {
            for other in &same[at + 1..] {
                let before = swap(&sample, one, other).await;
                assert!(!sample.look().await.is_sound(), "{one:?} and {other:?}");
                match one.pack == other.pack {
                    true => in_one_pack += 1,
                    false => across_packs += 1,
                }
                for (object, bytes) in before {
                    sample.store.replace(&object, bytes).await;
                }
            }
        }
    }
    assert!(
        in_one_pack >= 3 && across_packs >= 3,
        "{in_one_pack} and {across_packs}"
    );
}

async fn swap(sample: &Sample, one: &Location, other: &Location) -> Vec<(String, bytes::Bytes)> {
    let range = |place: &Location| place.range().start as usize..place.range().end as usize;
    let object = |place: &Location| format!("packs/{}", place.pack.name());
    let (from, to) = (object(one), object(other));
    let before = vec![
        (from.clone(), sample.store.bytes(&from).await),
        (to.clone(), sample.store.bytes(&to).await),
    ];
    let (first, second) = (before[0].1.slice(range(one)), before[1].1.slice(range(other)));
    for (object, place, part) in [(&from, one, second), (&to, other, first)] {
        let mut bytes = sample.store.bytes(object).await.to_vec();
        bytes[range(place)].copy_from_slice(&part);
        sample.store.replace(object, bytes).await;
    }
    before
}

/// The ids of all data, nodes and attachments that points need.
async fn every_chunk(vault: &Vault) -> BTreeSet<ChunkId> {
    let mut ids = BTreeSet::new();
    for (machine, _) in vault.machines().await.expect("a sound vault") {
        for point in vault.points(machine).await.expect("a sound vault") {
            for disk in &point.disks {
                let mut map = MapReader::new(vault.chunks(), disk.root).expect("a sound map");
                let mut from = 0;
                while let Some((number, id)) = map.next_leaf(from).await.expect("a sound map") {
                    for level in 0..=disk.root.map_or(0, |root| root.level) {
                        let index = number / (span_bytes(level) / span_bytes(0));
                        ids.extend(map.node_id(level, index).await.expect("a sound map"));
                    }
                    let leaf = map.leaf_of(id).await.expect("a sound map");
                    ids.extend(leaf.extents().iter().filter_map(|extent| match extent.place {
                        Place::Chunk { id, .. } => Some(id),
                        Place::Zero => None,
                    }));
                    from = number + 1;
                }
            }
            ids.extend(
                point
                    .attachments
                    .iter()
                    .flat_map(|attachment| attachment.chunks.clone()),
            );
        }
    }
    ids
}
