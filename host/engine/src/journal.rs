//! A job's journal: what it owes, written down before it owes it, and what became of everything.
//!
//! One JSON object per line, fsynced before the job goes on (but for `phase` and `note`, which owe nothing). What may have to be undone is a *debt*:
//!
//! | written before | owed until | by whom it is paid after a crash |
//! |---|---|---|
//! | `hook-starting`: a hook's `pre` | `hook-ended` | its `post` runs, with what `pre` remembered |
//! | `taking`: a snapshot | `released` | the provider releases it, whether or not it came to be |
//! | `session`: a session in the vault | `committed` or `session-over` | aborted, or resumed by the next job |
//! | `committing`: the commit's bytes are on disk | `committed` or `session-over` | the same bytes are sent again |
//!
//! A power cut can tear the last line: it is ignored, and cut off before anything is added. A line that cannot be read
//! further up is skipped and counted, since refusing every later backup would be worse; what it said is found again by
//! the provider's `held`.

mod owed;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coffre_vault::{Consistency, MachineNumber, Note, SessionNumber, StepOutcome};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::machine::DiskId;
use crate::progress::Phase;
use crate::provider::{ProviderIdentity, SnapshotId};
use crate::state::{State, StateError, make_folder, names_in, sync_folder};

pub use owed::{Owed, OwedHook, OwedSession};

/// Jobs kept to look at; older ones that owe nothing go.
pub(crate) const JOBS_KEPT: usize = 200;

/// Why a journal could not be written or read. A job that cannot write its journal must not go on.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{doing} the journal {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("write the journal {}", path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    State(#[from] StateError),
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Event {
    Started(Started),
    Phase {
        phase: Phase,
    },
    Note {
        note: Note,
    },
    Disks {
        disks: Vec<DiskId>,
    },
    HookStarting {
        hook: String,
    },
    /// What `pre` did, and what it wants `post` to know.
    HookPre {
        hook: String,
        outcome: StepOutcome,
        memory: Option<String>,
    },
    HookEnded {
        hook: String,
        outcome: StepOutcome,
    },
    /// These file systems are about to be frozen. That they are to be thawed is owed elsewhere: the guard's ledger.
    Freezing {
        mounts: Vec<PathBuf>,
    },
    Thawed {
        frozen_ms: u64,
        /// Every one was frozen until it was asked to be thawed, which was when the snapshot was there.
        held: bool,
    },
    Taking {
        snapshot: SnapshotId,
    },
    Taken {
        snapshot: SnapshotId,
        consistency: Consistency,
        held_ms: Option<u64>,
        hold_overhead_ms: Option<u64>,
    },
    Released {
        snapshot: SnapshotId,
    },
    Session {
        machine: MachineNumber,
        session: SessionNumber,
    },
    Committing {
        session: SessionNumber,
    },
    Committed {
        session: SessionNumber,
    },
    /// Aborted by us, by somebody else, or taken over by a later job.
    SessionOver {
        session: SessionNumber,
        why: String,
    },
    Ended(Ended),
}

/// How a job begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Started {
    pub job: String,
    pub machine: String,
    /// The vault's name in the config, and its id.
    pub vault: String,
    pub vault_id: String,
    pub host: String,
    pub process: u32,
    pub coffre: String,
    pub policy: Option<String>,
    pub wanted: Consistency,
    pub provider: ProviderIdentity,
}

/// How a job ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ended {
    pub outcome: JobOutcome,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub stored_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobOutcome {
    Done,
    /// There is a point, and it is worth less than was wanted, or something was found to be wrong.
    Downgraded,
    Failed,
    Cancelled,
    /// Hooks and snapshot were tried; there was to be no point.
    Rehearsed,
    /// The process went away; what the job owed has been paid since.
    Died,
}

impl JobOutcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Downgraded => "downgraded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Rehearsed => "rehearsed",
            Self::Died => "died",
        }
    }
}

/// An event and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub at: Timestamp,
    #[serde(flatten)]
    pub event: Event,
}

