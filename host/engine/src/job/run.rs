//! A running job: what every stage of it needs, and how it begins and ends.

use std::any::Any;
use std::time::Instant;

use coffre_vault::{Consistency, Note, NoteLevel, Point, SessionWriter};

use super::error::{JobError, JobErrorKind};
use super::remembered::Remembered;
use super::{BackupReport, JobDeps};
use crate::config::{MachineConfig, PolicyConfig};
use crate::error_chain::Chain;
use crate::journal::{Ended, Event, JobOutcome, JobRecord, Journal, JournalError, Started, prune};
use crate::live::Live;
use crate::machine::{DiskId, Machine};
use crate::progress::Phase;
use crate::provider::{ProviderError, ProviderIdentity};
use crate::state::{MachineLock, MachineMemory, State};

pub(super) struct Run<'a> {
    pub deps: &'a JobDeps,
    pub config: &'a MachineConfig,
    /// The machine as seams are told about it.
    pub machine: Machine,
    pub policy: PolicyConfig,
    pub wanted: Consistency,
    pub provider: ProviderIdentity,
    pub id: String,
    pub state: State,
    pub memory: MachineMemory,
    pub journal: Journal,
    /// The session of this job, once there is one.
    pub writer: Option<SessionWriter>,
    /// Those that are backed up, once they are known.
    pub disks: Vec<DiskId>,
    /// What will stand in the point.
    pub notes: Vec<Note>,
    /// The first session of this job could not become a point.
    pub began_anew: bool,
    /// The fate of some point is unknown: what the provider keeps must not be touched.
    pub fate_unknown: bool,
    /// What the book is told.
    pub told: Remembered,
    started: Instant,
    _live: Live,
    _lock: MachineLock,
}

impl<'a> Run<'a> {
    /// Takes the machine's lock and starts the journal.
    pub fn begin(deps: &'a JobDeps, name: &str) -> Result<Self, JobError> {
        let started = Instant::now();
        let config = deps.config.machine(name)?;
        let state = State::new(&deps.config.coffre.state);
        let lock = state.lock(
            name,
            &format!("backup since {}", deps.clock.now().strftime("%F %T UTC")),
        )?;
        let memory = state.read_machine(name)?;
        prune(&JobRecord::all(&state, name)?);
        let (id, journal) = Journal::create(&state, name, deps.clock.now())?;
        deps.progress.begin(&id);
        let told = Remembered::of(&state, name, &config.vault, &id);
        let live = Live::show(
            &deps.config.coffre.run,
            name,
            &id,
            deps.clock.now(),
            deps.progress.clone(),
        );
        let mut run = Self {
            deps,
            config,
            machine: config.machine(),
            policy: deps.config.policy_of(config),
            wanted: deps.config.wanted(config),
            provider: deps.provider.identity(),
            id,
            state,
            memory,
            journal,
            writer: None,
            disks: Vec::new(),
            notes: Vec::new(),
            began_anew: false,
            fate_unknown: false,
            told,
            started,
            _live: live,
            _lock: lock,
        };
        run.record(Event::Started(Started {
            job: run.id.clone(),
            machine: name.to_owned(),
            vault: config.vault.clone(),
            vault_id: deps.vault.id().to_string(),
            host: deps.host.clone(),
            process: std::process::id(),
            coffre: env!("CARGO_PKG_VERSION").to_owned(),
            policy: config.policy.clone(),
            wanted: run.wanted,
            provider: run.provider.clone(),
        }))?;
        run.told.job_began();
        for note in deps.notes.clone() {
            run.note(note)?;
        }
        tracing::info!(machine = name, job = run.id, vault = config.vault, "backup begins");
        Ok(run)
    }

    /// Writes to the journal. Appending a line and waiting for the medium takes milliseconds, so it is done right here.
    pub fn record(&mut self, event: Event) -> Result<(), JournalError> {
        self.journal.append(self.deps.clock.now(), event)
    }

    /// Goes on to the next phase, unless somebody wants the job to end.
    pub fn enter(&mut self, phase: Phase) -> Result<(), JobError> {
        self.go_on()?;
        self.deps.progress.enter(phase);
        Ok(self.record(Event::Phase { phase })?)
    }

    /// As `enter`, for what has to be done in any case.
    pub fn enter_quietly(&mut self, phase: Phase) {
        if self.deps.progress.phase() != phase {
            self.deps.progress.enter(phase);
            self.record_quietly(Event::Phase { phase });
        }
    }

    /// Writes to the journal while something more important has to go on. A journal that cannot be written leaves more
    /// debts than there are, and paying twice is harmless.
    pub fn record_quietly(&mut self, event: Event) {
        if let Err(error) = self.record(event) {
            tracing::error!(job = self.id, error = %Chain(&error), "the job goes on without its journal");
        }
    }

