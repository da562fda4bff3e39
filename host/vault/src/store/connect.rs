//! From an address to an object store.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{ClientOptions, SpawnedReqwestConnector};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, Certificate, ObjectStore, RetryConfig};
use tokio::runtime::Handle;
use url::Url;

use super::config::{StoreConfig, StoreOptions};
use super::error::{Cause, StoreError};
use super::local::LocalStore;

/// A host that does not answer at all is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One request with all of its bytes: a 32 MiB pack at 110 KiB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// object_store asks again on 5xx and lost connections; with this it gives up a refused connection after about 4 s and
/// rides out half a minute of a server that is restarting or slowing us down.
const RETRIES: usize = 7;
const RETRY_TIMEOUT: Duration = Duration::from_secs(40);
/// Azurite's account, the same everywhere and documented as such.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_ENDPOINT: &str = "http://127.0.0.1:10000";
const EMULATOR_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A store, and the prefix in it under which the vault lies.
pub(super) struct Connected {
    pub(super) inner: Arc<dyn ObjectStore>,
    pub(super) prefix: ObjectPath,
    /// Where a local vault lies.
    pub(super) folder: Option<PathBuf>,
}

pub(super) fn connect(config: &StoreConfig) -> Result<Connected, StoreError> {
    let url = &config.url;
    if config.options.parity.is_some() && url.scheme() != "file" {
        return Err(bad(url, "parity is for vaults in a local folder"));
    }
    match url.scheme() {
        "file" => local(url),
        "s3" => s3(url, &config.options),
        "az" => azure(url, &config.options),
        "memory" => Ok(Connected {
            inner: Arc::new(InMemory::new()),
            prefix: prefix(url)?,
            folder: None,
        }),
        other => Err(bad(url, format!("`{other}://` is none of s3://, az:// and file://"))),
    }
}

fn local(url: &Url) -> Result<Connected, StoreError> {
    let folder: PathBuf = url
        .to_file_path()
        .map_err(|()| bad(url, "a folder is wanted, as file:///var/lib/coffre"))?;
    // fsync also covers the parent folders, so a vault on a disk that loses power keeps what was acknowledged.
    if fs::exists(&folder).unwrap_or(true) {
        let inner = LocalFileSystem::new_with_prefix(&folder).map_err(|source| setup(url, source))?;
        return Ok(Connected {
            inner: Arc::new(LocalStore::new(inner.with_fsync(true))),
            prefix: ObjectPath::default(),
            folder: Some(folder),
        });
    }
    // `init` makes the folder with its first object; until then there is nothing that could be made canonical.
    let prefix = ObjectPath::from_absolute_path(&folder).map_err(|error| bad(url, error.to_string()))?;
    Ok(Connected {
        inner: Arc::new(LocalStore::new(LocalFileSystem::new().with_fsync(true))),
        prefix,
        folder: Some(folder),
    })
}

