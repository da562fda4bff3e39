//! A vault, made or opened.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{ChunkId, MachineNumber, SessionNumber, VaultId};
use crate::key::{Credential, RecoveryKey};
use crate::point::Point;
use crate::read::{ChunkReader, ReadError};
use crate::session::{BeginError, CommitError, SessionWriter};
use crate::store::{Store, StoreError};
use crate::verify::{VerifyPlan, VerifyProgress, VerifyReport};

/// How a new vault is sealed.
#[derive(Clone, Debug)]
pub enum Encryption {
    /// One key slot per label and credential.
    Encrypted { slots: Vec<(String, Credential)> },
    /// Only where the config says `encryption = "none"`.
    None,
}

/// How a vault is made.
#[derive(Clone, Debug)]
pub struct InitOptions {
    pub encryption: Encryption,
    /// Make one more slot and hand its key back.
    pub recovery_key: bool,
    /// The host that made it, for people.
    pub host: String,
}

/// A vault that was just made.
#[derive(Clone, Debug)]
pub struct Initialized {
    pub id: VaultId,
    pub recovery_key: Option<RecoveryKey>,
}

/// Why no vault was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("a vault is already there")]
    AlreadyThere { id: Option<VaultId> },
    #[error("the place is not empty: it holds `{example}`")]
    NotEmpty { example: String },
    #[error("the store ignores put-if-absent ({observed}), so two writers could overwrite each other")]
    NoPutIfAbsent { observed: String },
    #[error("an encrypted vault needs a key, or a recovery key at least")]
    NoKey,
    #[error("the store cannot be reached")]
    Unreachable { source: StoreError },
    #[error("make the vault")]
    Store { source: StoreError },
}

/// How a vault is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// What may be thrown away: the local index.
    pub cache_folder: PathBuf,
    /// The id that this host has pinned.
    pub expect_id: Option<VaultId>,
    pub allow_unencrypted: bool,
}

/// Why a vault was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("nothing is there")]
    NotThere,
    #[error("this is no vault: {found}")]
    NotAVault { found: String },
    #[error("the vault has format {found}, this version of Coffre knows formats up to {known}")]
    NewerFormat { found: u32, known: u32 },
    #[error("none of the vault's {slots} key slots opens with this key")]
    WrongKey { slots: usize },
    #[error("the vault is encrypted and no key was given")]
    KeyNeeded,
    #[error("the vault is not encrypted, which the config does not allow")]
    Unencrypted,
    #[error("the vault has the id {found}, this host has pinned {expected}")]
    IdChanged { expected: VaultId, found: VaultId },
    #[error("the store cannot be reached")]
    Unreachable { source: StoreError },
    #[error("the vault is damaged: {what}")]
    Damaged { what: String },
    #[error("open the vault")]
    Store { source: StoreError },
    #[error("open the local index below {}", folder.display())]
    Cache { folder: PathBuf, source: std::io::Error },
}

/// A session as it was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub bases: Vec<SessionNumber>,
    pub deadline: Timestamp,
    pub begun_at: Timestamp,
    pub host: String,
    pub resumes: Option<SessionNumber>,
}

/// A session to begin.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    pub machine: MachineNumber,
    /// The points whose maps and chunks the new one builds upon. They stay while the session is undecided.
    pub bases: Vec<SessionNumber>,
    /// Past it the job fails, and clean-up may fence the session two hours later.
    pub deadline: Timestamp,
    pub host: String,
    /// An earlier session of the same snapshot: it is aborted after the new one exists, and its packs are used again.
    pub resumes: Option<SessionNumber>,
}

/// What names chunks: the first 20 bytes of BLAKE3 keyed by a key of the vault that never changes.
#[derive(Clone, Copy)]
pub struct ChunkHasher {
    key: [u8; 32],
}

impl ChunkHasher {
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

/// An open vault. Clones share everything.
#[derive(Clone, Debug)]
pub struct Vault {}

impl Vault {
    /// Makes a vault in an empty place.
    pub async fn init(_store: Store, _options: InitOptions) -> Result<Initialized, InitError> {
        unimplemented!()
    }

    pub async fn open(
        _store: Store,
        _credential: Option<Credential>,
        _options: OpenOptions,
    ) -> Result<Vault, OpenError> {
        unimplemented!()
    }

    pub fn id(&self) -> VaultId {
        unimplemented!()
    }

    pub fn is_encrypted(&self) -> bool {
        unimplemented!()
    }

    pub async fn machines(&self) -> Result<Vec<(MachineNumber, String)>, ReadError> {
        unimplemented!()
    }

    pub async fn machine(&self, _name: &str) -> Result<Option<MachineNumber>, ReadError> {
        unimplemented!()
    }

    pub async fn machine_or_create(&self, _name: &str) -> Result<MachineNumber, BeginError> {
        unimplemented!()
    }

    /// Committed points of a machine, ascending, the forgotten and purged ones marked so.
    pub async fn points(&self, _machine: MachineNumber) -> Result<Vec<Point>, ReadError> {
        unimplemented!()
    }

    /// One committed point.
    pub async fn point(&self, _machine: MachineNumber, _number: SessionNumber) -> Result<Option<Point>, ReadError> {
        unimplemented!()
    }

    /// Sessions that are neither committed nor aborted.
    pub async fn sessions_undecided(
        &self,
        _machine: MachineNumber,
    ) -> Result<Vec<(SessionNumber, Session)>, ReadError> {
        unimplemented!()
    }

    /// Steps 1 to 3 of a writer.
    pub async fn begin(&self, _plan: SessionPlan) -> Result<SessionWriter, BeginError> {
        unimplemented!()
    }

    /// After a crash between step 7's fsync and its answer: sends the very bytes of `commit_file` again.
    pub async fn commit_again(
        &self,
        _machine: MachineNumber,
        _number: SessionNumber,
        _commit_file: &Path,
    ) -> Result<Point, CommitError> {
        unimplemented!()
    }

    /// Aborts an undecided session of which nothing but its number is left, after a crash. Aborted already is success.
    pub async fn abort(
        &self,
        _machine: MachineNumber,
        _number: SessionNumber,
        _reason: &str,
    ) -> Result<(), CommitError> {
        unimplemented!()
    }

    pub fn hasher(&self) -> ChunkHasher {
        unimplemented!()
    }

    pub fn chunks(&self) -> ChunkReader {
        unimplemented!()
    }

    pub async fn verify(
        &self,
        _plan: VerifyPlan,
        _progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport, ReadError> {
        unimplemented!()
    }
}
