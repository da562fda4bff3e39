//! The kinds of vault that tests run against, and where their servers are.

use std::env;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// The bucket or container that `cargo xtask test` makes on each server.
const BUCKET: &str = "coffre-test";

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultKind {
    Folder,
    S3,
    S3Tls,
    Azure,
}

/// All of them.
pub const EVERY_KIND: [VaultKind; 4] = [VaultKind::Folder, VaultKind::S3, VaultKind::S3Tls, VaultKind::Azure];

/// An address that `cargo xtask test` hands on.
#[track_caller]
fn address(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set, so there is no server to test against\nhint: `cargo xtask test` starts the servers")
    })
}

impl VaultKind {
    /// The lines of a `[vault.NAME]` table for a vault of its own, without its key.
    pub fn config(self, folder: &Path) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let s3 = |endpoint: String, more: &str| {
            format!(
                "url = \"s3://{BUCKET}/{prefix}\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\n\
                 access-key-id = {{ env = \"TEST_KEY_ID\" }}\nsecret-access-key = {{ env = \"TEST_SECRET\" }}\n{more}"
            )
        };
        match self {
            Self::Folder => format!("url = \"file://{}\"\n", folder.join("vault").display()),
            Self::S3 => s3(address("COFFRE_TEST_S3"), "allow-http = true\n"),
            Self::S3Tls => s3(
                address("COFFRE_TEST_S3_TLS"),
                &format!("ca-file = \"{}\"\n", address("COFFRE_TEST_S3_CA")),
            ),
            Self::Azure => format!(
                "url = \"az://{BUCKET}/{prefix}\"\nemulator = true\nendpoint = \"{}\"\n",
                address("COFFRE_TEST_AZURE")
            ),
        }
    }
}
