//! Jobs as people look at them afterwards: what each did, when, for how long, and how it ended.

use coffre_vault::{Note, StepOutcome};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::book::{Book, BookError};
use crate::error_chain::Chain;
use crate::journal::{Event, JobOutcome, JobRecord, JournalError};
use crate::machine::{Consistency, DiskId};
use crate::progress::Phase;
use crate::state::State;

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    pub id: String,
    pub machine: String,
    pub vault: Option<String>,
    pub provider: Option<String>,
    pub policy: Option<String>,
    pub process: Option<u32>,
    pub running: bool,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// None while it runs, and where its process went away and no job has cleaned up after it yet.
    pub outcome: Option<JobOutcome>,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub consistency: Option<Consistency>,
    pub held_ms: Option<u64>,
    /// How long the machine's file systems were frozen.
    pub frozen_ms: Option<u64>,
    pub hold_overhead_ms: Option<u64>,
    /// The number of its point.
    pub point: Option<u32>,
    pub disks: Vec<DiskId>,
    pub phases: Vec<PhaseView>,
    pub hooks: Vec<HookView>,
    pub notes: Vec<Note>,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub stored_bytes: u64,
    /// It still owes something, which the machine's next job pays.
    pub owes: bool,
    pub damaged_lines: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseView {
    pub phase: Phase,
    pub at: Timestamp,
    /// None for the one that runs, or in which its process went away.
    pub duration_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookView {
    pub name: String,
    pub pre: Option<StepOutcome>,
    pub post: Option<StepOutcome>,
}

/// The jobs of one machine or all, oldest first.
pub fn jobs(state: &State, machine: Option<&str>) -> Result<Vec<JobView>, JournalError> {
    let machines = match machine {
        Some(machine) => vec![machine.to_owned()],
        None => state.machines()?,
    };
    let mut views = Vec::new();
    for machine in machines {
        views.extend(JobRecord::all(state, &machine)?.iter().map(JobView::of));
    }
    views.sort_by(|one, other| (one.started_at, &one.id).cmp(&(other.started_at, &other.id)));
    Ok(views)
}

/// The newest jobs of one machine or all, newest first, as the book has them: also backups that could not begin. Of those that had not
/// ended when they were last written there, the journal says what they are at now.
pub fn listed(book: &Book, state: &State, machine: Option<&str>, limit: usize) -> Result<Vec<JobView>, BookError> {
    let mut jobs = book.jobs(machine, limit)?;
    for job in jobs.iter_mut().filter(|job| job.outcome.is_none()) {
        match JobRecord::read(state, &job.machine, &job.id) {
            Ok(record) if !record.records.is_empty() => *job = JobView::of(&record),
            Ok(_) => {}
            Err(error) => tracing::warn!(job = job.id, "what it is at now is not known: {}", Chain(&error)),
        }
    }
    Ok(jobs)
}

/// One job by its id, or by as much of its id's beginning as is unique.
pub fn job(state: &State, id: &str) -> Result<Option<JobView>, JournalError> {
    let mut found: Vec<JobView> = jobs(state, None)?
        .into_iter()
        .filter(|job| job.id.starts_with(id))
        .collect();
    if let Some(exact) = found.iter().position(|job| job.id == id) {
        return Ok(Some(found.swap_remove(exact)));
    }
    Ok(if found.len() == 1 { found.pop() } else { None })
}

impl JobView {
    /// What a journal says.
    pub(crate) fn of(job: &JobRecord) -> Self {
        let started = job.started();
        let ended = job.ended();
        let mut view = Self {
            vault: started.map(|started| started.vault.clone()),
            provider: started.map(|started| started.provider.name.clone()),
            policy: started.and_then(|started| started.policy.clone()),
            process: started.map(|started| started.process),
            running: job.running,
            started_at: job.records.first().map(|record| record.at),
            outcome: ended.map(|ended| ended.outcome),
            error: ended.and_then(|ended| ended.error.clone()),
            hint: ended.and_then(|ended| ended.hint.clone()),
            read_bytes: ended.map_or(0, |ended| ended.read_bytes),
            changed_bytes: ended.map_or(0, |ended| ended.changed_bytes),
            stored_bytes: ended.map_or(0, |ended| ended.stored_bytes),
            owes: !job.running && !job.owed().is_nothing(),
            damaged_lines: job.damaged_lines,
            ..Self::bare(&job.id, &job.machine)
        };
        for record in &job.records {
            view.add(record.at, &record.event);
        }
        view
    }

    /// A job of which nothing but its name is known.
    pub(crate) fn bare(id: &str, machine: &str) -> Self {
        Self {
            id: id.to_owned(),
            machine: machine.to_owned(),
            vault: None,
            provider: None,
            policy: None,
            process: None,
            running: false,
            started_at: None,
            ended_at: None,
            outcome: None,
            error: None,
            hint: None,
            consistency: None,
            held_ms: None,
            frozen_ms: None,
            hold_overhead_ms: None,
            point: None,
            disks: Vec::new(),
            phases: Vec::new(),
            hooks: Vec::new(),
            notes: Vec::new(),
            read_bytes: 0,
            changed_bytes: 0,
            stored_bytes: 0,
            owes: false,
            damaged_lines: 0,
        }
    }

    fn add(&mut self, at: Timestamp, event: &Event) {
        match event {
            Event::Phase { phase } => {
                self.end_phase(at);
                self.phases.push(PhaseView {
                    phase: *phase,
                    at,
                    duration_ms: None,
                });
            }
            Event::Note { note } => self.notes.push(note.clone()),
            Event::Disks { disks } => self.disks.clone_from(disks),
            Event::HookStarting { hook } => self.hooks.push(HookView {
                name: hook.clone(),
                pre: None,
                post: None,
            }),
            Event::HookPre { hook, outcome, .. } => {
                if let Some(of) = self.hook(hook) {
                    of.pre = Some(outcome.clone());
                }
            }
            Event::HookEnded { hook, outcome } => {
                if let Some(of) = self.hook(hook) {
                    of.post = Some(outcome.clone());
                }
            }
            Event::Taken {
                consistency,
                held_ms,
                hold_overhead_ms,
                ..
            } => {
                self.consistency = Some(*consistency);
                self.held_ms = *held_ms;
                self.hold_overhead_ms = *hold_overhead_ms;
            }
            Event::Thawed { frozen_ms, .. } => self.frozen_ms = Some(*frozen_ms),
            Event::Committed { session } => self.point = Some(session.0),
            Event::Ended(_) => {
                self.end_phase(at);
                self.ended_at = Some(at);
            }
            Event::Started(_)
            | Event::Freezing { .. }
            | Event::Taking { .. }
            | Event::Released { .. }
            | Event::Session { .. }
            | Event::Committing { .. }
            | Event::SessionOver { .. } => {}
        }
    }

    fn hook(&mut self, name: &str) -> Option<&mut HookView> {
        self.hooks.iter_mut().find(|hook| hook.name == name)
    }

    fn end_phase(&mut self, at: Timestamp) {
        if let Some(last) = self.phases.last_mut() {
            let took_ms = at.as_millisecond().saturating_sub(last.at.as_millisecond());
            last.duration_ms.get_or_insert(u64::try_from(took_ms).unwrap_or(0));
        }
    }
}
