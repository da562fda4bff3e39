//! `coffre restore MACHINE[@POINT] [--disk ID] --to PATH`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use coffre_engine::DiskId;
use coffre_engine::restore::{
    self, DamagedRange, DiskRestore, Overwrite, RestoreCounters, RestorePlan, Target, target_file_name,
};
use coffre_vault::{Fate, Point, PointDisk, SessionNumber};
use jiff::Timestamp;
use serde::Serialize;

use super::points::{machine_in, vault_of};
use crate::args::{self, Global, RestoreArgs};
use crate::exit::{Complaint, Exit};
use crate::output::{Output, count, size, span, time};
use crate::progress::{DiskView, Style, View, Watch};
use crate::wire::{self, NamedVault};
use crate::{screen, stop};

/// Ranges that are said; `--json` has them all.
const DAMAGED_SHOWN: usize = 20;

#[derive(Serialize)]
struct Document {
    vault: String,
    machine: String,
    point: u32,
    taken_at: Option<Timestamp>,
    consistency: String,
    disks: Vec<RestoredDisk>,
    attachments: Vec<RestoredAttachment>,
    /// What --skip-damaged has left out.
    damaged: Vec<DamagedPart>,
    duration_ms: u64,
}

#[derive(Serialize)]
struct DamagedPart {
    /// Null: an attachment.
    disk: Option<String>,
    attachment: Option<String>,
    offset_bytes: Option<u64>,
    length_bytes: Option<u64>,
    what: String,
}

#[derive(Serialize)]
struct RestoredDisk {
    id: String,
    path: PathBuf,
    size_bytes: u64,
    written_bytes: u64,
    fetched_bytes: u64,
}

#[derive(Serialize)]
struct RestoredAttachment {
    name: String,
    path: PathBuf,
}

pub async fn run(args: &RestoreArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let (vault, point) = stop::or_dropped(find(args, global)).await?;
    let wanted = disks(&point, args.disk.as_deref())?;
    let place = Place::prepare(args, wanted)?;
    let mut document = Document {
        vault: vault.name.clone(),
        machine: point.machine.clone(),
        point: point.number.0,
        taken_at: point.taken_at,
        consistency: point.consistency.reached.to_string(),
        disks: Vec::new(),
        attachments: Vec::new(),
        damaged: Vec::new(),
        duration_ms: 0,
    };
    let skipped = write_disks(&vault, &point, &place, args.skip_damaged, output).await?;
    document.damaged = skipped.into_iter().map(DamagedPart::from).collect();
    for (disk, path, counters) in &place.disks {
        document.disks.push(RestoredDisk {
            id: disk.id.clone(),
            path: path.clone(),
            size_bytes: disk.size_bytes,
            written_bytes: counters.written_bytes.load(Ordering::Relaxed),
            fetched_bytes: counters.fetched_bytes.load(Ordering::Relaxed),
        });
    }
    if args.disk.is_none() {
        document.attachments = attachments(&vault, &point, args, &mut document.damaged).await?;
    }
    let took = started.elapsed();
    document.duration_ms = took.as_millis() as u64;
    say(&document, took, output)?;
    output.document(&document)?;
    if document.damaged.is_empty() {
        return Ok(Exit::Done);
    }
    output.result(damaged(&document))?;
    Ok(Exit::Failed)
}

impl From<DamagedRange> for DamagedPart {
    fn from(skipped: DamagedRange) -> Self {
        Self {
            disk: Some(skipped.disk.0),
            attachment: None,
            offset_bytes: Some(skipped.range.start),
            length_bytes: Some(skipped.range.end - skipped.range.start),
            what: skipped.what,
        }
    }
}

async fn find(args: &RestoreArgs, global: &Global) -> anyhow::Result<(NamedVault, Point)> {
    let config = wire::config(global)?;
    let name = match &args.vault {
        Some(vault) => config.vault(vault)?.name.clone(),
        None => vault_of(&config, &args.target.machine)?,
    };
    let vault = wire::open_vault(&config, &name).await?;
    let point = point(&vault, &args.target).await?;
    Ok((vault, point))
}