/// A journal that is being written. While it is open the file is locked, so that others see that its job runs.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    owed: Owed,
    ended: bool,
}

impl Journal {
    /// Makes the folder and journal of a new job and gives the job its id: the time and four random digits. Only under
    /// the machine's lock.
    pub fn create(state: &State, machine: &str, now: Timestamp) -> Result<(String, Self), JournalError> {
        let jobs = state.jobs_folder(machine);
        make_folder(&jobs)?;
        let (id, folder) = loop {
            let id = new_id(now);
            let folder = jobs.join(&id);
            match fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => break (id, folder),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    let doing = "make the folder of";
                    return Err(JournalError::Io {
                        doing,
                        path: folder,
                        source,
                    });
                }
            }
        };
        let path = folder.join("journal");
        let journal = Self::open_file(folder, path, OpenOptions::new().create_new(true), Owed::default())?;
        sync_folder(&journal.folder)?;
        sync_folder(&jobs)?;
        Ok((id, journal))
    }

    /// Goes on with the journal of a job that died.
    pub fn reopen(job: &JobRecord) -> Result<Self, JournalError> {
        let path = job.folder.join("journal");
        let journal = Self::open_file(job.folder.clone(), path, &mut OpenOptions::new(), job.owed())?;
        let cut = journal
            .file
            .set_len(job.whole_bytes)
            .and_then(|()| journal.file.sync_all());
        cut.map_err(|source| JournalError::Io {
            doing: "mend",
            path: journal.path.clone(),
            source,
        })?;
        Ok(Self {
            ended: job.ended().is_some(),
            ..journal
        })
    }

    fn open_file(folder: PathBuf, path: PathBuf, options: &mut OpenOptions, owed: Owed) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Io {
            doing: "open",
            path: path.clone(),
            source,
        };
        let file = options.append(true).mode(0o600).open(&path).map_err(failed)?;
        // Who lists jobs holds a shared lock for a moment; nobody else writes, since writers hold the machine's lock.
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Self {
            folder,
            path,
            file,
            owed,
            ended: false,
        })
    }

    /// Writes one event and waits until it is on the medium. What owes nothing is not waited for: it gets there with the
    /// next event that does, and applications are not held for it.
    pub fn append(&mut self, at: Timestamp, event: Event) -> Result<(), JournalError> {
        let record = Record { at, event };
        let mut line = serde_json::to_vec(&record).map_err(|source| JournalError::Encode {
            path: self.path.clone(),
            source,
        })?;
        line.push(b'\n');
        let for_people = matches!(record.event, Event::Phase { .. } | Event::Note { .. });
        let written = self
            .file
            .write_all(&line)
            .and_then(|()| if for_people { Ok(()) } else { self.file.sync_data() });
        written.map_err(|source| JournalError::Io {
            doing: "write",
            path: self.path.clone(),
            source,
        })?;
        self.owed.apply(&record.event);
        self.ended |= matches!(record.event, Event::Ended(_));
        Ok(())
    }

    pub fn owed(&self) -> &Owed {
        &self.owed
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Where the exact bytes of the commit are kept.
    pub fn commit_file(&self, session: SessionNumber) -> PathBuf {
        commit_file(&self.folder, session)
    }
}

/// A journal as it stands on disk.
#[derive(Clone, Debug)]
pub struct JobRecord {
    pub id: String,
    pub machine: String,
    folder: PathBuf,
    pub records: Vec<Record>,
    /// Up to the last whole line.
    whole_bytes: u64,
    /// Lines that say nothing readable.
    pub damaged_lines: usize,
    /// Some process holds it open: the job runs.
    pub running: bool,
}

