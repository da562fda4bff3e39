//! Backups with a provider and hooks that write down what they are asked and break where they are told to, into a real
//! vault in memory.

mod crash;
mod failure;
mod freeze;
mod gate;
mod order;
mod points;
mod rehearsal;
mod remembered;
mod store;
mod world;
