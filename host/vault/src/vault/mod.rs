//! A vault, made or opened.

pub(crate) mod format;
mod fresh;
mod init;
mod keys;
mod left_out;
mod open;
mod rotate;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::clean::{self, CleanError, CleanPlan, CleanProgress, CleanReport};
use crate::clock::{Clock, SystemClock};
use crate::fate::{self, FateChange, FateError, Wish};
use crate::gclog::{self, GcLog};
use crate::ids::{ChunkId, MachineNumber, SessionNumber, VaultId};
use crate::index::LocalIndex;
use crate::key::{Credential, KeyRing, VaultKey, random};
use crate::pack::{PACKS_ALIVE_LIMIT, PackPool};
use crate::point::Point;
use crate::read::{ChunkReader, ReadError, ReaderState};
use crate::record::Records;
use crate::register::{self, Decision, PointRecord, Session};
use crate::repair::{self, RepairError, RepairProgress, RepairReport};
use crate::session::{self, BeginError, CommitError, SessionPlan, SessionWriter};
use crate::store::Store;
use crate::verify::{self, VerifyPlan, VerifyProgress, VerifyReport};

pub use init::{Encryption, InitError, InitOptions, Initialized};
pub use keys::{KeySlot, KeysError, SlotState, VaultKeys};
pub use left_out::LeftOut;
pub use open::{OpenError, OpenOptions};
pub use rotate::{Rotated, Rotation};

/// What names chunks: the first 20 bytes of BLAKE3 keyed by a key of the vault that never changes.
#[derive(Clone, Copy)]
pub struct ChunkHasher {
    key: [u8; 32],
}

impl ChunkHasher {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// For those who merge BLAKE3 subtrees themselves.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    pub fn id(&self, plain: &[u8]) -> ChunkId {
        Self::truncate(&blake3::keyed_hash(&self.key, plain))
    }

    /// The id out of a finished hash.
    pub fn truncate(hash: &blake3::Hash) -> ChunkId {
        let mut id = [0; ChunkId::LENGTH];
        id.copy_from_slice(&hash.as_bytes()[..ChunkId::LENGTH]);
        ChunkId(id)
    }
}

impl std::fmt::Debug for ChunkHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkHasher(secret)")
    }
}

/// What a simulation or a test sets otherwise than a host does.
#[derive(Clone, Debug)]
pub struct Tuning {
    pub clock: Arc<dyn Clock>,
    /// Packs of another size, in memory of their own; none: the process's own.
    pub pack_target_bytes: Option<usize>,
    /// How many packs of such a size are alive at once.
    pub packs_alive: usize,
    /// A piece of the index is put when so many packs wait for one: what a crash loses is at most their deduplication.
    pub packs_per_piece: usize,
    /// The id and the key of a vault that is made, so that its chunks have the same names whenever it is made. Nobody but a
    /// test may know them beforehand.
    #[cfg(any(test, feature = "testing"))]
    pub known_key: Option<[u8; 32]>,
    /// To see that tests notice when a rule is not kept.
    #[cfg(any(test, feature = "testing"))]
    pub left_out: Option<LeftOut>,
}

impl Tuning {
    /// What a new vault gets.
    pub(crate) fn id_and_key(&self) -> (VaultId, VaultKey) {
        #[cfg(any(test, feature = "testing"))]
        if let Some(key) = self.known_key {
            let mut id = [0; VaultId::LENGTH];
            id.copy_from_slice(&key[..VaultId::LENGTH]);
            return (VaultId(id), VaultKey::new(key));
        }
        (VaultId(random()), VaultKey::new(random()))
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            pack_target_bytes: None,
            packs_alive: PACKS_ALIVE_LIMIT,
            packs_per_piece: 8,
            #[cfg(any(test, feature = "testing"))]
            known_key: None,
            #[cfg(any(test, feature = "testing"))]
            left_out: None,
        }
    }
}

/// What the parts of an open vault share.
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) id: VaultId,
    pub(crate) ring: KeyRing,
    pub(crate) index: LocalIndex,
    pub(crate) pool: Arc<PackPool>,
    pub(crate) clock: Arc<dyn Clock>,
    /// A piece of the index is put when so many packs wait for one.
    pub(crate) packs_per_piece: usize,
    /// One fetch of index pieces at a time.
    pub(crate) syncing: tokio::sync::Mutex<()>,
    pub(crate) reading: ReaderState,
    /// The clean-up log as it was last read; it only ever grows.
    log: tokio::sync::Mutex<Option<GcLog>>,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) left_out: Option<LeftOut>,
    encrypted: bool,
}

