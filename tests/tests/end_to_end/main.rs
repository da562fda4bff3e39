//! Coffre as its users run it: the program, real plugins, real file systems, real servers.

mod answers;
mod bad_input;
mod clean;
mod crash;
mod damage;
mod databases;
mod disks;
mod durable;
mod forget;
mod full_disk;
mod guard;
mod heal;
mod hook_command;
mod hook_faults;
mod hooks;
mod keys;
mod killed;
mod killed_hooks;
mod machine;
mod plugins;
mod promises;
mod reflink;
mod roles;
mod shipped_scripts;
mod status;
mod stores;
