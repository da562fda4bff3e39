//! What a backup is, without saying what a plugin, a script or a terminal is: configuration, jobs, the difference
//! between two instants of a disk, its transfer into a vault, and the way back.
//!
//! The stages (`hook`, `provider`, `source`, `transfer`, `restore`) do not import each other; `job` imports all of
//! them and reads as one backup. The seams that other crates fill are [`SnapshotProvider`], [`HookRunner`], [`DiskSource`] and
//! [`Clock`].

pub mod book;
mod clock;
pub mod config;
pub mod consistency;
mod digest;
mod error_chain;
pub mod freeze;
mod gate;
mod hook;
pub mod job;
pub mod journal;
pub mod live;
mod machine;
pub mod news;
pub mod pacer;
pub mod progress;
mod provider;
pub mod rehearsal;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod scheduler;
pub mod secret;
mod source;
pub mod state;
pub mod status;
pub mod transfer;

pub use clock::{Clock, SystemClock};
pub use error_chain::Chain;
pub use gate::{Gate, OpenGate};
pub use hook::{
    HookContext, HookFailure, HookFailureKind, HookFreeze, HookRunner, HookTerms, PostReport, PreReport,
    SnapshotOutcome, SoFar,
};
pub use machine::{Attachment, Consistency, DiskId, DiskInfo, Extent, Finding, FindingLevel, Machine, OsFamily};
pub use provider::{
    Base, ChangeList, Changes, Description, ProviderError, ProviderErrorKind, ProviderIdentity, Snapshot, SnapshotId,
    SnapshotProvider, Source, TakeRequest, TakenDisk,
};
pub use source::{DiskSource, FileSource, SourceError};
