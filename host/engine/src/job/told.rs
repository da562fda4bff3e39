//! What became of a debt after its job's process was gone is told to that job's journal.

use coffre_guard::Settlement;
use coffre_vault::{Note, NoteLevel};

use crate::clock::Clock;
use crate::journal::{Event, JobRecord, Journal, JournalError};
use crate::state::{State, StateError};

/// Whether a journal has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Yes,
    /// Nothing here has a journal of that job.
    NoSuchJob,
    /// The machine has a running job, which may be paying for it right now: tell it later.
    Busy,
}

/// Writes into the journal of the job that owed it what became of a debt.
pub fn tell(state: &State, clock: &dyn Clock, settled: &Settlement) -> Result<Told, JournalError> {
    let owner = &settled.owner;
    if owner.job.is_empty() || !state.machines()?.contains(&owner.machine) {
        return Ok(Told::NoSuchJob);
    }
    let _lock = match state.lock(&owner.machine, "telling an earlier job what became of it") {
        Ok(lock) => lock,
        Err(StateError::Busy { .. }) => return Ok(Told::Busy),
        Err(error) => return Err(error.into()),
    };
    let jobs = JobRecord::all(state, &owner.machine)?;
    let Some(job) = jobs.iter().find(|job| job.id == owner.job) else {
        return Ok(Told::NoSuchJob);
    };
    let note = Note {
        level: if settled.is_well() {
            NoteLevel::Warning
        } else {
            NoteLevel::Error
        },
        code: "guard".to_owned(),
        disk: None,
        text: settled.to_string(),
    };
    Journal::reopen(job)?.append(clock.now(), Event::Note { note })?;
    Ok(Told::Yes)
}

/// Whether jobs of the machine that died still owe something that the next one, or [`super::pay`], pays.
pub fn owes(state: &State, machine: &str) -> Result<bool, JournalError> {
    let jobs = JobRecord::all(state, machine)?;
    let died = |job: &&JobRecord| !job.running && !job.records.is_empty();
    Ok((jobs.iter().filter(died)).any(|job| job.ended().is_none() || !job.owed().is_nothing()))
}
