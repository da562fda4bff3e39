//! `coffre jobs [list|show ID|cancel ID]`.

use std::time::Duration;

use anyhow::Context;
use coffre_engine::book::Book;
use coffre_engine::job::{self, JobView};
use coffre_engine::state::State;
use coffre_vault::StepOutcome;
use serde::Serialize;

use crate::args::{Global, JobsArgs, JobsCommand, JobsList};
use crate::exit::{Complaint, Exit};
use crate::output::{Output, held, size, span, table, time};
use crate::shape::NoteShape;
use crate::wire;

#[derive(Serialize)]
struct Document {
    jobs: Vec<JobView>,
}

pub async fn run(args: &JobsArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let state = State::new(&config.coffre.state);
    match &args.command {
        None => list(&state, &args.list, output),
        Some(JobsCommand::List(args)) => list(&state, args, output),
        Some(JobsCommand::Show { id }) => show(&state, id, output),
        Some(JobsCommand::Cancel { id }) => cancel(&state, id, output).await,
    }
}

/// Newest first.
fn list(state: &State, args: &JobsList, output: &Output) -> anyhow::Result<Exit> {
    let jobs = job::listed(&book(state)?, state, args.machine.as_deref(), args.limit)?;
    if jobs.is_empty() {
        output.line("there were no jobs yet")?;
    } else {
        let rows = jobs.iter().map(|job| {
            let took = match (job.started_at, job.ended_at) {
                (Some(start), Some(end)) => span(Duration::try_from(end.duration_since(start)).unwrap_or_default()),
                _ => String::new(),
            };
            vec![
                job.id.clone(),
                job.machine.clone(),
                job.started_at.map(time).unwrap_or_default(),
                took,
                outcome(job).to_owned(),
                job.point.map(|point| point.to_string()).unwrap_or_default(),
                size(job.changed_bytes),
                size(job.stored_bytes),
                job.error.clone().unwrap_or_default(),
            ]
        });
        let headers = [
            "JOB", "MACHINE", "STARTED", "TOOK", "OUTCOME", "POINT", "CHANGED", "STORED", "ERROR",
        ];
        output.result(table(&headers, &[3, 5, 6, 7], rows.collect()))?;
    }
    output.document(&Document { jobs })?;
    Ok(Exit::Done)
}

fn book(state: &State) -> anyhow::Result<Book> {
    Book::open(state).context("cannot open the book of what is known")
}

fn outcome(job: &JobView) -> &'static str {
    match job.outcome {
        Some(outcome) => outcome.as_str(),
        None if job.running => "running",
        None => "died",
    }
}

/// What came of a wish to cancel.
#[derive(Serialize)]
struct Cancelled {
    job: String,
    machine: String,
    /// It had ended before.
    had_ended: bool,
}

/// Asks the job to end and waits until it has.
async fn cancel(state: &State, id: &str, output: &Output) -> anyhow::Result<Exit> {
    let known = job::jobs(state, None)?;
    let meant = match known.iter().rev().find(|job| job.running && job.machine == id) {
        Some(of_machine) => Some(of_machine.clone()),
        None => job::job(state, id)?,
    };
    let job = meant.ok_or_else(|| {
        let text = format!("there is no job `{id}`, or several whose ids begin so");
        Complaint::usage(text, "`coffre jobs` lists them")
    })?;
    let had_ended = !job.running;
    if !had_ended {
        state.ask_to_cancel(&job.machine, &job.id)?;
        while job::job(state, &job.id)?.is_some_and(|job| job.running) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    output.line(match had_ended {
        true => format!("{} of {} has ended already", job.id, job.machine),
        false => format!("{} of {} has ended", job.id, job.machine),
    })?;
    output.document(&Cancelled {
        job: job.id,
        machine: job.machine,
        had_ended,
    })?;
    Ok(Exit::Done)
}

fn show(state: &State, id: &str, output: &Output) -> anyhow::Result<Exit> {
    // The journals say most; of a backup that could not begin there is none.
    let found = match job::job(state, id)? {
        None => book(state)?.job(id)?,
        found => found,
    };
    let job = found.ok_or_else(|| {
        let text = format!("there is no job `{id}`, or several whose ids begin so");
        Complaint::usage(text, "`coffre jobs` lists them")
    })?;
    output.result(describe(&job))?;
    output.document(&job)?;
    Ok(Exit::Done)
}

fn describe(job: &JobView) -> String {
    let mut text = format!("{} of {}: {}\n", job.id, job.machine, outcome(job));
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let disks: Vec<_> = job.disks.iter().map(|disk| disk.to_string()).collect();
    let facts = [
        ("started", job.started_at.map(time)),
        ("ended", job.ended_at.map(time)),
        ("vault", Some(or_dash(&job.vault))),
        ("provider", Some(or_dash(&job.provider))),
        ("policy", job.policy.clone()),
        ("point", job.point.map(|point| format!("{}@{point}", job.machine))),
        (
            "snapshot",
            job.consistency.map(|reached| format!("{reached} consistent")),
        ),
        ("held", job.held_ms.map(|ms| held(ms, job.hold_overhead_ms))),
        ("frozen", job.frozen_ms.map(|ms| span(Duration::from_millis(ms)))),
        ("disks", (!disks.is_empty()).then(|| disks.join(", "))),
        ("read", Some(size(job.read_bytes))),
        ("changed", Some(size(job.changed_bytes))),
        ("stored", Some(size(job.stored_bytes))),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            text.push_str(&format!("  {name:9} {value}\n"));
        }
    }
    for phase in &job.phases {
        let took = phase
            .duration_ms
            .map_or_else(|| "not ended".to_owned(), |ms| span(Duration::from_millis(ms)));
        text.push_str(&format!(
            "  {}  {:32} {took}\n",
            time(phase.at),
            phase.phase.to_string()
        ));
    }
    for hook in &job.hooks {
        for (step, outcome) in [("pre", &hook.pre), ("post", &hook.post)] {
            if let Some(outcome) = outcome {
                text.push_str(&format!("  hook {} {step}: {}\n", hook.name, step_text(outcome)));
                for line in outcome.output.lines() {
                    text.push_str(&format!("    {line}\n"));
                }
            }
        }
    }
    for note in &job.notes {
        let disk = note.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        text.push_str(&format!("  {}: {disk}{}\n", NoteShape::new(note).level, note.text));
    }
    if let Some(error) = &job.error {
        text.push_str(&format!("  error: {error}\n"));
    }
    if let Some(hint) = &job.hint {
        text.push_str(&format!("  hint: {hint}\n"));
    }
    if job.owes {
        text.push_str(
            "  it still owes something (a hook's post, a snapshot, a session): the machine's next backup pays it\n",
        );
    }
    if job.damaged_lines > 0 {
        text.push_str(&format!(
            "  {} lines of its journal cannot be read\n",
            job.damaged_lines
        ));
    }
    text
}

pub fn step_text(outcome: &StepOutcome) -> String {
    let took = span(Duration::from_millis(outcome.duration_ms));
    let tries = if outcome.attempts > 1 {
        format!(", {} attempts", outcome.attempts)
    } else {
        String::new()
    };
    match &outcome.error {
        None => format!("done in {took}{tries}"),
        Some(error) => format!("failed in {took}{tries}: {error}"),
    }
}
