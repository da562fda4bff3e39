//! `coffre backup [MACHINE…]`.

mod due;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use coffre_engine::config::Config;
use coffre_engine::job::BackupReport;
use coffre_engine::journal::JobOutcome;
use coffre_engine::progress::{Cancel, Phase, Progress, ProgressView};
use coffre_engine::{Gate, OpenGate};
use coffre_vault::NoteLevel;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::run::WindowGate;
use crate::args::{BackupArgs, Global};
use crate::backing::Backing;
use crate::exit::{Complaint, Exit};
use crate::output::{Output, count, held, size, span};
use crate::progress::{DiskView, Style, View};
use crate::report::Report;
use crate::shape::{NoteShape, PointShape};
use crate::{book, left_behind, screen, stop, wire};
use due::Due;

#[derive(Serialize)]
struct Document {
    machines: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    machine: String,
    /// `done`, `downgraded`, `failed` or `cancelled`.
    outcome: &'static str,
    exit_code: u8,
    job: Option<String>,
    point: Option<PointShape>,
    /// Those of the point, and what was found out after it was written.
    notes: Vec<NoteShape>,
    error: Option<Report>,
    duration_ms: u64,
}

pub async fn run(args: &BackupArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = Arc::new(wire::config(global)?);
    let named = if args.due { Vec::new() } else { choose(&config, args)? };
    let unattended = args.all || args.policy.is_some() || args.due;
    let guard = wire::guard(&config);
    left_behind::settle_and_say(&config, &guard);
    let cancel = Cancel::new();
    let listening = listen(cancel.clone(), args.due);
    let (pacer, style) = (Backing::pacer(&config), Style::choose(output, unattended));
    let backing = Arc::new(Backing::new(config, guard, pacer, style)?);
    let (mut due, machines) = match args.due {
        true => {
            let (due, machines) = stop::unless(&cancel, Due::find(&backing)).await?;
            (Some(due), machines)
        }
        false => (None, named),
    };

    let at_once = Arc::new(Semaphore::new(backing.config.coffre.jobs.get()));
    let mut running = JoinSet::new();
    for (index, machine) in machines.iter().cloned().enumerate() {
        let (backing, at_once, cancel) = (backing.clone(), at_once.clone(), cancel.child());
        let gate = gate(&backing, &machine, args.due);
        running.spawn(async move {
            let _turn = at_once.acquire_owned().await;
            let (started, began) = (Instant::now(), Timestamp::now());
            let progress = Progress::new();
            let result = backing.backup(&machine, progress.clone(), cancel, gate).await;
            let job = progress.snapshot().job;
            if let (None, Err(error)) = (&job, &result) {
                book::attempt(&backing.config, &machine, began, error);
            }
            let ran = Ran {
                job,
                result,
                took: started.elapsed(),
            };
            (index, ran)
        });
    }
    let mut entries: BTreeMap<usize, Entry> = BTreeMap::new();
    while let Some(ended) = running.join_next().await {
        let (index, ran) = ended.context("a backup broke off")?;
        if let Some(due) = &mut due {
            due.ended(&backing, &machines[index], &ran.result).await;
        }
        let entry = tell(&machines[index], ran, machines.len() > 1, unattended, output)?;
        entries.insert(index, entry);
    }
    listening.abort();

    let document = Document {
        machines: entries.into_values().collect(),
    };
    output.document(&document)?;
    Ok(overall(&document.machines))
}

/// What somebody asks for by name goes now; what is due keeps to its policy's windows. The caps hold for all.
fn gate(backing: &Backing, machine: &str, due: bool) -> Arc<dyn Gate> {
    let pace = backing.pacer.share();
    match due {
        true => Arc::new(WindowGate::new(&backing.config, machine, pace)),
        false => Arc::new(OpenGate { pace: Some(pace) }),
    }
}

