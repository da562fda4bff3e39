//! `coffre doctor`: undoes what was left behind, and shows that writes work.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coffre_engine::OpenGate;
use coffre_engine::config::Config;
use coffre_engine::job;
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::state::State;
use coffre_guard::{Guard, Proof, Shelter, prove};
use serde::Serialize;

use crate::args::Global;
use crate::exit::Exit;
use crate::left_behind::{self, of};
use crate::machine::Parts;
use crate::output::Output;
use crate::report::Report;
use crate::shape::NoteShape;
use crate::{plugins, rehearsals, screen, wire};

/// A file system that is well takes a write within milliseconds, a busy one within seconds.
const PROVED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Document {
    ok: bool,
    left_behind: Vec<Left>,
    /// What processes that run owe: it is theirs to pay.
    owed_by_running: usize,
    guard: GuardShape,
    file_systems: Vec<FileSystem>,
    machines: Vec<Paid>,
    /// Ledgers that cannot be read.
    unreadable: Vec<String>,
}

#[derive(Serialize)]
struct Left {
    machine: String,
    job: String,
    ok: bool,
    text: String,
}

#[derive(Serialize)]
struct GuardShape {
    ok: bool,
    memory_locked: bool,
    last_for_oom: bool,
    own_group: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct FileSystem {
    machine: String,
    mount: PathBuf,
    ok: bool,
    text: String,
}

/// A machine whose earlier jobs owed something that is in no ledger: posts, sessions, snapshots.
#[derive(Serialize)]
struct Paid {
    machine: String,
    ok: bool,
    notes: Vec<NoteShape>,
    error: Option<Report>,
}

pub async fn run(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = Arc::new(wire::config(global)?);
    let guard = wire::guard(&config);
    let found = left_behind::settle_and_tell(&config, &guard);
    let mut document = Document {
        ok: found.unreadable.is_empty(),
        left_behind: Vec::new(),
        owed_by_running: found.running,
        guard: look_at(&guard),
        file_systems: Vec::new(),
        machines: Vec::new(),
        unreadable: found.unreadable,
    };
    for settled in &found.settled {
        output.result(format!("left behind: {}{settled}\n", of(settled)))?;
        document.left_behind.push(Left {
            machine: settled.owner.machine.clone(),
            job: settled.owner.job.clone(),
            ok: settled.is_well(),
            text: settled.to_string(),
        });
    }
    for path in &found.kept_in {
        let text = format!(
            "hint: mend the cause and run this again; {} keeps what is owed",
            path.display()
        );
        screen::note(&text);
    }
    for text in &document.unreadable {
        output.result(format!("cannot be read: {text}\n"))?;
    }
    document.machines = pay_jobs(&config, &guard, output).await?;
    document.file_systems = write_to_all(&config, &guard, output)?;
    say_guard(&document.guard, output)?;
    document.ok &= document.guard.ok
        && document.left_behind.iter().all(|left| left.ok)
        && document.file_systems.iter().all(|system| system.ok)
        && document.machines.iter().all(|paid| paid.ok);
    if document.owed_by_running > 0 {
        output.line("what processes that run owe is theirs to pay; it was left alone")?;
    }
    output.line(if document.ok { "all is well" } else { "NOT all is well" })?;
    output.document(&document)?;
    Ok(if document.ok { Exit::Done } else { Exit::Failed })
}

/// Pays what the journals of jobs that died say is owed, as the machine's next backup would.
async fn pay_jobs(config: &Arc<Config>, guard: &Guard, output: &Output) -> anyhow::Result<Vec<Paid>> {
    let state = State::new(&config.coffre.state);
    let mut all = Vec::new();
    for machine in config.machines.values() {
        let owes = job::owes(&state, &machine.name)?;
        let tried = rehearsals::pay(config, guard, machine).await;
        if !owes && matches!(tried, Ok(None)) {
            continue;
        }
        let paid = async {
            let mut notes = tried?.unwrap_or_default();
            if !owes {
                return Ok(notes);
            }
            let catalog = plugins::catalog(config, guard)?;
            let parts = Parts::load(config, &catalog, guard, machine).await?;
            let vault = wire::open_vault(config, &machine.vault).await?.vault;
            let deps = parts.into_deps(
                config.clone(),
                vault,
                Progress::new(),
                Cancel::new(),
                Arc::new(OpenGate::default()),
            );
            notes.extend(job::pay(&deps, &machine.name).await?);
            anyhow::Ok(notes)
        };
        let name = machine.name.clone();
        let (notes, error) = match paid.await {
            Ok(notes) => (notes, None),
            Err(error) => (
                Vec::new(),
                Some(Report::new(&error.context(format!("pay what {name} owes")))),
            ),
        };
        for note in &notes {
            output.result(format!("{name}: {}\n", note.text))?;
        }
        if let Some(error) = &error {
            screen::above(error.render(output.colour()).as_bytes());
        }
        let serious = notes.iter().any(|note| note.level == coffre_vault::NoteLevel::Error);
        all.push(Paid {
            machine: name,
            ok: error.is_none() && !serious,
            notes: notes.iter().map(NoteShape::new).collect(),
            error,
        });
    }
    Ok(all)
}

/// Writes to every file system that a machine's backup may freeze.
fn write_to_all(config: &Config, guard: &Guard, output: &Output) -> anyhow::Result<Vec<FileSystem>> {
    let mut all = Vec::new();
    for machine in config.machines.values() {
        for mount in &machine.freeze {
            let (ok, text) = match prove(&guard.config().program, mount, PROVED_WITHIN) {
                Proof::Writes { .. } => (true, "takes writes".to_owned()),
                Proof::ReadOnly => (true, "is mounted read-only".to_owned()),
                Proof::Blocked { after } => (
                    false,
                    format!(
                        "takes NO writes: one had not ended after {:.0} s; if nothing of yours froze it: fsfreeze --unfreeze {}",
                        after.as_secs_f64(),
                        mount.display()
                    ),
                ),
                Proof::Failed(error) => (false, format!("could not be written to: {error}")),
            };
            output.result(format!("{}: {} {text}\n", machine.name, mount.display()))?;
            all.push(FileSystem {
                machine: machine.name.clone(),
                mount: mount.clone(),
                ok,
                text,
            });
        }
    }
    Ok(all)
}

/// Whether a guard can be had, and how well it is sheltered.
fn look_at(guard: &Guard) -> GuardShape {
    let (shelter, error) = match guard.start() {
        Ok(shelter) => (shelter, None),
        Err(error) => (Shelter::default(), Some(coffre_engine::Chain(&error).to_string())),
    };
    GuardShape {
        ok: error.is_none(),
        memory_locked: shelter.memory_locked,
        last_for_oom: shelter.last_for_oom,
        own_group: shelter.own_group,
        error,
    }
}

fn say_guard(guard: &GuardShape, output: &Output) -> anyhow::Result<()> {
    let not = |truth: bool| if truth { "" } else { "NOT " };
    output.result(match &guard.error {
        Some(error) => format!("the guard cannot be started: {error}\n"),
        None => format!(
            "the guard starts: its memory is {}locked, the OOM killer takes it {}last, it is {}in a group of its own\n",
            not(guard.memory_locked),
            not(guard.last_for_oom),
            not(guard.own_group)
        ),
    })
}
