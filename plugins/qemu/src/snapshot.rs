//! Taking a snapshot, and letting go of it: each step can be the last one, and each can come again.

use coffre_plugin_sdk::storage;
use coffre_plugin_sdk::{Consistency, Failure, NbdExport, Request, Snapshot, Source, TakenDisk, if_there};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Settings;
use crate::node::{Attached, bitmaps, is_there};
use crate::qmp::Monitor;

pub const BITMAP: &str = "coffre-";
/// QEMU's default, and the size of a cluster of qcow2.
const GRANULARITY_BYTES: u32 = 65_536;

/// The bitmap that is read for a snapshot: what was written since its base.
pub fn read_bitmap(id: &str, base: &str) -> String {
    format!("{BITMAP}read-{id}-of-{base}")
}

/// What things of one disk of a snapshot are called.
pub struct Names {
    pub file: String,
    file_node: String,
    node: String,
    /// The job's and the export's.
    label: String,
}

impl Names {
    fn new(settings: &Settings, id: &str, place: usize) -> Self {
        let node = format!("cf-{:016x}-{place}", hash(id));
        Self {
            file: format!("{}/{id}.{place}.qcow2", settings.scratch),
            file_node: format!("{node}-file"),
            node,
            label: format!("coffre-{id}-{place}"),
        }
    }

    /// The snapshot that a file in the scratch folder belongs to.
    pub fn id_of_file(name: &str) -> Option<&str> {
        let (id, place) = name.strip_suffix(".qcow2")?.rsplit_once('.')?;
        let fits = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (fits && place.parse::<usize>().is_ok()).then_some(id)
    }
}

