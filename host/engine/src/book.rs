//! What this host remembers of schedules, jobs and points, in one small database: `STATE/book.sqlite`.
//!
//! The journals stay the truth about jobs and their debts, and the vault the truth about points. The book is what can be
//! asked of all machines at once without reading thousands of files or reaching a vault: `coffre status`, `coffre jobs`, the
//! report and the scheduler read it, and whoever runs a job writes it.
//!
//! - Several processes have it open at once (`coffre run`, `backup`, `status`): SQLite in WAL mode, and whoever writes waits
//!   for others.
//! - `kill -9` at any moment leaves it as it was before or after a change. A power cut may take the last changes away, never
//!   damage the rest; what they said is found out again.
//! - A missing or damaged one is begun anew (the damaged one is kept beside it): jobs come back from the journals at once,
//!   points when a machine's points are next read in its vault, which every backup does and `coffre status --refresh` asks for.
//!   Every call sees by the file's inode whether another process did that.

mod jobs;
mod points;
mod schema;
mod tally;
mod told;
mod turns;

#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::{FlockOperation, flock};

use crate::state::{State, StateError, make_folder};

pub use jobs::{Attempt, LastJob};
pub use points::{KnownDisk, KnownPoint, Newest, Shelf};
pub use tally::Tally;
pub use turns::{Turn, TurnState};

/// Others hold the book for milliseconds; who waits longer than this waits for a process that was stopped.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Begun anew so often in one call, it is the medium that is broken, not the file.
const ANEW_AT_MOST: usize = 2;

/// Why the book cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error("{doing} in {}", path.display())]
    Sql {
        doing: &'static str,
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("{} was written by a newer version of Coffre (its schema is {found}, this version knows {known})", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{} is damaged again after it was begun anew", path.display())]
    Damaged { path: PathBuf, source: rusqlite::Error },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("write {what} as JSON")]
    Encode {
        what: &'static str,
        source: serde_json::Error,
    },
    #[error(transparent)]
    State(#[from] StateError),
}

impl BookError {
    pub fn may_retry(&self) -> bool {
        let busy = |source: &rusqlite::Error| {
            matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
            )
        };
        matches!(self, Self::Sql { source, .. } if busy(source))
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Newer { path, .. } => Some(format!(
                "use that version, or move {} away: it is filled again from the journals and the vaults",
                path.display()
            )),
            Self::Damaged { .. } => Some("look at the disk that it lies on".to_owned()),
            Self::Sql { .. } if self.may_retry() => {
                Some("another process keeps the book to itself; try again".to_owned())
            }
            Self::State(error) => error.hint(),
            Self::Sql { .. } | Self::Io { .. } | Self::Encode { .. } => None,
        }
    }
}

/// The book, open. Clones share one connection; every call takes milliseconds and blocks for so long.
#[derive(Clone, Debug)]
pub struct Book {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: State,
    path: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// Device and inode of the file that `connection` has: another one under the same name is another book.
    file: (u64, u64),
}

/// What a piece of work with the book ends with when it fails: SQLite's word, or a document in it that cannot be read,
/// which is damage just the same.
type Sql<T> = Result<T, rusqlite::Error>;

