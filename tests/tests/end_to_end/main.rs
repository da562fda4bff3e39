//! Coffre as its users run it: the program, real plugins, real file systems, real servers.

mod bad_input;
mod clean;
mod crash;
mod databases;
mod disks;
mod forget;
mod full_disk;
mod guard;
mod heal;
mod hooks;
mod keys;
mod plugins;
mod promises;
mod reflink;
mod roles;
mod stores;
