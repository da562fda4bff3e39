//! Trying a machine's hooks without a backup: what stands in for the snapshot, what may go wrong on purpose, and who was
//! held from when to when. [`crate::job::rehearse`] runs it with the very code that a backup runs.

mod fault;
mod pretend;
mod timeline;

pub use fault::{Fault, FaultyHook, FaultyProvider};
pub use pretend::PretendedProvider;
pub use timeline::{Span, SpanStep, Timeline};