async fn point(vault: &NamedVault, target: &args::Target) -> anyhow::Result<Point> {
    let machine = &target.machine;
    let number = machine_in(vault, machine).await?;
    let points = vault.vault.points(number).await?;
    let found = match target.point {
        None => points.into_iter().rfind(|point| point.fate == Fate::Kept),
        Some(wanted) => points.into_iter().find(|point| point.number.0 == wanted),
    };
    if let (None, Some(wanted)) = (&found, target.point) {
        // It may be there, and damaged.
        let point = vault.vault.point(number, SessionNumber(wanted)).await;
        point.with_context(|| format!("cannot restore {machine}@{wanted}"))?;
    }
    let hint = format!("`coffre points {machine}` lists its points");
    let point = found.ok_or_else(|| {
        let text = match target.point {
            None => format!("{machine} has no recovery point in vault `{}`", vault.name),
            Some(wanted) => format!("{machine} has no recovery point {wanted} in vault `{}`", vault.name),
        };
        Complaint::usage(text, hint.clone())
    })?;
    if point.fate == Fate::Purged {
        let text = format!(
            "the recovery point {machine}@{} was purged: its data may be gone",
            point.number
        );
        return Err(Complaint::usage(text, hint).into());
    }
    Ok(point)
}

/// The one that was named, by id or else by label; or all.
fn disks(point: &Point, wanted: Option<&str>) -> anyhow::Result<Vec<PointDisk>> {
    let Some(wanted) = wanted else {
        return Ok(point.disks.clone());
    };
    let by_id = point.disks.iter().find(|disk| disk.id == wanted);
    let found = by_id.or_else(|| point.disks.iter().find(|disk| disk.label == wanted));
    let disk = found.ok_or_else(|| {
        let known: Vec<_> = point.disks.iter().map(|disk| format!("`{}`", disk.id)).collect();
        let text = format!(
            "the recovery point {}@{} has no disk `{wanted}`",
            point.machine, point.number
        );
        Complaint::usage(text, format!("it has {}", known.join(", ")))
    })?;
    Ok(vec![disk.clone()])
}

/// Where the disks go. Everything is checked before anything is written.
struct Place {
    disks: Vec<(PointDisk, PathBuf, Arc<RestoreCounters>)>,
    /// Files that were not there before.
    new: Vec<PathBuf>,
    overwrite: Overwrite,
}

impl Place {
    fn prepare(args: &RestoreArgs, wanted: Vec<PointDisk>) -> anyhow::Result<Self> {
        let folder = args.to.is_dir();
        let paths: Vec<PathBuf> = if args.disk.is_some() {
            if folder {
                let text = format!(
                    "{} is a folder; with --disk, --to names a file or a block device",
                    args.to.display()
                );
                let name = wanted
                    .first()
                    .map(|disk| target_file_name(&DiskId(disk.id.clone())))
                    .unwrap_or_default();
                return Err(Complaint::usage(text, format!("--to {}", args.to.join(name).display())).into());
            }
            vec![args.to.clone()]
        } else {
            prepare_folder(args)?;
            wanted
                .iter()
                .map(|disk| args.to.join(target_file_name(&DiskId(disk.id.clone()))))
                .collect()
        };
        for (index, path) in paths.iter().enumerate() {
            if paths[..index].contains(path) {
                let text = format!("two disks would both be written to {}", path.display());
                return Err(Complaint::usage(text, "restore them one by one with --disk").into());
            }
        }
        let new = paths
            .iter()
            .filter(|path| fs::symlink_metadata(path).is_err())
            .cloned()
            .collect();
        let disks = wanted
            .into_iter()
            .zip(paths)
            .map(|(disk, path)| (disk, path, Arc::default()))
            .collect();
        Ok(Self {
            disks,
            new,
            overwrite: if args.overwrite {
                Overwrite::Allow
            } else {
                Overwrite::Refuse
            },
        })
    }

    fn open(&self) -> anyhow::Result<Vec<DiskRestore>> {
        let open = |(disk, path, counters): &(PointDisk, PathBuf, Arc<RestoreCounters>)| {
            let target = Target::open(path, disk.size_bytes, self.overwrite)
                .with_context(|| format!("cannot restore disk `{}`", disk.id))?;
            Ok(DiskRestore {
                id: DiskId(disk.id.clone()),
                size_bytes: disk.size_bytes,
                root: disk.root,
                target,
                counters: counters.clone(),
            })
        };
        let opened: anyhow::Result<Vec<DiskRestore>> = self.disks.iter().map(open).collect();
        if opened.is_err() {
            self.remove_new();
        }
        opened
    }

    /// Files that this run made and did not finish would be mistaken for disks.
    fn remove_new(&self) {
        for path in &self.new {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                screen::note(&format!(
                    "warning: {} is not whole and cannot be removed: {error}",
                    path.display()
                ));
            }
        }
    }
}

