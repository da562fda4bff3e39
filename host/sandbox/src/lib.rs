//! Work in progress.

pub mod process;