impl JobRecord {
    /// Reads one job of a machine.
    pub fn read(state: &State, machine: &str, id: &str) -> Result<Self, JournalError> {
        let folder = state.jobs_folder(machine).join(id);
        let path = folder.join("journal");
        let failed = |source| JournalError::Io {
            doing: "read",
            path: path.clone(),
            source,
        };
        let mut job = Self {
            id: id.to_owned(),
            machine: machine.to_owned(),
            folder,
            records: Vec::new(),
            whole_bytes: 0,
            damaged_lines: 0,
            running: false,
        };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // The job died between making its folder and its journal: it did nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(job),
            Err(error) => return Err(failed(error)),
        };
        job.running = is_held(&file);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes).map_err(failed)?;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if line.last() != Some(&b'\n') {
                break;
            }
            job.whole_bytes += line.len() as u64;
            match serde_json::from_slice(line) {
                Ok(record) => job.records.push(record),
                Err(_) => job.damaged_lines += 1,
            }
        }
        Ok(job)
    }

    /// Whether some process runs this job.
    pub fn runs(state: &State, machine: &str, id: &str) -> bool {
        let journal = File::open(state.jobs_folder(machine).join(id).join("journal"));
        journal.is_ok_and(|file| is_held(&file))
    }

    /// The jobs of a machine, oldest first.
    pub fn all(state: &State, machine: &str) -> Result<Vec<Self>, JournalError> {
        let ids = names_in(&state.jobs_folder(machine))?;
        ids.iter().map(|id| Self::read(state, machine, id)).collect()
    }

    /// What it owes if it does not run any more.
    pub fn owed(&self) -> Owed {
        let mut owed = Owed::default();
        for record in &self.records {
            owed.apply(&record.event);
        }
        owed
    }

    pub fn started(&self) -> Option<&Started> {
        self.records.iter().find_map(|record| match &record.event {
            Event::Started(started) => Some(started),
            _ => None,
        })
    }

    pub fn ended(&self) -> Option<&Ended> {
        self.records.iter().rev().find_map(|record| match &record.event {
            Event::Ended(ended) => Some(ended),
            _ => None,
        })
    }

    /// The disks that it was to back up; none if it did not come so far.
    pub fn disks(&self) -> Vec<DiskId> {
        let of = |record: &Record| match &record.event {
            Event::Disks { disks } => Some(disks.clone()),
            _ => None,
        };
        self.records.iter().rev().find_map(of).unwrap_or_default()
    }

    /// The commit's bytes got as far as this disk.
    pub(crate) fn has_commit_file(&self, session: SessionNumber) -> bool {
        commit_file(&self.folder, session).exists()
    }
}

