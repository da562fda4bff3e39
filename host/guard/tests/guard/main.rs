//! Hosts and guards that are killed while something is owed, on scratch file systems. Needs root.

mod agents;
mod figures;
mod freezing;
mod killed;
mod world;
