//! What is owed, written down before it is owed: two files per process, one under `/run` for what ends with the kernel
//! (freezes, processes), one in the state folder for the rest.
//!
//! ```text
//! RUN/guard/PID-START-N.ledger      one JSON object per line, not fsynced: a power cut pays what stands in it
//! STATE/guard/PID-START-N.ledger    the same, each line fsynced
//! ```
//! Both are opened by host and guard before anything is frozen, appended to by both, and locked by both (flock, shared): the
//! locks go with the processes, and only then does somebody else get one of its own and may pay what is owed in there.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::clock::unix_ms;
use crate::debt::{Debt, Outcome, Owner, Payer, Why};

/// Below the run folder and below the state folder.
const FOLDER: &str = "guard";
const ENDING: &str = "ledger";

/// Why a ledger cannot be used. What cannot be written down is not incurred.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub struct LedgerError {
    doing: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Line {
    Began {
        process: i32,
        started_ticks: u64,
        /// The kernel's own (`/proc/sys/kernel/random/boot_id`): what ends with it is not owed under another.
        boot: String,
    },
    Owed {
        id: u32,
        owner: Owner,
        debt: Debt,
    },
    Paid {
        id: u32,
        by: Payer,
        why: Why,
        #[serde(flatten)]
        outcome: Outcome,
        at_unix_ms: u64,
    },
    /// It was tried and stays owed.
    Failed {
        id: u32,
        by: Payer,
        error: String,
        at_unix_ms: u64,
    },
}

impl Line {
    pub fn paid(id: u32, by: Payer, why: Why, outcome: Outcome) -> Self {
        let at_unix_ms = unix_ms();
        Self::Paid {
            id,
            by,
            why,
            outcome,
            at_unix_ms,
        }
    }
}

/// A ledger that is open for writing.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub path: PathBuf,
    pub file: File,
    durable: bool,
}

impl Ledger {
    /// Makes and locks a new one in `folder`.
    pub fn create(folder: &Path, name: &str, durable: bool) -> Result<Self, LedgerError> {
        let folder = folder.join(FOLDER);
        let failed = |doing| failed(doing, &folder);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(failed("make the folder"))?;
        let path = folder.join(format!("{name}.{ENDING}"));
        // Under another name until it is locked: nobody may find it free.
        let fresh = folder.join(format!("{name}.new"));
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh);
        let file = file.map_err(self::failed("make the ledger", &fresh))?;
        lock(&file, &path)?;
        fs::rename(&fresh, &path).map_err(self::failed("name the ledger", &path))?;
        let ledger = Self { path, file, durable };
        ledger.append(&Line::Began {
            process: std::process::id() as i32,
            started_ticks: crate::tree::started_ticks(std::process::id() as i32).unwrap_or_default(),
            boot: boot(),
        })?;
        if durable {
            File::open(&folder)
                .and_then(|folder| folder.sync_all())
                .map_err(failed("sync"))?;
        }
        Ok(ledger)
    }

    /// One that came as a descriptor.
    pub fn from_file(file: File, durable: bool) -> Self {
        Self {
            path: PathBuf::from("(handed over)"),
            file,
            durable,
        }
    }

    pub fn append(&self, line: &Line) -> Result<(), LedgerError> {
        let failed = |source| failed("write the ledger", &self.path)(source);
        let mut bytes = serde_json::to_vec(line).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        (&self.file).write_all(&bytes).map_err(failed)?;
        if self.durable {
            self.file.sync_data().map_err(failed)?;
        }
        Ok(())
    }

    /// Forgets what is settled, so that a process that runs for months does not fill /run. Only while nothing is owed.
    pub fn forget(&self, began: u64) -> Result<(), LedgerError> {
        self.file
            .set_len(began)
            .map_err(failed("shorten the ledger", &self.path))
    }

    pub fn len_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Removes it: all is settled.
    pub fn remove(&self) {
        // Whatever is left behind is read at the next start, and says that nothing is owed.
        let _ = fs::remove_file(&self.path);
    }
}

/// As one of those that may write to it.
fn lock(file: &File, path: &Path) -> Result<(), LedgerError> {
    let locked = flock(file, FlockOperation::NonBlockingLockShared);
    locked.map_err(|error| failed("lock the ledger", path)(error.into()))
}

/// The guard's own copy, with a lock of its own.
pub(crate) fn open_for_guard(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).open(path)?;
    lock(&file, path).map_err(|error| error.source)?;
    Ok(file)
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError { doing, path, source }
}

/// The kernel that runs, told from every other.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// A debt as a ledger has it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub owner: Owner,
    pub debt: Debt,
    /// Paid, by whom, why, and when.
    pub paid: Option<(Payer, Why, Outcome, u64)>,
    /// The last try that did not help.
    pub failed: Option<String>,
}

