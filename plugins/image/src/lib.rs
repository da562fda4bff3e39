//! The provider `image`: raw image files and block devices as they lie. It takes no copy, so what it gives is worth
//! `file-system` while the machine is off, and at most `crash` while something writes.

use std::collections::BTreeMap;

use coffre_plugin_sdk::images::{self, Image, Images, finding};
use coffre_plugin_sdk::{
    Base, Consistency, Description, Disk, Failure, Finding, Level, Machine, Provider, Request, Snapshot, Source,
    TakenDisk,
};
use serde::Deserialize;

const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "images": {
      "description": "A folder whose *.img and *.raw files are the disks, or a file, or a list of files",
      "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
    },
    "disks": {
      "description": "Disks by name: a file or block device each",
      "type": "object",
      "additionalProperties": { "type": "string" }
    }
  }
}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    images: Option<Images>,
    disks: Option<BTreeMap<String, String>>,
}

struct ImageProvider;

coffre_plugin_sdk::provider!(ImageProvider);

fn find(machine: &Machine) -> Result<Vec<Image>, Failure> {
    let settings: Settings = coffre_plugin_sdk::settings(machine)?;
    images::find(settings.images.as_ref(), settings.disks.as_ref())
}

impl Provider for ImageProvider {
    fn describe() -> Description {
        Description {
            name: "image".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            best_consistency: Consistency::FileSystem,
            one_instant: false,
            tracks_changes: false,
            runs_outside: true,
            settings_schema: SCHEMA.to_owned(),
        }
    }

    fn discover(machine: &Machine) -> Result<Vec<Disk>, Failure> {
        Ok(find(machine)?.iter().map(Image::disk).collect())
    }

    fn check(machine: &Machine, disks: &[String]) -> Result<Vec<Finding>, Failure> {
        let mut findings = Vec::new();
        for image in images::wanted(find(machine)?, disks)? {
            let at_rest = images::at_rest(std::slice::from_ref(&image))?;
            if !at_rest.is_off() {
                let text = format!(
                    "{}; it is read while it changes, which is worth `crash` at best. Turn the machine off, or use a \
                     provider that takes snapshots",
                    at_rest.reason
                );
                findings.push(finding(Level::Warning, &image.id, text));
            }
        }
        Ok(findings)
    }

    fn take(machine: &Machine, request: &Request) -> Result<Snapshot, Failure> {
        let images = images::wanted(find(machine)?, &request.disks)?;
        let at_rest = images::at_rest(&images)?;
        let one_instant = at_rest.is_off();
        let reason = if one_instant {
            at_rest.reason
        } else {
            format!(
                "{}; read while it changes, so not even one disk shows a single instant",
                at_rest.reason
            )
        };
        let disk = |image: Image| TakenDisk {
            id: image.id,
            size_bytes: image.size_bytes,
            source: Source::Path(image.path),
            token: None,
        };
        Ok(Snapshot {
            consistency: at_rest.consistency,
            reason,
            one_instant,
            disks: images.into_iter().map(disk).collect(),
            frozen_ms: None,
            attachments: Vec::new(),
        })
    }

    fn settle(_machine: &Machine, _keep: &[Base]) -> Result<(), Failure> {
        Ok(())
    }

    fn release(_machine: &Machine, _id: &str) -> Result<(), Failure> {
        Ok(())
    }

    /// Nothing is ever held.
    fn held(_machine: &Machine) -> Result<Vec<String>, Failure> {
        Ok(Vec::new())
    }
}
