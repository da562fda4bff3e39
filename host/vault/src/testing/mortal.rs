//! A store whose program dies: `kill -9` at a chosen request, before it is sent or after it was answered. The program is the
//! real one, and the store below is a real one; only the moment is chosen.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rustix::process::{Signal, getpid, kill_process};

/// When the program dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// The number of the request, from 1 on.
    pub at_request: u64,
    /// The request is answered first; the program does not come to know it.
    pub after: bool,
}

/// Passes everything on and counts it.
#[derive(Clone)]
pub struct MortalStore {
    inner: Arc<dyn ObjectStore>,
    death: Option<Death>,
    requests: Arc<AtomicU64>,
}

impl fmt::Display for MortalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

impl fmt::Debug for MortalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}

impl MortalStore {
    pub fn over(inner: Arc<dyn ObjectStore>, death: Option<Death>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            death,
            requests: Arc::default(),
        })
    }

    async fn request<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let dies = self.death.filter(|death| death.at_request == number);
        if dies.is_some_and(|death| !death.after) {
            die();
        }
        let answer = answer.await;
        if dies.is_some() {
            die();
        }
        answer
    }
}

/// No destructor runs and nothing is flushed. The kernel does not come back from this, and if it did, nobody should go on.
fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

#[async_trait]
impl ObjectStore for MortalStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.request(self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.request(self.inner.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let one = move |location: Path| {
            let store = store.clone();
            async move {
                store.request(store.inner.delete(&location)).await?;
                Ok(location)
            }
        };
        locations.and_then(one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            let all = store.inner.list(prefix.as_ref()).try_collect::<Vec<ObjectMeta>>();
            match store.request(all).await {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(listing).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
