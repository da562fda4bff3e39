//! A table of records: the newest in memory, the others in sorted runs, merged so that there are few.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::run::{self, KEY_BYTES, Run};
use crate::key::random;

/// A table is asked to write itself down at this many records in memory: 128 Ki × 48 bytes and the tree around them.
const MEMORY_RECORDS: usize = 128 * 1024;

struct State<const N: usize> {
    memory: BTreeSet<[u8; N]>,
    /// What is being written down; still looked at meanwhile.
    frozen: Arc<BTreeSet<[u8; N]>>,
    runs: Vec<Arc<Run<N>>>,
}

/// Records of `N` bytes that begin with a key of 20 bytes.
pub(super) struct Table<const N: usize> {
    state: RwLock<State<N>>,
}

impl<const N: usize> Table<N> {
    pub(super) fn empty() -> Self {
        let state = State {
            memory: BTreeSet::new(),
            frozen: Arc::default(),
            runs: Vec::new(),
        };
        Self {
            state: RwLock::new(state),
        }
    }

    pub(super) fn insert(&self, records: impl Iterator<Item = [u8; N]>) {
        self.state.write().memory.extend(records);
    }

    pub(super) fn wants_writing(&self) -> bool {
        self.state.read().memory.len() >= MEMORY_RECORDS
    }

    /// Every record with this key, in no order.
    pub(super) fn lookup(&self, key: &[u8; KEY_BYTES]) -> io::Result<Vec<[u8; N]>> {
        let mut found = Vec::new();
        let (mut low, mut high) = ([0; N], [0xff; N]);
        low[..KEY_BYTES].copy_from_slice(key);
        high[..KEY_BYTES].copy_from_slice(key);
        let state = self.state.read();
        found.extend(state.memory.range(low..=high));
        found.extend(state.frozen.range(low..=high));
        for run in &state.runs {
            run.lookup(key, &mut found)?;
        }
        Ok(found)
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
        state.memory.clear();
        state.frozen = Arc::default();
        state.runs.clear();
    }

    /// Writes what is in memory into a run and merges runs of about one size. Gives the names that the manifest must have
    /// from now on and the files that nobody needs once it has. The caller sees to it that nobody else writes.
    pub(super) fn write_down(&self, folder: &Path) -> io::Result<WrittenDown> {
        let frozen = {
            let mut state = self.state.write();
            state.frozen = Arc::new(std::mem::take(&mut state.memory));
            Arc::clone(&state.frozen)
        };
        let result = self.write_frozen(folder, &frozen);
        let mut state = self.state.write();
        if result.is_err() {
            // Nothing is lost: it goes back to memory.
            let back = std::mem::take(&mut state.frozen);
            state.memory.extend(back.iter().copied());
        }
        state.frozen = Arc::default();
        result
    }

    fn write_frozen(&self, folder: &Path, frozen: &BTreeSet<[u8; N]>) -> io::Result<WrittenDown> {
        let mut runs = self.state.read().runs.clone();
        let mut unneeded = Vec::new();
        if !frozen.is_empty() {
            let path = folder.join(run_name());
            run::write(&path, frozen.len() as u64, frozen.iter().map(|record| Ok(*record)))?;
            runs.push(Arc::new(Run::open(&path)?));
        }
        // Each run is more than twice as large as the next, so their number grows with the logarithm of the whole.
        runs.sort_by_key(|run| std::cmp::Reverse(run.count()));
        let too_near = |runs: &[Arc<Run<N>>]| (1..runs.len()).rfind(|at| runs[at - 1].count() < 2 * runs[*at].count());
        while let Some(at) = too_near(&runs) {
            let (right, left) = (runs.remove(at), runs.remove(at - 1));
            let path = folder.join(run_name());
            run::write(
                &path,
                left.count() + right.count(),
                run::merged(left.records(), right.records()),
            )?;
            unneeded.extend([left.path().to_owned(), right.path().to_owned()]);
            runs.push(Arc::new(Run::open(&path)?));
            runs.sort_by_key(|run| std::cmp::Reverse(run.count()));
        }
        let names = runs
            .iter()
            .filter_map(|run| Some(run.path().file_name()?.to_str()?.to_owned()))
            .collect();
        self.state.write().runs = runs;
        Ok(WrittenDown { names, unneeded })
    }
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
