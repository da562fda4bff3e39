//! `coffre repair index VAULT` and `coffre repair log VAULT`.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use coffre_vault::{LogRepairReport, RepairProgress, RepairReport};
use serde::Serialize;

use crate::args::{Global, RepairIndexArgs, RepairLogArgs};
use crate::exit::Exit;
use crate::output::{Output, count, span};
use crate::progress::{Style, View, Watch};
use crate::wire;

#[derive(Serialize)]
struct Document {
    vault: String,
    packs: u64,
    packs_listed: u64,
    chunks_listed: u64,
    pieces_written: u32,
    damaged_pieces: Vec<Damaged>,
    damaged_packs: Vec<Damaged>,
    duration_ms: u64,
}

#[derive(Serialize)]
struct Damaged {
    object: String,
    what: String,
}

pub async fn index(args: &RepairIndexArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let vault = wire::open_vault(&config, &args.vault).await?.vault;
    let started = Instant::now();
    let seen = Arc::new(Mutex::new(RepairProgress::default()));
    let look = {
        let seen = seen.clone();
        move || view(*seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    };
    let watch = Watch::start(
        Style::choose(output, false),
        &format!("repair index of {}", args.vault),
        look,
    );
    let progress = |progress| *seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = progress;
    let report = vault.repair_index(&wire::host(), &progress).await;
    watch.finish();
    let report = report.with_context(|| format!("cannot repair the index of vault `{}`", args.vault))?;
    let took = started.elapsed();

    for (object, what) in &report.damaged_pieces {
        output.line(format!("superseded: {object}: {what}"))?;
    }
    for (object, what) in &report.damaged_packs {
        output.result(format!("damaged: {object}: {what}\n"))?;
    }
    output.line(format!(
        "{}: {} of {} listed again ({} chunks in {}) in {}",
        args.vault,
        report.packs_listed,
        count(report.packs as usize, "pack"),
        report.chunks_listed,
        count(report.pieces_written as usize, "piece"),
        span(took),
    ))?;
    let whole = report.damaged_packs.is_empty();
    if !whole {
        output.line(format!(
            "hint: `coffre verify {}` names what these packs touch; the next backup stores again what is still to be had",
            args.vault
        ))?;
    }
    output.document(&document(args, report, took.as_millis() as u64))?;
    Ok(if whole { Exit::Done } else { Exit::Failed })
}

fn view(progress: RepairProgress) -> View {
    View {
        phase: format!("{} of {} packs", progress.packs_done, progress.packs_total),
        disks: Vec::new(),
    }
}

fn document(args: &RepairIndexArgs, report: RepairReport, duration_ms: u64) -> Document {
    let damaged = |list: Vec<(String, String)>| {
        list.into_iter()
            .map(|(object, what)| Damaged { object, what })
            .collect()
    };
    Document {
        vault: args.vault.clone(),
        packs: report.packs,
        packs_listed: report.packs_listed,
        chunks_listed: report.chunks_listed,
        pieces_written: report.pieces_written,
        damaged_pieces: damaged(report.damaged_pieces),
        damaged_packs: damaged(report.damaged_packs),
        duration_ms,
    }
}

#[derive(Serialize)]
struct LogDocument {
    vault: String,
    damaged: Vec<Damaged>,
    /// Null where nothing was damaged.
    checkpoint: Option<u32>,
}

pub async fn log(args: &RepairLogArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let vault = wire::open_vault(&config, &args.vault).await?.vault;
    let report = vault.repair_log().await;
    let report = report.with_context(|| format!("cannot repair the clean-up log of vault `{}`", args.vault))?;
    output.line(describe_log(&args.vault, &report).trim_end())?;
    output.document(&LogDocument {
        vault: args.vault.clone(),
        damaged: (report.damaged.into_iter())
            .map(|(object, what)| Damaged { object, what })
            .collect(),
        checkpoint: report.checkpoint,
    })?;
    Ok(Exit::Done)
}

fn describe_log(vault: &str, report: &LogRepairReport) -> String {
    let Some(checkpoint) = report.checkpoint else {
        return format!("{vault}: nothing that counts in the clean-up log is damaged\n");
    };
    let mut text = String::new();
    for (object, what) in &report.damaged {
        text.push_str(&format!("done without: {object}: {what}\n"));
    }
    text.push_str(&format!(
        "{vault}: what the log says stands in its record {checkpoint} now\n"
    ));
    if report.quarantine_may_be_lost {
        text.push_str(&format!(
            "hint: if it said that packs are damaged, that is forgotten; `coffre verify {vault} --read-data` finds them again\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn what_a_repaired_log_says() {
        let report = LogRepairReport {
            damaged: vec![("gclog/00000003".to_owned(), "its seal is broken".to_owned())],
            checkpoint: Some(4),
            quarantine_may_be_lost: true,
        };
        assert_snapshot!(describe_log("main", &report), @r"
        done without: gclog/00000003: its seal is broken
        main: what the log says stands in its record 4 now
        hint: if it said that packs are damaged, that is forgotten; `coffre verify main --read-data` finds them again
        ");
        assert_snapshot!(describe_log("main", &LogRepairReport::default()), @"main: nothing that counts in the clean-up log is damaged");
    }
}
