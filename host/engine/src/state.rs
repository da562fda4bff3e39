//! What this host must not forget, and the lock that gives a machine one job at a time.
//!
//! ```text
//! STATE/machines/NAME/lock              held by the machine's running job, whichever process it is in
//! STATE/machines/NAME/machine.json      kept change tokens per vault; whether its provider is distrusted
//! STATE/machines/NAME/jobs/ID/journal   one line per event, fsynced (see `journal`)
//! STATE/machines/NAME/jobs/ID/commit-N  the exact bytes of a commit, before they are sent
//! STATE/machines/NAME/jobs/ID/cancel    somebody wants the job to end
//! STATE/scheduler.lock                  held by whoever runs what is due
//! STATE/vaults/NAME.id                  the vault's id, pinned at first use
//! STATE/vaults/NAME.generation          the vault's id again, and the newest generation of its keys that was seen
//! ```
//! Files are replaced by writing beside them, fsync, rename, fsync of the folder: after a power cut there is the old one or
//! the new one.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coffre_vault::VaultId;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::config::Tracking;
use crate::provider::Base;

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("a job of machine {machine} is running already{holder}")]
    Busy { machine: String, holder: String },
    #[error("what is due is run by somebody else already{holder}")]
    SchedulerBusy { holder: String },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is damaged: {source}", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
}

impl StateError {
    pub fn may_retry(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::SchedulerBusy { .. })
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("wait for it, or see `coffre jobs`".to_owned()),
            Self::SchedulerBusy { .. } => {
                Some("`coffre run` and `coffre backup --due` go one at a time, and the service is enough".to_owned())
            }
            Self::Io { source, path, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(format!(
                "run as the user that owns {}, or set another `state` folder in the config's [coffre] table",
                path.display()
            )),
            Self::Io { .. } => None,
            Self::Damaged { path, .. } => Some(format!(
                "move {} away; the next backup then compares by reading",
                path.display()
            )),
        }
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// The state folder. Making one touches nothing.
#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
}

impl State {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn machine_folder(&self, machine: &str) -> PathBuf {
        self.folder.join("machines").join(machine)
    }

    pub(crate) fn jobs_folder(&self, machine: &str) -> PathBuf {
        self.machine_folder(machine).join("jobs")
    }

    /// The machines that ever had a job here, by name.
    pub fn machines(&self) -> Result<Vec<String>, StateError> {
        let folder = self.folder.join("machines");
        names_in(&folder)
    }

    /// Takes the machine's lock, or says at once who has it. `whom` is what others are told.
    pub fn lock(&self, machine: &str, whom: &str) -> Result<MachineLock, StateError> {
        let folder = self.machine_folder(machine);
        make_folder(&folder)?;
        let busy = |holder| StateError::Busy {
            machine: machine.to_owned(),
            holder,
        };
        let file = lock_file(&folder.join("lock"), whom, busy)?;
        Ok(MachineLock { _file: file })
    }

    /// Takes the lock of those that run what is due: one at a time.
    pub fn lock_scheduler(&self, whom: &str) -> Result<SchedulerLock, StateError> {
        make_folder(&self.folder)?;
        let busy = |holder| StateError::SchedulerBusy { holder };
        let file = lock_file(&self.folder.join("scheduler.lock"), whom, busy)?;
        Ok(SchedulerLock { _file: file })
    }

    fn cancel_file(&self, machine: &str, job: &str) -> PathBuf {
        self.jobs_folder(machine).join(job).join("cancel")
    }

    /// Asks a job to end, whichever process it runs in.
    pub fn ask_to_cancel(&self, machine: &str, job: &str) -> Result<(), StateError> {
        let path = self.cancel_file(machine, job);
        fs::write(&path, b"").map_err(StateError::io("write", &path))
    }

    pub(crate) fn wants_to_cancel(&self, machine: &str, job: &str) -> bool {
        self.cancel_file(machine, job).exists()
    }

    pub fn read_machine(&self, machine: &str) -> Result<MachineMemory, StateError> {
        let path = self.machine_folder(machine).join("machine.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| StateError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(MachineMemory::default()),
            Err(error) => Err(StateError::io("read", &path)(error)),
        }
    }

    /// Only under the machine's lock.
    pub(crate) fn write_machine(&self, machine: &str, memory: &MachineMemory) -> Result<(), StateError> {
        let folder = self.machine_folder(machine);
        make_folder(&folder)?;
        let path = folder.join("machine.json");
        let bytes = serde_json::to_vec_pretty(memory).map_err(|source| StateError::Damaged {
            path: path.clone(),
            source,
        })?;
        replace(&path, &bytes)
    }

