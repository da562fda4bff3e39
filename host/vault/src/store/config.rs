//! Where a vault lies and how to get there.

use std::fmt;
use std::path::PathBuf;

use url::Url;
use zeroize::Zeroizing;

use crate::parity::Parity;

/// A secret that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself, for whoever must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A vault's address.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `s3://bucket/prefix`, `az://container/prefix` or `file:///folder`. `memory://` is for tests alone.
    pub url: Url,
    pub options: StoreOptions,
}

/// What the address alone does not say. What is absent is taken from the environment, by the names that the AWS and Azure
/// tools use.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// An S3 or Azure endpoint other than the cloud's own.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Plain HTTP, for servers on the same machine.
    pub allow_http: bool,
    /// Further certificate authorities to trust, as PEM.
    pub ca_file: Option<PathBuf>,
    pub access_key_id: Option<SecretText>,
    pub secret_access_key: Option<SecretText>,
    pub session_token: Option<SecretText>,
    /// The Azure storage account.
    pub account: Option<String>,
    pub account_key: Option<SecretText>,
    /// A shared access signature of the container, as the Azure tools print it.
    pub sas_token: Option<SecretText>,
    /// Azurite, with its well-known account.
    pub emulator: bool,
    /// What is written beside each pack to mend it. Local folders only.
    pub parity: Option<Parity>,
}
