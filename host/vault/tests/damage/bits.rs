//! Every single bit of every object.
//!
//! Whoever reads an object whole notices any flipped bit of it: that is tried for all bits. That opening and verifying the
//! vault read every object that matters, and that no restore ever gives other bytes, is tried end to end for one bit of
//! every sixteenth byte, and for all bits of all objects, some hundred thousand, by
//! `cargo test -p coffre-vault --release --test damage -- --ignored`.

use coffre_vault::testing::open_object;

use crate::sample::Sample;

/// What nothing relies on any more: the log before its newest checkpoint, and how a session began that was given up.
pub const SUPERSEDED: [&str; 3] = ["gclog/00000000", "gclog/00000001", "sessions/00000001/00000002"];

#[tokio::test]
async fn every_bit_of_every_object_is_noticed_by_whoever_reads_it() {
    let sample = Sample::new().await;
    let vault = sample.new_host().await.expect("a sound vault");
    let mut tried = 0;
    for object in sample.store.names("").await {
        if object.starts_with("keys/") {
            continue;
        }
        let mut bytes = sample.store.bytes(&object).await.to_vec();
        open_object(&vault, &object, &bytes).unwrap_or_else(|what| panic!("{object}: {what}"));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let opened = open_object(&vault, &object, &bytes);
            assert!(opened.is_err(), "{object}: bit {} of byte {}", bit % 8, bit / 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            tried += 1;
        }
    }
    assert!(tried > 50_000, "{tried} bits");
}

#[tokio::test]
async fn a_flipped_bit_is_found_by_opening_or_verifying_and_never_restored() {
    let sample = Sample::new().await;
    for object in sample.store.names("").await {
        let bytes = sample.store.bytes(&object).await.len();
        for at in (0..bytes).step_by(16) {
            assert_found(&sample, &object, at * 8 + at / 16 % 8).await;
        }
    }
}

#[tokio::test]
#[ignore = "takes some minutes"]
async fn every_flipped_bit_is_found_by_opening_or_verifying_and_never_restored() {
    let sample = Sample::new().await;
    for object in sample.store.names("").await {
        let bits = sample.store.bytes(&object).await.len() * 8;
        for bit in 0..bits {
            assert_found(&sample, &object, bit).await;
        }
    }
}

/// A host that knows all of the vault already finds it as well: what it has in its cache may have rotted since.
#[tokio::test]
async fn a_flipped_bit_is_found_by_a_host_that_had_read_the_object_before() {
    let sample = Sample::new().await;
    let known = sample.host("known").await;
    assert!(sample.see(known).await.is_sound());
    for object in sample.store.names("").await {
        if SUPERSEDED.contains(&object.as_str()) || object.starts_with("keys/") {
            continue;
        }
        let whole = sample.store.bytes(&object).await;
        for at in [0, 30, whole.len() / 2, whole.len() - 1] {
            flip(&sample, &object, at * 8).await;
            let seen = sample.see(sample.host("known").await).await;
            assert!(!seen.is_sound(), "{object}: byte {at}");
        }
        sample.store.replace(&object, whole).await;
    }
}

async fn flip(sample: &Sample, object: &str, bit: usize) {
    let mut bytes = sample.store.bytes(object).await.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    sample.store.replace(object, bytes).await;
}

/// That nothing else is restored, [`Sample::look`] asserts.
async fn assert_found(sample: &Sample, object: &str, bit: usize) {
    flip(sample, object, bit).await;
    let seen = sample.look().await;
    let nobodys = SUPERSEDED.contains(&object) || object.starts_with("keys/");
    assert!(
        nobodys || !seen.is_sound(),
        "{object}: bit {} of byte {}",
        bit % 8,
        bit / 8
    );
    flip(sample, object, bit).await;
}