    /// The file that holds the pinned id of the vault that the config calls `name`; removing it forgets the pin.
    pub fn vault_pin(&self, name: &str) -> PathBuf {
        self.folder.join("vaults").join(format!("{name}.id"))
    }

    /// The id that this host has pinned for the vault that the config calls `name`.
    pub fn pinned_vault(&self, name: &str) -> Result<Option<VaultId>, StateError> {
        let path = self.vault_pin(name);
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(id) => Ok(Some(id)),
                Err(error) => {
                    let source = io::Error::new(io::ErrorKind::InvalidData, error);
                    Err(StateError::io("read the vault's pinned id in", &path)(source))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::io("read", &path)(error)),
        }
    }

    fn generation_pin(&self, name: &str) -> PathBuf {
        self.folder.join("vaults").join(format!("{name}.generation"))
    }

    /// The newest generation of keys that this host has seen of this vault; 0 if none, or if another vault had the name then.
    pub fn seen_generation(&self, name: &str, id: VaultId) -> Result<u32, StateError> {
        let path = self.generation_pin(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(StateError::io("read", &path)(error)),
        };
        let read = || -> Option<(VaultId, u32)> {
            let (of, generation) = text.trim().split_once(' ')?;
            Some((of.parse().ok()?, generation.parse().ok()?))
        };
        match read() {
            Some((of, generation)) if of == id => Ok(generation),
            Some(_) => Ok(0),
            // Taken for nothing, it would let an older vault pass.
            None => {
                let source = io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
                Err(StateError::io("read the vault's newest key generation in", &path)(
                    source,
                ))
            }
        }
    }

    pub fn see_generation(&self, name: &str, id: VaultId, generation: u32) -> Result<(), StateError> {
        make_folder(&self.folder.join("vaults"))?;
        replace(&self.generation_pin(name), format!("{id} {generation}\n").as_bytes())
    }

    pub fn pin_vault(&self, name: &str, id: VaultId) -> Result<(), StateError> {
        let folder = self.folder.join("vaults");
        make_folder(&folder)?;
        replace(&folder.join(format!("{name}.id")), format!("{id}\n").as_bytes())
    }
}

/// A machine's lock; it goes with this, and with the process however that ends.
#[derive(Debug)]
pub struct MachineLock {
    _file: File,
}

/// The lock of those that run what is due; it goes with this, and with the process however that ends.
#[derive(Debug)]
pub struct SchedulerLock {
    _file: File,
}

/// What is remembered of a machine between jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineMemory {
    /// By vault id: the change tokens of the newest point there, which the next backup to it is compared with.
    pub bases: BTreeMap<String, Vec<Base>>,
    /// Its provider said that something had not changed, and it had.
    pub distrust: Option<Distrust>,
}

/// A provider caught lying.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distrust {
    pub provider: String,
    pub since: Timestamp,
    pub why: String,
    /// Caught while the config already said `trust-again`: that word is then used up, until the config says another.
    pub used_up: bool,
}

impl MachineMemory {
    /// Whether `provider`'s word on changes is used; if not, why. Takes note of what the operator says in the config.
    pub(crate) fn trust(&mut self, provider: &str, tracking: Tracking) -> Result<(), String> {
        if tracking == Tracking::Off {
            return Err("the config says `tracking = \"off\"`".to_owned());
        }
        let Some(distrust) = self.distrust.as_mut().filter(|distrust| distrust.provider == provider) else {
            return Ok(());
        };
        if tracking == Tracking::TrustAgain && !distrust.used_up {
            self.distrust = None;
            return Ok(());
        }
        if tracking == Tracking::Auto {
            distrust.used_up = false;
        }
        Err(format!(
            "{provider} is not believed since {} ({}); `tracking = \"trust-again\"` forgives it",
            distrust.since.strftime("%F %T UTC"),
            distrust.why
        ))
    }

    pub(crate) fn distrust(&mut self, provider: &str, since: Timestamp, why: String, tracking: Tracking) {
        self.distrust = Some(Distrust {
            provider: provider.to_owned(),
            since,
            why,
            used_up: tracking == Tracking::TrustAgain,
        });
    }

    /// All tokens that some vault's next backup will ask for: exactly these bases stay with the provider.
    pub(crate) fn keep(&self) -> Vec<Base> {
        let mut keep: Vec<Base> = self.bases.values().flatten().cloned().collect();
        keep.sort_by(|one, other| (&one.disk, &one.token).cmp(&(&other.disk, &other.token)));
        keep.dedup();
        keep
    }
}