fn s3(url: &Url, options: &StoreOptions) -> Result<Connected, StoreError> {
    let bucket = host(url, "bucket")?;
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        // A bucket with Object Lock takes no put without a checksum. This one is the digest that the signature needs anyway,
        // and the server compares it with what arrived.
        .with_checksum_algorithm(Checksum::SHA256)
        // Deletes are sent one by one, and not every server knows the request for many.
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
        .with_client_options(client_options(options)?)
        .with_retry(retry());
    if let Some(connector) = connector() {
        builder = builder.with_http_connector(connector);
    }
    if let Some(endpoint) = &options.endpoint {
        check_endpoint(url, endpoint, options.allow_http)?;
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if options.allow_http {
        builder = builder.with_allow_http(true);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(id) = &options.access_key_id {
        builder = builder.with_access_key_id(id.expose());
    }
    if let Some(secret) = &options.secret_access_key {
        builder = builder.with_secret_access_key(secret.expose());
    }
    if let Some(token) = &options.session_token {
        builder = builder.with_token(token.expose());
    }
    let inner = builder.build().map_err(|source| setup(url, source))?;
    Ok(Connected {
        inner: Arc::new(inner),
        prefix: prefix(url)?,
        folder: None,
    })
}

fn azure(url: &Url, options: &StoreOptions) -> Result<Connected, StoreError> {
    let container = host(url, "container")?;
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_client_options(client_options(options)?)
        .with_retry(retry());
    if let Some(connector) = connector() {
        builder = builder.with_http_connector(connector);
    }
    if options.emulator {
        // Spelled out rather than `with_use_emulator`, which takes its address from the environment alone.
        let from_environment = env::var("AZURITE_BLOB_STORAGE_URL").ok();
        let endpoint = options.endpoint.as_deref().or(from_environment.as_deref());
        let endpoint = endpoint.unwrap_or(EMULATOR_ENDPOINT).trim_end_matches('/');
        let endpoint = match endpoint.strip_suffix(EMULATOR_ACCOUNT) {
            Some(_) => endpoint.to_owned(),
            None => format!("{endpoint}/{EMULATOR_ACCOUNT}"),
        };
        builder = builder
            .with_account(options.account.as_deref().unwrap_or(EMULATOR_ACCOUNT))
            .with_endpoint(endpoint)
            .with_allow_http(true);
        if options.sas_token.is_none() {
            let key = options.account_key.as_ref().map_or(EMULATOR_KEY, |key| key.expose());
            builder = builder.with_access_key(key);
        }
    } else {
        if let Some(endpoint) = &options.endpoint {
            check_endpoint(url, endpoint, options.allow_http)?;
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        if options.allow_http {
            builder = builder.with_allow_http(true);
        }
        if let Some(account) = &options.account {
            builder = builder.with_account(account);
        }
        if let Some(key) = &options.account_key {
            builder = builder.with_access_key(key.expose());
        }
    }
    if let Some(token) = &options.sas_token {
        // Said, since a key in the environment would be taken first.
        builder = builder
            .with_config(AzureConfigKey::SasKey, token.expose())
            .with_config(AzureConfigKey::CredentialType, "sas_token");
    }
    let inner = builder.build().map_err(|source| setup(url, source))?;
    Ok(Connected {
        inner: Arc::new(inner),
        prefix: prefix(url)?,
        folder: None,
    })
}

/// Requests run as tasks of their own. Whoever reads ahead lets some of them lie while it does something else; without this
/// their connections would stand half open meanwhile, and their time would run out.
///
/// Outside a runtime there is none: nothing is asked for there.
fn connector() -> Option<SpawnedReqwestConnector> {
    Handle::try_current().ok().map(SpawnedReqwestConnector::new)
}

fn client_options(options: &StoreOptions) -> Result<ClientOptions, StoreError> {
    let mut client = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_allow_http(options.allow_http || options.emulator);
    if let Some(path) = &options.ca_file {
        let failed = |source: Cause| StoreError::CaFile {
            path: path.clone(),
            source,
        };
        let pem = fs::read(path).map_err(|error| failed(error.into()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| failed(Cause::of(&error)))?;
        if certificates.is_empty() {
            return Err(failed(Cause::text("it holds no certificate in PEM form")));
        }
        for certificate in certificates {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(8),
            base: 2.0,
        },
        max_retries: RETRIES,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn check_endpoint(url: &Url, endpoint: &str, allow_http: bool) -> Result<(), StoreError> {
    let parsed = Url::parse(endpoint).map_err(|error| bad(url, format!("its endpoint `{endpoint}`: {error}")))?;
    match parsed.scheme() {
        "https" => Ok(()),
        "http" if allow_http => Ok(()),
        "http" => Err(bad(
            url,
            format!("its endpoint `{endpoint}` is plain HTTP, which `allow-http = true` would allow"),
        )),
        other => Err(bad(url, format!("its endpoint `{endpoint}` has the scheme `{other}`"))),
    }
}

fn host<'a>(url: &'a Url, what: &str) -> Result<&'a str, StoreError> {
    url.host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| bad(url, format!("a {what} is wanted, as {}://{what}/prefix", url.scheme())))
}

fn prefix(url: &Url) -> Result<ObjectPath, StoreError> {
    ObjectPath::from_url_path(url.path()).map_err(|error| bad(url, error.to_string()))
}

fn bad(url: &Url, what: impl Into<String>) -> StoreError {
    StoreError::Address {
        url: url.to_string(),
        what: what.into(),
    }
}

fn setup(url: &Url, source: object_store::Error) -> StoreError {
    StoreError::Setup {
        store: url.to_string(),
        source: Cause::of(&source),
    }
}
