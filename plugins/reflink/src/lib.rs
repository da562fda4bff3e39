//! The provider `reflink`: images on a file system that makes clones (XFS, Btrfs). A snapshot is one clone of every disk;
//! what changed is found by comparing the extents of the new clone with those of the clone that was kept from the last
//! time, which costs what the extents cost and not what the disk is large.
//!
//! What lies where, below `.coffre` beside the images (or the folder `snapshots` of the settings):
//! ```text
//! MACHINE/held/SNAPSHOT/DISK    the clones of a snapshot, until it is released
//! MACHINE/base/SNAPSHOT/DISK    a second name of those that a later comparison needs, until settled otherwise
//! ```
//! A change token is the snapshot's id. Clones are on the medium before `take` answers: a half-written one that is taken
//! for a base after a power loss would hide changes.

mod compare;
mod store;

use std::collections::BTreeMap;

use coffre_plugin_sdk::images::{self, Image, Images, finding};
use coffre_plugin_sdk::storage::{self, Kind};
use coffre_plugin_sdk::{
    Base, Consistency, Description, Disk, Failure, Finding, Level, ListedChanges, Machine, Provider, Request, Snapshot,
    Source, TakenDisk, if_there, time,
};
use serde::Deserialize;

use compare::Comparison;
use store::Store;

/// A clone takes 17 µs an extent on XFS, so this is about 3.5 s. Past it applications would be held for too long.
const EXTENTS_AT_MOST: u32 = 200_000;

/// How old an image's last change must be for "it did not change in between" to be believed: the kernel's clock for file
/// times ticks every 4 to 10 ms.
const QUIET_NS: u64 = 50_000_000;

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
      "description": "Disks by name: a file each",
      "type": "object",
      "additionalProperties": { "type": "string" }
    },
    "snapshots": {
      "description": "Where the clones are kept: a folder on the images' file system. Default: .coffre beside the images",
      "type": "string"
    },
    "max-extents": {
      "description": "More extents than this in one image, and it is not cloned (a clone would take too long). Default 200000",
      "type": "integer", "minimum": 1, "maximum": 999999
    }
  }
}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    images: Option<Images>,
    disks: Option<BTreeMap<String, String>>,
    snapshots: Option<String>,
    max_extents: Option<u32>,
}

impl Settings {
    fn of(machine: &Machine) -> Result<Self, Failure> {
        coffre_plugin_sdk::settings(machine)
    }

    fn find(&self) -> Result<Vec<Image>, Failure> {
        images::find(self.images.as_ref(), self.disks.as_ref())
    }

    fn max_extents(&self) -> u32 {
        // The host counts no further than a million.
        self.max_extents.unwrap_or(EXTENTS_AT_MOST).min(999_999)
    }

    fn store(&self, machine: &Machine) -> Result<Store, Failure> {
        let folder = match (&self.snapshots, images::folder(self.images.as_ref())?) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) => format!("{}/.coffre", folder.trim_end_matches('/')),
            (None, None) => {
                let text = "`images` is no folder, so say where the clones are to lie: snapshots = \"/folder\", on the same \
                            file system as the images";
                return Err(Failure::InvalidSettings(text.to_owned()));
            }
        };
        Ok(Store::new(folder, &machine.name))
    }
}

struct ReflinkProvider;

coffre_plugin_sdk::provider!(ReflinkProvider);

impl Provider for ReflinkProvider {
    fn describe() -> Description {
        Description {
            name: "reflink".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            best_consistency: Consistency::FileSystem,
            // Clones are made one after the other; each snapshot says whether that mattered.
            one_instant: false,
            tracks_changes: true,
            runs_outside: true,
            settings_schema: SCHEMA.to_owned(),
        }
    }

    fn discover(machine: &Machine) -> Result<Vec<Disk>, Failure> {
        Ok(Settings::of(machine)?.find()?.iter().map(Image::disk).collect())
    }

    fn check(machine: &Machine, disks: &[String]) -> Result<Vec<Finding>, Failure> {
        let settings = Settings::of(machine)?;
        let store = settings.store(machine)?;
        let images = images::wanted(settings.find()?, disks)?;
        let mut findings = Vec::new();
        let clones_lie_on = if_there(storage::stat(store.folder()))?.map(|found| found.file_system_id);
        for image in &images {
            let mut say = |level, text| findings.push(finding(level, &image.id, text));
            if let Some(why) = cannot_clone(image) {
                say(Level::Blocking, why);
                continue;
            }
            if clones_lie_on.is_some_and(|there| there != image.file_system_id) {
                say(
                    Level::Blocking,
                    format!("{} and {} lie on different file systems", image.path, store.folder()),
                );
                continue;
            }
            if let Err(why) = clone_is_cheap(image, settings.max_extents())? {
                say(Level::Blocking, why);
            }
        }
        let at_rest = images::at_rest(&images)?;
        if !at_rest.is_off() {
            let text = format!("{}; without hooks the snapshot is worth `crash`", at_rest.reason);
            findings.push(Finding {
                level: Level::Note,
                disk: None,
                text,
            });
        }
        Ok(findings)
    }

