//! A table of records: the newest in memory, the others in sorted runs, merged so that there are few.
//!
//! Merges are wide: a record of a table that was filled in one go is written about as often as the logarithm of its size to
//! the base of [`RUNS_LIMIT`] says, not to the base of two. An index of 50 million chunks is 2.4 GB, so this is the
//! difference between minutes and much of an hour on a slow disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::merge::Merged;
use super::recent::{Recent, Sorted};
use super::run::{self, KEY_BYTES, Run};
use crate::key::random;

/// A table is asked to write itself down at this many records in memory: 128 Ki × 48 bytes and 5 to find each, and as much
/// again while it is written.
const MEMORY_RECORDS: usize = 128 * 1024;
/// A lookup reads once from each run.
const RUNS_LIMIT: usize = 8;

struct State<const N: usize> {
    memory: Recent<N>,
    /// What is being written down; still looked at meanwhile.
    frozen: Arc<Sorted<N>>,
    runs: Vec<Arc<Run<N>>>,
}

/// Records of `N` bytes that begin with a key of 20 bytes.
pub(super) struct Table<const N: usize> {
    state: RwLock<State<N>>,
}

impl<const N: usize> Table<N> {
    pub(super) fn empty() -> Self {
        let state = State {
            memory: Recent::default(),
            frozen: Arc::default(),
            runs: Vec::new(),
        };
        Self {
            state: RwLock::new(state),
        }
    }

    pub(super) fn insert(&self, records: impl Iterator<Item = [u8; N]>) {
        let mut state = self.state.write();
        records.for_each(|record| state.memory.insert(record));
    }

