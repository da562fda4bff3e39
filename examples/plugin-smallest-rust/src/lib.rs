//! The smallest provider: a machine has one disk, which is one file, and the snapshot is the file itself.
//!
//! To write your own: copy this folder, change names in `Cargo.toml` and `manifest.toml`, build it, and see what it asks
//! for with `coffre plugin inspect FILE.wasm`. `wit/provider.wit` says when each function is called and what it promises.

use coffre_plugin_sdk::{
    Base, Consistency, Description, Disk, Failure, Machine, Provider, Request, Snapshot, Source, TakenDisk, settings,
    storage,
};

/// The machine's `settings` in the configuration.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    file: String,
}

struct Smallest;

coffre_plugin_sdk::provider!(Smallest);

impl Provider for Smallest {
    fn describe() -> Description {
        Description {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            best_consistency: Consistency::Crash,
            one_instant: false,
            tracks_changes: false,
            runs_outside: true,
            settings_schema: r#"{ "type": "object", "properties": { "file": { "type": "string" } } }"#.to_owned(),
        }
    }

    fn discover(machine: &Machine) -> Result<Vec<Disk>, Failure> {
        let Settings { file } = settings(machine)?;
        let size_bytes = storage::stat(&file)?.size_bytes;
        Ok(vec![Disk {
            id: "disk".to_owned(),
            size_bytes,
            label: Some(file),
        }])
    }

    fn take(machine: &Machine, request: &Request) -> Result<Snapshot, Failure> {
        if request.disks != ["disk"] {
            return Err(Failure::NotFound(
                "there is one disk, and it is called `disk`".to_owned(),
            ));
        }
        let Settings { file } = settings(machine)?;
        let size_bytes = storage::stat(&file)?.size_bytes;
        Ok(Snapshot {
            consistency: Consistency::Crash,
            reason: "the file is read as it lies".to_owned(),
            one_instant: false,
            // The host opens the file itself, if `disk-read` is granted for it.
            disks: vec![TakenDisk {
                id: "disk".to_owned(),
                size_bytes,
                source: Source::Path(file),
                token: None,
            }],
            frozen_ms: None,
            attachments: Vec::new(),
        })
    }

    // Nothing is ever held, so there is nothing to keep, to release or to find.
    fn settle(_machine: &Machine, _keep: &[Base]) -> Result<(), Failure> {
        Ok(())
    }

    fn release(_machine: &Machine, _id: &str) -> Result<(), Failure> {
        Ok(())
    }

    fn held(_machine: &Machine) -> Result<Vec<String>, Failure> {
        Ok(Vec::new())
    }
}
