//! `coffre verify VAULT`.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Context;
use coffre_vault::{Damage, Mended, ReadData, VerifyPlan, VerifyProgress, VerifyReport};
use serde::Serialize;

use crate::args::{Global, VerifyArgs};
use crate::exit::{Complaint, Exit};
use crate::output::{Output, count, size, span};
use crate::progress::{Style, View, Watch};
use crate::wire;

/// A disk damaged in many places gets this many of its ranges said; `--json` has them all.
const RANGES_SHOWN: usize = 4;

#[derive(Serialize)]
struct Document {
    vault: String,
    read_data: bool,
    /// Of the packs, in percent, if not all were to be read.
    read_part: Option<String>,
    sound: bool,
    points: u64,
    packs: u64,
    packs_read: u64,
    chunks: u64,
    read_bytes: u64,
    duration_ms: u64,
    damage: Vec<DamageShape>,
    /// Damaged, and whole again by its parity.
    mended: Vec<MendedShape>,
    /// By this run.
    quarantined: Vec<String>,
    /// Why it could not be.
    not_quarantined: Option<String>,
}

#[derive(Serialize)]
struct DamageShape {
    object: String,
    what: String,
    touches: Vec<TouchedShape>,
}

#[derive(Serialize)]
struct MendedShape {
    object: String,
    blocks: u64,
}

#[derive(Serialize)]
struct TouchedShape {
    machine: String,
    point: u32,
    disk: Option<String>,
    ranges: Vec<RangeShape>,
}

#[derive(Serialize)]
struct RangeShape {
    offset_bytes: u64,
    length_bytes: u64,
}

