//! What a plugin says of itself: its manifest is taken within its limits or refused with a reason. The sandbox's own files,
//! without the sandbox: what runs plugins is not needed to read about them.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the sandbox uses the rest")]
#[path = "../../../sandbox/src/limits.rs"]
mod limits;
#[allow(dead_code, reason = "the sandbox uses the rest")]
#[path = "../../../sandbox/src/manifest.rs"]
mod manifest;
mod seeds;

const SEED: &str = r#"{"name":"image","version":"1.2.3","world":"snapshot-provider","contract":"0.1.0",
"summary":"Disks that are files.","asks":[{"kind":"disk-read","value":"${settings.images}/**","why":"to read the disks"},
{"kind":"process","value":[["/usr/bin/qemu-img","create","{size}"]],"why":"to make them"}]}"#;

fuzz_target!(init: seeds::write_if_asked([("manifest", vec![SEED.as_bytes().to_vec()])]), |bytes: &[u8]| match manifest::Manifest::parse(bytes) {
    Ok(read) => {
        let written = serde_json::to_vec(&read).expect("what was JSON is JSON");
        let again: manifest::Manifest = serde_json::from_slice(&written).expect("what was written reads back");
        assert_eq!(again, read);
        assert!(!read.name.contains(['/', '.', '\0']) && !read.name.is_empty());
        assert!(read.summary.len() <= limits::TEXT_BYTES && !read.summary.chars().any(char::is_control));
    }
    Err(cause) => assert!(!cause.is_empty()),
});