impl Book {
    /// Opens the book, and makes it if it is not there.
    pub fn open(state: &State) -> Result<Self, BookError> {
        make_folder(state.folder())?;
        let path = state.folder().join("book.sqlite");
        let open = Open::at(&path, state)?;
        Ok(Self {
            shared: Arc::new(Shared {
                state: state.clone(),
                path,
                open: Mutex::new(open),
            }),
        })
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Reads.
    fn read<T>(&self, doing: &'static str, act: impl Fn(&Connection) -> Sql<T>) -> Result<T, BookError> {
        self.with(doing, |connection| act(connection))
    }

    /// Changes something, all of it or nothing.
    fn write<T>(&self, doing: &'static str, act: impl Fn(&Connection) -> Sql<T>) -> Result<T, BookError> {
        self.with(doing, |connection| {
            // Immediate: one that begins by reading and then wants to write would be refused without waiting.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = act(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    fn with<T>(&self, doing: &'static str, act: impl Fn(&mut Connection) -> Sql<T>) -> Result<T, BookError> {
        let shared = &*self.shared;
        let mut open = shared.open.lock();
        if file_at(&shared.path).ok() != Some(open.file) {
            *open = Open::at(&shared.path, &shared.state)?;
        }
        let mut begun_anew = 0;
        loop {
            match act(&mut open.connection) {
                Err(source) if is_damage(&source) && begun_anew < ANEW_AT_MOST => {
                    begun_anew += 1;
                    put_aside(&shared.path, open.file, &source)?;
                    *open = Open::at(&shared.path, &shared.state)?;
                }
                Err(source) if is_damage(&source) => {
                    let path = shared.path.clone();
                    return Err(BookError::Damaged { path, source });
                }
                done => {
                    return done.map_err(|source| BookError::Sql {
                        doing,
                        path: shared.path.clone(),
                        source,
                    });
                }
            }
        }
    }
}

impl Open {
    fn at(path: &Path, state: &State) -> Result<Self, BookError> {
        let mut tried = 0;
        loop {
            match Self::try_at(path, state) {
                Err(BookError::Sql { source, .. }) if is_damage(&source) && tried < ANEW_AT_MOST => {
                    tried += 1;
                    let failed = io_failed("look at", path);
                    put_aside(path, file_at(path).map_err(failed)?, &source)?;
                }
                opened => return opened,
            }
        }
    }

    fn try_at(path: &Path, state: &State) -> Result<Self, BookError> {
        let failed = |doing| {
            let path = path.to_owned();
            move |source| BookError::Sql { doing, path, source }
        };
        // SQLite would make it readable for all; what hooks say is nobody else's business.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_failed("make", path)(error)),
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed("open the book"))?;
        let settings = || {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Whoever closes a book that was put aside must not take the write-ahead log of the new one away, which has its
            // name.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            schema::version(&connection)
        };
        let found = settings().map_err(failed("open the book"))?;
        let mut open = Self {
            connection,
            file: file_at(path).map_err(io_failed("look at", path))?,
        };
        if found > schema::VERSION {
            return Err(BookError::Newer {
                path: path.to_owned(),
                found,
                known: schema::VERSION,
            });
        }
        if found < schema::VERSION {
            let _alone = alone(path)?;
            let fresh = schema::bring_up(&mut open.connection).map_err(failed("set up the book"))?;
            if fresh {
                jobs::from_journals(&mut open.connection, state).map_err(failed("read the journals into the book"))?;
            }
        }
        Ok(open)
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        // What a column holds is not what was ever written there.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        error => matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        ),
    }
}

/// Moves a damaged book out of the way, unless another process has done so already.
fn put_aside(path: &Path, file: (u64, u64), why: &rusqlite::Error) -> Result<(), BookError> {
    let _alone = alone(path)?;
    if file_at(path).ok() != Some(file) {
        return Ok(());
    }
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    tracing::warn!(
        "{} is damaged ({why}) and begun anew; what it was is in {}",
        path.display(),
        beside(".damaged").display()
    );
    fs::rename(path, beside(".damaged")).map_err(io_failed("put aside", path))?;
    for suffix in ["-wal", "-shm"] {
        match fs::remove_file(beside(suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_failed("remove", &beside(suffix))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A lock for making books and putting them aside, one process at a time. Not the book itself: SQLite's own locks would be
/// lost with any other descriptor of it that is closed.
fn alone(path: &Path) -> Result<File, BookError> {
    let lock = path.with_extension("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock)
        .map_err(io_failed("open", &lock))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| io_failed("lock", &lock)(error.into()))?;
    Ok(file)
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

fn io_failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BookError + use<> {
    let path = path.to_owned();
    move |source| BookError::Io { doing, path, source }
}

/// Times lie in the book as microseconds since 1970: they sort and compare as they are.
fn to_micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

fn from_micros(column: usize, micros: i64) -> Sql<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|error| conversion(column, error))
}

fn conversion(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

/// A document that was written as JSON.
fn from_json<T: serde::de::DeserializeOwned>(column: usize, text: &str) -> Sql<T> {
    serde_json::from_str(text).map_err(|error| conversion(column, error))
}