pub async fn run(args: &VerifyArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let vault = wire::open_vault(&config, &args.vault).await?.vault;
    let machine = match &args.machine {
        None => None,
        Some(name) => Some(vault.machine(name).await?.ok_or_else(|| {
            let text = format!("vault `{}` has no machine `{name}`", args.vault);
            Complaint::usage(
                text,
                format!("`coffre points --vault {}` lists what it has", args.vault),
            )
        })?),
    };
    let started = Instant::now();
    let seen = Arc::new(Mutex::new(VerifyProgress::default()));
    let look = {
        let seen = seen.clone();
        move || view(*seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    };
    let watch = Watch::start(Style::choose(output, false), &format!("verify {}", args.vault), look);
    let plan = VerifyPlan {
        machine,
        read: match args.read_data {
            None => ReadData::No,
            Some(all) if all.is_all() => ReadData::All,
            Some(part) => ReadData::Part(part),
        },
        quarantine: !args.no_quarantine,
    };
    let progress = |progress| *seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = progress;
    let report = vault.verify(plan, &progress).await;
    watch.finish();
    let report = report.with_context(|| format!("cannot verify vault `{}`", args.vault))?;
    let took = started.elapsed();

    for damage in &report.damage {
        output.result(describe(damage))?;
    }
    for mended in &report.mended {
        output.result(describe_mended(mended))?;
    }
    output.line(format!(
        "{}: {}, {}, {} chunks {} ({} in {})",
        args.vault,
        count(report.points as usize, "point"),
        count(report.packs as usize, "pack"),
        report.chunks,
        how_read(args, &report),
        size(report.read_bytes),
        span(took),
    ))?;
    output.document(&document(args, &report, took.as_millis() as u64))?;
    if report.is_sound() {
        output.line("sound")?;
        if !report.mended.is_empty() {
            output.line("hint: a disk that has damaged one pack will damage others; look at it (`smartctl -a`)")?;
        }
        return Ok(Exit::Done);
    }
    output.result(format!("DAMAGED: {} found\n", count(report.damage.len(), "defect")))?;
    what_now(&args.vault, &report, output)?;
    Ok(Exit::Failed)
}

fn how_read(args: &VerifyArgs, report: &VerifyReport) -> String {
    match args.read_data {
        None => "checked without reading the data".to_owned(),
        Some(all) if all.is_all() => "read and checked".to_owned(),
        Some(part) => format!(
            "checked, {} read: {part} of the data, all of it in {} runs",
            count(report.packs_read as usize, "pack"),
            part.runs_for_all()
        ),
    }
}

fn what_now(vault: &str, report: &VerifyReport, output: &Output) -> anyhow::Result<()> {
    if !report.quarantined.is_empty() {
        output.line(format!(
            "{} quarantined: nothing new relies on what is there",
            count(report.quarantined.len(), "pack")
        ))?;
    }
    if let Some(why) = &report.not_quarantined {
        output.result(format!("not quarantined, so later backups may rely on it: {why}\n"))?;
    }
    for hint in hints(vault, &report.damage) {
        output.line(format!("hint: {hint}"))?;
    }
    Ok(())
}

/// What to do about each kind of damage that there is.
fn hints(vault: &str, damage: &[Damage]) -> Vec<String> {
    let any = |begins: &[&str]| {
        damage
            .iter()
            .any(|damage| begins.iter().any(|begin| damage.object.starts_with(begin)))
    };
    let mut hints = Vec::new();
    if any(&["index/", "chunk "]) {
        hints.push(format!(
            "`coffre repair index {vault}` lists again what lies in packs that no piece of the index lists"
        ));
    }
    if any(&["packs/", "chunk ", "node "]) {
        hints.push(
            "the next `coffre backup` of a machine that still has the damaged bytes stores them again".to_owned(),
        );
    }
    if any(&["gclog/"]) {
        hints.push(format!(
            "`coffre repair log {vault}` writes down anew what the clean-up log says; backups and clean-ups may stop until then"
        ));
    }
    if any(&["points/"]) {
        hints.push(
            "a point whose record is damaged cannot be restored, and clean-ups stop until it is forgotten (`coffre forget \
             MACHINE@POINT`) and purged"
                .to_owned(),
        );
    }
    if any(&["points/", "sessions/", "machines/", "fates/", "gclog/", "format"]) {
        hints.push("records are written once: if the store keeps versions, restore the object from them".to_owned());
    }
    hints
}

fn view(progress: VerifyProgress) -> View {
    let mut phase = format!(
        "{} of {} points, {} of {} packs, {} read",
        progress.points_done,
        progress.points_total,
        progress.packs_done,
        progress.packs_total,
        size(progress.read_bytes),
    );
    if progress.damage_found > 0 {
        phase.push_str(&format!(", {}", count(progress.damage_found as usize, "defect")));
    }
    View {
        phase,
        disks: Vec::new(),
    }
}

fn describe_mended(mended: &Mended) -> String {
    let blocks = count(mended.blocks as usize, "block");
    format!("mended: {}: {blocks} of 4 KiB, by its parity\n", mended.object)
}

fn describe(damage: &Damage) -> String {
    let mut text = format!("damaged: {}: {}\n", damage.object, damage.what);
    for touched in &damage.touches {
        text.push_str(&format!("  touches {}@{}", touched.machine, touched.point));
        if let Some(disk) = &touched.disk {
            text.push_str(&format!(", disk {disk}"));
        }
        for range in touched.ranges.iter().take(RANGES_SHOWN) {
            text.push_str(&format!(", bytes {} to {}", range.start, range.end));
        }
        if touched.ranges.len() > RANGES_SHOWN {
            text.push_str(&format!(" and {} more ranges", touched.ranges.len() - RANGES_SHOWN));
        }
        text.push('\n');
    }
    text
}

fn document(args: &VerifyArgs, report: &VerifyReport, duration_ms: u64) -> Document {
    let damage = report.damage.iter().map(|damage| DamageShape {
        object: damage.object.clone(),
        what: damage.what.clone(),
        touches: (damage.touches.iter())
            .map(|touched| TouchedShape {
                machine: touched.machine.clone(),
                point: touched.point.0,
                disk: touched.disk.clone(),
                ranges: (touched.ranges.iter())
                    .map(|range| RangeShape {
                        offset_bytes: range.start,
                        length_bytes: range.end - range.start,
                    })
                    .collect(),
            })
            .collect(),
    });
    Document {
        vault: args.vault.clone(),
        read_data: args.read_data.is_some(),
        read_part: (args.read_data.filter(|part| !part.is_all())).map(|part| part.to_string()),
        sound: report.is_sound(),
        points: report.points,
        packs: report.packs,
        packs_read: report.packs_read,
        chunks: report.chunks,
        read_bytes: report.read_bytes,
        duration_ms,
        damage: damage.collect(),
        mended: (report.mended.iter())
            .map(|mended| MendedShape {
                object: mended.object.clone(),
                blocks: mended.blocks,
            })
            .collect(),
        quarantined: report.quarantined.clone(),
        not_quarantined: report.not_quarantined.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_damage_has_a_hint() {
        for object in [
            "packs/00000001/00000000/00000000",
            "index/00000001/00000000/00000000",
            "chunk 00",
            "node 00",
            "gclog/00000000",
            "points/00000001/00000000",
            "sessions/00000001/00000000",
            "machines/00000001",
            "fates/00000001/00000000/00000000",
            "format",
        ] {
            let damage = Damage {
                object: object.to_owned(),
                what: String::new(),
                touches: Vec::new(),
            };
            assert!(!hints("main", &[damage]).is_empty(), "{object}");
        }
    }
}