fn prepare_folder(args: &RestoreArgs) -> anyhow::Result<()> {
    let path = &args.to;
    let doing = || format!("cannot make the folder {}", path.display());
    match fs::metadata(path) {
        Err(_) => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(doing),
        Ok(metadata) if !metadata.is_dir() => {
            let text = format!(
                "{} is not a folder; all disks of a machine are restored into a folder",
                path.display()
            );
            Err(Complaint::usage(text, "--disk ID restores one disk to a file or block device").into())
        }
        Ok(_) if args.overwrite => Ok(()),
        Ok(_) => {
            let entries = fs::read_dir(path).with_context(|| format!("cannot read the folder {}", path.display()))?;
            // What every new ext file system has.
            let full = entries.flatten().any(|entry| entry.file_name() != "lost+found");
            if full {
                let hint = "name a new folder, or say --overwrite to replace the images that are there";
                return Err(Complaint::usage(format!("{} is not empty", path.display()), hint).into());
            }
            Ok(())
        }
    }
}

async fn write_disks(
    vault: &NamedVault,
    point: &Point,
    place: &Place,
    skip_damaged: bool,
    output: &Output,
) -> anyhow::Result<Vec<DamagedRange>> {
    let cancel = Arc::new(AtomicBool::new(false));
    let plan = RestorePlan {
        vault: vault.vault.clone(),
        disks: place.open()?,
        skip_damaged,
        cancel: cancel.clone(),
    };
    let rows: Vec<_> = (place.disks.iter())
        .map(|(disk, _, counters)| (disk.id.clone(), disk.size_bytes, counters.clone()))
        .collect();
    let title = format!("{}@{}", point.machine, point.number);
    let watch = Watch::start(Style::choose(output, false), &title, move || view(&rows));
    let handle = tokio::runtime::Handle::current();
    let mut work = tokio::task::spawn_blocking(move || restore::run(plan, &handle));
    let done = tokio::select! {
        done = &mut work => done,
        stopped = stop::asked() => {
            cancel.store(true, Ordering::Relaxed);
            let done = work.await;
            stopped?;
            done
        }
    };
    watch.finish();
    let done = done.context("the restore broke off")?;
    if cancel.load(Ordering::Relaxed) && done.is_err() {
        place.remove_new();
        return Err(stop::cancelled().into());
    }
    done.map_err(|error| {
        let hint = match error.is_damage() {
            true => "--skip-damaged --overwrite restores all that is whole, and says where it is not",
            false => "what was written so far is not whole; after mending the cause, run it again with --overwrite",
        };
        anyhow::Error::new(error).context(Complaint {
            exit: None,
            text: format!("cannot restore {title}"),
            hint: Some(hint.to_owned()),
        })
    })
}

fn view(rows: &[(String, u64, Arc<RestoreCounters>)]) -> View {
    let disks = rows.iter().map(|(name, size_bytes, counters)| {
        let done_bytes = counters.done_bytes.load(Ordering::Relaxed);
        DiskView {
            name: name.clone(),
            total_bytes: *size_bytes,
            done_bytes,
            finished: done_bytes >= *size_bytes,
            ..DiskView::default()
        }
    });
    View {
        phase: "restoring".to_owned(),
        disks: disks.collect(),
    }
}

/// Beside the images: what a restored machine needs to boot.
async fn attachments(
    vault: &NamedVault,
    point: &Point,
    args: &RestoreArgs,
    damaged: &mut Vec<DamagedPart>,
) -> anyhow::Result<Vec<RestoredAttachment>> {
    if point.attachments.is_empty() {
        return Ok(Vec::new());
    }
    let folder = args.to.join("attachments");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut written = Vec::new();
    for (name, attachment) in restore::attachments(&vault.vault, point).await {
        let attachment = match attachment {
            Ok(attachment) => attachment,
            Err(error) if args.skip_damaged && error.is_damage() => {
                damaged.push(DamagedPart {
                    disk: None,
                    attachment: Some(name),
                    offset_bytes: None,
                    length_bytes: None,
                    what: error.to_string(),
                });
                continue;
            }
            Err(error) => {
                let hint = "--skip-damaged --overwrite restores all that is whole, and says what is not";
                let hint = error.is_damage().then(|| hint.to_owned());
                let text = format!("cannot read the attachment {name}");
                let exit = None;
                return Err(anyhow::Error::new(error).context(Complaint { exit, text, hint }));
            }
        };
        let path = folder.join(plain_name(&attachment.name));
        write_new(&path, &attachment.content, args.overwrite)
            .with_context(|| format!("cannot write the attachment {}", path.display()))?;
        written.push(RestoredAttachment {
            name: attachment.name,
            path,
        });
    }
    Ok(written)
}