/// The machines that were named, or those that --all and --policy mean.
fn choose(config: &Config, args: &BackupArgs) -> anyhow::Result<Vec<String>> {
    if config.machines.is_empty() {
        let hint = "add a [machine.NAME] table; `coffre config example` shows one";
        return Err(Complaint::config("the configuration has no machines", hint).into());
    }
    let all = || config.machines.keys().cloned();
    if args.all {
        return Ok(all().collect());
    }
    if let Some(policy) = &args.policy {
        config.policy(policy)?;
        let under = |name: &String| {
            config
                .machines
                .get(name)
                .is_some_and(|machine| machine.policy.as_ref() == Some(policy))
        };
        let machines: Vec<String> = all().filter(under).collect();
        if machines.is_empty() {
            let hint = format!("add policy = \"{policy}\" to a machine's table");
            return Err(Complaint::usage(format!("no machine has the policy `{policy}`"), hint).into());
        }
        return Ok(machines);
    }
    if args.machines.is_empty() {
        if config.machines.len() == 1 {
            return Ok(all().collect());
        }
        let names: Vec<String> = all().map(|name| format!("`{name}`")).collect();
        let hint = format!("name some of {}, or say --all or --policy POLICY", names.join(", "));
        return Err(Complaint::usage("which machine?", hint).into());
    }
    let mut machines: Vec<String> = Vec::new();
    for name in &args.machines {
        config.machine(name)?;
        if !machines.contains(name) {
            machines.push(name.clone());
        }
    }
    Ok(machines)
}

/// The first wish to stop cancels all jobs; they end by themselves, with everything let go. What is due goes on later
/// with what was sent.
fn listen(cancel: Cancel, due: bool) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            if let Err(error) = stop::asked().await {
                tracing::warn!("Ctrl-C and SIGTERM will not end the jobs cleanly: {error:#}");
                return;
            }
            if cancel.is_cancelled() {
                screen::note("still stopping: hooks and snapshots are being let go");
            } else {
                screen::note("stopping: no point will be written");
                match due {
                    true => cancel.stop(),
                    false => cancel.cancel(),
                }
            }
        }
    })
}

/// What became of one machine.
struct Ran {
    /// None if it did not come so far.
    job: Option<String>,
    result: anyhow::Result<BackupReport>,
    took: Duration,
}

/// A job as a screen shows it.
pub fn view(job: &ProgressView) -> View {
    let mut phase = match job.phase {
        // Whether well or not is said by the result.
        Phase::End => "ended".to_owned(),
        phase => phase.to_string(),
    };
    if let Some(step) = &job.step {
        phase.push_str(&format!(" ({step})"));
    }
    let disks = job.disks.iter().map(|disk| DiskView {
        name: disk.id.to_string(),
        total_bytes: disk.to_read_bytes,
        done_bytes: disk.read_bytes,
        changed_bytes: Some(disk.changed_bytes),
        stored_bytes: Some(disk.stored_bytes),
        finished: disk.finished,
    });
    View {
        phase,
        disks: disks.collect(),
    }
}

/// Says what became of one machine, and keeps it for the document.
fn tell(machine: &str, ran: Ran, several: bool, unattended: bool, output: &Output) -> anyhow::Result<Entry> {
    let mut entry = Entry {
        machine: machine.to_owned(),
        outcome: "done",
        exit_code: Exit::Done.code(),
        job: ran.job,
        point: None,
        notes: Vec::new(),
        error: None,
        duration_ms: ran.took.as_millis() as u64,
    };
    match ran.result {
        Ok(report) => {
            if report.outcome == JobOutcome::Downgraded {
                entry.outcome = "downgraded";
                entry.exit_code = Exit::Downgraded.code();
            }
            let serious =
                report.outcome != JobOutcome::Done || report.notes.iter().any(|note| note.level != NoteLevel::Info);
            // Silence of a cron job means that all is well.
            if serious || !unattended || output.terminal || output.verbose > 0 {
                let text = lines(&report, output.verbose > 0).join("\n");
                // Bad news is said however quiet.
                if serious {
                    output.result(text + "\n")?
                } else {
                    output.line(text)?
                }
            }
            entry.point = Some(PointShape::new(&report.vault, &report.point));
            entry.notes = report.notes.iter().map(NoteShape::new).collect();
        }
        Err(error) => {
            let shown = Report::new(&error);
            let about = if several { format!("{machine}: ") } else { String::new() };
            entry.exit_code = shown.exit_code;
            if shown.exit == Exit::Cancelled {
                entry.outcome = "cancelled";
                screen::note(&format!("{machine}: cancelled, no point was written"));
            } else {
                entry.outcome = "failed";
                screen::above(shown.render_for(&about, output.colour()).as_bytes());
            }
            entry.error = Some(shown);
        }
    }
    Ok(entry)
}

