//! What became of jobs, written when they begin and end, and of backups that failed before there was a job.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, ToSql, params};
use serde::{Deserialize, Serialize};

use super::{Book, BookError, Sql, from_json, to_micros};
use crate::job::JobView;
use crate::journal::{JOBS_KEPT, JobOutcome, JobRecord, new_id};
use crate::state::State;

/// A backup that could not begin: its plugin is gone, its vault is out of reach. There is no journal of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub machine: String,
    pub vault: Option<String>,
    pub policy: Option<String>,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub outcome: JobOutcome,
    pub error: String,
    pub hint: Option<String>,
}

/// A machine's newest backup that has ended, whether or not it made a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastJob {
    pub id: String,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub outcome: Option<JobOutcome>,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub point: Option<u32>,
}

impl Book {
    /// A job that has begun, or has ended: what is known of it by now.
    pub fn write_job(&self, job: &JobView) -> Result<(), BookError> {
        let document = encode(job)?;
        self.write("write a job", |book| {
            insert(book, job, &document)?;
            let forget = "DELETE FROM job WHERE machine = ?1 AND id NOT IN
                          (SELECT id FROM job WHERE machine = ?1 ORDER BY started DESC, id DESC LIMIT ?2)";
            book.execute(forget, params![job.machine, JOBS_KEPT])?;
            Ok(())
        })
    }

    /// A backup that could not even begin; gives it the id under which `coffre jobs` shows it.
    pub fn write_attempt(&self, attempt: &Attempt) -> Result<String, BookError> {
        let job = JobView {
            vault: attempt.vault.clone(),
            policy: attempt.policy.clone(),
            process: Some(std::process::id()),
            started_at: Some(attempt.started_at),
            ended_at: Some(attempt.ended_at),
            outcome: Some(attempt.outcome),
            error: Some(attempt.error.clone()),
            hint: attempt.hint.clone(),
            ..JobView::bare(&new_id(attempt.started_at), &attempt.machine)
        };
        self.write_job(&job)?;
        Ok(job.id)
    }

    /// Newest first, of one machine or all.
    pub fn jobs(&self, machine: Option<&str>, limit: usize) -> Result<Vec<JobView>, BookError> {
        self.read("read jobs", |book| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            match machine {
                Some(machine) => documents(
                    book,
                    "SELECT document FROM job WHERE machine = ?1 ORDER BY started DESC, id DESC LIMIT ?2",
                    params![machine, limit],
                ),
                None => documents(
                    book,
                    "SELECT document FROM job ORDER BY started DESC, id DESC LIMIT ?1",
                    params![limit],
                ),
            }
        })
    }

    /// Jobs of a machine that had not ended when they were last written.
    pub fn open_jobs(&self, machine: &str) -> Result<Vec<String>, BookError> {
        self.read("read jobs that have not ended", |book| {
            let mut query = book.prepare("SELECT id FROM job WHERE machine = ?1 AND outcome IS NULL")?;
            let rows = query.query_map([machine], |row| row.get(0))?;
            rows.collect()
        })
    }

    /// One job by its id, or by as much of its id's beginning as is unique.
    pub fn job(&self, id: &str) -> Result<Option<JobView>, BookError> {
        self.read("read a job", |book| {
            let exact = "SELECT document FROM job WHERE id = ?1";
            let exact: Option<String> = book.query_row(exact, [id], |row| row.get(0)).optional()?;
            if let Some(text) = exact {
                return from_json(0, &text).map(Some);
            }
            let begins = "SELECT document FROM job WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2";
            let mut found: Vec<JobView> = documents(book, begins, params![id])?;
            Ok(if found.len() == 1 { found.pop() } else { None })
        })
    }

    /// The newest backup of each machine that has ended; what was to make no point (a rehearsal, debts that were paid) is none.
    pub fn last_jobs(&self) -> Result<BTreeMap<String, LastJob>, BookError> {
        self.read("read the machines' last jobs", |book| {
            // SQLite takes the other columns from the row that has the maximum.
            let mut query = book.prepare(
                "SELECT machine, document, max(started) FROM job
                 WHERE outcome IS NOT NULL AND outcome <> 'rehearsed' AND NOT (outcome = 'done' AND point IS NULL)
                 GROUP BY machine",
            )?;
            let rows = query.query_map([], |row| {
                let text: String = row.get(1)?;
                Ok((row.get(0)?, from_json(1, &text)?))
            })?;
            rows.collect()
        })
    }

    /// So many backups of each machine have failed since `since`.
    pub fn failures_since(&self, since: Timestamp) -> Result<BTreeMap<String, u64>, BookError> {
        self.read("count failures", |book| {
            let mut query = book.prepare(
                "SELECT machine, count(*) FROM job WHERE started >= ?1 AND outcome IN ('failed', 'died') GROUP BY machine",
            )?;
            let rows = query.query_map([to_micros(since)], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }
}

fn documents(book: &Connection, query: &str, values: &[&dyn ToSql]) -> Sql<Vec<JobView>> {
    let mut query = book.prepare(query)?;
    let rows = query.query_map(values, |row| {
        let text: String = row.get(0)?;
        from_json(0, &text)
    })?;
    rows.collect()
}

fn encode(job: &JobView) -> Result<String, BookError> {
    let what = "a job";
    serde_json::to_string(job).map_err(|source| BookError::Encode { what, source })
}

fn insert(book: &Connection, job: &JobView, document: &str) -> Sql<()> {
    let command = "INSERT OR REPLACE INTO job (id, machine, started, ended, outcome, point, document)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let values = params![
        job.id,
        job.machine,
        to_micros(job.started_at.unwrap_or(Timestamp::UNIX_EPOCH)),
        job.ended_at.map(to_micros),
        job.outcome.map(JobOutcome::as_str),
        job.point,
        document,
    ];
    book.execute(command, values).map(drop)
}

/// Fills a new book with the jobs whose journals are there. A journal that cannot be read costs no other.
pub(super) fn from_journals(connection: &mut Connection, state: &State) -> Sql<()> {
    let machines = match state.machines() {
        Ok(machines) => machines,
        Err(error) => {
            tracing::warn!("no earlier jobs are in the new book: {}", crate::Chain(&error));
            return Ok(());
        }
    };
    let transaction = connection.transaction()?;
    for machine in machines {
        let jobs = match JobRecord::all(state, &machine) {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::warn!(
                    machine,
                    "earlier jobs are not in the new book: {}",
                    crate::Chain(&error)
                );
                continue;
            }
        };
        for job in jobs.iter().map(JobView::of) {
            match encode(&job) {
                Ok(document) => insert(&transaction, &job, &document)?,
                Err(error) => tracing::warn!(job = job.id, "it is not in the new book: {}", crate::Chain(&error)),
            }
        }
    }
    transaction.commit()
}
