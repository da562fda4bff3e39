//! The object store below a vault, with exactly what the protocol assumes of it: create-if-absent is atomic and a GET is
//! never stale. A listing is a hint.
//!
//! A create that answers with an error may have been done all the same (a lost acknowledgement, a 5xx after the act, a retry
//! inside object_store that then met its own object), and a create that answers "already there" may have stored nothing (S3's
//! 409 for two at once). So every error of a create is followed by reading the object back, and only its bytes decide.

mod config;
mod connect;
mod error;
mod local;
mod paced;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::offload::offload;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::pace::Pace;
use crate::parity::Parity;

pub use config::{SecretText, StoreConfig, StoreOptions};
pub use error::{Cause, StoreError};

/// How often a create is sent when its outcome was an error and nothing is there.
const CREATE_ATTEMPTS: u32 = 5;
/// How long a store may take to say anything at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A prefix in an object store.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    /// For messages, without secrets.
    name: Arc<str>,
    first_pause: Duration,
    /// Stores in memory keep the very bytes that they are given; given a pack buffer, it would never come back.
    keeps_payloads: bool,
    /// Where a local vault lies.
    folder: Option<Arc<Path>>,
    /// What new packs get beside them.
    parity: Option<Parity>,
}

/// What a create did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    Now,
    /// The very bytes were there already: an earlier try of ours had succeeded.
    Before,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Below the vault's prefix.
    pub(crate) object: String,
    pub(crate) size_bytes: u64,
    /// By the store's own clock.
    pub(crate) modified: Timestamp,
}

/// What a look at one object tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) size_bytes: u64,
    /// By the store's own clock.
    pub(crate) modified: Timestamp,
}

/// What no timestamp can say is a clock that lies, and as far away as a guard against such clocks can see.
fn modified(meta: &ObjectMeta) -> Timestamp {
    let nanoseconds = meta.last_modified.timestamp_subsec_nanos() as i32;
    Timestamp::new(meta.last_modified.timestamp(), nanoseconds).unwrap_or(Timestamp::MIN)
}

