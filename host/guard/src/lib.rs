//! What must be undone is undone, whatever happens to the process that did it: file systems are thawed, process trees end,
//! locks are let go.
//!
//! A *debt* is written into a ledger and entrusted to the *guard*, a small process of its own, before it is incurred. The
//! guard (`coffre-guard`) pays when the deadline passes or its host is gone; if the guard goes first, the host pays at once;
//! if both go, the next start of any program that works ([`settle`]) does.
//!
//! ```text
//! handle    the host's side: Guard, Owed            freeze   freezing with refusals, order and deadline
//! wire      what host and guard say                 program  the guard itself
//! agent     talks to the guest agent in a machine
//! ledger    what is owed, on /run and in the state  settle   paying at a start, and showing that writes work (prove)
//! ```
//! This crate knows no job, no plugin and no runtime: it must start in milliseconds and be read in an hour.

pub mod agent;
mod clock;
#[cfg(test)]
mod counting;
mod debt;
mod freeze;
mod handle;
mod ioctl;
mod ledger;
mod mounts;
mod pay;
mod peer;
pub mod program;
mod prove;
mod settle;
pub mod tree;
mod wire;

pub use debt::{Debt, Device, Outcome, Owner, Payer, Why};
pub use freeze::{FreezeEnd, FreezeError, Frozen, Protected, Thawed, ThawedMount, anything_frozen, look};
pub use handle::{Guard, GuardConfig, GuardError, Owed, Settled, Subscription};
pub use ledger::LedgerError;
pub use mounts::Mount;
pub use prove::{Proof, prove};
pub use settle::{Found, Left, Settlement, SettlementEnd, program_beside, settle};
pub use wire::Shelter;