fn lines(report: &BackupReport, all: bool) -> Vec<String> {
    let point = &report.point;
    let shape = PointShape::new(&report.vault, point);
    let mut lines = vec![format!(
        "{}@{}: {} consistent, {}, changed {} of {}, stored {}, in {}",
        point.machine,
        point.number,
        shape.consistency,
        count(point.disks.len(), "disk"),
        size(shape.changed_bytes),
        size(shape.size_bytes),
        size(shape.stored_bytes),
        span(report.elapsed),
    )];
    if point.consistency.reached < point.consistency.wanted {
        lines.push(format!(
            "  DOWNGRADED from {}: {}",
            point.consistency.wanted, point.consistency.reason
        ));
    } else if all {
        lines.push(format!("  {}", point.consistency.reason));
    }
    for disk in &point.disks {
        lines.push(format!(
            "  {}: read {}, changed {}, stored {} ({}: {})",
            disk.id,
            size(disk.read_bytes),
            size(disk.changed_bytes),
            size(disk.stored_bytes),
            disk.compared.how,
            disk.compared.why,
        ));
    }
    if !point.hooks.is_empty() {
        let names: Vec<_> = point.hooks.iter().map(|hook| hook.name.as_str()).collect();
        let of_them = point
            .held_ms
            .map(|ms| format!(", applications held {}", held(ms, point.hold_overhead_ms)));
        lines.push(format!("  hooks: {}{}", names.join(", "), of_them.unwrap_or_default()));
    }
    // What the second line says already.
    let notes = report.notes.iter().filter(|note| note.code != "downgraded");
    for note in notes.filter(|note| all || note.level != NoteLevel::Info) {
        let level = NoteShape::new(note).level;
        let disk = note.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        lines.push(format!("  {level}: {disk}{}", note.text));
    }
    lines
}

/// One machine's own code; of several: cancelled, else failed or some failed, else downgraded, else done.
fn overall(entries: &[Entry]) -> Exit {
    let with = |exit: Exit| entries.iter().filter(|entry| entry.exit_code == exit.code()).count();
    let good = with(Exit::Done) + with(Exit::Downgraded);
    if with(Exit::Cancelled) > 0 {
        Exit::Cancelled
    } else if let [entry] = entries
        && let Some(error) = &entry.error
    {
        error.exit
    } else if good == entries.len() {
        if with(Exit::Downgraded) > 0 {
            Exit::Downgraded
        } else {
            Exit::Done
        }
    } else if good > 0 {
        Exit::SomeFailed
    } else {
        Exit::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overall_of(exits: &[Exit]) -> Exit {
        let entry = |exit: &Exit| Entry {
            machine: "web01".to_owned(),
            outcome: "",
            exit_code: exit.code(),
            job: None,
            point: None,
            notes: Vec::new(),
            error: (exit.code() != 0 && *exit != Exit::Downgraded).then(|| Report {
                message: String::new(),
                causes: Vec::new(),
                hints: Vec::new(),
                exit_code: exit.code(),
                exit: *exit,
            }),
            duration_ms: 0,
        };
        overall(&exits.iter().map(entry).collect::<Vec<_>>())
    }

    #[test]
    fn the_exit_code_of_several_machines_is_that_of_the_worst_news() {
        assert_eq!(overall_of(&[Exit::Done]), Exit::Done);
        assert_eq!(overall_of(&[Exit::Denied]), Exit::Denied);
        assert_eq!(overall_of(&[Exit::Done, Exit::Downgraded]), Exit::Downgraded);
        assert_eq!(
            overall_of(&[Exit::Done, Exit::TryAgain, Exit::Downgraded]),
            Exit::SomeFailed
        );
        assert_eq!(overall_of(&[Exit::Failed, Exit::TryAgain]), Exit::Failed);
        assert_eq!(overall_of(&[Exit::Done, Exit::Cancelled]), Exit::Cancelled);
    }
}
