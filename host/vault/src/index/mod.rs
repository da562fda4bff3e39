//! The index: which pack holds which chunk. The truth is the index pieces in the vault; this is a copy of them on local disk
//! that can be thrown away.

mod local;
mod run;
mod sync;
mod table;

pub(crate) use local::{Found, LocalIndex};
pub(crate) use sync::{blocking, load_counted, sync};