/// What a ledger says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub process: i32,
    pub started_ticks: u64,
    pub boot: String,
    /// In the order in which they came to be owed.
    pub entries: BTreeMap<u32, Entry>,
}

impl Content {
    /// A line that cannot be read (torn by a power cut) says nothing.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut read = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Line::Began {
                    process,
                    started_ticks,
                    boot,
                }) => {
                    read.process = process;
                    read.started_ticks = started_ticks;
                    read.boot = boot;
                }
                Ok(Line::Owed { id, owner, debt }) => {
                    let entry = Entry {
                        owner,
                        debt,
                        paid: None,
                        failed: None,
                    };
                    read.entries.insert(id, entry);
                }
                Ok(Line::Paid {
                    id,
                    by,
                    why,
                    outcome,
                    at_unix_ms,
                }) => {
                    if let Some(entry) = read.entries.get_mut(&id) {
                        entry.paid.get_or_insert((by, why, outcome, at_unix_ms));
                    }
                }
                Ok(Line::Failed { id, error, .. }) => {
                    if let Some(entry) = read.entries.get_mut(&id) {
                        entry.failed = Some(error);
                    }
                }
                Err(_) => {}
            }
        }
        read
    }
}

/// A ledger that somebody else wrote.
pub(crate) enum Other {
    /// Its host or its guard is still there.
    Alive(Content),
    /// Both are gone, and it is locked by us now.
    Left { ledger: Ledger, read: Content },
}

/// The ledgers in a folder, by name.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, LedgerError> {
    let folder = folder.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("list", &folder)(source)),
    };
    let mut paths: Vec<PathBuf> = (entries.flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
        .collect();
    paths.sort();
    Ok(paths)
}

/// Opens one and takes it over if nobody is behind it any more. None: it has been settled meanwhile.
pub(crate) fn take_over(path: &Path, durable: bool) -> Result<Option<Other>, LedgerError> {
    let mut file = match OpenOptions::new().read(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("open the ledger", path)(source)),
    };
    let locked = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => true,
        Err(rustix::io::Errno::WOULDBLOCK) => false,
        Err(error) => return Err(failed("lock the ledger", path)(error.into())),
    };
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(failed("read the ledger", path))?;
    let read = Content::parse(&bytes);
    if !locked {
        return Ok(Some(Other::Alive(read)));
    }
    let ledger = Ledger {
        path: path.to_owned(),
        file,
        durable,
    };
    Ok(Some(Other::Left { ledger, read }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(id: u32) -> Line {
        Line::Owed {
            id,
            owner: Owner::default(),
            debt: Debt::EndTree {
                marker: format!("m{id}"),
            },
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_is_locked_while_host_or_guard_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(folder.path(), "1-2-3", true).unwrap();
        ledger.append(&owed(1)).unwrap();
        ledger.append(&owed(2)).unwrap();
        ledger
            .append(&Line::paid(
                1,
                Payer::Guard,
                Why::Deadline,
                Outcome::Ended { processes: 3 },
            ))
            .unwrap();
        let path = ledger.path.clone();
        let copy = open_for_guard(&path).unwrap();
        drop(ledger);
        assert!(matches!(take_over(&path, true), Ok(Some(Other::Alive(_)))));
        drop(copy);
        let Ok(Some(Other::Left { read, ledger })) = take_over(&path, true) else {
            panic!("it is free");
        };
        assert_eq!(read.process, std::process::id() as i32);
        assert_eq!(read.boot, boot());
        let paid = read.entries[&1].paid.clone().unwrap();
        assert_eq!(
            (paid.0, paid.1, paid.2),
            (Payer::Guard, Why::Deadline, Outcome::Ended { processes: 3 })
        );
        assert!(read.entries[&2].paid.is_none());
        assert_eq!(list(folder.path()).unwrap(), std::slice::from_ref(&path));
        ledger.remove();
        assert!(take_over(&path, true).unwrap().is_none());
    }

    #[test]
    fn a_torn_line_says_nothing_and_the_first_payment_counts() {
        let line = |line: &Line| serde_json::to_string(line).unwrap() + "\n";
        let first = Line::paid(7, Payer::Guard, Why::HostGone, Outcome::Thawed);
        let second = Line::paid(7, Payer::Later, Why::Found, Outcome::NotFrozen);
        let text = line(&owed(7)) + &line(&first) + &line(&second) + &line(&owed(8))[..20];
        let read = Content::parse(text.as_bytes());
        assert_eq!(read.entries.len(), 1);
        assert_eq!(read.entries[&7].paid.as_ref().unwrap().0, Payer::Guard);
    }
}
