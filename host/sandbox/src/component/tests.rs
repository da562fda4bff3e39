//! What a component says of itself is read before anything of it runs, so it may be anything: garbage, a component with
//! changed bytes, a manifest that claims what it likes. It is taken within its limits or refused with a reason.

use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use wasm_encoder::{Component, ComponentExportKind, ComponentExportSection, ComponentInstanceSection, CustomSection};

use super::*;
use crate::limits::{MANIFEST_BYTES, TEXT_BYTES};

fn manifest() -> serde_json::Value {
    json!({
        "name": "image", "version": "1.2.3", "world": "snapshot-provider", "contract": CONTRACT_VERSION,
        "summary": "Disks that are files.",
        "asks": [
            {"kind": "disk-read", "value": "${settings.images}/**", "why": "to read the disks"},
            {"kind": "process", "value": [["/usr/bin/qemu-img", "create", "{size}"]], "why": "to make them"},
        ],
    })
}

fn component(manifest: &[u8]) -> Vec<u8> {
    let mut component = Component::new();
    let mut instances = ComponentInstanceSection::new();
    let nothing: [(&str, ComponentExportKind, u32); 0] = [];
    instances.export_items(nothing);
    component.section(&instances);
    let mut exports = ComponentExportSection::new();
    let name = format!("{}@{CONTRACT_VERSION}", World::SnapshotProvider.export());
    exports.export(name.as_str(), ComponentExportKind::Instance, 0, None);
    component.section(&exports);
    component.section(&CustomSection {
        name: MANIFEST_SECTION.into(),
        data: manifest.into(),
    });
    component.finish()
}

/// Reads it, and holds what was taken against what may be taken.
fn read(bytes: &[u8]) -> Result<Anatomy, PluginError> {
    let file = ComponentFile {
        file: PathBuf::from("odd.wasm"),
        bytes: bytes.to_vec(),
        digest: String::new(),
    };
    let read = file.anatomy();
    match &read {
        Ok(anatomy) => {
            anatomy.manifest.iter().for_each(assert_within_limits);
            let _ = anatomy.fits(World::SnapshotProvider, &file.file);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    read
}

fn parse(bytes: &[u8]) {
    match Manifest::parse(bytes) {
        Ok(manifest) => assert_within_limits(&manifest),
        Err(cause) => assert!(!cause.is_empty()),
    }
}

/// What is taken can be shown on a terminal, stands in paths, and reads the same when it is written down.
fn assert_within_limits(manifest: &Manifest) {
    let texts = [&manifest.version, &manifest.contract, &manifest.summary].into_iter();
    for text in texts.chain(manifest.asks.iter().flat_map(|ask| [&ask.kind, &ask.why])) {
        assert!(
            text.len() <= TEXT_BYTES && !text.chars().any(char::is_control),
            "{text:?}"
        );
    }
    assert!(!manifest.name.contains(['/', '.', '\0']) && !manifest.name.is_empty());
    let written = serde_json::to_vec(manifest).expect("what was JSON is JSON");
    let again: Manifest = serde_json::from_slice(&written).expect("what was written reads back");
    assert_eq!(&again, manifest);
}

#[test]
fn a_right_component_is_taken() {
    let written = manifest().to_string();
    let anatomy = read(&component(written.as_bytes())).expect("nothing is wrong with it");
    let manifest = anatomy.fits(World::SnapshotProvider, Path::new("odd.wasm"));
    assert_eq!(manifest.expect("it is of this world").asks.len(), 2);
}

#[test]
fn a_manifest_has_as_many_bytes_as_it_may_have_and_no_more() {
    let mut long = manifest();
    let ask = |why: usize| json!({"kind": "log", "value": "x", "why": "w".repeat(why)});
    long["asks"] = (0..15).map(|_| ask(TEXT_BYTES)).collect();
    let room = MANIFEST_BYTES - long.to_string().len();
    let end = format!("{}{}", long, " ".repeat(room));
    assert!(read(&component(end.as_bytes())).is_ok());
    assert!(read(&component(format!("{end} ").as_bytes())).is_err());
    long["asks"][0] = ask(TEXT_BYTES + 1);
    assert!(read(&component(long.to_string().as_bytes())).is_err());
}

#[test]
fn nesting_without_end_is_refused() {
    let deep = "[".repeat(MANIFEST_BYTES);
    parse(deep.as_bytes());
    let mut whole = manifest().to_string();
    whole = whole.replace(
        "\"${settings.images}/**\"",
        &format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)),
    );
    assert!(Manifest::parse(whole.as_bytes()).is_err());
}

#[test]
fn sections_that_claim_to_be_longer_than_the_file_are_refused() {
    let whole = component(manifest().to_string().as_bytes());
    // The greatest number of 32 bits, as WebAssembly writes it, in place of every byte in turn.
    for at in 0..whole.len() {
        let mut longer = whole.clone();
        longer.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0x0f]);
        let _ = read(&longer);
    }
    // The manifest is the last section: behind its number stands its length, in two bytes.
    let name = whole
        .windows(MANIFEST_SECTION.len())
        .position(|part| part == MANIFEST_SECTION.as_bytes());
    let length = name.expect("it has a manifest") - 3;
    let mut longer = whole.clone();
    longer.splice(length..length + 2, [0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(read(&longer).is_err());
    for end in 8..whole.len() {
        let _ = read(&whole[..end]);
    }
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader_of_manifests(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        parse(&bytes);
        let _ = read(&component(&bytes));
        let _ = read(&[&b"\0asm\x0d\0\x01\0"[..], &bytes].concat());
    }

    #[test]
    fn no_change_to_a_right_manifest_breaks_its_reader(
        changes in proptest::collection::vec((any::<Index>(), 0usize..30, "[\\[\\]{}a-z0-9\":,.\\\\\n\té -]{0,12}"), 1..5),
    ) {
        let mut content: Vec<char> = manifest().to_string().chars().collect();
        for (at, length, text) in changes {
            let at = at.index(content.len());
            let end = content.len().min(at + length);
            content.splice(at..end, text.chars());
        }
        parse(content.into_iter().collect::<String>().as_bytes());
    }

    #[test]
    fn no_change_to_a_right_component_breaks_its_reader(
        changes in proptest::collection::vec((any::<Index>(), 0usize..4, proptest::collection::vec(any::<u8>(), 0..6)), 1..5),
    ) {
        let mut bytes = component(manifest().to_string().as_bytes());
        for (at, length, new) in changes {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + length);
            bytes.splice(at..end, new);
        }
        let _ = read(&bytes);
    }
}