    fn take(machine: &Machine, request: &Request) -> Result<Snapshot, Failure> {
        let settings = Settings::of(machine)?;
        let store = settings.store(machine)?;
        let images = images::wanted(settings.find()?, &request.disks)?;
        for image in &images {
            if let Some(why) = cannot_clone(image) {
                return Err(Failure::Unsupported(why));
            }
            clone_is_cheap(image, settings.max_extents())?.map_err(Failure::Failed)?;
        }
        store.make_held(&request.id)?;

        let before = images::at_rest(&images)?;
        let started_ms = time::now_ms();
        for image in &images {
            storage::reflink(&image.path, &store.held(&request.id, &image.id))?;
        }
        let took_ms = time::now_ms().saturating_sub(started_ms);
        // Somebody may have started the machine in the middle.
        let after = if before.is_off() {
            images::at_rest(&images)?
        } else {
            before
        };
        let one_instant = images.len() == 1 || after.is_off() || quiet_since(&images, started_ms)?;

        let mut disks = Vec::with_capacity(images.len());
        for image in &images {
            let clone = store.held(&request.id, &image.id);
            storage::sync(&clone)?;
            let size_bytes = storage::stat(&clone)?.size_bytes;
            let token = Some(request.id.clone());
            disks.push(TakenDisk {
                id: image.id.clone(),
                size_bytes,
                source: Source::Path(clone),
                token,
            });
        }
        let reason = match (one_instant, images.len()) {
            (true, 1) => format!("{}; cloned at one instant", after.reason),
            (true, _) if after.is_off() => after.reason,
            (true, _) => format!("{}; no image changed while they were cloned", after.reason),
            (false, count) => format!(
                "{}; its {count} disks were cloned within {took_ms} ms, not at one instant",
                after.reason
            ),
        };
        Ok(Snapshot {
            consistency: after.consistency,
            reason,
            one_instant,
            disks,
            frozen_ms: None,
            attachments: Vec::new(),
        })
    }

    fn changed(machine: &Machine, id: &str, disk: &str, base: &str) -> Result<ListedChanges, Failure> {
        let store = Settings::of(machine)?.store(machine)?;
        if !store::is_plain(base) || !store::is_plain(disk) {
            return Ok(ListedChanges::CannotTell(
                "the token is none of this provider's".to_owned(),
            ));
        }
        let (old, new) = (store.base(base, disk), store.held(id, disk));
        let Some(old_status) = if_there(storage::stat(&old))? else {
            return Ok(ListedChanges::CannotTell(format!(
                "the clone that was kept, {old}, is gone"
            )));
        };
        let new_size = storage::stat(&new)?.size_bytes;
        Ok(ListedChanges::Listed(Box::new(Comparison::new(
            old,
            old_status.size_bytes,
            new,
            new_size,
        ))))
    }

    fn settle(machine: &Machine, keep: &[Base]) -> Result<(), Failure> {
        Settings::of(machine)?.store(machine)?.settle(keep)
    }

    fn release(machine: &Machine, id: &str) -> Result<(), Failure> {
        Settings::of(machine)?.store(machine)?.release(id)
    }

    fn held(machine: &Machine) -> Result<Vec<String>, Failure> {
        Settings::of(machine)?.store(machine)?.all_held()
    }
}

/// Why the image can never be cloned, as far as its file system's name says.
fn cannot_clone(image: &Image) -> Option<String> {
    if image.kind == Kind::BlockDevice {
        return Some(format!(
            "{} is a block device, and only files can be cloned",
            image.path
        ));
    }
    match image.file_system.as_str() {
        // The unknown ones show when the clone is made.
        "xfs" | "btrfs" | "bcachefs" | "overlay" | "zfs" | "nfs" | "smb3" | "cifs" | "" => None,
        other => Some(format!(
            "{} lies on {other}, which makes no clones; XFS and Btrfs do",
            image.path
        )),
    }
}

/// Counts the extents, no further than the bound. The inner error says why a clone would take too long.
fn clone_is_cheap(image: &Image, at_most: u32) -> Result<Result<(), String>, Failure> {
    let count = storage::extent_count(&image.path, at_most.saturating_add(1))?;
    if count <= at_most {
        return Ok(Ok(()));
    }
    Ok(Err(format!(
        "{} is in more than {at_most} pieces, and cloning it would take too long: defragment it (xfs_fsr, btrfs filesystem \
         defragment), or set `max-extents` higher",
        image.path
    )))
}

/// No image was written to between shortly before the first clone and now.
fn quiet_since(images: &[Image], started_ms: u64) -> Result<bool, Failure> {
    let started_ns = started_ms.saturating_mul(1_000_000);
    for image in images {
        let now = storage::stat(&image.path)?;
        if now.modified_ns.saturating_add(QUIET_NS) > started_ns || now.size_bytes != image.size_bytes {
            return Ok(false);
        }
    }
    Ok(true)
}
