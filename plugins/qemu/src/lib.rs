//! The provider `qemu`: a running QEMU, spoken to over its monitor (QMP). A snapshot is a copy-before-write overlay of every
//! disk, all begun in one transaction, and read from QEMU over NBD; what changed is a dirty bitmap of QEMU's own.
//!
//! What it makes in QEMU bears the snapshot's id, and `disk` is the disk's place in the request:
//! ```text
//! SCRATCH/ID.disk.qcow2     the overlay, which keeps what the guest writes over; on disk first and gone last
//! cf-HASH-disk, …-file      its nodes (QEMU's names of nodes have 31 letters at most)
//! coffre-ID-disk            the job that copies, and the export that is read
//! coffre-read-ID-of-BASE    what was written since the base, as it was at the snapshot
//! coffre-ID                 what is written from the snapshot on: the base of the next backup
//! ```
//! A change token is the snapshot's id. The base's bitmap goes on recording while a copy of it is read, so that a backup that
//! fails has lost nothing.

mod node;
mod qmp;
mod snapshot;

use std::collections::BTreeMap;

use coffre_plugin_sdk::storage::{self, Kind};
use coffre_plugin_sdk::{
    Base, Consistency, Description, Disk, Failure, Finding, Level, ListedChanges, Machine, Provider, Request, Snapshot,
    if_there,
};
use serde::Deserialize;

use node::{Attached, attached, bitmaps};
use qmp::Monitor;
use snapshot::{BITMAP, Names, read_bitmap};

const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "additionalProperties": false,
  "required": ["qmp", "scratch"],
  "properties": {
    "qmp": {
      "description": "The socket of a monitor of the machine's: QEMU's option -qmp unix:PATH,server=on,wait=off",
      "type": "string"
    },
    "scratch": {
      "description": "A folder that QEMU and Coffre can write to: what the guest writes over during a backup is kept there",
      "type": "string"
    },
    "disks": {
      "description": "Disks by name: a node of QEMU's each. Default: every writable disk that is attached to the machine",
      "type": "object",
      "additionalProperties": { "type": "string" }
    },
    "nbd": {
      "description": "The socket of QEMU's NBD server, where it has one already (it can have one only)",
      "type": "string"
    }
  }
}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    qmp: String,
    scratch: String,
    disks: Option<BTreeMap<String, String>>,
    nbd: Option<String>,
}

impl Settings {
    fn of(machine: &Machine) -> Result<Self, Failure> {
        coffre_plugin_sdk::settings(machine)
    }

    fn monitor(&self) -> Result<Monitor, Failure> {
        Monitor::connect(&self.qmp)
    }

    fn attached(&self, monitor: &mut Monitor) -> Result<Vec<Attached>, Failure> {
        attached(monitor, self.disks.as_ref())
    }

    /// The ids of the snapshots whose overlays lie in the scratch folder.
    fn held(&self) -> Result<Vec<String>, Failure> {
        let entries = if_there(storage::list_folder(&self.scratch))?.unwrap_or_default();
        let mut ids: Vec<String> = entries
            .iter()
            .filter_map(|entry| Names::id_of_file(&entry.name))
            .map(str::to_owned)
            .collect();
        ids.dedup();
        Ok(ids)
    }
}

struct Qemu;

coffre_plugin_sdk::provider!(Qemu);

impl Provider for Qemu {
    fn describe() -> Description {
        Description {
            name: "qemu".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            best_consistency: Consistency::Crash,
            one_instant: true,
            tracks_changes: true,
            runs_outside: true,
            settings_schema: SCHEMA.to_owned(),
        }
    }

    fn discover(machine: &Machine) -> Result<Vec<Disk>, Failure> {
        let settings = Settings::of(machine)?;
        let found = settings.attached(&mut settings.monitor()?)?;
        Ok(found.into_iter().map(Attached::into_disk).collect())
    }

    fn check(machine: &Machine, disks: &[String]) -> Result<Vec<Finding>, Failure> {
        let settings = Settings::of(machine)?;
        let mut findings = Vec::new();
        let mut find = |level, disk: Option<&str>, text: String| {
            findings.push(Finding {
                level,
                disk: disk.map(str::to_owned),
                text,
            });
        };
        match if_there(storage::stat(&settings.scratch))? {
            Some(found) if found.kind == Kind::Folder => {}
            Some(_) => find(Level::Blocking, None, format!("{} is no folder", settings.scratch)),
            None => {
                let text = format!("there is no folder {}: make it, for QEMU to write to", settings.scratch);
                find(Level::Blocking, None, text);
            }
        }
        let mut monitor = settings.monitor()?;
        for disk in settings.attached(&mut monitor)? {
            if disks.contains(&disk.id) && !disk.keeps_bitmaps {
                let text = format!(
                    "QEMU keeps what changed on {} in memory only, since its image is no qcow2: after QEMU has ended, the \
                     next backup reads everything",
                    disk.id
                );
                find(Level::Note, Some(&disk.id), text);
            }
        }
        Ok(findings)
    }

    fn take(machine: &Machine, request: &Request) -> Result<Snapshot, Failure> {
        let settings = Settings::of(machine)?;
        let mut monitor = settings.monitor()?;
        let attached = settings.attached(&mut monitor)?;
        snapshot::take(&settings, &mut monitor, &attached, request)
    }

    fn changed(machine: &Machine, id: &str, disk: &str, base: &str) -> Result<ListedChanges, Failure> {
        let settings = Settings::of(machine)?;
        let mut monitor = settings.monitor()?;
        let attached = settings.attached(&mut monitor)?;
        let Some(disk) = attached.iter().find(|found| found.id == disk) else {
            return Ok(ListedChanges::CannotTell("the disk is not there any more".to_owned()));
        };
        let read = read_bitmap(id, base);
        if bitmaps(&mut monitor, &disk.node)?
            .iter()
            .any(|bitmap| bitmap.name == read)
        {
            Ok(ListedChanges::InNbdContext)
        } else {
            Ok(ListedChanges::CannotTell(
                "QEMU has no bitmap of what was written since: it was begun anew, or the bitmap was removed".to_owned(),
            ))
        }
    }

    fn settle(machine: &Machine, keep: &[Base]) -> Result<(), Failure> {
        let settings = Settings::of(machine)?;
        let mut monitor = settings.monitor()?;
        for disk in settings.attached(&mut monitor)? {
            for bitmap in bitmaps(&mut monitor, &disk.node)? {
                let Some(token) = bitmap.name.strip_prefix(BITMAP).filter(|id| !id.starts_with("read-")) else {
                    continue;
                };
                if !keep.iter().any(|base| base.disk == disk.id && base.token == token) {
                    bitmap.remove(&mut monitor, &disk.node)?;
                }
            }
        }
        Ok(())
    }

    fn release(machine: &Machine, id: &str) -> Result<(), Failure> {
        let settings = Settings::of(machine)?;
        match settings.monitor() {
            Ok(mut monitor) => snapshot::release(&settings, &mut monitor, id)?,
            // A QEMU that has ended holds nothing; what is left are the files.
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failure),
        }
        snapshot::remove_files(&settings, id)
    }

    fn held(machine: &Machine) -> Result<Vec<String>, Failure> {
        Settings::of(machine)?.held()
    }
}
