//! Taking chunks: what is known, what is new, which pack is open, and what is on its way to the vault.
//!
//! `claim` and `put` come from many threads. A chunk is compressed by its caller's thread and copied into the open pack under
//! a lock that is held for that copy alone; when a pack is full, sealing, proving and sending it are a task of their own.
//! Nobody deduplicates against a pack of another session before a piece of the index lists it in the vault, or a crash in
//! between would leave a point whose chunks cannot be found.

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::used::UsedPacks;
use super::{Claim, PutReport, WriteError, WriteStats};
use crate::gclog::GcLog;
use crate::ids::{ChunkId, MachineNumber, SessionNumber};
use crate::index::{Found, PackSet};
use crate::object::{ObjectType, PackKey};
use crate::offload::offload;
use crate::pace::Pace;
use crate::pack::{
    Acquired, CHUNK_LIMIT_BYTES, CHUNKS_LIMIT, ChunkKind, Encoder, PackBuilder, PackHolder, PackListing, encode_piece,
};
use crate::parity::Parity;
use crate::suspect::{self, Suspects};
use crate::vault::{Inner, LeftOut};

/// How attachments are cut.
const ATTACHMENT_CHUNK_BYTES: usize = 128 * 1024;

/// Writes the chunks of one point and then the point. Clones share the session.
///
/// `claim` and `put` block and are called from plain threads, never from within the runtime.
#[derive(Clone)]
pub struct SessionWriter {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) vault: Arc<Inner>,
    pub(super) machine: MachineNumber,
    pub(super) number: SessionNumber,
    pub(super) machine_name: String,
    pub(super) host: String,
    runtime: Handle,
    pub(super) log: GcLog,
    /// Condemned before the session began, also what the log no longer names because it is gone. What is condemned later
    /// waits for this session.
    condemned: PackSet,
    claims: Mutex<Claims>,
    open: Mutex<OpenPacks>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    sent: Mutex<Sent>,
    /// Held while a pack's parity is made.
    parity: tokio::sync::Mutex<()>,
    /// What packs ask before they go. None: they go.
    pace: OnceLock<Arc<dyn Pace>>,
    failure: Mutex<Option<WriteError>>,
    /// Set together with `failure`, so that looking is cheap.
    failed: AtomicBool,
    new_chunks: AtomicU64,
    known_chunks: AtomicU64,
    stored_bytes: AtomicU64,
}

#[derive(Default)]
struct Claims {
    /// Claimed, and not yet in a piece of the index that is in the vault. At most about a dozen packs' worth.
    fresh: HashSet<ChunkId>,
    /// Packs of others that this point relies on.
    /// With their sizes: the local index may have taken in that they are gone when the commit looks for them.
    used: UsedPacks,
    /// Of those, the ones that pieces of this session list.
    adopted: HashSet<PackKey>,
}

impl Claims {
    fn is_unlisted(&self, pack: &PackKey) -> bool {
        !self.adopted.contains(pack)
    }
}

#[derive(Default)]
struct OpenPacks {
    data: Option<PackBuilder>,
    node: Option<PackBuilder>,
    next_number: u32,
    over: bool,
}

impl OpenPacks {
    fn slot(&mut self, kind: ChunkKind) -> &mut Option<PackBuilder> {
        match kind {
            ChunkKind::Data => &mut self.data,
            ChunkKind::Node => &mut self.node,
        }
    }
}

/// What is in the vault.
#[derive(Default)]
struct Sent {
    /// Number and size of every pack.
    packs: Vec<(u32, u32)>,
    /// Packs that no piece lists yet.
    waiting: Vec<PackListing>,
    pieces: u32,
}

impl std::fmt::Debug for SessionWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionWriter({}/{})", self.shared.machine, self.shared.number)
    }
}