impl Inner {
    pub(crate) fn records(&self) -> Records<'_> {
        Records {
            store: &self.store,
            vault: self.id,
            ring: &self.ring,
            clock: &*self.clock,
        }
    }

    pub(crate) fn hasher(&self) -> ChunkHasher {
        ChunkHasher::new(*self.ring.chunk_ids())
    }

    /// The clean-up log as it is now: to its end, which is asked for after this was called. What was read before is not
    /// read again.
    pub(crate) async fn log(&self) -> Result<GcLog, ReadError> {
        let mut known = self.log.lock().await;
        let log = match known.take() {
            Some(mut log) => {
                log.follow(self.records()).await?;
                log
            }
            None => gclog::read_from(self.records(), self.index.log_end()).await?,
        };
        Ok(known.insert(log).clone())
    }

    /// The same as far as it is known; read only if nothing is. For those who want to know where to start looking, and
    /// nobody who is about to rely on a pack.
    pub(crate) async fn log_so_far(&self) -> Result<GcLog, ReadError> {
        if let Some(known) = &*self.log.lock().await {
            return Ok(known.clone());
        }
        self.log().await
    }

    /// Whether a test wants to see what happens without a rule. Outside of tests every rule is kept.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn leaves_out(&self, rule: LeftOut) -> bool {
        self.left_out == Some(rule)
    }

    #[cfg(not(any(test, feature = "testing")))]
    pub(crate) fn leaves_out(&self, _: LeftOut) -> bool {
        false
    }
}

/// An open vault. Clones share everything.
#[derive(Clone)]
pub struct Vault {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({} in {})", self.inner.id, self.inner.store.name())
    }
}

impl Vault {
    /// Makes a vault in an empty place.
    pub async fn init(store: Store, options: InitOptions) -> Result<Initialized, InitError> {
        Self::init_tuned(store, options, &Tuning::default()).await
    }

    pub async fn init_tuned(store: Store, options: InitOptions, tuning: &Tuning) -> Result<Initialized, InitError> {
        init::init(store, options, tuning).await
    }

    pub async fn open(store: Store, credential: Option<Credential>, options: OpenOptions) -> Result<Vault, OpenError> {
        Self::open_tuned(store, credential, options, Tuning::default()).await
    }