    pub fn go_on(&self) -> Result<(), JobError> {
        if self.deps.cancel.is_cancelled() {
            return Err(JobError::Cancelled);
        }
        Ok(())
    }

    /// Says something in the point, the journal, the log and on the screen.
    pub fn note(&mut self, note: Note) -> Result<(), JobError> {
        match note.level {
            NoteLevel::Info => tracing::info!(job = self.id, code = note.code, "{}", note.text),
            NoteLevel::Warning => tracing::warn!(job = self.id, code = note.code, "{}", note.text),
            NoteLevel::Error => tracing::error!(job = self.id, code = note.code, "{}", note.text),
        }
        if note.level > NoteLevel::Info {
            self.deps.progress.note(&note.text);
        }
        self.notes.push(note.clone());
        Ok(self.record(Event::Note { note })?)
    }

    pub fn say(&mut self, level: NoteLevel, code: &str, text: String) -> Result<(), JobError> {
        self.note(Note {
            level,
            code: code.to_owned(),
            disk: None,
            text,
        })
    }

    /// As `say`, where nothing may stop what is going on.
    pub fn say_quietly(&mut self, level: NoteLevel, code: &str, text: String) {
        if let Err(error) = self.say(level, code, text) {
            tracing::error!(job = self.id, error = %Chain(&error), "a note is not in the journal");
        }
    }

    pub fn provider_failed(&self, doing: &'static str) -> impl FnOnce(ProviderError) -> JobError + use<> {
        let provider = self.provider.name.clone();
        move |source| JobError::Provider {
            provider,
            doing,
            source,
        }
    }

    pub fn bad_answer(&self, what: String) -> JobError {
        JobError::BadAnswer {
            provider: self.provider.name.clone(),
            what,
        }
    }

    /// The session cannot become a point, though nothing is wrong with the snapshot: a new one will be begun.
    pub fn once_more(&mut self, why: &JobError) -> Result<(), JobError> {
        self.began_anew = true;
        let text = format!("a new session was begun upon the same snapshot: {}", Chain(why));
        self.say(NoteLevel::Warning, "session-begun-anew", text)
    }

    /// Ends the journal of a job that was to make no point.
    pub fn end_without_point(self, result: Result<(), JobError>) -> Result<Vec<Note>, JobError> {
        let outcome = match &result {
            Ok(()) => JobOutcome::Done,
            Err(error) if error.kind() == JobErrorKind::Cancelled => JobOutcome::Cancelled,
            Err(_) => JobOutcome::Failed,
        };
        let notes = self.close(outcome, result.as_ref().err());
        result.map(|()| notes)
    }

    /// The same with an outcome of its own.
    pub fn close(mut self, outcome: JobOutcome, failure: Option<&JobError>) -> Vec<Note> {
        self.record_quietly(Event::Ended(ended(outcome, failure)));
        self.told.job_ended(None);
        self.deps.progress.enter(Phase::End);
        self.notes
    }

    /// Ends the journal and says how it went.
    pub fn end(mut self, result: Result<Point, JobError>) -> Result<BackupReport, JobError> {
        let stats = |of: fn(&coffre_vault::PointDisk) -> u64| {
            result
                .as_ref()
                .map_or(0, |point| point.disks.iter().map(of).sum::<u64>())
        };
        let wrong = self.notes.iter().any(|note| note.level == NoteLevel::Error);
        let outcome = match &result {
            Ok(point) if wrong || point.consistency.reached < self.wanted => JobOutcome::Downgraded,
            Ok(_) => JobOutcome::Done,
            Err(error) if error.kind() == JobErrorKind::Cancelled => JobOutcome::Cancelled,
            Err(_) => JobOutcome::Failed,
        };
        let ended = Ended {
            read_bytes: stats(|disk| disk.read_bytes),
            changed_bytes: stats(|disk| disk.changed_bytes),
            stored_bytes: result.as_ref().map_or(0, |point| point.written.stored_bytes),
            ..ended(outcome, result.as_ref().err())
        };
        self.record_quietly(Event::Ended(ended));
        self.told.job_ended(result.as_ref().ok());
        self.deps.progress.enter(Phase::End);
        let point = result?;
        Ok(BackupReport {
            job: self.id,
            machine: self.machine.name,
            vault: self.config.vault.clone(),
            outcome,
            notes: self.notes,
            elapsed: self.started.elapsed(),
            point,
        })
    }
}

fn ended(outcome: JobOutcome, failure: Option<&JobError>) -> Ended {
    Ended {
        outcome,
        error: failure.map(|error| Chain(error).to_string()),
        hint: failure.and_then(JobError::hint),
        read_bytes: 0,
        changed_bytes: 0,
        stored_bytes: 0,
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked".to_owned())
}