/// FNV-1a: the same for the same id in every instance.
fn hash(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A path as a query of a URI takes it.
fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

pub fn take(
    settings: &Settings,
    monitor: &mut Monitor,
    attached: &[Attached],
    request: &Request,
) -> Result<Snapshot, Failure> {
    let mut disks = Vec::with_capacity(request.disks.len());
    for (place, id) in request.disks.iter().enumerate() {
        let disk = attached.iter().find(|disk| disk.id == *id);
        let disk = disk.ok_or_else(|| Failure::NotFound(format!("the machine has no disk {id}")))?;
        let names = Names::new(settings, &request.id, place);
        let base = base_of(monitor, disk, request)?;
        make_overlay(monitor, disk, &names)?;
        disks.push((disk, names, base));
    }
    let server = start_server(settings, monitor)?;

    let bitmap = format!("{BITMAP}{}", request.id);
    let mut actions = Vec::new();
    for (disk, names, base) in &disks {
        actions.push(json!({ "type": "block-dirty-bitmap-add", "data": {
            "node": disk.node, "name": bitmap, "persistent": disk.keeps_bitmaps, "granularity": GRANULARITY_BYTES,
        }}));
        if let Some(base) = base {
            let read = read_bitmap(&request.id, base);
            actions.push(json!({ "type": "block-dirty-bitmap-add", "data": {
                "node": disk.node, "name": read, "disabled": true, "granularity": GRANULARITY_BYTES,
            }}));
            actions.push(json!({ "type": "block-dirty-bitmap-merge", "data": {
                "node": disk.node, "target": read, "bitmaps": [format!("{BITMAP}{base}")],
            }}));
        }
        actions.push(json!({ "type": "blockdev-backup", "data": {
            "job-id": names.label, "device": disk.node, "target": names.node, "sync": "none",
        }}));
    }
    monitor.run::<Value>("transaction", json!({ "actions": actions }))?;

    let mut taken = Vec::with_capacity(disks.len());
    for (disk, names, base) in disks {
        let read = base.map(|base| read_bitmap(&request.id, &base));
        let mut export = json!({
            "id": names.label, "type": "nbd", "node-name": names.node, "name": names.label, "writable": false,
        });
        if let Some(read) = &read {
            export["bitmaps"] = json!([{ "node": disk.node, "name": read }]);
        }
        monitor.run::<Value>("block-export-add", export)?;
        taken.push(TakenDisk {
            id: disk.id.clone(),
            size_bytes: disk.size_bytes,
            source: Source::Nbd(NbdExport {
                uri: format!("nbd+unix:///{}?socket={}", names.label, encoded(&server)),
                changed_context: read.map(|read| format!("qemu:dirty-bitmap:{read}")),
            }),
            token: Some(request.id.clone()),
        });
    }
    let count = taken.len();
    Ok(Snapshot {
        consistency: Consistency::Crash,
        reason: format!("{count} disks of the running machine in one transaction of QEMU's, nothing frozen"),
        one_instant: true,
        disks: taken,
        frozen_ms: None,
        attachments: Vec::new(),
    })
}

/// The base that what changed can be read against, if QEMU has its bitmap.
fn base_of(monitor: &mut Monitor, disk: &Attached, request: &Request) -> Result<Option<String>, Failure> {
    let Some(base) = request.bases.iter().find(|base| base.disk == disk.id) else {
        return Ok(None);
    };
    let name = format!("{BITMAP}{}", base.token);
    let there = bitmaps(monitor, &disk.node)?;
    let usable = there.iter().any(|bitmap| bitmap.name == name && !bitmap.inconsistent);
    Ok(usable.then(|| base.token.clone()))
}

/// An empty image over the disk, made by QEMU itself, so that it can open what it has made.
fn make_overlay(monitor: &mut Monitor, disk: &Attached, names: &Names) -> Result<(), Failure> {
    let create = |monitor: &mut Monitor, options: Value| {
        let job = format!("{}-create", names.label);
        monitor.run::<Value>("blockdev-create", json!({ "job-id": job, "options": options }))?;
        finish(monitor, &job)
    };
    create(monitor, json!({ "driver": "file", "filename": names.file, "size": 0 }))?;
    let file = json!({ "driver": "file", "node-name": names.file_node, "filename": names.file });
    monitor.run::<Value>("blockdev-add", file)?;
    create(
        monitor,
        json!({ "driver": "qcow2", "file": names.file_node, "size": disk.size_bytes }),
    )?;
    let overlay = json!({
        "driver": "qcow2", "node-name": names.node, "file": names.file_node, "backing": disk.node,
    });
    monitor.run::<Value>("blockdev-add", overlay).map(drop)
}

/// The socket of QEMU's NBD server, which is started if there is none.
fn start_server(settings: &Settings, monitor: &mut Monitor) -> Result<String, Failure> {
    if let Some(socket) = &settings.nbd {
        return Ok(socket.clone());
    }
    let socket = server_socket(settings);
    let address = json!({ "type": "unix", "data": { "path": socket } });
    match monitor.try_run::<Value>("nbd-server-start", json!({ "addr": address }))? {
        Ok(_) => Ok(socket),
        // Ours, of another backup that was begun and not ended; else the host finds no socket there.
        Err(refusal) if refusal.contains("already running") => match if_there(storage::stat(&socket))? {
            Some(_) => Ok(socket),
            None => Err(Failure::Busy(format!(
                "QEMU has an NBD server already, and can have one only; say where its socket is: settings.nbd ({refusal})"
            ))),
        },
        Err(refusal) => Err(Failure::Failed(format!("QEMU did not start its NBD server: {refusal}"))),
    }
}

fn server_socket(settings: &Settings) -> String {
    format!("{}/nbd.sock", settings.scratch)
}

#[derive(Deserialize)]
struct Job {
    id: String,
    status: String,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Export {
    id: String,
    #[serde(rename = "type")]
    kind: String,
}

fn job(monitor: &mut Monitor, id: &str) -> Result<Option<Job>, Failure> {
    let jobs: Vec<Job> = monitor.run("query-jobs", json!({}))?;
    Ok(jobs.into_iter().find(|job| job.id == id))
}

/// Waits for a job that ends by itself, and takes it away.
fn finish(monitor: &mut Monitor, id: &str) -> Result<(), Failure> {
    let mut error = None;
    monitor.wait("end a job", |monitor| {
        let found = job(monitor, id)?;
        let over = found.as_ref().is_none_or(|job| job.status == "concluded");
        error = found.and_then(|job| job.error);
        Ok(over)
    })?;
    dismiss(monitor, id)?;
    match error {
        None => Ok(()),
        Some(error) => Err(Failure::Failed(format!("QEMU could not make a scratch file: {error}"))),
    }
}

fn dismiss(monitor: &mut Monitor, id: &str) -> Result<(), Failure> {
    if job(monitor, id)?.is_some_and(|job| job.status == "concluded") {
        monitor.run::<Value>("job-dismiss", json!({ "id": id }))?;
    }
    Ok(())
}

/// Takes everything of a snapshot out of QEMU: exports, jobs, overlays, and the copies of bitmaps that were read.
pub fn release(settings: &Settings, monitor: &mut Monitor, id: &str) -> Result<(), Failure> {
    let ours = format!("coffre-{id}-");
    let exports =
        |monitor: &mut Monitor| -> Result<Vec<Export>, Failure> { monitor.run("query-block-exports", json!({})) };
    for export in exports(monitor)? {
        if export.id.starts_with(&ours) {
            monitor.run::<Value>("block-export-del", json!({ "id": export.id, "mode": "hard" }))?;
        }
    }
    monitor.wait("end an export", |monitor| {
        Ok(!exports(monitor)?.iter().any(|export| export.id.starts_with(&ours)))
    })?;
    let jobs: Vec<Job> = monitor.run("query-jobs", json!({}))?;
    for job in jobs.iter().filter(|job| job.id.starts_with(&ours)) {
        if job.status == "concluded" {
            monitor.run::<Value>("job-dismiss", json!({ "id": job.id }))?;
        } else {
            monitor.run::<Value>("job-cancel", json!({ "id": job.id }))?;
            let gone = |monitor: &mut Monitor| {
                dismiss(monitor, &job.id)?;
                Ok(self::job(monitor, &job.id)?.is_none())
            };
            monitor.wait("end a job", gone)?;
        }
    }
    for place in places(settings, id)? {
        let names = Names::new(settings, id, place);
        for node in [&names.node, &names.file_node] {
            if is_there(monitor, node)? {
                monitor.run::<Value>("blockdev-del", json!({ "node-name": node }))?;
            }
        }
    }
    let read = read_bitmap(id, "");
    for disk in settings.attached(monitor)? {
        for bitmap in bitmaps(monitor, &disk.node)? {
            if bitmap.name.starts_with(&read) {
                bitmap.remove(monitor, &disk.node)?;
            }
        }
    }
    // Its own server, once nothing more is read from it.
    let serves = exports(monitor)?.iter().any(|export| export.kind == "nbd");
    if settings.nbd.is_none() && !serves && if_there(storage::stat(&server_socket(settings)))?.is_some() {
        let stopped = monitor.try_run::<Value>("nbd-server-stop", json!({}))?;
        // Not running: the file was left by a QEMU that was killed.
        if stopped.is_err() {
            storage::remove(&server_socket(settings))?;
        }
    }
    Ok(())
}

/// Which places of a snapshot have a file.
fn places(settings: &Settings, id: &str) -> Result<Vec<usize>, Failure> {
    let entries = if_there(storage::list_folder(&settings.scratch))?.unwrap_or_default();
    let place = |name: &str| {
        let place = name.strip_prefix(id)?.strip_prefix('.')?.strip_suffix(".qcow2")?;
        place.parse().ok()
    };
    Ok(entries.iter().filter_map(|entry| place(&entry.name)).collect())
}

/// Last of all: as long as a file lies there, the snapshot is found by `held`.
pub fn remove_files(settings: &Settings, id: &str) -> Result<(), Failure> {
    for place in places(settings, id)? {
        storage::remove(&Names::new(settings, id, place).file)?;
    }
    Ok(())
}
