//! What end-to-end tests share: a folder with a configuration, disks with known content, servers, and the program itself.
//!
//! The servers are started by `cargo xtask test`, which says where they are; a test that needs one and does not find it
//! fails and says so.

pub mod browser;
pub mod disk;
pub mod mount;
pub mod place;
pub mod preload;
pub mod proxy;
pub mod servers;
pub mod strike;

pub use place::{Door, Place, Ran};
pub use servers::VaultKind;