    pub async fn open_tuned(
        store: Store,
        credential: Option<Credential>,
        options: OpenOptions,
        tuning: Tuning,
    ) -> Result<Vault, OpenError> {
        let inner = open::open(store, credential, options, tuning).await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn id(&self) -> VaultId {
        self.inner.id
    }

    pub fn is_encrypted(&self) -> bool {
        self.inner.encrypted
    }

    /// How messages call the place where it lies.
    pub fn place(&self) -> &str {
        self.inner.store.name()
    }

    /// What this host keeps of the vault and can throw away.
    pub fn cache_folder(&self) -> &Path {
        self.inner.index.folder()
    }

    pub async fn machines(&self) -> Result<Vec<(MachineNumber, String)>, ReadError> {
        let log = self.inner.log_so_far().await?;
        register::machines_after(self.inner.records(), log.machines()).await
    }

    pub async fn machine(&self, name: &str) -> Result<Option<MachineNumber>, ReadError> {
        Ok(self
            .machines()
            .await?
            .into_iter()
            .find(|(_, found)| found == name)
            .map(|(number, _)| number))
    }

    pub async fn machine_or_create(&self, name: &str) -> Result<MachineNumber, BeginError> {
        let log = self.inner.log_so_far().await?;
        Ok(register::machine_or_create(self.inner.records(), log.machines(), name).await?)
    }

    /// A record that is damaged is left out, so that it does not hide the others; [`Vault::verify`] names it.
    async fn decisions(&self, machine: MachineNumber) -> Result<Vec<(SessionNumber, Decision)>, ReadError> {
        let log = self.inner.log().await?;
        let mut all = Vec::new();
        for (number, decision) in log.decisions(self.inner.records(), machine).await? {
            match decision {
                Ok(decision) => all.push((number, decision)),
                Err(error) => tracing::warn!(%machine, %number, %error, "a point or session cannot be read"),
            }
        }
        Ok(all)
    }

    /// Committed points of a machine, ascending, the forgotten and purged ones marked so.
    pub async fn points(&self, machine: MachineNumber) -> Result<Vec<Point>, ReadError> {
        let mut points = Vec::new();
        for (_, decision) in self.decisions(machine).await? {
            if let Decision::Committed(point) = decision {
                points.push(*point);
            }
        }
        // Most points have no fate, so this is one request each, several at a time.
        for window in points.chunks_mut(16) {
            let told = window.iter_mut().map(|point| fate::tell(self.inner.records(), point));
            futures::future::try_join_all(told).await?;
        }
        Ok(points)
    }

    /// One committed point.
    pub async fn point(&self, machine: MachineNumber, number: SessionNumber) -> Result<Option<Point>, ReadError> {
        match register::point_record(self.inner.records(), machine, number).await? {
            Some(PointRecord::Commit { mut point }) => {
                fate::tell(self.inner.records(), &mut point).await?;
                Ok(Some(*point))
            }
            Some(PointRecord::Abort { .. }) | None => Ok(None),
        }
    }

    /// Marks a point to go. It stays restorable, and one [`Vault::undelete`] away from being kept, until a clean-up purges it
    /// some days later. A pinned point is refused.
    pub async fn forget(
        &self,
        machine: MachineNumber,
        number: SessionNumber,
        reason: Option<&str>,
    ) -> Result<FateChange, FateError> {
        fate::change(self.inner.records(), machine, number, Wish::Forget(reason)).await
    }

    /// Keeps a forgotten point again; [`FateError::Purged`] if it is too late.
    pub async fn undelete(&self, machine: MachineNumber, number: SessionNumber) -> Result<FateChange, FateError> {
        fate::change(self.inner.records(), machine, number, Wish::Undelete).await
    }

    /// Keeps a point from being forgotten until it is unpinned. Pinning again changes the reason.
    pub async fn pin(
        &self,
        machine: MachineNumber,
        number: SessionNumber,
        reason: Option<&str>,
    ) -> Result<FateChange, FateError> {
        fate::change(self.inner.records(), machine, number, Wish::Pin(reason)).await
    }

    pub async fn unpin(&self, machine: MachineNumber, number: SessionNumber) -> Result<FateChange, FateError> {
        fate::change(self.inner.records(), machine, number, Wish::Unpin).await
    }

    /// Sessions that are neither committed nor aborted.
    pub async fn sessions_undecided(&self, machine: MachineNumber) -> Result<Vec<(SessionNumber, Session)>, ReadError> {
        let undecided = self
            .decisions(machine)
            .await?
            .into_iter()
            .filter_map(|(number, decision)| match decision {
                Decision::Undecided(session) => Some((number, session)),
                Decision::Aborted | Decision::Committed(_) => None,
            });
        Ok(undecided.collect())
    }

    /// Steps 1 to 3 of a writer.
    pub async fn begin(&self, plan: SessionPlan) -> Result<SessionWriter, BeginError> {
        session::begin(&self.inner, plan).await
    }

    /// After a crash between step 7's fsync and its answer: sends the very bytes of `commit_file` again.
    pub async fn commit_again(
        &self,
        machine: MachineNumber,
        number: SessionNumber,
        commit_file: &Path,
    ) -> Result<Point, CommitError> {
        session::commit_again(&self.inner, machine, number, commit_file).await
    }

    /// Aborts an undecided session of which nothing but its number is left, after a crash. Aborted already is success.
    pub async fn abort(&self, machine: MachineNumber, number: SessionNumber, reason: &str) -> Result<(), CommitError> {
        session::abort(&self.inner, machine, number, reason).await
    }

    pub fn hasher(&self) -> ChunkHasher {
        self.inner.hasher()
    }

    pub fn chunks(&self) -> ChunkReader {
        ChunkReader::new(Arc::clone(&self.inner))
    }

    /// Takes out of the vault what nothing needs any more. See the module for the order and why it is safe.
    pub async fn clean(
        &self,
        plan: &CleanPlan,
        progress: &(dyn Fn(CleanProgress) + Sync),
    ) -> Result<CleanReport, CleanError> {
        clean::clean(&self.inner, plan, progress).await
    }

    /// Says to all writers what a reader of these points has met: the pack that `damage` names, and every pack that holds a
    /// node of their maps which cannot be read. Gives how many packs and lost chunks that were.
    pub async fn quarantine(
        &self,
        machine: MachineNumber,
        points: &[SessionNumber],
        damage: &ReadError,
    ) -> Result<usize, ReadError> {
        verify::quarantine_unreadable(self, machine, points, damage).await
    }

    /// Lists again what lies in packs that no readable piece of the index lists. Deletes and overwrites nothing. `host` is
    /// this host's name, for the session's record.
    pub async fn repair_index(
        &self,
        host: &str,
        progress: &(dyn Fn(RepairProgress) + Sync),
    ) -> Result<RepairReport, RepairError> {
        repair::repair_index(self, host, progress).await
    }

    /// Proves that points can be restored. Damage is in the report; an error means that it could not be looked for.
    pub async fn verify(
        &self,
        plan: VerifyPlan,
        progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport, ReadError> {
        verify::verify(self, plan, progress).await
    }
}