impl Store {
    /// Reaches nothing yet; only what is wrong with the address itself is an error here.
    pub fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        let connected = connect::connect(config)?;
        let mut shown = config.url.clone();
        // Nobody should put secrets into an address, but somebody will.
        let _ = shown.set_password(None);
        let _ = shown.set_username("");
        shown.set_query(None);
        Ok(Self {
            inner: connected.inner,
            prefix: connected.prefix,
            name: shown.as_str().into(),
            first_pause: FIRST_PAUSE,
            keeps_payloads: config.url.scheme() == "memory",
            folder: connected.folder.map(Into::into),
            parity: config.options.parity,
        })
    }

    /// A vault in a store that the caller made: tests and fault injection.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self {
            name: store.to_string().into(),
            inner: store,
            prefix: ObjectPath::from(prefix),
            first_pause: Duration::from_millis(1),
            keeps_payloads: true,
            folder: None,
            parity: None,
        }
    }

    /// The same place, reached through something else.
    #[cfg(any(test, feature = "testing"))]
    pub fn through(self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Self {
        Self {
            inner: wrap(self.inner),
            ..self
        }
    }

    /// The same place, where every request asks `pace` first.
    pub fn paced(self, pace: Arc<dyn Pace>) -> Self {
        Self {
            inner: Arc::new(paced::PacedStore::new(self.inner, pace)),
            ..self
        }
    }

    /// How messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where a local vault lies.
    pub(crate) fn folder(&self) -> Option<Arc<Path>> {
        self.folder.clone()
    }

    /// What new packs get beside them.
    pub(crate) fn parity(&self) -> Option<Parity> {
        self.parity
    }

    fn path(&self, object: &str) -> ObjectPath {
        object
            .split('/')
            .fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn failed(&self, action: &'static str, object: &str, error: object_store::Error) -> StoreError {
        StoreError::of(&self.name, action, object, error)
    }

    /// The whole object, or nothing where nothing is. More than `limit_bytes` is an error before it is read.
    pub(crate) async fn get(&self, object: &str, limit_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let result = match self.inner.get_opts(&self.path(object), GetOptions::default()).await {
            Ok(result) => result,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.failed("read", object, error)),
        };
        if result.meta.size > limit_bytes {
            return Err(StoreError::TooLarge {
                store: self.name.to_string(),
                object: object.to_owned(),
                found_bytes: result.meta.size,
                limit_bytes,
            });
        }
        result
            .bytes()
            .await
            .map(Some)
            .map_err(|error| self.failed("read", object, error))
    }

    /// The first request to a store, which may not be there at all: gives up after [`ANSWER_TIMEOUT`].
    pub(crate) async fn get_promptly(&self, object: &str, limit_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.get(object, limit_bytes)).await;
        answer.unwrap_or_else(|_| {
            Err(StoreError::Unreachable {
                store: self.name().to_owned(),
                source: Cause::text(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
            })
        })
    }

    /// A byte range, or nothing where no object is. A range that reaches past the object's end comes back shorter, or is
    /// an error, as the store pleases: callers check the length.
    pub(crate) async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        match self.inner.get_opts(&self.path(object), options).await {
            Ok(result) => result
                .bytes()
                .await
                .map(Some)
                .map_err(|error| self.failed("read", object, error)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", object, error)),
        }
    }

    /// The object's size, or nothing where nothing is.
    pub(crate) async fn size(&self, object: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.look(object).await?.map(|looked| looked.size_bytes))
    }

    /// Creates an object, or finds that it is there with the very same bytes. Anything else that is there is
    /// [`StoreError::Taken`].
    pub(crate) async fn create(&self, object: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let mut pause = self.first_pause;
        let mut attempt = 1;
        loop {
            let error = match self.create_once(object, bytes.clone()).await {
                Ok(()) => return Ok(Created::Now),
                Err(error) => error,
            };
            match self.get(object, bytes.len() as u64).await {
                Ok(Some(found)) if found == bytes => {
                    self.settle(object).await?;
                    return Ok(Created::Before);
                }
                Ok(Some(_)) | Err(StoreError::TooLarge { .. }) => return Err(self.taken(object)),
                Ok(None) => {}
                Err(read_back) => {
                    tracing::debug!(object, %read_back, "the object could not be read back after a failed create");
                }
            }
            let error = self.failed("create", object, error);
            if attempt == CREATE_ATTEMPTS || !error.may_help_to_try_again() {
                return Err(error);
            }
            tracing::debug!(
                object,
                ?error,
                attempt,
                "a create failed and left nothing; trying again"
            );
            tokio::time::sleep(pause).await;
            pause *= 2;
            attempt += 1;
        }
    }

    /// Writes to disk what was found although it is ours: in a local vault, a program that died or met an error between making
    /// the file and writing its folder to disk leaves an object that is there until the power fails. Other stores have it
    /// once they show it.
    pub(crate) async fn settle(&self, object: &str) -> Result<(), StoreError> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let path = folder.join(object);
        let written = offload(move || write_to_disk(&folder, &path)).await;
        let written = written.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        written.map_err(|source| StoreError::Failed {
            store: self.name.to_string(),
            action: "write to disk",
            object: object.to_owned(),
            source: source.into(),
        })
    }

    /// Whether something that is there may still be lost with the power.
    pub(crate) fn is_a_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// One conditional put as the store answers it, for the probe at creation and for the commit, which decide themselves.
    pub(crate) async fn create_once(&self, object: &str, bytes: Bytes) -> object_store::Result<()> {
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let bytes = if self.keeps_payloads {
            Bytes::copy_from_slice(&bytes)
        } else {
            bytes
        };
        self.inner
            .put_opts(&self.path(object), PutPayload::from(bytes), options)
            .await?;
        Ok(())
    }

    pub(crate) fn taken(&self, object: &str) -> StoreError {
        StoreError::Taken {
            store: self.name.to_string(),
            object: object.to_owned(),
        }
    }

    pub(crate) fn create_failed(&self, object: &str, error: object_store::Error) -> StoreError {
        self.failed("create", object, error)
    }

    pub(crate) fn first_pause(&self) -> Duration {
        self.first_pause
    }

    /// An object's size and the store's time of its making, or nothing where nothing is.
    pub(crate) async fn look(&self, object: &str) -> Result<Option<Looked>, StoreError> {
        match self.inner.head(&self.path(object)).await {
            Ok(meta) => Ok(Some(Looked {
                size_bytes: meta.size,
                modified: modified(&meta),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("look at", object, error)),
        }
    }

    /// What is listed below a folder of the vault (or all of it for ""). A hint: it may be stale or cut short.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let path = if folder.is_empty() {
            self.prefix.clone()
        } else {
            self.path(folder)
        };
        self.collect(folder, self.inner.list(Some(&path))).await
    }

    /// The same in no order, one after the other: for folders whose listing is large.
    pub(crate) async fn list_each(&self, folder: &str, each: impl FnMut(Listed)) -> Result<(), StoreError> {
        self.each(folder, self.inner.list(Some(&self.path(folder))), each).await
    }

    /// Of what is listed below a folder, the names that come after `after`, which is below the vault's prefix like all
    /// names here: a register that is followed from a known number is not listed from its beginning.
    pub(crate) async fn list_after(&self, folder: &str, after: &str) -> Result<Vec<Listed>, StoreError> {
        let stream = self.inner.list_with_offset(Some(&self.path(folder)), &self.path(after));
        self.collect(folder, stream).await
    }

    async fn collect(
        &self,
        folder: &str,
        stream: BoxStream<'_, object_store::Result<ObjectMeta>>,
    ) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        self.each(folder, stream, |listed| found.push(listed)).await?;
        found.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(found)
    }

    async fn each(
        &self,
        folder: &str,
        mut stream: BoxStream<'_, object_store::Result<ObjectMeta>>,
        mut each: impl FnMut(Listed),
    ) -> Result<(), StoreError> {
        loop {
            match stream.try_next().await {
                Ok(Some(meta)) => {
                    if let Some(parts) = meta.location.prefix_match(&self.prefix) {
                        let object = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
                        each(Listed {
                            object,
                            size_bytes: meta.size,
                            modified: modified(&meta),
                        });
                    }
                }
                Ok(None) | Err(object_store::Error::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(self.failed("list", if folder.is_empty() { "/" } else { folder }, error)),
            }
        }
    }

    /// The first object that a listing shows, if any.
    pub(crate) async fn any(&self) -> Result<Option<String>, StoreError> {
        let mut stream = self.inner.list(Some(&self.prefix));
        match stream.try_next().await {
            Ok(found) => Ok(found.map(|meta| meta.location.to_string())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("list", "/", error)),
        }
    }

    /// What is not there is deleted already. Only the clean-up and the probe of `init` call this.
    pub(crate) async fn delete(&self, object: &str) -> Result<(), StoreError> {
        match self.inner.delete(&self.path(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete", object, error)),
        }
    }
}

/// A file, the folders that it lies in, and the entry of the outermost in the one above.
fn write_to_disk(folder: &Path, file: &Path) -> io::Result<()> {
    File::open(file)?.sync_all()?;
    for above in file.ancestors().skip(1) {
        File::open(above)?.sync_all()?;
        if above == folder {
            break;
        }
    }
    folder.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
}
