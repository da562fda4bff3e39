//! The book's tables, and how an older book becomes one of this version.

use rusqlite::{Connection, TransactionBehavior};

use super::Sql;

/// Stands in the file as `user_version`.
pub(super) const VERSION: u32 = 1;

/// What each version added to the one before; never changed once released.
const STEPS: [&str; VERSION as usize] = ["
    CREATE TABLE turn (
        machine  TEXT PRIMARY KEY,
        due      INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        try_at   INTEGER,
        state    TEXT NOT NULL,
        error    TEXT
    ) STRICT, WITHOUT ROWID;

    -- `document` is the job as `coffre jobs show --json` prints it; the columns are what is asked for.
    CREATE TABLE job (
        id       TEXT PRIMARY KEY,
        machine  TEXT NOT NULL,
        started  INTEGER NOT NULL,
        ended    INTEGER,
        outcome  TEXT,
        point    INTEGER,
        document TEXT NOT NULL
    ) STRICT;
    CREATE INDEX job_by_machine ON job (machine, started);
    CREATE INDEX job_by_time ON job (started);

    CREATE TABLE point (
        vault    TEXT NOT NULL,
        machine  TEXT NOT NULL,
        number   INTEGER NOT NULL,
        taken    INTEGER NOT NULL,
        kept     INTEGER NOT NULL,
        reached  INTEGER NOT NULL,
        size     INTEGER NOT NULL,
        stored   INTEGER NOT NULL,
        document TEXT NOT NULL,
        PRIMARY KEY (vault, machine, number)
    ) STRICT;
    CREATE INDEX point_by_worth ON point (vault, machine, kept, reached, taken, size, stored);

    -- How large a vault was when a clean-up last looked.
    CREATE TABLE vault (
        name  TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        at    INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- When the points of a machine were last read in the vault, all of them.
    CREATE TABLE scan (
        vault   TEXT NOT NULL,
        machine TEXT NOT NULL,
        at      INTEGER NOT NULL,
        PRIMARY KEY (vault, machine)
    ) STRICT, WITHOUT ROWID;
"];

pub(super) fn version(connection: &Connection) -> Sql<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings a book up to this version; true: there was nothing in it. Only while no other process does the same.
pub(super) fn bring_up(connection: &mut Connection) -> Sql<bool> {
    // Lasts in the file. Readers do not wait for writers then, nor writers for readers.
    connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    for step in STEPS.iter().skip(found as usize) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(found == 0)
}