impl SessionWriter {
    pub(crate) fn new(
        vault: Arc<Inner>,
        machine: (MachineNumber, String),
        number: SessionNumber,
        host: String,
        log: GcLog,
        adopted: Vec<PackListing>,
    ) -> Self {
        let mut used = UsedPacks::default();
        for info in adopted.iter().map(|listing| &listing.info) {
            if let Some(size_bytes) = NonZeroU32::new(info.size_bytes) {
                used.insert(info.key, size_bytes);
            }
        }
        let claims = Claims {
            fresh: adopted
                .iter()
                .flat_map(|listing| &listing.entries)
                .map(|entry| entry.id)
                .collect(),
            used,
            adopted: adopted.iter().map(|listing| listing.info.key).collect(),
        };
        let sent = Sent {
            waiting: adopted,
            ..Sent::default()
        };
        let shared = Shared {
            machine: machine.0,
            machine_name: machine.1,
            number,
            host,
            runtime: Handle::current(),
            condemned: match vault.leaves_out(LeftOut::CondemnedPacks) {
                true => PackSet::default(),
                false => vault.index.condemned(),
            },
            vault,
            log,
            claims: Mutex::new(claims),
            open: Mutex::default(),
            tasks: Mutex::default(),
            sent: Mutex::new(sent),
            parity: tokio::sync::Mutex::new(()),
            pace: OnceLock::new(),
            failure: Mutex::default(),
            failed: AtomicBool::new(false),
            new_chunks: AtomicU64::new(0),
            known_chunks: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
        };
        let shared = Arc::new(shared);
        shared
            .vault
            .pool
            .add_holder(Arc::downgrade(&shared) as Weak<dyn PackHolder>);
        Self { shared }
    }

    pub fn machine(&self) -> MachineNumber {
        self.shared.machine
    }

    pub fn number(&self) -> SessionNumber {
        self.shared.number
    }

    /// From now on every pack asks `pace` before it goes. Said once, before the first chunk.
    pub fn pace_by(&self, pace: Arc<dyn Pace>) {
        // A second one would change nothing, which is as good.
        let _ = self.shared.pace.set(pace);
    }

    /// Asks whether the vault has a chunk. `New` is said once per id and session: who hears it must put the chunk.
    pub fn claim(&self, id: &ChunkId) -> Result<Claim, WriteError> {
        let shared = &self.shared;
        shared.check()?;
        let claimed = shared.claims.lock().fresh.contains(id);
        let known = claimed || shared.is_in_vault(id)?;
        // Two threads may both have found nothing: only one of them inserts.
        if known || !shared.claims.lock().fresh.insert(*id) {
            shared.known_chunks.fetch_add(1, Ordering::Relaxed);
            return Ok(Claim::Known);
        }
        shared.new_chunks.fetch_add(1, Ordering::Relaxed);
        Ok(Claim::New)
    }

    /// Compresses and appends a chunk to an open pack. Blocks while as many packs are alive as may be.
    pub fn put(
        &self,
        kind: ChunkKind,
        id: ChunkId,
        plain: &[u8],
        encoder: &mut Encoder,
    ) -> Result<PutReport, WriteError> {
        if plain.is_empty() || plain.len() > CHUNK_LIMIT_BYTES {
            return Err(WriteError::ChunkTooLarge {
                bytes: plain.len(),
                limit_bytes: CHUNK_LIMIT_BYTES,
            });
        }
        let shared = &self.shared;
        shared.check()?;
        let (body, compressed) = encoder.encode(plain);
        let stored_bytes = (body.len() + crate::seal::TAG_BYTES) as u32;
        let mut open = shared.open.lock();
        if open.over {
            return Err(WriteError::Over);
        }
        if open
            .slot(kind)
            .as_ref()
            .is_some_and(|pack| !pack.fits(body.len()) || pack.chunks() == CHUNKS_LIMIT)
        {
            shared.close(&mut open, kind);
        }
        if open.slot(kind).is_none() {
            let pack = shared.open_pack(&mut open, kind)?;
            *open.slot(kind) = Some(pack);
        }
        if let Some(pack) = open.slot(kind) {
            pack.push(id, body, plain.len(), compressed);
        }
        Ok(PutReport { stored_bytes })
    }