    pub(super) fn wants_writing(&self) -> bool {
        self.state.read().memory.len() >= MEMORY_RECORDS
    }

    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.read();
        state.memory.len() == 0 && state.frozen.records().is_empty() && state.runs.iter().all(|run| run.count() == 0)
    }

    /// Every record with this key, in no order.
    pub(super) fn lookup(&self, key: &[u8; KEY_BYTES]) -> io::Result<Vec<[u8; N]>> {
        let mut found = Vec::new();
        let state = self.state.read();
        found.extend(state.memory.with_key(key));
        found.extend(state.frozen.with_key(key));
        for run in &state.runs {
            run.lookup(key, &mut found)?;
        }
        Ok(found)
    }

    /// Whether a record has a property. Reads all of them, from first to last, until one has.
    pub(super) fn any(&self, mut has: impl FnMut(&[u8; N]) -> io::Result<bool>) -> io::Result<bool> {
        let (memory, runs) = {
            let state = self.state.read();
            let memory = [state.memory.records(), state.frozen.records()].concat();
            (memory, state.runs.clone())
        };
        for record in &memory {
            if has(record)? {
                return Ok(true);
            }
        }
        for run in &runs {
            for record in run.records() {
                if has(&record?)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Replaces the runs by those that a manifest names.
    pub(super) fn set_runs(&self, folder: &Path, names: &[String]) -> io::Result<()> {
        let runs = names
            .iter()
            .map(|name| Run::open(&folder.join(name)).map(Arc::new))
            .collect::<io::Result<_>>()?;
        self.state.write().runs = runs;
        Ok(())
    }

    pub(super) fn forget_all(&self) {
        let mut state = self.state.write();
        state.memory = Recent::default();
        state.frozen = Arc::default();
        state.runs.clear();
    }

    /// Writes what is in memory into a run, and merges runs as `merging` says. Gives the names that the manifest must have
    /// from now on and the files that nobody needs once it has. The caller sees to it that nobody else writes.
    pub(super) fn write_down(&self, folder: &Path, merging: Merging<'_, N>) -> io::Result<WrittenDown> {
        let frozen = {
            let mut state = self.state.write();
            state.frozen = Arc::new(std::mem::take(&mut state.memory).into_sorted());
            Arc::clone(&state.frozen)
        };
        let result = match merging {
            Merging::Few => self.write_frozen(folder, &frozen),
            Merging::One { keep } => self.write_one(folder, &frozen, keep),
        };
        let mut state = self.state.write();
        if result.is_err() {
            // Nothing is lost: it goes back to memory.
            let back = std::mem::take(&mut state.frozen);
            back.records().iter().for_each(|record| state.memory.insert(*record));
        }
        state.frozen = Arc::default();
        result
    }

    fn write_frozen(&self, folder: &Path, frozen: &Sorted<N>) -> io::Result<WrittenDown> {
        let mut runs = self.state.read().runs.clone();
        let mut unneeded = Vec::new();
        let records = frozen.records();
        if !records.is_empty() {
            let path = folder.join(run_name());
            run::write(&path, records.len() as u64, records.iter().map(|record| Ok(*record)))?;
            runs.push(Arc::new(Run::open(&path)?));
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.count()));
        if runs.len() > RUNS_LIMIT {
            let merged = runs.split_off(first_to_merge(&runs));
            runs.push(merge(folder, &merged, &[], &|_| true)?);
            unneeded.extend(merged.iter().map(|run| run.path().to_owned()));
        }
        Ok(self.set_written(runs, unneeded))
    }

    fn write_one(&self, folder: &Path, frozen: &Sorted<N>, keep: &dyn Fn(&[u8; N]) -> bool) -> io::Result<WrittenDown> {
        let runs = self.state.read().runs.clone();
        let merged = merge(folder, &runs, frozen.records(), keep)?;
        let unneeded = runs.iter().map(|run| run.path().to_owned()).collect();
        Ok(self.set_written(vec![merged], unneeded))
    }

    fn set_written(&self, runs: Vec<Arc<Run<N>>>, unneeded: Vec<PathBuf>) -> WrittenDown {
        let names = runs
            .iter()
            .filter_map(|run| Some(run.path().file_name()?.to_str()?.to_owned()))
            .collect();
        self.state.write().runs = runs;
        WrittenDown { names, unneeded }
    }

    /// The only run, where [`Merging::One`] has just left one.
    pub(super) fn only_run(&self) -> Option<Arc<Run<N>>> {
        match self.state.read().runs.as_slice() {
            [only] => Some(Arc::clone(only)),
            _ => None,
        }
    }
}

/// Runs as one, each record once.
fn merge<const N: usize>(
    folder: &Path,
    runs: &[Arc<Run<N>>],
    memory: &[[u8; N]],
    keep: &dyn Fn(&[u8; N]) -> bool,
) -> io::Result<Arc<Run<N>>> {
    let mut sources: Vec<Box<dyn Iterator<Item = io::Result<[u8; N]>> + '_>> = Vec::with_capacity(runs.len() + 1);
    for run in runs {
        sources.push(Box::new(run.records()));
    }
    sources.push(Box::new(memory.iter().map(|record| Ok(*record))));
    let at_most = runs.iter().map(|run| run.count()).sum::<u64>() + memory.len() as u64;
    let kept = Merged::new(sources).filter(|record| record.as_ref().map_or(true, keep));
    let path = folder.join(run_name());
    run::write(&path, at_most, kept)?;
    Run::open(&path).map(Arc::new)
}

/// Where the runs begin, of those sorted from largest to smallest, that are worth merging: always the last two, and every
/// larger one that is no larger than what it would be merged with, so that what is written again at least doubles.
fn first_to_merge<const N: usize>(runs: &[Arc<Run<N>>]) -> usize {
    let mut first = runs.len().saturating_sub(2);
    let mut sum: u64 = runs[first..].iter().map(|run| run.count()).sum();
    while first > 0 && runs[first - 1].count() <= sum {
        first -= 1;
        sum += runs[first].count();
    }
    first
}

/// How a table's runs are merged when it is written down.
pub(super) enum Merging<'a, const N: usize> {
    /// When there are too many.
    Few,
    /// Into one, with the records that are still wanted.
    One { keep: &'a dyn Fn(&[u8; N]) -> bool },
}

/// What a table has on disk now.
pub(super) struct WrittenDown {
    pub(super) names: Vec<String>,
    pub(super) unneeded: Vec<PathBuf>,
}

impl WrittenDown {
    /// Only after the manifest no longer names them. A file that stays costs space alone.
    pub(super) fn remove_unneeded(&self) {
        for path in &self.unneeded {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(path = %path.display(), %error, "a merged run of the local index stays");
            }
        }
    }
}

fn run_name() -> String {
    format!("{}.run", hex::encode(random::<8>()))
}
