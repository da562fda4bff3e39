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

/// Who somebody is to a store that enforces what each role may do; docs/permissions.md has what that is.
#[derive(Clone, Debug)]
pub struct Role {
    pub id: String,
    pub secret: String,
}

/// A user of the S3 server that enforces the policies in docs/permissions.
#[track_caller]
pub fn s3_role(name: &str) -> Role {
    let keys = std::fs::read_to_string(address("COFFRE_TEST_S3_ROLES_KEYS")).unwrap();
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    let word = |part: &str| {
        let word = keys[name][part].as_str();
        word.unwrap_or_else(|| panic!("there is no role `{name}`")).to_owned()
    };
    Role {
        id: word("id"),
        secret: word("secret"),
    }
}

/// The lines of a `[vault.NAME]` table for a vault of its own on that server, in the bucket whose objects are locked for 30
/// days or in the other one. Whoever uses it writes the role's words into `role.id` and `role.secret`.
#[track_caller]
pub fn s3_for_roles(locked: bool) -> String {
    let bucket = if locked {
        format!("{BUCKET}-locked")
    } else {
        BUCKET.to_owned()
    };
    format!(
        "url = \"s3://{bucket}/{}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\nallow-http = true\n\
         access-key-id = {{ file = \"role.id\" }}\nsecret-access-key = {{ file = \"role.secret\" }}\n\
         key = {{ file = \"main.key\" }}\n",
        prefix(),
        address("COFFRE_TEST_S3_ROLES")
    )
}

/// The lines of a `[vault.NAME]` table on a server that takes put-if-absent and overwrites.
#[track_caller]
pub fn s3_that_overwrites() -> String {
    format!(
        "url = \"s3://{BUCKET}/{}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\nallow-http = true\n\
         access-key-id = {{ env = \"TEST_S3RVER\" }}\nsecret-access-key = {{ env = \"TEST_S3RVER\" }}\n\
         key = {{ file = \"main.key\" }}\n",
        prefix(),
        address("COFFRE_TEST_S3_OVERWRITING")
    )
}

/// The same on Azure Blob, with a shared access signature in `role.sas`.
#[track_caller]
pub fn azure_for_roles() -> String {
    format!(
        "url = \"az://{BUCKET}/{}\"\nemulator = true\nendpoint = \"{}\"\nsas-token = {{ file = \"role.sas\" }}\n\
         key = {{ file = \"main.key\" }}\n",
        prefix(),
        address("COFFRE_TEST_AZURE")
    )
}

/// What lets somebody do a role's work on Azure Blob: `BACKUP`, `RESTORE` or `CLEANER`.
#[track_caller]
pub fn azure_role(name: &str) -> String {
    address(&format!("COFFRE_TEST_AZURE_SAS_{name}"))
}

/// Below which every vault of a test lies.
fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

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
        let prefix = prefix();
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
