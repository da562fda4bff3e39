//! What commands write into the book. It serves those who look: no command fails because it cannot be written.

use coffre_engine::Chain;
use coffre_engine::book::{Attempt, Book, BookError};
use coffre_engine::config::Config;
use coffre_engine::job::JobError;
use coffre_engine::journal::JobOutcome;
use coffre_engine::state::{State, StateError};
use coffre_vault::Point;
use jiff::Timestamp;

use crate::exit::Exit;
use crate::report::Report;
use crate::wire::NamedVault;

/// Opens the book and does something with it; what stands in the way is only said.
pub fn tell(config: &Config, what: &str, tell: impl FnOnce(&Book) -> Result<(), BookError>) {
    let told = Book::open(&State::new(&config.coffre.state)).and_then(|book| tell(&book));
    if let Err(error) = told {
        tracing::warn!("{what} is not in the book: {}", Chain(&error));
    }
}

/// All points of a machine, just read in a vault.
pub fn points(config: &Config, vault: &str, machine: &str, points: &[Point]) {
    tell(config, "what the vault has", |book| {
        book.write_points(vault, machine, points, Timestamp::now())
    });
}

/// A backup that ended before there was a job. One that only found another job of the machine running is none.
pub fn attempt(config: &Config, machine: &str, started_at: Timestamp, error: &anyhow::Error) {
    let report = Report::new(error);
    let outcome = match report.exit {
        _ if is_busy(error) => return,
        Exit::Cancelled => JobOutcome::Cancelled,
        _ => JobOutcome::Failed,
    };
    let known = config.machine(machine).ok();
    let attempt = Attempt {
        machine: machine.to_owned(),
        vault: known.map(|machine| machine.vault.clone()),
        policy: known.and_then(|machine| machine.policy.clone()),
        started_at,
        ended_at: Timestamp::now(),
        outcome,
        error: format!("{error:#}"),
        hint: report.hints.first().cloned(),
    };
    tell(config, "a backup that could not begin", |book| {
        book.write_attempt(&attempt).map(drop)
    });
}

fn is_busy(error: &anyhow::Error) -> bool {
    let busy = |error: &JobError| matches!(error, JobError::State(StateError::Busy { .. }));
    error.chain().any(|cause| cause.downcast_ref().is_some_and(busy))
}

/// Reads the points of machines in an open vault into the book.
pub async fn read_points(book: &Book, vault: &NamedVault, machines: &[&str]) -> anyhow::Result<()> {
    let there = vault.vault.machines().await?;
    for machine in machines {
        // That it has none is worth knowing, too.
        let points = match there.iter().find(|(_, name)| name == machine) {
            Some((number, _)) => vault.vault.points(*number).await?,
            None => Vec::new(),
        };
        book.write_points(&vault.name, machine, &points, Timestamp::now())?;
    }
    Ok(())
}
