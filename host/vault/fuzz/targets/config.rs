//! The configuration's reader: a text is a configuration, or there is a message about it.

#![no_main]

use std::path::Path;

use coffre_engine::config::{Config, EXAMPLE};
use libfuzzer_sys::fuzz_target;

mod seeds;

fuzz_target!(init: seeds::write_if_asked([("config", vec![EXAMPLE.as_bytes().to_vec()])]), |content: &str| {
    if let Err(error) = Config::parse(Path::new("/etc/coffre/coffre.toml"), content) {
        assert!(!error.to_string().is_empty());
        let _ = error.hint();
    }
});