/// Locks a file, or says who has it: `busy` makes the error of what the holder has written.
fn lock_file(path: &Path, whom: &str, busy: impl FnOnce(String) -> StateError) -> Result<File, StateError> {
    let failed = |doing| StateError::io(doing, path);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("open the lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only for the message; the holder may be writing it right now.
            let _ = (&file).take(256).read_to_string(&mut holder);
            let holder = holder.lines().next().filter(|line| !line.is_empty());
            return Err(busy(holder.map(|line| format!(" ({line})")).unwrap_or_default()));
        }
        Err(error) => return Err(failed("take the lock")(error.into())),
    }
    let said = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "process {}, {whom}", std::process::id()));
    said.map_err(failed("write the lock"))?;
    Ok(file)
}

/// Only its owner reads what lies below: hooks' output and change tokens are nobody else's business.
pub(crate) fn make_folder(path: &Path) -> Result<(), StateError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StateError::io("make the folder", path))
}

/// The names of the folders in `folder`; none if it is not there.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>, StateError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StateError::io("list", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StateError::io("list", folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let failed = || StateError::io("write", path);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut beside = tempfile::Builder::new()
        .prefix(".new")
        .tempfile_in(folder)
        .map_err(failed())?;
    beside.write_all(bytes).map_err(failed())?;
    beside.as_file().sync_all().map_err(failed())?;
    beside.persist(path).map_err(|error| failed()(error.error))?;
    sync_folder(folder)
}

/// Makes new names in a folder survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StateError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(StateError::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::DiskId;

    fn base(disk: &str, token: &str) -> Base {
        Base {
            disk: DiskId(disk.to_owned()),
            token: token.to_owned(),
        }
    }

    #[test]
    fn a_machine_has_one_lock() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::new(folder.path());
        let lock = state.lock("web01", "backup").unwrap();
        let error = state.lock("web01", "backup").unwrap_err();
        assert!(error.may_retry());
        let text = error.to_string();
        assert!(
            text.starts_with("a job of machine web01 is running already (process "),
            "{text}"
        );
        assert!(state.lock("web02", "backup").is_ok());
        drop(lock);
        assert!(state.lock("web01", "backup").is_ok());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::new(folder.path());
        assert_eq!(state.read_machine("web01").unwrap(), MachineMemory::default());
        let mut memory = MachineMemory::default();
        memory.bases.insert("v".to_owned(), vec![base("a", "1")]);
        state.write_machine("web01", &memory).unwrap();
        assert_eq!(state.read_machine("web01").unwrap(), memory);
        assert_eq!(state.machines().unwrap(), ["web01"]);

        assert_eq!(state.pinned_vault("main").unwrap(), None);
        state.pin_vault("main", VaultId([7; 16])).unwrap();
        assert_eq!(state.pinned_vault("main").unwrap(), Some(VaultId([7; 16])));

        assert_eq!(state.seen_generation("main", VaultId([7; 16])).unwrap(), 0);
        state.see_generation("main", VaultId([7; 16]), 3).unwrap();
        assert_eq!(state.seen_generation("main", VaultId([7; 16])).unwrap(), 3);
        assert_eq!(state.seen_generation("main", VaultId([8; 16])).unwrap(), 0);
        fs::write(state.generation_pin("main"), "three").unwrap();
        assert!(state.seen_generation("main", VaultId([7; 16])).is_err());
    }

    #[test]
    fn the_bases_of_every_vault_are_kept() {
        let mut memory = MachineMemory::default();
        memory
            .bases
            .insert("v".to_owned(), vec![base("b", "2"), base("a", "1")]);
        memory
            .bases
            .insert("w".to_owned(), vec![base("a", "0"), base("b", "2")]);
        assert_eq!(memory.keep(), [base("a", "0"), base("a", "1"), base("b", "2")]);
    }

    #[test]
    fn a_liar_is_believed_again_only_when_the_operator_says_so_and_only_once() {
        let mut memory = MachineMemory::default();
        assert!(memory.trust("p", Tracking::Auto).is_ok());
        assert!(memory.trust("p", Tracking::Off).is_err());
        memory.distrust("p", Timestamp::UNIX_EPOCH, "it lied".to_owned(), Tracking::Auto);
        assert!(memory.trust("p", Tracking::Auto).is_err());
        assert!(memory.trust("other", Tracking::Auto).is_ok());
        assert!(memory.trust("p", Tracking::TrustAgain).is_ok());
        memory.distrust("p", Timestamp::UNIX_EPOCH, "again".to_owned(), Tracking::TrustAgain);
        assert!(memory.trust("p", Tracking::TrustAgain).is_err());
        assert!(memory.trust("p", Tracking::Auto).is_err());
        assert!(memory.trust("p", Tracking::TrustAgain).is_ok());
    }
}
