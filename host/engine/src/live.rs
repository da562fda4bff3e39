//! How far running jobs are, for other processes: one small file per running job in the `run` folder, which lies in memory.
//!
//! ```text
//! RUN/progress/MACHINE.json     replaced once a second while the machine's job runs
//! ```
//! A process that is killed leaves its file behind; who reads it looks at the job's journal, which a running job holds
//! locked. Nothing is waited for: a file that cannot be written costs a job nothing.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::error_chain::Chain;
use crate::journal::JobRecord;
use crate::progress::{Progress, ProgressView};
use crate::state::{State, StateError, make_folder};

/// As often as a person looks, and far too seldom to be felt.
const EVERY: Duration = Duration::from_secs(1);

/// A running job, as the process that runs it last said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningJob {
    pub machine: String,
    pub job: String,
    pub process: u32,
    /// When the job began.
    pub since: Timestamp,
    /// When this was said.
    pub at: Timestamp,
    pub progress: ProgressView,
}

fn folder(run: &Path) -> PathBuf {
    run.join("progress")
}

/// Tells other processes how far a job is, until it is dropped.
#[derive(Debug)]
pub(crate) struct Live {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Live {
    /// Only under the machine's lock.
    pub fn show(run: &Path, machine: &str, job: &str, since: Timestamp, progress: Arc<Progress>) -> Self {
        let path = folder(run).join(format!("{machine}.json"));
        let job = RunningJob {
            machine: machine.to_owned(),
            job: job.to_owned(),
            process: std::process::id(),
            since,
            at: since,
            progress: ProgressView::default(),
        };
        let (run, target) = (run.to_owned(), path.clone());
        let task = tokio::spawn(async move {
            let mut said = false;
            loop {
                let now = RunningJob {
                    at: Timestamp::now(),
                    progress: progress.snapshot(),
                    ..job.clone()
                };
                // A file in memory: it takes microseconds.
                let written = make_folder(&folder(&run))
                    .map_err(|error| Chain(&error).to_string())
                    .and_then(|()| write(&target, &now).map_err(|error| error.to_string()));
                if let Err(error) = written
                    && !std::mem::replace(&mut said, true)
                {
                    tracing::warn!(job = now.job, "other processes do not see how far the job is: {error}");
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { path, task }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
        // If it was never written, or is in memory that is gone, nobody sees it anyway.
        let _ = fs::remove_file(&self.path);
    }
}

fn write(path: &Path, job: &RunningJob) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(&serde_json::to_vec(job)?)?;
    fs::rename(&beside, path)
}

/// The jobs that run now on this host, by machine. What a killed process has left is not among them.
pub fn running(run: &Path, state: &State) -> Result<Vec<RunningJob>, StateError> {
    let folder = folder(run);
    let failed = |source| StateError::Io {
        doing: "list",
        path: folder.clone(),
        source,
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut jobs = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // It may go while we look; then its job has ended.
        let said = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        jobs.extend(said.filter(|job: &RunningJob| JobRecord::runs(state, &job.machine, &job.job)));
    }
    jobs.sort_by(|one, other| one.machine.cmp(&other.machine));
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;

    #[tokio::test]
    async fn a_running_job_is_seen_until_it_ends_or_its_process_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (run, state) = (folder.path().join("run"), State::new(&folder.path().join("state")));
        assert_eq!(running(&run, &state).unwrap(), []);
        let (id, journal) = Journal::create(&state, "web01", Timestamp::UNIX_EPOCH).unwrap();
        let progress = Progress::new();
        let live = Live::show(&run, "web01", &id, Timestamp::UNIX_EPOCH, progress.clone());
        let seen = loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if let [job] = &running(&run, &state).unwrap()[..] {
                break job.clone();
            }
        };
        assert_eq!(
            (seen.machine.as_str(), &seen.job, seen.process),
            ("web01", &id, std::process::id())
        );

        // As after `kill -9`: the file is there, and nobody holds the journal.
        let left = fs::read(run.join("progress/web01.json")).unwrap();
        drop(live);
        assert_eq!(running(&run, &state).unwrap(), []);
        fs::write(run.join("progress/web01.json"), left).unwrap();
        assert_eq!(running(&run, &state).unwrap().len(), 1);
        drop(journal);
        assert_eq!(running(&run, &state).unwrap(), []);
    }
}
