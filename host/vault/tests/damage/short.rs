//! Objects that are cut short or not there.

use coffre_vault::testing::open_object;

use crate::bits::SUPERSEDED;
use crate::sample::{Sample, Seen};

/// What looks as if it had never been: the end of a register, or the outcome of a session. A store that loses these
/// has broken the one promise that is asked of stores, to keep what was created, and nothing else in the vault knows better.
const NEVER_WAS: [&str; 5] = [
    "fates/00000001/00000000/00000003",
    "fates/00000001/00000001/00000000",
    "gclog/00000003",
    "points/00000001/00000002",
    "points/00000002/00000000",
];

#[tokio::test]
async fn an_object_of_any_other_length_is_refused_by_whoever_reads_it() {
    let sample = Sample::new().await;
    let vault = sample.new_host().await.expect("a sound vault");
    for object in sample.store.names("").await {
        let mut bytes = sample.store.bytes(&object).await.to_vec();
        for length in 0..bytes.len() {
            assert!(
                open_object(&vault, &object, &bytes[..length]).is_err(),
                "{object}: {length} bytes"
            );
        }
        for _ in 0..40 {
            bytes.push(0);
            assert!(
                open_object(&vault, &object, &bytes).is_err(),
                "{object}: {} bytes",
                bytes.len()
            );
        }
    }
}

#[tokio::test]
async fn a_pack_of_any_other_length_is_found_and_what_it_touches_is_named() {
    let sample = Sample::new().await;
    let mut packs = Vec::new();
    for pack in sample.store.names("packs/").await {
        packs.push((sample.store.bytes(&pack).await.len(), pack));
    }
    packs.sort();
    for (number, (size, pack)) in packs.iter().enumerate() {
        let whole = sample.store.bytes(pack).await;
        // Every length of the smallest, some of the others.
        let step = if number == 0 { 1 } else { size / 12 };
        for length in (0..*size).step_by(step) {
            sample.store.replace(pack, whole.slice(..length)).await;
            let seen = sample.look().await;
            assert!(!seen.is_sound(), "{pack}: {length} bytes");
            assert_named(&seen, &format!("{pack}: {length} bytes"));
        }
        sample.store.replace(pack, whole).await;
    }
}

#[tokio::test]
async fn an_object_that_is_lost_is_found_and_what_it_touches_is_named() {
    let sample = Sample::new().await;
    for object in sample.store.names("").await {
        let whole = sample.store.bytes(&object).await;
        sample.store.lose(&object).await;
        let seen = sample.look().await;
        let nobodys = SUPERSEDED.contains(&object.as_str()) || NEVER_WAS.contains(&object.as_str());
        assert!(nobodys || object.starts_with("keys/") || !seen.is_sound(), "{object}");
        if !object.starts_with("format") {
            assert_named(&seen, &object);
        }
        sample.store.replace(&object, whole).await;
    }
    assert!(sample.look().await.is_sound());
}

/// Every point that does not restore whole is named in the report, if there is one.
fn assert_named(seen: &Seen, what: &str) {
    let Ok(report) = &seen.verified else { return };
    for ((machine, number), restored) in &seen.points {
        let named = report
            .damage
            .iter()
            .flat_map(|damage| &damage.touches)
            .any(|touched| touched.machine == *machine && touched.point.0 == *number);
        assert!(
            named || restored.is_whole(),
            "{what}: {machine} {number} is not named: {report:?}"
        );
    }
}
