//! The vault: format and protocol on any object store. Knows no plugin and no job.
//!
//! What lies in a vault is described byte by byte in `FORMAT.md` beside this crate. On the way from disk to vault a chunk goes
//! through [`SessionWriter::claim`] (is it known?), [`SessionWriter::put`] (into a pack), the pack's sealing and proof, the
//! store, a piece of the index, and is part of a recovery point with [`SessionWriter::commit`]; on the way back through
//! [`ChunkReader::locate`], `fetch` and `open`.

pub mod map;

mod clean;
mod clock;
mod fate;
mod gclog;
mod heaps;
mod ids;
mod index;
mod key;

mod mark;
mod object;
mod offload;
mod pace;
mod pack;
mod parity;
mod point;
mod read;
mod record;
mod register;
mod repair;
mod seal;
mod session;
mod store;
mod suspect;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vault;
mod verify;

pub use clean::{
    Amount, CleanError, CleanPlan, CleanProgress, CleanReport, CleanStage, DamagedChunk, PurgedPoint, Refused,
    RefusedKind, SessionName, Waiting,
};
pub use clock::{Clock, SystemClock};
pub use fate::{FateChange, FateError};
pub use heaps::keep_few_heaps;
pub use ids::{ChunkId, IdError, MachineNumber, SessionNumber, VaultId};
pub use key::{Credential, KeyError, RecoveryKey, SlotKind};
pub use pace::Pace;
pub use pack::{ChunkKind, Decoder, Encoder};
pub use parity::{Parity, ParityError};
pub use point::{
    Compared, ComparedHow, Consistency, ConsistencyReached, Fate, HookOutcome, MapRoot, Note, NoteLevel, Pin, Point,
    PointAttachment, PointDisk, PointDraft, PointProvider, StepOutcome, Written,
};
pub use read::{ChunkReader, Location, PackRef, ReadError};
pub use register::Session;
pub use repair::{LogRepairReport, RepairError, RepairProgress, RepairReport};
pub use session::{BeginError, Claim, CommitError, PutReport, SessionPlan, SessionWriter, WriteError, WriteStats};
pub use store::{Cause, SecretText, Store, StoreConfig, StoreError, StoreOptions};
pub use suspect::{Suspect, SuspectPiece, SuspectWalk, Suspects};
#[cfg(any(test, feature = "testing"))]
pub use vault::LeftOut;
pub use vault::{
    ChunkHasher, Encryption, InitError, InitOptions, Initialized, KeySlot, KeysError, OpenError, OpenOptions, Rotated,
    Rotation, SlotState, Tuning, Vault, VaultKeys,
};
pub use verify::{
    Damage, Mended, Percentage, PercentageError, ReadData, Touched, VerifyPlan, VerifyProgress, VerifyReport,
};
