//! `coffre clean VAULT`.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use coffre_engine::config::Config;
use coffre_vault::{
    Amount, CleanPlan, CleanProgress, CleanReport, CleanStage, Refused, RefusedKind, SessionName, Waiting,
};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{CleanArgs, Global};
use crate::exit::Exit;
use crate::output::{Output, count, size, span, time};
use crate::progress::{Style, View, Watch};
use crate::{book, wire};

/// A store that refuses everything says so about every object; a few of them tell as much. `--json` has them all.
const REFUSED_SHOWN: usize = 5;

#[derive(Serialize)]
struct Document {
    vault: String,
    dry_run: bool,
    judged_at: Timestamp,
    packs_before: AmountShape,
    purged: Vec<PointShape>,
    fenced: Vec<SessionShape>,
    repacked_chunks: u64,
    repacked: AmountShape,
    deleted: AmountShape,
    deleted_pieces: u64,
    written_pieces: u64,
    condemned: AmountShape,
    waiting: Vec<WaitingShape>,
    too_young: AmountShape,
    left_for_later: AmountShape,
    refused: Vec<RefusedShape>,
    damaged: Vec<DamagedShape>,
    checkpoint: Option<u32>,
    duration_ms: u64,
}

#[derive(Serialize)]
struct AmountShape {
    packs: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct PointShape {
    machine: String,
    point: u32,
}

#[derive(Serialize)]
struct SessionShape {
    /// Null: a clean-up's own.
    machine: Option<String>,
    session: u32,
    host: String,
    fenced_from: Timestamp,
}

#[derive(Serialize)]
struct WaitingShape {
    packs: u64,
    bytes: u64,
    waits_for: Vec<SessionShape>,
}

#[derive(Serialize)]
struct RefusedShape {
    object: String,
    bytes: u64,
    why: String,
    kind: &'static str,
}

#[derive(Serialize)]
struct DamagedShape {
    chunk: String,
    pack: String,
    what: String,
}

/// What the book has of the vault changes with it.
fn remember(config: &Config, vault: &str, report: &CleanReport) {
    book::tell(config, "what was purged", |book| {
        for point in &report.purged {
            book.drop_point(vault, &point.machine, point.point.0)?;
        }
        let bytes = report.packs_before.bytes.saturating_sub(report.deleted.bytes) + report.repacked.bytes;
        book.write_vault(vault, bytes, report.judged_at)
    });
}

pub async fn run(args: &CleanArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let vault = wire::open_vault(&config, &args.vault).await?.vault;
    let default = CleanPlan::default();
    let plan = CleanPlan {
        dry_run: args.dry_run,
        force: args.force,
        minimum_age: args.minimum_age.unwrap_or(default.minimum_age),
        undelete_for: args.undelete_for.unwrap_or(config.vault(&args.vault)?.undelete_for),
        host: wire::host(),
    };
    let started = Instant::now();
    let seen: Arc<Mutex<Option<CleanProgress>>> = Arc::default();
    let look = {
        let seen = seen.clone();
        move || view(*seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    };
    let watch = Watch::start(Style::choose(output, false), &format!("clean {}", args.vault), look);
    let progress = |progress| *seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(progress);
    let report = vault.clean(&plan, &progress).await;
    watch.finish();
    let report = report.with_context(|| format!("cannot clean vault `{}`", args.vault))?;
    let took = started.elapsed();
    if !report.dry_run {
        remember(&config, &args.vault, &report);
    }

    let text = describe(&args.vault, &report);
    if report.dry_run {
        output.result(text)?;
    } else {
        output.line(text.trim_end())?;
        output.line(format!("done in {}", span(took)))?;
    }
    output.result(complain(&report))?;
    output.document(&document(&args.vault, &report, took.as_millis() as u64))?;
    Ok(exit(&report))
}

/// What a lock holds back is as it should be. What is not allowed, or failed, somebody should know of.
fn exit(report: &CleanReport) -> Exit {
    let refused = |kind| report.refused.iter().any(|refused| refused.kind == kind);
    if !report.damaged.is_empty() {
        Exit::Failed
    } else if refused(RefusedKind::Denied) {
        Exit::Denied
    } else if refused(RefusedKind::Failed) {
        Exit::TryAgain
    } else {
        Exit::Done
    }
}

fn view(progress: Option<CleanProgress>) -> View {
    let phase = progress.map_or_else(String::new, |progress| {
        let stage = match progress.stage {
            CleanStage::Surveying => "reading what the machines have",
            CleanStage::Marking => "following the maps of points",
            CleanStage::Repacking => "moving what is needed",
            CleanStage::Relisting => "writing the index",
            CleanStage::Deleting => "deleting",
            CleanStage::Condemning => "choosing what goes next",
        };
        match progress.total {
            0 => stage.to_owned(),
            total => format!("{stage}: {} of {total}", progress.done),
        }
    });
    View {
        phase,
        disks: Vec::new(),
    }
}

fn amount(amount: Amount) -> String {
    format!("{} ({})", count(amount.packs as usize, "pack"), size(amount.bytes))
}

/// What was done, or would be; one line each, and none for what was not.
fn describe(vault: &str, report: &CleanReport) -> String {
    let would = |done: &str| {
        if report.dry_run {
            format!("would be {done}")
        } else {
            done.to_owned()
        }
    };
    let mut lines = Vec::new();
    if report.dry_run {
        let clock = "by this host's clock, since a dry run writes nothing that the store could date";
        lines.push(format!("{vault}: a dry run, {} {clock}", time(report.judged_at)));
    }
    for point in &report.purged {
        lines.push(format!("{}@{} {}", point.machine, point.point, would("purged")));
    }
    for session in &report.fenced {
        let fenced = would("fenced: it had outlived its deadline");
        lines.push(format!("{} {fenced}", name(session)));
    }
    if report.repacked_chunks > 0 {
        lines.push(format!(
            "{} {} out of {}",
            count(report.repacked_chunks as usize, "chunk"),
            would("moved"),
            count(report.repacked.packs as usize, "pack"),
        ));
    }
    if report.deleted.packs > 0 || report.deleted_pieces > 0 {
        lines.push(format!(
            "{} and {} of the index {}",
            amount(report.deleted),
            count(report.deleted_pieces as usize, "piece"),
            would("deleted"),
        ));
    }
    if report.condemned.packs > 0 {
        lines.push(format!(
            "{} {}: nothing needs them, or little of them",
            amount(report.condemned),
            would("condemned"),
        ));
    }
    for waiting in &report.waiting {
        lines.push(waits(waiting));
    }
    if report.too_young.packs > 0 {
        lines.push(format!(
            "{} not needed, and too young to be condemned",
            amount(report.too_young)
        ));
    }
    if report.left_for_later.packs > 0 {
        lines.push(format!(
            "{} left for the next clean-up: more is needed of them than one run moves",
            amount(report.left_for_later)
        ));
    }
    let before = report.packs_before;
    lines.push(format!("{vault}: {} when the clean-up began", amount(before)));
    lines.join("\n") + "\n"
}

fn waits(waiting: &Waiting) -> String {
    let what = amount(waiting.amount);
    if waiting.waits_for.is_empty() {
        return format!("{what} condemned: the next clean-up deletes them");
    }
    let sessions: Vec<String> = (waiting.waits_for.iter())
        .map(|session| format!("{} (until {} at the latest)", name(session), time(session.fenced_from)))
        .collect();
    format!("{what} condemned, and waiting for the end of {}", sessions.join(", "))
}

fn name(session: &SessionName) -> String {
    let of = if session.machine.is_empty() {
        "clean-up".to_owned()
    } else {
        format!("backup of {}", session.machine)
    };
    let host = if session.host.is_empty() {
        String::new()
    } else {
        format!(" on {}", session.host)
    };
    format!("the {of}{host} (session {})", session.session)
}

/// What somebody should know of.
fn complain(report: &CleanReport) -> String {
    let mut text = String::new();
    for kind in [RefusedKind::Locked, RefusedKind::Denied, RefusedKind::Failed] {
        let of_kind: Vec<&Refused> = report.refused.iter().filter(|refused| refused.kind == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let objects = count(of_kind.len(), "object");
        text.push_str(&match kind {
            RefusedKind::Locked => {
                format!("{objects} not deleted yet: locked by the store; a later clean-up tries again\n")
            }
            RefusedKind::Denied => format!("{objects} not deleted: who cleans may not delete there\n"),
            RefusedKind::Failed => format!("{objects} not deleted: the store failed; a later clean-up tries again\n"),
        });
        for refused in of_kind.iter().take(REFUSED_SHOWN) {
            text.push_str(&format!("  {}: {}\n", refused.object, refused.why));
        }
        if of_kind.len() > REFUSED_SHOWN {
            text.push_str(&format!("  and {} more\n", of_kind.len() - REFUSED_SHOWN));
        }
        if kind == RefusedKind::Denied {
            text.push_str("hint: docs/permissions.md says what a role that cleans needs\n");
        }
    }
    for damaged in &report.damaged {
        text.push_str(&format!(
            "damaged: chunk {} in packs/{}: {}; the pack stays\n",
            damaged.id, damaged.pack, damaged.what
        ));
    }
    if !report.damaged.is_empty() {
        text.push_str("hint: `coffre verify VAULT --read-data` names every point, disk and range that is damaged\n");
    }
    text
}

fn amount_shape(amount: Amount) -> AmountShape {
    AmountShape {
        packs: amount.packs,
        bytes: amount.bytes,
    }
}

fn session_shape(session: &SessionName) -> SessionShape {
    SessionShape {
        machine: (!session.machine.is_empty()).then(|| session.machine.clone()),
        session: session.session.0,
        host: session.host.clone(),
        fenced_from: session.fenced_from,
    }
}

fn document(vault: &str, report: &CleanReport, duration_ms: u64) -> Document {
    let purged = report.purged.iter().map(|point| PointShape {
        machine: point.machine.clone(),
        point: point.point.0,
    });
    let waiting = report.waiting.iter().map(|waiting| WaitingShape {
        packs: waiting.amount.packs,
        bytes: waiting.amount.bytes,
        waits_for: waiting.waits_for.iter().map(session_shape).collect(),
    });
    let refused = report.refused.iter().map(|refused| RefusedShape {
        object: refused.object.clone(),
        bytes: refused.bytes,
        why: refused.why.clone(),
        kind: match refused.kind {
            RefusedKind::Locked => "locked",
            RefusedKind::Denied => "denied",
            RefusedKind::Failed => "failed",
        },
    });
    let damaged = report.damaged.iter().map(|damaged| DamagedShape {
        chunk: damaged.id.to_string(),
        pack: damaged.pack.clone(),
        what: damaged.what.clone(),
    });
    Document {
        vault: vault.to_owned(),
        dry_run: report.dry_run,
        judged_at: report.judged_at,
        packs_before: amount_shape(report.packs_before),
        purged: purged.collect(),
        fenced: report.fenced.iter().map(session_shape).collect(),
        repacked_chunks: report.repacked_chunks,
        repacked: amount_shape(report.repacked),
        deleted: amount_shape(report.deleted),
        deleted_pieces: report.deleted_pieces,
        written_pieces: report.written_pieces,
        condemned: amount_shape(report.condemned),
        waiting: waiting.collect(),
        too_young: amount_shape(report.too_young),
        left_for_later: amount_shape(report.left_for_later),
        refused: refused.collect(),
        damaged: damaged.collect(),
        checkpoint: report.checkpoint,
        duration_ms,
    }
}

#[cfg(test)]
mod tests {
    use coffre_vault::{DamagedChunk, MachineNumber, PurgedPoint, SessionNumber};

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn amount_of(packs: u64, mib: u64) -> Amount {
        Amount {
            packs,
            bytes: mib << 20,
        }
    }

    fn report() -> CleanReport {
        let session = SessionName {
            machine: "db01".to_owned(),
            machine_number: MachineNumber(2),
            session: SessionNumber(7),
            host: "a".to_owned(),
            fenced_from: at("2026-11-24T02:00:00Z"),
        };
        CleanReport {
            packs_before: amount_of(40, 1200),
            purged: vec![PurgedPoint {
                machine: "web01".to_owned(),
                point: SessionNumber(3),
            }],
            fenced: vec![session.clone()],
            repacked_chunks: 12,
            repacked: amount_of(2, 3),
            deleted: amount_of(5, 150),
            deleted_pieces: 1,
            condemned: amount_of(1, 30),
            waiting: vec![
                Waiting {
                    amount: amount_of(1, 30),
                    waits_for: vec![],
                },
                Waiting {
                    amount: amount_of(3, 90),
                    waits_for: vec![session],
                },
            ],
            too_young: amount_of(2, 8),
            left_for_later: amount_of(3, 96),
            ..CleanReport::default()
        }
    }

    /// Times are local ones, so they are left out.
    fn said(report: &CleanReport) -> String {
        let text = format!("{}{}", describe("main", report), complain(report));
        let until = time(at("2026-11-24T02:00:00Z"));
        text.replace(&until, "UNTIL").replace(&time(report.judged_at), "NOW")
    }

    #[test]
    fn what_was_done_and_what_waits_is_said() {
        insta::assert_snapshot!(said(&report()), @r"
        web01@3 purged
        the backup of db01 on a (session 7) fenced: it had outlived its deadline
        12 chunks moved out of 2 packs
        5 packs (150 MiB) and 1 piece of the index deleted
        1 pack (30 MiB) condemned: nothing needs them, or little of them
        1 pack (30 MiB) condemned: the next clean-up deletes them
        3 packs (90 MiB) condemned, and waiting for the end of the backup of db01 on a (session 7) (until UNTIL at the latest)
        2 packs (8 MiB) not needed, and too young to be condemned
        3 packs (96 MiB) left for the next clean-up: more is needed of them than one run moves
        main: 40 packs (1.2 GiB) when the clean-up began
        ");
    }

    #[test]
    fn a_dry_run_says_what_would_be_done_and_by_which_clock() {
        let report = CleanReport {
            dry_run: true,
            packs_before: amount_of(1, 1),
            deleted: amount_of(1, 1),
            ..CleanReport::default()
        };
        insta::assert_snapshot!(said(&report), @r"
        main: a dry run, NOW by this host's clock, since a dry run writes nothing that the store could date
        1 pack (1 MiB) and 0 pieces of the index would be deleted
        main: 1 pack (1 MiB) when the clean-up began
        ");
    }

    fn refused(kind: RefusedKind) -> CleanReport {
        let refused = |number| Refused {
            object: format!("packs/{number}"),
            bytes: 1,
            why: "no".to_owned(),
            kind,
        };
        CleanReport {
            refused: (0..6).map(refused).collect(),
            ..CleanReport::default()
        }
    }

    #[test]
    fn a_lock_is_no_failure_and_a_missing_right_is_one() {
        assert_eq!(exit(&report()), Exit::Done);
        assert_eq!(exit(&refused(RefusedKind::Locked)), Exit::Done);
        assert_eq!(exit(&refused(RefusedKind::Denied)), Exit::Denied);
        assert_eq!(exit(&refused(RefusedKind::Failed)), Exit::TryAgain);
        insta::assert_snapshot!(complain(&refused(RefusedKind::Denied)), @r"
        6 objects not deleted: who cleans may not delete there
          packs/0: no
          packs/1: no
          packs/2: no
          packs/3: no
          packs/4: no
          and 1 more
        hint: docs/permissions.md says what a role that cleans needs
        ");
    }

    #[test]
    fn a_damaged_chunk_fails_the_run_and_is_named() {
        let report = CleanReport {
            damaged: vec![DamagedChunk {
                id: coffre_vault::ChunkId([1; 20]),
                pack: "00000001/00000002/00000003".to_owned(),
                what: "its seal is broken".to_owned(),
            }],
            ..CleanReport::default()
        };
        assert_eq!(exit(&report), Exit::Failed);
        insta::assert_snapshot!(complain(&report), @r"
        damaged: chunk 0101010101010101010101010101010101010101 in packs/00000001/00000002/00000003: its seal is broken; the pack stays
        hint: `coffre verify VAULT --read-data` names every point, disk and range that is damaged
        ");
    }
}
