//! The vault: format and protocol on any object store. Knows no plugin and no job.
//!
//! What lies in a vault is described byte by byte in `FORMAT.md` beside this crate.

pub mod map;

mod ids;
mod key;
mod pack;
mod point;
mod read;
mod session;
mod store;
mod vault;
mod verify;

pub use ids::{ChunkId, IdError, MachineNumber, SessionNumber, VaultId};
pub use key::{Credential, KeyError, RecoveryKey};
pub use pack::{ChunkKind, Decoder, Encoder};
pub use point::{
    Compared, ComparedHow, Consistency, ConsistencyReached, Fate, HookOutcome, MapRoot, Note, NoteLevel, Point,
    PointAttachment, PointDisk, PointDraft, PointProvider, StepOutcome, Written,
};
pub use read::{ChunkReader, Location, PackRef, ReadError};
pub use session::{BeginError, Claim, CommitError, PutReport, SessionWriter, WriteError, WriteStats};
pub use store::{SecretText, Store, StoreConfig, StoreError, StoreOptions};
pub use vault::{
    ChunkHasher, Encryption, InitError, InitOptions, Initialized, OpenError, OpenOptions, Session, SessionPlan, Vault,
};
pub use verify::{Damage, Touched, VerifyPlan, VerifyProgress, VerifyReport};
