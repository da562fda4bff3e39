//! Jobs added up, for counters that never go back.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Book, BookError, Sql};
use crate::job::JobView;

/// The jobs of one machine that ended in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    pub machine: String,
    pub outcome: String,
    pub jobs: u64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub stored_bytes: u64,
    pub took_ms: u64,
}

impl Book {
    /// Since the book was begun.
    pub fn tallies(&self) -> Result<Vec<Tally>, BookError> {
        self.read("read the tally of jobs", |book| {
            let mut query = book.prepare("SELECT machine, outcome, jobs, read, changed, stored, took_ms FROM tally")?;
            let rows = query.query_map([], |row| {
                Ok(Tally {
                    machine: row.get(0)?,
                    outcome: row.get(1)?,
                    jobs: row.get(2)?,
                    read_bytes: row.get(3)?,
                    changed_bytes: row.get(4)?,
                    stored_bytes: row.get(5)?,
                    took_ms: row.get(6)?,
                })
            })?;
            rows.collect()
        })
    }
}

/// Counts a job that has ended, if the book did not have it so before.
pub(super) fn count(book: &Connection, job: &JobView) -> Sql<()> {
    let Some(outcome) = job.outcome else { return Ok(()) };
    let before = "SELECT outcome FROM job WHERE id = ?1";
    let before: Option<Option<String>> = book.query_row(before, [&job.id], |row| row.get(0)).optional()?;
    if before.flatten().is_some() {
        return Ok(());
    }
    let took_ms = match (job.started_at, job.ended_at) {
        (Some(start), Some(end)) => i64::try_from(end.duration_since(start).as_millis()).unwrap_or(0).max(0),
        _ => 0,
    };
    let command = "INSERT INTO tally (machine, outcome, jobs, read, changed, stored, took_ms)
                   VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6)
                   ON CONFLICT DO UPDATE SET jobs = jobs + 1, read = read + ?3, changed = changed + ?4,
                                             stored = stored + ?5, took_ms = took_ms + ?6";
    let values = params![
        job.machine,
        outcome.as_str(),
        job.read_bytes,
        job.changed_bytes,
        job.stored_bytes,
        took_ms
    ];
    book.execute(command, values).map(drop)
}