/// Whoever writes a journal holds it locked.
fn is_held(journal: &File) -> bool {
    flock(journal, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// One per session, so that the bytes of one that was given up are never sent for another.
fn commit_file(folder: &Path, session: SessionNumber) -> PathBuf {
    folder.join(format!("commit-{session}"))
}

/// Removes the oldest jobs that have ended and owe nothing. Only under the machine's lock.
pub(crate) fn prune(jobs: &[JobRecord]) {
    let too_many = jobs.len().saturating_sub(JOBS_KEPT);
    let may_go = jobs
        .iter()
        .filter(|job| !job.running && job.ended().is_some() && job.owed().is_nothing());
    for job in may_go.take(too_many) {
        if let Err(error) = fs::remove_dir_all(&job.folder) {
            tracing::warn!(job = job.id, %error, "an old job's journal stays, it cannot be removed");
        }
    }
}

/// The time and four random digits.
pub(crate) fn new_id(now: Timestamp) -> String {
    format!("{}-{:04x}", now.strftime("%Y%m%dT%H%M%S"), random())
}

fn random() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    // Std's only source of random bits: keys drawn from the system, per value.
    std::hash::RandomState::new().build_hasher().finish() as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn starting(hook: &str) -> Event {
        Event::HookStarting { hook: hook.to_owned() }
    }

    fn snapshot() -> SnapshotId {
        SnapshotId("s".to_owned())
    }

    #[test]
    fn debts_are_read_again_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::new(folder.path());
        let (id, mut journal) = Journal::create(&state, "web01", at()).unwrap();
        let session = SessionNumber(4);
        for event in [
            starting("a"),
            Event::HookPre {
                hook: "a".to_owned(),
                outcome: StepOutcome::default(),
                memory: Some("m".to_owned()),
            },
            starting("b"),
            Event::Taking { snapshot: snapshot() },
            Event::HookEnded {
                hook: "b".to_owned(),
                outcome: StepOutcome::default(),
            },
            Event::Session {
                machine: MachineNumber(1),
                session,
            },
        ] {
            journal.append(at(), event).unwrap();
        }
        assert!(JobRecord::read(&state, "web01", &id).unwrap().running);
        let owed = journal.owed().clone();
        drop(journal);

        let job = JobRecord::read(&state, "web01", &id).unwrap();
        assert!(!job.running);
        assert_eq!(job.owed(), owed);
        assert_eq!(owed.hooks.len(), 1);
        assert_eq!(owed.hooks[0].memory.as_deref(), Some("m"));
        assert_eq!(owed.snapshots, [snapshot()]);
        assert_eq!(
            owed.session.map(|owed| (owed.session, owed.committing)),
            Some((session, false))
        );

        let mut journal = Journal::reopen(&job).unwrap();
        let ended = Event::HookEnded {
            hook: "a".to_owned(),
            outcome: StepOutcome::default(),
        };
        journal.append(at(), ended).unwrap();
        journal.append(at(), Event::Released { snapshot: snapshot() }).unwrap();
        journal.append(at(), Event::Committing { session }).unwrap();
        assert!(journal.owed().session.is_some_and(|owed| owed.committing));
        journal.append(at(), Event::Committed { session }).unwrap();
        assert!(journal.owed().is_nothing());
        drop(journal);
        assert!(JobRecord::read(&state, "web01", &id).unwrap().owed().is_nothing());
    }

    #[test]
    fn a_torn_last_line_is_cut_off_before_anything_is_added() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::new(folder.path());
        let (id, mut journal) = Journal::create(&state, "web01", at()).unwrap();
        journal.append(at(), starting("a")).unwrap();
        journal.append(at(), starting("b")).unwrap();
        let path = journal.path.clone();
        drop(journal);
        let bytes = fs::read(&path).unwrap();
        for cut in 1..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let job = JobRecord::read(&state, "web01", &id).unwrap();
            assert_eq!(job.damaged_lines, 0);
            let mut journal = Journal::reopen(&job).unwrap();
            journal.append(at(), starting("c")).unwrap();
            let job = JobRecord::read(&state, "web01", &id).unwrap();
            assert_eq!(
                (job.damaged_lines, job.owed().hooks.last().unwrap().name.as_str()),
                (0, "c")
            );
        }
    }

    #[test]
    fn a_damaged_line_is_skipped_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::new(folder.path());
        let (id, mut journal) = Journal::create(&state, "web01", at()).unwrap();
        journal.file.write_all(b"no json\n").unwrap();
        journal.append(at(), starting("a")).unwrap();
        let job = JobRecord::read(&state, "web01", &id).unwrap();
        assert_eq!((job.damaged_lines, job.owed().hooks.len()), (1, 1));
    }

    #[test]
    fn old_jobs_go_unless_they_owe_something() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::new(folder.path());
        let ended = Ended {
            outcome: JobOutcome::Done,
            error: None,
            hint: None,
            read_bytes: 0,
            changed_bytes: 0,
            stored_bytes: 0,
        };
        let mut owing = String::new();
        for number in 0..JOBS_KEPT + 3 {
            let (id, mut journal) = Journal::create(&state, "web01", at()).unwrap();
            if number == 0 {
                journal.append(at(), Event::Taking { snapshot: snapshot() }).unwrap();
                owing = id;
            }
            journal.append(at(), Event::Ended(ended.clone())).unwrap();
        }
        prune(&JobRecord::all(&state, "web01").unwrap());
        let left = JobRecord::all(&state, "web01").unwrap();
        assert_eq!(left.len(), JOBS_KEPT);
        assert!(left.iter().any(|job| job.id == owing));
    }
}