fn write_new(path: &Path, content: &[u8], overwrite: bool) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if overwrite {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Names come from plugins and scripts: whatever could leave the folder becomes `_`.
fn plain_name(name: &str) -> String {
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() || "-_.".contains(letter) {
            letter
        } else {
            '_'
        }
    };
    let name: String = name.chars().map(plain).collect();
    if name.trim_matches('.').is_empty() {
        "attachment".to_owned()
    } else {
        name
    }
}

fn say(document: &Document, took: Duration, output: &Output) -> anyhow::Result<()> {
    let total: u64 = document.disks.iter().map(|disk| disk.size_bytes).sum();
    let taken = document
        .taken_at
        .map(|at| format!(" of {}", time(at)))
        .unwrap_or_default();
    let verified = match document.damaged.is_empty() {
        true => "every byte verified",
        false => "without what is damaged",
    };
    output.line(format!(
        "Restored {}@{}{taken} ({} consistent): {}, {} in {}, {verified}",
        document.machine,
        document.point,
        document.consistency,
        count(document.disks.len(), "disk"),
        size(total),
        span(took),
    ))?;
    for disk in &document.disks {
        let written = size(disk.written_bytes);
        output.line(format!(
            "  {} -> {} ({}, {written} written)",
            disk.id,
            disk.path.display(),
            size(disk.size_bytes)
        ))?;
    }
    for attachment in &document.attachments {
        output.line(format!("  {} -> {}", attachment.name, attachment.path.display()))?;
    }
    Ok(())
}

/// What --skip-damaged has left out, a line each: it is what somebody must act upon.
fn damaged(document: &Document) -> String {
    let mut text = String::new();
    for part in document.damaged.iter().take(DAMAGED_SHOWN) {
        match (&part.disk, part.offset_bytes, part.length_bytes) {
            (Some(disk), Some(offset), Some(length)) => text.push_str(&format!(
                "damaged: disk {disk}, bytes {offset} to {}: zeroes ({})\n",
                offset + length,
                part.what
            )),
            _ => text.push_str(&format!(
                "damaged: attachment {}: left out ({})\n",
                part.attachment.as_deref().unwrap_or_default(),
                part.what
            )),
        }
    }
    if document.damaged.len() > DAMAGED_SHOWN {
        let more = document.damaged.len() - DAMAGED_SHOWN;
        text.push_str(&format!("and {more} more, which --json names\n"));
    }
    let zeroes = document
        .damaged
        .iter()
        .filter_map(|part| part.length_bytes)
        .sum::<u64>();
    text.push_str(&format!(
        "NOT WHOLE: {} left out, {} of zeroes instead\n",
        count(document.damaged.len(), "part"),
        size(zeroes)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_told() {
        let part = |offset_bytes| DamagedPart {
            disk: Some("vda".to_owned()),
            attachment: None,
            offset_bytes: Some(offset_bytes),
            length_bytes: Some(4096),
            what: "read disk vda from the vault: pack 00000001/00000000/00000001 is not in the vault".to_owned(),
        };
        let mut document = Document {
            vault: "main".to_owned(),
            machine: "web01".to_owned(),
            point: 3,
            taken_at: None,
            consistency: "crash".to_owned(),
            disks: Vec::new(),
            attachments: Vec::new(),
            damaged: vec![
                part(131_072),
                DamagedPart {
                    disk: None,
                    attachment: Some("domain.xml".to_owned()),
                    offset_bytes: None,
                    length_bytes: None,
                    what: "chunk 00 is not in the vault".to_owned(),
                },
            ],
            duration_ms: 0,
        };
        insta::assert_snapshot!(damaged(&document), @r"
        damaged: disk vda, bytes 131072 to 135168: zeroes (read disk vda from the vault: pack 00000001/00000000/00000001 is not in the vault)
        damaged: attachment domain.xml: left out (chunk 00 is not in the vault)
        NOT WHOLE: 2 parts left out, 4 KiB of zeroes instead
        ");
        document.damaged = (0..30).map(|number| part(number * 8192)).collect();
        let told = damaged(&document);
        assert!(told.contains("and 10 more, which --json names"), "{told}");
    }

    #[test]
    fn an_attachment_stays_in_its_folder() {
        for (name, plain) in [
            ("domain.xml", "domain.xml"),
            ("../../etc/passwd", ".._.._etc_passwd"),
            ("..", "attachment"),
            ("", "attachment"),
            ("a/b", "a_b"),
        ] {
            assert_eq!(plain_name(name), plain);
        }
    }
}
