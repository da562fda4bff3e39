//! What the scheduler remembers of each machine.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Book, BookError, Sql, conversion, from_micros, to_micros};

/// A due time of a machine, and what became of it so far. Times are kept to the microsecond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub due: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next; none: nothing more is tried for this due time.
    pub try_at: Option<Timestamp>,
    pub state: TurnState,
    /// Of the last attempt.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TurnState {
    /// For its time, a free place, or another attempt.
    Waiting,
    Running,
    Done,
    /// No attempt is left.
    Failed,
    /// Its time went by: a newer one took its place before it could run.
    Missed,
}

impl TurnState {
    const ALL: [Self; 5] = [Self::Waiting, Self::Running, Self::Done, Self::Failed, Self::Missed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Missed => "missed",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no state of a turn")]
struct NoState(String);

const COLUMNS: &str = "SELECT due, attempts, try_at, state, error, machine FROM turn";

impl Book {
    pub fn turn(&self, machine: &str) -> Result<Option<Turn>, BookError> {
        self.read("read a machine's turn", |book| {
            let query = format!("{COLUMNS} WHERE machine = ?1");
            book.query_row(&query, [machine], turn).optional()
        })
    }

    pub fn write_turn(&self, machine: &str, turn: &Turn) -> Result<(), BookError> {
        self.write("write a machine's turn", |book| {
            let command = "INSERT OR REPLACE INTO turn (machine, due, attempts, try_at, state, error)
                           VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let values = params![
                machine,
                to_micros(turn.due),
                turn.attempts,
                turn.try_at.map(to_micros),
                turn.state.as_str(),
                turn.error,
            ];
            book.execute(command, values).map(drop)
        })
    }

    /// Of all machines, by name.
    pub fn turns(&self) -> Result<BTreeMap<String, Turn>, BookError> {
        self.read("read the machines' turns", |book| {
            let mut query = book.prepare(COLUMNS)?;
            let rows = query.query_map([], |row| Ok((row.get(5)?, turn(row)?)))?;
            rows.collect()
        })
    }
}

fn turn(row: &Row<'_>) -> Sql<Turn> {
    let state: String = row.get(3)?;
    let known = TurnState::ALL.into_iter().find(|known| known.as_str() == state);
    Ok(Turn {
        due: from_micros(0, row.get(0)?)?,
        attempts: row.get(1)?,
        try_at: row.get::<_, Option<i64>>(2)?.map(|at| from_micros(2, at)).transpose()?,
        state: known.ok_or_else(|| conversion(3, NoState(state)))?,
        error: row.get(4)?,
    })
}