    /// Cuts `content` at 128 KiB and puts what is not known yet.
    pub fn put_bytes(&self, content: &[u8]) -> Result<Vec<ChunkId>, WriteError> {
        let hasher = self.shared.vault.hasher();
        let mut encoder = Encoder::new();
        let mut ids = Vec::with_capacity(content.len().div_ceil(ATTACHMENT_CHUNK_BYTES));
        for piece in content.chunks(ATTACHMENT_CHUNK_BYTES) {
            let id = hasher.id(piece);
            if self.claim(&id)? == Claim::New {
                self.put(ChunkKind::Data, id, piece, &mut encoder)?;
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Puts a piece of the index that lists packs of others, which the session's point counts among its own.
    pub(crate) async fn relist(&self, listings: Vec<PackListing>) -> Result<(), WriteError> {
        self.shared.check()?;
        let number = {
            let mut sent = self.shared.sent.lock();
            sent.pieces += 1;
            sent.pieces - 1
        };
        self.shared.send_piece(number, listings).await
    }

    /// What the vault has no good copy of, as far as this session knows: ask before taking over anything from a base.
    /// None: nothing. May read all of the local index.
    pub async fn suspects(&self) -> Result<Option<Suspects>, WriteError> {
        let found = self
            .shared
            .off_runtime(|shared| suspect::suspects(&shared.vault, &shared.log));
        found.await?.map_err(|source| WriteError::Cache {
            source: Arc::new(source),
        })
    }

    pub fn stats(&self) -> WriteStats {
        let shared = &self.shared;
        WriteStats {
            packs: shared.sent.lock().packs.len() as u32,
            stored_bytes: shared.stored_bytes.load(Ordering::Relaxed),
            new_chunks: shared.new_chunks.load(Ordering::Relaxed),
            known_chunks: shared.known_chunks.load(Ordering::Relaxed),
        }
    }

    /// Gives the session up. Nothing is deleted; what was sent is there for a session that resumes this one.
    pub async fn abort(&self, reason: &str) -> Result<(), super::CommitError> {
        self.end().await?;
        super::abort(&self.shared.vault, self.shared.machine, self.shared.number, reason).await
    }

    /// Leaves the session undecided, for one that resumes it: waits for the packs that are on their way, and takes nothing
    /// more. Until then, or until its deadline, no clean-up touches what it has sent.
    pub async fn leave(&self) -> Result<(), WriteError> {
        self.end().await
    }

    async fn end(&self) -> Result<(), WriteError> {
        let ended = self.shared.off_runtime(|shared| {
            let mut open = shared.open.lock();
            open.over = true;
            open.data = None;
            open.node = None;
        });
        ended.await?;
        self.shared.finish_tasks().await;
        Ok(())
    }
}

impl PackHolder for Shared {
    fn close_idle(self: Arc<Self>) {
        // Whoever holds the lock is putting, or waiting for memory without an open pack.
        if let Some(mut open) = self.open.try_lock() {
            self.close(&mut open, ChunkKind::Node);
            self.close(&mut open, ChunkKind::Data);
        }
    }
}

impl Shared {
    fn check(&self) -> Result<(), WriteError> {
        if self.failed.load(Ordering::Acquire) {
            self.failure()
        } else {
            Ok(())
        }
    }

    pub(super) fn failure(&self) -> Result<(), WriteError> {
        self.failure.lock().clone().map_or(Ok(()), Err)
    }

    /// The first failure is the one that is told.
    fn fail(&self, error: WriteError) {
        tracing::debug!(session = %self.number, %error, "the session has failed");
        self.failure.lock().get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    fn is_in_vault(&self, id: &ChunkId) -> Result<bool, WriteError> {
        let failed = |source| WriteError::Cache {
            source: Arc::new(source),
        };
        let candidates = self.vault.index.candidates(id).map_err(failed)?;
        let relied_on = |found: &&Found| !self.log.forbids(&found.pack) && !self.condemned.contains(&found.pack);
        let Some(found) = candidates.iter().find(relied_on) else {
            return Ok(false);
        };
        if !self.is_own(&found.pack) && !self.claims.lock().used.contains(&found.pack) {
            let Some(info) = self.vault.index.pack(&found.pack).map_err(failed)? else {
                return Ok(false);
            };
            // There is no pack of no size: nothing is relied on that a piece says so of.
            let Some(size_bytes) = NonZeroU32::new(info.size_bytes) else {
                return Ok(false);
            };
            self.claims.lock().used.insert(found.pack, size_bytes);
        }
        Ok(true)
    }

    fn is_own(&self, pack: &PackKey) -> bool {
        (pack.machine, pack.session) == (self.machine, self.number)
    }

    fn open_pack(self: &Arc<Self>, open: &mut OpenPacks, kind: ChunkKind) -> Result<PackBuilder, WriteError> {
        loop {
            // A failed session must not wait for memory that it will not use.
            self.check()?;
            let has_open = open.data.is_some() || open.node.is_some();
            match self.vault.pool.acquire(has_open) {
                Acquired::Buffer(buffer) => return Ok(PackBuilder::new(buffer, kind)),
                Acquired::CloseOne => {
                    self.close(open, ChunkKind::Node);
                    self.close(open, ChunkKind::Data);
                }
            }
        }
    }

    /// Sends an open pack on its way.
    fn close(self: &Arc<Self>, open: &mut OpenPacks, kind: ChunkKind) {
        let Some(mut pack) = open.slot(kind).take() else { return };
        pack.set_moving();
        let key = PackKey {
            machine: self.machine,
            session: self.number,
            number: open.next_number,
        };
        open.next_number += 1;
        let shared = Arc::clone(self);
        let task = self.runtime.spawn(async move {
            if let Err(error) = shared.send(pack, key).await {
                shared.fail(error);
            }
        });
        let mut tasks = self.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    async fn send(&self, pack: PackBuilder, key: PackKey) -> Result<(), WriteError> {
        let vault = Arc::clone(&self.vault);
        let sealed = offload(move || {
            let sealed = pack.seal(&vault.ring, vault.id, key);
            sealed.prove(&vault.ring, vault.id, &vault.hasher()).map(|()| sealed)
        });
        let sealed = match sealed.await {
            Ok(Ok(sealed)) => sealed,
            Ok(Err(damage)) => {
                return Err(WriteError::NotProven {
                    pack: key.to_string(),
                    what: damage.to_string(),
                });
            }
            Err(panicked) => {
                return Err(WriteError::Broken {
                    what: panicked.to_string(),
                });
            }
        };
        let size_bytes = sealed.listing.info.size_bytes;
        let failed = |source| WriteError::Pack {
            pack: key.to_string(),
            source: Arc::new(source),
        };
        if let Some(parity) = self.vault.store.parity() {
            let (object, made) = (
                key.parity_object(),
                self.parity_of(&key, sealed.bytes.clone(), parity).await?,
            );
            let bytes = made.len() as u64;
            self.vault.store.create(&object, made).await.map_err(failed)?;
            self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        if let Some(pace) = self.pace.get() {
            pace.admit(u64::from(size_bytes)).await;
        }
        self.vault
            .store
            .create(&key.object(), sealed.bytes)
            .await
            .map_err(failed)?;
        self.stored_bytes.fetch_add(u64::from(size_bytes), Ordering::Relaxed);
        let piece = {
            let mut sent = self.sent.lock();
            sent.packs.push((key.number, size_bytes));
            sent.waiting.push(sealed.listing);
            (sent.waiting.len() >= self.vault.packs_per_piece).then(|| sent.next_piece())
        };
        match piece {
            Some((number, listings)) => self.send_piece(number, listings).await,
            None => Ok(()),
        }
    }

    async fn parity_of(&self, key: &PackKey, pack: Bytes, parity: Parity) -> Result<Bytes, WriteError> {
        // One at a time: it takes as much memory as the pack.
        let _one = self.parity.lock().await;
        let broken = |what: String| WriteError::Broken {
            what: format!("the parity of pack {key}: {what}"),
        };
        match offload(move || crate::parity::encode(&pack, parity)).await {
            Ok(Ok(made)) => Ok(made.into()),
            Ok(Err(error)) => Err(broken(error.to_string())),
            Err(panicked) => Err(broken(panicked.to_string())),
        }
    }

    async fn send_piece(&self, number: u32, listings: Vec<PackListing>) -> Result<(), WriteError> {
        let key = PackKey {
            machine: self.machine,
            session: self.number,
            number,
        };
        let object = key.index_object();
        let bytes = self
            .vault
            .records()
            .seal(ObjectType::Index, &object, &encode_piece(&listings));
        let size_bytes = bytes.len() as u64;
        let sent = self.vault.store.create(&object, bytes).await;
        sent.map_err(|source| WriteError::Index {
            source: Arc::new(source),
        })?;
        self.stored_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        let vault = Arc::clone(&self.vault);
        let added = offload(move || vault.index.add_piece(key, &listings).map(|()| listings));
        let listings = match added.await {
            Ok(Ok(listings)) => listings,
            Ok(Err(source)) => {
                return Err(WriteError::Cache {
                    source: Arc::new(source),
                });
            }
            Err(panicked) => {
                return Err(WriteError::Broken {
                    what: panicked.to_string(),
                });
            }
        };
        // Only after the index has them: in between they are in both, never in neither.
        let mut claims = self.claims.lock();
        for entry in listings.iter().flat_map(|listing| &listing.entries) {
            claims.fresh.remove(&entry.id);
        }
        Ok(())
    }

    /// For what takes the lock on the open packs, which a `put` may hold for as long as it waits for memory.
    async fn off_runtime<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> R + Send + 'static,
    ) -> Result<R, WriteError> {
        let shared = Arc::clone(self);
        let done = offload(move || work(&shared)).await;
        done.map_err(|panicked| WriteError::Broken {
            what: panicked.to_string(),
        })
    }

    /// Steps 4 and 5 to their end: nothing is open, everything is sent and listed.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<(), WriteError> {
        let closed = self.off_runtime(|shared| {
            let mut open = shared.open.lock();
            if open.over {
                return Err(WriteError::Over);
            }
            open.over = true;
            shared.close(&mut open, ChunkKind::Node);
            shared.close(&mut open, ChunkKind::Data);
            Ok(open.next_number as usize)
        });
        let closed = closed.await??;
        self.finish_tasks().await;
        self.failure()?;
        let sent = self.sent.lock().packs.len();
        if sent != closed {
            return Err(WriteError::Broken {
                what: format!("{sent} of {closed} packs were sent"),
            });
        }
        let last = {
            let mut sent = self.sent.lock();
            (!sent.waiting.is_empty()).then(|| sent.next_piece())
        };
        if let Some((number, listings)) = last
            && let Err(error) = self.send_piece(number, listings).await
        {
            self.fail(error.clone());
            return Err(error);
        }
        Ok(())
    }

    async fn finish_tasks(&self) {
        loop {
            let Some(task) = self.tasks.lock().pop() else { return };
            if let Err(panicked) = task.await {
                self.fail(WriteError::Broken {
                    what: panicked.to_string(),
                });
            }
        }
    }

    /// The session's own packs and their sizes, those of others that it relies on, and its pieces.
    pub(super) fn needed(&self) -> (Vec<(u32, u32)>, UsedPacks, u32) {
        let sent = self.sent.lock();
        (sent.packs.clone(), self.claims.lock().used.clone(), sent.pieces)
    }

    /// The sessions of others whose packs this one relies on and does not list.
    pub(super) fn used_sessions(&self) -> BTreeSet<(MachineNumber, SessionNumber)> {
        let claims = self.claims.lock();
        let has_unlisted = |(machine, session): &(MachineNumber, SessionNumber)| {
            claims.used.of(*machine, *session).any(|pack| claims.is_unlisted(&pack))
        };
        claims.used.sessions().into_iter().filter(has_unlisted).collect()
    }

    pub(super) fn used_of(&self, machine: MachineNumber, session: SessionNumber) -> BTreeSet<PackKey> {
        let claims = self.claims.lock();
        let of_session = claims.used.of(machine, session);
        of_session.filter(|pack| claims.is_unlisted(pack)).collect()
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }
}

impl Sent {
    fn next_piece(&mut self) -> (u32, Vec<PackListing>) {
        let number = self.pieces;
        self.pieces += 1;
        (number, std::mem::take(&mut self.waiting))
    }
}
